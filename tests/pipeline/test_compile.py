"""The main job from a file to a bundle, on the embedded models."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

import graphopt
from graphopt import demo
from graphopt.analysis.cost_table import CostTable, KernelGrid
from graphopt.errors import BudgetError, DataError, OutputExistsError, RecipeError, UsageError
from graphopt.pipeline import CHOSEN_ON_THE_SAME, group_lossy
from graphopt.rewrite import Contract, create, load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


def calibration() -> dict[str, np.ndarray[Any, Any]]:
    with np.load(demo.CALIBRATION) as feeds:
        return {name: feeds[name][:80] for name in feeds.files}


def accuracy(session: onnxruntime.InferenceSession) -> float:
    with np.load(demo.TEST) as test:
        logits = session.run(None, {session.get_inputs()[0].name: test["image"]})[0]
        return float((logits.argmax(1) == test["label"]).mean())


def test_default_recipe_keeps_every_output_and_names_the_interface_alike() -> None:
    result = graphopt.compile(demo.CNN)
    before, after = graphopt.load(demo.CNN), result.model
    assert [value.name for value in after.graph.inputs] == [value.name for value in before.graph.inputs]
    assert [value.name for value in after.graph.outputs] == [value.name for value in before.graph.outputs]
    assert "BatchNormalization" not in result.report.model.after.operators
    assert graphopt.check(demo.CNN, after).passed
    assert result.met
    assert result.fallback is None


def test_int8_bundle_loads_in_a_stock_runtime_and_keeps_the_accuracy(tmp_path: Path) -> None:
    result = graphopt.compile(demo.CNN, recipe="int8", data=calibration())
    result.save(tmp_path / "bundle")
    files = {path.name for path in (tmp_path / "bundle").iterdir()}
    texts = {"recipe.yaml", "report.json", "report.html", "manifest.json"}
    assert files == {"model.onnx", "load.py", "load.cpp", "load.cs", "ort_host.h"} | texts
    stock = onnxruntime.InferenceSession(tmp_path / "bundle" / "model.onnx")
    assert accuracy(stock) > accuracy(onnxruntime.InferenceSession(demo.CNN)) - 0.01
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert report["model"]["after"]["bytes"] < 0.4 * report["model"]["before"]["bytes"]
    assert report["quality"]["held_back"]


def test_manifest_has_the_hash_and_size_of_every_file(tmp_path: Path) -> None:
    graphopt.compile(demo.CNN).save(tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (tmp_path / "bundle" / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert set(manifest["files"]) == {path.name for path in (tmp_path / "bundle").iterdir()} - {"manifest.json"}
    assert manifest["minimum_onnxruntime"] == "1.17"


def test_sparse_bundle_has_kernels_sources_and_a_fallback_that_agrees(tmp_path: Path) -> None:
    result = graphopt.compile(demo.TRANSFORMER, recipe="sparse", data=calibration())
    assert "ai.graphopt::SparseMatMul" in result.report.model.after.operators
    assert any("decided by the cost table of graphopt, measured on" in note for note in result.report.notes)
    result.save(tmp_path / "bundle")
    folder = tmp_path / "bundle"
    assert (folder / "src" / "CMakeLists.txt").is_file()
    fallback = onnxruntime.InferenceSession(folder / "fallback.onnx")
    compiled = graphopt.session(folder)
    with np.load(demo.TEST) as test:
        feed = {"image": test["image"][:50]}
        np.testing.assert_allclose(compiled.run(None, feed)[0], fallback.run(None, feed)[0], rtol=1e-3, atol=1e-4)
    assert (folder / "model.onnx").stat().st_size < demo.TRANSFORMER.stat().st_size


def test_lowering_says_what_runs_on_kernels_and_why_and_by_which_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    fast = KernelGrid((1,), (1,), (0.2, 1.0), {"avx2": np.array([[[3.0, 3.0]]])})
    path.write_text(CostTable({"sparse-matmul": fast}, 0.1, "a test").to_json(), encoding="utf-8")
    options = {f"{name}.cost_table": str(path) for name in ("lower-sparse-matmul", "lower-sparse-conv")}
    report = graphopt.compile(demo.TRANSFORMER, recipe="sparse", options=options).report
    assert [note for note in report.notes if "cost table" in note] == [
        f"What runs on kernels was decided by the cost table {path}, measured on a test."
    ]
    lowered = [layer for layer in report.layers if "SparseMatMul" in layer.what]
    assert lowered
    assert all("3.0" in layer.reason and layer.kept for layer in lowered)
    skips = [skip for entry in report.passes if entry.name.startswith("lower-") for skip in entry.skips]
    assert all(skip.reason for skip in skips)


def test_without_lowering_no_cost_table_is_mentioned() -> None:
    notes = graphopt.compile(demo.CNN, recipe="default").report.notes
    assert not any("cost table" in note for note in notes)


@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        ("sparse", ["lower-sparse-conv", "lower-sparse-matmul"]),
        ("int4", ["lower-low-bit-matmul"]),
        ("smallest", ["lower-sparse-int8-conv", "lower-sparse-int8-matmul"]),
    ],
)
def test_presets_that_compress_lower_where_it_is_faster(preset: str, wanted: list[str]) -> None:
    found = [step.name for step in load_recipe(preset).create() if step.lowers]
    assert [name for name in found if name in wanted] == wanted


def test_written_recipe_gives_the_same_model_again(tmp_path: Path) -> None:
    result = graphopt.compile(demo.CNN, recipe="int8", data=calibration())
    (tmp_path / "recipe.yaml").write_text(result.recipe.to_yaml())
    again = graphopt.compile(demo.CNN, recipe=tmp_path / "recipe.yaml", data=calibration())
    assert again.model.to_bytes() == result.model.to_bytes()


def test_two_processes_write_the_same_model(tmp_path: Path) -> None:
    code = (
        "import sys, graphopt; from graphopt import demo; "
        "graphopt.compile(demo.CNN, recipe='int8', data=sys.argv[1]).save_model(sys.argv[2])"
    )
    np.savez(tmp_path / "feeds.npz", **calibration())  # type: ignore[arg-type]
    written = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.onnx"
        command = [sys.executable, "-P", "-c", code, str(tmp_path / "feeds.npz"), str(out)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": seed, "PATH": ""})
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_a_strict_budget_reverts_layers_and_says_which() -> None:
    options: dict[str, Any] = {"recipe": "int8", "data": calibration(), "metric": worse_with_every_integer}
    full = graphopt.compile(demo.CNN, **options, max_drop=1e9).report.quality
    assert full is not None
    assert full.drop is not None
    result = graphopt.compile(demo.CNN, **options, max_drop=full.drop / 2)
    reverted = [layer for layer in result.report.layers if layer.reverted]
    assert result.met
    assert reverted
    assert all("alone it loses" in layer.reason or "without its neighbours" in layer.reason for layer in reverted)
    assert any(layer.kept for layer in result.report.layers)
    assert any("left" in note and "layers as they were" in note for note in result.report.notes)
    assert CHOSEN_ON_THE_SAME in result.report.notes


def worse_with_every_integer(run: Callable[[Any], Any], feeds: Iterable[Any]) -> float:
    """A metric that only the guard's own search can satisfy: minus the error of the outputs in percent."""
    reference = onnxruntime.InferenceSession(demo.CNN)
    error = [np.abs(run(feed)["logits"] - reference.run(None, dict(feed))[0]).mean() for feed in feeds]
    return -100.0 * float(np.mean(error))


def test_an_unmet_budget_writes_nothing_unless_kept(tmp_path: Path) -> None:
    recipe = {"passes": ["fuse-batch-norm"]}
    result = graphopt.compile(demo.CNN, recipe=recipe, data=calibration(), metric=never_the_same(), max_drop=0.5)
    assert not result.met
    with pytest.raises(BudgetError, match="--keep") as caught:
        result.save(tmp_path / "bundle")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "bundle").exists()
    result.save(tmp_path / "bundle", keep=True)
    assert (tmp_path / "bundle" / "model.onnx").is_file()


def never_the_same() -> Callable[[Any, Any], float]:
    calls = iter(range(10, 0, -1))
    return lambda run, feeds: float(next(calls))


def test_no_data_is_judged_on_random_inputs_and_says_so() -> None:
    report = graphopt.compile(demo.CNN, recipe="int8").report
    assert report.quality is not None
    assert not report.quality.held_back
    assert any("No data was given" in note for note in report.notes)


def test_a_preset_without_data_runs_its_gentler_variant_and_says_so() -> None:
    result = graphopt.compile(demo.TRANSFORMER, recipe="sparse")
    pruned = next(entry for entry in result.report.passes if entry.name == "prune-magnitude")
    assert pruned.options["sparsity"] == 0.6
    assert any("prune-magnitude.sparsity is 0.6" in note for note in result.report.notes)
    assert any("prune-magnitude runs in place of prune-second-order" in note for note in result.report.notes)
    asked = graphopt.compile(demo.TRANSFORMER, recipe="sparse", options={"prune-second-order.sparsity": 0.7})
    assert next(e for e in asked.report.passes if e.name == "prune-magnitude").options["sparsity"] == 0.7
    assert not any("gentler" in note for note in asked.report.notes)
    judged = graphopt.compile(demo.TRANSFORMER, recipe="sparse", metric=demo.accuracy)
    assert next(e for e in judged.report.passes if e.name == "prune-magnitude").options["sparsity"] == 0.8


def test_options_change_the_recipe_and_skip_leaves_passes_out() -> None:
    changed = graphopt.compile(
        demo.TRANSFORMER,
        recipe="sparse",
        options={"prune-second-order.sparsity": 0.25},
        skip=["lower-sparse-matmul"],
        data=calibration(),
    )
    pruned = next(entry for entry in changed.report.passes if entry.name == "prune-second-order")
    assert pruned.options["sparsity"] == 0.25
    assert "lower-sparse-matmul" not in [entry.name for entry in changed.report.passes]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"recipe": "int9"}, RecipeError, "int8"),
        ({"skip": ["fuse-bn"]}, UsageError, "fuse-bn"),
        ({"options": {"fold-constants.limt": 3}}, RecipeError, "limt"),
        ({"max_drop": -1.0}, UsageError, "negative"),
        ({"metric": "accuracy"}, UsageError, "module:function"),
        ({"metric": "no_such_module:accuracy"}, UsageError, "cannot be imported"),
        ({"metric": "json:accuracy"}, UsageError, "accuracy"),
        ({"metric": "json:"}, UsageError, "names no function"),
        ({"data": {"picture": np.zeros((4, 1, 8, 8), np.float32)}}, DataError, "picture"),
        ({"target": "abacus", "recipe": "int8"}, UsageError, "ort-cpu"),
    ],
)
def test_what_cannot_be_used_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        graphopt.compile(demo.CNN, **({"data": calibration()} | arguments))


@pytest.mark.parametrize("body", ["def loss(run, feeds:", "1 / 0", "raise SystemError('no')"])
def test_a_metric_whose_module_fails_is_a_usage_error(tmp_path: Path, body: str) -> None:
    (tmp_path / "failing_metric.py").write_text(body)
    with pytest.raises(UsageError, match="cannot be imported"):
        graphopt.compile(demo.CNN, metric=f"{tmp_path / 'failing_metric.py'}:loss", data=calibration())


def test_a_metric_in_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "constant_metric.py").write_text("def one(run, feeds):\n    return 1.0\n")
    result = graphopt.compile(demo.CNN, metric=f"{tmp_path / 'constant_metric.py'}:one", data=calibration())
    assert result.report.quality is not None
    assert result.report.quality.after == 1.0


def test_stop_after_runs_that_many_patches() -> None:
    total = sum(entry.patches for entry in graphopt.compile(demo.CNN).report.passes)
    for count in (0, 1, total):
        report = graphopt.compile(demo.CNN, stop_after=count).report
        assert sum(entry.patches for entry in report.passes) == count


def test_the_loaded_model_is_not_changed() -> None:
    model = graphopt.load(demo.CNN)
    before = model.to_bytes()
    graphopt.compile(model, recipe="int8", data=calibration())
    assert model.to_bytes() == before


def test_existing_file_needs_force(tmp_path: Path) -> None:
    result = graphopt.compile(demo.CNN)
    result.save_model(tmp_path / "m.onnx")
    with pytest.raises(OutputExistsError):
        result.save_model(tmp_path / "m.onnx")
    result.save_model(tmp_path / "m.onnx", force=True)


def test_repairs_join_the_lossy_pass_before_them() -> None:
    names = ("fold-constants", "prune-magnitude", "refit-weights", "insert-qdq", "eliminate-dead")
    groups = group_lossy([create(name) for name in names])
    assert [[step.name for step in group] for group in groups] == [
        ["fold-constants"],
        ["prune-magnitude", "refit-weights"],
        ["insert-qdq"],
        ["eliminate-dead"],
    ]
    assert groups[1][0].contract is Contract.LOSSY


def test_few_samples_leave_a_model_alone_but_never_fail_a_preset() -> None:
    with np.load(demo.CALIBRATION) as feeds:
        few = {name: feeds[name][:12] for name in feeds.files}
    result = graphopt.compile(demo.CNN, recipe="sparse", data=few)
    assert result.met
    assert result.report.quality is not None
    assert result.report.quality.drop == 0.0
