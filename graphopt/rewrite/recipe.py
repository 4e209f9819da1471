"""Recipes: what to run, as YAML, as a dictionary, or as the name of a preset.

    name: mine
    description: int8 after clean-up, but not the classifier
    budget: {max_drop: 0.5}
    imports: [default]
    passes:
      - insert-qdq: {keep: [classifier]}
      - eliminate-dead

The passes of the imports run first, in order. An item of ``passes`` is the name of a pass, or a mapping of one name to
its options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graphopt.errors import RecipeError, UsageError
from graphopt.rewrite.options import explain, nearest, option_model
from graphopt.rewrite.registry import create, pass_class, pass_names

if TYPE_CHECKING:
    from graphopt.rewrite.pass_ import Pass

MAX_BYTES = 1 << 20
"""A recipe larger than this is not read."""


@dataclass(frozen=True, slots=True)
class Step:
    """One pass of a recipe.

    Attributes:
        name: Name of the pass.
        options: Its options as written; those left out keep their defaults.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def create(self) -> Pass:
        """Return the pass with its options checked.

        Raises:
            UnknownPassError: No pass has this name.
            RecipeError: An option is unknown or its value does not fit.
        """
        return create(self.name, self.options)


class RecipeBudget(BaseModel):
    """How much accuracy a recipe may lose."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    max_drop: float | None = Field(
        default=None,
        ge=0,
        description="With a metric, in its units; else percentage points of top-1 agreement of the first output, "
        "or dB of SQNR below 40 for other outputs. Absent: no limit.",
    )
    max_drop_db: float | None = Field(
        default=None,
        ge=0,
        description="For outputs that are judged by SQNR: dB below 40, in place of max_drop. Absent: max_drop.",
    )
    standard_errors: float = Field(
        default=0.0,
        ge=-3,
        le=3,
        description="How sure to be: so many standard errors are added to the measured loss of agreement before it is "
        "compared. 1 wants the loss in the budget even if the held-back samples were lucky; -1 forgives bad luck.",
    )


NO_LIMIT = RecipeBudget(max_drop=None)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A pipeline by name, imports resolved.

    Attributes:
        name: A short name.
        description: One sentence.
        budget: How much accuracy it may lose.
        passes: What runs, in order.
        without_data: What holds without data: by ``pass-name`` the pass, with its options, that runs in place of one
            that has to look at what layers read; by ``pass-name.option`` values where nothing judges the result.
    """

    name: str = "unnamed"
    description: str = ""
    budget: RecipeBudget = NO_LIMIT
    passes: tuple[Step, ...] = ()
    without_data: dict[str, Any] = field(default_factory=dict)

    def create(self) -> list[Pass]:
        """Return the passes with their options checked.

        Raises:
            UnknownPassError: A pass does not exist.
            RecipeError: An option is unknown or its value does not fit.
        """
        return [step.create() for step in self.passes]

    def set(self, path: str, value: Any) -> Recipe:
        """Return the recipe with one option of one pass changed (``--set PASS.OPTION=VALUE``).

        Args:
            path: ``"prune-magnitude.sparsity"``; every step of that pass gets the value.
            value: The value; text is read as YAML, so that ``"[1, 2]"`` is a list.

        Raises:
            RecipeError: The recipe does not run that pass, or the pass has no such option.
        """
        name, _, option = path.partition(".")
        if name not in {step.name for step in self.passes}:
            raise RecipeError(
                f"the recipe runs no pass {name!r}",
                where=path,
                must=nearest(name, dict.fromkeys(s.name for s in self.passes)),
            )
        value = _yaml(value, path) if isinstance(value, str) else value
        steps = tuple(
            Step(step.name, {**step.options, option: value}) if step.name == name else step for step in self.passes
        )
        # what the user sets holds with and without data
        rest = {key: other for key, other in self.without_data.items() if key != path}
        if name in rest:
            other = _step(rest[name], self.name)
            rest[name] = _with_option(other, option, value)
            rest.pop(f"{other.name}.{option}", None)
        changed = Recipe(self.name, self.description, self.budget, steps, rest)
        changed.create()
        return changed

    def without(self, names: Iterable[str]) -> Recipe:
        """Return the recipe without some passes (``--skip PASS``).

        Args:
            names: Names of passes.

        Raises:
            UsageError: The recipe runs no pass of that name.
        """
        left_out = set(names)
        unknown = left_out - {step.name for step in self.passes}
        if unknown:
            raise UsageError(
                f"the recipe runs no pass {min(unknown)!r}",
                where="--skip",
                must=f"It runs {', '.join(dict.fromkeys(step.name for step in self.passes))}",
            )
        return replace(self, passes=tuple(step for step in self.passes if step.name not in left_out))

    def unobserved(self) -> tuple[Recipe, list[str]]:
        """Return the recipe as it runs where nothing shows what layers read, and what that changes, as clauses."""
        swaps = {name: _step(item, self.name) for name, item in self.without_data.items() if "." not in name}
        steps = tuple(swaps.get(step.name, step) for step in self.passes)
        running = {step.name for step in self.passes}
        said = [f"{other.name} runs in place of {name}" for name, other in swaps.items() if name in running]
        return replace(self, passes=steps), said

    def data_free(self) -> tuple[Recipe, list[str]]:
        """Return the recipe as it runs where nothing judges it, and what that changes, as ``pass.option is VALUE``."""
        changed, said = self, []
        for path, value in self.without_data.items():
            if "." in path and path.partition(".")[0] in {step.name for step in self.passes}:
                changed = changed.set(path, value)
                said.append(f"{path} is {value}")
        return changed, said

    def to_yaml(self) -> str:
        """Return the recipe complete: imports resolved and every option written out. Reading it gives the same run."""
        steps: list[Any] = []
        for step in self.passes:
            options = option_model(pass_class(step.name))(**step.options).model_dump(mode="json")
            steps.append({step.name: options} if options else step.name)
        document = {
            "name": self.name,
            "description": self.description,
            "budget": self.budget.model_dump(exclude_none=True),
            "passes": steps,
        }
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


class _Document(BaseModel):
    """A recipe as it is written."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = ""
    description: str = ""
    budget: RecipeBudget | None = None
    imports: list[str] = []
    passes: list[Any] = []
    without_data: dict[str, Any] = Field(
        default={},
        description="What holds where no data is given: by pass-name, the pass with its options that runs in place of "
        "one that has to look at data; by pass-name.option, values, because nothing judges the result then.",
    )


def preset_names() -> list[str]:
    """Return the names of the presets that come with graphopt, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _presets().iterdir() if entry.name.endswith(".yaml"))


def load_recipe(source: str | Path | Mapping[str, Any]) -> Recipe:
    """Return a recipe with its imports resolved and every pass and option checked.

    Args:
        source: Name of a preset, path of a YAML file, or the document itself.

    Raises:
        RecipeError: The recipe cannot be read, imports itself, or has an unknown key or a wrong value.
        UnknownPassError: It names a pass that does not exist.
    """
    recipe = _load(source, base=Path(), importing=())
    recipe.create()
    return recipe


def recipe_of(
    passes: list[Pass],
    *,
    name: str = "unnamed",
    description: str = "",
    budget: RecipeBudget = NO_LIMIT,
) -> Recipe:
    """Return the recipe that runs these passes with all their options written out.

    Args:
        passes: Passes, in order.
        name: Name of the recipe.
        description: One sentence.
        budget: The accuracy budget.
    """
    steps = tuple(
        Step(step.name, option_model(type(step)).model_validate(step.options()).model_dump(mode="json"))
        for step in passes
    )
    return Recipe(name, description, budget, steps)


def schema() -> dict[str, Any]:
    """Return the JSON schema of recipes, with the options of every built-in pass."""
    definitions: dict[str, Any] = {}
    with_options: dict[str, Any] = {}
    for name in pass_names():
        options = option_model(pass_class(name)).model_json_schema(ref_template="#/$defs/{model}")
        definitions |= options.pop("$defs", {})
        with_options[name] = {"anyOf": [options, {"type": "null"}]}
    document = _Document.model_json_schema(ref_template="#/$defs/{model}")
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    document["title"] = "graphopt recipe"
    item = {
        "type": "object",
        "properties": with_options,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    document["properties"]["passes"]["items"] = {"anyOf": [{"enum": pass_names()}, item]}
    document["$defs"] = {**document.get("$defs", {}), **definitions}
    return document


def _load(source: str | Path | Mapping[str, Any], *, base: Path, importing: tuple[str, ...]) -> Recipe:
    raw, where, folder = _read(source, base)
    if where in importing:
        raise RecipeError(f"it imports itself: {' > '.join((*importing, where))}", where=where, do="Remove one import")
    document = _parse(raw, where)
    imported = [_load(name, base=folder, importing=(*importing, where)) for name in document.imports]
    own = [_step(item, where) for item in document.passes]
    budget = document.budget or next((recipe.budget for recipe in reversed(imported)), NO_LIMIT)
    steps = tuple(step for recipe in imported for step in recipe.passes) + tuple(own)
    without_data = {key: value for recipe in imported for key, value in recipe.without_data.items()}
    without_data |= document.without_data
    found = Recipe(document.name or Path(where).stem, document.description, budget, steps, without_data)
    for path, value in document.without_data.items():
        _check_without_data(found, path, value, where)
    return found


def _read(source: str | Path | Mapping[str, Any], base: Path) -> tuple[Any, str, Path]:
    if isinstance(source, Mapping):
        return dict(source), "recipe", base
    if str(source) in preset_names():
        return _yaml((_presets() / f"{source}.yaml").read_text("utf-8"), str(source)), str(source), base
    if not isinstance(source, str | Path):
        raise RecipeError(
            f"it is a {type(source).__name__}", where="recipe", must="A recipe is a name, a path or a mapping"
        )
    path = base / source
    if not path.is_file():
        raise RecipeError(
            f"{str(source)!r} is neither a preset nor a file",
            must=nearest(str(source), preset_names()),
            do="Name a preset or a YAML file",
        )
    if path.stat().st_size > MAX_BYTES:
        raise RecipeError(f"it has {path.stat().st_size} bytes", where=str(path), must=f"At most {MAX_BYTES} are read")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"it cannot be read: {error}", where=str(path), must="A recipe is UTF-8 text") from error
    return _yaml(text, str(path)), str(path), path.parent


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise RecipeError(f"it is not valid YAML: {detail}", where=where, do="Correct that line") from error


def _parse(raw: Any, where: str) -> _Document:
    if not isinstance(raw, dict):
        raise RecipeError(
            "it is empty" if raw is None else f"it holds {type(raw).__name__}",
            where=where,
            must=f"A recipe is a mapping with the keys {', '.join(_Document.model_fields)}",
        )
    try:
        return _Document.model_validate(raw)
    except ValidationError as error:
        raise explain(error, where=where, model=_Document) from error


def _check_without_data(recipe: Recipe, path: str, value: Any, where: str) -> None:
    """Raise RecipeError where an entry names no pass that runs, no option of it, or nothing that can run instead."""
    running = {step.name for step in recipe.passes}
    name, dot, _ = path.partition(".")
    if dot:  # it may be of a pass that only runs in place of another
        (recipe if name in running else recipe.unobserved()[0]).set(path, value)
    elif name in running:
        _step(value, where).create()
    else:
        raise RecipeError(f"the recipe runs no pass {path!r}", where=f"{where}: without_data")


def _with_option(step: Step, option: str, value: Any) -> dict[str, Any]:
    """Return a step as it is written, with an option where the pass has it."""
    known = option in option_model(pass_class(step.name)).model_fields
    return {step.name: {**step.options, option: value} if known else step.options}


def _step(item: object, where: str) -> Step:
    if isinstance(item, str):
        return Step(item)
    name, options = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else (None, None)
    if isinstance(name, str) and (options is None or isinstance(options, dict)):
        return Step(name, {str(key): value for key, value in (options or {}).items()})
    raise RecipeError(
        f"the item {item!r} of passes is not a pass",
        where=where,
        must="An item is the name of a pass, or a mapping of one name to its options",
        do="Write `- pass-name` or `- pass-name: {option: value}`",
    )


def _presets() -> Any:
    return files("graphopt.rewrite") / "presets"
