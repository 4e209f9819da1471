"""Finds passes by name: the built-in ones by their file, third parties' by entry point.

A built-in pass ``fold-constants`` is the class ``FoldConstants`` in ``passes/<family>/fold_constants.py``. Files whose
name is a single word or starts with an underscore hold what several passes of a family share. Third parties name a pass
in the entry-point group ``graphopt.passes``; a built-in name wins, and nothing is imported before it is asked for.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import graphopt
from graphopt.errors import PassError, UnknownPassError
from graphopt.rewrite.options import build, nearest
from graphopt.rewrite.pass_ import Pass

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP = "graphopt.passes"


@cache
def builtin_modules() -> Mapping[str, str]:
    """Return the module of every built-in pass by the name of the pass, sorted."""
    folders = [Path(root) / "passes" for root in graphopt.__path__]
    files = sorted(file for folder in folders for file in folder.glob("*/*.py"))
    return {
        file.stem.replace("_", "-"): f"graphopt.passes.{file.parent.name}.{file.stem}"
        for file in files
        if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", file.stem)
    }


def external_passes() -> Mapping[str, EntryPoint]:
    """Return the entry points of third parties by pass name; none of them is imported."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in builtin_modules()}


def pass_names() -> list[str]:
    """Return the names of all passes, built-in and third parties', sorted."""
    return sorted({*builtin_modules(), *external_passes()})


def pass_class(name: str) -> type[Pass]:
    """Return the class of a pass.

    Args:
        name: Name of the pass, such as ``"fold-constants"``.

    Raises:
        UnknownPassError: No pass has this name.
        PassError: Its module does not import, or does not hold the class it must.
    """
    if name in builtin_modules():
        module = builtin_modules()[name]
        return _checked(getattr(import_module(module), class_name(name), None), name, f"{module}:{class_name(name)}")
    point = external_passes().get(name)
    if point is None:
        raise UnknownPassError(
            f"no pass is named {name!r}", must=nearest(name, pass_names()), do="`graphopt passes` lists them all"
        )
    owner = f"{point.value} of {point.dist.name if point.dist else 'an unknown package'}"
    try:
        loaded = point.load()
    except Exception as error:
        raise PassError(
            f"its entry point {owner} does not import: {type(error).__name__}: {error}",
            where=name,
            must="An entry point of the group graphopt.passes names an importable Pass class",
            do="Repair or uninstall that package, or take the pass out of the recipe",
        ) from error
    return _checked(loaded, name, owner)


def create(name: str, options: Mapping[str, Any] | None = None) -> Pass:
    """Return a pass with its options checked.

    Args:
        name: Name of the pass.
        options: Options by name; those left out keep their defaults.

    Raises:
        UnknownPassError: No pass has this name.
        RecipeError: An option is unknown or its value does not fit.
    """
    return build(pass_class(name), options or {})


def class_name(name: str) -> str:
    """Return the class that holds a pass: ``insert-qdq`` is ``InsertQdq``."""
    return "".join(part.capitalize() for part in name.split("-"))


def _checked(found: object, name: str, where: str) -> type[Pass]:
    if isinstance(found, type) and issubclass(found, Pass) and getattr(found, "name", None) == name:
        return found
    described = f"{found.__name__}(name={getattr(found, 'name', None)!r})" if isinstance(found, type) else repr(found)
    raise PassError(f"{where} is {described}", where=name, must=f"It is a subclass of Pass whose name is {name!r}")
