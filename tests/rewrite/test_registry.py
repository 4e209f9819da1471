"""Finding passes: by file, by entry point, and what is said when that fails."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, distribution
from typing import TYPE_CHECKING, Any

import pytest

from graphopt.errors import PassError, RecipeError, UnknownPassError
from graphopt.rewrite import create, pass_class, pass_names, registry
from graphopt.rewrite.options import build, option_model
from toy_passes import MergeRelu, ScaleWeights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that pretends that entry points are installed: name=value."""

    def install(**values: str) -> None:
        points = [EntryPoint(name.replace("_", "-"), value, registry.GROUP) for name, value in values.items()]
        monkeypatch.setattr(registry, "entry_points", lambda *, group: points if group == registry.GROUP else [])

    return install


def test_every_builtin_name_is_its_file_and_its_class() -> None:
    assert "fold-constants" in pass_names()
    for name, module in registry.builtin_modules().items():
        cls = pass_class(name)
        assert cls.name == name
        assert cls.__module__ == module
        assert cls.__name__ == registry.class_name(name)


def test_names_are_listed_without_importing_anything(installed: Callable[..., None]) -> None:
    installed(far_away="no.such.module:Pass")
    before = set(sys.modules)
    assert "far-away" in pass_names()
    assert not {name for name in set(sys.modules) - before if name.startswith("graphopt.passes.")}


def test_third_party_pass_is_found_by_its_entry_point(installed: Callable[..., None]) -> None:
    installed(merge_relu="toy_passes:MergeRelu", scale_weights="toy_passes:ScaleWeights")
    assert pass_class("merge-relu") is MergeRelu
    assert create("scale-weights", {"factor": 2}) == ScaleWeights(factor=2.0)


def test_builtin_name_wins_over_an_entry_point(installed: Callable[..., None]) -> None:
    installed(fold_constants="toy_passes:MergeRelu")
    assert pass_class("fold-constants").__module__.startswith("graphopt.passes.")
    assert pass_names().count("fold-constants") == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no.such.module:Pass", "does not import: ModuleNotFoundError"),
        ("toy_passes:Missing", "does not import: AttributeError"),
        ("toy_passes:edits", "is <function edits"),
        ("toy_passes:ScaleWeights", "is ScaleWeights\\(name='scale-weights'\\)"),
    ],
)
def test_broken_entry_point_is_named_only_when_asked_for(installed: Callable[..., None], value: str, said: str) -> None:
    installed(broken_one=value)
    assert "broken-one" in pass_names()
    with pytest.raises(PassError, match=f"GO-P001 broken-one: .*{said}"):
        pass_class("broken-one")


def test_entry_point_that_raises_on_import_is_named(
    installed: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "graphopt_exploding.py").write_text("raise OSError('boom')", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(explode="graphopt_exploding:Pass")
    with pytest.raises(PassError, match=r"does not import: OSError: boom.*Repair or uninstall"):
        pass_class("explode")


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownPassError, match=r"no pass is named 'fold-constant'\. Did you mean 'fold-constants'"):
        pass_class("fold-constant")
    with pytest.raises(UnknownPassError, match=r"Valid are .*fold-constants"):
        pass_class("xyzzy")


def test_group_is_the_documented_one() -> None:
    assert registry.GROUP == "graphopt.passes"
    assert distribution("onnx") is not None  # entry points are read from installed distributions


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"facter": 2}, "options of scale-weights: unknown key 'facter'. Did you mean 'factor'"),
        ({"factor": "much"}, "factor is 'much'"),
        ({"factor": float("nan")}, "factor is nan"),
        ({"first": 1.5}, "first is 1.5"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str, installed: Callable[..., None]) -> None:
    installed(scale_weights="toy_passes:ScaleWeights")
    with pytest.raises(RecipeError, match=said):
        create("scale-weights", options)


def test_options_from_the_command_line_are_text() -> None:
    assert build(ScaleWeights, {"factor": "0.5", "first": "3"}) == ScaleWeights(factor=0.5, first=3)


@pytest.mark.parametrize("name", sorted(registry.builtin_modules()))
def test_options_of_every_pass_have_defaults_that_are_valid(name: str) -> None:
    cls = pass_class(name)
    required = option_model(cls).model_json_schema().get("required", [])
    if required:
        pytest.skip(f"{name} cannot run without {', '.join(required)}")
    step = create(name)
    assert create(name, option_model(cls).model_validate(step.options()).model_dump(mode="json")) == step
