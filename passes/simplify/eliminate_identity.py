"""Remove nodes that give out what they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import (
    Constant,
    Model,
    Node,
    Variable,
    constant_value,
    is_graph_input,
    is_graph_output,
    owner,
    producer,
)
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, is_constant, refers_to_function
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Rewriter, Tensor

Array = np.ndarray[Any, Any]

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_LONGEST_VIEW_CHAIN = 16
_SMALL_CONSTANT = 4096
_INTEGERS_AND_BOOL = (2, 3, 4, 5, 6, 7, 9, 12, 13)  # element types of ONNX


@dataclass(frozen=True, slots=True, kw_only=True)
class EliminateIdentity(Pass):
    """Remove nodes whose output is, bit for bit, one of their inputs.

    Matches:   Identity; Dropout in inference mode; Cast to the type the input has; Reshape, Flatten, Squeeze, Unsqueeze
               (also chains of them that return to an earlier shape), Expand, Tile, Slice, Pad, Transpose and Resize
               that change nothing; Transpose that undoes a Transpose; Concat, Max, Min of one input; Split into one
               output; x + 0 and x - 0 where exact, x * 1, x / 1, x ** 1, and the same for logical operators; Where
               of integers with a constant condition of one value.
    Produces:  The readers of the output read the input.
    Requires:  The shapes are proved equal, symbolic sizes included. For floats x + 0 counts only with a zero of
               negative sign, since 0 added to -0 gives +0. An output of a graph keeps its name: its producer
               takes it over, and where the input is itself an input, a constant or an output of a graph, the node
               stays.
    Preserves: Every output bitwise (the payload of a NaN aside); public names, types and shapes.
    Source:    IEEE 754-2019, sections 6.3 (signs of zeros) and 6.2 (NaN).
    """

    name: ClassVar[str] = "eliminate-identity"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per removed node, in topological order."""
        types, values = facts.get(Types), facts.get(ShapeValues)
        for _, node in list(model.walk()):
            if node.graph is None or node.domain not in DEFAULT_DOMAINS or node.op not in _RULES:
                continue
            if refers_to_function(node):
                continue
            source = _RULES[node.op](_Look(node, types, values))
            if source is None or not node.outputs[0].name:
                continue
            reason = _why_kept(node, source)
            if reason:
                yield Skip(node, reason)
            else:
                yield _bypass(node, source)


def _bypass(node: Node, source: Tensor) -> Patch:
    output = node.outputs[0]

    def apply(rewriter: Rewriter) -> None:
        if is_graph_output(output) and isinstance(source, Variable):
            rewriter.set_type(
                source, output.dtype, output.shape
            )  # what it declared may be wrong, what was proved is not
        rewriter.replace_tensor(output, source)
        rewriter.erase(node)

    return Patch(f"{node.op} gives out '{source.name}' unchanged", (node,), apply)


def _why_kept(node: Node, source: Tensor) -> str:
    """Return why a node that changes nothing has to stay; empty where it may go."""
    output = node.outputs[0]
    used = [tensor.name for tensor in node.outputs[1:] if tensor.name and (tensor.outputs or is_graph_output(tensor))]
    if used:
        return f"its further outputs are read: {', '.join(used)}"
    if not is_graph_output(output):
        return ""
    if is_graph_input(source) or isinstance(source, Constant) or is_constant(source):
        return f"it gives the graph output '{output.name}' its name, and '{source.name}' keeps its own"
    if owner(source) is not node.graph:
        return f"it gives '{source.name}' of an outer graph out of the body as '{output.name}'"
    if is_graph_output(source):
        return f"'{output.name}' and '{source.name}' are both outputs of the graph"
    return ""


# ------------------------------------------------------------------------------------------------------------- looking


class _Look:
    """One node with what is known of its tensors."""

    def __init__(self, node: Node, types: Types, values: ShapeValues) -> None:
        self.node = node
        self.types = types
        self.values = values

    @property
    def opset(self) -> int:
        """Version of the ONNX domain."""
        assert self.node.graph is not None
        return self.node.graph.opset

    def input(self, index: int) -> Tensor | None:
        """Return an input, None where it is omitted."""
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) and inputs[index].name else None

    def first(self) -> Tensor | None:
        """Return the first input."""
        return self.input(0)

    def attr(self, name: str, default: Any) -> Any:
        """Return an attribute."""
        return self.node.attrs.get(name, default)

    def same_type(self, tensor: Tensor) -> bool:
        """Whether a tensor has the element type of the output."""
        have, want = self.types.dtype(tensor), self.types.dtype(self.node.outputs[0])
        return have != 0 and have == want

    def same_shape(self, tensor: Tensor) -> bool:
        """Whether a tensor is proved to have the shape of the output."""
        have, want = self.types.shape(tensor), self.types.shape(self.node.outputs[0])
        return have is not None and have == want

    def constant(self, index: int) -> Array | None:
        """Return the value of a small constant input, else None."""
        tensor = self.input(index)
        return None if tensor is None else small_constant(tensor)

    def ints(self, index: int, name: str) -> list[int] | None:
        """Return integers given by an attribute in old opsets and by an input in new ones; None where not known."""
        if name in self.node.attrs:
            return [int(entry) for entry in self.node.attrs[name]]
        tensor = self.input(index)
        if tensor is None:
            return None
        known = self.values.constant(tensor)
        if known is not None:
            return list(known)
        value = small_constant(tensor)
        return None if value is None or value.dtype.kind not in "iu" else [int(entry) for entry in value.ravel()]


def small_constant(tensor: Tensor) -> Array | None:
    """Return the value of a constant of few elements, else None; large ones are not loaded."""
    if isinstance(tensor, Constant) and int(np.prod(tensor.shape, dtype=np.int64)) > _SMALL_CONSTANT:
        return None
    return constant_value(tensor)


# --------------------------------------------------------------------------------------------------------------- rules


def _identity(look: _Look) -> Tensor | None:
    return look.first()


def _dropout(look: _Look) -> Tensor | None:
    if look.opset >= 12:
        training = look.input(2)
        if training is None:
            return look.first()
        value = look.constant(2)
        return look.first() if value is not None and not value.any() else None
    if look.opset >= 7:
        return look.first()
    return look.first() if int(look.attr("is_test", 0)) == 1 else None


def _cast(look: _Look) -> Tensor | None:
    source = look.first()
    return source if source is not None and look.same_type(source) else None


def _view(look: _Look) -> Tensor | None:
    """Return the nearest tensor of the same shape that only views lie between: they never move an element."""
    source = look.first()
    for _ in range(_LONGEST_VIEW_CHAIN):
        if source is None:
            return None
        if look.same_shape(source):
            return source
        before = producer(source)
        if before is None or before.op not in _VIEWS or before.domain not in DEFAULT_DOMAINS:
            return None
        source = before.inputs[0]
    return None


def _broadcast(look: _Look) -> Tensor | None:
    source = look.first()
    return source if source is not None and look.same_shape(source) else None


def _tile(look: _Look) -> Tensor | None:
    repeats = look.ints(1, "repeats") if look.opset >= 6 else None
    return look.first() if repeats is not None and all(count == 1 for count in repeats) else None


def _slice(look: _Look) -> Tensor | None:
    """A slice of every element: forward steps, and as many elements as there were."""
    source = look.first()
    if source is None or not look.same_shape(source):
        return None
    if look.opset < 10 or look.input(4) is None:
        return source
    steps = look.ints(4, "steps")
    return source if steps is not None and all(step > 0 for step in steps) else None


def _pad(look: _Look) -> Tensor | None:
    if look.opset < 2:
        return None
    pads = look.ints(1, "pads")
    return look.first() if pads is not None and not any(pads) else None


def _transpose(look: _Look) -> Tensor | None:
    source = look.first()
    if source is None:
        return None
    perm = _permutation(look.node, look.types)
    if perm is None:
        return None
    if _keeps_order(perm, look.types.shape(source)):
        return source
    before = producer(source)
    if before is None or before.op != "Transpose" or before.domain not in DEFAULT_DOMAINS or refers_to_function(before):
        return None
    inner = _permutation(before, look.types)
    if inner is None or len(inner) != len(perm) or [inner[axis] for axis in perm] != sorted(perm):
        return None
    origin: Tensor = before.inputs[0]
    return origin


def _permutation(node: Node, types: Types) -> list[int] | None:
    given = node.attrs.get("perm")
    if given is not None:
        return [int(axis) for axis in given]
    rank = types.rank(node.inputs[0])
    return None if rank is None else list(range(rank))[::-1]


def _keeps_order(perm: list[int], shape: tuple[Any, ...] | None) -> bool:
    """Whether a permutation moves nothing: at most axes of size 1 change places, among each other."""
    if perm == sorted(perm):
        return True
    return shape is not None and all(
        axis == place or shape[axis] == shape[place] == 1 for place, axis in enumerate(perm)
    )


def _only_input(look: _Look) -> Tensor | None:
    return look.first() if len(look.node.inputs) == 1 else None


def _split(look: _Look) -> Tensor | None:
    return look.first() if len(look.node.outputs) == 1 else None


def _resize(look: _Look) -> Tensor | None:
    """A resize to the same size that picks elements, which are then all of them in their order.

    One that interpolates weighs neighbours with 0, which is NaN beside an infinity.
    """
    source = look.first()
    if source is None or not look.same_shape(source) or look.attr("mode", "nearest") != "nearest":
        return None
    sampling = look.attr("coordinate_transformation_mode", "half_pixel")
    if sampling not in {"half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"}:
        return None
    if look.node.op == "Upsample" or look.opset < 11:
        scales = look.attr("scales", None) if "scales" in look.node.attrs else look.constant(1)
    elif look.input(3) is not None:
        return source if look.attr("keep_aspect_ratio_policy", "stretch") == "stretch" else None
    else:
        scales = look.constant(2)
    return source if scales is not None and all(float(scale) == 1.0 for scale in np.ravel(scales)) else None


def _neutral(element: Callable[[Array], bool], *, both: bool) -> Callable[[_Look], Tensor | None]:
    """Return the rule for a binary operator with a neutral element, on the right or on both sides."""

    def rule(look: _Look) -> Tensor | None:
        for index in (1, 0) if both else (1,):
            value, source = look.constant(index), look.input(1 - index)
            if value is None or source is None or value.size == 0 or not element(value):
                continue
            if look.opset < 7 and int(look.attr("broadcast", 0)) and index == 0:
                continue
            if look.same_type(source) and (value.ndim == 0 or _is_absorbed(value.shape, source, look)):
                return source
        return None

    return rule


def _is_absorbed(shape: tuple[int, ...], source: Tensor, look: _Look) -> bool:
    """Whether broadcasting with a constant of this shape leaves the shape of the other operand."""
    target = look.types.shape(source)
    if target is None or len(shape) > len(target):
        return False
    return all(size in (1, want) for size, want in zip(shape[::-1], target[::-1], strict=False))


def _is_exact_zero(*, negative: bool) -> Callable[[Array], bool]:
    """Return whether adding (``negative``) or subtracting a constant of zeros leaves every number, -0 included."""

    def test(value: Array) -> bool:
        if value.dtype.kind in "iu":
            return not value.any()
        if value.dtype.kind == "c" or value.dtype.kind in "bO":
            return False
        wide = value.astype(np.float64)
        return bool((wide == 0).all() and (np.signbit(wide) == negative).all())

    return test


def _is_one(value: Array) -> bool:
    return value.dtype.kind not in "bOc" and bool((value.astype(np.float64) == 1).all())


def _where(look: _Look) -> Tensor | None:
    """A choice that is always the same; not of floats, which ONNX Runtime chooses by adding 0, so that -0 becomes 0."""
    condition = look.constant(0)
    if condition is None or condition.size == 0 or not (condition.all() or not condition.any()):
        return None
    source = look.input(1 if condition.all() else 2)
    if source is None or not look.same_shape(source) or look.types.dtype(source) not in _INTEGERS_AND_BOOL:
        return None
    return source


_RULES: dict[str, Callable[[_Look], Any]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast,
    **dict.fromkeys(_VIEWS, _view),
    "Expand": _broadcast,
    "Tile": _tile,
    "Slice": _slice,
    "Pad": _pad,
    "Transpose": _transpose,
    **dict.fromkeys(("Concat", "Max", "Min"), _only_input),
    "Split": _split,
    "Resize": _resize,
    "Upsample": _resize,
    "Add": _neutral(_is_exact_zero(negative=True), both=True),
    "Sub": _neutral(_is_exact_zero(negative=False), both=False),
    "Mul": _neutral(_is_one, both=True),
    "Div": _neutral(_is_one, both=False),
    "Pow": _neutral(_is_one, both=False),
    "And": _neutral(lambda value: bool(value.all()), both=True),
    "Or": _neutral(lambda value: not value.any(), both=True),
    "Xor": _neutral(lambda value: not value.any(), both=True),
    "Where": _where,
}
