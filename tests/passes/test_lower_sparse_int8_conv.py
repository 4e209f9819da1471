from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from graphopt.analysis.cost_table import CostTable, KernelGrid
from graphopt.errors import RecipeError
from graphopt.graph import Constant
from graphopt.passes.lower.lower_sparse_int8_conv import LowerSparseInt8Conv
from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.rewrite import PassManager
from graphopt.rewrite.registry import create
from graphopt.runtime import Feeds, run, session
from graphopt.solve.pack_sparse_int8 import conv_matrix, unpack_sparse_int8
from pass_oracle import Done, check_pass, parse, run_pass

if TYPE_CHECKING:
    from pathlib import Path

C, N = 8, 8


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A cost table by which the kernel is faster from 60 % zeros on, in blocks of 4 x 4 more so."""
    shares, speed = (0.5, 0.6, 1.0), np.array([[[0.9, 2.2, 6.0]]])
    kernels = {
        "sparse-int8-conv-1x4": KernelGrid((1,), (1,), shares, {"avx512vnni": speed}),
        "sparse-int8-conv-4x4": KernelGrid((1,), (1,), shares, {"avx512vnni": speed * 1.5}),
        "dense-int8-conv": KernelGrid((1,), (1,), (8,), {"avx512vnni": np.array([[[2.0]]])}),
    }
    path = tmp_path / "table.json"
    path.write_text(CostTable(kernels, 0.1, "a test").to_json(), encoding="utf-8")
    return str(path)


@pytest.fixture
def lower(table: str) -> LowerSparseInt8Conv:
    return LowerSparseInt8Conv(cost_table=table)


def numbers(values: np.ndarray) -> str:
    return "{" + ", ".join(repr(v) for v in values.reshape(-1).tolist()) + "}"


def weight(
    *, n: int = N, c: int = C, size: int = 3, unit: int = 1, last: bool = False, kept: float = 0.25, seed: int = 0
) -> np.ndarray:
    """int8 [n, c, size, size] with this share of its blocks, fours in the order of the weight or of channels."""
    rng = np.random.default_rng(seed)
    terms = c * size * size
    fours = terms // 4
    blocks = (rng.permutation(n // unit * fours) < round(kept * (n // unit) * fours)).reshape(n // unit, fours)
    flat = np.repeat(np.repeat(blocks, unit, 0), 4, 1)
    mask: np.ndarray = flat.reshape(n, size, size, c).transpose(0, 3, 1, 2) if last else flat.reshape(n, c, size, size)
    masked: np.ndarray = (rng.integers(-127, 128, (n, c, size, size)) * mask).astype(np.int8)
    return masked


SCALES = (np.arange(N) + 1).astype(np.float32) / 1024
HEAD = (
    "d = DequantizeLinear(q, xs, xz)  v = DequantizeLinear<axis = 0>(w, s)  bf = DequantizeLinear<axis = 0>(bq, bs)  "
)
BIAS = np.arange(N) * 50 - 200


def static(
    body: str,
    *,
    w: np.ndarray | None = None,
    x: str = "uint8[B, 8, 9, 11] q",
    y: str = "uint8[B, 8, H, W] y",
    head: str = HEAD,
    extra: str = "",
    x_scale: str = "0.03125",
) -> str:
    w = weight() if w is None else w
    shape = ", ".join(map(str, w.shape))
    return f"""<ir_version: 8, opset_import: ["" : 17]>
        g ({x}) => ({y}) <float xs = {{{x_scale}}}, uint8 xz = {{120}}, int8[{shape}] w = {numbers(w)},
          float[{N}] s = {numbers(SCALES)}, int32[{N}] bq = {numbers(BIAS)},
          float[{N}] bs = {numbers(SCALES * np.float32(0.03125))}, float ys = {{0.5}}, uint8 yz = {{20}}{extra}> {{
          {head}{body} }}"""


def only(done: Done) -> Any:
    (node,) = [node for _, node in done.model.walk() if node.op == "SparseInt8Conv"]
    return node


def blob(done: Done) -> np.ndarray:
    stored = only(done).inputs[1]
    assert isinstance(stored, Constant)
    return stored.array().view(np.uint8)


def results(done: Done, batch: int = 2) -> list[np.ndarray]:
    """Outputs before, in the runtime as it is and with its integer operators, and after."""
    rng = np.random.default_rng(3)
    first = done.before.graph.inputs[0]
    assert first.shape is not None
    shape = [size if isinstance(size, int) else batch for size in first.shape]
    dtype = np.dtype(first.dtype)
    x = rng.integers(0, 256, shape) if dtype == np.uint8 else rng.standard_normal(shape)
    feed = {first.name: x.astype(dtype)}
    plain, fused = run(session(done.before, optimize="off"), feed), run(session(done.before), feed)
    return [next(iter(found.values())) for found in (plain, fused, run(session(done.model, kernels=True), feed))]


@pytest.mark.parametrize(
    ("attributes", "size", "wanted"),
    [
        ("group = 1", 3, {}),
        ("pads = [1, 1, 1, 1]", 3, {"pads": [1, 1, 1, 1]}),
        ("pads = [0, 1, 2, 0], strides = [2, 1]", 3, {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
        ("strides = [2, 2]", 1, {"strides": [2, 2]}),
        ('dilations = [2, 3], auto_pad = "VALID"', 3, {"dilations": [2, 3]}),
        ('auto_pad = "SAME_UPPER"', 3, {"pads": [1, 1, 1, 1]}),
        ('auto_pad = "SAME_UPPER", strides = [2, 3]', 4, {"pads": [1, 1, 2, 1], "strides": [2, 3]}),
        ('auto_pad = "SAME_LOWER", strides = [2, 3]', 4, {"pads": [2, 1, 1, 1], "strides": [2, 3]}),
    ],
)
@pytest.mark.parametrize("activation", ["", "Relu"])
def test_lower_convolution_gives_the_bytes_of_the_runtime(
    lower: LowerSparseInt8Conv, attributes: str, size: int, wanted: dict[str, Any], activation: str
) -> None:
    after = "m = Relu(c)" if activation else "m = Identity(c)"
    body = f"c = Conv<{attributes}>(d, v, bf)  {after}  y = QuantizeLinear(m, ys, yz)"
    body = body if activation else body.replace("m = Identity(c)  ", "").replace("(m,", "(c,")
    done = check_pass(lower, static(body, w=weight(size=size)))
    assert done.ops == ["SparseInt8Conv"]
    attrs = dict(only(done).attrs)
    wanted = {"N": N, "kernel_shape": [size, size], **wanted, **({"activation": "relu"} if activation else {})}
    assert {key: attrs[key] for key in wanted} == wanted
    assert np.array_equal(unpack_sparse_int8(blob(done)).fixes, BIAS)
    plain, fused, lowered = results(done)
    assert lowered.dtype == np.uint8
    assert np.array_equal(fused, lowered), "ONNX Runtime's QLinearConv gives the same bytes"
    assert np.abs(plain.astype(int) - lowered).max() <= 1
    assert len(np.unique(lowered)) > 6


def test_lower_groups(lower: LowerSparseInt8Conv) -> None:
    w = weight(c=4)
    body = "c = Conv<group = 2, pads = [1, 1, 1, 1]>(d, v, bf)  y = QuantizeLinear(c, ys, yz)"
    done = check_pass(lower, static(body, w=w))
    assert only(done).attrs["group"] == 2
    _, fused, lowered = results(done)
    assert np.array_equal(fused, lowered)


def test_lower_floats_in_and_out(lower: LowerSparseInt8Conv) -> None:
    head = "q = QuantizeLinear(x, xs, xz)  " + HEAD
    done = check_pass(lower, static("y = Conv(d, v, bf)", head=head, x="float[B, 8, 9, 11] x", y="float[B, 8, H, W] y"))
    assert done.ops == ["SparseInt8Conv"]
    plain, _, lowered = results(done)
    assert np.allclose(plain, lowered, rtol=1e-5, atol=1e-5)


def test_lower_chain_stays_in_bytes(lower: LowerSparseInt8Conv) -> None:
    extra = f", int8[8, 8, 1, 1] w2 = {numbers(weight(size=1, seed=1))}, float s2 = {{0.004}}"
    body = """c = Conv(d, v, bf)  r = Relu(c)  q1 = QuantizeLinear(r, ys, yz)  d1 = DequantizeLinear(q1, ys, yz)
        v2 = DequantizeLinear(w2, s2)  c2 = Conv(d1, v2)  y = QuantizeLinear(c2, ys, yz)"""
    done = check_pass(lower, static(body, extra=extra))
    assert done.ops == ["SparseInt8Conv", "SparseInt8Conv"]
    first, last = (node for _, node in done.model.walk())
    assert first.outputs[0] is last.inputs[0]
    assert np.dtype(first.outputs[0].dtype) == np.uint8
    _, fused, lowered = results(done)
    assert np.array_equal(fused, lowered)


@pytest.mark.parametrize("last", [False, True])
def test_lower_fours_go_along_the_order_that_leaves_out_more(lower: LowerSparseInt8Conv, last: bool) -> None:
    w = weight(last=last)
    body = "c = Conv<pads = [1, 1, 1, 1]>(d, v, bf)  y = QuantizeLinear(c, ys, yz)"
    done = check_pass(lower, static(body, w=w))
    assert only(done).attrs.get("channels_last", 0) == int(last)
    assert np.array_equal(unpack_sparse_int8(blob(done)).values, conv_matrix(w, channels_last=last))
    _, fused, lowered = results(done)
    assert np.array_equal(fused, lowered)


def test_lower_blocks_of_four_outputs(lower: LowerSparseInt8Conv) -> None:
    done = check_pass(lower, static("c = Conv(d, v, bf)  y = QuantizeLinear(c, ys, yz)", w=weight(unit=4, kept=1 / 4)))
    assert unpack_sparse_int8(blob(done)).unit == 4
    (row,) = done.record.layers
    assert row.what.endswith("zeros in blocks of 4 x 4")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (static("c = Conv(d, v, bf)  y = QuantizeLinear(c, ys, yz)", w=weight(kept=0.6)), "% zeros in blocks of 1 x 4"),
        (
            static("c = Conv<group = 8>(d, v, bf)  y = QuantizeLinear(c, ys, yz)", w=weight(c=1, size=4)),
            "it is depthwise",
        ),
        (
            static(
                'c = Conv<auto_pad = "SAME_UPPER">(d, v, bf)  y = QuantizeLinear(c, ys, yz)',
                x="uint8[B, 8, 9, width] q",
            ),
            "its pads follow from sizes that are not known (auto_pad is SAME_UPPER)",
        ),
        (
            static(
                "c = Conv(d, v, bf)  y = QuantizeLinear(c, ys, yz)",
                w=weight(size=4)[..., None],
                x="uint8[B, 8, 9, 9, 9] q",
                y="uint8[B, 8, D, H, W] y",
            ),
            "the kernel has one and two spatial axes",
        ),
        (static("c = Conv(d, v, bf)  y = QuantizeLinear(c, ys, yz)").replace("uint8", "int8"), "is int8, not uint8"),
    ],
)
def test_lower_other_nodes_are_left_alone_with_a_reason(lower: LowerSparseInt8Conv, source: str, reason: str) -> None:
    done = check_pass(lower, source)
    assert done.record.patches == 0
    assert any(reason in said for said in done.skips.values()), done.skips


def test_lower_what_insert_qdq_writes(lower: LowerSparseInt8Conv) -> None:
    rng = np.random.default_rng(5)
    first, second = (weight(n=16, c=16, seed=s).astype(np.float32) / 100 for s in (1, 2))
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[B, 16, 12, 12] x) => (float[B, 16, 12, 12] y) <float[16, 16, 3, 3] w1 = {numbers(first)},
          float[16, 16, 3, 3] w2 = {numbers(second)}, float[16] b1 = {numbers(rng.standard_normal(16))}> {{
          a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)  r = Relu(a)  y = Conv<pads = [1, 1, 1, 1]>(r, w2) }}""")
    before = parse(model)
    data = Feeds.open({"x": rng.standard_normal((8, 16, 12, 12)).astype(np.float32)}, session(before))
    quantized = before.copy()
    PassManager([InsertQdq()]).run(quantized, data)
    done = check_pass(lower, quantized, data)
    assert done.ops.count("SparseInt8Conv") == 2
    assert "Conv" not in done.ops
    feed = {"x": rng.standard_normal((2, 16, 12, 12)).astype(np.float32)}
    wanted, found = run(session(quantized), feed)["y"], run(session(done.model, kernels=True), feed)["y"]
    assert np.abs(wanted - found).max() < 0.02 * np.abs(wanted).max()


def test_lower_positions_count(tmp_path: Path) -> None:
    grid = {"avx2": np.array([[[0.5, 0.9]], [[1.5, 3.0]]])}
    kernels = {f"sparse-int8-conv-{unit}x4": KernelGrid((1, 64), (1,), (0.5, 1.0), grid) for unit in (1, 4)}
    kernels["dense-int8-conv"] = KernelGrid((1, 64), (1,), (8,), {"avx2": np.array([[[1.0]], [[1.0]]])})
    path = tmp_path / "table.json"
    path.write_text(CostTable(kernels, 0.1, "a test").to_json(), encoding="utf-8")
    source = static("c = Conv(d, v, bf)  y = QuantizeLinear(c, ys, yz)")
    for positions, patches in ((0, 0), (3, 0), (64, 1)):
        done = check_pass(LowerSparseInt8Conv(cost_table=str(path), rows=positions), source)
        assert done.record.patches == patches, positions
    fixed = source.replace("uint8[B, 8, 9, 11] q", "uint8[2, 8, 9, 11] q")
    assert check_pass(LowerSparseInt8Conv(cost_table=str(path)), fixed).record.patches == 1


def test_lower_same_input_same_bytes(lower: LowerSparseInt8Conv) -> None:
    source = static("c = Conv(d, v, bf)  y = QuantizeLinear(c, ys, yz)")
    assert run_pass(lower, source).model.to_bytes() == run_pass(lower, source).model.to_bytes()


def test_lower_options_are_checked() -> None:
    with pytest.raises(RecipeError, match="rows is -1"):
        create("lower-sparse-int8-conv", {"rows": -1})
