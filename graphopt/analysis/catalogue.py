"""Every analysis there is, found by file: a module of this package is all that an analysis needs to be listed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING

from graphopt import analysis
from graphopt.analysis.base import Analysis

if TYPE_CHECKING:
    from collections.abc import Mapping


def all_analyses() -> Mapping[str, type[Analysis]]:
    """Return the analyses of this package by name, in alphabetical order; imports every module of it."""
    found: dict[str, type[Analysis]] = {}
    for module in pkgutil.iter_modules(analysis.__path__, f"{analysis.__name__}."):
        members = vars(importlib.import_module(module.name)).values()
        for kind in members:
            if inspect.isclass(kind) and issubclass(kind, Analysis) and not inspect.isabstract(kind):
                found[kind.__name__] = kind
    return dict(sorted(found.items()))


def summary(kind: type[Analysis]) -> str:
    """Return the first sentence of an analysis' documentation."""
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")
