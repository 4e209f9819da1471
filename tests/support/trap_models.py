"""Trap models: tiny valid models that each are a known or likely way for a simplifier to be wrong.

    Trap("pow-4-is-no-variance", "LayerNormalization has squares", "g (float[n, 4] x) => ... { ... }", opset=17)

`check_trap` simplifies one and checks everything that `simplify_oracle.judge` knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper

from model_feeds import SIZES, feeds_of
from simplify_oracle import Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Weight = np.ndarray | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Trap:
    """One model with the reason why it is a trap.

    Attributes:
        name: A name for the test.
        why: How one goes wrong here, in one line.
        text: The graph (and functions) as ONNX text, or a function that builds the model.
        opset: Version of the ONNX operators.
        ir: IR version.
        domains: Further opset imports, as text.
        weights: Initializers: arrays, or shapes that are filled with seeded normal numbers.
        sizes: Sizes of free dimensions per feed.
        odd: Feed NaN, infinities, zeros of both signs and extremes, besides ordinary values.
        integers: Ordinary integer inputs are below this.
        random: Outputs are random numbers: only their types and shapes count.
        keeps: Operators that must still be there, with how many of them.
        runs: Whether ONNX Runtime runs the original; where it does, it must.
        interpreter: Whether onnx.reference is asked too.
    """

    name: str
    why: str
    text: str | Callable[[], onnx.ModelProto]
    opset: int = 21
    ir: int = 10
    domains: str = ""
    weights: Mapping[str, Weight] = field(default_factory=dict)
    sizes: Sequence[Any] = SIZES
    odd: bool = False
    integers: int = 4
    random: bool = False
    keeps: Mapping[str, int] = field(default_factory=dict)
    runs: bool = True
    interpreter: bool = True

    def __str__(self) -> str:
        return self.name

    def model(self) -> onnx.ModelProto:
        """Return the model."""
        if not isinstance(self.text, str):
            return self.text()
        imports = f'"" : {self.opset}' + (f", {self.domains}" if self.domains else "")
        model = onnx.parser.parse_model(f"<ir_version: {self.ir}, opset_import: [{imports}]>\n{self.text}")
        for number, (name, weight) in enumerate(self.weights.items()):
            array = weight
            if isinstance(array, tuple):
                array = np.random.default_rng(number).standard_normal(array).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        return model

    def feeds(self, model: onnx.ModelProto) -> list[dict[str, Any]]:
        """Return ordinary feeds, and odd ones where they are asked for."""
        ordinary = feeds_of(model, self.sizes, integers=self.integers)
        return [*ordinary, *(feeds_of(model, self.sizes, odd=True) if self.odd else [])]


def trap(name: str, why: str, text: str | Callable[[], onnx.ModelProto], **options: Any) -> Trap:
    """Return a trap; see `Trap` for the options."""
    return Trap(name=name, why=why, text=text, **options)


def check_trap(each: Trap) -> Verdict:
    """Simplify a trap and assert that nothing is wrong with the result."""
    model = each.model()
    feeds = each.feeds(model)
    verdict = judge(model, feeds, random=each.random, interpreter=each.interpreter)
    if each.runs:
        assert verdict.compared, "ONNX Runtime runs the original on no feed: the trap proves nothing"
    for op, count in each.keeps.items():
        assert verdict.ops.count(op) == count, f"{count} {op} must stay: {verdict.ops}"
    return verdict


def built(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Any]],
    outputs: Sequence[tuple[str, int, Any]],
    tensors: Sequence[onnx.TensorProto] = (),
    opset: int = 21,
    ir: int = 10,
    **more: Any,
) -> onnx.ModelProto:
    """Return a model of nodes, for what the text has no words for.

    Args:
        nodes: The nodes.
        inputs: Name, element type and shape of each input.
        outputs: The same of each output.
        tensors: Initializers.
        opset: Version of the ONNX operators.
        ir: IR version.
        more: Further fields of the graph.
    """
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        list(tensors),
        **more,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
