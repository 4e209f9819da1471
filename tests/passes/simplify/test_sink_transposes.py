"""sink-transposes, sink-transposes-loosely: Transposes go where they cancel, and nothing else changes."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.graph import LazyWeight, Variable
from graphopt.passes.simplify.layout import motion
from graphopt.passes.simplify.layout.region import Region
from graphopt.passes.simplify.sink_transposes import SinkTransposes
from graphopt.passes.simplify.sink_transposes_loosely import SinkTransposesLoosely
from graphopt.rewrite import PassManager
from layout_models import channels_last_network, is_valid, layout_model
from pass_oracle import check_pass, parse, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.graph import Model

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'
NHWC = "perm = [0, 2, 3, 1]"
NCHW = "perm = [0, 3, 1, 2]"
X = "float[n, 3, 4, 5] x"
"""In the layout NCHW."""

CANCELLED = {
    "unary": "a = Transpose<NHWC>(x) b = Relu(a) c = Neg(b) y = Transpose<NCHW>(c)",
    "scalar": "a = Transpose<NHWC>(x) b = Mul(a, two) y = Transpose<NCHW>(b)",
    "bias per channel": "a = Transpose<NHWC>(x) b = Add(bias, a) y = Transpose<NCHW>(b)",
    "residual": "a = Transpose<NHWC>(x) b = Relu(a) c = Add(b, a) y = Transpose<NCHW>(c)",
    "two transposed": "a = Transpose<NHWC>(x) z = Neg(x) b = Transpose<NHWC>(z) c = Sub(a, b) y = Transpose<NCHW>(c)",
    "concat": "a = Transpose<NHWC>(x) z = Neg(x) b = Transpose<NHWC>(z) c = Concat<axis = 3>(a, b) y = Transpose<NCHW>(c)",
    "concat from the back": "a = Transpose<NHWC>(x) b = Concat<axis = -1>(a, a) y = Transpose<NCHW>(b)",
    "split": "a = Transpose<NHWC>(x) b, c = Split<axis = 1, num_outputs = 2>(a) d = Add(b, c) y = Transpose<NCHW>(d)",
    "slice": "a = Transpose<NHWC>(x) b = Slice(a, one, three, three) y = Transpose<NCHW>(b)",
    "pad": "a = Transpose<NHWC>(x) b = Pad(a, pads) y = Transpose<NCHW>(b)",
    "tile": "a = Transpose<NHWC>(x) b = Tile(a, counts) y = Transpose<NCHW>(b)",
    "clip": "a = Transpose<NHWC>(x) b = Clip(a, zero, two) y = Transpose<NCHW>(b)",
    "prelu": "a = Transpose<NHWC>(x) b = PRelu(a, bias) y = Transpose<NCHW>(b)",
    "where": "a = Transpose<NHWC>(x) b = Greater(a, two) c = Where(b, a, bias) y = Transpose<NCHW>(c)",
    "gather": "a = Transpose<NHWC>(x) b = Gather<axis = 2>(a, one) y = Transpose<NCHW>(b)",
    "squeeze": "a = Transpose<NHWC>(x) b = Unsqueeze(a, one) c = Relu(b) d = Squeeze(c, one) y = Transpose<NCHW>(d)",
    "quantization": "a = Transpose<NHWC>(x) b = QuantizeLinear(a, scale, point) c = DequantizeLinear(b, scale, point) y = Transpose<NCHW>(c)",
    "quantization per channel": "a = Transpose<NHWC>(x) b = QuantizeLinear<axis = 3>(a, scales, points) c = DequantizeLinear<axis = -1>(b, scales, points) y = Transpose<NCHW>(c)",
    "top": "a = Transpose<NHWC>(x) b, i = TopK<axis = 3>(a, one) y = Transpose<NCHW>(b)",
    "reshape that splits": "a = Transpose<NHWC>(x) b = Reshape(a, halves) c = Neg(b) d = Reshape(c, whole) y = Transpose<NCHW>(d)",
}

CONSTANTS = ", ".join(
    (
        "float two = {2.0}",
        "float zero = {0.0}",
        "float[3] bias = {0.5, -1.0, 2.0}",
        "int64[1] one = {1}",
        "int64[1] three = {3}",
        "int64[8] pads = {0, 1, 0, 0, 0, 0, 2, 1}",
        "int64[4] counts = {1, 1, 2, 1}",
        "float scale = {0.1}",
        "uint8 point = {9}",
        "float[3] scales = {0.1, 0.2, 0.4}",
        "uint8[3] points = {9, 1, 3}",
        "int64[5] halves = {0, 2, 2, 5, 3}",
        "int64[4] whole = {0, 4, 5, 3}",
        "float[3] ones = {1.0, 1.0, 1.0}",
    )
)


def text(nodes: str, result: str = "float[n, h, i, j] y", given: str = X) -> str:
    body = nodes.replace("NHWC", NHWC).replace("NCHW", NCHW)
    return f"{HEAD} g ({given}) => ({result}) <{CONSTANTS}> {{ {body} }}"


@pytest.mark.parametrize("nodes", CANCELLED.values(), ids=CANCELLED)
def test_transposes_cancel_through(nodes: str) -> None:
    assert "Transpose" not in check_pass(SinkTransposes(), text(nodes)).ops


LOOSELY = {
    "sigmoid": "a = Transpose<NHWC>(x) b = Sigmoid(a) c = Mul(a, b) y = Transpose<NCHW>(c)",
    "mean": "a = Transpose<NHWC>(x) b = ReduceMean(a, one) c = Sub(a, b) y = Transpose<NCHW>(c)",
    "softmax": "a = Transpose<NHWC>(x) b = Softmax<axis = 2>(a) y = Transpose<NCHW>(b)",
    "matrix product": "a = Transpose<perm = [0, 1, 3, 2]>(x) z = Neg(x) b = Transpose<perm = [0, 1, 3, 2]>(z) t = Relu(b) r = Transpose<perm = [0, 1, 3, 2]>(t) c = MatMul(r, a) y = Transpose<perm = [0, 1, 3, 2]>(c)",
    "squeeze and excite": "a = Transpose<NHWC>(x) b = ReduceMean<keepdims = 1>(a, hw) c = Sigmoid(b) d = Mul(a, c) y = Transpose<NCHW>(d)",
}


@pytest.mark.parametrize("nodes", LOOSELY.values(), ids=LOOSELY)
def test_transposes_cancel_loosely_through(nodes: str) -> None:
    model = text(nodes).replace("<float two", "<int64[2] hw = {1, 2}, float two")
    assert run_pass(SinkTransposes(), model).ops.count("Transpose") > 0
    assert check_pass(SinkTransposesLoosely(), model).ops.count("Transpose") <= (1 if "r, a" in nodes else 0)


def test_residual_network(golden: Callable[[str], None]) -> None:
    """Convolutions in one layout, everything between them in the other, as converters from TensorFlow write it."""
    weights = "float[3, 3, 1, 1] w = {1.0, 0.5, -1.0, 2.0, 0.25, 1.0, -2.0, 0.5, 1.0}"
    block = "{1} = Transpose<NCHW>({0}) {1}c = Conv({1}, w) {1}t = Transpose<NHWC>({1}c) {1}b = Add({1}t, bias) {1}s = Add({1}b, {0}) {1}r = Relu({1}s)"
    blocks = f"{block.format('x', 'p')} {block.format('pr', 'q')} {block.format('qr', 's')} y = Identity(sr)"
    done = check_pass(
        SinkTransposes(), text(blocks, given="float[n, 4, 5, 3] x").replace("<float two", f"<{weights}, float two")
    )
    assert done.ops.count("Transpose") == 2
    golden(done.text)


@pytest.mark.parametrize("squeeze", [False, True])
@pytest.mark.parametrize("concat", [False, True])
def test_long_networks_keep_one_transpose(*, squeeze: bool, concat: bool) -> None:
    """Each region is changed as a whole: few patches, and only the Transpose of the input is left."""
    model = channels_last_network(40, squeeze=squeeze, concat=concat)
    done = check_pass(SinkTransposesLoosely(), model, samples=1, interpreted=False)
    assert done.ops.count("Transpose") == 1
    assert done.record.patches <= 5


def test_regions_between_nodes_that_cannot_move_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []

    class Counted(Region):
        def __init__(self, *args: Any) -> None:
            searched.append(args[0])
            super().__init__(*args)

    monkeypatch.setattr(motion, "Region", Counted)
    nodes = "a0 = Trilu(x)"
    for k in range(50):
        nodes += f" b{k} = Transpose<perm = [1, 0]>(a{k}) c{k} = Relu(b{k}) d{k} = Trilu(c{k}) a{k + 1} = Relu(d{k})"
    model = f"{HEAD} g (float[4, 4] x) => (float[4, 4] y) {{ {nodes} y = Trilu(a50) }}"
    done = run_pass(SinkTransposes(), model, verify="off")
    assert done.ops.count("Transpose") == len(searched) == 50


def test_rank_that_only_the_transpose_tells() -> None:
    model = f"{HEAD} g (float[n, m, k] x, int64[r] s) => (float[h, i, j] y) {{ v = Reshape(x, s) a = Transpose<perm = [2, 1, 0]>(v) b = Relu(a) y = Transpose<perm = [2, 1, 0]>(b) }}"
    assert run_pass(SinkTransposes(), model).ops == ["Reshape", "Relu"]


def test_mover_whose_output_is_the_same_in_both_layouts() -> None:
    """What reads the Squeeze changes its layout, and so does the Squeeze, but the tensor between them does not."""
    model = f"{HEAD} g (float[?, ?, ?, ?] x) => (float[?, ?, ?, ?] y) <int64[1] two = {{2}}> {{ z = Softmax<axis = 3>(x) q = Squeeze(z, two) t = Transpose<perm = [0, 2, 1, 3]>(z) y = Sum(q, t) }}"
    parsed = onnx.parser.parse_model(model.replace("?", "n"))
    for value in (*parsed.graph.input, *parsed.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    done = run_pass(SinkTransposesLoosely(), parsed)
    assert done.ops.count("Transpose") == 1


KEPT = {
    "one at an end": "a = Transpose<NHWC>(x) y = Relu(a)",
    "axes that are no constant": "a = Transpose<NHWC>(x) k = Shape(a) s = Slice(k, one, three) b = ReduceMax<keepdims = 1>(a, s) y = Transpose<NCHW>(b)",
    "reshape that mixes": "a = Transpose<NHWC>(x) b = Reshape(a, mixed) c = Neg(b) d = Reshape(c, whole) y = Transpose<NCHW>(d)",
    "names of two outputs": "y = Transpose<NHWC>(x) z = Transpose<NCHW>(y)",
    "training": "a = Transpose<NHWC>(x) t = Greater(two, zero) b = Dropout(a, zero, t) y = Transpose<NCHW>(b)",
}


@pytest.mark.parametrize("nodes", KEPT.values(), ids=KEPT)
def test_nothing_is_saved(nodes: str) -> None:
    model = text(nodes, "float[n, h, i, j] y" + (", float[n, k, l, m] z" if "z =" in nodes else ""))
    model = model.replace("<float two", "<int64[3] mixed = {0, 6, 10}, float two")
    assert run_pass(SinkTransposes(), model).record.patches == 0


def test_bytes_are_saved() -> None:
    """A Transpose goes behind what makes a tensor smaller, and never in front of what makes it larger."""
    smaller = check_pass(SinkTransposes(), text("a = Transpose<NHWC>(x) b = Slice(a, one, three, three) y = Neg(b)"))
    assert smaller.ops[0] == "Slice"
    larger = run_pass(SinkTransposes(), text("b = Tile(x, counts) c = Neg(b) y = Transpose<NHWC>(c)"))
    assert larger.ops.index("Transpose") < larger.ops.index("Tile")


def test_view_takes_in_a_transpose_of_size_1() -> None:
    done = check_pass(
        SinkTransposes(),
        f"{HEAD} g (float[b, 1, 6, 4] x) => (float[b, 24] y) <int64[2] t = {{0, 24}}> {{ z = Neg(x) a = Transpose<perm = [0, 2, 1, 3]>(z) y = Reshape(a, t) }}",
    )
    assert done.ops == ["Neg", "Reshape"]


@pytest.mark.parametrize(("readers", "left"), [(1, 0), (2, 2)])
def test_large_constant_is_laid_out_anew_for_one_reader(readers: int, left: int) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
        helper.make_node("Add", ["a", "w"], ["b"]),
        helper.make_node("Transpose", ["b"], ["y"], perm=[0, 2, 1]),
        helper.make_node("Neg", ["w"], ["z"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 50, 40])
    results = [("y", ["n", 50, 40]), ("z", [40, 50])][:readers]
    weight = numpy_helper.from_array(np.arange(2000, dtype=np.float32).reshape(40, 50), "w")
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in results]
    graph = helper.make_graph(nodes[: 2 + readers], "g", [given], outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert check_pass(SinkTransposes(), model).ops.count("Transpose") == left


@pytest.mark.parametrize(("width", "left"), [(40, 0), (8, 2)])
def test_mixing_of_tokens(width: int, left: int) -> None:
    """A product between Transposes takes its constant from the left, unless the result is narrow."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Add", ["b", "bias"], ["c"]),
        helper.make_node("Erf", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "v"], ["e"]),
        helper.make_node("Transpose", ["e"], ["f"], perm=[0, 2, 1]),
        helper.make_node("Add", ["f", "x"], ["y"]),
    ]
    random = np.random.default_rng(0)
    shapes = {"w": (33, 48), "bias": (48,), "v": (48, 33)}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 33, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 33, width])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert check_pass(SinkTransposesLoosely(), model).ops.count("Transpose") == left


def test_large_constant_is_not_kept_twice() -> None:
    """It is laid out anew when it is read or written."""
    weight = np.arange(1100 * 1000, dtype=np.float32).reshape(1, 1100, 1000)
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
        helper.make_node("Add", ["a", "w"], ["b"]),
        helper.make_node("Transpose", ["b"], ["y"], perm=[0, 2, 1]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1000, 1100])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1000, 1100])
    graph = helper.make_graph(nodes, "g", [given], [result], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    done = check_pass(SinkTransposes(), model, samples=1)
    assert done.ops == ["Add"]
    (constant,) = done.model.graph.initializers
    assert isinstance(constant.weight, LazyWeight)
    assert (constant.weight.load() == weight[0].T).all()


@pytest.mark.parametrize("readers", ["y = Add(t, u)", "c = ReduceMean<axes = [1]>(t) y = Mul(u, c)"])
def test_transpose_of_a_constant_that_is_not_folded_goes(readers: str) -> None:
    """Whoever leaves folding out must not meet a Transpose that moves for ever."""
    nodes = f"t = Transpose(w) u = Transpose(x) {readers}"
    model = f'<ir_version: 8, opset_import: ["" : 17]> g (float[3, 4] x) => (float[4, 3] y) <float[3, 4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}> {{ {nodes} }}'
    done = check_pass(SinkTransposesLoosely(), model)
    assert done.ops.count("Transpose") == 1
    assert all(isinstance(node.inputs[0], Variable) for node in done.model.graph.nodes if node.op == "Transpose")


def test_quantized_weight_is_laid_out_anew() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["d"], axis=0),
        helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    constants = {
        "w": np.arange(-10, 10, dtype=np.int8).reshape(4, 5),
        "scale": np.linspace(0.1, 0.4, 4, dtype=np.float32),
        "zero": np.zeros(4, np.int8),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    done = check_pass(SinkTransposes(), model)
    assert done.ops == ["DequantizeLinear", "MatMul"]
    assert done.model.graph.nodes[0].attrs["axis"] == 1


def test_inside_a_function() -> None:
    """Constants in the body of a function are nodes."""
    body = f"a = Transpose<{NHWC}>(x) k = Constant<value = float[3] {{1.0, 2.0, 3.0}}>() b = Mul(a, k) y = Transpose<{NCHW}>(b)"
    model = f"""<ir_version: 9, opset_import: ["" : 19, "own" : 1]>
        g ({X}) => (float[n, 3, 4, 5] y) {{ y = own.scaled(x) }}
        <opset_import: ["" : 19], domain: "own"> scaled (x) => (y) {{ {body} }}"""
    done = check_pass(SinkTransposes(), model, interpreted=False)
    assert "Transpose" not in done.ops


@pytest.mark.parametrize(("opset", "left"), [(19, 2), (21, 1)])
def test_short_floats_are_turned_where_transpose_takes_them(opset: int, left: int) -> None:
    """Bytes are saved behind a Cast to 8 bits, from the opset on in which Transpose knows them."""
    text = "a = Transpose<perm = [1, 0]>(x) b = Cast<to = 17>(a) y = Cast<to = 1>(b)"
    model = f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[4, 6] x) => (float[6, 4] y) {{ {text} }}'
    done = run_pass(SinkTransposes(), model)
    assert done.ops.index("Transpose") == (0 if left == 2 else 1)


def test_another_scope_reads_it() -> None:
    """What a body captures keeps its layout."""
    branch = "{ r = Neg(b) }"
    nodes = f"a = Transpose<{NHWC}>(x) b = Relu(a) y = Transpose<{NCHW}>(b) z = If<then_branch = g1 () => (float[n, 4, 5, 3] r) {branch}, else_branch = g2 () => (float[n, 4, 5, 3] r) {branch}>(flag)"
    model = f"{HEAD} g ({X}, bool flag) => (float[n, 3, 4, 5] y, float[n, 4, 5, 3] z) {{ {nodes} }}"
    done = check_pass(SinkTransposes(), model)
    assert done.ops.count("Transpose") == 1


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_random_models_keep_their_bits(random: Random) -> None:
    model = layout_model(random)
    assume(is_valid(model))
    done = check_pass(SinkTransposes(), model, samples=1, interpreted=False)
    assert len(done.ops) <= sum(1 for _ in done.before.walk())


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_random_models_stay_within_rounding(random: Random) -> None:
    model = layout_model(random)
    assume(is_valid(model))
    done = check_pass(SinkTransposesLoosely(), model, samples=1, interpreted=False)
    assert len(done.ops) <= sum(1 for _ in done.before.walk())


def in_another_order_of_uses(model: Model, random: Random) -> Model:
    """Return the same model, whose edges have been taken off and put back as edits do."""
    other = model.copy()
    edges = [(node, place) for _, node in other.walk() for place in range(len(node.inputs))]
    random.shuffle(edges)
    for node, place in edges:
        tensor = node.inputs[place]
        node.inputs[place] = Variable("")
        node.inputs[place] = tensor
    assert other.to_bytes() == model.to_bytes()
    return other


def test_mover_reads_both_sides_of_a_turn() -> None:
    """The turn is found before the mover, whichever was edited last."""
    turn = "Transpose<perm = [0, 1, 3, 2]>"
    model = parse(text(f"a = {turn}(x) b = Relu(a) c = {turn}(b) y = Add(b, c)", given="float[?, ?, ?, ?] x"))
    for seed in range(8):
        edited = in_another_order_of_uses(model, Random(seed))
        PassManager([SinkTransposesLoosely()]).run(edited)
        assert [node.op for _, node in edited.walk()] == ["Relu", "Transpose", "Add"]
    check_pass(SinkTransposesLoosely(), model, interpreted=False)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 32))
def test_order_of_edits_decides_nothing(seed: int) -> None:
    """So the model in memory is done when the file is."""
    random = Random(seed)
    source = layout_model(random)
    assume(is_valid(source))
    for step in (SinkTransposes(), SinkTransposesLoosely()):
        model = parse(source)
        edited = in_another_order_of_uses(model, random)
        PassManager([step]).run(model)
        PassManager([step]).run(edited)
        assert edited.to_bytes() == model.to_bytes()
