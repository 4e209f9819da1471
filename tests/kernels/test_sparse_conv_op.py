"""ai.graphopt::SparseConv, ToPadded and FromPadded inside ONNX Runtime."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from conv_calls import Extras, Steps, conv_bound, padded_plane, to_padded
from graphopt.runtime.library import kernel_library
from graphopt.solve.pack_sparse_conv import pack_sparse_conv

C, M = 6, 11
SAME = Steps(pads=(1, 1, 1, 1))
DOMAIN = "ai.graphopt"


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def weight(*shape: int) -> np.ndarray:
    w = random(*shape)
    w[np.random.default_rng(1).random(shape) < 0.7] = 0
    return w


W = weight(M, C, 3, 3)


def conv(inputs: list[str], output: str = "y", **attributes: Any) -> onnx.NodeProto:
    given: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "out_channels": M, **attributes}
    given = {name: value for name, value in given.items() if value is not None}
    return helper.make_node("SparseConv", inputs, [output], name="layer", domain=DOMAIN, **given)


def model(
    nodes: list[onnx.NodeProto],
    x: list[Any] | None,
    constants: dict[str, np.ndarray] | None = None,
    inputs: dict[str, tuple[int, list[Any]]] | None = None,
) -> bytes:
    given = {"x": (TensorProto.FLOAT, x), **(inputs or {})}
    stored = {"w": pack_sparse_conv(W), **(constants or {})}
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in given.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items() if name in read - given.keys()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def session(data: bytes, *, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(kernel_library()))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(made: ort.InferenceSession, x: np.ndarray, **others: np.ndarray) -> np.ndarray:
    y: np.ndarray = made.run(None, {"x": x, **others})[0]
    return y


def check(y: np.ndarray, x: np.ndarray, steps: Steps = SAME, extras: Extras = Extras()) -> None:  # noqa: B008
    exact, bound = conv_bound(x, W, steps, 1, extras)
    assert y.shape == exact.shape
    assert np.all(np.abs(y - exact) <= bound)


def test_op_dynamic_sizes_use_one_session_for_every_size() -> None:
    made = session(model([conv(["x", "w"])], ["n", C, "h", "w"]))
    for shape in ((1, C, 7, 7), (3, C, 12, 5), (1, C, 1, 1), (2, C, 31, 30), (1, C, 7, 7)):
        check(run(made, random(*shape)), random(*shape))
    assert run(made, np.zeros((0, C, 5, 5), np.float32)).shape == (0, M, 5, 5)


def test_op_bias_residual_and_activation() -> None:
    bias, residual, x = random(M), random(2, M, 7, 9), random(2, C, 7, 9)
    r = {"r": (TensorProto.FLOAT, ["n", M, "h", "w"])}
    data = model([conv(["x", "w", "b", "r"])], ["n", C, "h", "w"], {"b": bias}, r)
    plain = run(session(data), x, r=residual)
    check(plain, x, extras=Extras(bias, residual))
    for activation, wanted in (("relu", np.maximum(plain, 0)), ("relu6", np.clip(plain, 0, 6)), ("none", plain)):
        data = model([conv(["x", "w", "b", "r"], activation=activation)], ["n", C, "h", "w"], {"b": bias}, r)
        assert np.array_equal(run(session(data), x, r=residual), wanted)
    data = model([conv(["x", "w", "b", "r"], activation="clip", low=-0.5, high=0.25)], None, {"b": bias}, r)
    assert np.array_equal(run(session(data), x, r=residual), np.clip(plain, np.float32(-0.5), np.float32(0.25)))


@pytest.mark.parametrize("layout", ["nchw", "padded"])
@pytest.mark.parametrize("threads", [1, 2])
def test_op_output_may_lie_where_the_residual_did_unless_another_reads_that(threads: int, layout: str) -> None:
    """The runtime hands a residual's memory to the output where nothing reads it afterwards."""
    square, bias, x = weight(C, C, 3, 3), random(C), random(1, C, 23, 23)
    constants: dict[str, np.ndarray] = {"w": pack_sparse_conv(square), "b": bias, "two": np.array(2, np.float32)}
    exact, bound = conv_bound(x, square, SAME, 1, Extras(bias, 2 * x))
    layer = conv(["x", "w", "b", "r"], "c", out_channels=C, activation="relu", layout_out=layout)
    to_layout, from_layout = ("ToPadded", "FromPadded") if layout == "padded" else ("Identity", "Identity")
    domain, spatial = (DOMAIN, {"spatial": [23, 23]}) if layout == "padded" else ("", {})
    first = [
        helper.make_node("Mul", ["x", "two"], ["twice"]),
        helper.make_node(to_layout, ["twice"], ["r"], domain=domain),
        layer,
    ]
    last = helper.make_node(from_layout, ["c"], ["y"], domain=domain, **spatial)
    alone = run(session(model([*first, last], [1, C, 23, 23], constants), threads=threads), x)
    assert np.all(np.abs(alone - np.maximum(exact, 0)) <= bound)
    last.input[0] = "sum"
    shared = [*first, helper.make_node("Add", ["c", "r"], ["sum"]), last]
    both = run(session(model(shared, [1, C, 23, 23], constants), threads=threads), x)
    assert np.array_equal(both, alone + 2 * x)


def test_op_layers_whose_tasks_share_tiles_agree_on_any_number_of_threads() -> None:
    """Two layers of several panels and one tile, so that each thread meets tiles of both in turn, run after run."""
    wide, back = weight(300, C, 3, 3), weight(C, 300, 3, 3)
    constants = {"w": pack_sparse_conv(wide), "v": pack_sparse_conv(back, panel_rows=2)}
    nodes = [conv(["x", "w"], "a", out_channels=300), conv(["a", "v"], out_channels=C)]
    nodes[1].name = "second"
    data = model(nodes, [1, C, 7, 7], constants)
    made = [session(data, threads=threads) for threads in (1, 2, 3)]
    for scale in (1, 2, -1):
        one, *others = [run(each, scale * random(1, C, 7, 7)) for each in made]
        assert np.array_equal(one, scale * run(made[0], random(1, C, 7, 7)))
        for y in others:
            assert np.array_equal(y, one)


def test_op_one_tensor_may_be_input_and_residual() -> None:
    square, x = weight(C, C, 3, 3), random(1, C, 23, 23)
    zeros = np.zeros(C, np.float32)
    constants: dict[str, np.ndarray] = {"w": pack_sparse_conv(square), "two": np.array(2, np.float32), "b": zeros}
    nodes = [helper.make_node("Mul", ["x", "two"], ["twice"]), conv(["twice", "w", "b", "twice"], out_channels=C)]
    exact, bound = conv_bound(2 * x, square, SAME, 1, Extras(np.zeros(C, np.float32), 2 * x))
    assert np.all(np.abs(run(session(model(nodes, [1, C, 23, 23], constants)), x) - exact) <= bound)


def test_op_shape_inference_keeps_names_where_sizes_are_kept() -> None:
    def shape(x: list[Any], **attributes: Any) -> list[Any]:
        found: list[Any] = session(model([conv(["x", "w"], **attributes)], x)).get_outputs()[0].shape
        return found

    assert shape(["n", C, "h", "w"]) == ["n", M, "h", "w"]
    assert shape([2, C, 9, "w"]) == [2, M, 9, "w"]
    assert shape([2, C, 9, 8], strides=[2, 3]) == [2, M, 5, 3]
    n, m, h, w = shape(["n", C, "h", "w"], strides=[2, 1])
    assert (n, m, w) == ("n", M, "w")
    assert h != "h"
    assert shape(["n", C, 9, 8], layout_out="padded") == ["n", M, 80]
    assert shape(["n", C, 80], layout_in="padded", spatial=[9, 8]) == ["n", M, 9, 8]
    assert shape(["n", C, 80], layout_in="padded", layout_out="padded", spatial=[9, 8], pads=None) == ["n", M, 48]
    assert shape(["n", C, 16, 16], layout_out="padded") == ["n", M, 272]


def test_op_unknown_sizes_are_not_taken_for_numbers() -> None:
    """Reshape to the shape of the output: a size of -1 that shape inference passes on would appear twice."""
    nodes = [
        conv(["x", "w"], "c", strides=[2, 2]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Reshape", ["c", "s"], ["y"]),
    ]
    assert run(session(model(nodes, [None, C, None, None])), random(2, C, 9, 6)).shape == (2, M, 5, 3)


def test_op_reorders_go_there_and_back() -> None:
    for spatial in ((7, 9), (16, 16), (1, 1), (13,), (0, 4)):
        there = helper.make_node("ToPadded", ["x"], ["y"], domain=DOMAIN)
        back = helper.make_node("FromPadded", ["x"], ["y"], domain=DOMAIN, spatial=spatial)
        x = random(2, 5, *spatial)
        names = ["n", "c", *("h", "w")[: len(spatial)]]
        padded = run(session(model([there], names)), x)
        assert padded.shape == (2, 5, padded_plane(int(np.prod(spatial))))
        wanted = to_padded(x if len(spatial) == 2 else x[:, :, None])
        assert np.array_equal(padded, wanted)
        made = session(model([back], ["n", "c", "p"]))
        assert made.get_outputs()[0].shape == ["n", "c", *spatial]
        assert np.array_equal(run(made, padded), x)
    fixed = session(model([helper.make_node("ToPadded", ["x"], ["y"], domain=DOMAIN)], [1, 3, 5, 5]))
    assert fixed.get_outputs()[0].shape == [1, 3, 32]


def test_op_chain_in_padded_planes_gives_the_same_bits() -> None:
    v = pack_sparse_conv(weight(C, M, 1, 1))
    x = random(2, C, 7, 7)

    def chain(inner: dict[str, Any], outer: dict[str, Any]) -> np.ndarray:
        nodes = [
            conv(["x", "w"], "a", activation="relu", **inner),
            conv(["a", "v"], "y", kernel_shape=[1, 1], pads=None, out_channels=C, **outer),
        ]
        nodes[1].name = "second"
        return run(session(model(nodes, ["n", C, 7, 7], {"v": v})), x)

    wanted = chain({}, {})
    padded = chain({"layout_out": "padded"}, {"layout_in": "padded", "spatial": [7, 7]})
    assert np.array_equal(padded, wanted)


def test_op_padded_residual() -> None:
    x, residual = random(1, C, 7, 7), random(1, M, 7, 7)
    r = {"r": (TensorProto.FLOAT, [1, M, 64])}
    data = model([conv(["x", "w", "", "r"], layout_out="padded")], [1, C, 7, 7], None, r)
    y = run(session(data), x, r=to_padded(residual))
    assert not y[:, :, 49:].any()
    check(y[:, :, :49].reshape(1, M, 7, 7), x, extras=Extras(residual=residual))


def test_op_one_axis() -> None:
    v = weight(M, C, 5)
    x = random(3, C, 40)
    node = conv(["x", "v"], kernel_shape=[5], pads=[2, 1], strides=[2])
    y = run(session(model([node], ["n", C, "l"], {"v": pack_sparse_conv(v)})), x)
    steps = Steps((1, 2), pads=(0, 2, 0, 1))
    exact, bound = conv_bound(x[:, :, None], v[:, :, None], steps, 1, Extras())
    assert np.all(np.abs(y[:, :, None] - exact) <= bound)


@pytest.mark.parametrize("side", [7, 14, 31])
@pytest.mark.parametrize("strides", [[1, 1], [2, 2]])
def test_op_result_does_not_depend_on_threads_or_repetition(side: int, strides: list[int]) -> None:
    v, x = weight(300, 40, 3, 3), random(2, 40, side, side)
    for block in (1, 4):
        packed = pack_sparse_conv(v, block=block)
        data = model([conv(["x", "v"], out_channels=300, strides=strides)], ["n", 40, "h", "w"], {"v": packed})
        made = {threads: session(data, threads=threads) for threads in (1, 2, 4)}
        wanted = run(made[1], x).tobytes()
        for _ in range(3):
            assert {run(one, x).tobytes() for one in made.values()} == {wanted}


def test_op_concurrent_runs_of_one_session_do_not_disturb_each_other() -> None:
    made = session(model([conv(["x", "w"], strides=[2, 1])], ["n", C, "h", "w"]), threads=2)
    inputs = [random(n, C, side, side + 1) for n, side in ((1, 3), (2, 9), (1, 40), (3, 7))] * 4
    wanted = [run(made, x).tobytes() for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [y.tobytes() for y in pool.map(lambda x: run(made, x), inputs)] == wanted


def flipped(at: int) -> np.ndarray:
    packed = pack_sparse_conv(W)
    packed[at] ^= 1
    return packed


@pytest.mark.parametrize(
    ("attributes", "packed", "reason"),
    [
        ({}, pack_sparse_conv(W)[:100], "100 bytes are shorter than the header"),
        ({}, flipped(24), "does not match its hash"),
        ({}, pack_sparse_conv(W).reshape(1, -1), "uint8 tensor of rank 1"),
        ({"out_channels": M + 1}, None, f"attributes say {M + 1}, 1 and 3 x 3"),
        ({"group": 2}, None, f"attributes say {M}, 2 and 3 x 3"),
        ({"kernel_shape": [3, 1]}, None, f"attributes say {M}, 1 and 3 x 1"),
        ({"out_channels": None}, None, "the attribute 'out_channels' (int) is missing"),
        ({"kernel_shape": None}, None, "kernel_shape must have one or two sizes"),
        ({"kernel_shape": [3, 3, 3]}, None, "kernel_shape must have one or two sizes"),
        ({"strides": [1]}, None, "must have a number"),
        ({"strides": [0, 1]}, None, "must be 1 or more"),
        ({"dilations": [1, 1 << 31]}, None, "all below 2^31"),
        ({"pads": [1, 1]}, None, "must have a number, and pads two"),
        ({"pads": [0, -1, 0, 0]}, None, "pads 0 or more"),
        ({"layout_in": "nhwc"}, None, "'layout_in' must be one of nchw, padded"),
        ({"layout_in": "padded"}, None, "'spatial' must have the 2 spatial sizes of X"),
        ({"layout_in": "padded", "spatial": [0, 4]}, None, "each 1 or more"),
        ({"activation": "tanh"}, None, "'activation' must be one of none, relu"),
    ],
)
def test_op_invalid_node_is_refused_when_the_session_is_made(
    attributes: dict[str, Any], packed: np.ndarray | None, reason: str
) -> None:
    constants = {} if packed is None else {"w": packed}
    with pytest.raises(Exception, match=r"SparseConv node 'layer'") as error:
        session(model([conv(["x", "w"], **attributes)], None, constants))
    assert reason in str(error.value)


def test_op_weight_that_is_no_initializer_is_refused() -> None:
    with pytest.raises(Exception, match="is not a constant initializer"):
        session(model([conv(["x", "w"])], None, None, {"w": (TensorProto.UINT8, [100])}))


@pytest.mark.parametrize(
    ("x", "attributes", "reason"),
    [
        (random(1, C + 1, 5, 5), {}, f"{C} channels; it has rank 4 and {C + 1}"),
        (random(1, C, 5), {}, "rank 4"),
        (random(1, C, 2, 5), {"pads": None}, "smaller than the kernel"),
        (random(1, C, 32), {"layout_in": "padded", "spatial": [7, 7]}, "padded planes of 49 elements have 64 floats"),
    ],
)
def test_op_wrong_input_is_refused_at_run(x: np.ndarray, attributes: dict[str, Any], reason: str) -> None:
    made = session(model([conv(["x", "w"], **attributes)], None))
    with pytest.raises(Exception, match="SparseConv node 'layer'") as error:
        run(made, x)
    assert reason in str(error.value)


def test_op_wrong_bias_and_residual_are_refused_at_run() -> None:
    x = random(1, C, 5, 5)
    with pytest.raises(Exception, match=r"SparseConv node 'layer'.*bias"):
        run(session(model([conv(["x", "w", "b"])], None, {"b": random(M + 1)})), x)
    with pytest.raises(Exception, match=r"SparseConv node 'layer'.*residual"):
        run(session(model([conv(["x", "w", "", "r"])], None, {"r": random(1, M, 5, 4)})), x)


@pytest.mark.parametrize(
    ("op", "attributes", "x", "reason"),
    [
        ("FromPadded", {"spatial": [7, 7]}, random(1, 3, 48), "planes of 49 elements"),
        ("FromPadded", {"spatial": [7, 7]}, random(1, 64), "its rank is 2"),
        ("ToPadded", {}, random(1, 64), "its rank is 2"),
    ],
)
def test_reorder_wrong_input_is_refused_at_run(op: str, attributes: dict[str, Any], x: np.ndarray, reason: str) -> None:
    made = session(model([helper.make_node(op, ["x"], ["y"], domain=DOMAIN, **attributes)], None))
    with pytest.raises(Exception, match=op) as error:
        run(made, x)
    assert reason in str(error.value)


@pytest.mark.parametrize("spatial", [None, [1, 2, 3], [-1, 5]])
def test_reorder_without_sizes_is_refused_when_the_session_is_made(spatial: list[int] | None) -> None:
    attributes = {} if spatial is None else {"spatial": spatial}
    node = helper.make_node("FromPadded", ["x"], ["y"], name="back", domain=DOMAIN, **attributes)
    with pytest.raises(Exception, match="FromPadded node 'back'"):
        session(model([node], None))
