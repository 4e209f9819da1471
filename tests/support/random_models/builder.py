"""Puts a model together: nodes, constants in all their forms, names, and the forms that depend on the opset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from random_models.values import Value, is_exact, is_tame, runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from onnx import FunctionProto

    from random_models.choices import Decider

F32, F64, F16 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)
I64, I32, U8, BOOL = np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.uint8), np.dtype(np.bool_)


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """What was asked for is not possible here; the generator tries something else."""


class Builder:
    """One graph under construction.

    Attributes:
        ask: Where decisions come from.
        opset: Version of the ONNX operators.
        known: Values that nodes may read, oldest first.
        nodes: Nodes so far.
        weights: Initializers so far.
        functions: Functions of the model, shared among its graphs.
        smooth: Only operators without steps and poles: what a body sees in later iterations is not known.
        alone: Constants have to be Constant nodes, since there is no initializer here.
    """

    def __init__(
        self, ask: Decider, opset: int, feeds: int, outer: Builder | None = None, *, alone: bool = False
    ) -> None:
        self.ask = ask
        self.opset = opset
        self.feeds = feeds
        self.known: list[Value] = [] if outer is None or alone else list(outer.known)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.functions: list[FunctionProto] = [] if outer is None else outer.functions
        self.depth: int = 0 if outer is None else outer.depth + 1
        self.smooth: bool = outer is not None and outer.smooth
        self.alone: bool = alone or (outer is not None and outer.alone)
        self.declared: dict[str, tuple[Any, ...]] = {}
        self._names: list[int] = [0] if outer is None else outer._names

    def fresh(self, stem: str = "t") -> str:
        """Return a name that is new in the whole model."""
        self._names[0] += 1
        return f"{stem}{self._names[0]}"

    # ---------------------------------------------------------------------------------------------------------- picking

    def pick(
        self,
        dtypes: Iterable[np.dtype[Any]] = (F32,),
        ranks: Sequence[int] = (),
        where: Callable[[Value], bool] | None = None,
    ) -> Value:
        """Return a value; newer ones are likelier.

        Raises:
            Refused: There is none.
        """
        kinds = set(dtypes)
        found = [
            value
            for value in self.known
            if value.dtype in kinds and (not ranks or value.rank in ranks) and (where is None or where(value))
        ]
        if not found:
            raise Refused
        if len(found) > 4 and self.ask.chance(60):
            found = found[-4:]
        return self.ask.pick(found[::-1])

    def any_float(self, *ranks: int, where: Callable[[Value], bool] | None = None) -> Value:
        """Return a float value, of one of the ranks if any are given."""
        return self.pick((F32, F64, F16), ranks, where)

    # -------------------------------------------------------------------------------------------------------- constants

    def constant(self, array: Any, dtype: Any = None) -> Value:
        """Add a constant: an initializer, a Constant node, or either behind an Identity."""
        array = np.array(array, dtype)
        name = self.fresh("c")
        if self.alone or self.ask.chance(30):
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self.weights.append(numpy_helper.from_array(array, name))
        value = Value(name, (array,) * self.feeds, constant=True)
        if self.ask.chance(6):
            value = self.node("Identity", [value])
        return Value(value.name, value.arrays, constant=True)

    def weight(self, *shape: int, dtype: Any = F32, scale: float = 1.0) -> Value:
        """Add a constant of random numbers, sometimes all equal."""
        if self.ask.chance(12):
            return self.constant(np.full(shape, self.ask.pick((1.0, 0.0, 0.5, 2.0, -1.0, -0.0))), dtype)
        return self.constant(self.ask.generator().uniform(-1, 1, shape) * scale, dtype)

    def ints(self, *numbers: int, dtype: Any = I64) -> Value:
        """Add a vector of integers."""
        return self.constant(numbers, dtype)

    def scalar(self, number: float, dtype: Any = F32) -> Value:
        """Add a constant of rank 0, or [1], which broadcasts alike in most places."""
        return self.constant(number if self.ask.chance(70) else [number], dtype)

    # ------------------------------------------------------------------------------------------------------------ nodes

    def many(
        self, op: str, inputs: Sequence[Value | None], outputs: int, domain: str = "", **attributes: Any
    ) -> list[Value]:
        """Add a node and return its outputs.

        Raises:
            Refused: ONNX Runtime does not run it, or it would be ill-conditioned.
        """
        attributes = {name: value for name, value in attributes.items() if value is not None}
        given = [value for value in inputs if value is not None]
        arrays = runs(op, inputs, outputs, self.opset, attributes, domain) if given else None
        if arrays is None or not is_tame(op, given, attributes, arrays):
            raise Refused
        names = [self.fresh() for _ in range(outputs)]
        label = self.fresh("n") if self.ask.chance(60) else ""
        self.nodes.append(
            helper.make_node(
                op, [value.name if value else "" for value in inputs], names, name=label, domain=domain, **attributes
            )
        )
        return self.add([
            Value(name, each, exact=all(is_exact(op, given, array) for array in each))
            for name, each in zip(names, arrays, strict=True)
        ])  # fmt: skip

    def node(self, op: str, inputs: Sequence[Value | None], **attributes: Any) -> Value:
        """Add a node of one output; see `many`."""
        return self.many(op, inputs, 1, **attributes)[0]

    def add(self, values: list[Value]) -> list[Value]:
        """Make values known."""
        self.known.extend(values)
        return values

    # ------------------------------------------------------------------------------------- forms that depend on opsets

    def reshape(self, x: Value, *target: int, allowzero: int | None = None) -> Value:
        """Add a Reshape to a constant target."""
        return self.node("Reshape", [x, self.ints(*target)], allowzero=allowzero if self.opset >= 14 else None)

    def transpose(self, x: Value, *perm: int) -> Value:
        """Add a Transpose; the default permutation may be left out."""
        default = list(perm) == list(range(x.rank))[::-1] and self.ask.chance(50)
        return self.node("Transpose", [x], perm=None if default else list(perm))

    def with_axes(self, op: str, x: Value, axes: Sequence[int], since: int = 13, **attributes: Any) -> Value:
        """Add an operator whose axes became an input with an opset: Squeeze, Unsqueeze and the reductions."""
        if self.opset < since:
            return self.node(op, [x], axes=list(axes), **attributes)
        return self.node(op, [x, self.ints(*axes)], **attributes)

    def reduce(self, op: str, x: Value, axes: Sequence[int], keepdims: int = 1) -> Value:
        """Add a reduction."""
        return self.with_axes(op, x, axes, 13 if op == "ReduceSum" else 18, keepdims=keepdims)

    def slice(self, x: Value, axis: int, start: int, end: int, step: int = 1) -> Value:
        """Add a Slice of one axis."""
        if self.opset < 10:
            if step != 1:
                raise Refused
            return self.node("Slice", [x], axes=[axis], starts=[start], ends=[end])
        dtype = self.ask.pick((I64, I64, I32)) if max(abs(start), abs(end)) < 2**31 else I64
        limits = [self.ints(each, dtype=dtype) for each in (start, end, axis)]
        steps = [self.ints(step, dtype=dtype)] if step != 1 or self.ask.chance(40) else []
        return self.node("Slice", [x, *limits, *steps])

    def clip(self, x: Value, low: float | None, high: float | None) -> Value:
        """Add a Clip."""
        if self.opset < 11:
            if x.dtype != F32:
                raise Refused
            return self.node("Clip", [x], min=low, max=high)
        limits = [None if each is None else self.constant(each, x.dtype) for each in (low, high)]
        while limits and limits[-1] is None:
            limits.pop()
        return self.node("Clip", [x, *limits])

    def pad(self, x: Value, pads: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
        """Add a Pad of all axes."""
        name = mode if mode != "constant" or self.ask.chance(30) else None
        if self.opset < 11:
            if not x.is_float:
                raise Refused
            return self.node("Pad", [x], pads=list(pads), mode=name, value=value)
        extra = [self.constant(value, x.dtype)] if value is not None else []
        return self.node("Pad", [x, self.ints(*pads), *extra], mode=name)

    def split(self, x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
        """Add a Split into parts of given sizes."""
        if self.opset < 13:
            return self.many("Split", [x], len(sizes), axis=axis, split=list(sizes))
        if len(set(sizes)) == 1 and self.ask.chance(50):
            return self.many("Split", [x], len(sizes), axis=axis, num_outputs=len(sizes) if self.opset >= 18 else None)
        return self.many("Split", [x, self.ints(*sizes)], len(sizes), axis=axis)

    def topk(self, x: Value, k: int, axis: int) -> list[Value]:
        """Add a TopK."""
        if self.opset < 10:
            return self.many("TopK", [x], 2, k=k, axis=axis)
        return self.many("TopK", [x, self.ints(k)], 2, axis=axis)

    def cast(self, x: Value, dtype: np.dtype[Any]) -> Value:
        """Add a Cast."""
        return self.node("Cast", [x], to=helper.np_dtype_to_tensor_dtype(dtype))
