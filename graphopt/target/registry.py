"""The targets there are, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.errors import UsageError
from graphopt.target.ort_cpu import ORT_CPU

if TYPE_CHECKING:
    from graphopt.target.rules import Target

TARGETS: dict[str, Target] = {target.name: target for target in (ORT_CPU,)}


def find_target(name: str) -> Target:
    """Return a target by its name.

    Raises:
        UsageError: There is none of this name; the message lists those there are.
    """
    if name not in TARGETS:
        raise UsageError(
            f"there is no target '{name}'",
            must=f"The target is one of: {', '.join(sorted(TARGETS))}",
            do="Pass one of them with --target, or leave the option out",
        )
    return TARGETS[name]
