"""Options of passes: checked against the types of the dataclass fields, described as a JSON schema."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from graphopt.errors import RecipeError
from graphopt.rewrite.pass_ import Pass

if typing.TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

P = TypeVar("P", bound=Pass)


def build(cls: type[P], options: Mapping[str, Any]) -> P:
    """Return a pass with these options.

    Args:
        cls: The pass class.
        options: Options by name, as YAML or the command line gives them; those left out keep their defaults.

    Raises:
        RecipeError: An option is unknown, missing, or its value does not fit.
    """
    try:
        checked = option_model(cls).model_validate(dict(options))
    except ValidationError as error:
        raise explain(error, where=f"options of {cls.name}", model=option_model(cls)) from error
    try:
        return cls(**{name: getattr(checked, name) for name in checked.model_fields_set})
    except (ValueError, TypeError) as error:
        raise RecipeError(str(error), where=f"options of {cls.name}") from error


@cache
def option_model(cls: type[Pass]) -> type[BaseModel]:
    """Return the pydantic model of a pass's options; its JSON schema documents them."""
    hints = _field_types(cls)
    definitions: dict[str, Any] = {
        field.name: (hints[field.name], Field(**_default(field))) for field in dataclasses.fields(cls) if field.init
    }
    config = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(f"{cls.__name__}Options", __config__=config, **definitions)


def explain(error: ValidationError, *, where: str, model: type[BaseModel]) -> RecipeError:
    """Turn a validation failure into an error that names the option, the value and the nearest valid key.

    Args:
        error: What pydantic found; the first finding is told.
        where: The recipe, or the pass whose options were checked.
        model: The model it was checked against.
    """
    finding = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "extra_forbidden":
        hint = nearest(str(finding["loc"][-1]), _valid_keys(model, finding["loc"]))
        return RecipeError(f"unknown key {path!r}", where=where, must=hint)
    if finding["type"] == "missing":
        return RecipeError(f"the key {path!r} is missing", where=where, do="Add it")
    return RecipeError(f"{path} is {finding['input']!r}", where=where, must=finding["msg"])


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a sentence that names the valid spelling nearest to a wrong one, or lists all when none is near."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Valid are {', '.join(names) or 'none'}"


def _valid_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are valid where the last part of a path was found."""
    for part in path[:-1]:
        annotation = model.model_fields[str(part)].annotation
        kinds = typing.get_args(annotation) or (annotation,)
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)


def _names(cls: type[Pass]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init]


def _default(field: dataclasses.Field[Any]) -> dict[str, Any]:
    if field.default is not dataclasses.MISSING:
        return {"default": field.default}
    if field.default_factory is not dataclasses.MISSING:
        return {"default_factory": field.default_factory}
    return {}


def _field_types(cls: type[Pass]) -> dict[str, Any]:
    """Resolve the annotations of the fields alone: class variables may name types that are imported for typing only."""
    names = set(_names(cls))
    found: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        own = {name: kind for name, kind in vars(owner).get("__annotations__", {}).items() if name in names}
        holder = type("Fields", (), {"__annotations__": own})
        found |= typing.get_type_hints(holder, vars(sys.modules[owner.__module__]), include_extras=True)
    return found
