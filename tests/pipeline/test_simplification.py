"""graphopt.simplify: read, rewrite, write, without running the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest

import graphopt
from graphopt.errors import OutputExistsError, UsageError
from graphopt.verify.check import check
from pass_oracle import parse

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 4] x) => (float[n, 4] y) <float[4] w = {1, 2, 3, 4}> {
    one = Constant<value = float[1] {1.0}>()
    a = Identity(x) b = Mul(a, one) c = Relu(b) d = Relu(c) y = Add(d, w) }"""


def saved(folder: Path) -> Path:
    path = folder / "model.onnx"
    parse(TEXT).save(path)
    return path


def test_a_file_becomes_a_smaller_equal_file_and_stays(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    found = graphopt.simplify(path, tmp_path / "small.onnx")
    assert [node.op for node in found.model.graph.nodes] == ["Relu", "Add"]
    assert path.read_bytes() == before
    assert check(path, tmp_path / "small.onnx", contract="exact").passed
    onnx.checker.check_model(str(tmp_path / "small.onnx"), full_check=True)


def test_a_second_run_changes_nothing_and_two_runs_agree(tmp_path: Path) -> None:
    path = saved(tmp_path)
    graphopt.simplify(path, tmp_path / "small.onnx")
    graphopt.simplify(path, tmp_path / "twin.onnx")
    again = graphopt.simplify(tmp_path / "small.onnx", tmp_path / "again.onnx")
    assert again.outcome.patches == 0
    contents = {(tmp_path / f"{name}.onnx").read_bytes() for name in ("small", "twin", "again")}
    assert len(contents) == 1


def test_a_second_run_at_the_same_precision_changes_nothing() -> None:
    """Sums of the same that differed in a Cast become equal nodes behind the conversion, and are merged at once."""
    text = """<ir_version: 9, opset_import: ["" : 17]>
    g (float[n, 4] x) => (float[n, 4] y) <float[4] w = {1, 2, 3, 4}> {
        h = Cast<to = 10>(x) f = Cast<to = 1>(h) a = Mul(f, w) b = Mul(x, w) c = Tanh(a) d = Tanh(b) y = Add(c, d) }"""
    once = graphopt.simplify(parse(text), precision="float16").model.to_bytes()
    assert graphopt.simplify(once, precision="float16").model.to_bytes() == once


def test_messages_bytes_and_models_are_taken_and_left_alone() -> None:
    model = parse(TEXT)
    data = model.to_bytes()
    results = {graphopt.simplify(s).model.to_bytes() for s in (model, data, onnx.load_from_string(data))}
    assert len(results) == 1
    assert model.to_bytes() == data


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "small.onnx").write_text("mine")
    with pytest.raises(OutputExistsError):
        graphopt.simplify(path, tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").read_text() == "mine"
    graphopt.simplify(path, tmp_path / "small.onnx", force=True)
    onnx.checker.check_model(str(tmp_path / "small.onnx"))


def test_passes_are_skipped_by_name() -> None:
    ops = [node.op for node in graphopt.simplify(parse(TEXT), skip=["eliminate-identity"]).model.graph.nodes]
    assert "Identity" in ops
    with pytest.raises(UsageError, match="runs no pass 'eliminate-identities'"):
        graphopt.simplify(parse(TEXT), skip=["eliminate-identities"])


def test_a_newer_opset_is_reached_first() -> None:
    found = graphopt.simplify(parse(TEXT), opset=20)
    assert found.model.opset == 20
    assert found.outcome.records[0].name == "raise-opset"


def test_attention_raises_the_opset_it_needs() -> None:
    found = graphopt.simplify(parse(TEXT), attention=True)
    assert found.model.opset == 23
    assert "fuse-attention" in [record.name for record in found.outcome.records]


def test_functions_are_inlined_on_request() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[n] x) => (float[n] y) { a = own.twice(x) y = Neg(a) }
    <domain: "own", opset_import: ["" : 17]> twice (p) => (q) { q = Add(p, p) }"""
    assert [node.op for node in graphopt.simplify(parse(text)).model.graph.nodes] == ["twice", "Neg"]
    inlined = graphopt.simplify(parse(text), inline=True).model
    assert [node.op for node in inlined.graph.nodes] == ["Add", "Neg"]
    assert not inlined.functions
