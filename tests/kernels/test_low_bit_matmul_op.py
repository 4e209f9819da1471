"""ai.graphopt::LowBitMatMul inside ONNX Runtime."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from graphopt.runtime.library import kernel_library
from graphopt.solve.pack_low_bit import LowBitMatrix, pack_low_bit
from low_bit_calls import exact, matrix, model

if TYPE_CHECKING:
    from pathlib import Path

K, N = 70, 45


def session(data: bytes, *, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(kernel_library()))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(made: ort.InferenceSession, **feeds: np.ndarray) -> np.ndarray:
    y: np.ndarray = made.run(None, feeds)[0]
    return y


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (1, 2, 1, 4), (0,), (2, 0)])
@pytest.mark.parametrize("activations", ["int8", "float"])
def test_op_any_rank_and_empty_batch(lead: tuple[int, ...], activations: str) -> None:
    w, b, x = matrix(K, N, 4, 32), random(N), random(*lead, K)
    y = run(session(model(w, [*lead, K], bias=b, activations=activations)), x=x)
    assert y.shape == (*lead, N)
    wanted, bound = exact(x.reshape(-1, K), w, rounds=activations == "int8")
    assert np.all(np.abs(y.reshape(-1, N) - wanted - b) <= bound + 1e-5)


def test_op_dynamic_batch_and_its_symbols() -> None:
    w = matrix(K, N, 2, 64)
    made = session(model(w, ["batch", "tokens", K]))
    assert made.get_outputs()[0].shape == ["batch", "tokens", N]
    assert made.get_outputs()[0].type == "tensor(float)"
    for m in (1, 3, 64, 1, 400, 7):
        x = random(2, m, K)
        wanted, bound = exact(x.reshape(-1, K), w, rounds=True)
        assert np.all(np.abs(run(made, x=x).reshape(-1, N) - wanted) <= bound)


def test_op_residual_is_added_before_the_activation() -> None:
    w, x, r, b = matrix(K, N, 4, 32), random(2, 3, K), random(2, 3, N), random(N)
    plain = run(session(model(w, [2, 3, K])), x=x)
    data = model(w, [2, 3, K], bias=b, residual=[2, 3, N], activation="relu")
    assert np.allclose(run(session(data), x=x, r=r), np.maximum(plain + b + r, 0), atol=1e-5)
    alone = model(w, [2, 3, K], residual=[2, 3, N], activation="clip", low=-1.0, high=2.0)
    assert np.allclose(run(session(alone), x=x, r=r), np.clip(plain + r, -1, 2), atol=1e-5)


def test_op_result_does_not_depend_on_threads() -> None:
    for bits in (4, 1):
        w = matrix(300, 1500, bits, 32)
        for m in (1, 5, 40, 500):
            x = random(m, 300)
            made = {threads: session(model(w, ["m", 300]), threads=threads) for threads in (1, 2, 4)}
            assert len({run(one, x=x).tobytes() for one in made.values()}) == 1


def test_op_concurrent_runs_of_one_session_do_not_disturb_each_other() -> None:
    made = session(model(matrix(200, 700, 4, 32), ["m", 200]), threads=2)
    inputs = [random(m, 200) for m in (1, 2, 17, 64, 100, 33, 5, 129)] * 4
    wanted = [run(made, x=x).tobytes() for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [y.tobytes() for y in pool.map(lambda x: run(made, x=x), inputs)] == wanted


def test_op_weight_in_external_data_at_an_odd_offset(tmp_path: Path) -> None:
    w, x = matrix(K, N, 3, 32, "bytes"), random(3, K)
    proto = onnx.load_from_string(model(w, [3, K]))
    blob = pack_low_bit(w).tobytes()
    (tmp_path / "m.data").write_bytes(b"x" * 13 + blob)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "m.data", "offset": "13", "length": str(len(blob))}.items():
        tensor.external_data.add(key=key, value=value)
    onnx.save(proto, tmp_path / "m.onnx")
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(kernel_library()))
    y = ort.InferenceSession(str(tmp_path / "m.onnx"), options).run(None, {"x": x})[0]
    assert np.array_equal(y, run(session(model(w, [3, K])), x=x))


def test_op_error_is_no_larger_than_that_of_matmul_nbits() -> None:
    """Both round activations to 8 bits in the blocks of the weight; the result differs in the last bits only."""
    rng = np.random.default_rng(0)
    k, n, block = 512, 96, 32
    codes = rng.integers(0, 16, (k, n), dtype=np.uint8)
    scales = rng.uniform(0.5, 1.5, (k // block, n)).astype(np.float32)
    w = LowBitMatrix(codes, scales, 4, block, 8)
    by_output = codes.T.reshape(n, k // block, block)
    stored = (by_output[..., ::2] | by_output[..., 1::2] << 4).astype(np.uint8)
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    attributes: dict[str, Any] = {"K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)
    constants = [
        numpy_helper.from_array(stored, "w"),
        numpy_helper.from_array(np.ascontiguousarray(scales.T).reshape(-1), "s"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [info("x", 1, [4, k])], [info("y", 1, [4, n])], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    theirs = session(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    x = random(4, k)
    right = x.astype(np.float64) @ w.restored()
    error = np.linalg.norm(run(session(model(w, [4, k])), x=x) - right)
    assert error <= 1.001 * np.linalg.norm(run(theirs, x=x) - right)
    assert error <= 0.01 * np.linalg.norm(right)


def flipped(at: int) -> np.ndarray:
    packed = pack_low_bit(matrix(K, N, 4, 32))
    packed[at] ^= 1
    return packed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weight_is_input": True}, "is not a constant initializer"),
        ({"packed": pack_low_bit(matrix(K, N, 4, 32))[:100]}, "100 bytes are shorter than the header"),
        ({"packed": flipped(24)}, "does not match its hash"),
        ({"packed": flipped(8)}, "format version 0; this library reads version 1"),
        ({"packed": pack_low_bit(matrix(K, N, 4, 32)).reshape(1, -1)}, "uint8 tensor of rank 1"),
        ({"K": K + 1}, f"K = {K} and N = {N}, and the node's attributes say {K + 1} and {N}"),
        ({"N": N - 1}, f"attributes say {K} and {N - 1}"),
        ({"bits": 2}, "has 4 bits in blocks of 32, and the node's attributes say 2 and 32"),
        ({"block_size": 64}, "attributes say 4 and 64"),
        ({"K": None}, "'K'"),
        ({"bits": None}, "'bits'"),
        ({"activation": "tanh"}, "'activation'"),
        ({"activations": "int4"}, "'activations'"),
    ],
)
def test_op_invalid_node_is_refused_when_the_session_is_made(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Exception, match=r"LowBitMatMul node 'layer'") as error:
        session(model(matrix(K, N, 4, 32), [2, K], **change))
    assert reason in str(error.value)


def test_op_book_of_floats_with_rounded_activations_is_refused() -> None:
    codes = np.zeros((K, N), np.uint8)
    w = LowBitMatrix(codes, np.ones((3, N), np.float32), 2, 32, 0, (-0.5, 0.1, 0.2, 0.7))
    with pytest.raises(Exception, match=r"book of floats, which activations of int8 cannot meet. Set"):
        session(model(w, [2, K]))
    assert run(session(model(w, [2, K], activations="float")), x=random(2, K)).shape == (2, N)


@pytest.mark.parametrize("x", [random(2, K + 1), np.array(1, np.float32)], ids=["width", "rank"])
def test_op_wrong_input_is_refused_at_run(x: np.ndarray) -> None:
    proto = onnx.load_from_string(model(matrix(K, N, 4, 32), [1, K]))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    made = session(proto.SerializeToString())
    with pytest.raises(Exception, match=rf"'layer'.*a last dimension of K = {K}; it has rank"):
        run(made, x=x)
    assert run(made, x=random(2, K)).shape == (2, N), "the session still works"


def test_op_wrong_bias_and_residual_are_refused_at_run() -> None:
    with pytest.raises(Exception, match="LowBitMatMul node 'layer'"):
        run(session(model(matrix(K, N, 4, 32), [1, K], bias=random(N + 1))), x=random(1, K))
    made = session(model(matrix(K, N, 4, 32), ["m", K], residual=["r", N]))
    with pytest.raises(Exception, match="LowBitMatMul node 'layer'"):
        run(made, x=random(3, K), r=random(2, N))
