"""SparseInt8Conv: every implementation against the plain C++ reference and ONNX Runtime, and the operator itself."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import KernelError
from graphopt.runtime.library import isa_report, kernel_library
from graphopt.solve.pack_sparse_int8 import pack_sparse_int8_conv
from int8_calls import PLAIN, Int8Library, Output, Window, block_sparse, dynamic_grid, to_bytes

BYTES = (0.05, 100)
SAME = Window(kernel=(3, 3), pads=(1, 1, 1, 1))


@pytest.fixture(scope="session")
def int8() -> Int8Library:
    return Int8Library(ctypes.CDLL(str(kernel_library())))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def weight(n: int, c: int, window: Window, unit: int, density: float, seed: int = 0) -> np.ndarray:
    """int8 [n, c / group, kernel] in blocks along the order that the window says."""
    inner = c // window.group
    flat = block_sparse(inner * window.kernel[0] * window.kernel[1], n, unit, density, seed).T
    if window.channels_last:
        return np.ascontiguousarray(flat.reshape(n, *window.kernel, inner).transpose(0, 3, 1, 2))
    return flat.reshape(n, inner, *window.kernel)


def packed(w: np.ndarray, window: Window, unit: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.001, 0.01, w.shape[:1]).astype(np.float32)
    fixes = rng.integers(-2000, 2000, w.shape[:1]).astype(np.int32)
    return pack_sparse_int8_conv(w, scales, fixes, group=window.group, unit=unit, channels_last=window.channels_last)


WINDOWS = [
    Window(),
    SAME,
    Window(kernel=(1, 1), strides=(2, 2)),
    Window(kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    Window(kernel=(3, 2), strides=(3, 1), dilations=(1, 2), pads=(2, 0, 1, 3)),
    Window(kernel=(3, 2), strides=(2, 2), dilations=(2, 2), pads=(1, 0, 0, 1)),
    Window(kernel=(3, 3), pads=(1, 1, 1, 1), group=3),
    Window(kernel=(2, 3), strides=(1, 2), dilations=(2, 1), group=2, channels_last=True),
    Window(kernel=(7, 7), strides=(2, 2), pads=(3, 3, 3, 3)),
]


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("window", WINDOWS)
def test_kernel_gives_the_bits_of_the_reference(int8: Int8Library, isa: str, unit: int, window: Window) -> None:
    for channels, n, height, width, batch in ((6, 6, 9, 8, 1), (12, 18, 20, 23, 2), (6, 66, 7, 70, 1)):
        blob = packed(weight(n, channels, window, unit, 0.3), window, unit)
        x = random(batch, channels, height, width)
        grid = dynamic_grid(x)
        wanted = int8.conv(blob, x, n, "reference", window)
        b, r = random(n, seed=1), random(*wanted.shape, seed=2)
        for output in (PLAIN, Output(b, r, "relu"), Output(grid=BYTES, activation="relu6"), Output(b, r, grid=BYTES)):
            exact = int8.conv(blob, x, n, "reference", window, output).tobytes()
            for given_x, given_grid in ((x, (0.0, 0)), (to_bytes(x, grid), grid)):
                assert int8.conv(blob, given_x, n, isa, window, output, given_grid).tobytes() == exact, output


@pytest.mark.parametrize("window", [SAME, Window(kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))])
def test_kernel_rows_of_any_length_are_laid_out_alike(int8: Int8Library, isa: str, window: Window) -> None:
    for height, width in ((40, 1), (9, 57), (3, 512), (3, 513), (2, 1100)):
        blob = packed(weight(8, 4, window, 1, 0.4), window, 1)
        x = random(1, 4, height, width)
        grid = dynamic_grid(x)
        exact = int8.conv(blob, x, 8, "reference", window).tobytes()
        for given_x, given_grid in ((x, (0.0, 0)), (to_bytes(x, grid), grid)):
            assert int8.conv(blob, given_x, 8, isa, window, PLAIN, given_grid).tobytes() == exact


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 6),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    group=st.integers(1, 3),
    inner=st.integers(1, 6),
    outputs=st.integers(1, 20),
    height=st.integers(7, 20),
    width=st.integers(7, 80),
    batch=st.integers(0, 2),
    unit=st.sampled_from([1, 4]),
    channels_last=st.booleans(),
)
def test_kernel_any_window_gives_the_bits_of_the_reference(
    sizes: tuple[int, ...],
    pads: tuple[int, int, int, int],
    group: int,
    inner: int,
    outputs: int,
    height: int,
    width: int,
    batch: int,
    unit: int,
    channels_last: bool,
) -> None:
    int8 = Int8Library(ctypes.CDLL(str(kernel_library())))
    window = Window(sizes[:2], sizes[2:4], sizes[4:6], pads, group, channels_last)  # type: ignore[arg-type]
    n, channels = outputs * group, inner * group
    blob = packed(weight(n, channels, window, unit, 0.4), window, unit)
    assert int8.check(blob) == ""
    x = random(batch, channels, height, width)
    for output in (PLAIN, Output(random(n), activation="relu", grid=BYTES)):
        wanted = int8.conv(blob, x, n, "reference", window, output)
        for isa in isa_report().supported:
            assert int8.conv(blob, x, n, isa, window, output).tobytes() == wanted.tobytes(), isa


@pytest.mark.parametrize("window", WINDOWS)
def test_reference_gives_the_bytes_of_the_runtime(int8: Int8Library, window: Window) -> None:
    """QLinearConv, padding and all."""
    rng = np.random.default_rng(7)
    w = weight(12, 6, window, 1, 0.5)
    scales = rng.uniform(0.001, 0.01, 12).astype(np.float32)
    bias = rng.integers(-2000, 2000, 12).astype(np.int32)
    x = rng.integers(0, 256, (2, 6, 17, 19)).astype(np.uint8)
    values = {
        "xs": np.float32(0.02), "xz": np.uint8(110), "w": w, "ws": scales, "wz": np.zeros(12, np.int8),
        "ys": np.float32(0.05), "yz": np.uint8(100), "b": bias,
    }  # fmt: skip
    attributes = {key: value for key, value in window.attributes().items() if key != "channels_last"}
    node = helper.make_node("QLinearConv", ["x", *values], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, None)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    wanted = session(made.SerializeToString()).run(None, {"x": x})[0]
    blob = pack_sparse_int8_conv(w, scales, bias, group=window.group, channels_last=window.channels_last)
    got = int8.conv(blob, x, 12, "reference", window, Output(grid=BYTES), (0.02, 110))
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_kernel_smooth_activations_are_near_the_reference(int8: Int8Library, isa: str, activation: str) -> None:
    blob = packed(weight(10, 4, SAME, 1, 0.4), SAME, 1)
    x = random(1, 4, 9, 9)
    output = Output(random(10), None, activation)
    wanted, got = int8.conv(blob, x, 10, "reference", SAME, output), int8.conv(blob, x, 10, isa, SAME, output)
    assert np.all(np.abs(got - wanted) <= 1e-6 * np.maximum(1, np.abs(wanted)))


def test_kernel_sizes_that_do_not_fit_are_refused(int8: Int8Library) -> None:
    blob = packed(weight(12, 6, SAME, 1, 0.5), SAME, 1)
    for x, n, window, reason in (
        (random(1, 5, 9, 9), 12, SAME, "does not have the channels"),
        (random(1, 6, 9, 9), 16, SAME, "does not have N outputs"),
        (random(1, 6, 9, 9), 12, Window((3, 3), (0, 1)), "strides must have"),
        (random(1, 6, 9, 9), 12, Window((5, 2)), "not a multiple of the size of the kernel"),
        (random(1, 6, 9, 9), 12, Window((3, 3), pads=(-1, 0, 0, 0)), "pads must have"),
        (random(1, 6, 9, 9), 12, Window((3, 3), dilations=(5, 1)), "larger than X"),
        (random(1, 6, 9, 9), 12, Window((3, 3), group=5), "a multiple of group"),
        (random(1, 6, 9, 9), 12, Window((3, 3), group=2), "outputs in so many groups"),
    ):
        with pytest.raises(AssertionError, match=reason):
            int8.conv(blob, x, n, "scalar", window)


def test_pack_weights_of_other_shapes_are_refused() -> None:
    for shape, group in (((4, 4), 1), ((4, 4, 1, 1), 3), ((4, 4, 1, 1), 0)):
        with pytest.raises(KernelError, match="groups cannot be packed"):
            pack_sparse_int8_conv(np.ones(shape, np.int8), np.ones(4, np.float32), group=group)


def model(
    window: Window,
    shape: list[int | str | None] | None,
    *,
    bytes_in: bool = True,
    blob: np.ndarray,
    n: int,
    residual: bool = False,
    **attributes: Any,
) -> bytes:
    given: dict[str, Any] = {"N": n, **window.attributes(), **attributes}
    to_uint8 = given.get("output") == "uint8"
    names = ["x", "w", "", "r"] if residual else ["x", "w"]
    node = helper.make_node("SparseInt8Conv", names, ["y"], name="layer", domain="ai.graphopt")
    node.attribute.extend(helper.make_attribute(key, value) for key, value in given.items() if value is not None)
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8 if bytes_in else TensorProto.FLOAT, shape)]
    if residual:
        inputs.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    output = helper.make_tensor_value_info("y", TensorProto.UINT8 if to_uint8 else TensorProto.FLOAT, None)
    stored = numpy_helper.from_array(blob.view(np.int8) if to_uint8 else blob, "w")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.graphopt", 1)]
    graph = helper.make_graph([node], "g", inputs, [output], [stored])
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def session(data: bytes, *, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(kernel_library()))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


X_GRID: dict[str, Any] = {"x_scale": 0.02, "x_zero_point": 110}
Y_GRID: dict[str, Any] = {"output": "uint8", "y_scale": 0.05, "y_zero_point": 100}
W = weight(12, 6, SAME, 1, 0.4)
BLOB = packed(W, SAME, 1)


@pytest.mark.parametrize("bytes_in", [False, True])
@pytest.mark.parametrize("bytes_out", [False, True])
def test_op_every_pair_of_types(int8: Int8Library, bytes_in: bool, bytes_out: bool) -> None:
    x = random(3, 6, 10, 12)
    x = to_bytes(x, (0.02, 110)) if bytes_in else x
    attributes = {**X_GRID, **(Y_GRID if bytes_out else {})}
    made = session(model(SAME, ["b", 6, "h", "w"], bytes_in=bytes_in, blob=BLOB, n=12, **attributes))
    y = made.run(None, {"x": x})[0]
    output = Output(grid=BYTES) if bytes_out else PLAIN
    assert np.array_equal(y, int8.conv(BLOB, x, 12, "reference", SAME, output, (0.02, 110)))
    assert made.get_outputs()[0].type == ("tensor(uint8)" if bytes_out else "tensor(float)")


def test_op_finds_the_grid_of_floats(int8: Int8Library) -> None:
    x = random(2, 6, 30, 40)
    y = session(model(SAME, ["b", 6, "h", "w"], bytes_in=False, blob=BLOB, n=12)).run(None, {"x": x})[0]
    assert np.array_equal(y, int8.conv(BLOB, x, 12, "reference", SAME))


def test_op_residual_and_activation(int8: Int8Library) -> None:
    x, r = random(1, 6, 8, 8), random(1, 12, 8, 8)
    made = session(model(SAME, [1, 6, 8, 8], bytes_in=False, blob=BLOB, n=12, residual=True, activation="relu"))
    y = made.run(None, {"x": x, "r": r})[0]
    assert np.array_equal(y, int8.conv(BLOB, x, 12, "reference", SAME, Output(None, r, "relu")))
    with pytest.raises(Exception, match=r"residual \(input 3\) must have the shape of the output"):
        made.run(None, {"x": x, "r": r[:, :, 1:]})


@pytest.mark.parametrize(
    ("window", "shape", "wanted"),
    [
        (SAME, ["b", 6, 10, "w"], ["b", 12, 10]),
        (Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1)), [2, 6, 11, 20], [2, 12, 6, 10]),
        (Window((3, 3), dilations=(2, 3)), ["b", 6, 11, 20], ["b", 12, 7, 14]),
    ],
)
def test_op_shape_inference(window: Window, shape: list[int | str | None], wanted: list[int | str]) -> None:
    found = session(model(window, shape, blob=BLOB, n=12, **X_GRID)).get_outputs()[0].shape
    assert found[: len(wanted)] == wanted
    assert len(found) == 4


def test_op_empty_batch() -> None:
    made = session(model(SAME, ["b", 6, 10, 12], blob=BLOB, n=12, **X_GRID, **Y_GRID))
    assert made.run(None, {"x": np.zeros((0, 6, 10, 12), np.uint8)})[0].shape == (0, 12, 10, 12)


def test_op_result_does_not_depend_on_threads() -> None:
    window = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1), group=2)
    blob = packed(weight(640, 32, window, 1, 0.2), window, 1)
    x = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 44)).astype(np.uint8)
    data = model(window, ["b", 32, "h", "w"], blob=blob, n=640, **X_GRID, **Y_GRID)
    results = {session(data, threads=threads).run(None, {"x": x})[0].tobytes() for threads in (1, 2, 4)}
    assert len(results) == 1


def test_op_concurrent_runs_of_one_session_do_not_disturb_each_other() -> None:
    made = session(model(SAME, ["b", 6, "h", "w"], blob=BLOB, n=12, **X_GRID, **Y_GRID), threads=2)
    rng = np.random.default_rng(0)
    inputs = [rng.integers(0, 256, (b, 6, size, 2 * size)).astype(np.uint8) for b in (1, 2) for size in (3, 9, 40)] * 4
    expected = [made.run(None, {"x": x})[0].tobytes() for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [y.tobytes() for y in pool.map(lambda x: made.run(None, {"x": x})[0], inputs)] == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"blob": BLOB[:100]}, "100 bytes are shorter than the header"),
        ({"n": 13}, "does not have N outputs"),
        ({"N": None}, "the attribute 'N' (int) is missing"),
        ({"group": 5}, "a multiple of group"),
        ({"kernel_shape": [3]}, "'kernel_shape' must have two numbers; it has 1"),
        ({"kernel_shape": [3, 3, 3]}, "'kernel_shape' has 3 numbers; at most 2"),
        ({"kernel_shape": [5, 1]}, "not a multiple of the size of the kernel"),
        ({"strides": [0, 1]}, "strides must have two numbers of 1 or more"),
        ({"pads": [1, 1]}, "'pads' must have four numbers; it has 2"),
        ({"pads": [-1, 0, 0, 0]}, "pads must have four numbers of 0 or more"),
        ({"x_scale": None}, "X is uint8, and the attribute 'x_scale' (float) is missing"),
    ],
)
def test_op_invalid_node_is_refused_when_the_session_is_made(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Exception, match=r"SparseInt8Conv node 'layer'") as error:
        session(model(SAME, [1, 6, 9, 9], **{"blob": BLOB, "n": 12, **X_GRID, **change}))
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 5, 9, 9), "does not have the channels"),
        ((6, 9, 9), "must have rank 4"),
        ((1, 6, 0, 9), "larger than X with its padding"),
    ],
)
def test_op_wrong_input_is_refused_at_run(shape: tuple[int, ...], reason: str) -> None:
    proto = onnx.load_from_string(model(Window((3, 3)), [1, 6, 9, 9], blob=BLOB, n=12, **X_GRID))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    made = session(proto.SerializeToString())
    with pytest.raises(Exception, match="SparseInt8Conv node 'layer'") as error:
        made.run(None, {"x": np.zeros(shape, np.uint8)})
    assert reason in str(error.value)
