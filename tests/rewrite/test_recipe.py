"""Recipes: imports, errors that help, the complete recipe of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from graphopt.errors import RecipeError, UnknownPassError
from graphopt.rewrite import PassManager, create, load_recipe, preset_names, recipe_of, schema
from graphopt.rewrite.recipe import MAX_BYTES, Recipe, Step

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", preset_names())
def test_preset_loads_creates_every_pass_and_has_a_budget(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    assert recipe.budget.max_drop is not None
    assert len(PassManager(recipe.create()).passes) == len(recipe.passes) > 0


def test_imports_run_first_and_in_order() -> None:
    recipe = load_recipe({"imports": ["default"], "passes": ["eliminate-dead"]})
    assert recipe.passes == (*load_recipe("default").passes, Step("eliminate-dead"))
    assert recipe.budget == load_recipe("default").budget


def test_options_without_data_are_inherited_yield_to_what_is_set_and_are_checked() -> None:
    mine = load_recipe({"imports": ["smallest"], "without_data": {"prune-magnitude.scope": "erk"}})
    gentler, said = mine.data_free()
    step = next(step for step in gentler.passes if step.name == "prune-magnitude")
    assert (step.options["sparsity"], step.options["scope"]) == (0.3, "erk")
    assert said == ["prune-magnitude.sparsity is 0.3", "prune-magnitude.scope is erk"]
    assert mine.set("prune-magnitude.sparsity", 0.9).data_free()[1] == ["prune-magnitude.scope is erk"]
    with pytest.raises(RecipeError, match="runs no pass 'prune-magnitud'"):
        load_recipe({"passes": ["fold-constants"], "without_data": {"prune-magnitud.sparsity": 0.1}})
    with pytest.raises(RecipeError, match="sparsty"):
        load_recipe({"imports": ["smallest"], "without_data": {"prune-magnitude.sparsty": 0.1}})


def pruning(recipe: Recipe) -> list[Step]:
    return [step for step in recipe.passes if step.name.startswith("prune")]


def test_another_pass_runs_in_place_of_one_that_needs_data() -> None:
    sparse = load_recipe("sparse")
    (second_order,) = pruning(sparse)
    assert (second_order.name, second_order.options["sparsity"]) == ("prune-second-order", 0.8)
    swapped, said = sparse.unobserved()
    assert said == ["prune-magnitude runs in place of prune-second-order"]
    assert pruning(swapped) == [Step("prune-magnitude", {"sparsity": 0.8, "scope": "lamp"})]
    assert pruning(swapped.data_free()[0]) == [Step("prune-magnitude", {"sparsity": 0.6, "scope": "lamp"})]
    assert [step.options["sparsity"] for step in pruning(sparse.data_free()[0])] == [0.6]
    # what the user asks of the pass is asked of the other too, as far as it has the option
    asked = sparse.set("prune-second-order.sparsity", 0.7).set("prune-second-order.damping", 0.1)
    assert pruning(asked.unobserved()[0].data_free()[0]) == [
        Step("prune-magnitude", {"sparsity": 0.7, "scope": "lamp"})
    ]
    assert sparse.without(["prune-second-order"]).unobserved()[1] == []


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ({"eliminate-dead": "fold-constants"}, "runs no pass 'eliminate-dead'"),
        ({"fold-constants": {"eliminate-ded": {}}}, "eliminate-ded"),
        ({"fold-constants": 3}, "the item 3 of passes is not a pass"),
        ({"fold-constants": "eliminate-dead", "eliminate-dead.option": 1}, "option"),
    ],
)
def test_what_cannot_run_in_place_of_a_pass_is_refused(without: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe({"passes": ["fold-constants"], "without_data": without})


def test_file_imports_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("passes: [fold-constants]\nbudget: {max_drop: 2}\n", "utf-8")
    (tmp_path / "mine.yaml").write_text("imports: [base.yaml]\npasses:\n - eliminate-dead\n", "utf-8")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert [step.name for step in recipe.passes] == ["fold-constants", "eliminate-dead"]
    assert recipe.name == "mine"
    assert recipe.budget.max_drop == 2


def test_recipe_that_imports_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("imports: [b.yaml]", "utf-8")
    (tmp_path / "b.yaml").write_text("imports: [a.yaml]", "utf-8")
    with pytest.raises(RecipeError, match=r"imports itself: .*a\.yaml > .*b\.yaml > .*a\.yaml"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"passs": []}, "unknown key 'passs'. Did you mean 'passes'"),
        ({"budget": {"max_drops": 1}}, "unknown key 'budget.max_drops'. Did you mean 'max_drop'"),
        ({"budget": {"max_drop": -1}}, "budget.max_drop is -1"),
        ({"budget": {"max_drop": float("nan")}}, "budget.max_drop is nan"),
        ({"passes": [3]}, "the item 3 of passes is not a pass"),
        ({"passes": [{"fold-constants": {}, "eliminate-dead": {}}]}, "is not a pass"),
        ({"passes": [{"fold-constants": [1]}]}, "is not a pass"),
        ({"passes": "fold-constants"}, "passes is 'fold-constants'"),
        ({"passes": [{"fold-constants": {"limt": 1}}]}, "options of fold-constants: unknown key 'limt'"),
        ({"imports": ["defalt"]}, "'defalt' is neither a preset nor a file. Did you mean 'default'"),
        ({"name": 3}, "name is 3"),
    ],
)
def test_wrong_document_is_answered_with_what_is_valid(document: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(document)


def test_unknown_pass_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownPassError, match="Did you mean 'fold-constants'"):
        load_recipe({"passes": ["fold-constant"]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- fold-constants", "it holds list"),
        ("", "it is empty"),
        ("passes: [", "is not valid YAML"),
        ("passes: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("[" * 5000, "is not valid YAML"),
        ("#" * (MAX_BYTES + 1), f"it has {MAX_BYTES + 1} bytes"),
    ],
)
def test_wrong_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError, match=said):
        load_recipe(path)


def test_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", preset_names())
def test_complete_recipe_gives_the_same_run(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), "utf-8")
    again = load_recipe(path)
    assert again.create() == recipe.create()
    assert (again.name, again.description, again.budget) == (recipe.name, recipe.description, recipe.budget)
    assert again.to_yaml() == recipe.to_yaml()
    written = recipe_of(recipe.create(), name=name, description=recipe.description, budget=recipe.budget)
    assert written.to_yaml() == recipe.to_yaml()


def test_complete_recipe_states_every_option() -> None:
    document = yaml.safe_load(recipe_of([create("prune-magnitude")]).to_yaml())
    (item,) = document["passes"]
    assert set(item["prune-magnitude"]) == set(create("prune-magnitude").options())


def test_set_changes_one_option_of_one_pass() -> None:
    recipe = load_recipe({"passes": ["eliminate-dead", {"prune-magnitude": {"sparsity": 0.5}}]})
    changed = recipe.set("prune-magnitude.sparsity", "0.9")
    assert changed.create()[1].options()["sparsity"] == 0.9
    assert recipe.create()[1].options()["sparsity"] == 0.5


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("prune-magnitud.sparsity", "0.9", "runs no pass 'prune-magnitud'. Did you mean 'prune-magnitude'"),
        ("prune-magnitude.sparsty", "0.9", "unknown key 'sparsty'. Did you mean 'sparsity'"),
        ("prune-magnitude", "0.9", "unknown key ''"),
        ("prune-magnitude.sparsity", "lots", "sparsity is 'lots'"),
        ("prune-magnitude.sparsity", "[", "not valid YAML"),
    ],
)
def test_set_refuses_what_does_not_exist(path: str, value: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe({"passes": ["prune-magnitude"]}).set(path, value)


def test_schema_knows_every_pass_with_its_options() -> None:
    document = schema()
    assert document["$schema"].startswith("https://json-schema.org/")
    names, options = document["properties"]["passes"]["items"]["anyOf"]
    assert "fold-constants" in names["enum"]
    assert set(options["properties"]) == set(names["enum"])
    assert "sparsity" in options["properties"]["prune-magnitude"]["anyOf"][0]["properties"]
    assert document["additionalProperties"] is False


def test_empty_recipe_is_valid_and_does_nothing() -> None:
    assert load_recipe({}) == Recipe("recipe")
