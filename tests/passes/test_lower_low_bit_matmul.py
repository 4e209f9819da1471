from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.analysis.cost_table import CostTable, KernelGrid
from graphopt.errors import RecipeError
from graphopt.graph import Constant
from graphopt.passes.lower.lower_low_bit_matmul import LowerLowBitMatmul
from graphopt.passes.quantize.round_weights import RoundWeights
from graphopt.passes.quantize.write_matmul_nbits import WriteMatmulNbits
from graphopt.rewrite import PassManager
from graphopt.rewrite.registry import create
from graphopt.runtime import Feeds, run, session
from graphopt.solve.pack_low_bit import LowBitMatrix, unpack_low_bit
from pass_oracle import Done, check_pass, parse, run_pass

if TYPE_CHECKING:
    from pathlib import Path

K, N, BITS = 64, 48, (1.0, 2.0, 3.0, 4.0, 8.0)


def table_of(path: Path, **speedups: list[float]) -> str:
    """A cost table with these speedups of 1, 2, 3, 4 and 8 bits for every size."""
    grids = {
        name.replace("_", "-"): KernelGrid((1,), (1,), BITS, {"avx2": np.array([[values]])})
        for name, values in speedups.items()
    }
    path.write_text(CostTable(grids, 0.1, "a test").to_json(), encoding="utf-8")
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A cost table by which the kernel is always faster."""
    fast = [3.0] * 5
    return table_of(tmp_path / "t.json", low_bit_matmul=fast, low_bit_matmul_float=fast)


@pytest.fixture
def lower(table: str) -> LowerLowBitMatmul:
    """The pass with activations as floats, whose results can be compared closely."""
    return LowerLowBitMatmul(cost_table=table, activations="float")


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def network(body: str, constants: dict[str, np.ndarray], *, x: str = "float[B, 64]", opset: int = 21) -> bytes:
    """A model of this text with these constants; signed and unsigned names ending in _4 are stored in 4 bits."""
    opsets = f'"" : {opset}, "com.microsoft" : 1'
    text = f"<ir_version: 10, opset_import: [{opsets}]> g ({x} x) => (float[B, 48] y) {{ {body} }}"
    proto = onnx.parser.parse_model(text)
    for name, value in constants.items():
        tensor = numpy_helper.from_array(value, name)
        if name.endswith("_4"):
            kind = TensorProto.INT4 if value.dtype == np.int8 else TensorProto.UINT4
            tensor = helper.make_tensor(name, kind, value.shape, value.reshape(-1).tolist())
        proto.graph.initializer.append(tensor)
    data: bytes = proto.SerializeToString()
    return data


def weights(low: int, high: int, seed: int = 0, shape: tuple[int, ...] = (K, N)) -> np.ndarray:
    kind = np.int8 if low < 0 else np.uint8
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(kind)


def scales(*shape: int) -> np.ndarray:
    return np.random.default_rng(9).uniform(0.01, 0.02, shape).astype(np.float32)


def only(done: Done) -> tuple[dict[str, Any], LowBitMatrix]:
    """The attributes and the matrix of the one node that was lowered."""
    (node,) = [node for _, node in done.model.walk() if node.op == "LowBitMatMul"]
    packed = node.inputs[1]
    assert isinstance(packed, Constant)
    return dict(node.attrs), unpack_low_bit(packed.array())


def same(done: Done, *, tolerance: float = 1e-5) -> None:
    """The lowered model gives what the model before gave, where ONNX Runtime does not round activations."""
    feed = {"x": random(5, K)}
    before = run(session(done.before, optimize=False), feed)["y"]
    after = run(session(done.model, kernels=True), feed)["y"]
    assert np.linalg.norm(after - before) <= tolerance * np.linalg.norm(before)


BLOCKED = "w = DequantizeLinear <axis = 0, block_size = 32> (q_4, s, z_4)  a = MatMul(x, w)"
CONSTANTS = {"q_4": weights(0, 15), "s": scales(2, N), "z_4": weights(0, 15, 1, (2, N))}


@pytest.mark.parametrize(
    ("body", "constants", "bits", "block"),
    [
        ("w = DequantizeLinear <axis = 0, block_size = 32> (q_4, s, z_4)", CONSTANTS, 4, 32),
        (
            "w = DequantizeLinear <axis = 0, block_size = 16> (q_4, s)",
            {"q_4": weights(-8, 7), "s": scales(4, N)},
            4,
            16,
        ),
        ("w = DequantizeLinear <axis = 1> (q, s)", {"q": weights(-127, 127), "s": scales(N)}, 8, 64),
        ("w = DequantizeLinear (q, s, z)", {"q": weights(0, 255), "s": scales(), "z": np.array(7, np.uint8)}, 8, 64),
        ("w = DequantizeLinear <axis = 1> (q, s)", {"q": weights(-3, 3), "s": scales(N)}, 3, 64),
        ("w = DequantizeLinear <axis = 1> (q, s)", {"q": weights(-1, 1), "s": scales(N)}, 2, 64),
        (
            "w = DequantizeLinear <axis = 1> (q, s)",
            {"q": 2 * weights(0, 1).astype(np.int8) - np.int8(1), "s": scales(N)},
            1,
            64,
        ),
        (
            "w = DequantizeLinear <axis = 0, block_size = 16> (q, s)",
            {"q": 2 * weights(0, 1).astype(np.int8) - np.int8(1), "s": scales(4, N)},
            2,
            16,
        ),
        (
            "c = Cast <to = 6> (q)  w = Gather(v, c)",
            {"q": weights(0, 1), "v": np.array([-0.3, 0.3], np.float32)},
            1,
            64,
        ),
        (
            "c = Cast <to = 6> (q)  w = Gather(v, c)",
            {"q": weights(0, 1), "v": np.array([0.7, -0.2], np.float32)},
            1,
            64,
        ),
        (
            "c = Cast <to = 6> (q)  w = Gather(v, c)",
            {"q": weights(0, 2), "v": np.array([-0.3, 0, 0.3], np.float32)},
            2,
            64,
        ),
        ("c = Cast <to = 6> (q)  w = Gather(v, c)", {"q": weights(0, 12), "v": random(13)}, 4, 64),
    ],
    ids=[
        "u4",
        "i4 of 16",
        "i8",
        "u8 of all",
        "i3",
        "ternary",
        "binary",
        "binary of 16",
        "book 2",
        "book 2 uneven",
        "book 3",
        "book 13",
    ],
)
def test_lower_every_way_a_weight_is_written(
    table: str, lower: LowerLowBitMatmul, body: str, constants: dict[str, np.ndarray], bits: int, block: int
) -> None:
    source = network(f"{body}  y = MatMul(x, w)", constants)
    done = check_pass(lower, source, interpreted=False)
    assert done.ops == ["LowBitMatMul"]
    attributes, matrix = only(done)
    assert attributes == {"K": K, "N": N, "bits": bits, "block_size": block, "activations": "float"}
    assert (matrix.bits, matrix.block) == (bits, block)
    assert [tensor.name for tensor in done.model.graph.outputs] == ["y"]
    same(done)
    rounded = run_pass(LowerLowBitMatmul(cost_table=table), source)
    assert only(rounded)[0]["activations"] == "int8"
    same(rounded, tolerance=0.02)


@pytest.mark.parametrize("scheme", ["integer", "ternary", "binary", "codebook"])
@pytest.mark.parametrize("opset", [21, 25])
def test_lower_what_round_weights_writes(lower: LowerLowBitMatmul, scheme: str, opset: int) -> None:
    rng = np.random.default_rng(0)
    names = {"w": rng.standard_normal((K, 80)), "v": rng.standard_normal((80, N)), "u": rng.standard_normal((N, N))}
    body = "a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, v)  d = Relu(c)  y = MatMul(d, u)"
    source = parse(network(body, {name: value.astype(np.float32) for name, value in names.items()}, opset=opset))
    PassManager([RoundWeights(scheme=scheme, bits=2 if scheme == "codebook" else 4)]).run(source)  # type: ignore[arg-type]
    done = run_pass(lower, source)
    assert done.ops == ["LowBitMatMul"] * 3
    assert not done.model.graph.nodes[0].inputs[1].name.startswith("w_scale")
    same(done)


def test_lower_matmul_nbits_with_and_without_zero_points(lower: LowerLowBitMatmul) -> None:
    for constants in (CONSTANTS, {"q_4": weights(-8, 7), "s": scales(2, N)}):
        inputs = "q_4, s, z_4" if len(constants) == 3 else "q_4, s"
        body = f"w = DequantizeLinear <axis = 0, block_size = 32> ({inputs})  y = MatMul(x, w)"
        source = parse(network(body, constants))
        done = run_pass(lower, source)
        PassManager([WriteMatmulNbits()]).run(source)
        assert [node.op for _, node in source.walk()] == ["MatMulNBits"]
        from_nbits = run_pass(lower, source)
        assert from_nbits.ops == ["LowBitMatMul"]
        assert np.array_equal(only(from_nbits)[1].restored(), only(done)[1].restored())


@pytest.mark.parametrize(
    ("tail", "attributes", "inputs"),
    [
        ("y = Add(a, b)", {}, 3),
        ("y = Add(b, a)", {}, 3),
        ("y = Relu(a)", {"activation": "relu"}, 2),
        ("c = Add(a, b)  y = Relu(c)", {"activation": "relu"}, 3),
        ("y = Clip(a, low, high)", {"activation": "clip", "low": -0.25, "high": 0.5}, 2),
        ("y = Clip(a, zero, six)", {"activation": "relu6"}, 2),
        ("y = Gelu(a)", {"activation": "gelu"}, 2),
        ('y = Gelu <approximate = "tanh"> (a)', {"activation": "gelu_tanh"}, 2),
        ("s0 = Sigmoid(a)  y = Mul(a, s0)", {"activation": "silu"}, 2),
        ("r = Slice(x, from, to, from1)  c = Add(a, r)  y = Relu(c)", {"activation": "relu"}, 4),
        ("r = Slice(x, from, to, from1)  c = Add(a, b)  d = Add(r, c)  y = Relu(d)", {"activation": "relu"}, 4),
    ],
)
def test_lower_what_follows_goes_with_it(
    lower: LowerLowBitMatmul, tail: str, attributes: dict[str, Any], inputs: int
) -> None:
    extra = {
        "b": random(N),
        "low": np.float32(-0.25),
        "high": np.float32(0.5),
        "zero": np.float32(0),
        "six": np.float32(6),
        "from": np.array([0]),
        "to": np.array([N]),
        "from1": np.array([1]),
    }
    words = set(re.findall(r"\w+", tail))
    used = {name: np.asarray(value) for name, value in extra.items() if name in words}
    done = check_pass(lower, network(f"{BLOCKED}  {tail}", {**CONSTANTS, **used}), interpreted=False)
    assert done.ops == (["Slice"] if "Slice" in tail else []) + ["LowBitMatMul"]
    found, _ = only(done)
    assert {key: value for key, value in found.items() if key in {"activation", "low", "high"}} == attributes
    (node,) = [node for _, node in done.model.walk() if node.op == "LowBitMatMul"]
    assert len(node.inputs) == inputs
    same(done)


def test_lower_gemm_of_either_orientation(lower: LowerLowBitMatmul) -> None:
    constants = {"q": weights(-8, 7, shape=(N, K)), "s": scales(N), "b": random(N)}
    body = "w = DequantizeLinear <axis = 0> (q, s)  y = Gemm <transB = 1> (x, w, b)"
    done = check_pass(lower, network(body, constants), interpreted=False)
    assert done.ops == ["LowBitMatMul"]
    same(done)


def test_lower_sum_of_two_products_goes_with_one_of_them(lower: LowerLowBitMatmul) -> None:
    body = f"{BLOCKED}  v = DequantizeLinear <axis = 1> (p, t)  c = MatMul(x, v)  d = Add(a, c)  y = Relu(d)"
    done = check_pass(lower, network(body, {**CONSTANTS, "p": weights(-8, 7, 3), "t": scales(N)}), interpreted=False)
    assert done.ops == ["LowBitMatMul", "LowBitMatMul"]
    same(done)


def test_lower_shared_weight_is_packed_once_and_outputs_keep_their_names(lower: LowerLowBitMatmul) -> None:
    body = f"{BLOCKED}  m = Neg(x)  c = MatMul(m, w)  d = Mul(a, c)  y = Identity(d)"
    done = check_pass(lower, network(body, CONSTANTS), interpreted=False)
    assert done.ops == ["LowBitMatMul", "Neg", "LowBitMatMul", "Mul", "Identity"]
    assert len(done.model.graph.initializers) == 1


def test_lower_weight_read_elsewhere_stays_for_its_other_reader(lower: LowerLowBitMatmul) -> None:
    done = check_pass(lower, network(f"{BLOCKED}  m = ReduceSum(w)  y = Add(a, m)", CONSTANTS), interpreted=False)
    assert sorted(done.ops) == ["Add", "DequantizeLinear", "LowBitMatMul", "ReduceSum"]


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        (
            "w = DequantizeLinear <axis = 0> (q, s)  y = MatMul(x, w)",
            {"q": weights(-8, 7), "s": scales(K)},
            "its weight has scales by input; the kernel has them by output",
        ),
        (
            "w = DequantizeLinear <axis = 1, block_size = 16> (q, s)  y = MatMul(x, w)",
            {"q": weights(-8, 7), "s": scales(K, 3)},
            "its weight has scales in blocks of 16 outputs",
        ),
        (
            "w = DequantizeLinear <axis = 0, block_size = 8> (q, s)  y = MatMul(x, w)",
            {"q": weights(-8, 7), "s": scales(8, N)},
            "its blocks of 8 inputs are no multiple of 16",
        ),
        (
            "c = Cast <to = 6> (q)  w = Gather(v, c)  y = MatMul(x, w)",
            {"q": weights(0, 20), "v": random(21)},
            "its code book has 21 values; the kernel has up to 16",
        ),
        (
            "w = DequantizeLinear (q, s)  y = Gemm <alpha = 0.5> (x, w)",
            {"q": weights(-8, 7), "s": scales()},
            "alpha = 0.5",
        ),
        (
            "w = DequantizeLinear (q, s)  y = Gemm(x, w, x1)",
            {"q": weights(-8, 7), "s": scales(), "x1": random(2, N)},
            "what it adds, 'x1', is no constant of one number per output",
        ),
    ],
)
def test_lower_other_nodes_are_left_alone_with_a_reason(
    lower: LowerLowBitMatmul, body: str, constants: dict[str, np.ndarray], reason: str
) -> None:
    shape = "float[2, 64]" if "x1" in constants else "float[B, 64]"
    done = run_pass(lower, network(body, constants, x=shape))
    assert done.record.patches == 0
    assert any(reason in said for said in done.skips.values()), done.skips


def test_lower_dense_weights_are_none_of_its_business(lower: LowerLowBitMatmul) -> None:
    done = check_pass(lower, network("y = MatMul(x, w)", {"w": random(K, N)}), interpreted=False)
    assert done.record.patches == 0
    assert not done.skips


def test_lower_kept_nodes_stay(table: str) -> None:
    body = BLOCKED.replace("a = MatMul(x, w)", "y = MatMul(x, w)")
    done = run_pass(LowerLowBitMatmul(cost_table=table, keep=("MatMul -> y",)), network(body, CONSTANTS))
    assert list(done.skips.values()) == ["kept as asked"]


def test_lower_only_where_the_table_says_it_is_faster(tmp_path: Path) -> None:
    slow = table_of(tmp_path / "slow.json", low_bit_matmul=[3.0, 3.0, 3.0, 1.05, 3.0])
    body = BLOCKED.replace("a = MatMul(x, w)", "y = MatMul(x, w)")
    done = run_pass(LowerLowBitMatmul(cost_table=slow), network(body, CONSTANTS))
    (reason,) = done.skips.values()
    assert "for an unknown number of rows of activations and a weight of 64 x 48 with 4 bits" in reason
    assert "1.05 times as fast as dense" in reason

    beside = table_of(tmp_path / "beside.json", low_bit_matmul=[3.0] * 5, matmul_nbits=[2.9] * 5)
    (reason,) = run_pass(LowerLowBitMatmul(cost_table=beside), network(body, CONSTANTS)).skips.values()
    assert "1.03 times as fast as MatMulNBits" in reason
    by_output = network(
        "w = DequantizeLinear <axis = 1> (q, s)  y = MatMul(x, w)", {"q": weights(-8, 7), "s": scales(N)}
    )
    assert run_pass(LowerLowBitMatmul(cost_table=beside), by_output).record.patches == 1, "dense in ONNX Runtime"


def test_lower_beside_the_integer_operator_of_the_runtime(tmp_path: Path) -> None:
    constants = {
        "q": weights(-127, 127).astype(np.int8),
        "s": scales(N),
        "xs": np.float32(0.05),
        "xz": np.uint8(120),
    }
    body = """e = QuantizeLinear(x, xs, xz)  d = DequantizeLinear(e, xs, xz)  w = DequantizeLinear <axis = 1> (q, s)
        y = MatMul(d, w)"""
    made = network(body, {name: np.asarray(value) for name, value in constants.items()})
    beside = table_of(tmp_path / "beside.json", low_bit_matmul=[3.0] * 5, dense_int8_matmul=[2.9] * 5)
    (reason,) = run_pass(LowerLowBitMatmul(cost_table=beside), made).skips.values()
    assert "1.03 times as fast as the dense 8-bit operator" in reason
    slower = table_of(tmp_path / "slower.json", low_bit_matmul=[3.0] * 5, dense_int8_matmul=[2.0] * 5)
    assert run_pass(LowerLowBitMatmul(cost_table=slower), made).record.patches == 1


def test_lower_rows_come_from_the_model_the_option_or_the_data(tmp_path: Path) -> None:
    grid = np.array([[[0.5]], [[3.0]]])
    path = tmp_path / "t.json"
    made = CostTable({"low-bit-matmul": KernelGrid((1, 16), (1,), (4.0,), {"avx2": grid})}, 0.1, "a test")
    path.write_text(made.to_json(), encoding="utf-8")
    source = network(BLOCKED.replace("a = MatMul(x, w)", "y = MatMul(x, w)"), CONSTANTS)
    assert run_pass(LowerLowBitMatmul(cost_table=str(path)), source).record.patches == 0
    assert run_pass(LowerLowBitMatmul(cost_table=str(path), rows=16), source).record.patches == 1
    data = Feeds.open({"x": random(2, 16, K)}, session(parse(source)))
    assert run_pass(LowerLowBitMatmul(cost_table=str(path)), source, data).record.patches == 1


def test_lower_report_row_names_bits_block_and_activations(table: str) -> None:
    body = BLOCKED.replace("a = MatMul(x, w)", "y = MatMul(x, w)")
    (row,) = run_pass(LowerLowBitMatmul(cost_table=table), network(body, CONSTANTS)).record.layers
    assert (row.op, row.what) == ("MatMul", "LowBitMatMul, 4 bits, blocks of 32, int8 activations")
    assert row.reason == "at least 3.0 times as fast as dense by the cost table"


def test_lower_wrong_options_are_refused(table: str) -> None:
    with pytest.raises(RecipeError, match="rows is -1"):
        create("lower-low-bit-matmul", {"rows": -1})
    body = BLOCKED.replace("a = MatMul(x, w)", "y = MatMul(x, w)")
    with pytest.raises(RecipeError, match=r"no instruction set 'sse'"):
        run_pass(LowerLowBitMatmul(cost_table=table, isa="sse"), network(body, CONSTANTS))


def test_lower_same_input_same_bytes(lower: LowerLowBitMatmul) -> None:
    source = network(f"{BLOCKED}  c = Add(a, b)  y = Relu(c)", {**CONSTANTS, "b": random(N)})
    assert run_pass(lower, source).model.to_bytes() == run_pass(lower, source).model.to_bytes()
