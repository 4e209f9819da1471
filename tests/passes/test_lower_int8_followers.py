"""What follows a layer of 8-bit integers and goes with it into the sparse kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.analysis.cost_table import CostTable, KernelGrid
from graphopt.passes.lower.lower_sparse_int8_conv import LowerSparseInt8Conv
from graphopt.passes.lower.lower_sparse_int8_matmul import LowerSparseInt8Matmul
from graphopt.runtime import run, session
from pass_oracle import Done, check_pass

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N = 8


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A cost table by which the kernels are always faster."""
    fast = {"avx512vnni": np.array([[[2.0, 6.0]]])}
    kernels = {
        f"sparse-int8-{kind}-{unit}x4": KernelGrid((1,), (1,), (0.1, 1.0), fast)
        for kind in ("conv", "matmul")
        for unit in (1, 4)
    }
    for kind in ("conv", "matmul"):
        kernels[f"dense-int8-{kind}"] = KernelGrid((1,), (1,), (8,), {"avx512vnni": np.array([[[1.0]]])})
    path = tmp_path / "table.json"
    path.write_text(CostTable(kernels, 0.1, "a test").to_json(), encoding="utf-8")
    return str(path)


@pytest.fixture
def conv(table: str) -> LowerSparseInt8Conv:
    return LowerSparseInt8Conv(cost_table=table)


@pytest.fixture
def matmul(table: str) -> LowerSparseInt8Matmul:
    return LowerSparseInt8Matmul(cost_table=table)


def numbers(values: np.ndarray) -> str:
    return "{" + ", ".join(repr(v) for v in values.reshape(-1).tolist()) + "}"


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    """int8 with three quarters of its fours zero."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-127, 128, shape).astype(np.int8)
    w.reshape(-1, 4)[rng.permutation(w.size // 4) >= w.size // 16] = 0
    return w


GRIDS = """float xs = {0.03125}, uint8 xz = {120}, float ms = {0.0625}, uint8 mz = {130}, float os = {0.03125},
  uint8 oz = {100}, float ys = {0.0625}, uint8 yz = {40}, float zs = {0.00390625}, uint8 zz = {0},
  float ws = {0.0015}"""
READ = "d = DequantizeLinear(q, xs, xz)  v = DequantizeLinear(w, ws)  "


def image(
    body: str,
    *,
    w: np.ndarray | None = None,
    x: str = "[B, 8, 6, 7]",
    other: str = "",
    y: str = "uint8[B, 8, 6, 7] y",
    extra: str = "",
    opset: int = 20,
) -> str:
    """A 1 x 1 convolution and what follows it."""
    w = weight(N, 8, 1, 1) if w is None else w
    inputs = f"uint8{x} q" + (f", {other}" if other else "")
    shape = ", ".join(map(str, w.shape))
    return f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
        g ({inputs}) => ({y}) <{GRIDS}, int8[{shape}] w = {numbers(w)}{extra}> {{ {READ}{body} }}"""


def rows(body: str, *, y: str = "float[B, 8] y", other: str = "", extra: str = "", opset: int = 20) -> str:
    """A product and what follows it."""
    w = weight(16, N)
    inputs = "uint8[B, 16] q" + (f", {other}" if other else "")
    return f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
        g ({inputs}) => ({y}) <{GRIDS}, int8[16, {N}] w = {numbers(w)}{extra}> {{ {READ}{body} }}"""


def results(done: Done, batch: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The first output before, without the optimizations of the runtime, and after."""
    rng = np.random.default_rng(3)
    feed: dict[str, np.ndarray] = {}
    for tensor in done.before.graph.inputs:
        assert tensor.shape is not None
        shape = [size if isinstance(size, int) else batch for size in tensor.shape]
        bytes_ = np.dtype(tensor.dtype) == np.uint8
        feed[tensor.name] = (
            rng.integers(0, 256, shape).astype(np.uint8) if bytes_ else rng.standard_normal(shape).astype(np.float32)
        )
    before, after = run(session(done.before, optimize="off"), feed), run(session(done.model, kernels=True), feed)
    return next(iter(before.values())), next(iter(after.values()))


def assert_alike(done: Done, *, steps: int = 1) -> None:
    """Bytes agree up to so many steps; floats up to as many of the grid that lay between."""
    before, after = results(done)
    assert before.dtype == after.dtype
    assert len(np.unique(after)) > 8
    if before.dtype == np.uint8:
        assert np.abs(before.astype(int) - after).max() <= steps
    else:
        assert np.abs(before - after).max() <= (0.0625 * steps if steps else 1e-4)


def attributes(done: Done, op: str) -> dict[str, object]:
    (node,) = [node for _, node in done.model.walk() if node.op == op]
    return dict(node.attrs)


FLOATS = "float[B, 8, 6, 7] r"
PAIR = "c = Conv(d, v)  m = QuantizeLinear(c, ms, mz)  e = DequantizeLinear(m, ms, mz)  "
RESTORED = "o = QuantizeLinear(r, os, oz)  p = DequantizeLinear(o, os, oz)  "
SIGMOID = "s = Sigmoid({0})  "
ROUNDED_SIGMOID = SIGMOID + "t = QuantizeLinear(s, zs, zz)  u = DequantizeLinear(t, zs, zz)  "
BY_ERF = "h = Mul(c, k)  e = Erf(h)  f = Add(e, one)  i = Mul(c, f)  b = Mul(i, half)  "


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("c = Conv(d, v)  a = Add(c, r)  y = QuantizeLinear(a, ys, yz)", ["SparseInt8Conv"]),
        ("c = Conv(d, v)  a = Add(r, c)  b = Relu(a)  y = QuantizeLinear(b, ys, yz)", ["SparseInt8Conv"]),
        ("c = Conv(d, v)  a = Add(c, r)  b = Gelu(a)  y = QuantizeLinear(b, ys, yz)", ["SparseInt8Conv"]),
        (
            PAIR + "a = Add(e, r)  b = Relu(a)  y = QuantizeLinear(b, ys, yz)",
            ["SparseInt8Conv"],
        ),
        (
            RESTORED + "c = Conv(d, v)  a = Add(c, p)  b = Relu(a)  y = QuantizeLinear(b, ys, yz)",
            ["QuantizeLinear", "DequantizeLinear", "SparseInt8Conv"],
        ),
    ],
    ids=["sum", "sum and relu", "sum and gelu", "sum behind a pair", "sum with restored bytes"],
)
def test_lower_residual_goes_with_the_convolution(
    conv: LowerSparseInt8Conv, golden: Callable[..., None], body: str, ops: list[str]
) -> None:
    done = check_pass(conv, image(body, other=FLOATS))
    golden(done.text)
    assert done.ops == ops
    assert_alike(done)


def test_lower_residual_of_floats_to_floats(conv: LowerSparseInt8Conv) -> None:
    done = check_pass(conv, image("c = Conv(d, v)  y = Add(c, r)", other=FLOATS, y="float[B, 8, 6, 7] y"))
    assert done.ops == ["SparseInt8Conv"]
    assert_alike(done, steps=0)


@pytest.mark.parametrize(
    ("body", "other"),
    [
        (
            PAIR + "p = DequantizeLinear(o, os, oz)  a = Add(e, p)  b = Relu(a)  y = QuantizeLinear(b, ys, yz)",
            "uint8[B, 8, 6, 7] o",
        ),
        (PAIR.replace("mz", "zz") + "a = Add(e, r)  y = QuantizeLinear(a, ys, yz)", FLOATS),
        (PAIR + "a = Add(e, r)  k = DequantizeLinear(m, zs, mz)  u = Add(a, k)  y = QuantizeLinear(u, ys, yz)", FLOATS),
        (PAIR + "a = Add(e, r)  y = QuantizeLinear(a, ys, yz)", "float[B, 8, 1, 1] r"),
    ],
    ids=["sum of bytes", "pair that is a relu", "bytes that others read", "sum that broadcasts"],
)
def test_lower_residual_stays_where_it_must_or_is_faster_alone(
    conv: LowerSparseInt8Conv, body: str, other: str
) -> None:
    done = check_pass(conv, image(body, other=other))
    assert "Add" in done.ops
    assert attributes(done, "SparseInt8Conv")["output"] == "uint8"
    assert_alike(done)


def test_lower_two_convolutions_that_are_added_share_no_node(conv: LowerSparseInt8Conv) -> None:
    body = """c = Conv(d, v)  v2 = DequantizeLinear(w2, ws)  c2 = Conv(d, v2)  a = Add(c, c2)  b = Relu(a)
        y = QuantizeLinear(b, ys, yz)"""
    extra = f", int8[8, 8, 1, 1] w2 = {numbers(weight(8, 8, 1, 1, seed=1))}"
    done = check_pass(conv, image(body, extra=extra))
    assert done.ops == ["SparseInt8Conv", "SparseInt8Conv"]
    assert_alike(done)


@pytest.mark.parametrize(
    ("body", "name", "opset"),
    [
        ("c = Conv(d, v)  s = Sigmoid(c)  b = Mul(c, s)  y = QuantizeLinear(b, ys, yz)", "silu", 13),
        ("c = Conv(d, v)  b = Swish(c)  y = QuantizeLinear(b, ys, yz)", "silu", 24),
        ("c = Conv(d, v)  b = Gelu(c)  y = QuantizeLinear(b, ys, yz)", "gelu", 20),
        ("c = Conv(d, v)  b = com.microsoft.Gelu(c)  y = QuantizeLinear(b, ys, yz)", "gelu", 13),
        ("c = Conv(d, v)  b = com.microsoft.FastGelu(c)  y = QuantizeLinear(b, ys, yz)", "gelu_tanh", 13),
        ("c = Conv(d, v)  b = com.microsoft.QuickGelu<alpha = 1.0>(c)  y = QuantizeLinear(b, ys, yz)", "silu", 13),
        (PAIR + "b = Gelu(e)  y = QuantizeLinear(b, ys, yz)", "gelu", 20),
        (PAIR + 'b = Gelu<approximate = "tanh">(e)  y = QuantizeLinear(b, ys, yz)', "gelu_tanh", 20),
        (PAIR + "b = Relu(e)  y = QuantizeLinear(b, ys, yz)", "relu", 13),
        (PAIR + SIGMOID.format("e") + "b = Mul(e, s)  y = QuantizeLinear(b, ys, yz)", "silu", 13),
        (PAIR + ROUNDED_SIGMOID.format("e") + "b = Mul(e, u)  y = QuantizeLinear(b, ys, yz)", "silu", 13),
        (
            PAIR
            + "f = DequantizeLinear(m, ms, mz)  "
            + ROUNDED_SIGMOID.format("f")
            + "b = Mul(u, e)  y = QuantizeLinear(b, ys, yz)",
            "silu",
            17,
        ),
        ("c = Conv(d, v)  " + BY_ERF + "y = QuantizeLinear(b, ys, yz)", "gelu", 17),
    ],
)
def test_lower_activation_goes_with_the_convolution(
    conv: LowerSparseInt8Conv, body: str, name: str, opset: int
) -> None:
    extra = ", float k = {0.70710678}, float one = {1}, float half = {0.5}" if "Erf" in body else ""
    done = check_pass(conv, image(body, opset=opset, extra=extra))
    assert done.ops == ["SparseInt8Conv"]
    assert attributes(done, "SparseInt8Conv")["activation"] == name
    assert_alike(done, steps=2 if "zs" in body else 1)


@pytest.mark.parametrize(
    "body",
    [
        PAIR.replace("mz", "zz") + "b = Gelu(e)  y = QuantizeLinear(b, ys, yz)",
        PAIR.replace("(m, ms, mz)", "(m, os, mz)") + "b = Gelu(e)  y = QuantizeLinear(b, ys, yz)",
        PAIR
        + ROUNDED_SIGMOID.format("e").replace("(t, zs, zz)", "(t, zs, oz)")
        + "b = Mul(e, u)  y = QuantizeLinear(b, ys, yz)",
        PAIR + "b = Swish<alpha = 1.5>(e)  y = QuantizeLinear(b, ys, yz)",
        PAIR + "b = com.microsoft.QuickGelu(e)  y = QuantizeLinear(b, ys, yz)",
    ],
    ids=["pair that is a relu", "pair that scales", "sigmoid that is shifted", "other swish", "quick gelu"],
)
def test_lower_other_formulas_stay(conv: LowerSparseInt8Conv, body: str) -> None:
    done = check_pass(conv, image(body, opset=24 if "Swish" in body else 20))
    assert "activation" not in attributes(done, "SparseInt8Conv")
    assert_alike(done)


@pytest.mark.parametrize("opset", [10, 13, 21])
def test_lower_one_axis_runs_with_a_height(conv: LowerSparseInt8Conv, golden: Callable[..., None], opset: int) -> None:
    body = "c = Conv<pads = [2, 1], strides = [2], dilations = [2]>(d, v)  b = Relu(c)  y = QuantizeLinear(b, ys, yz)"
    source = image(body, w=weight(N, 8, 3), x="[B, 8, 20]", y="uint8[B, 8, 10] y", opset=opset)
    done = check_pass(conv, source)
    assert done.ops == ["Unsqueeze", "SparseInt8Conv", "Squeeze"]
    found = attributes(done, "SparseInt8Conv")
    assert {key: found[key] for key in ("kernel_shape", "strides", "pads", "dilations")} == {
        "kernel_shape": [1, 3],
        "strides": [1, 2],
        "pads": [0, 2, 0, 1],
        "dilations": [1, 2],
    }
    if opset == 13:
        golden(done.text)
    assert_alike(done, steps=0)


def test_lower_one_axis_chain_keeps_its_height_between_layers(conv: LowerSparseInt8Conv) -> None:
    body = """c = Conv<auto_pad = "SAME_UPPER">(d, v)  b = Relu(c)  m = QuantizeLinear(b, ys, yz)
        e = DequantizeLinear(m, ys, yz)  v2 = DequantizeLinear(w2, ws)  c2 = Conv<pads = [1, 1]>(e, v2)
        a = Add(c2, r)  y = QuantizeLinear(a, ms, mz)"""
    extra = f", int8[8, 8, 3] w2 = {numbers(weight(8, 8, 3, seed=1))}"
    source = image(
        body, w=weight(N, 8, 2), x="[B, 8, 20]", other="float[B, 8, 20] r", y="uint8[B, 8, 20] y", extra=extra
    )
    done = check_pass(conv, source)
    assert sorted(done.ops) == ["SparseInt8Conv", "SparseInt8Conv", "Squeeze", "Unsqueeze", "Unsqueeze"]
    first, second = (node for _, node in done.model.walk() if node.op == "SparseInt8Conv")
    assert second.inputs[0] is first.outputs[0]
    assert first.attrs["pads"] == [0, 0, 0, 1]
    assert_alike(done)


def test_lower_chain_of_declared_types_hands_bytes_on(conv: LowerSparseInt8Conv) -> None:
    body = """c = Conv(d, v)  b = Relu(c)  m = QuantizeLinear(b, ys, yz)  e = DequantizeLinear(m, ys, yz)
        v2 = DequantizeLinear(w2, ws)  c2 = Conv(e, v2)  y = QuantizeLinear(c2, ms, mz)"""
    types = ", ".join(f"float[B, 8, 6, 7] {name}" for name in ("c", "b", "e", "c2"))
    extra = f", int8[8, 8, 1, 1] w2 = {numbers(weight(8, 8, 1, 1, seed=1))}, {types}"
    done = check_pass(conv, image(body, extra=extra))
    assert done.ops == ["SparseInt8Conv", "SparseInt8Conv"]
    first, second = (node for _, node in done.model.walk())
    assert second.inputs[0] is first.outputs[0]
    assert_alike(done)


def test_lower_one_axis_result_that_others_read_is_flat(conv: LowerSparseInt8Conv) -> None:
    body = "c = Conv(d, v)  y = QuantizeLinear(c, ys, yz)  z = Neg(c)"
    outputs = "uint8[B, 8, 18] y, float[B, 8, 18] z"
    done = check_pass(conv, image(body, w=weight(N, 8, 3), x="[B, 8, 20]", y=outputs))
    assert done.ops == ["Unsqueeze", "SparseInt8Conv", "Squeeze", "QuantizeLinear", "Neg"]
    assert_alike(done)


def test_lower_one_axis_input_of_undeclared_type(conv: LowerSparseInt8Conv) -> None:
    body = "c = Conv(d, v)  y = QuantizeLinear(c, ys, yz)  z = Cast<to = 1>(q)"
    source = image(body, w=weight(N, 8, 3), x="[B, 8, 20]", y="uint8[B, 8, 18] y, float[B, 8, 20] z")
    source = source.replace("uint8[B, 8, 20] q", "float[B, 8, 20] x").replace(
        READ, "q = QuantizeLinear(x, xs, xz)  " + READ
    )
    done = check_pass(conv, source)
    assert done.ops == ["QuantizeLinear", "Unsqueeze", "SparseInt8Conv", "Squeeze", "Cast"]
    assert_alike(done)


ROWS = "float[B, 8] r"


@pytest.mark.parametrize(
    ("body", "name", "opset"),
    [
        ("a = MatMul(d, v)  y = Add(a, r)", None, 13),
        ("a = MatMul(d, v)  b = Add(a, k)  y = Add(r, b)", None, 13),
        ("a = MatMul(d, v)  b = Add(a, r)  y = Relu(b)", "relu", 13),
        ("a = Gemm(d, v)  b = Add(a, k)  e = Add(b, r)  y = Clip(e, lo, hi)", "relu6", 13),
        ("a = MatMul(d, v)  s = Sigmoid(a)  y = Mul(a, s)", "silu", 13),
        ("a = MatMul(d, v)  b = Add(a, k)  y = Swish(b)", "silu", 24),
        ("a = MatMul(d, v)  b = Add(a, r)  y = Gelu(b)", "gelu", 20),
        (
            "a = MatMul(d, v)  m = QuantizeLinear(a, ms, mz)  e = DequantizeLinear(m, ms, mz)  y = Gelu(e)",
            "gelu",
            20,
        ),
        (
            "a = MatMul(d, v)  m = QuantizeLinear(a, ms, mz)  e = DequantizeLinear(m, ms, mz)  y = Add(e, r)",
            None,
            20,
        ),
    ],
)
def test_lower_what_follows_goes_with_the_product(
    matmul: LowerSparseInt8Matmul, body: str, name: str | None, opset: int
) -> None:
    used = {f" {each}" for each in ("k", "lo", "hi") if f", {each}" in body}
    values = {
        " k": f", float[8] k = {numbers(np.linspace(-1, 1, 8))}",
        " lo": ", float lo = {0}",
        " hi": ", float hi = {6}",
    }
    extra = "".join(values[each] for each in values if each in used)
    other = ROWS if "r)" in body or "(r" in body else ""
    done = check_pass(matmul, rows(body, other=other, extra=extra, opset=opset))
    assert done.ops == ["SparseInt8MatMul"]
    assert attributes(done, "SparseInt8MatMul").get("activation") == name
    assert_alike(done, steps=1 if "ms" in body else 0)


def test_lower_product_rounded_in_every_run_takes_its_residual(matmul: LowerSparseInt8Matmul) -> None:
    source = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[B, 16] x, float[B, 8] r) => (float[B, 8] y) <int8[16, {N}] w = {numbers(weight(16, N))},
          float s = {{0.01}}> {{
          q, xs, xz = DynamicQuantizeLinear(x)  a = MatMulInteger(q, w, xz)  c = Cast<to = 1>(a)
          f = Mul(xs, s)  m = Mul(c, f)  t = Add(m, r)  y = Relu(t) }}"""
    done = check_pass(matmul, source)
    assert done.ops == ["SparseInt8MatMul"]
    before, after = results(done)
    assert before.tobytes() == after.tobytes()
