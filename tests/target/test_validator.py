"""The validator: every rule of the targets that are not installed is found broken in a model that breaks it alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from graphopt.cli import main
from graphopt.graph import Model, read_model
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, random_feeds
from graphopt.target import TARGETS, audit, find_target, validate
from placed_models import CONCAT, RESIDUAL, placed

if TYPE_CHECKING:
    from collections.abc import Iterator

ASSETS = Path(os.environ.get("GRAPHOPT_ASSETS", "/nonexistent"))
HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> '
GRIDS = (
    "float s = {0.05}, float s2 = {0.1}, float tiny = {1e-8}, uint8 z = {0}, uint8 z9 = {128}, int8 i0 = {0}, "
    "int8 i1 = {3}, float ws = {0.01}, float bs = {0.0005}, uint16 h0 = {0}, float unit = {0.0000152587890625}"
)
WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    "w": np.random.default_rng(0).integers(-127, 128, (16, 16, 3, 3)).astype(np.int8),
    "narrow": np.random.default_rng(0).integers(-127, 128, (4, 16, 3, 1)).astype(np.int8),
    "f": np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32),
    "m": np.random.default_rng(0).integers(-127, 128, (8, 8)).astype(np.int8),
    "b": np.arange(16, dtype=np.int32),
    "steps": np.full(16, 0.01, np.float32),
    "steps8": np.full(8, 0.01, np.float32),
    "zeros": np.zeros(16, np.int8),
    "zeros8": np.zeros(8, np.int8),
}

INT8 = "xq = QuantizeLinear(x, s, i0) xd = DequantizeLinear(xq, s, i0) wd = DequantizeLinear(w, ws, i0) "
UINT8 = "xq = QuantizeLinear(x, s, z9) xd = DequantizeLinear(xq, s, z9) wd = DequantizeLinear(w, ws, i0) "
PADDED = "Conv<pads = [1, 1, 1, 1]>"
CLOSED = " yq = QuantizeLinear(c, s, z9) y = DequantizeLinear(yq, s, z9)"

BROKEN = {
    ("tensorrt", ""): INT8 + f"y = {PADDED}(xd, wd)",
    ("tensorrt", "types symmetric"): UINT8 + f"y = {PADDED}(xd, wd)",
    ("tensorrt", "symmetric"): INT8.replace("(xq, s, i0)", "(xq, s, i1)") + f"y = {PADDED}(xd, wd)",
    ("tensorrt", "float-bias"): INT8 + f"bd = DequantizeLinear(b, bs) y = {PADDED}(xd, wd, bd)",
    ("tensorrt", "weight-axis"): (INT8 + f"vd = DequantizeLinear<axis = 1>(w, steps, zeros) y = {PADDED}(xd, vd)"),
    ("tensorrt", "weight-rounded"): INT8 + f"y = {PADDED}(xd, f)",
    ("tensorrt", "no-copies"): INT8 + f"r = Relu(xd) y = {PADDED}(r, f)",
    ("tensorrt", "unprofitable"): (
        INT8 + f"r = {PADDED}(xd, wd) rq = QuantizeLinear(r, s, i0) rd = DequantizeLinear(rq, s, i0) "
        "nd = DequantizeLinear(narrow, ws, i0) y = Conv<kernel_shape = [3, 1]>(rd, nd)"
    ),
    ("tensorrt", "skip-only"): (
        INT8 + f"c = {PADDED}(xd, wd) cq = QuantizeLinear(c, s, i0) cd = DequantizeLinear(cq, s, i0) y = Add(cd, x)"
    ),
    ("tensorrt", "concat-grid"): (
        INT8 + f"tq = QuantizeLinear(x, s2, i0) td = DequantizeLinear(tq, s2, i0) k = Concat<axis = 0>(xd, td) "
        f"y = {PADDED}(k, f)"
    ),
    ("tensorrt", "one-scale"): (
        "xq = QuantizeLinear<axis = 1>(x, steps, zeros) xd = DequantizeLinear<axis = 1>(xq, steps, zeros) "
        f"wd = DequantizeLinear(w, ws, i0) y = {PADDED}(xd, wd)"
    ),
    ("tensorrt", "operators"): "a, b0, c0 = DynamicQuantizeLinear(x) y = Cast<to = 1>(a)",
    ("openvino", ""): UINT8 + f"y = {PADDED}(xd, wd)",
    ("openvino", "types"): (
        "xq = QuantizeLinear(x, s, h0) xd = DequantizeLinear(xq, s, h0) wd = DequantizeLinear(w, ws, i0) "
        f"y = {PADDED}(xd, wd)"
    ),
    ("openvino", "all-inputs"): UINT8 + "t = Tanh(x) y = Add(xd, t)",
    ("openvino", "weight-rounded"): UINT8 + f"y = {PADDED}(xd, f)",
    ("openvino", "concat-grid"): UINT8 + f"t = Tanh(x) k = Concat<axis = 0>(xd, t) y = {PADDED}(k, wd)",
    ("qnn", ""): UINT8 + f"c = {PADDED}(xd, wd)" + CLOSED,
    ("qnn", "covered"): UINT8 + f"y = {PADDED}(xd, wd)",
    ("qnn", "covered "): UINT8 + f"c = {PADDED}(xd, wd)" + CLOSED + " t = Tanh(y) tq = QuantizeLinear(t, s, z9)",
    ("qnn", "bias-scale"): UINT8 + f"bd = DequantizeLinear(b, ws) c = {PADDED}(xd, wd, bd)" + CLOSED,
    ("qnn", "weight-channels"): (
        "xq = QuantizeLinear(x, s, z9) xd = DequantizeLinear(xq, s, z9) "
        "md = DequantizeLinear<axis = 1>(m, steps8, zeros8) c = MatMul(xd, md)" + CLOSED
    ),
    ("qnn", "equal-grids"): (
        "xq = QuantizeLinear(x, s, z9) xd = DequantizeLinear(xq, s, z9) r = Transpose<perm = [0, 1, 3, 2]>(xd) "
        "rq = QuantizeLinear(r, s2, z9) rd = DequantizeLinear(rq, s2, z9) c = Tanh(rd)" + CLOSED
    ),
    ("qnn", "fixed-grids"): (
        "xq = QuantizeLinear(x, s, h0) xd = DequantizeLinear(xq, s, h0) c = Sigmoid(xd) "
        "yq = QuantizeLinear(c, s, h0) y = DequantizeLinear(yq, s, h0)"
    ),
    ("qnn", "least-range"): (
        "xq = QuantizeLinear(x, tiny, z9) xd = DequantizeLinear(xq, tiny, z9) wd = DequantizeLinear(w, ws, i0) "
        f"c = {PADDED}(xd, wd)" + CLOSED
    ),
}
"""Target and the rules that break, to a body from x to y."""


def parsed(body: str) -> Model:
    text = f"{HEAD} g (float[1, 16, 8, 8] x) => (float[a, b0, c0, d0] y) <{GRIDS}> {{ {body} }}"
    proto = onnx.parser.parse_model(text.replace("a, b0, c0, d0] y", "p, q, h, v] y"))
    for name, values in WEIGHTS.items():
        if f"{name}," in body or f"{name})" in body:
            proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return read_model(proto)


@pytest.mark.parametrize(("target", "expected"), BROKEN)
def test_rule_is_found_broken(target: str, expected: str) -> None:
    found = validate(parsed(BROKEN[target, expected]), find_target(target))
    assert {each.rule for each in found} == set(expected.split())
    assert all(each.reason and each.remedy and each.op for each in found)


def test_every_rule_has_a_model_that_breaks_it() -> None:
    for target in ("tensorrt", "openvino", "qnn"):
        tried = {rule for name, rules in BROKEN for rule in rules.split() if name == target}
        tried |= {rule for _, rules in BROKEN for rule in rules.split()} if target != "tensorrt" else set()
        assert {check.name for check in find_target(target).checks} <= tried


@pytest.mark.parametrize("target", TARGETS)
def test_float_model_breaks_nothing_but_what_every_tensor_needs(target: str) -> None:
    found = validate(parsed(f"r = Relu(x) y = {PADDED}(r, f)"), find_target(target))
    assert {each.rule for each in found} == ({"covered"} if target == "qnn" else set())


def test_audit_counts_what_is_declared_where_the_runtime_is_not_installed() -> None:
    _, result, _, _ = placed(RESIDUAL, "openvino")
    found = audit(result, "openvino")
    assert not found.ran
    assert dict(found.integer) == {"Add": 1, "Conv": 3, "Gemm": 1, "GlobalAveragePool": 1}
    assert found.floating_count == 0
    assert found.optimization_error is None


def test_verb_lists_rules_with_remedies_and_tells_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    parsed(BROKEN["tensorrt", "types symmetric"]).save(path)
    assert main(["audit", str(path), "--target", "tensorrt"]) == 4
    shown = capsys.readouterr().out
    assert "symmetric" in shown
    assert "every zero point is 0" in shown
    assert "not installed" in shown
    assert main(["audit", str(path), "--target", "openvino", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["broken"], told["ran"], told["integer"]) == ([], False, {"Conv": 1})
    assert main(["audit", str(path)]) == 0
    assert "after optimization" in capsys.readouterr().out


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands samples to ONNX Runtime's calibrator."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


THEIRS: dict[str, set[str]] = {
    "ort-cpu": set(),
    "ort-cpu-avx2": {"weight-limit"},
    "ort-cpu-arm64": set(),
    "tensorrt": {"types", "symmetric", "concat-grid"},
    "openvino": {"concat-grid"},
    "qnn": set(),
}
"""Rules that ONNX Runtime's quantizer breaks on each target."""


@pytest.mark.parametrize("target", TARGETS)
def test_what_another_tool_quantized_is_checked_too(target: str, tmp_path: Path) -> None:
    """ONNX Runtime's own quantizer writes what ONNX Runtime fuses; other targets take offence."""
    model, _, data, _ = placed(CONCAT, "ort-cpu")
    source, result = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    model.save(source)

    quantize_static(
        str(source),
        str(result),
        Reader(data),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    rules = {each.rule for each in audit(result, target, compare=False).broken}
    assert rules == THEIRS[target]


# --------------------------------------------------------------------------------------------------- real models

PASSES = (
    *("fold-constants", "eliminate-identity", "fuse-batch-norm", "fold-constants", "eliminate-dead"),
    *("raise-opset", "fuse-bias", "insert-qdq", "eliminate-dead"),
)
REAL = {
    "cifar10_resnet20_legacy_op17": 28,
    "imagenet_squeezenet1_1_legacy_op17": 26,
    "imagenet_mobilenet_v1_050_160_tf2onnx_op17": 28,
    "kws_dscnn_float_tf2onnx_op17": 8,
    "mnist_cntk_op8": 2,
    "minilm_legacy_op17": 36,
    "stories260k_llama_legacy_op17": 36,
    "magika_standard_v3_3_op15": 3,
}
"""Model to the operators that at least are declared on every target."""


@pytest.mark.slow
@pytest.mark.skipif(not (ASSETS / "models").is_dir(), reason="GRAPHOPT_ASSETS names no folder with models/")
@pytest.mark.parametrize("target", ["tensorrt", "openvino", "qnn"])
@pytest.mark.parametrize("name", REAL)
def test_no_rule_is_broken_on_real_models(name: str, target: str) -> None:
    model = read_model(ASSETS / "models" / f"{name}.onnx")
    data: Feeds = random_feeds(model, count=4, seed=0)
    outcome = PassManager(PASSES, target=target).run(model, data)
    found = audit(model, target)
    skipped = {str(getattr(where, "name", where)) for record in outcome.records for where, _ in record.skips}
    left = {each.rule for each in found.broken}
    assert not [each for each in found.broken if each.serious]
    assert left <= ({"covered"} if target == "qnn" and skipped else set()), found.broken[:3]
    assert found.integer_count >= REAL[name] - (2 if target == "tensorrt" else 0)
