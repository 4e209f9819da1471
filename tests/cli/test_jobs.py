"""compile, simplify, prune and quantize, end to end."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


def outputs(path: Path, feeds: Path) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with np.load(feeds) as data:
        result: np.ndarray[Any, Any] = session.run(None, dict(data))[0]
    return result


def left_behind(folder: Path) -> set[str]:
    """Return what a command left beside the inputs, hidden files included."""
    return {path.name for path in folder.iterdir()} - {"small.onnx", "feeds.npz"}


def test_compile_writes_a_bundle_and_prints_what_changed(
    graphopt_here: Run, model: Path, feeds: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = graphopt_here("compile", model, "-o", out)
    assert ran.status == 0
    assert {path.name for path in out.iterdir()} >= {
        "model.onnx",
        "recipe.yaml",
        "report.json",
        "report.html",
        "manifest.json",
    }
    for expected in ("Size", "Latency", "Nodes", "eliminate-identity"):
        assert expected in ran.out
    assert f"wrote {out}; the report is {out / 'report.html'}" in ran.err
    np.testing.assert_allclose(outputs(out / "model.onnx", feeds), outputs(model, feeds), rtol=1e-5, atol=1e-5)
    assert left_behind(tmp_path) == {"out"}


def test_json_is_the_report_of_the_bundle_and_alone_on_stdout(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    ran = graphopt_here("compile", model, "-o", tmp_path / "out", "--json")
    assert ran.status == 0
    report = Report.model_validate_json(ran.out)
    assert ran.out == (tmp_path / "out" / "report.json").read_text("utf-8")
    assert report.model.before.nodes == 5
    assert report.model.after.nodes < 5
    assert "Identity" not in report.model.after.operators
    assert "note: " in ran.err


def test_quiet_leaves_stderr_empty(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    ran = graphopt_here("compile", model, "-o", tmp_path / "out", "--quiet")
    assert ran.status == 0
    assert ran.err == ""


def test_compile_to_int8_on_data(graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path) -> None:
    model, feeds = wide
    ran = graphopt_here(
        "compile", model, "-o", tmp_path / "out", "--recipe", "int8", "--data", feeds, "--json", "--max-drop", 50
    )
    assert ran.status == 0
    report = Report.model_validate_json(ran.out)
    assert report.quality is not None
    assert report.quality.held_back
    assert report.quality.samples == 40  # half of 80: a fifth would be fewer than 64
    assert report.quality.budget == 50
    assert report.recipe == "int8"
    types = {each.data_type for each in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in types


def test_budget_that_is_not_met_is_status_4_and_writes_nothing(
    graphopt_here: Run, model: Path, feeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judges.py").write_text(
        "calls = []\ndef worse(run, feeds):\n    calls.append(1)\n    return -float(len(calls))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = (
        "compile",
        model,
        "-o",
        tmp_path / "out",
        "--data",
        feeds,
        "--metric",
        "judges:worse",
        "--max-drop",
        0.5,
    )
    ran = graphopt_here(*arguments)
    assert ran.status == 4
    assert not (tmp_path / "out").exists()
    assert "GO-Q001" in ran.err
    assert "exceeds the budget of 0.5 metric units" in ran.err
    assert "--keep" in ran.err
    assert "Size" in ran.out

    kept = graphopt_here(*arguments, "--keep", "--json")
    assert kept.status == 4
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert json.loads(kept.out)["quality"]["met"] is False


@pytest.mark.parametrize(
    ("verb", "options"),
    [("simplify", ()), ("prune", ("--sparsity", "0.5", "--max-drop", "100")), ("quantize", ("--max-drop", "100"))],
)
def test_verbs_that_write_one_file(
    graphopt_here: Run, model: Path, feeds: Path, tmp_path: Path, verb: str, options: tuple[str, ...]
) -> None:
    out = tmp_path / "out.onnx"
    ran = graphopt_here(verb, model, "-o", out, "--data", feeds, *options)
    assert ran.status == 0
    onnx.checker.check_model(onnx.load(out))
    assert outputs(out, feeds).shape == (80, 4)
    assert ran.err.endswith(f"wrote {out}\n")
    assert left_behind(tmp_path) == {"out.onnx"}


def test_simplify_keeps_to_standard_operators(graphopt_here: Run, model: Path, feeds: Path, tmp_path: Path) -> None:
    assert graphopt_here("simplify", model, "-o", tmp_path / "out.onnx").status == 0
    simple = onnx.load(tmp_path / "out.onnx")
    assert {node.domain for node in simple.graph.node} == {""}
    assert len(simple.graph.node) < 5
    np.testing.assert_allclose(outputs(tmp_path / "out.onnx", feeds), outputs(model, feeds), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "expected"), [("magnitude", 96), ("lamp", 96), ("erk", 96)])
def test_prune_sets_the_asked_share_to_zero(
    graphopt_here: Run, model: Path, tmp_path: Path, method: str, expected: int
) -> None:
    ran = graphopt_here(
        "prune", model, "-o", tmp_path / "out.onnx", "--sparsity", 0.5, "--method", method, "--max-drop", 1000
    )
    assert ran.status == 0
    weights = [onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "out.onnx").graph.initializer]
    zeros = sum(int((weight == 0).sum()) for weight in weights if weight.ndim == 2)
    assert zeros == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--sparsity", 0.5), "prune-second-order"),
        (("--sparsity", 0.5, "--method", "sparsegpt", "--allocation", "erk"), "prune-second-order"),
        (("--pattern", "2:4", "--method", "wanda"), "prune-wanda"),
        (("--pattern", "1x4", "--sparsity", 0.5, "--method", "lamp"), "prune-magnitude"),
    ],
)
def test_prune_by_what_layers_read(
    graphopt_here: Run, model: Path, feeds: Path, tmp_path: Path, options: tuple[object, ...], expected: str
) -> None:
    out = tmp_path / "out.onnx"
    ran = graphopt_here("prune", model, "-o", out, "--data", feeds, "--max-drop", 1000, "--json", *options)
    assert ran.status == 0
    assert expected in {each["name"] for each in json.loads(ran.out)["passes"]}
    weights = [onnx.numpy_helper.to_array(each) for each in onnx.load(out).graph.initializer]
    matrices = [weight for weight in weights if weight.ndim == 2]
    assert sum(int((weight == 0).sum()) for weight in matrices) == sum(weight.size for weight in matrices) // 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("prune", "--sparsity", "0.5", "--method", "second-order"),
            "--method: method second-order looks at what layers read. Give --data FEEDS",
        ),
        (
            ("prune", "--sparsity", "0.5", "--method", "lmp"),
            "wanda, magnitude, lamp, erk. Did you mean lamp?",
        ),
        (("prune", "--sparsity", "0.5", "--pattern", "4:2"), "--pattern: '4:2' is unknown"),
        (("prune", "--sparsity", "0.5", "--pattern", "3x3"), "--pattern: '3x3' is unknown"),
        (("prune", "--pattern", "4x1"), "--sparsity: pattern 4x1 has no share of its own. Give --sparsity S"),
        (("prune", "--sparsity", "0.5", "--allocation", "erk"), "--allocation: method lamp shares zeros out by itself"),
        (("prune", "--sparsity", "0.5", "--pattern", "channels", "--steps", "2"), "--steps: channels go"),
        (("quantize", "--weights", "int16"), "'int16' is not built into this version yet. This version has int8, int6"),
        (("quantize", "--weights", "int4", "--bits", "3"), "--bits B is --weights intB"),
        (("quantize", "--weights", "kmeans17"), "--weights: 'kmeans17' is unknown"),
        (("quantize", "--weights", "int7"), "--weights: 'int7' is unknown"),
        (("quantize", "--activations", "fp8"), "computes nothing on activations of fp8"),
        (("compile", "--recipe", "int9"), "int8"),
        (("compile", "--target", "ort-gpu"), "ort-cpu"),
        (("compile", "--set", "insert-qdq.percentile=99"), "insert-qdq"),
        (("compile", "--set", "fold-constants.grwth=1"), "fold-constants"),
        (("compile", "--skip", "fold-constant"), "fold-constant"),
        (("compile", "--metric", "nowhere"), "module:function"),
        (("compile", "--metric", "no_such_module:f"), "no_such_module"),
        (("compile", "--data", "missing.npz"), "missing.npz"),
    ],
)
def test_values_that_cannot_be_used_are_status_2(
    graphopt_here: Run, model: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    verb, *options = arguments
    ran = graphopt_here(verb, model, "-o", tmp_path / "out", *options)
    assert ran.status == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert left_behind(tmp_path) == set()


def test_wrong_feeds_are_status_2(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "feeds.npz"
    np.savez(wrong, z=np.zeros((20, 8), np.float32))
    ran = graphopt_here("compile", model, "-o", tmp_path / "out", "--data", wrong)
    assert ran.status == 2
    assert "GO-D" in ran.err
    assert left_behind(tmp_path) == set()


@pytest.mark.parametrize("contents", [b"", b"not a model", bytes(range(256)) * 8])
def test_file_that_is_no_model_is_status_3(graphopt_here: Run, tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(contents)
    ran = graphopt_here("compile", path, "-o", tmp_path / "out")
    assert ran.status == 3
    assert ran.err.startswith("error: GO-")
    assert ran.out == ""
    assert left_behind(tmp_path) == set()


def test_missing_file_is_an_error_that_names_it(graphopt_here: Run, tmp_path: Path) -> None:
    ran = graphopt_here("compile", tmp_path / "absent.onnx", "-o", tmp_path / "out")
    assert ran.status == 3
    assert "absent.onnx" in ran.err


@pytest.mark.parametrize("verb", ["compile", "simplify"])
def test_existing_output_is_kept_without_force(graphopt_here: Run, model: Path, tmp_path: Path, verb: str) -> None:
    out = tmp_path / "out"
    assert graphopt_here(verb, model, "-o", out).status == 0
    again = graphopt_here(verb, model, "-o", out)
    assert again.status == 2
    assert "GO-U002" in again.err
    assert "--force" in again.err
    assert graphopt_here(verb, model, "-o", out, "--force").status == 0
    assert left_behind(tmp_path) == {"out"}


def test_force_never_replaces_a_folder_that_is_no_bundle(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    ran = graphopt_here("compile", model, "-o", out, "--force")
    assert ran.status == 2
    assert (out / "thesis.txt").read_text() == "years of work"


def test_model_is_not_overwritten_by_its_own_result(graphopt_here: Run, model: Path) -> None:
    before = model.read_bytes()
    assert graphopt_here("simplify", model, "-o", model).status == 2
    assert model.read_bytes() == before


def test_output_below_a_file_is_refused_before_the_work(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    ran = graphopt_here("simplify", model, "-o", model / "out.onnx")
    assert ran.status == 2
    assert "GO-W001" in ran.err
    assert left_behind(tmp_path) == set()


def test_file_in_a_folder_that_does_not_exist_is_refused_before_the_work(
    graphopt_here: Run, model: Path, tmp_path: Path
) -> None:
    ran = graphopt_here("simplify", model, "-o", tmp_path / "absent" / "out.onnx")
    assert ran.status == 2
    assert f"there is no folder '{tmp_path / 'absent'}'" in ran.err
    assert ran.out == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of POSIX")
def test_device_or_pipe_is_never_replaced(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    ran = graphopt_here("simplify", model, "-o", tmp_path / "pipe", "--force")
    assert ran.status == 2
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_is_refused_before_the_work(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    ran = graphopt_here("compile", model, "-o", closed / "out")
    assert ran.status == 2
    assert "cannot be written" in ran.err


def test_folder_that_refuses_new_files_is_refused_before_the_work(
    graphopt_here: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def refuse(*_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    ran = graphopt_here("compile", model, "-o", tmp_path / "out")
    assert ran.status == 2
    assert "GO-W001" in ran.err
    assert "Permission denied" in ran.err


def test_options_of_passes_are_set_and_passes_skipped(
    graphopt_here: Run, model: Path, feeds: Path, tmp_path: Path
) -> None:
    ran = graphopt_here(
        *("compile", model, "-o", tmp_path / "out", "--recipe", "sparse", "--data", feeds, "--json", "--max-drop", 100),
        *(
            "--set",
            "prune-second-order.sparsity=0.25",
            "--set",
            "prune-second-order.method=sparsegpt",
            "--skip",
            "lower-sparse-matmul",
        ),
    )
    assert ran.status == 0
    passes = {entry.name: entry for entry in Report.model_validate_json(ran.out).passes}
    assert passes["prune-second-order"].options["sparsity"] == 0.25
    assert passes["prune-second-order"].options["method"] == "sparsegpt"
    assert "lower-sparse-matmul" not in passes


def test_stop_after_counts_patches(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    ran = graphopt_here("compile", model, "-o", tmp_path / "out", "--stop-after", 0, "--json")
    assert ran.status == 0
    report = Report.model_validate_json(ran.out)
    assert sum(entry.patches for entry in report.passes) == 0
    assert report.model.after.nodes == 5


def test_same_input_and_options_give_the_same_model(
    graphopt_here: Run, model: Path, feeds: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        ran = graphopt_here(
            "compile", model, "-o", tmp_path / name, "--recipe", "int8", "--data", feeds, "--max-drop", 100
        )
        assert ran.status == 0
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()


def test_full_verification_runs(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    assert graphopt_here("compile", model, "-o", tmp_path / "out", "--verify", "full").status == 0
