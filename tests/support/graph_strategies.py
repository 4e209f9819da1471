"""Hypothesis strategies for small models that ONNX Runtime runs: diamonds, chains, constants, bodies, shared outputs.

@given(small_models())
def test_pass(model): check_pass(MyPass(), model)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH = 4
"""Every tensor of a small model is float32 of shape [batch, WIDTH]."""

_UNARY = ("Relu", "Neg", "Abs", "Sigmoid", "Tanh", "Identity", "Softplus", "Floor", "Dropout")
_BINARY = ("Add", "Sub", "Mul", "Max", "Min")
_ODD = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 6.0, 1e-30, 3.0e38)


@st.composite
def small_models(draw: st.DrawFn, max_nodes: int = 12, *, bodies: bool = True) -> onnx.ModelProto:
    """Draw a model of float32[batch, WIDTH] tensors with one to three outputs.

    Args:
        draw: Given by hypothesis.
        max_nodes: Most nodes in the main graph.
        bodies: Whether an If, whose bodies capture outer tensors, may occur.
    """
    builder = _Builder(draw)
    known = ["x", "y"]
    for _ in range(draw(st.integers(1, max_nodes))):
        known.append(builder.node(known))
    if bodies and draw(st.booleans()):
        known.append(builder.conditional(known))
    made = known[2:]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    shape = ["batch", WIDTH]
    graph = helper.make_graph(
        builder.nodes,
        "small",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
        builder.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


class _Builder:
    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def constant(self, shape: Sequence[int]) -> str:
        """Add an initializer; odd values are likely, and one value all over is."""
        name = self.fresh("w")
        if self.draw(st.booleans()):
            array = np.full(shape, self.draw(st.sampled_from(_ODD)), np.float32)
        else:
            seed = self.draw(st.integers(0, 9))
            array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, known: Sequence[str]) -> str:
        """Add one node (or a few that belong together) and return its output."""
        kinds: list[Callable[[Sequence[str]], str]] = [
            self.unary,
            self.binary,
            self.scaled,
            self.product,
            self.clip,
            self.twice_transposed,
            self.joined,
            self.stated,
        ]
        return self.draw(st.sampled_from(kinds))(known)

    def add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = self.fresh("t")
        name = self.fresh("n") if self.draw(st.booleans()) else ""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def pick(self, known: Sequence[str]) -> str:
        return self.draw(st.sampled_from(list(known)))

    def unary(self, known: Sequence[str]) -> str:
        return self.add(self.draw(st.sampled_from(_UNARY)), [self.pick(known)])

    def binary(self, known: Sequence[str]) -> str:
        return self.add(self.draw(st.sampled_from(_BINARY)), [self.pick(known), self.pick(known)])

    def scaled(self, known: Sequence[str]) -> str:
        shape = self.draw(st.sampled_from([(), (1,), (WIDTH,), (1, WIDTH)]))
        pair = [self.pick(known), self.constant(shape)]
        if self.draw(st.booleans()):
            pair.reverse()
        return self.add(self.draw(st.sampled_from(_BINARY)), pair)

    def product(self, known: Sequence[str]) -> str:
        if self.draw(st.booleans()):
            return self.add("MatMul", [self.pick(known), self.constant((WIDTH, WIDTH))])
        bias = [self.constant((WIDTH,))] if self.draw(st.booleans()) else []
        return self.add(
            "Gemm", [self.pick(known), self.constant((WIDTH, WIDTH)), *bias], transB=self.draw(st.integers(0, 1))
        )

    def clip(self, known: Sequence[str]) -> str:
        return self.add("Clip", [self.pick(known), self.constant(()), self.constant(())])

    def twice_transposed(self, known: Sequence[str]) -> str:
        return self.add("Transpose", [self.add("Transpose", [self.pick(known)], perm=[1, 0])], perm=[1, 0])

    def joined(self, known: Sequence[str]) -> str:
        wide = self.add("Concat", [self.pick(known), self.pick(known)], axis=1)
        sizes = numpy_helper.from_array(np.array([WIDTH, WIDTH], np.int64), self.fresh("s"))
        self.initializers.append(sizes)
        left, right = self.fresh("t"), self.fresh("t")
        self.nodes.append(helper.make_node("Split", [wide, sizes.name], [left, right], axis=1))
        return self.draw(st.sampled_from([left, right]))

    def stated(self, known: Sequence[str]) -> str:
        """Add a Constant node and a sum with it."""
        output = self.fresh("t")
        value = numpy_helper.from_array(np.full((1, WIDTH), self.draw(st.sampled_from(_ODD)), np.float32))
        self.nodes.append(helper.make_node("Constant", [], [output], value=value))
        return self.add("Add", [self.pick(known), output])

    def conditional(self, known: Sequence[str]) -> str:
        """Add an If; its bodies read tensors of the graph around them."""
        outer, bodies = self.nodes, []
        for name in ("then", "else"):
            self.nodes = []
            local = list(known)
            for _ in range(self.draw(st.integers(1, 3))):
                local.append(self.node(local))
            result = helper.make_tensor_value_info(local[-1], TensorProto.FLOAT, None)
            bodies.append(helper.make_graph(self.nodes, name, [], [result]))
        self.nodes = outer
        return self.add("If", ["flag"], then_branch=bodies[0], else_branch=bodies[1])
