"""fold-constants: what it folds, what it must never fold, growth, scopes, exact types, batches."""

# ruff: noqa: E501, ISC004 - the tables hold one model per line

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx.backend.test.loader
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

from graph_strategies import small_models
from graphopt.errors import GraphoptError
from graphopt.graph import Constant, Graph, Node, Variable, constant_value, read_model
from graphopt.passes.simplify.fold_constants import FoldConstants
from graphopt.passes.simplify.folding.evaluation import evaluate
from graphopt.passes.simplify.purity import PURE
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import run, session
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'


def folded(text: str, *, head: str = HEAD, **options: Any) -> Any:
    return check_pass(FoldConstants(**options), head + text)


def initializer(model: Any, name: str) -> np.ndarray:
    return next(c.array() for graph in model.graphs() for c in graph.initializers if c.name == name)


# ------------------------------------------------------------------------------------------------------------ rewrites


def test_chain_of_constants_becomes_one_initializer(golden: Callable[[str], None]) -> None:
    done = folded("""g (float[n, 3] x) => (float[n, 3] y) <float[3] a = {1, 2, 3}, float[3] b = {4, 5, 6}>
    { s = Mul(a, b) t = Sqrt(s) u = Cast<to = 1>(t) y = Add(x, u) }""")
    golden(done.text)
    assert done.ops == ["Add"]
    assert done.record.patches == 1
    assert initializer(done.model, "u").tolist() == np.sqrt(np.array([4, 10, 18], np.float32)).tolist()


def test_constant_nodes_become_initializers_of_their_exact_type(golden: Callable[[str], None]) -> None:
    done = folded("""g (float[n] x) => (float[n] y, int64[m] z) {
    a = Constant<value_float = 2.5>() b = Constant<value_ints = [3]>() c = Constant<value = float[1] {4.5}>()
    d = Mul(x, a) e = Mul(d, c) y = Identity(e) f = Shape(x) z = Mul(f, b) }""")
    golden(done.text)
    assert [initializer(done.model, name).dtype for name in "abc"] == [np.float32, np.int64, np.float32]


def test_known_shapes_are_folded_through_their_arithmetic(golden: Callable[[str], None]) -> None:
    done = folded("""g (float[2, 3, 4] x) => (float[m, k] y) <int64[1] zero = {0}, int64[1] last = {-1}, int64 one = {1}>
    { r = Relu(x) s = Shape(r) a = Gather(s, zero) b = Gather(s, one) u = Unsqueeze(b, zero) p = Mul(a, u)
      t = Concat<axis = 0>(p, last) y = Reshape(x, t) }""")
    golden(done.text)
    assert initializer(done.model, "t").tolist() == [6, -1]


def test_known_part_of_a_dynamic_shape_is_folded() -> None:
    done = folded("""g (float[n, 3, 4] x) => (float[n, k] y, int64[3] z) <int64[1] at = {1}, int64[1] last = {-1}>
    { z = Shape(x) b = Gather(z, at) t = Concat<axis = 0>(last, b) y = Reshape(x, t) }""")
    assert done.ops == ["Shape", "Reshape"]
    assert initializer(done.model, "t").tolist() == [-1, 3]


def test_graph_outputs_become_constant_nodes_that_keep_their_name(golden: Callable[[str], None]) -> None:
    done = folded(
        """g (float[2, 3] x) => (float[3] y, int64[2] s) <float[3] a = {1, -2, 3}> { y = Abs(a) s = Shape(x) }"""
    )
    golden(done.text)
    assert done.ops == ["Constant", "Constant"]


def test_bodies_and_captured_constants_are_folded(golden: Callable[[str], None]) -> None:
    done = folded("""g (bool c, float[3] x) => (float[3] y) <float[3] a = {1, 2, 3}> {
    n = Neg(a)
    y = If (c) <then_branch = t () => (float[3] ty) { e = Exp(n) ty = Add(x, e) },
                else_branch = f () => (float[3] fy) <float[3] b = {2, 2, 2}> { m = Mul(a, b) k = Mul(m, n) fy = Sub(x, k) }>
    }""")
    golden(done.text)
    assert done.ops == ["If", "Add", "Sub"]


def test_loop_body_folds_what_does_not_change_between_iterations() -> None:
    done = folded("""g (float[2] x, int64 trips) => (float[2] y) <bool go = {1}, float[2] a = {3, 4}> {
    y = Loop (trips, go, x) <body = b (int64 i, bool ci, float[2] s) => (bool co, float[2] so)
      { co = Identity(ci) q = Sqrt(a) so = Add(s, q) }> }""")
    assert done.ops == ["Loop", "Identity", "Add"]


def test_functions_get_constant_nodes_and_keep_what_their_caller_sets() -> None:
    text = """<ir_version: 9, opset_import: ["" : 19, "f" : 1]>
    g (float[2] x) => (float[2] y) { y = f.twice<v = 3.0>(x) }
    <opset_import: ["" : 19], domain: "f">
    twice <v> (x) => (y) { a = Constant<value_float = 2.0>() b = Neg(a) k = Constant<value_float : float = @v>() c = Mul(b, k)
      y = Mul(x, c) }"""
    done = folded(text, head="")
    assert done.ops == ["twice", "Constant", "Constant", "Mul", "Mul"]
    assert ("Neg" in done.ops, "k = Constant" in done.text) == (False, True)


def test_before_ir_4_values_are_constant_nodes_and_inputs_stay() -> None:
    model = onnx.parser.parse_model("""<ir_version: 3, opset_import: ["" : 8]>
    g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { n = Neg(w) y = Add(x, n) }""")
    done = check_pass(FoldConstants(), model)
    assert done.ops == ["Constant", "Add"]
    proto = done.model.to_proto()
    assert [value.name for value in proto.graph.input] == ["x", "w"]
    onnx.checker.check_model(proto)


def test_equal_values_share_one_initializer_across_branches() -> None:
    done = folded("""g (bool c, float[64] x) => (float[64] y) <int64[1] n = {64}> {
    y = If (c) <then_branch = t () => (float[64] ty) { a = ConstantOfShape<value = float[1] {2}>(n) ty = Add(x, a) },
                else_branch = f () => (float[64] fy) { b = ConstantOfShape<value = float[1] {2}>(n) fy = Sub(x, b) }> }""")
    assert done.ops == ["If", "Add", "Sub"]
    assert [len(graph.initializers) for graph in done.model.graphs()] == [1, 0, 0]


def test_zeros_of_different_sign_are_not_shared() -> None:
    zero = numpy_helper.from_array(np.zeros(128, np.float32), "zero")
    text = (
        "g (float[128] x) => (float[128] y, float[128] z) { a = Abs(zero) b = Neg(zero) y = Div(x, a) z = Div(x, b) }"
    )
    model = onnx.parser.parse_model(HEAD + text.replace("{ a", "<float[128] zero> { a"))
    model.graph.initializer[0].CopyFrom(zero) if model.graph.initializer else model.graph.initializer.append(zero)
    done = check_pass(FoldConstants(), model)
    assert np.signbit(initializer(done.model, "b")).all()
    assert not np.signbit(initializer(done.model, "a")).any()


# -------------------------------------------------------------------------------------------------------------- skips

LEFT: dict[str, tuple[str, str]] = {
    "RandomNormal": ("g () => (float[2] y) { r = RandomNormal<shape = [2]>() y = Neg(r) }", "draws new numbers"),
    "RandomUniformLike": ("g (float[2] x) => (float[2] y) <float[2] a = {1, 2}> { r = RandomUniformLike(a) y = Add(x, r) }", "draws"),
    "Bernoulli": ("g (float[2] x) => (float[2] y) <float[2] a = {0.5, 0.5}> { r = Bernoulli(a) y = Add(x, r) }", "draws"),
    "Multinomial": ("g (int32[1, 1] x) => (int32[1, 1] y) <float[1, 2] a = {0.5, 0.5}> { r = Multinomial(a) y = Add(x, r) }", "draws"),
    "Dropout": (
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float r = {0.5}, bool t = {1}> { d = Dropout(a, r, t) y = Add(x, d) }",
        "eliminate-identity",
    ),
    "DequantizeLinear": (
        "g (float[2] x) => (float[2] y) <int8[2] q = {1, 2}, float s = {0.5}> { w = DequantizeLinear(q, s) y = Add(x, w) }",
        "low precision",
    ),
    "QuantizeLinear": (
        "g (uint8[2] x) => (uint8[2] y) <float[2] w = {1, 2}, float s = {0.5}> { q = QuantizeLinear(w, s) y = BitwiseOr(x, q) }",
        "low precision",
    ),
    "If": (
        "g (float[2] x) => (float[2] y) <bool c = {1}> { i = If(c) <then_branch = t () => (float[2] a) { a = Constant<value = float[2] {1, 2}>() }, "
        "else_branch = e () => (float[2] b) { b = Constant<value = float[2] {3, 4}>() }> y = Add(x, i) }",
        "control flow",
    ),
    "StringConcat": (
        'g () => (string[1] y) <string[1] a = {"p"}> { y = StringConcat(a, a) }', "not on the list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", LEFT)
def test_op_that_must_stay_is_skipped_with_the_reason(op: str) -> None:
    text, words = LEFT[op]
    head = '<ir_version: 10, opset_import: ["" : 20]>\n'
    drawn = words.startswith("draws") or op == "Dropout"
    done = run_pass(FoldConstants(), head + text, verify="fast" if drawn else "full")
    assert op in done.ops
    assert any(words in reason for reason in done.skips.values()), done.skips


def test_overridable_initializer_is_not_folded() -> None:
    model = onnx.parser.parse_model(
        HEAD + "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { n = Neg(w) y = Add(x, n) }"
    )
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    done = check_pass(FoldConstants(), model)
    assert done.ops == ["Neg", "Add"]
    assert "may override 'w'" in done.skips.popitem()[1]
    feed = {"x": np.zeros(2, np.float32), "w": np.array([5, 6], np.float32)}
    assert run(session(done.model), feed)["y"].tolist() == [-5, -6]


def test_custom_domains_are_not_evaluated_even_where_the_name_is_known() -> None:
    text = '<ir_version: 9, opset_import: ["" : 19, "my" : 1]> g (float[1] x) => (float[1] y) <float[1] a = {1}> { r = my.Relu(a) y = Add(x, r) }'  # fmt: skip
    done = run_pass(FoldConstants(), text, verify="fast")
    assert done.ops == ["Relu", "Add"]
    assert "domain my" in done.skips.popitem()[1]


# ------------------------------------------------------------------------------------------------------------- growth

BLOW_UPS: dict[str, str] = {
    "ConstantOfShape": "g () => (float y) <int64[2] s = {20000, 20000}> { a = ConstantOfShape(s) y = ReduceMax<keepdims = 0>(a) }",
    "Range": "g () => (int64 y) <int64 a = {0}, int64 b = {30000000}, int64 c = {1}> { r = Range(a, b, c) y = ReduceSum<keepdims = 0>(r) }",
    "Expand": "g (float x) => (float y) <float[1] a = {1}, int64[2] s = {8192, 4096}> { e = Expand(a, s) m = ReduceMax<keepdims = 0>(e) y = Add(x, m) }",
    "Tile": "g (float x) => (float y) <float[1024] a, int64[1] s = {20000}> { e = Tile(a, s) m = ReduceMax<keepdims = 0>(e) y = Add(x, m) }",
    "Resize": "g (float x) => (float y) <float[1, 1, 2, 2] a = {1, 2, 3, 4}, int64[4] s = {1, 1, 9000, 9000}> { e = Resize(a, , , s) m = ReduceMax<keepdims = 0>(e) y = Add(x, m) }",
    "Pad": "g (float x) => (float y) <float[1] a = {1}, int64[2] s = {30000000, 30000000}> { e = Pad(a, s) m = ReduceMax<keepdims = 0>(e) y = Add(x, m) }",
    "OneHot": "g (float x) => (float y) <int64[2] a = {1, 2}, int64 d = {30000000}, float[2] v = {0, 1}> { e = OneHot(a, d, v) m = ReduceMax<keepdims = 0>(e) y = Add(x, m) }",
    "EyeLike": "g (float x) => (float y) <int64[2] s = {20000, 20000}> { a = ConstantOfShape(s) e = EyeLike(a) m = ReduceMax<keepdims = 0>(e) y = Add(x, m) }",
}  # fmt: skip


@pytest.mark.parametrize("op", BLOW_UPS)
def test_results_that_would_blow_up_are_never_made(op: str) -> None:
    model = onnx.parser.parse_model(HEAD + BLOW_UPS[op])
    for tensor in model.graph.initializer:
        if tensor.dims and not (tensor.raw_data or tensor.float_data or tensor.int64_data):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name))
    if op == "Tile" and not any(t.name == "a" for t in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1024, np.float32), "a"))
    start = time.process_time()
    done = run_pass(FoldConstants(), model, verify="fast")
    assert time.process_time() - start < 5
    assert op in done.ops
    assert any("bytes" in reason for reason in done.skips.values())
    assert sum(c.nbytes for c in done.model.graph.initializers) < 1 << 20


def test_growth_is_weighed_against_what_the_inputs_free() -> None:
    rows = np.arange(600 * 600, dtype=np.float32).reshape(600, 600)

    def model(nodes: str) -> onnx.ModelProto:
        text = f"g (float[n, 600] x) => (float[n, 600] y) <float[1] w = {{1}}> {{ {nodes} }}"
        proto = onnx.parser.parse_model(HEAD + text)
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(rows, "w"))
        return proto

    # numpy multiplies a transposed view and a copy in different orders: the second voice stays silent here
    alone = check_pass(FoldConstants(), model("t = Transpose(w) y = MatMul(x, t)"), interpreted=False)
    assert alone.ops == ["MatMul"]
    shared = check_pass(FoldConstants(), model("t = Transpose(w) a = MatMul(x, t) y = MatMul(a, w)"))
    assert shared.ops == ["Transpose", "MatMul", "MatMul"]
    assert "1440000 bytes; its inputs free 0" in shared.skips.popitem()[1]
    together = check_pass(
        FoldConstants(), model("t = Transpose(w) u = Neg(w) a = MatMul(x, t) y = MatMul(a, u)"), idempotent=False
    )
    assert sorted(together.ops) == ["MatMul", "MatMul", "Neg", "Transpose"]
    wide = run_pass(FoldConstants(limit_bytes=1 << 21), model("t = Transpose(w) a = MatMul(x, t) y = MatMul(a, w)"))
    assert wide.ops == ["MatMul", "MatMul"]


def test_two_halves_of_a_weight_free_it_together() -> None:
    proto = onnx.parser.parse_model(
        HEAD
        + """g (float[n, 600] x) => (float[n, 300] y, float[n, 300] z)
    <float[1] w = {1}, int64[1] a = {0}, int64[1] b = {300}, int64[1] c = {600}, int64[1] d = {1}>
    { l = Slice(w, a, b, d) r = Slice(w, b, c, d) y = MatMul(x, l) z = MatMul(x, r) }"""
    )
    index = next(i for i, t in enumerate(proto.graph.initializer) if t.name == "w")
    proto.graph.initializer[index].CopyFrom(numpy_helper.from_array(np.zeros((600, 600), np.float32), "w"))
    done = check_pass(FoldConstants(limit_bytes=1000), proto)
    assert done.ops == ["MatMul", "MatMul"]


def test_sum_of_growth_is_limited() -> None:
    nodes = " ".join(
        f"c{i} = ConstantOfShape<value = float[1] {{{i + 1}}}>(s) a{i} = Add(a{i - 1}, c{i})" for i in range(1, 41)
    )
    text = f"g (float[256] a0) => (float[256] y) <int64[1] s = {{256}}> {{ {nodes} y = Neg(a40) }}"
    done = run_pass(FoldConstants(limit_bytes=16 * 1024), HEAD + text)
    assert done.ops.count("ConstantOfShape") == 24
    assert sum("in sum" in reason for reason in done.skips.values()) >= 1


def test_values_computed_on_the_way_free_nothing() -> None:
    parts = " ".join(f"c{i} = ConstantOfShape<value = float[1] {{{i}}}>(s)" for i in range(1, 9))
    text = f"g (float[2048] x) => (float[2048] y) <int64[1] s = {{256}}> {{ {parts} "
    text += "k = Concat<axis = 0>(c1, c2, c3, c4, c5, c6, c7, c8) y = Add(x, k) }"
    done = run_pass(FoldConstants(limit_bytes=2048), HEAD + text)
    assert "Concat" in done.ops
    assert len(done.model.to_bytes()) < 4096


# -------------------------------------------------------------------------------------------------------- exact types


@pytest.mark.parametrize(
    "name", ["float16", "bfloat16", "float64", "int8", "uint8", "int16", "int32", "uint64", "bool"]
)
def test_element_type_of_the_result_is_exact(name: str) -> None:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(name) if name != "bfloat16" else np.dtype(ml_dtypes.bfloat16))
    values = np.arange(4).astype(np.dtype(name) if name != "bfloat16" else ml_dtypes.bfloat16)
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("Concat", ["x", "t"], ["y"], axis=0)], "g",
        [helper.make_tensor_value_info("x", element, ["n", 2])], [helper.make_tensor_value_info("y", element, ["m", 2])],
        [numpy_helper.from_array(values.reshape(2, 2), "w")],
    )  # fmt: skip
    done = run_pass(
        FoldConstants(), helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    )
    assert done.ops == ["Concat"]
    assert initializer(done.model, "t").tobytes() == values.reshape(2, 2).T.tobytes()


def test_cast_between_integer_and_float_is_not_skipped_over() -> None:
    done = folded("""g (int64[2] x) => (int64[2] y) <int64[2] a = {2, 3}, float h = {0.5}>
    { f = Cast<to = 1>(a) m = Mul(f, h) i = Cast<to = 7>(m) y = Add(x, i) }""")
    assert initializer(done.model, "i").tolist() == [1, 1]


def test_what_the_runtime_has_no_kernel_for_is_computed_by_the_reference() -> None:
    text = """g (int64[n] x) => (int64[n] y) <double[2] a = {1, -3}, float[1] b = {5}>
    { s = Softsign(a) r = Mul(s, a) t = Cast<to = 7>(r) u = Sqrt(b) v = Cast<to = 7>(u) w = Add(t, v) y = Add(x, w) }"""
    model = onnx.parser.parse_model(HEAD + text)
    with pytest.raises(GraphoptError):
        session(model.SerializeToString())
    done = run_pass(FoldConstants(), model, verify="fast")
    assert done.ops == ["Add"]
    assert initializer(done.model, "w").tolist() == [2, 4]


def test_node_that_nothing_can_compute_is_left_with_both_reasons() -> None:
    text = "g (float[n] x) => (float[n] y) <float[2] a = {1, 2}, int64[1] s = {3}> { r = Reshape(a, s) t = Neg(r) y = Add(x, t) }"
    done = run_pass(FoldConstants(), HEAD + text, verify="off")
    assert done.ops == ["Reshape", "Neg", "Add"]
    assert any("reference" in reason or "size" in reason for reason in done.skips.values())


def test_many_nodes_need_one_session() -> None:
    first = Constant("a", np.array([0.5], np.float32))
    tensors: list[Any] = [first]
    nodes = []
    for number in range(800):
        tensors.append(Variable(f"t{number}", np.float32, [1]))
        nodes.append(Node("Cos", f"n{number}", {}, [tensors[-2]], [tensors[-1]]))
    Graph(nodes, [], [tensors[-1]], opset=19)
    result = evaluate(nodes, [tensors[-1], tensors[400]], {}, {}, opset=19, ir_version=9)
    assert result.sessions == 1
    expected = np.array([0.5], np.float32)
    for _ in range(800):
        expected = np.cos(expected)
    assert np.allclose(result.values[tensors[-1]], expected)
    assert len(result.values) == 2


def test_allow_list_names_deterministic_operators_of_onnx() -> None:
    for op in PURE:
        assert onnx.defs.has(op), op
        schema = onnx.defs.get_schema(op)
        if schema.has_function or schema.has_context_dependent_function:
            continue  # onnx calls every operator that is defined by others non-deterministic
        assert schema.node_determinism != onnx.defs.OpSchema.NodeDeterminism.NonDeterministic, op


def test_metadata_and_documentation_of_other_nodes_stay() -> None:
    model = onnx.parser.parse_model(
        HEAD + "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}> { n = Neg(a) y = Add(x, n) }"
    )
    model.graph.node[1].metadata_props.add(key="scope", value="block.0")
    model.graph.node[1].doc_string = "adds"
    done = check_pass(FoldConstants(), model)
    (node,) = done.model.to_proto().graph.node
    assert (node.metadata_props[0].value, node.doc_string) == ("block.0", "adds")


# ------------------------------------------------------------------------------------------------------ generated, suite


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(small_models())
def test_generated_models_keep_their_outputs(model: onnx.ModelProto) -> None:
    check_pass(FoldConstants(), model)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_backend_cases_with_constant_inputs_fold_to_what_the_runtime_computes(part: int) -> None:
    folds = 0
    for case in onnx.backend.test.loader.load_model_tests(kind="node")[part::8]:
        graph = case.model.graph
        inputs = case.data_sets[0][0]
        if len(graph.node) != 1 or graph.node[0].domain or graph.node[0].op_type not in PURE or not inputs:
            continue
        if all(isinstance(value, np.ndarray | onnx.TensorProto) for value in inputs):
            folds += fold_case(case.name, case.model, inputs)
    assert folds > 40


def fold_case(name: str, model: onnx.ModelProto, values: list[Any]) -> int:
    """Fold a case and compare with the runtime; return whether it was folded."""
    arrays = [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in values]
    feed = dict(zip([value.name for value in model.graph.input], arrays, strict=True))
    try:
        expected = run(session(model.SerializeToString(), optimize=False), feed)
    except GraphoptError:
        return 0  # not one this runtime can run
    constant = onnx.ModelProto()
    constant.CopyFrom(model)
    del constant.graph.input[:]
    for value in model.graph.input:
        constant.graph.initializer.append(numpy_helper.from_array(feed[value.name], value.name))
    constant.ir_version = max(constant.ir_version, 4)
    loaded = read_model(constant)
    PassManager([FoldConstants(limit_bytes=1 << 24)]).run(loaded)
    if any(node.op != "Constant" for node in loaded.graph.nodes):
        return 0
    found = [constant_value(tensor) for tensor in loaded.graph.outputs]
    for value, want in zip(found, expected.values(), strict=True):
        assert value is not None
        assert value.dtype == want.dtype, name
        assert same_bits(value, want), name
    return 1


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two arrays are the same bit for bit, all NaN counting as one value."""
    if left.dtype.kind in "fcV":
        return bool(np.array_equal(left.astype(np.complex128), right.astype(np.complex128), equal_nan=True)) and bool(
            (np.signbit(left.astype(np.float64)) == np.signbit(right.astype(np.float64))).all()
            if left.dtype.kind != "c"
            else True
        )
    return bool(np.array_equal(left, right))


def test_a_node_of_which_one_output_is_read_and_one_is_folded_goes_with_its_last_reader() -> None:
    done = check_pass(
        FoldConstants(),
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[1] q) => (float[1] y, int64 z) <float[4] c = {1, 2, 3, 4}, int64[2] sizes = {1, 3}> {
            root = Sqrt(c)
            first, rest = Split<axis = 0>(root, sizes)
            y = Mul(first, q)
            largest = ArgMax<axis = 0, keepdims = 0>(rest)
            z = Neg(largest) }""",
    )
    assert done.ops == ["Mul", "Constant"]


@pytest.mark.parametrize(("width", "left"), [(16, ["Add"]), (512, ["Cast", "Add"])])
def test_weights_in_few_bits_are_unpacked_only_where_the_node_would_be_as_large(width: int, left: list[str]) -> None:
    weight = np.arange(-8, 8).repeat(width // 16).astype(ml_dtypes.int4)
    nodes = [helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT), helper.make_node("Add", ["x", "c"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [width]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    done = check_pass(FoldConstants(), model)
    assert done.ops == left
    assert any("stored small" in reason for reason in done.skips.values()) == ("Cast" in left)
