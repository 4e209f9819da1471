"""What a model declares of its tensors, brought together with what was inferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from graphopt.analysis.dim_values import symbols
from graphopt.analysis.dims import Expr, differ, symbol
from graphopt.analysis.site import Known, as_value
from graphopt.graph.objects import Constant, Tensor

if TYPE_CHECKING:
    from onnx import ValueInfoProto

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.site import PartialShape, Value
    from graphopt.graph.objects import Graph

_NAMED_ELEMENTS = 8
"""Elements of a small integer vector of unknown value that get a symbol each, so that equal sizes are seen as equal."""

_COUNTABLE = frozenset({TensorProto.INT64, TensorProto.INT32})


@dataclass(frozen=True, slots=True)
class Conflict:
    """A declared type or shape that the inferred one contradicts; the inferred one holds.

    Attributes:
        tensor: The tensor.
        declared: What the model states.
        inferred: What follows from the nodes.
    """

    tensor: Tensor
    declared: str
    inferred: str


class Declarations:
    """The declared types of a model: they refine what is unknown and never override what is proved.

    Attributes:
        conflicts: Declarations that contradict what was inferred, by tensor.
    """

    def __init__(self, graph: Graph) -> None:
        self.conflicts: dict[Tensor, Conflict] = {}
        shapes = [
            *[tensor.shape for tensor in graph.inputs],
            *[stated_shape(i) for i in graph.initializer_inputs.values()],
        ]
        names = (size for shape in shapes for size in shape or () if isinstance(size, str))
        self._params = {name: symbol(_param_name(name)) for name in names}

    def settle(self, tensor: Tensor, known: Known, prefix: str) -> Known:
        """Return the facts of a tensor refined by its declaration, with a symbol for every size still unknown.

        Args:
            tensor: The tensor.
            known: What was inferred.
            prefix: What makes names of its scope unique in the model.
        """
        if isinstance(tensor, Constant) or tensor.carried is not None or tensor._dtype is not None:
            declared_dtype, declared = tensor.onnx_dtype, tensor.shape
        else:
            declared_dtype, declared = 0, tensor.shape
        if (
            known.proto is None
            and known.dtype == 0
            and not isinstance(tensor, Constant)
            and tensor.type != "tensor_type"
        ):
            proto = None if tensor.carried is None else tensor.carried.type
            return Known(proto=proto)
        dtype = known.dtype or declared_dtype
        shape = known.shape
        if declared_dtype not in {0, dtype}:
            self.conflicts[tensor] = Conflict(tensor, f"element type {declared_dtype}", f"element type {dtype}")
        if declared is not None and (shape is None or not is_static(shape)):
            shape = self._refined(tensor, shape, declared)
        elif declared is not None and shape is not None and not _agrees(shape, declared):
            self.conflicts[tensor] = Conflict(tensor, f"shape {_text(declared)}", f"shape {_text(shape)}")
        if shape is not None and None in shape:
            stem = f"?{prefix}{tensor.name}."
            shape = tuple(symbol(f"{stem}{axis}") if size is None else size for axis, size in enumerate(shape))
        value = known.value
        if dtype in _COUNTABLE:
            value = _named(tensor, value, dtype, shape, prefix)
        return Known(dtype, shape, value, known.proto)

    def fed(self, constant: Constant, dtype: int, info: ValueInfoProto | None) -> Known:
        """Return the facts of an initializer in whose place another tensor may be fed: only what the input declares.

        Args:
            constant: The initializer.
            dtype: Its element type.
            info: The declaration.
        """
        stated = stated_shape(info)
        if stated is None:
            return Known(dtype)
        sizes = [self._declared_size(size) for size in stated]
        shape = tuple(symbol(f"?{constant.name}.{i}") if size is None else size for i, size in enumerate(sizes))
        return Known(dtype, shape, _named(constant, None, dtype, shape, ""))

    def _refined(self, tensor: Tensor, shape: PartialShape | None, declared: Any) -> PartialShape:
        stated = tuple(self._declared_size(size) for size in declared)
        if shape is None:
            return stated
        pairs = list(zip(shape, stated, strict=False))
        if len(shape) != len(stated) or any(_contradicts(size, other) for size, other in pairs):
            self.conflicts[tensor] = Conflict(tensor, f"shape {_text(declared)}", f"shape {_text(shape)}")
        if len(shape) != len(stated):
            return shape
        return tuple(_more_exact(size, other) for size, other in pairs)

    def _declared_size(self, size: object) -> int | Expr | None:
        """Return a declared size; a parameter means something only where an input of the model has it too."""
        if isinstance(size, str):
            return self._params.get(size)
        return size if isinstance(size, int) and size >= 0 else None


def stated_shape(info: ValueInfoProto | None) -> list[int | str | None] | None:
    """Return the shape of a declaration, None where it states no rank."""
    if info is None or not info.type.tensor_type.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in info.type.tensor_type.shape.dim
    ]


def _named(tensor: Tensor, value: Value | None, dtype: int, shape: PartialShape | None, prefix: str) -> Value | None:
    """Return the value of a small integer vector with a symbol for every unknown element."""
    if dtype not in _COUNTABLE or shape is None or len(shape) > 1:
        return value
    if value is None:
        count = shape[0] if shape else 1
        if not isinstance(count, int) or count > _NAMED_ELEMENTS:
            return None
        value = as_value([None] * count, (count,) if shape else ())
    entries = value.ravel().tolist()
    if None not in entries:
        return value
    stem = f"?{prefix}{tensor.name}"
    named = [symbol(f"{stem}[{i}]", low=None) if entry is None else entry for i, entry in enumerate(entries)]
    return as_value(named, value.shape)


def is_static(shape: PartialShape) -> bool:
    """Return whether every size is a number."""
    for size in shape:  # noqa: SIM110 - asked of every tensor, and a generator costs more
        if not isinstance(size, int):
            return False
    return True


def _agrees(shape: PartialShape, declared: Any) -> bool:
    return len(shape) == len(declared) and all(
        size == other for size, other in zip(shape, declared, strict=True) if isinstance(other, int) and other >= 0
    )


def _contradicts(size: Dim | None, declared: Dim | None) -> bool:
    """Return whether a declared size differs from the inferred one, or fixes one that the inputs of the model decide.

    A number in the place of the batch size is what is left where a dynamic batch was declared at the inputs only.
    """
    if size is None or declared is None or size == declared:
        return False
    return differ(size, declared) or (isinstance(declared, int) and not _is_own(size))


def _more_exact(size: Dim | None, declared: Dim | None) -> Dim | None:
    """Return the declared size where the inferred one says nothing of the model's own sizes."""
    if declared is None or isinstance(size, int) or (size is not None and differ(size, declared)):
        return size
    return declared if size is None or _is_own(size) else size


def _is_own(size: Dim) -> bool:
    """Return whether the size mentions a symbol made here for what could not be inferred."""
    return any(name.startswith(("?", "~")) for name in symbols(size))


def _text(shape: Any) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _param_name(name: str) -> str:
    # Symbols made here begin with ? and ~, so a parameter of the model must not.
    return f"={name}" if name.startswith(("?", "~", "=")) else name
