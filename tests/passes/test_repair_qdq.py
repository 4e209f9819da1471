"""repair-qdq: one model per rule that a tool may break, what it becomes, and what the runtime makes of both."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper
from onnxruntime import quantization

import graphopt
import graphopt.repair
from graphopt.errors import UnsupportedError
from graphopt.graph import Model, read_model
from graphopt.passes.quantize.repair_qdq import RepairQdq
from graphopt.repair import repair
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, random_feeds, run, session
from graphopt.target import audit, find_target, validate
from pass_oracle import check_pass
from peer_quantized import quantized_by_peer
from random_networks import random_network

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO = Path(graphopt.__file__).parent / "demo"
DATA = DEMO / "digits_calibration.npz"

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> '
GRIDS = (
    "float s = {0.05}, float s2 = {0.1}, uint8 z = {0}, uint8 z9 = {128}, int8 i0 = {0}, float ws = {0.01}, "
    "float bs = {0.0005}, float six = {0.0235294}, float lo = {0}, float hi = {6}, int8 q0 = {0}, int8 q6 = {100}, "
    "float step6 = {0.06}, int64[4] shape = {1, 8, 8, 8}, int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}"
)
X = "xq = QuantizeLinear(x, s, z9) xd = DequantizeLinear(xq, s, z9) "
W = "wd = DequantizeLinear(w, ws, i0) "
END = " q = QuantizeLinear(c, s, z9) y = DequantizeLinear(q, s, z9)"

Counts = tuple[int, int, int]
"""Integer operators, float ones, conversions."""

IMAGES: dict[str, tuple[str, Counts, Counts, set[str]]] = {
    "zero points": (X + "p = Reshape(xd, shape) c = Identity(p) cq = QuantizeLinear(c, s) cd = DequantizeLinear(cq, s) " + W + "k = Conv(cd, wd) kq = QuantizeLinear(k, s, z9) y = DequantizeLinear(kq, s, z9)", (1, 0, 4), (1, 0, 2), {"written-zero", "open-result", "equal-grids", "integer-movement"}),
    "signed activations that several read": ("xq = QuantizeLinear(x, s, i0) xd = DequantizeLinear(xq, s, i0) " + W + "c = Conv(xd, wd) cq = QuantizeLinear(c, s, i0) cd = DequantizeLinear(cq, s, i0) a = Add(cd, xd) aq = QuantizeLinear(a, s, i0) y = DequantizeLinear(aq, s, i0)", (0, 2, 7), (2, 0, 2), {"shared-signed"}),
    "a signed constant beside signed activations": ("xq = QuantizeLinear(x, s, i0) xd = DequantizeLinear(xq, s, i0) " + W + "c = Conv(xd, wd) cq = QuantizeLinear(c, s, i0) cd = DequantizeLinear(cq, s, i0) kd = DequantizeLinear(kc, s, i0) a = Mul(cd, kd) aq = QuantizeLinear(a, s, i0) y = DequantizeLinear(aq, s, i0)", (1, 1, 4), (2, 0, 2), {"shared-signed"}),
    "a scale per channel of an activation": ("xq = QuantizeLinear<axis = 1>(x, steps, zeros) xd = DequantizeLinear<axis = 1>(xq, steps, zeros) " + W + "c = Conv(xd, wd)" + END, (1, 0, 2), (1, 0, 2), {"one-scale"}),
    "a pair before Relu": (X + W + "k = Conv(xd, wd) kq = QuantizeLinear(k, s, z9) kd = DequantizeLinear(kq, s, z9) c = Relu(kd) q = QuantizeLinear(c, s, z) y = DequantizeLinear(q, s, z)", (1, 0, 4), (1, 0, 2), {"pair-before-activation"}),
    "a grid that goes on below Relu": (X + W + "k = Conv(xd, wd) c = Relu(k)" + END, (0, 1, 4), (1, 0, 2), {"cut-off"}),
    "a grid that goes on beyond Clip": (X + W + "k = Conv(xd, wd) c = Clip(k, lo, hi) q = QuantizeLinear(c, s, z) y = DequantizeLinear(q, s, z)", (0, 1, 4), (1, 0, 2), {"cut-off"}),
    "bounds of Clip that are stored as integers": (X + W + "k = Conv(xd, wd) l = DequantizeLinear(q0, step6, i0) h = DequantizeLinear(q6, step6, i0) c = Clip(k, l, h) q = QuantizeLinear(c, six, z) y = DequantizeLinear(q, six, z)", (1, 0, 2), (1, 0, 2), {"plain-constant"}),
    "another grid behind MaxPool": (X + W + "p = MaxPool<kernel_shape = [2, 2]>(xd) pq = QuantizeLinear(p, s2, z9) d = DequantizeLinear(pq, s2, z9) c = Conv(d, wd)" + END, (1, 0, 4), (1, 0, 2), {"equal-grids", "integer-movement"}),
    "Pad of real numbers": (X + W + "p = Pad(xd, pads) pq = QuantizeLinear(p, s, z9) d = DequantizeLinear(pq, s, z9) c = Conv(d, wd)" + END, (1, 0, 4), (1, 0, 2), {"integer-movement"}),
    "a Concat that nothing rounds": (X + W + "m = Mul(x, s) mq = QuantizeLinear(m, s, z9) md = DequantizeLinear(mq, s, z9) k = Concat<axis = 2>(xd, md) c = Conv(k, wd)" + END, (0, 2, 6), (2, 1, 3), {"all-inputs", "open-result"}),
    "a skip branch through Pad": (X + W + "k = Conv<pads = [1, 1, 1, 1]>(xd, wd) kq = QuantizeLinear(k, s, z9) kd = DequantizeLinear(kq, s, z9) p = Pad(xd, pads) c = Add(kd, p)" + END, (1, 1, 5), (2, 0, 2), {"open-result", "integer-movement"}),
    "a float reader beside the rounding": (X + W + "k = Conv(xd, wd) kq = QuantizeLinear(k, s, z9) kd = DequantizeLinear(kq, s, z9) t = Tanh(k) v = Conv(kd, wd) vq = QuantizeLinear(v, s, z9) vd = DequantizeLinear(vq, s, z9) y = Sub(t, vd)", (1, 1, 4), (2, 0, 3), {"several-readers"}),
    "two grids of one tensor": (X + W + "k = Conv(xd, wd) kq = QuantizeLinear(k, s, z9) kd = DequantizeLinear(kq, s, z9) jq = QuantizeLinear(k, s2, z9) jd = DequantizeLinear(jq, s2, z9) u = Conv(kd, wd) uq = QuantizeLinear(u, s, z9) ud = DequantizeLinear(uq, s, z9) v = Conv(jd, wd) vq = QuantizeLinear(v, s, z9) vd = DequantizeLinear(vq, s, z9) c = Add(ud, vd)" + END, (3, 1, 5), (4, 0, 2), {"several-readers"}),
    "a float operand of Mul": (X + W + "k = Conv(xd, wd) kq = QuantizeLinear(k, s, z9) kd = DequantizeLinear(kq, s, z9) c = Mul(kd, hi)" + END, (1, 1, 4), (2, 0, 2), {"all-inputs"}),
    "a bias on another scale": (X + W + "bd = DequantizeLinear(b, ws) c = Conv(xd, wd, bd)" + END, (0, 1, 4), (1, 0, 2), {"bias-scale"}),
    "BatchNormalization behind a rounded weight": (X + W + "k = Conv(xd, wd) kq = QuantizeLinear(k, s, z9) kd = DequantizeLinear(kq, s, z9) c = BatchNormalization(kd, gamma, beta, mean, var)" + END, (1, 0, 4), (1, 0, 2), {"batch-norm"}),
    "a weight kept in float": (X + "wq = QuantizeLinear(f, ws, i0) wd = DequantizeLinear(wq, ws, i0) c = Conv(xd, wd)" + END, (1, 0, 2), (1, 0, 2), {"weight-form"}),
    "a weight around another zero point": (X + "wd = DequantizeLinear(ub, ws, z9) c = Conv(xd, wd)" + END, (1, 0, 2), (1, 0, 2), {"weight-zeros"}),
    "rounding that serves nothing": ("t = Tanh(x) tq = QuantizeLinear(t, s, z9) td = DequantizeLinear(tq, s, z9) n = Neg(td) nq = QuantizeLinear(n, s, z9) nd = DequantizeLinear(nq, s, z9) " + W + "c = Conv(nd, wd)" + END, (1, 0, 4), (1, 0, 2), {"idle-pair"}),
}  # fmt: skip

LEFT_FLOAT = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 32)
"""Whether the runtime leaves a product float whose scales lie along the inputs; older ones fuse it into wrong numbers."""

MATRICES: dict[str, tuple[str, Counts, Counts, set[str]]] = {
    "scales along the inputs": ("vd = DequantizeLinear<axis = 0>(vm, rows, zrows) c = MatMul(xd, vd)" + END, (0, 1, 4) if LEFT_FLOAT else (1, 0, 2), (1, 0, 2), {"weight-axis"}),
    "a float bias of Gemm": ("vd = DequantizeLinear(vm, ws, i0) y = Gemm(xd, vd, fb)", (0, 1, 2), (1, 0, 1), {"bias-scale"}),
}  # fmt: skip


def integers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)


WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    "w": integers(8, 8, 1, 1),
    "ub": (128 + integers(8, 8, 1, 1, seed=5).astype(np.int64)).astype(np.uint8),
    "kc": integers(1, 8, 1, 1, seed=1),
    "f": np.random.default_rng(2).standard_normal((8, 8, 1, 1)).astype(np.float32) / 3,
    "steps": np.linspace(0.02, 0.05, 8, dtype=np.float32),
    "zeros": np.full(8, 128, np.uint8),
    "b": integers(8, seed=3).astype(np.int32),
    "gamma": np.linspace(-1, 2, 8, dtype=np.float32),
    "beta": np.linspace(0, 1, 8, dtype=np.float32),
    "mean": np.linspace(-1, 1, 8, dtype=np.float32),
    "var": np.linspace(0.5, 2, 8, dtype=np.float32),
    "vm": integers(32, 32, seed=4),
    "rows": np.linspace(0.002, 0.02, 32, dtype=np.float32),
    "zrows": np.zeros(32, np.int8),
    "one": np.full(1, 0.5, np.float32),
    "fb": np.linspace(-1, 1, 32, dtype=np.float32),
}


def parsed(body: str, inputs: str, output: str) -> Model:
    used = {
        name: value
        for name, value in WEIGHTS.items()
        if name in body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    grids = ", ".join(
        each
        for each in _grids()
        if each.split()[1] in body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    )
    proto = onnx.parser.parse_model(f"{HEAD} g ({inputs}) => ({output}) <{grids}> {{ {body} }}")
    for name, values in used.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return read_model(proto)


def _grids() -> list[str]:
    found = GRIDS.replace("}, ", "}|").split("|")
    return [each.strip() for each in found]


def case(name: str) -> tuple[Model, Counts, Counts, set[str]]:
    if name in IMAGES:
        body, before, after, mended = IMAGES[name]
        return parsed(body, "float[1, 8, 8, 8] x", "float[a, b, c, d] y"), before, after, mended
    body, before, after, mended = MATRICES[name]
    return parsed(X + body, "float[n, 32] x", "float[p, q] y"), before, after, mended


def counts(model: Model) -> Counts:
    found = audit(model, compare=False)
    return found.integer_count, found.floating_count, found.conversions


def mended_rules(model: Model, data: Feeds | None = None, **options: Any) -> set[str]:
    outcome = PassManager([RepairQdq(**options)]).run(model, data)
    return {layer.reason for record in outcome.records for layer in record.layers}


def noise_db(one: Model, other: Model, feeds: Any) -> float:
    first, second = session(one), session(other)
    signal = noise = 0.0
    for feed in feeds:
        left, right = run(first, dict(feed)), run(second, dict(feed))
        for name in left:
            signal += float((left[name].astype(np.float64) ** 2).sum())
            noise += float(((left[name].astype(np.float64) - right[name]) ** 2).sum())
    return 99.0 if not noise else 10 * np.log10(signal / noise)


@pytest.mark.parametrize("name", [*IMAGES, *MATRICES])
def test_each_fault_is_mended(name: str, golden: Callable[[str], None]) -> None:
    model, before, after, rules = case(name)
    assert counts(model) == before
    result = model.copy()
    assert mended_rules(result) == rules
    assert counts(result) == after
    assert not any(each.serious for each in validate(result, find_target("ort-cpu")))
    assert mended_rules(result.copy()) == set()
    golden(check_pass(RepairQdq(), model).text)


@pytest.mark.parametrize("name", ["zero points", "signed activations that several read", "a signed constant beside signed activations", "Pad of real numbers", "a weight kept in float", "bounds of Clip that are stored as integers", "a weight around another zero point"])  # fmt: skip
def test_repairs_that_change_the_form_alone_change_no_number(name: str) -> None:
    model, *_ = case(name)
    result = model.copy()
    mended_rules(result)
    feeds = random_feeds(session(model), count=3, seed=1)
    plain, fused = (session(each, optimize="off") for each in (model, result))
    for feed in feeds:
        np.testing.assert_array_equal(run(plain, dict(feed))["y"], run(fused, dict(feed))["y"])


@pytest.mark.parametrize("name", sorted({*IMAGES, *MATRICES}))
def test_results_stay_near_what_the_given_model_says(name: str) -> None:
    model, *_ = case(name)
    result = model.copy()
    mended_rules(result)
    feeds = random_feeds(session(model), count=3, seed=1)
    plain, mended = session(model, optimize="off"), session(result, optimize="off")
    signal = noise = 0.0
    for feed in feeds:
        one, other = run(plain, dict(feed))["y"], run(mended, dict(feed))["y"]
        signal, noise = signal + float((one**2).sum()), noise + float(((one - other) ** 2).sum())
    assert noise <= 10**-2.0 * signal  # 20 dB: grids of 8 bits that moved by less than their width


def test_a_result_that_nothing_bounds_needs_data() -> None:
    body = X + W + "k = Conv(xd, wd) c = Add(k, xd)" + END
    model = parsed(body, "float[1, 8, 8, 8] x", "float[a, b, c, d] y")
    outcome = PassManager([RepairQdq()]).run(model.copy(), None)
    assert [why for _, why in outcome.records[0].skips] == [
        "the range of 'k' is not known: calibration data would show it"
    ]
    assert counts(model) == (0, 2, 5)
    data = Feeds.open(list(random_feeds(session(model), count=8, seed=0)), session(model))
    result = model.copy()
    assert mended_rules(result, data) == {"open-result"}
    assert counts(result) == (2, 0, 2)
    assert noise_db(model, result, data) > 30


@pytest.mark.parametrize(("target", "why"), [("tensorrt", "there are no repairs for tensorrt"), ("ort-cpu-arm64", "there are no repairs for ort-cpu-arm64")])  # fmt: skip
def test_other_targets_are_left_alone(target: str, why: str) -> None:
    model, *_ = case("a pair before Relu")
    outcome = PassManager([RepairQdq()], target=target).run(model, None)
    assert outcome.patches == 0
    assert [reason for _, reason in outcome.records[0].skips] == [why]


def test_float_models_are_left_alone() -> None:
    outcome = PassManager([RepairQdq()]).run(read_model(DEMO / "digits_cnn.onnx"), None)
    assert outcome.patches == 0
    assert [reason for _, reason in outcome.records[0].skips] == ["it is not quantized"]


def test_rounding_that_stands_for_relu_stays() -> None:
    """Tools take a Relu out whose grid begins at zero: the pair is not idle, and not the same for a float reader."""
    relu = "t = Tanh(x) tq = QuantizeLinear(t, s, z) td = DequantizeLinear(tq, s, z) "
    shared = X + W + "k = Conv(xd, wd) kq = QuantizeLinear(k, s, z) kd = DequantizeLinear(kq, s, z) "
    for body in (relu + "y = Neg(td)", shared + "t = Tanh(k) v = Conv(kd, wd) y = Sub(t, v)"):
        model = parsed(body, "float[1, 8, 8, 8] x", "float[a, b, c, d] y")
        result = model.copy()
        mended_rules(result)
        feeds = list(random_feeds(session(model), count=2, seed=0))
        plain, mended = session(model, optimize="off"), session(result, optimize="off")
        for feed in feeds:
            np.testing.assert_allclose(run(mended, dict(feed))["y"], run(plain, dict(feed))["y"], atol=0.05)


@pytest.mark.parametrize("bias", ["fb", "one"])
@pytest.mark.parametrize("alpha", [0.5, -2.0])
def test_factors_of_gemm_leave_it(alpha: float, bias: str) -> None:
    body = f"wd = DequantizeLinear(vm, ws, i0) c = Gemm<alpha = {alpha}, beta = 0.5>(xd, wd, {bias})" + END
    model = parsed(X + body, "float[n, 32] x", "float[p, q] y")
    result = model.copy()
    assert "gemm-factor" in mended_rules(result)
    assert counts(result) == (1, 0, 2)
    feed = next(iter(random_feeds(session(model), count=1, seed=0, sizes={"n": 4})))
    plain, mended = run(session(model, optimize="off"), feed)["y"], run(session(result), feed)["y"]
    np.testing.assert_allclose(mended, plain, atol=0.051)  # a step of the grid of the result


@pytest.mark.parametrize("seed", [14, 31, 67, 109, 205, 214])
def test_random_networks_that_a_peer_quantized(seed: int, tmp_path: Path) -> None:
    """Seeds that once went wrong; the given model is run as it says, without optimizations."""
    source, made = random.Random(seed), random_network(seed)
    path = tmp_path / "float.onnx"
    onnx.save(made.proto, path)
    form, kind = source.choice(["qdq", "qdq per channel"]), source.choice([quantization.QuantType.QInt8, quantization.QuantType.QUInt8])  # fmt: skip
    extra = {"ActivationSymmetric": source.random() < 0.4, "DedicatedQDQPair": source.random() < 0.3, "ForceQuantizeNoInputCheck": source.random() < 0.3, "QuantizeBias": source.random() < 0.7, "AddQDQPairToWeight": source.random() < 0.3}  # fmt: skip
    feed = dict(made.feeds)
    given = quantized_by_peer(path, form, [dict(feed)], tmp_path, activation_type=kind, extra_options=extra)
    result = given.copy()
    PassManager([RepairQdq(), "eliminate-dead"], verify="full").run(result, None)
    result.sort()
    found = run(session(result), feed)
    for name, wanted in run(session(given, optimize="off"), feed).items():
        signal, noise = (float((each.astype(np.float64) ** 2).sum()) for each in (wanted, wanted - found[name]))
        assert noise <= 10**-1.5 * signal
    assert PassManager([RepairQdq()]).run(result, None).patches == 0


def test_weights_for_cpus_without_vnni_go_to_64() -> None:
    model, *_ = case("another grid behind MaxPool")
    result = model.copy()
    outcome = PassManager([RepairQdq()], target="ort-cpu-avx2").run(result, None)
    assert "weight-limit" in {layer.reason for layer in outcome.records[0].layers}
    assert "weight-limit" not in {each.rule for each in validate(result, find_target("ort-cpu-avx2"))}
    assert noise_db(model, result, random_feeds(session(model), count=2, seed=0)) > 25


def test_default_of_a_peer_becomes_what_the_runtime_can_do(tmp_path: Path) -> None:
    """Signed activations, the default of ONNX Runtime's tool, stay float where several read them."""
    path = DEMO / "digits_cnn.onnx"
    model = quantized_by_peer(path, "qdq per channel", Feeds.open(DATA, session(path)).take(16), tmp_path, activation_type=quantization.QuantType.QInt8)  # fmt: skip
    found = repair(model, data=DATA)
    assert found.after.integer_count >= found.before.integer_count
    assert found.after.conversions <= found.before.conversions
    assert found.after.floating_count <= found.before.floating_count
    assert found.repairs["shared-signed"] > 0
    assert found.quality is not None
    assert found.quality.worst_sqnr_db > 25
    assert found.after.optimization_error is not None
    assert found.after.optimization_error < 0.1


def test_channels_that_fit_keep_their_integers() -> None:
    """Integers up to 127 from the zero point stay; a channel beyond is rounded anew on a scale of its own."""
    model, *_ = case("a weight around another zero point")
    constant = next(node for node in model.graph.nodes if node.inputs[0].name == "ub").inputs[0]
    with constant.edit() as values:
        values[3, 0] = 0  # 128 below its zero point
    result = model.copy()
    mended_rules(result)
    conv = next(node for node in result.graph.nodes if node.op == "Conv")
    restoring = conv.inputs[1].inputs[0]
    codes, scales = (np.asarray(each.values) for each in restoring.inputs[:2])
    before = constant.values.astype(np.int64) - 128
    kept = [each for each in range(8) if each != 3]
    np.testing.assert_array_equal(codes[kept], before[kept])
    np.testing.assert_array_equal(scales[kept], np.float32(0.01))
    assert scales[3] == pytest.approx(0.01 * 128 / 127)
    assert codes[3, 0] == -127


def test_what_the_runtime_does_not_load_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise UnsupportedError("no such operator")

    monkeypatch.setattr(graphopt.repair, "_settled", refuse)
    model, *_ = case("a pair before Relu")
    found = repair(model)
    assert "the runtime does not load the mended model" in found.refusal
    assert found.model.to_bytes() == model.to_bytes()
    assert found.after == found.before
    assert found.repairs == {}
