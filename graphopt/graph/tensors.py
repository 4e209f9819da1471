"""Tensors: variables that are computed or fed, constants whose values live outside the objects."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.errors import GraphError
from graphopt.graph import dtypes
from graphopt.graph.edges import Uses, new_uses, set_edges
from graphopt.graph.fields import give_tensor_fields
from graphopt.graph.weights import ArrayWeight, ProtoWeight, SparseWeight, Weight

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graphopt.graph.graphs import Graph

# True while a function written for stock graphsurgeon runs, which may write into ``constant.values``.
WRITABLE_VALUES: ContextVar[bool] = ContextVar("graphopt_writable_values", default=False)


class _Identity:
    """What variables and constants share."""

    name: str
    inputs: Uses
    outputs: Uses
    carried: onnx.ValueInfoProto | None = None
    roles: tuple[tuple[str, Graph], ...] = ()

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    __setattr__ = set_edges

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        msg = f"tensor '{self.name}' cannot be copied alone"
        raise GraphError(msg, must="A tensor belongs to its nodes", do="Copy the Model or the Graph.")


class Variable(_Identity, gs.Variable):  # type: ignore[misc]
    """A tensor that is computed or fed. Compared and hashed by identity.

    Attributes:
        name: Tensor name; "" for an omitted input or output.
        carried: The ValueInfoProto it was read from, or None.
        roles: ("input" | "output", graph) for every graph whose input or output it is.
    """

    _dtype: Any = None
    _shape: list[int | str | None] | None = None
    _type: str = "tensor_type"
    _known: bool = True

    def __init__(
        self,
        name: str,
        dtype: Any = None,
        shape: Sequence[Any] | None = None,
        type: str = "tensor_type",  # noqa: A002 - the name that graphsurgeon has
    ) -> None:
        makers, readers = new_uses(self)
        give_tensor_fields(
            self,
            {
                "name": name,
                "inputs": makers,
                "outputs": readers,
                "roles": (),
                "carried": None,
                "_known": True,
                "_dtype": dtype,
                "_shape": None if shape is None else list(shape),
                "_type": type,
            },
        )

    @classmethod
    def read(cls, name: str, carried: onnx.ValueInfoProto | None) -> Variable:
        """Return a variable whose type is decoded from ``carried`` when it is first asked for."""
        variable = cls.__new__(cls)
        makers, readers = new_uses(variable)
        give_tensor_fields(
            variable,
            {
                "name": name,
                "inputs": makers,
                "outputs": readers,
                "roles": (),
                "carried": carried,
                "_known": carried is None,
                "_dtype": None,
                "_shape": None,
                "_type": "tensor_type",
            },
        )
        return variable

    @staticmethod
    def empty() -> Variable:
        """Return the placeholder of an omitted optional input or output."""
        return Variable("")

    def _know(self) -> None:
        dtype, shape, kind = decode_type(cast("onnx.ValueInfoProto", self.carried))
        self.__dict__.update(_dtype=dtype, _shape=shape, _type=kind, _known=True)

    @property
    def type_read(self) -> bool:
        """Whether the type was decoded, and may therefore differ from the carried message."""
        return self._known

    @property
    def dtype(self) -> Any:
        """Element type: numpy dtype, an ONNX enum value where numpy has none, None if unknown or not a tensor."""
        if not self._known:
            self._know()
        return self._dtype

    @dtype.setter
    def dtype(self, value: Any) -> None:
        if not self._known:
            self._know()
        self.__dict__["_dtype"] = value

    @property
    def shape(self) -> list[int | str | None] | None:
        """Dimensions: number, symbol or None each; None if the rank is unknown."""
        if not self._known:
            self._know()
        return self._shape

    @shape.setter
    def shape(self, value: Sequence[Any] | None) -> None:
        if not self._known:
            self._know()
        self.__dict__["_shape"] = None if value is None else list(value)

    @property
    def type(self) -> str:
        """The field of onnx.TypeProto in use: tensor_type, sequence_type, optional_type, map_type and so on."""
        if not self._known:
            self._know()
        return self._type

    @type.setter  # noqa: A003
    def type(self, value: str) -> None:
        if not self._known:
            self._know()
        self.__dict__["_type"] = value

    @property
    def onnx_dtype(self) -> int:
        """Element type as ONNX enum; 0 if unknown."""
        return dtypes.onnx_dtype_of(self.dtype)

    def copy(self) -> Variable:
        """Return an unconnected variable of the same name and type."""
        twin = Variable(self.name)
        for field in ("carried", "_known", "_dtype", "_type"):
            if field in self.__dict__:
                twin.__dict__[field] = self.__dict__[field]
        if self._shape is not None:
            twin.__dict__["_shape"] = list(self._shape)
        return twin

    def to_constant(self, values: Any, data_location: int | None = None, export_dtype: Any = None) -> Constant:
        """Turn this variable into a constant in place; producers and consumers keep it."""
        _ = data_location
        for field in ("_dtype", "_shape", "_type", "_known", "carried"):
            self.__dict__.pop(field, None)
        self.__class__ = Constant
        constant = cast("Constant", self)
        constant.__dict__.update(_weight=as_weight(values, export_dtype), home=None, residual=None)
        return constant

    def __str__(self) -> str:
        return f"Variable ({self.name}): (shape={self.shape}, dtype={self.dtype})"

    __repr__ = __str__


def decode_type(info: onnx.ValueInfoProto) -> tuple[Any, list[int | str | None] | None, str]:
    """Return element type, dimensions and kind of a ValueInfoProto."""
    kind = info.type.WhichOneof("value") or "tensor_type"
    if kind != "tensor_type":
        return None, None, kind
    tensor = info.type.tensor_type
    element = tensor.elem_type
    dtype: Any = None
    if element:
        found = dtypes.numpy_dtype(element)
        dtype = element if found is None else found
    shape: list[int | str | None] | None = None
    if tensor.HasField("shape"):
        shape = []
        for dim in tensor.shape.dim:
            which = dim.WhichOneof("value")
            shape.append(dim.dim_value if which == "dim_value" else dim.dim_param or None if which else None)
    return dtype, shape, kind


def as_weight(values: Any, dtype: Any = None) -> Weight:
    """Return values as a Weight: an array, a Weight, or what graphsurgeon keeps lazily.

    Raises:
        GraphError: The values are none of these, or do not fit ``dtype``.
    """
    if type(values) is np.ndarray and dtype is None:
        return ArrayWeight(values)  # nearly all are
    if isinstance(values, Weight):
        return values
    if isinstance(values, LazyValues):
        tensor = values.tensor
        if isinstance(tensor, onnx.SparseTensorProto):
            return SparseWeight(tensor)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return ProtoWeight(tensor)
        values = values.load()
    if not isinstance(values, np.ndarray | np.generic):
        msg = f"the values of a constant are a {type(values).__name__}"
        raise GraphError(
            msg, must="They must be a numpy array or a Weight", do="Call numpy.asarray with the dtype you mean."
        )
    array = np.asarray(values)
    if dtype is not None and dtypes.onnx_dtype_of(dtype) != dtypes.onnx_dtype_of(array.dtype):
        wanted = dtypes.numpy_dtype(dtypes.onnx_dtype_of(dtype))
        array = array.astype(wanted)
    return ArrayWeight(array)


class Constant(_Identity, gs.Constant):  # type: ignore[misc]
    """A tensor whose value is known: an initializer. Compared and hashed by identity.

    Attributes:
        name: Tensor name.
        home: The graph that owns the initializer; None until the writer adopts a new one.
        carried: Its ValueInfoProto if the model had one, or None.
        residual: A TensorProto with doc string and metadata but no data, or None.
    """

    home: Graph | None = None
    residual: onnx.TensorProto | None = None
    data_location = None
    _export_dtype = None
    _weight: Weight
    _scratch: np.ndarray[Any, Any] | None = None

    def __init__(self, name: str, values: Any, data_location: int | None = None, export_dtype: Any = None) -> None:
        _ = data_location
        makers, readers = new_uses(self)
        give_tensor_fields(
            self,
            {
                "name": name,
                "inputs": makers,
                "outputs": readers,
                "roles": (),
                "carried": None,
                "home": None,
                "residual": None,
                "_weight": as_weight(values, export_dtype),
                "_scratch": None,
            },
        )

    @property
    def weight(self) -> Weight:
        """Where the values live."""
        if self._scratch is not None:
            self._settle_scratch()
        return self._weight

    @weight.setter
    def weight(self, value: Weight) -> None:
        self._keep_residual()
        self.__dict__.update(_weight=value, _scratch=None)

    def _keep_residual(self) -> None:
        proto = getattr(self._weight, "proto", None)
        if proto is not None and (proto.doc_string or len(proto.metadata_props)):
            kept = onnx.TensorProto()
            kept.doc_string = proto.doc_string
            kept.metadata_props.extend(proto.metadata_props)
            self.residual = kept

    @property
    def onnx_dtype(self) -> int:
        """Element type as ONNX enum."""
        return self.weight.onnx_dtype

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type as numpy type."""
        return self.weight.dtype

    @property
    def export_dtype(self) -> Any:
        """The type it is written as: always its own."""
        return self.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return tuple(self.weight.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed values."""
        return self.weight.nbytes

    def array(self) -> np.ndarray[Any, Any]:
        """Return the values: read-only, sub-byte types one element per byte as ml_dtypes, strings as objects."""
        return self.weight.load()

    def set(self, values: Any, onnx_dtype: int | None = None) -> None:
        """Replace the values; type and shape may change.

        Args:
            values: An array or a Weight.
            onnx_dtype: Element type where the numpy type does not say it.
        """
        weight = ArrayWeight(values, onnx_dtype) if isinstance(values, np.ndarray) else as_weight(values, onnx_dtype)
        self.weight = weight

    @contextlib.contextmanager
    def edit(self) -> Iterator[np.ndarray[Any, Any]]:
        """Give a writable copy of the values and keep what it holds at the end; nothing changes if the block raises."""
        array = np.array(self.array())
        kind = self.onnx_dtype
        yield array
        self.weight = ArrayWeight(array, kind)

    @property
    def values(self) -> np.ndarray[Any, Any]:
        """The values, for code written for graphsurgeon: writable inside ``gs_pass``, else read-only."""
        if not WRITABLE_VALUES.get():
            return self.array()
        if self._scratch is None:
            self.__dict__["_scratch"] = np.array(self._weight.load())
        return cast("np.ndarray[Any, Any]", self._scratch)

    @values.setter
    def values(self, values: Any) -> None:
        self.weight = as_weight(values)

    def _settle_scratch(self) -> None:
        scratch = cast("np.ndarray[Any, Any]", self._scratch)
        self.__dict__["_scratch"] = None
        before = self._weight.load()
        if before.dtype != scratch.dtype or before.shape != scratch.shape or not _same_bits(before, scratch):
            self.weight = as_weight(scratch)

    @property
    def _values(self) -> Any:
        return self._weight if self._scratch is None else self._scratch

    @_values.setter
    def _values(self, values: Any) -> None:
        self.weight = as_weight(values)

    def copy(self) -> Constant:
        """Return an unconnected constant that shares the values; changing either copies them first."""
        twin = Constant(self.name, self.weight)
        twin.__dict__.update(carried=self.carried, residual=self.residual, home=self.home)
        return twin

    def to_variable(self, dtype: Any = None, shape: Sequence[Any] | None = None) -> Variable:
        """Turn this constant into a variable in place; of its own type and shape unless told otherwise."""
        dtype = self.dtype if dtype is None else dtype
        shape = self.shape if shape is None else shape
        for field in ("_weight", "_scratch", "home", "residual", "carried"):
            self.__dict__.pop(field, None)
        self.__class__ = Variable
        variable = cast("Variable", self)
        variable.__dict__.update(_dtype=dtype, _shape=list(shape), _type="tensor_type", _known=True)
        return variable

    def to_constant(self, values: Any, data_location: int | None = None, export_dtype: Any = None) -> Constant:
        """Replace the values."""
        _ = data_location
        self.weight = as_weight(values, export_dtype)
        return self

    def __str__(self) -> str:
        return f"Constant ({self.name}): (shape={self.shape}, dtype={self.onnx_dtype})"

    __repr__ = __str__


def _same_bits(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    if left.dtype == dtypes.OBJECT:
        return bool(np.array_equal(left, right))
    return np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()


Tensor = Variable | Constant
