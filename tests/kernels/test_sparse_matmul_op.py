"""ai.graphopt::SparseMatMul inside ONNX Runtime."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from graphopt.runtime.library import isa_report, kernel_library
from graphopt.solve.pack_sparse import BLOCK_ROWS, pack_sparse
from kernel_calls import rounding_bound, sparse
from kernel_models import model

if TYPE_CHECKING:
    from pathlib import Path

K, N = 70, 45


def session(data: bytes, *, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(kernel_library()))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(made: ort.InferenceSession, x: np.ndarray) -> np.ndarray:
    y: np.ndarray = made.run(None, {"x": x})[0]
    return y


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (1, 2, 1, 4), (0,), (2, 0)])
def test_op_any_rank_and_empty_batch(lead: tuple[int, ...]) -> None:
    w, b = sparse(K, N, 0.3), random(N)
    x = random(*lead, K)
    y = run(session(model(w, [*lead, K], bias=b)), x)
    assert y.shape == (*lead, N)
    assert np.all(np.abs(y - (x.astype(np.float64) @ w + b)) <= rounding_bound(x, w, b))


def test_op_dynamic_batch_uses_one_session_for_every_size() -> None:
    w = sparse(K, N, 0.3)
    made = session(model(w, ["batch", K]))
    for m in (1, 3, 64, 1, 130, 7):
        x = random(m, K)
        assert np.all(np.abs(run(made, x) - x.astype(np.float64) @ w) <= rounding_bound(x, w, None))


def test_op_shape_inference_keeps_symbols() -> None:
    made = session(model(sparse(K, N, 0.3), ["batch", "tokens", K]))
    assert made.get_outputs()[0].shape == ["batch", "tokens", N]
    assert made.get_outputs()[0].type == "tensor(float)"
    assert session(model(sparse(K, N, 0.3), [4, K])).get_outputs()[0].shape == [4, N]


def test_op_sizes_without_a_name_are_not_taken_for_numbers() -> None:
    """Reshape to the shape of the output: a size of -1 that shape inference passes on would appear twice."""
    w = sparse(K, N, 0.3)
    proto = onnx.load_from_string(model(w, [None, None, K]))
    proto.graph.node.append(helper.make_node("Shape", ["y"], ["s"]))
    proto.graph.node.append(helper.make_node("Reshape", ["y", "s"], ["z"]))
    proto.graph.output[0].name = "z"
    x = random(2, 3, K)
    made = session(proto.SerializeToString())
    assert run(made, x).shape == (2, 3, N)
    first, second = session(model(w, [None, K])), session(model(w, [None, K]))
    assert first.get_outputs()[0].shape != second.get_outputs()[0].shape, "unknown sizes are not equal"


def test_op_unknown_rank_runs() -> None:
    w = sparse(K, N, 0.3)
    proto = onnx.load_from_string(model(w, [1, K]))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    made = session(proto.SerializeToString())
    assert run(made, random(2, 3, K)).shape == (2, 3, N)


def test_op_activation_and_absent_bias() -> None:
    w, x = sparse(K, N, 0.3), random(6, K)
    plain = run(session(model(w, [6, K])), x)
    assert np.array_equal(run(session(model(w, [6, K], activation="none")), x), plain)
    assert np.array_equal(run(session(model(w, [6, K], empty_bias=True)), x), plain)
    assert np.array_equal(run(session(model(w, [6, K], activation="relu")), x), np.maximum(plain, 0))


def with_residual(data: bytes, shape: list[int | str | None]) -> bytes:
    """The model with a second input that is added."""
    proto = onnx.load_from_string(data)
    node = proto.graph.node[0]
    node.input.extend([""] * (3 - len(node.input)) + ["r"])
    proto.graph.input.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, shape))
    changed: bytes = proto.SerializeToString()
    return changed


@pytest.mark.parametrize("block_rows", BLOCK_ROWS)
def test_op_adds_the_residual_before_the_activation(block_rows: int) -> None:
    w, b, x, r = sparse(K, N, 0.3), random(N), random(2, 3, K), random(2, 3, N)
    data = model(
        w, [2, 3, K], bias=b, packed=pack_sparse(w, block_rows=block_rows), activation="clip", low=-0.5, high=1.0
    )
    y = session(with_residual(data, [2, 3, N])).run(None, {"x": x, "r": r})[0]
    wanted = np.clip(x.astype(np.float64) @ w + b + r, -0.5, 1)
    assert np.all(np.abs(y - wanted) <= rounding_bound(x, w, b) + 1e-6)


def test_op_residual_of_another_shape_is_refused_at_run() -> None:
    made = session(with_residual(model(sparse(K, N, 0.3), ["m", K], bias=random(N)), ["p", N]))
    with pytest.raises(Exception, match=r"SparseMatMul node 'layer'.*residual"):
        made.run(None, {"x": random(2, K), "r": random(3, N)})
    assert made.run(None, {"x": random(2, K), "r": random(2, N)})[0].shape == (2, N), "the session still works"


@pytest.mark.parametrize("block_rows", BLOCK_ROWS)
def test_op_result_does_not_depend_on_threads_or_repetition(block_rows: int) -> None:
    w, x = sparse(300, 1500, 0.1), random(150, 300)
    data = model(w, ["m", 300], packed=pack_sparse(w, block_rows=block_rows))
    made = {threads: session(data, threads=threads) for threads in (1, 2, 4)}
    wanted = run(made[1], x).tobytes()
    for _ in range(5):
        assert {run(one, x).tobytes() for one in made.values()} == {wanted}


@pytest.mark.parametrize("block_rows", BLOCK_ROWS)
def test_op_concurrent_runs_of_one_session_do_not_disturb_each_other(block_rows: int) -> None:
    w = sparse(200, 700, 0.1)
    made = session(model(w, ["m", 200], packed=pack_sparse(w, block_rows=block_rows)), threads=2)
    inputs = [random(m, 200) for m in (1, 2, 17, 64, 100, 33, 5, 129)] * 4
    wanted = [run(made, x).tobytes() for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [y.tobytes() for y in pool.map(lambda x: run(made, x), inputs)] == wanted


def test_op_several_sessions_and_registrations_share_a_process() -> None:
    first, second = sparse(K, N, 0.3, seed=1), sparse(K, N, 0.3, seed=2)
    one, two = session(model(first, [2, K])), session(model(second, [2, K]))
    x = random(2, K)
    before = run(one, x)
    del one
    assert not np.array_equal(run(two, x), before)
    assert np.array_equal(run(session(model(first, [2, K])), x), before)


def test_op_weight_in_external_data_at_an_odd_offset(tmp_path: Path) -> None:
    w = sparse(K, N, 0.3)
    proto = onnx.load_from_string(model(w, [3, K]))
    blob = pack_sparse(w).tobytes()
    (tmp_path / "m.data").write_bytes(b"x" * 13 + blob)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "m.data", "offset": "13", "length": str(len(blob))}.items():
        tensor.external_data.add(key=key, value=value)
    onnx.save(proto, tmp_path / "m.onnx")
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(kernel_library()))
    x = random(3, K)
    y = ort.InferenceSession(str(tmp_path / "m.onnx"), options).run(None, {"x": x})[0]
    assert np.array_equal(y, run(session(model(w, [3, K])), x))


def flipped(at: int) -> np.ndarray:
    packed = pack_sparse(sparse(K, N, 0.3))
    packed[at] ^= 1
    return packed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weight_is_input": True}, "is not a constant initializer"),
        ({"packed": pack_sparse(sparse(K, N, 0.3))[:100]}, "100 bytes are shorter than the header"),
        ({"packed": flipped(24)}, "does not match its hash"),
        ({"packed": flipped(8)}, "format version 3; this library reads version 2"),
        ({"packed": pack_sparse(sparse(K, N, 0.3)).reshape(1, -1)}, "uint8 tensor of rank 1"),
        ({"packed": np.zeros(0, np.uint8)}, "0 bytes are shorter"),
        ({"K": K + 1}, f"K = {K} and N = {N}, and the node's attributes say {K + 1} and {N}"),
        ({"N": N - 1}, f"attributes say {K} and {N - 1}"),
        ({"K": None}, "the attribute 'K' (int) is missing"),
        ({"activation": "tanh"}, "'activation' must be one of none, relu"),
        ({"activation": "a very long name of an activation"}, "'activation' must be one of none, relu"),
    ],
)
def test_op_invalid_node_is_refused_when_the_session_is_made(change: dict, reason: str) -> None:
    with pytest.raises(Exception, match=r"SparseMatMul node 'layer'") as error:
        session(model(sparse(K, N, 0.3), [2, K], **change))
    assert reason in str(error.value)


def test_op_missing_n_is_refused() -> None:
    with pytest.raises(Exception, match=r"'?N'?|attribute is missing"):
        session(model(sparse(K, N, 0.3), [2, K], N=None))


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (random(2, K + 1), f"a last dimension of K = {K}; it has rank 2 and {K + 1}"),
        (np.array(1, np.float32), "rank 0"),
    ],
)
def test_op_wrong_input_is_refused_at_run(x: np.ndarray, reason: str) -> None:
    proto = onnx.load_from_string(model(sparse(K, N, 0.3), [1, K]))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    made = session(proto.SerializeToString())
    with pytest.raises(Exception, match="SparseMatMul node 'layer'") as error:
        run(made, x)
    assert reason in str(error.value)
    assert run(made, random(2, K)).shape == (2, N), "the session still works"


def test_op_wrong_bias_is_refused_at_run() -> None:
    made = session(model(sparse(K, N, 0.3), [1, K], bias=random(N + 1)))
    with pytest.raises(Exception, match=rf"bias \(input 2\) must have the shape \[N\] = \[{N}\]"):
        run(made, random(1, K))


def test_op_output_feeds_standard_operators() -> None:
    w = sparse(K, N, 0.3)
    proto = onnx.load_from_string(model(w, ["b", K]))
    proto.graph.node.append(helper.make_node("Softmax", ["y"], ["z"], axis=-1))
    proto.graph.output[0].name = "z"
    x = random(4, K)
    y = run(session(proto.SerializeToString()), x)
    assert np.allclose(y.sum(axis=-1), 1, atol=1e-6)


def in_process(isa: str, body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(body)],
        env={**os.environ, "GRAPHOPT_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


REGISTER = """
import onnxruntime
from graphopt.runtime.library import isa_report, kernel_library
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(str(kernel_library()))
print(isa_report().chosen, isa_report().forced)
"""


def test_isa_forced_is_followed(isa: str) -> None:
    done = in_process(isa, REGISTER)
    assert done.stdout.split() == [isa, "True"], done.stderr


def test_isa_unset_takes_the_highest() -> None:
    assert in_process("", REGISTER).stdout.split() == [isa_report().supported[-1], "False"]


def test_isa_unknown_is_an_error_that_lists_the_valid_ones() -> None:
    done = in_process("avx1024", REGISTER)
    assert done.returncode != 0
    assert "'avx1024'" in done.stderr
    assert "scalar, avx2, avxvnni, avx512, avx512vnni" in done.stderr


def test_isa_report_unknown_is_a_kernel_error() -> None:
    done = in_process(
        "AVX2", "from graphopt.runtime.library import isa_report, kernel_library\nisa_report(kernel_library())"
    )
    assert "GO-K001 GRAPHOPT_ISA is 'AVX2'" in done.stderr
    assert "scalar, avx2, avxvnni, avx512, avx512vnni" in done.stderr


def test_isa_forced_gives_the_rounding_bound_in_a_session(isa: str, tmp_path: Path) -> None:
    w, x = sparse(300, 130, 0.2), random(40, 300)
    (tmp_path / "m.onnx").write_bytes(model(w, [40, 300]))
    np.save(tmp_path / "x.npy", x)
    done = in_process(
        isa,
        f"""
        import numpy, onnxruntime
        from graphopt.runtime.library import kernel_library
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(kernel_library()))
        made = onnxruntime.InferenceSession({str(tmp_path / "m.onnx")!r}, options)
        numpy.save({str(tmp_path / "y.npy")!r}, made.run(None, {{"x": numpy.load({str(tmp_path / "x.npy")!r})}})[0])
        """,
    )
    assert done.returncode == 0, done.stderr
    assert np.all(np.abs(np.load(tmp_path / "y.npy") - x.astype(np.float64) @ w) <= rounding_bound(x, w, None))
