"""graphopt diff, and graphopt simplify with --dry-run, --extract, --input-shape, --keep, --opset."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx
import pytest

from graphopt.cli import main
from pass_oracle import parse

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 4] x) => (float[n, 4] y) <float[4] w = {1, 2, 3, 4}> {
    a = Identity(x) b = Relu(a) c = Relu(b) y = Add(c, w) }"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.onnx"
    parse(TEXT).save(path)
    return str(path)


def test_a_dry_run_says_what_would_change_and_writes_nothing(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simplify", model, "--dry-run", "-o", str(tmp_path / "small.onnx")]) == 0
    shown = capsys.readouterr()
    assert "eliminate-identity" in shown.out
    assert "Identity gives out 'x' unchanged" in shown.out
    assert "nothing was written" in shown.err
    assert not (tmp_path / "small.onnx").exists()


def test_a_dry_run_as_json_lists_every_patch_with_its_reason(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simplify", model, "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["nodes_before"], document["nodes_after"]) == (4, 2)
    reasons = [patch["reason"] for one in document["passes"] for patch in one["patches"]]
    assert any("Identity" in reason for reason in reasons)


def test_an_output_is_asked_for_without_a_dry_run(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simplify", model]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_parts_shapes_kept_tensors_and_opsets_reach_the_file(model: str, tmp_path: Path) -> None:
    out = tmp_path / "part.onnx"
    arguments = ["--extract", ":c", "--input-shape", "x:1,4", "--keep", "b", "--opset", "18", "--no-run", "-q"]
    assert main(["simplify", model, "-o", str(out), *arguments]) == 0
    proto = onnx.load(out)
    onnx.checker.check_model(proto, full_check=True)
    assert [(dim.dim_value) for dim in proto.graph.input[0].type.tensor_type.shape.dim] == [1, 4]
    assert [value.name for value in proto.graph.output] == ["c"]
    assert "b" in [name for node in proto.graph.node for name in node.output]
    assert proto.opset_import[0].version == 18


@pytest.mark.parametrize("shape", ["x", ":1,4", "x:1,-4", "x:1,,4"])
def test_a_shape_that_is_none_is_refused(shape: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simplify", model, "--dry-run", "--input-shape", shape]) == 2
    assert shape in capsys.readouterr().err


def test_diff_shows_counts_and_what_is_gone(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = str(tmp_path / "small.onnx")
    assert main(["simplify", model, "-o", small, "--no-run", "-q"]) == 0
    capsys.readouterr()
    assert main(["diff", model, small]) == 0
    shown = capsys.readouterr().out
    assert "Identity" in shown
    assert "all nodes" in shown
    assert main(["diff", model, small, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["operators"]["Relu"] == [2, 1]
    assert not document["equal"]


def test_diff_of_a_model_with_itself_is_empty(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", model, model]) == 0
    assert "nothing differs" in capsys.readouterr().out
