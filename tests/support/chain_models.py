"""Random chains of the operators that local algebra is about: views, selections, joins, clamps, casts and constants.

Everything follows from the seed. Sizes are small, so that axes of size 1 and 0, equal sizes and pairs that undo each
other are common; some axes of the input are free.
"""

from __future__ import annotations

from math import prod
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

_FLOATS = ("float32", "float64")
_TYPES = ("float32", "float64", "int32", "int64", "bool")
_CLAMPED = ("float32", "int32", "int64")


def chain_model(seed: int, most: int = 10) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """Return the model of a seed and a feed.

    Args:
        seed: Everything follows from it.
        most: Most nodes.
    """
    return _Chain(Random(seed)).model(most)


class _Chain:
    def __init__(self, random: Random) -> None:
        self.random = random
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.known: list[tuple[str, tuple[int, ...], str]] = []
        self.count = 0

    def model(self, most: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
        """Draw the model."""
        shape = tuple(self.random.choice((1, 1, 2, 3, 4)) for _ in range(self.random.randint(1, 4)))
        names = [size if self.random.random() < 0.5 else f"d{axis}" for axis, size in enumerate(shape)]
        self.known.append(("x", shape, "float32"))
        steps = [self.reshape, self.view, self.transpose, self.slice, self.gather, self.pad, self.join, self.split]
        steps += [self.clamp, self.cast, self.unary, self.binary, self.reduce, self.reshape, self.slice_twice]
        for _ in range(self.random.randint(2, most)):
            self.random.choice(steps)(*self.pick())
        read = {name for node in self.nodes for name in node.input}
        outputs = [(name, kind, dims) for name, dims, kind in self.known[1:] if name not in read] or [
            (self.known[-1][0], self.known[-1][2], self.known[-1][1])
        ]
        made = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [None] * len(dims))
            for name, kind, dims in outputs
        ]
        given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, names)
        graph = helper.make_graph(self.nodes, "chain", [given], made, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        values = np.array([self.random.choice((-3, -1, -0.0, 0, 0.5, 1, 2, 7)) for _ in range(prod(shape))], np.float32)
        return model, {"x": values.reshape(shape)}

    def pick(self) -> tuple[str, tuple[int, ...], str]:
        """Choose a tensor, mostly the last one."""
        return self.known[-1] if self.random.random() < 0.7 else self.random.choice(self.known)

    def node(
        self, op: str, inputs: Sequence[str], shape: Sequence[int], kind: str, outputs: int = 1, **attrs: Any
    ) -> str:
        """Add a node and return its first output."""
        self.count += 1
        made = [f"t{self.count}_{index}" if index else f"t{self.count}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), made, **attrs))
        if outputs == 1:
            self.known.append((made[0], tuple(shape), kind))
        return made[0]

    def constant(self, value: Any, kind: str = "int64") -> str:
        """Add an initializer."""
        self.count += 1
        self.constants.append(numpy_helper.from_array(np.array(value, kind), f"c{self.count}"))
        return f"c{self.count}"

    def reshape(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        left, target = prod(shape), list[int]()
        while left > 1 and len(target) < 3:
            size = self.random.choice([size for size in range(1, left + 1) if left % size == 0])
            target.append(size)
            left //= size
        target = [*target, left] if left != 1 or not target else target
        if self.random.random() < 0.3:
            target = list(shape)
        made: tuple[int, ...] = tuple(target)
        for axis, size in enumerate(made):
            if axis < len(shape) and shape[axis] == size and self.random.random() < 0.5:
                target[axis] = 0
        if made and 0 not in made and self.random.random() < 0.5:
            target[self.random.randrange(len(target))] = -1
        if 0 in made and any(size == 0 and (axis >= len(shape) or shape[axis]) for axis, size in enumerate(made)):
            return
        self.node("Reshape", [name, self.constant(np.array(target, np.int64))], made, kind)

    def view(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        op = self.random.choice(("Flatten", "Squeeze", "Unsqueeze"))
        if op == "Flatten":
            axis = self.random.randint(0, len(shape))
            self.node("Flatten", [name], (prod(shape[:axis]), prod(shape[axis:])), kind, axis=axis)
        elif op == "Unsqueeze" and len(shape) < 5:
            axis = self.random.randint(0, len(shape))
            self.node("Unsqueeze", [name, self.constant([axis])], (*shape[:axis], 1, *shape[axis:]), kind)
        elif ones := [axis for axis, size in enumerate(shape) if size == 1]:
            axis = self.random.choice(ones)
            self.node("Squeeze", [name, self.constant([axis])], (*shape[:axis], *shape[axis + 1 :]), kind)

    def transpose(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        if not shape:
            return
        perm = self.random.sample(range(len(shape)), len(shape))
        self.node("Transpose", [name], tuple(shape[axis] for axis in perm), kind, perm=perm)

    def slice(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        if not shape:
            return
        axis = self.random.randrange(len(shape))
        start = self.random.randint(-shape[axis], shape[axis])
        end = self.random.choice((self.random.randint(-shape[axis], shape[axis] + 1), 2**63 - 1))
        step = self.random.choice((1, 1, 1, 2))
        made = (*shape[:axis], len(range(*slice(start, end, step).indices(shape[axis]))), *shape[axis + 1 :])
        inputs = [self.constant([value]) for value in (start, end, self.random.choice((axis, axis - len(shape))), step)]
        self.node("Slice", [name, *inputs], made, kind)

    def slice_twice(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        """Cut an axis into two parts with two Slices, and work on both."""
        wide = [axis for axis, size in enumerate(shape) if size > 1]
        if not wide:
            return
        axis = self.random.choice(wide)
        at = self.random.randint(1, shape[axis] - 1)
        for start, end in ((0, at), (at, self.random.choice((shape[axis], 99)))):
            inputs = [self.constant([value]) for value in (start, end, axis)]
            size = min(end, shape[axis]) - start
            self.node("Slice", [name, *inputs], (*shape[:axis], size, *shape[axis + 1 :]), kind)

    def gather(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        if not shape or 0 in shape:
            return
        axis = self.random.randrange(len(shape))
        count = self.random.choice(((), (1,), (2,), (shape[axis],), (1, 1)))
        indices = np.array([self.random.randint(-shape[axis], shape[axis] - 1) for _ in range(prod(count))])
        if count == (shape[axis],) and self.random.random() < 0.5:
            indices = np.arange(shape[axis])
        made = (*shape[:axis], *count, *shape[axis + 1 :])
        self.node("Gather", [name, self.constant(indices.reshape(count))], made, kind, axis=axis)

    def pad(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        if kind == "bool" or 0 in shape:
            return
        if not shape:
            return
        pads = [self.random.choice((0, 0, 1, 2)) for _ in range(2 * len(shape))]
        made = tuple(size + pads[axis] + pads[len(shape) + axis] for axis, size in enumerate(shape))
        if prod(made) > 500:
            return
        self.node("Pad", [name, self.constant(pads)], made, kind, mode=self.random.choice(("constant", "edge")))

    def join(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        if not shape:
            return
        axis = self.random.randrange(len(shape))
        rest = (*shape[:axis], *shape[axis + 1 :])
        fitting = [
            (other, dims)
            for other, dims, dtype in self.known
            if dtype == kind and len(dims) == len(shape) and (*dims[:axis], *dims[axis + 1 :]) == rest
        ]
        chosen = [(name, shape), *self.random.choices(fitting, k=self.random.choice((0, 1, 1, 2)))]
        size = sum(dims[axis] for _, dims in chosen)
        made = (*shape[:axis], size, *shape[axis + 1 :])
        if prod(made) <= 500:
            self.node("Concat", [other for other, _ in chosen], made, kind, axis=axis)

    def split(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        wide = [axis for axis, size in enumerate(shape) if size > 1]
        if not wide:
            return
        axis = self.random.choice(wide)
        at = self.random.randint(1, shape[axis] - 1)
        sizes = [at, shape[axis] - at]
        first = self.node("Split", [name, self.constant(sizes)], (), kind, outputs=2, axis=axis)
        for index, size in enumerate(sizes):
            part = first if index == 0 else f"{first}_1"
            self.known.append((part, (*shape[:axis], size, *shape[axis + 1 :]), kind))

    def clamp(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        op = self.random.choice(("Relu", "Clip", "Clip", "Min", "Max"))
        if kind not in _CLAMPED or (op == "Relu" and kind not in _FLOATS):
            return
        low, high = (self.constant(self.random.choice((-1, 0, 1, 2)), kind) for _ in range(2))
        names = {"Relu": [], "Clip": [low, self.random.choice((high, ""))], "Min": [high], "Max": [low]}[op]
        while names and not names[-1]:
            names.pop()
        self.node(op, [name, *names], shape, kind)

    def cast(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        wanted = self.random.choice(_TYPES)
        self.node("Cast", [name], shape, wanted, to=helper.np_dtype_to_tensor_dtype(np.dtype(wanted)))

    def unary(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        ops = (
            ("Not",)
            if kind == "bool"
            else ("Neg", "Abs", "Identity")
            if kind[0] == "i"
            else ("Neg", "Abs", "Floor", "Ceil")
        )
        self.node(self.random.choice(ops), [name], shape, kind)

    def binary(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        same = [other for other, dims, dtype in self.known if dtype == kind and dims == shape]
        if kind == "bool":
            self.node(self.random.choice(("And", "Or", "Xor")), [name, self.random.choice(same)], shape, kind)
            return
        op = self.random.choice(("Add", "Sub", "Mul"))
        if self.random.random() < 0.5:
            self.node(op, self.random.sample([name, self.random.choice(same)], 2), shape, kind)
            return
        wide = [size if self.random.random() < 0.5 else 1 for size in shape[self.random.randint(0, len(shape)) :]]
        values = np.array([self.random.choice((-1, 0, 1, 2)) for _ in range(prod(wide))]).reshape(wide)
        self.node(op, self.random.sample([name, self.constant(values, kind)], 2), shape, kind)

    def reduce(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        if kind not in _CLAMPED or not shape or 0 in shape:
            return
        axes = self.random.sample(range(len(shape)), self.random.randint(1, len(shape)))
        keeps = self.random.randint(0, 1)
        made = tuple(1 if axis in axes else size for axis, size in enumerate(shape) if keeps or axis not in axes)
        op = self.random.choice(("ReduceSum", "ReduceMax", "ReduceMin"))
        self.node(op, [name, self.constant(axes)], made, kind, keepdims=keeps)
