"""The verbs that look at models, passes, recipes and the installation."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import yaml

from graphopt import demo
from graphopt.errors import KernelError
from graphopt.report import health
from graphopt.rewrite.recipe import preset_names
from graphopt.rewrite.registry import pass_names

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., Any]


@pytest.fixture
def other(model: Path, tmp_path: Path) -> Path:
    """Return the small model with one weight changed a little."""
    changed = onnx.load(model)
    weight = changed.graph.initializer[0]
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0, 0] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    path = tmp_path / "other.onnx"
    onnx.save(changed, path)
    return path


# ------------------------------------------------------------------------------------------------------------- check


def test_check_of_a_model_with_itself_is_exact(graphopt_here: Run, model: Path) -> None:
    ran = graphopt_here("check", model, model, "--contract", "exact", "--json")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert found["passed"] is True
    assert found["outputs"][0]["name"] == "y"
    assert found["outputs"][0]["max_abs"] == 0


def test_check_after_simplify_holds_the_rounding_bound(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    assert graphopt_here("simplify", model, "-o", tmp_path / "s.onnx").status == 0
    ran = graphopt_here("check", model, tmp_path / "s.onnx")
    assert ran.status == 0
    assert "PASSED: rounding on 16 random inputs" in ran.out


@pytest.mark.parametrize("contract", ["exact", "rounding"])
def test_check_that_fails_is_status_4_with_figures(
    graphopt_here: Run, model: Path, other: Path, feeds: Path, contract: str
) -> None:
    ran = graphopt_here("check", model, other, "--contract", contract, "--data", feeds)
    assert ran.status == 4
    assert "differs" in ran.out
    assert f"FAILED: {contract} on 80 samples" in ran.out
    assert "GO-V002" in ran.err


def test_lossy_check_fails_only_beyond_the_allowed_loss(
    graphopt_here: Run, model: Path, other: Path, feeds: Path
) -> None:
    arguments = ("check", model, other, "--contract", "lossy", "--data", feeds)
    assert graphopt_here(*arguments).status == 0
    assert graphopt_here(*arguments, "--max-drop", 100).status == 0


def test_check_of_models_with_other_outputs_says_so(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    renamed = onnx.load(model)
    renamed.graph.node[-1].output[0] = renamed.graph.output[0].name = "z"
    onnx.save(renamed, tmp_path / "renamed.onnx")
    ran = graphopt_here("check", model, tmp_path / "renamed.onnx")
    assert ran.status == 4
    assert "outputs are y: tensor(float) and z: tensor(float)" in ran.err


# ----------------------------------------------------------------------------------------------------------- inspect


def test_inspect_lists_what_a_model_consists_of(graphopt_here: Run, model: Path) -> None:
    found = json.loads(graphopt_here("inspect", model, "--json").out)
    assert found["nodes"] == 5
    assert found["operators"] == {"MatMul": 2, "Add": 1, "Identity": 1, "Relu": 1}
    assert found["inputs"] == ["x: float32[N, 8]"]
    assert found["outputs"] == ["y: float32[N, 4]"]
    assert found["opsets"] == {"ai.onnx": 17}
    assert found["parameters"] == 8 * 16 + 16 + 16 * 4
    assert found["weight_bytes"] == 4 * found["parameters"]
    assert found["bytes"] == model.stat().st_size
    assert found["largest"][0] == {
        "name": "w1",
        "type": "float",
        "shape": [8, 16],
        "bytes": 512,
        "used_by": "MatMul matmul0",
    }
    assert found["custom_domains"] == []


def test_inspect_counts_what_a_run_costs_at_the_sizes_given(graphopt_here: Run, model: Path) -> None:
    one = json.loads(graphopt_here("inspect", model, "--json").out)["cost"]
    ten = json.loads(graphopt_here("inspect", model, "--size", "N=10", "--json").out)["cost"]
    assert one["flops"] == 2 * 8 * 16 + 16 + 16 + 2 * 16 * 4
    assert ten["flops"] == 10 * one["flops"]
    assert (one["sizes"], ten["sizes"]) == ({"N": 1}, {"N": 10})
    assert one["dispatches"] == 5
    assert "N 10" in graphopt_here("inspect", model, "--size", "N=10").out


@pytest.mark.parametrize(("value", "said"), [("N", "NAME=N"), ("M=2", "no input has a dimension 'M'")])
def test_inspect_refuses_sizes_of_no_dimension(graphopt_here: Run, model: Path, value: str, said: str) -> None:
    ran = graphopt_here("inspect", model, "--size", value)
    assert ran.status == 2
    assert said in ran.err


def test_inspect_counts_external_data_and_custom_domains(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    changed = onnx.load(model)
    changed.graph.node[2].domain = "com.example"
    changed.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    path = tmp_path / "external.onnx"
    onnx.save(changed, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    found = json.loads(graphopt_here("inspect", path, "--json").out)
    assert found["bytes"] == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert found["custom_domains"] == ["com.example"]
    assert found["operators"]["com.example::Relu"] == 1


def test_inspect_as_text_and_of_a_bundle(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    assert graphopt_here("compile", model, "-o", tmp_path / "out").status == 0
    ran = graphopt_here("inspect", tmp_path / "out")
    assert ran.status == 0
    for expected in ("x: float32[N, 8]", "largest weights", "8x16", "MatMul"):
        assert expected in ran.out


def test_inspect_of_something_else_is_status_3(graphopt_here: Run, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x08\x08\x12\x7f")
    ran = graphopt_here("inspect", tmp_path / "x.onnx")
    assert ran.status == 3
    assert ran.out == ""


# ----------------------------------------------------------------------------------------------------- bench, audit


def test_bench_times_models_in_turn(graphopt_here: Run, model: Path, other: Path, feeds: Path) -> None:
    ran = graphopt_here("bench", model, other, "--runs", 5, "--data", feeds, "--json")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert [each["model"] for each in found["models"]] == [str(model), str(other)]
    assert all(each["runs"] == 5 and each["median_ms"] > 0 for each in found["models"])


def test_bench_prints_the_ratio_to_the_first(graphopt_here: Run, model: Path, other: Path) -> None:
    ran = graphopt_here("bench", model, other, "--runs", 5)
    assert ran.status == 0
    assert "/other.onnx" in ran.out
    assert "± " in ran.out


def test_audit_counts_what_stayed_float(graphopt_here: Run, model: Path) -> None:
    ran = graphopt_here("audit", model, "--json")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert found["target"] == "ort-cpu"
    assert found["integer"] == {}
    assert sum(found["floating"].values()) >= 2
    assert "float" in graphopt_here("audit", model).out


# ----------------------------------------------------------------------------------------------------- passes, recipe


def test_passes_lists_every_pass(graphopt_here: Run) -> None:
    ran = graphopt_here("passes", "--json")
    catalogue = json.loads(ran.out)["passes"]
    assert [each["name"] for each in catalogue] == pass_names()
    assert all(each["summary"] and each["contract"] in {"exact", "rounding", "lossy"} for each in catalogue)
    text = graphopt_here("passes").out
    assert all(name in text for name in pass_names())


@pytest.mark.parametrize("name", ["insert-qdq", "fold-constants"])
def test_pass_is_explained_with_its_options(graphopt_here: Run, name: str) -> None:
    ran = graphopt_here("passes", name)
    assert ran.status == 0
    for section in ("Matches", "Produces", "Requires", "Preserves", "Source"):
        assert f"\n{section}\n" in ran.out
    found = json.loads(graphopt_here("passes", name, "--json").out)
    assert found["sections"].keys() == {"Matches", "Produces", "Requires", "Preserves", "Source"}
    assert all({"name", "type", "default"} <= option.keys() for option in found["options"])
    assert all(option["description"] for option in found["options"])


def test_unknown_pass_names_the_nearest(graphopt_here: Run) -> None:
    ran = graphopt_here("passes", "insert-qqd")
    assert ran.status == 2
    assert "insert-qdq" in ran.err


def test_recipe_list_shows_every_preset(graphopt_here: Run) -> None:
    found = json.loads(graphopt_here("recipe", "list", "--json").out)
    assert [each["name"] for each in found["recipes"]] == preset_names()
    assert all(name in graphopt_here("recipe", "list").out for name in preset_names())


def test_recipe_shown_is_complete_and_valid(graphopt_here: Run, tmp_path: Path) -> None:
    shown = graphopt_here("recipe", "show", "int8").out
    document = yaml.safe_load(shown)
    assert "imports" not in document
    path = tmp_path / "mine.yaml"
    path.write_text(shown)
    ran = graphopt_here("recipe", "validate", path)
    assert ran.status == 0
    assert ran.out == f"{path} is valid: {len(document['passes'])} passes\n"
    assert json.loads(graphopt_here("recipe", "validate", path, "--json").out)["valid"] is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("passes: [fold-constant]", "fold-constants"),
        ("pases: []", "passes"),
        ("passes: [{insert-qdq: {percntile: 3}}]", "percentile"),
        ("passes: [", "YAML"),
        ("imports: [defalt]", "default"),
    ],
)
def test_recipe_that_is_wrong_is_status_2_and_names_the_nearest(
    graphopt_here: Run, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    ran = graphopt_here("recipe", "validate", path)
    assert ran.status == 2
    assert said in ran.err
    assert ran.out == ""


def test_schemas_of_recipe_and_report_are_printed(graphopt_here: Run) -> None:
    recipe = json.loads(graphopt_here("recipe", "schema").out)
    report = json.loads(graphopt_here("recipe", "schema", "--report").out)
    assert recipe["title"] == "graphopt recipe"
    assert {"model", "quality", "latency_ms", "passes", "layers"} <= report["properties"].keys()


# ----------------------------------------------------------------------------------------------------- bisect, doctor


def test_bisect_of_a_sound_recipe_finds_nothing(graphopt_here: Run, model: Path) -> None:
    ran = graphopt_here("bisect", model, "--json")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert found["number"] is None
    assert found["patches"] >= 1


def test_bisect_names_the_first_patch_that_loses_too_much(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "harsh.yaml"
    recipe.write_text("passes: [eliminate-identity, {prune-magnitude: {sparsity: 0.95, scope: local}}]")
    ran = graphopt_here("bisect", model, "--recipe", recipe, "--min-sqnr", 30, "--json")
    assert ran.status == 4
    found = json.loads(ran.out)
    assert found["name"] == "prune-magnitude"
    assert found["number"] == 2
    assert "--stop-after 1" in ran.err
    assert (
        "is the first wrong one: prune-magnitude"
        in graphopt_here("bisect", model, "--recipe", recipe, "--min-sqnr", 30).out
    )


def test_bisect_says_how_to_make_the_last_right_model(
    graphopt_here: Run, model: Path, feeds: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "my recipe.yaml"
    recipe.write_text("passes: [eliminate-identity, {prune-magnitude: {sparsity: 0.1, scope: local}}]")
    options = ("--recipe", recipe, "--data", feeds, "--set", "prune-magnitude.sparsity=0.95")
    ran = graphopt_here("bisect", model, *options, "--min-sqnr", 30)
    assert ran.status == 4
    program, *words = shlex.split(ran.err.partition("last right model: ")[2])
    assert program == "graphopt"
    words[words.index("DIR")] = str(tmp_path / "out")
    assert graphopt_here(*words).status == 0
    assert graphopt_here("check", model, tmp_path / "out", "--data", feeds).status == 0


def test_bisect_without_data_searches_what_compile_runs_without_data(graphopt_here: Run, tmp_path: Path) -> None:
    options = (demo.CNN, "--recipe", "sparse", "--json")
    found = json.loads(graphopt_here("bisect", *options).out)
    report = json.loads(graphopt_here("compile", *options, "-o", tmp_path / "out", "--max-drop", 100).out)
    assert found["number"] is None
    assert found["patches"] == sum(each["patches"] for each in report["passes"])


def test_doctor_finds_this_installation_sound(graphopt_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPHOPT_ISA", raising=False)
    ran = graphopt_here("doctor", "--json")
    found = json.loads(ran.out)
    assert ran.status == 0
    assert found["sound"] is True
    subjects = {finding["subject"] for finding in found["findings"]}
    assert {
        "graphopt",
        "onnxruntime",
        "processor",
        "kernel library",
        "instruction set",
        "kernels in ONNX Runtime",
    } <= subjects
    assert "All is well." in graphopt_here("doctor").out


def test_doctor_says_what_to_do_about_a_missing_library(graphopt_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise KernelError("the library of custom-op kernels is missing", do="Run `make kernels` in a checkout.")

    monkeypatch.setattr("graphopt.runtime.library.kernel_library", missing)
    ran = graphopt_here("doctor")
    assert ran.status == 1
    assert "broken" in ran.out
    assert "make kernels" in ran.out
    assert "1 problem to solve." in ran.out


@pytest.mark.parametrize(
    ("version", "release"), [("1.23.2", (1, 23, 2)), ("2.0rc1", (2, 0)), ("1.2+cpu", (1, 2)), ("x", ())]
)
def test_releases_are_compared_as_numbers(version: str, release: tuple[int, ...]) -> None:
    assert health._release(version) == release


def test_doctor_looks_at_every_package_that_the_program_requires() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {re.split(r"[^\w.-]", line)[0] for line in project["dependencies"]}
    assert {name for name, _ in health.REQUIRED} == wanted


def test_doctor_sees_packages_that_are_old_or_missing() -> None:
    assert health._package("no-such-package-anywhere", (1,)).state == "broken"
    old = health._package("numpy", (999,))
    assert old.state == "broken"
    assert old.advice == "pip install -U 'numpy>=999'"


def test_doctor_mentions_variables_that_change_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = {finding.subject: finding for finding in health._variables()}
    assert found["OMP_NUM_THREADS"].found == "3"
    assert found["OMP_NUM_THREADS"].state == "note"


# -------------------------------------------------------------------------------------------------------------- demo


@pytest.mark.slow
def test_demo_compiles_both_models_and_says_where_the_reports_are(graphopt_here: Run, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    ran = graphopt_here("demo", "-o", out)
    assert ran.status == 0
    for name in ("cnn", "transformer"):
        assert (out / name / "report.html").is_file()
        assert str(out / name / "report.html") in ran.err
    assert "recipe int8" in ran.out
    assert "recipe sparse" in ran.out
    assert graphopt_here("demo", "-o", out).status == 2
