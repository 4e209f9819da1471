from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from graphopt.analysis.cost_table import CostTable, KernelGrid
from graphopt.errors import RecipeError
from graphopt.graph import Constant
from graphopt.passes.lower.lower_sparse_int8_matmul import LowerSparseInt8Matmul
from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.rewrite import PassManager
from graphopt.rewrite.registry import create
from graphopt.runtime import Feeds, run, session
from graphopt.solve.pack_sparse_int8 import unpack_sparse_int8
from pass_oracle import Done, check_pass, parse, run_pass

if TYPE_CHECKING:
    from pathlib import Path

K, N = 16, 8


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A cost table by which the kernel is faster from 60 % zeros on, in blocks of 4 x 4 more so."""
    shares, speed = (0.5, 0.6, 1.0), np.array([[[0.9, 2.2, 6.0]]])
    kernels = {
        "sparse-int8-matmul-1x4": KernelGrid((1,), (1,), shares, {"avx512vnni": speed}),
        "sparse-int8-matmul-4x4": KernelGrid((1,), (1,), shares, {"avx512vnni": speed * 1.5}),
        "dense-int8-matmul": KernelGrid((1,), (1,), (8,), {"avx512vnni": np.array([[[2.0]]])}),
    }
    path = tmp_path / "table.json"
    path.write_text(CostTable(kernels, 0.1, "a test").to_json(), encoding="utf-8")
    return str(path)


@pytest.fixture
def lower(table: str) -> LowerSparseInt8Matmul:
    return LowerSparseInt8Matmul(cost_table=table)


def numbers(values: np.ndarray) -> str:
    return "{" + ", ".join(repr(v) for v in values.reshape(-1).tolist()) + "}"


def weight(k: int = K, n: int = N, *, unit: int = 1, kept: float = 0.25, seed: int = 0) -> np.ndarray:
    """int8 [k, n] with this share of its blocks."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-127, 128, (k, n)).astype(np.int8)
    blocks = rng.permutation(k // 4 * (n // unit)) < round(kept * (k // 4) * (n // unit))
    mask: np.ndarray = np.repeat(np.repeat(blocks.reshape(k // 4, n // unit), 4, 0), unit, 1)
    masked: np.ndarray = (w * mask).astype(np.int8)
    return masked


SCALES = (np.arange(N) + 1).astype(np.float32) / 1024
STATIC = "d = DequantizeLinear(q, xs, xz)  v = DequantizeLinear<axis = 1>(w, s)  "


def static(
    body: str,
    *,
    w: np.ndarray | None = None,
    x: str = "uint8[B, 16] q",
    y: str = "float[B, 8] y",
    head: str = STATIC,
    extra: str = "",
) -> str:
    w = weight() if w is None else w
    return f"""<ir_version: 8, opset_import: ["" : 20]>
        g ({x}) => ({y}) <float xs = {{0.03125}}, uint8 xz = {{120}}, int8[{w.shape[0]}, {w.shape[1]}] w = {numbers(w)},
          float[{N}] s = {numbers(SCALES)}, float ys = {{0.5}}, uint8 yz = {{20}}{extra}> {{ {head}{body} }}"""


def dynamic(body: str, *, w: np.ndarray | None = None, extra: str = "", scale: str = "") -> str:
    w = weight() if w is None else w
    scale = scale or f"float[{N}] s = {numbers(SCALES)}"
    return f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[B, 16] x) => (float[B, 8] y) <int8[{K}, {N}] w = {numbers(w)}, {scale}, int8[{N}] z =
          {{0, 0, 0, 0, 0, 0, 0, 0}}{extra}> {{
          q, xs, xz = DynamicQuantizeLinear(x)  a = MatMulInteger(q, w, xz, z)  c = Cast<to = 1>(a)
          f = Mul(xs, s)  {body} }}"""


BIAS = f", float[{N}] b = {numbers(np.linspace(-1, 1, N).astype(np.float32))}"
INTEGERS = (
    f", int32[{N}] bq = {numbers(np.arange(N) * 50 - 200)}, float[{N}] bs = {numbers(SCALES * np.float32(0.03125))}"
)


def attributes(done: Done) -> dict[str, Any]:
    (found,) = [dict(node.attrs) for _, node in done.model.walk() if node.op == "SparseInt8MatMul"]
    return found


def packed(done: Done) -> np.ndarray:
    (node,) = [node for _, node in done.model.walk() if node.op == "SparseInt8MatMul"]
    stored = node.inputs[1]
    assert isinstance(stored, Constant)
    return stored.array().view(np.uint8)


def results(done: Done, rows: int = 9) -> list[np.ndarray]:
    """Outputs before, in the runtime as it is and with its integer operators, and after."""
    rng = np.random.default_rng(3)
    first = done.before.graph.inputs[0]
    assert first.shape is not None
    shape = [size if isinstance(size, int) else rows for size in first.shape]
    dtype = np.dtype(first.dtype)
    x = rng.integers(0, 256, shape).astype(np.uint8) if dtype == np.uint8 else rng.standard_normal(shape)
    feed = {first.name: x.astype(dtype)}
    plain = run(session(done.before, optimize="off"), feed)
    fused = run(session(done.before), feed)
    return [next(iter(found.values())) for found in (plain, fused, run(session(done.model, kernels=True), feed))]


@pytest.mark.parametrize(
    ("body", "extra", "inputs", "activation"),
    [
        ("y = Mul(c, f)", "", 2, None),
        ("y = Mul(f, c)", "", 2, None),
        ("m = Mul(c, f)  y = Add(m, b)", BIAS, 3, None),
        ("m = Mul(c, f)  y = Add(b, m)", BIAS, 3, None),
        ("m = Mul(c, f)  n = Add(m, b)  y = Relu(n)", BIAS, 3, "relu"),
        ("m = Mul(c, f)  y = Clip(m, l, h)", ", float l = {0}, float h = {6}", 2, "relu6"),
        ("m = Mul(c, f)  y = Clip(m, l, h)", ", float l = {-0.25}, float h = {0.5}", 2, "clip"),
    ],
)
def test_lower_dynamic_product_gives_the_same_bits(
    lower: LowerSparseInt8Matmul, body: str, extra: str, inputs: int, activation: str | None
) -> None:
    done = check_pass(lower, dynamic(body, extra=extra))
    assert done.ops == ["SparseInt8MatMul"]
    found = attributes(done)
    assert (found["K"], found["N"], found.get("activation")) == (K, N, activation)
    assert "x_scale" not in found
    assert len(next(node for _, node in done.model.walk()).inputs) == inputs
    plain, _, lowered = results(done)
    assert plain.tobytes() == lowered.tobytes()


def test_lower_dynamic_product_with_one_scale_or_a_turned_weight(lower: LowerSparseInt8Matmul) -> None:
    done = check_pass(lower, dynamic("y = Mul(c, f)", scale="float s = {0.01}"))
    assert done.ops == ["SparseInt8MatMul"]
    turned = dynamic("y = Mul(c, f)").replace(
        f"int8[{K}, {N}] w = {numbers(weight())}", f"int8[{N}, {K}] t = {numbers(weight().T)}"
    )
    turned = turned.replace("q, xs", "w = Transpose<perm = [1, 0]>(t)  q, xs")
    other = check_pass(lower, turned)
    assert other.ops == ["SparseInt8MatMul"]
    assert np.array_equal(unpack_sparse_int8(packed(other)).values, weight())


def test_lower_static_product_reads_and_writes_bytes(lower: LowerSparseInt8Matmul) -> None:
    done = check_pass(lower, static("m = MatMul(d, v)  y = QuantizeLinear(m, ys, yz)", y="uint8[B, 8] y"))
    assert done.ops == ["SparseInt8MatMul"]
    wanted = {"x_scale": 0.03125, "x_zero_point": 120, "output": "uint8", "y_scale": 0.5, "y_zero_point": 20}
    assert attributes(done) == {"K": K, "N": N, **wanted}
    plain, fused, lowered = results(done)
    assert lowered.dtype == np.uint8
    assert np.array_equal(fused, lowered), "ONNX Runtime's QLinearMatMul gives the same bytes"
    assert np.abs(plain.astype(int) - lowered).max() <= 1
    assert len(np.unique(lowered)) > 10


@pytest.mark.parametrize(
    ("body", "activation"),
    [
        ("m = MatMul(d, v)  r = Relu(m)  y = QuantizeLinear(r, ys, yz)", "relu"),
        ("m = MatMul(d, v)  r = Gelu(m)  y = QuantizeLinear(r, ys, yz)", "gelu"),
        ('m = MatMul(d, v)  r = Gelu<approximate = "tanh">(m)  y = QuantizeLinear(r, ys, yz)', "gelu_tanh"),
    ],
)
def test_lower_static_product_with_its_activation(lower: LowerSparseInt8Matmul, body: str, activation: str) -> None:
    done = check_pass(lower, static(body, y="uint8[B, 8] y"))
    assert done.ops == ["SparseInt8MatMul"]
    assert attributes(done)["activation"] == activation
    plain, _, lowered = results(done)
    assert np.abs(plain.astype(int) - lowered).max() <= 1


def test_lower_static_product_to_floats(lower: LowerSparseInt8Matmul) -> None:
    done = check_pass(lower, static("y = MatMul(d, v)"))
    assert done.ops == ["SparseInt8MatMul"]
    plain, _, lowered = results(done)
    assert np.allclose(plain, lowered, rtol=1e-5, atol=1e-5)


def test_lower_floats_are_rounded_on_the_fly_where_nothing_else_reads_the_bytes(lower: LowerSparseInt8Matmul) -> None:
    head = "q = QuantizeLinear(x, xs, xz)  " + STATIC
    body = "m = MatMul(d, v)  y = QuantizeLinear(m, ys, yz)"
    done = check_pass(lower, static(body, head=head, x="float[B, 16] x", y="uint8[B, 8] y"))
    assert done.ops == ["SparseInt8MatMul"]
    assert attributes(done)["x_scale"] == 0.03125
    _, fused, lowered = results(done)
    assert np.array_equal(fused, lowered)

    both = static(
        "y = MatMul(d, v)  z = Cast<to = 1>(q)", head=head, x="float[B, 16] x", y="float[B, 8] y, float[B, 16] z"
    )
    assert check_pass(lower, both).ops == ["QuantizeLinear", "SparseInt8MatMul", "Cast"]


@pytest.mark.parametrize("turned", [False, True])
def test_lower_gemm_takes_its_integer_bias(lower: LowerSparseInt8Matmul, turned: bool) -> None:
    w = weight().T if turned else weight()
    axis = 0 if turned else 1
    head = STATIC.replace("axis = 1", f"axis = {axis}") + "bf = DequantizeLinear<axis = 0>(bq, bs)  "
    body = f"m = Gemm<transB = {int(turned)}>(d, v, bf)  r = Relu(m)  y = QuantizeLinear(r, ys, yz)"
    done = check_pass(lower, static(body, w=w, head=head, extra=INTEGERS, y="uint8[B, 8] y"))
    assert done.ops == ["SparseInt8MatMul"]
    stored = unpack_sparse_int8(packed(done))
    assert np.array_equal(stored.values, weight())
    assert np.array_equal(stored.fixes, np.arange(N) * 50 - 200)
    plain, fused, lowered = results(done)
    assert np.abs(plain.astype(int) - lowered).max() <= 1
    assert np.array_equal(fused, lowered)


def test_lower_bias_on_another_grid_is_added_in_float(lower: LowerSparseInt8Matmul) -> None:
    head = STATIC + "bf = DequantizeLinear<axis = 0>(bq, bs)  "
    extra = INTEGERS.replace(numbers(SCALES * np.float32(0.03125)), numbers(SCALES))
    done = check_pass(lower, static("y = Gemm(d, v, bf)", head=head, extra=extra))
    assert done.ops == ["SparseInt8MatMul"]
    plain, _, lowered = results(done)
    assert np.allclose(plain, lowered, rtol=1e-5, atol=1e-5)


def test_lower_chain_stays_in_bytes(lower: LowerSparseInt8Matmul) -> None:
    second = weight(8, 8, seed=1)
    extra = f", int8[8, 8] w2 = {numbers(second)}, float s2 = {{0.004}}"
    body = """m = MatMul(d, v)  r = Relu(m)  q1 = QuantizeLinear(r, ys, yz)  d1 = DequantizeLinear(q1, ys, yz)
        v2 = DequantizeLinear(w2, s2)  y = MatMul(d1, v2)"""
    done = check_pass(lower, static(body, extra=extra))
    assert done.ops == ["SparseInt8MatMul", "SparseInt8MatMul"]
    first, last = (node for _, node in done.model.walk())
    assert first.outputs[0] is last.inputs[0]
    assert np.dtype(first.outputs[0].dtype) == np.uint8
    assert last.attrs["x_scale"] == first.attrs["y_scale"]


def test_lower_blocks_of_four_outputs_where_the_weight_has_them(lower: LowerSparseInt8Matmul) -> None:
    done = check_pass(lower, static("y = MatMul(d, v)", w=weight(unit=4)))
    assert unpack_sparse_int8(packed(done)).unit == 4
    assert unpack_sparse_int8(packed(check_pass(lower, static("y = MatMul(d, v)")))).unit == 1
    (row,) = done.record.layers
    assert row.what == "SparseInt8MatMul, 75.0% zeros in blocks of 4 x 4"
    assert "times as fast as the dense 8-bit operator" in row.reason


def test_lower_shared_weight_is_packed_once(lower: LowerSparseInt8Matmul) -> None:
    done = check_pass(lower, static("a = MatMul(d, v)  p = MatMul(d, v)  y = Add(a, p)"))
    assert done.ops == ["SparseInt8MatMul", "SparseInt8MatMul"]
    first, second = (node for _, node in done.model.walk())
    assert first.inputs[1] is second.inputs[1]
    assert second.inputs[3] is first.outputs[0]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (static("y = MatMul(d, v)", w=weight(kept=0.5)), "has 50.0% zeros in blocks of 1 x 4"),
        (static("y = MatMul(d, v)", w=weight(kept=0.5)), "an unknown number of rows of activations"),
        (dynamic("y = Mul(c, f)", w=weight(kept=1)), "not known to be faster"),
        (dynamic("m = Mul(c, f)  n = Cast<to = 1>(a)  y = Add(m, n)"), "are not multiplied with the scale"),
        (dynamic("y = Mul(c, s)"), "are not multiplied with the scale"),
        (dynamic("y = Mul(c, f)").replace("{0, 0, 0, 0, 0, 0, 0, 0}", "{0, 0, 0, 5, 0, 0, 0, 0}"), "zero point 0"),
        (static("y = MatMul(d, v)").replace("uint8", "int8"), "is int8, not uint8"),
        (static("y = Gemm<alpha = 2.0>(d, v)"), "alpha = 2"),
        (static("y = Gemm<transA = 1>(d, v)", x="uint8[16, B] q"), "transA = 1"),
        (
            static(
                "y = MatMul(d, v)",
                head=STATIC.replace("(w, s)", "(w, s, wz)"),
                extra=", int8[8] wz = {1,0,0,0,0,0,0,0}",
            ),
            "has a zero point other than 0",
        ),
        (
            static("a = MatMul(d, v)  u = ReduceSum<keepdims = 0>(v)  y = Add(a, u)"),
            "is also read by",
        ),
        (
            static(
                "y = Gemm(d, v, e)", extra=f", float[1, {N}] e0 = {numbers(np.ones(N))}", head=STATIC + "e = Neg(e0)  "
            ),
            "is not a constant with one number per output",
        ),
    ],
)
def test_lower_other_nodes_are_left_alone_with_a_reason(lower: LowerSparseInt8Matmul, source: str, reason: str) -> None:
    done = check_pass(lower, source)
    assert done.record.patches == 0
    assert any(reason in said for said in done.skips.values()), done.skips


def test_lower_float_products_are_not_looked_at(lower: LowerSparseInt8Matmul) -> None:
    source = """<ir_version: 8, opset_import: ["" : 17]> g (float[B, 4] x) => (float[B, 4] y)
        <float[4, 4] w = {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}> { y = MatMul(x, w) }"""
    done = check_pass(lower, source)
    assert done.record.patches == 0
    assert not done.skips


def test_lower_result_that_is_read_twice_stays_float(lower: LowerSparseInt8Matmul) -> None:
    done = check_pass(
        lower, static("m = MatMul(d, v)  y = QuantizeLinear(m, ys, yz)  z = Neg(m)", y="uint8[B, 8] y, float[B, 8] z")
    )
    assert done.ops == ["SparseInt8MatMul", "QuantizeLinear", "Neg"]
    assert "output" not in attributes(done)


def test_lower_what_insert_qdq_writes(lower: LowerSparseInt8Matmul, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    first, second = (weight(128, 128, seed=s).astype(np.float32) / 100 for s in (1, 2))
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[B, 128] x) => (float[B, 128] y) <float[128, 128] w1 = {numbers(first)},
          float[128, 128] w2 = {numbers(second)},
          float[128] b1 = {numbers(rng.standard_normal(128).astype(np.float32))}> {{
          a = Gemm(x, w1, b1)  r = Relu(a)  y = MatMul(r, w2) }}""")
    before = parse(model)
    data = Feeds.open({"x": rng.standard_normal((64, 128)).astype(np.float32)}, session(before))
    for activations in ("uint8", "dynamic"):
        quantized = before.copy()
        PassManager([InsertQdq(activations=activations, even_channels=False)]).run(quantized, data)
        done = check_pass(lower, quantized, data)
        assert [op for op in done.ops if op != "QuantizeLinear"] == ["SparseInt8MatMul", "SparseInt8MatMul"], (
            activations
        )
        feed = {"x": rng.standard_normal((7, 128)).astype(np.float32)}
        wanted, found = run(session(quantized), feed)["y"], run(session(done.model, kernels=True), feed)["y"]
        assert np.abs(wanted - found).max() < 0.02 * np.abs(wanted).max()


def test_lower_rows_count(tmp_path: Path) -> None:
    grid = {"avx2": np.array([[[0.5, 0.9]], [[1.5, 3.0]]])}
    kernels = {
        name: KernelGrid((1, 16), (1,), (0.5, 1.0), grid)
        for name in ("sparse-int8-matmul-1x4", "sparse-int8-matmul-4x4")
    }
    kernels["dense-int8-matmul"] = KernelGrid((1, 16), (1,), (8,), {"avx2": np.array([[[1.0]], [[1.0]]])})
    path = tmp_path / "table.json"
    path.write_text(CostTable(kernels, 0.1, "a test").to_json(), encoding="utf-8")
    source = static("y = MatMul(d, v)")
    for rows, patches in ((0, 0), (3, 0), (16, 1)):
        assert check_pass(LowerSparseInt8Matmul(cost_table=str(path), rows=rows), source).record.patches == patches, (
            rows
        )
    fixed = static("y = MatMul(d, v)", x="uint8[20, 16] q", y="float[20, 8] y")
    assert check_pass(LowerSparseInt8Matmul(cost_table=str(path)), fixed).record.patches == 1


def test_lower_same_input_same_bytes(lower: LowerSparseInt8Matmul) -> None:
    source = dynamic("m = Mul(c, f)  n = Add(m, b)  y = Relu(n)", extra=BIAS)
    assert run_pass(lower, source).model.to_bytes() == run_pass(lower, source).model.to_bytes()


def test_lower_options_are_checked() -> None:
    with pytest.raises(RecipeError, match="rows is -1"):
        create("lower-sparse-int8-matmul", {"rows": -1})
    with pytest.raises(RecipeError, match="no instruction set 'sse'"):
        run_pass(LowerSparseInt8Matmul(isa="sse"), dynamic("y = Mul(c, f)"))
