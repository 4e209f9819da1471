"""Bisection: finds the one wrong patch, in O(log n) runs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import UnsupportedError
from graphopt.graph import read_model
from graphopt.rewrite import Contract
from graphopt.rewrite.bisect import bisect
from graphopt.runtime import Feeds
from pass_oracle import parse
from toy_passes import MergeRelu, ScaleWeights, edits

if TYPE_CHECKING:
    from graphopt.graph import Model, Rewriter

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def dense(layers: int) -> Model:
    """Return ``layers`` products with well-conditioned matrices."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(np.linalg.qr(generator.standard_normal((4, 4)))[0].astype(np.float32), f"w{i}")
        for i in range(layers)
    ]
    nodes = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"layer{i}") for i in range(layers)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in ("t0", f"t{layers}")]
    graph = helper.make_graph(nodes, "dense", ends[:1], ends[1:], weights)
    return read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("wrong", [1, 2, 7, 11, 16])
def test_finds_the_first_wrong_patch_in_few_runs(wrong: int) -> None:
    model = dense(16)
    before = model.to_bytes()
    finding = bisect(model, [MergeRelu(), ScaleWeights(factor=1.25, first=wrong)])
    assert finding.number == wrong
    assert finding.name == "scale-weights"
    assert finding.reason == f"scale w{wrong - 1}"
    assert finding.nodes == (f"layer{wrong - 1}",)
    assert "the rounding bound is" in finding.problem
    assert finding.patches == 16
    assert finding.runs <= 1 + ceil(log2(16))
    assert model.to_bytes() == before
    assert f"Patch {wrong} of 16 is the first wrong one: scale-weights at layer{wrong - 1}" in str(finding)


def test_a_right_pipeline_takes_one_run() -> None:
    finding = bisect(dense(3), [MergeRelu(), ScaleWeights(factor=1.0)])
    assert (finding.number, finding.patches, finding.runs) == (None, 3, 1)
    assert str(finding) == "All 3 patches are right (1 runs)."


def test_an_illegal_patch_is_found() -> None:
    def rename(rewriter: Rewriter, model: Model) -> None:
        model.graph.outputs[0].name = "other"

    finding = bisect(dense(4), [ScaleWeights(factor=1.0), edits("rename")(edit=rename), ScaleWeights(factor=1.0)])
    assert (finding.number, finding.name, finding.patches) == (5, "rename", 9)
    assert "the public outputs changed" in finding.problem


def test_a_patch_that_raises_is_found_with_what_it_raised() -> None:
    def fail(rewriter: Rewriter, model: Model) -> None:
        raise ValueError("no such thing")

    finding = bisect(dense(3), [ScaleWeights(factor=1.0), edits("fails")(edit=fail)])
    assert (finding.number, finding.name) == (4, "fails")
    assert "no such thing" in finding.problem


def test_a_patch_that_the_runtime_refuses_is_found() -> None:
    def odd(rewriter: Rewriter, model: Model) -> None:
        rewriter.set_op(model.graph.nodes[0], "NoSuchOperator")

    finding = bisect(dense(3), [ScaleWeights(factor=1.0), edits("odd")(edit=odd)])
    assert (finding.number, finding.name) == (4, "odd")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossyScale(ScaleWeights):
    name: ClassVar[str] = "lossy-scale"
    contract: ClassVar[Contract] = Contract.LOSSY


def test_lossy_patches_are_right_unless_a_floor_is_given() -> None:
    passes = [LossyScale(factor=1.5, first=3)]
    assert bisect(dense(5), passes).number is None
    finding = bisect(dense(5), passes, min_sqnr_db=20)
    assert finding.number == 3
    assert "dB, below 20" in finding.problem


def test_lossy_patch_that_makes_nan_is_found() -> None:
    finding = bisect(dense(5), [LossyScale(factor=float("inf"), first=4)])
    assert finding.number == 4
    assert "not finite" in finding.problem


def test_given_feeds_are_compared_on() -> None:
    # Only large inputs tell the two apart: random ones never reach the limit.
    text = HEAD + "g (float[1] x) => (float[1] y) <float high = {1000000}> { y = Clip(x, , high) }"
    model = parse(text)

    def tighten(rewriter: Rewriter, model: Model) -> None:
        rewriter.set_weight(model.graph.nodes[0].inputs[2], np.array(1000, np.float32))

    passes: list[Any] = [edits("tighten")(edit=tighten)]
    assert bisect(model, passes).number is None
    data = Feeds.open({"x": np.array([[5.0], [5000.0]], np.float32)}, model)
    assert bisect(model, passes, data=data).number == 1


def test_progress_tells_the_range_that_is_left() -> None:
    told: list[tuple[int, int]] = []
    bisect(dense(8), [ScaleWeights(factor=2.0, first=6)], progress=lambda right, wrong: told.append((right, wrong)))
    assert told[0] == (0, 8)
    assert all(low < 6 <= high for low, high in told)


def test_an_original_that_does_not_run_is_refused() -> None:
    head = '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>'
    with pytest.raises(UnsupportedError):
        bisect(parse(head + " g (float[4] x) => (float[4] y) { y = my.Odd(x) }"), [MergeRelu()])
