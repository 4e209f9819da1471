"""Options that give single layers a level of their own: ``NAME=LEVEL``, by the name of the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.rewrite.patch import Skip, node_label

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from graphopt.graph import Model


def named_levels(entries: Sequence[str], *, low: float, high: float) -> dict[str, float]:
    """Return the levels by the names of nodes.

    Args:
        entries: ``NAME=LEVEL`` each; a name may hold equals signs itself.
        low: Smallest level.
        high: Largest level.

    Raises:
        ValueError: An entry has another form, its level is no number in the range, or a name comes twice.
    """
    found: dict[str, float] = {}
    for entry in entries:
        name, equals, text = entry.rpartition("=")
        try:
            level = float(text)
        except ValueError:
            level = float("nan")
        if not (name and equals and low <= level <= high):
            raise ValueError(f"levels has '{entry}', but an entry is NAME=LEVEL with a level from {low:g} to {high:g}")
        if name in found:
            raise ValueError(f"levels has '{name}' twice")
        found[name] = level
    return found


def unknown_names(model: Model, levels: Mapping[str, float], known: Collection[str] = ()) -> Iterator[Skip]:
    """Yield a skip for every name that no node of the model has.

    Args:
        model: The model.
        levels: Levels by name.
        known: Names that are taken as known.
    """
    labels = {node_label(node) for _, node in model.walk()} | set(known)
    for name in levels:
        if name not in labels:
            yield Skip(name, "no node has this name")
