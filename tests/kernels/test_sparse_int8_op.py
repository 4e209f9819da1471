"""ai.graphopt::SparseInt8MatMul inside ONNX Runtime."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.runtime.library import kernel_library
from graphopt.solve.pack_sparse_int8 import pack_sparse_int8
from int8_calls import PLAIN, Int8Library, Output, block_sparse, to_bytes

K, N = 70, 45
W = block_sparse(K, N, 1, 0.3)
SCALES = np.linspace(0.001, 0.01, N).astype(np.float32)
BLOB = pack_sparse_int8(W, SCALES)
X_GRID: dict[str, Any] = {"x_scale": 0.03, "x_zero_point": 120}
Y_GRID: dict[str, Any] = {"output": "uint8", "y_scale": 0.05, "y_zero_point": 100}


def model(
    shape: list[int | str | None] | None,
    *,
    bytes_in: bool = False,
    bias: np.ndarray | None = None,
    residual: bool = False,
    blob: np.ndarray = BLOB,
    weight_is_input: bool = False,
    **attributes: Any,
) -> bytes:
    given: dict[str, Any] = {"K": K, "N": N, **attributes}
    names = ["x", "w", "b" if bias is not None else "", "r" if residual else ""]
    while not names[-1]:
        names.pop()
    node = helper.make_node("SparseInt8MatMul", names, ["y"], name="layer", domain="ai.graphopt")
    node.attribute.extend(helper.make_attribute(key, value) for key, value in given.items() if value is not None)
    x_type = TensorProto.UINT8 if bytes_in else TensorProto.FLOAT
    y_type = TensorProto.UINT8 if given.get("output") == "uint8" else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", x_type, shape)]
    if residual:
        inputs.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    stored = blob.view(np.int8) if y_type == TensorProto.UINT8 else blob
    initializers = [numpy_helper.from_array(stored, "w")]
    if weight_is_input:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.UINT8, [blob.size]))
    if bias is not None:
        initializers.append(numpy_helper.from_array(bias, "b"))
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", y_type, None)], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.graphopt", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    if shape is None:
        made.graph.input[0].type.tensor_type.ClearField("shape")
    data: bytes = made.SerializeToString()
    return data


def session(data: bytes, *, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(kernel_library()))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(made: ort.InferenceSession, x: np.ndarray, **more: np.ndarray) -> np.ndarray:
    y: np.ndarray = made.run(None, {"x": x, **more})[0]
    return y


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def wanted(x: np.ndarray, output: Output = PLAIN, grid: tuple[float, int] = (0.0, 0)) -> np.ndarray:
    """What the reference gives."""
    library = Int8Library(ctypes.CDLL(str(kernel_library())))
    flat = np.ascontiguousarray(x.reshape(-1, K))
    return library.matmul(BLOB, flat, N, "reference", output, grid).reshape(*x.shape[:-1], N)


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (1, 2, 1, 4), (0,), (2, 0)])
def test_op_any_rank_and_empty_batch(lead: tuple[int, ...]) -> None:
    x, b = random(*lead, K), random(N)
    y = run(session(model([*lead, K], bias=b)), x)
    assert y.shape == (*lead, N)
    assert np.array_equal(y, wanted(x, Output(b)))


@pytest.mark.parametrize("bytes_in", [False, True])
@pytest.mark.parametrize("bytes_out", [False, True])
def test_op_every_pair_of_types(bytes_in: bool, bytes_out: bool) -> None:
    grid = (X_GRID["x_scale"], X_GRID["x_zero_point"])
    x: np.ndarray = random(9, K)
    x = to_bytes(x, grid) if bytes_in else x
    made = session(model(["m", K], bytes_in=bytes_in, **X_GRID, **(Y_GRID if bytes_out else {})))
    y = run(made, x)
    assert y.dtype == (np.uint8 if bytes_out else np.float32)
    assert made.get_outputs()[0].type == ("tensor(uint8)" if bytes_out else "tensor(float)")
    assert made.get_outputs()[0].shape == ["m", N]
    output = Output(grid=(Y_GRID["y_scale"], Y_GRID["y_zero_point"])) if bytes_out else Output()
    assert np.array_equal(y, wanted(x, output, grid))


def test_op_dynamic_batch_uses_one_session_for_every_size() -> None:
    made = session(model(["batch", K]))
    for m in (1, 3, 64, 1, 130, 7):
        assert np.array_equal(run(made, random(m, K)), wanted(random(m, K)))


def test_op_shape_inference_keeps_symbols() -> None:
    made = session(model(["batch", "tokens", K]))
    assert made.get_outputs()[0].shape == ["batch", "tokens", N]
    assert session(model([4, K])).get_outputs()[0].shape == [4, N]
    first, second = session(model([None, K])), session(model([None, K]))
    assert first.get_outputs()[0].shape != second.get_outputs()[0].shape, "unknown sizes are not equal"


def test_op_unknown_rank_runs() -> None:
    assert run(session(model(None)), random(2, 3, K)).shape == (2, 3, N)


def test_op_bias_residual_and_activation() -> None:
    x, b, r = random(6, K), random(N), random(6, N)
    y = run(session(model([6, K], bias=b, residual=True, activation="clip", low=-0.5, high=0.75)), x, r=r)
    assert np.array_equal(y, wanted(x, Output(b, r, "clip", -0.5, 0.75)))
    y = run(session(model([6, K], residual=True, activation="relu", **Y_GRID)), x, r=r)
    assert np.array_equal(y, wanted(x, Output(None, r, "relu", grid=(0.05, 100))))


def test_op_chain_of_bytes_feeds_standard_operators() -> None:
    """Our bytes go to DequantizeLinear, and those of QuantizeLinear come to us."""
    proto = onnx.load_from_string(model(["m", K], bytes_in=True, **X_GRID, **Y_GRID))
    for name, value in (("s", np.float32(0.05)), ("z", np.uint8(100)), ("t", np.float32(0.03)), ("u", np.uint8(120))):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    proto.graph.node.append(helper.make_node("DequantizeLinear", ["y", "s", "z"], ["f"]))
    proto.graph.node.insert(0, helper.make_node("QuantizeLinear", ["v", "t", "u"], ["x"]))
    proto.graph.input[0].name = "v"
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    proto.graph.output[0].name = "f"
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    x = random(9, K)
    got = session(proto.SerializeToString()).run(None, {"v": x})[0]
    bytes_ = wanted(x, Output(grid=(0.05, 100)), (0.03, 120))
    assert np.array_equal(got, (bytes_.astype(np.float32) - 100) * np.float32(0.05))


def test_op_result_does_not_depend_on_threads_or_repetition() -> None:
    blob = pack_sparse_int8(block_sparse(300, 1500, 1, 0.1), np.full(1500, 0.01, np.float32))
    x = random(400, 300)
    for attributes in ({}, Y_GRID):
        data = model(["m", 300], blob=blob, K=300, N=1500, **attributes)
        made = {threads: session(data, threads=threads) for threads in (1, 2, 4)}
        first = run(made[1], x).tobytes()
        for _ in range(3):
            assert {run(one, x).tobytes() for one in made.values()} == {first}


def test_op_concurrent_runs_of_one_session_do_not_disturb_each_other() -> None:
    made = session(model(["m", K]), threads=2)
    inputs = [random(m, K) for m in (1, 2, 17, 64, 100, 33, 5, 1290)] * 4
    expected = [run(made, x).tobytes() for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [y.tobytes() for y in pool.map(lambda x: run(made, x), inputs)] == expected


def flipped(at: int) -> np.ndarray:
    damaged = BLOB.copy()
    damaged[at] ^= 1
    return damaged


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weight_is_input": True}, "is not a constant initializer"),
        ({"blob": BLOB[:100]}, "100 bytes are shorter than the header"),
        ({"blob": flipped(24)}, "does not match its hash"),
        ({"blob": flipped(8)}, "format version 0; this library reads version 1"),
        ({"blob": BLOB.reshape(1, -1)}, "uint8 tensor of rank 1"),
        ({"K": K + 1}, f"K = {K} and N = {N}, and the node's attributes say {K + 1} and {N}"),
        ({"K": None}, "the attribute 'K' (int) is missing"),
        ({"activation": "tanh"}, "'activation' must be one of none, relu, relu6, clip, silu, gelu, gelu_tanh"),
        ({"bytes_in": True}, "X is uint8, and the attribute 'x_scale' (float) is missing"),
        ({"output": "uint8", "y_scale": None}, "Y is uint8, and the attribute 'y_scale' (float) is missing"),
        ({"output": "int8"}, "'output' must be one of float, uint8"),
        ({"x_scale": -1.0}, "'x_scale' and 'x_zero_point' must be a positive number and 0 to 255"),
        ({"x_scale": float("nan")}, "'x_scale' and 'x_zero_point' must be a positive number and 0 to 255"),
        ({"x_scale": 1.0, "x_zero_point": 256}, "'x_scale' and 'x_zero_point' must be a positive number and 0 to 255"),
        ({**Y_GRID, "y_zero_point": -1}, "'y_scale' and 'y_zero_point' must be a positive number and 0 to 255"),
        ({"activation": "clip", "low": 1.0, "high": 0.0}, "numbers with low <= high"),
    ],
)
def test_op_invalid_node_is_refused_when_the_session_is_made(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Exception, match=r"SparseInt8MatMul node 'layer'") as error:
        session(model([2, K], **change))
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (random(2, K + 1), f"a last dimension of K = {K}; it has rank 2 and {K + 1}"),
        (np.array(1, np.float32), "rank 0"),
    ],
)
def test_op_wrong_input_is_refused_at_run(x: np.ndarray, reason: str) -> None:
    made = session(model(None))
    with pytest.raises(Exception, match="SparseInt8MatMul node 'layer'") as error:
        run(made, x)
    assert reason in str(error.value)
    assert run(made, random(2, K)).shape == (2, N), "the session still works"


def test_op_wrong_bias_or_residual_is_refused_at_run() -> None:
    made = session(model([1, K], bias=random(N + 1)))
    with pytest.raises(Exception, match=rf"bias \(input 2\) must have the shape \[N\] = \[{N}\]"):
        run(made, random(1, K))
    made = session(model([1, K], residual=True))
    with pytest.raises(Exception, match=r"residual \(input 3\) must have the shape of the output"):
        run(made, random(1, K), r=random(2, N))


@pytest.mark.parametrize(
    ("isa", "k", "unit", "wanted"),
    [
        ("scalar", 768, 1, {1: "scalar 1", 100: "scalar 2"}),
        ("avx2", 768, 1, {8: "avx2 1", 100: "avx2 3"}),
        ("avx2", 768, 4, {100: "avx2 1"}),
        ("avxvnni", 768, 1, {100: "avxvnni 4"}),
        ("avxvnni", 768, 4, {100: "avxvnni 2"}),
        ("avx512", 768, 1, {100: "avx2 3"}),
        ("avx512vnni", 384, 1, {1: "avx512vnni 1", 17: "avx512vnni 2", 100: "avx512vnni 4"}),
        ("avx512vnni", 768, 1, {100: "avx512vnni 2"}),
        ("avx512vnni", 768, 4, {100: "avx512vnni 4"}),
        ("neon", 768, 1, {1: "neon 1", 100: "neon 4"}),
        ("neon-dotprod", 768, 4, {100: "neon-dotprod 4"}),
    ],
)
def test_choice_of_the_kernel_is_pinned(isa: str, k: int, unit: int, wanted: dict[int, str]) -> None:
    """A K-block of a tile stays in 28 KiB of L1 where blocks are 1 x 4; four outputs share what they read."""
    library = Int8Library(ctypes.CDLL(str(kernel_library())))
    blob = pack_sparse_int8(np.ones((k, 16), np.int8), np.ones(16, np.float32), unit=unit)
    for m, choice in wanted.items():
        assert library.choice(blob, isa, m) in {choice, ""}, "the set may belong to another platform"
