"""eliminate-identity: what changes nothing goes, what only looks so stays."""

# ruff: noqa: E501, ISC004 - the tables hold one model per line

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings

from graph_strategies import small_models
from graphopt.graph import read_model
from graphopt.passes.simplify.eliminate_identity import EliminateIdentity
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import Feeds
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

GONE: dict[str, str] = {
    "Identity": "g (float[n] x) => (float[n] y) { a = Identity(x) y = Neg(a) }",
    "Dropout": "g (float[n] x) => (float[n] y) { a = Dropout(x) y = Neg(a) }",
    "Dropout not training": "g (float[n] x) => (float[n] y) <float r = {0.5}, bool t = {0}> { a, m = Dropout(x, r, t) y = Neg(a) }",
    "Cast": "g (float[n] x) => (float[n] y) { a = Cast<to = 1>(x) y = Neg(a) }",
    "CastLike": "g (float[n] x, float[1] l) => (float[n] y) { a = CastLike(x, l) y = Neg(a) }",
    "Reshape": "g (float[n, 3] x) => (float[n, 3] y) <int64[2] s = {0, -1}> { a = Reshape(x, s) y = Neg(a) }",
    "Reshape static": "g (float[2, 3] x) => (float[2, 3] y) <int64[2] s = {2, 3}> { a = Reshape(x, s) y = Neg(a) }",
    "Reshape to its own shape": "g (float[n, m] x) => (float[n, m] y) { s = Shape(x) a = Reshape(x, s) y = Neg(a) }",
    "Flatten": "g (float[n, 3] x) => (float[n, 3] y) { a = Flatten<axis = 1>(x) y = Neg(a) }",
    "Squeeze nothing": "g (float[2, 3] x) => (float[2, 3] y) { a = Squeeze(x) y = Neg(a) }",
    "Unsqueeze and Squeeze": "g (float[n, 3] x) => (float[n, 3] y) <int64[1] s = {1}> { a = Unsqueeze(x, s) b = Squeeze(a, s) y = Neg(b) }",
    "views there and back": "g (float[n, 6] x) => (float[n, 6] y) <int64[3] s = {0, 2, 3}, int64[2] t = {0, 6}> { a = Reshape(x, s) b = Reshape(a, t) y = Neg(b) }",
    "Expand": "g (float[2, 3] x) => (float[2, 3] y) <int64[2] s = {1, 3}> { a = Expand(x, s) y = Neg(a) }",
    "Tile": "g (float[n, 3] x) => (float[n, 3] y) <int64[2] s = {1, 1}> { a = Tile(x, s) y = Neg(a) }",
    "Transpose": "g (float[n, 3] x) => (float[n, 3] y) { a = Transpose<perm = [0, 1]>(x) y = Neg(a) }",
    "Transpose of unit axes": "g (float[1, 3, 1] x) => (float[1, 3, 1] y) { a = Transpose(x) y = Neg(a) }",
    "Transpose twice": "g (float[n, 3, 2] x) => (float[n, 3, 2] y) { a = Transpose<perm = [2, 0, 1]>(x) b = Transpose<perm = [1, 2, 0]>(a) y = Neg(b) }",
    "Slice of all": "g (float[n, 3] x) => (float[n, 3] y) <int64[1] s = {0}, int64[1] e = {9223372036854775807}, int64[1] a = {0}> { z = Slice(x, s, e, a) y = Neg(z) }",
    "Pad by nothing": "g (float[n, 3] x) => (float[n, 3] y) <int64[4] p = {0, 0, 0, 0}> { a = Pad(x, p) y = Neg(a) }",
    "Concat of one": "g (float[n, 3] x) => (float[n, 3] y) { a = Concat<axis = 0>(x) y = Neg(a) }",
    "Max of one": "g (float[n, 3] x) => (float[n, 3] y) { a = Max(x) y = Neg(a) }",
    "Split into one": "g (float[n, 3] x) => (float[n, 3] y) { a = Split<num_outputs = 1>(x) y = Neg(a) }",
    "Resize to the same size": "g (float[1, 1, 3, 3] x) => (float[1, 1, 3, 3] y) <float[4] s = {1, 1, 1, 1}> { a = Resize<mode = \"nearest\">(x, , s) y = Neg(a) }",
    "x + -0": "g (float[n, 3] x) => (float[n, 3] y) <float z = {-0.0}> { a = Add(z, x) y = Neg(a) }",
    "x - 0": "g (float[n, 3] x) => (float[n, 3] y) <float[3] z = {0, 0, 0}> { a = Sub(x, z) y = Neg(a) }",
    "integer x + 0": "g (int64[n, 3] x) => (int64[n, 3] y) <int64[1] z = {0}> { a = Add(x, z) y = Neg(a) }",
    "x * 1": "g (float[n, 3] x) => (float[n, 3] y) <float[1, 3] z = {1, 1, 1}> { a = Mul(z, x) y = Neg(a) }",
    "x / 1": "g (float[n, 3] x) => (float[n, 3] y) <float z = {1}> { a = Div(x, z) y = Neg(a) }",
    "x ** 1": "g (float[n, 3] x) => (float[n, 3] y) <int64 z = {1}> { a = Pow(x, z) y = Neg(a) }",
    "b and true": "g (bool[n] x) => (bool[n] y) <bool z = {1}> { a = And(x, z) y = Not(a) }",
    "b or false": "g (bool[n] x) => (bool[n] y) <bool z = {0}> { a = Or(z, x) y = Not(a) }",
    "Concat with nothing": "g (float[n, 3] x, float[0, 3] e) => (float[n, 3] y) { a = Concat<axis = -2>(e, x) y = Neg(a) }",
    "Sum of one": "g (float[n, 3] x) => (float[n, 3] y) { a = Sum(x) y = Neg(a) }",
    "Mean of one": "g (float[n, 3] x) => (float[n, 3] y) { a = Mean(x) y = Neg(a) }",
    "Max of itself": "g (float[n, 3] x) => (float[n, 3] y) { a = Max(x, x) y = Neg(a) }",
    "Gather of all": "g (float[n, 3] x) => (float[n, 3] y) <int64[3] i = {0, 1, 2}> { a = Gather<axis = -1>(x, i) y = Neg(a) }",
    "DepthToSpace of one": "g (float[n, 3, 2, 2] x) => (float[n, 3, 2, 2] y) { a = DepthToSpace<blocksize = 1>(x) y = Neg(a) }",
    "LeakyRelu of slope 1": "g (float[n, 3] x) => (float[n, 3] y) { a = LeakyRelu<alpha = 1.0>(x) y = Neg(a) }",
    "PRelu of slope 1": "g (float[n, 3] x) => (float[n, 3] y) <float[3] s = {1, 1, 1}> { a = PRelu(x, s) y = Neg(a) }",
    "Clip of integers": "g (int64[n, 3] x) => (int64[n, 3] y) { a = Clip(x) y = Neg(a) }",
    "Einsum": "g (float[n, 3] x) => (float[n, 3] y) { a = Einsum<equation = \"ij -> ij\">(x) y = Neg(a) }",
    "Einsum in order": "g (float[n, 3] x) => (float[n, 3] y) { a = Einsum<equation = \"bz\">(x) y = Neg(a) }",
    "bits or 0": "g (int32[n] x) => (int32[n] y) <int32 z = {0}> { a = BitwiseOr(z, x) y = Neg(a) }",
    "bits and all": "g (int32[n] x) => (int32[n] y) <int32 z = {-1}> { a = BitwiseAnd(x, z) y = Neg(a) }",
    "shift by 0": "g (uint8[n] x) => (float[n] y) <uint8 z = {0}> { a = BitShift<direction = \"LEFT\">(x, z) y = Cast<to = 1>(a) }",
    "Where of one": "g (bool[2] c, int64[2] x) => (int64[2] y) { a = Where(c, x, x) y = Neg(a) }",
    "Where true": "g (int64[2] x, int64[2] o) => (int64[2] y) <bool[2] c = {1, 1}> { a = Where(c, x, o) y = Neg(a) }",
}  # fmt: skip

STAYS: dict[str, str] = {
    "x + 0 drops the sign of -0": "g (float[n] x) => (float[n] y) <float z = {0}> { a = Add(x, z) y = Neg(a) }",
    "x - -0": "g (float[n] x) => (float[n] y) <float z = {-0.0}> { a = Sub(x, z) y = Neg(a) }",
    "0 - x": "g (float[n] x) => (float[n] y) <float z = {0}> { a = Sub(z, x) y = Neg(a) }",
    "1 / x": "g (float[n] x) => (float[n] y) <float z = {1}> { a = Div(z, x) y = Neg(a) }",
    "x * 1 that broadcasts": "g (float[3] x) => (float[2, 3] y) <float[2, 1] z = {1, 1}> { a = Mul(x, z) y = Neg(a) }",
    "x * 1 that may broadcast": "g (float[n] x) => (float[3] y) <float[3] z = {1, 1, 1}> { a = Mul(x, z) y = Neg(a) }",
    "Dropout in training mode": "g (float[n] x) => (float[n] y) <float r = {0}, bool t = {1}> { a = Dropout(x, r, t) y = Neg(a) }",
    "Dropout whose mask is read": "g (float[n] x) => (float[n] y, bool[n] k) { a, m = Dropout(x) y = Neg(a) k = Not(m) }",
    "Cast to another type": "g (float[n] x) => (double[n] y) { a = Cast<to = 11>(x) y = Neg(a) }",
    "Reshape that merges": "g (float[n, 3] x) => (float[m] y) <int64[1] s = {-1}> { a = Reshape(x, s) y = Neg(a) }",
    "Reshape of unknown sizes": "g (float[n, m] x) => (float[k, l] y) <int64[2] s = {-1, 4}> { a = Reshape(x, s) y = Neg(a) }",
    "Transpose": "g (float[3, 3] x) => (float[3, 3] y) { a = Transpose(x) y = Neg(a) }",
    "Transpose twice but not back": "g (float[3, 3, 3] x) => (float[3, 3, 3] y) { a = Transpose<perm = [2, 0, 1]>(x) b = Transpose<perm = [2, 0, 1]>(a) y = Neg(b) }",
    "Slice backwards": "g (float[3] x) => (float[3] y) <int64[1] s = {2}, int64[1] e = {-9}, int64[1] a = {0}, int64[1] p = {-1}> { z = Slice(x, s, e, a, p) y = Neg(z) }",
    "Slice of a free axis": "g (float[n] x) => (float[m] y) <int64[1] s = {0}, int64[1] e = {3}> { z = Slice(x, s, e) y = Neg(z) }",
    "Pad that shifts": "g (float[3] x) => (float[3] y) <int64[2] p = {1, -1}> { a = Pad(x, p) y = Neg(a) }",
    "Expand of a free axis": "g (float[n] x) => (float[m] y) <int64[1] s = {3}> { a = Expand(x, s) y = Neg(a) }",
    "Resize with another sampling": "g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y) <float[8] r = {0, 0, 0.5, 0.5, 1, 1, 1, 1}, int64[4] s = {1, 1, 2, 2}> { a = Resize<coordinate_transformation_mode = \"tf_crop_and_resize\">(x, r, , s) y = Neg(a) }",
    "Concat of a free axis": "g (float[n, 3] x, float[m, 3] e) => (float[k, 3] y) { a = Concat<axis = 0>(e, x) y = Neg(a) }",
    "Gather out of order": "g (float[n, 3] x) => (float[n, 3] y) <int64[3] i = {0, 2, 1}> { a = Gather<axis = -1>(x, i) y = Neg(a) }",
    "Gather of some": "g (float[n, 3] x) => (float[n, 2] y) <int64[2] i = {0, 1}> { a = Gather<axis = -1>(x, i) y = Neg(a) }",
    "PRelu that broadcasts": "g (float[n, 3] x) => (float[n, 3] y) <float[3] s = {1, 1, 2}> { a = PRelu(x, s) y = Neg(a) }",
    "Einsum of a diagonal": "g (float[3, 3] x) => (float[3] y) { a = Einsum<equation = \"ii -> i\">(x) y = Neg(a) }",
    "Einsum out of order": "g (float[n, 3] x) => (float[3, n] y) { a = Einsum<equation = \"zb\">(x) y = Neg(a) }",
    "Where of one that broadcasts": "g (bool[3, 2] c, int64[2] x) => (int64[3, 2] y) { a = Where(c, x, x) y = Neg(a) }",
    "Clip without bounds clips infinity": "g (float[n, 3] x) => (float[n, 3] y) { a = Clip(x) y = Neg(a) }",
    "Resize that interpolates": "g (float[1, 1, 3, 3] x) => (float[1, 1, 3, 3] y) <float[4] s = {1, 1, 1, 1}> { a = Resize<mode = \"linear\">(x, , s) y = Neg(a) }",
    "Where of floats adds 0 to -0": "g (float[2] x, float[2] o) => (float[2] y) <bool[2] c = {1, 1}> { a = Where(c, x, o) y = Neg(a) }",
    "ReduceSum over all axes": "g (float[n, 3] x) => (float[1, 1] y) { a = ReduceSum(x) y = Neg(a) }",
    "Where with a mixed condition": "g (float[2] x, float[2] o) => (float[2] y) <bool[2] c = {1, 0}> { a = Where(c, x, o) y = Neg(a) }",
    "Where that broadcasts": "g (float[1] x, float[2] o) => (float[2] y) <bool[1] c = {1}> { a = Where(c, x, o) y = Neg(a) }",
}  # fmt: skip

ODD = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, -3.5], np.float32)


def odd_feeds(model: onnx.ModelProto) -> Feeds | None:
    """Return feeds with zeros of both signs, infinities and denormals where all inputs are floats."""
    if any(value.type.tensor_type.elem_type != 1 for value in model.graph.input):
        return None
    feed = {}
    for value in model.graph.input:
        shape = [d.dim_value if d.HasField("dim_value") else 3 for d in value.type.tensor_type.shape.dim]
        feed[value.name] = np.resize(ODD, [1, *shape])
    return Feeds.open(feed, read_model(model))


@pytest.mark.parametrize("case", GONE)
def test_node_that_changes_nothing_goes(case: str) -> None:
    model = onnx.parser.parse_model(HEAD + GONE[case])
    other = "Resize" in case or "Sum" in case  # onnx.reference has no infinities there, and adds to 0
    done = check_pass(EliminateIdentity(), model, odd_feeds(model), interpreted=not other)
    last = done.model.graph.nodes[-1]
    assert last.inputs[0] is next(tensor for tensor in done.model.graph.inputs if tensor.name == "x"), done.text
    assert done.record.patches >= 1
    assert not done.skips


@pytest.mark.parametrize("case", STAYS)
def test_node_that_changes_something_stays(case: str) -> None:
    model = onnx.parser.parse_model(HEAD + STAYS[case])
    done = run_pass(EliminateIdentity(), model, verify="full" if "raining" not in case else "fast")
    assert done.ops == [node.op_type for node in model.graph.node]
    assert done.record.patches == 0


def test_second_reshape_copies_a_size_that_the_first_made() -> None:
    text = "g (float[3, 8] x) => (float[2, 12] y) <int64[2] s = {2, 12}, int64[2] t = {0, -1}> { a = Reshape(x, s) b = Reshape(a, t) y = Neg(b) }"
    assert check_pass(EliminateIdentity(), HEAD + text).ops == ["Reshape", "Neg"]


def test_old_opsets() -> None:
    gone = ["""<ir_version: 4, opset_import: ["" : 9]> g (float[2, 3] x) => (float[2, 3] y) { a = Slice<axes = [0], starts = [0], ends = [9]>(x) y = Neg(a) }""",
            """<ir_version: 4, opset_import: ["" : 9]> g (float[2, 3] x) => (float[2, 3] y) { a = Pad<pads = [0, 0, 0, 0]>(x) y = Neg(a) }"""]  # fmt: skip
    for text in gone:
        assert check_pass(EliminateIdentity(), text, interpreted=False).ops == ["Neg"]
    testing = """<ir_version: 4, opset_import: ["" : 6]> g (float[2] x) => (float[2] y) { a = Dropout<is_test = 1>(x) y = Neg(a) }"""
    assert run_pass(EliminateIdentity(), testing, verify="off").ops == ["Neg"]
    training = (
        """<ir_version: 4, opset_import: ["" : 6]> g (float[2] x) => (float[2] y) { a = Dropout(x) y = Neg(a) }"""
    )
    assert run_pass(EliminateIdentity(), training, verify="off").ops == ["Dropout", "Neg"]


KEPT: dict[str, tuple[str, str]] = {
    "input as output": ("g (float[2] x) => (float[2] y) { y = Identity(x) }", "'x' keeps its own"),
    "constant as output": ("g () => (float[2] y) <float[2] w = {1, 2}> { y = Identity(w) }", "'w' keeps its own"),
    "two outputs": ("g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x) z = Identity(y) }", "both outputs"),
    "outer tensor out of a body": (
        "g (bool c, float[2] x) => (float[2] y) { n = Neg(x) y = If (c) <then_branch = t () => (float[2] a) { a = Identity(n) }, "
        "else_branch = f () => (float[2] b) { b = Exp(n) }> }",
        "of an outer graph",
    ),
    "condition of a loop": (
        "g (float[2] x, int64 k) => (float[2] y) <bool go = {1}> { y = Loop (k, go, x) <body = b (int64 i, bool ci, float[2] s) => "
        "(bool co, float[2] so) { co = Identity(ci) so = Neg(s) }> }",
        "'ci' keeps its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_node_that_a_public_name_needs_is_skipped_with_the_reason(case: str) -> None:
    text, words = KEPT[case]
    done = check_pass(EliminateIdentity(), HEAD + text)
    assert done.record.patches == 0
    assert words in done.skips.popitem()[1]


def test_public_output_name_moves_to_the_producer(golden: Callable[[str], None]) -> None:
    done = check_pass(
        EliminateIdentity(),
        HEAD + "g (float[n, 3] x) => (float[n, 3] y) { a = Neg(x) b = Exp(a) y = Identity(a) z = Abs(b) }",
    )
    golden(done.text)
    assert [tensor.name for tensor in done.model.graph.outputs] == ["y"]


def test_chain_in_a_body_and_in_a_function_goes(golden: Callable[[str], None]) -> None:
    done = check_pass(
        EliminateIdentity(),
        """<ir_version: 9, opset_import: ["" : 19, "f" : 1]>
    g (bool c, float[2] x) => (float[2] y) { n = Identity(x)
      y = If (c) <then_branch = t () => (float[2] a) { p = Identity(n) q = Identity(p) a = Neg(q) },
                  else_branch = e () => (float[2] b) { b = f.same(n) }> }
    <opset_import: ["" : 19], domain: "f"> same (x) => (y) { d = Dropout(x) i = Identity(d) y = Exp(i) }""",
    )
    golden(done.text)
    assert done.ops == ["If", "Neg", "same", "Exp"]


def test_damaged_concat_along_an_axis_that_a_scalar_has_not_stays() -> None:
    model = onnx.parser.parse_model(
        HEAD + "g (float[3] x, float e) => (float[m] y) { a = Concat<axis = 0>(x, e) y = Neg(a) }"
    )
    assert run_pass(EliminateIdentity(), model, verify="off").ops == ["Concat", "Neg"]


def test_wrong_declared_shape_does_not_mislead() -> None:
    model = onnx.parser.parse_model(
        HEAD + "g (float[2, 3] x) => (float[6] y) <int64[1] s = {6}> { a = Reshape(x, s) b = Neg(a) y = Identity(b) }"
    )
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("a", 1, [2, 3]))
    done = run_pass(EliminateIdentity(), model, verify="fast")
    assert done.ops == ["Reshape", "Neg"]
    assert [value.type.tensor_type.shape.dim[0].dim_value for value in done.model.to_proto().graph.output] == [6]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(small_models())
def test_generated_models_keep_their_outputs(model: onnx.ModelProto) -> None:
    check_pass(EliminateIdentity(), model)


@pytest.mark.slow
@pytest.mark.skipif("GRAPHOPT_ASSETS" not in os.environ, reason="GRAPHOPT_ASSETS names no folder of real models")
def test_real_models_have_nothing_left_after_one_run() -> None:
    for path in sorted(Path(os.environ["GRAPHOPT_ASSETS"]).glob("models/*.onnx")):
        model = read_model(path)
        PassManager([EliminateIdentity()]).run(model)
        assert PassManager([EliminateIdentity()]).run(model).patches == 0, path
