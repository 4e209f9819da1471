"""Sensitivity end to end: on data that is held back, of every layer, the same each time; and its verb."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt import demo
from graphopt.cli import main
from graphopt.errors import UsageError
from graphopt.graph import read_model
from graphopt.report.sensitivity import Sensitivity
from graphopt.sensitivity import measure_sensitivity

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(11)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two Gemm, one MatMul that shares its weight with another, one in a branch, one of a constant."""
    weights = {
        "w1": RNG.standard_normal((16, 8)),
        "b1": RNG.standard_normal(16),
        "shared": RNG.standard_normal((16, 16)) / 4,
        "head": RNG.standard_normal((16, 6)),
        "inner": RNG.standard_normal((6, 6)),
        "constant": RNG.standard_normal((6, 6)),
    }

    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [output])

    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first", transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "shared"], ["s"], name="twice"),
        helper.make_node("MatMul", ["s", "shared"], ["t"], name="again"),
        helper.make_node("MatMul", ["t", "head"], ["z"], name="head"),
        helper.make_node(
            "If",
            ["yes"],
            ["y"],
            then_branch=branch("then", helper.make_node("MatMul", ["z", "inner"], ["a"], name="in_branch")),
            else_branch=branch("else", helper.make_node("Identity", ["z"], ["b"])),
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 6])],
        [
            *(numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "feeds.npz"
    np.savez(path, x=RNG.standard_normal((160, 8)).astype(np.float32))
    return path


def test_every_layer_is_measured_or_has_a_reason(model: Path, data: Path) -> None:
    found = measure_sensitivity(model, data, levels=["bits=8,2", "sparsity=0.9"])
    assert [layer.name for layer in found.layers] == ["first", "twice", "head"]
    assert {skip.node: skip.reason for skip in found.skips}.keys() >= {"in_branch"}
    assert found.levels == ("bits=8", "bits=2", "sparsity=0.9")
    assert (found.samples, found.calibration_samples, found.measure) == (64, 96, "kl")
    for layer in found.layers:
        fine, coarse, sparse = layer.levels
        assert fine.damage < coarse.damage
        assert fine.damage < sparse.damage
        assert coarse.damage_error > 0
        assert coarse.kl == coarse.damage
        assert coarse.agreement is not None
        assert 0 < coarse.agreement <= 1


def test_the_same_model_and_data_give_the_same_figures(model: Path, data: Path) -> None:
    before = read_model(model)
    one, two = (measure_sensitivity(before, data, levels=["bits=3", "sparsity=0.7"], seed=4) for _ in range(2))
    assert one == two
    assert one.seed == 4


def test_layers_may_be_left_out_and_samples_limited(model: Path, data: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    found = measure_sensitivity(
        model,
        data,
        levels=["bits=4"],
        samples=10,
        keep=["first"],
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert [layer.name for layer in found.layers] == ["twice", "head"]
    assert found.samples == 10
    assert seen[-1] == ("head", 2, 2)


def test_what_cannot_be_measured_is_refused(model: Path) -> None:
    one = {"x": np.zeros((1, 8), np.float32)}
    with pytest.raises(UsageError, match="one sample"):
        measure_sensitivity(model, one)
    with pytest.raises(UsageError, match="is no level"):
        measure_sensitivity(model, one, levels=["bytes=8"])
    with pytest.raises(UsageError, match=r"the model has no node 'heat'\. Did you mean head\?"):
        measure_sensitivity(model, {"x": np.zeros((4, 8), np.float32)}, keep=["heat"])


def test_the_verb_prints_a_table_and_writes_figures_and_plots(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot, page = tmp_path / "out.json", tmp_path / "out.svg", tmp_path / "out.html"
    call = ["sensitivity", str(model), "--data", str(data), "--levels", "bits=4", "sparsity=0.5", "-o", str(out)]
    assert main([*call, "--plot", str(plot)]) == 0
    assert "twice" in capsys.readouterr().out
    found = Sensitivity.model_validate_json(out.read_text("utf-8"))
    assert found.levels == ("bits=4", "sparsity=0.5")
    assert plot.read_text("utf-8").startswith("<svg")
    assert main(call) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*call, "--force", "--plot", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1
    assert page.read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("extra", "status", "message"),
    [
        (["--plot", "out.pdf"], 2, "is no plot"),
        (["--levels", "bits=twelve"], 2, "is no level"),
        (["-o", "missing/out.json"], 2, "no folder"),
        (["-o", "."], 2, "is a folder"),
    ],
)
def test_the_verb_refuses_before_it_works(
    model: Path,
    data: Path,
    extra: list[str],
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sensitivity", str(model), "--data", str(data), *extra]) == status
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_cnn_is_most_sensitive_in_its_first_layer() -> None:
    found = measure_sensitivity(demo.CNN, demo.CALIBRATION, levels=["bits=2"])
    damages = [layer.levels[0].damage for layer in found.layers]
    assert damages[0] == max(damages)
    assert len(damages) == 7
