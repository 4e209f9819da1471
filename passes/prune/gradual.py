"""Pruning in steps: how much each step takes, and what is told of those on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from graphopt.rewrite import Patch

if TYPE_CHECKING:
    from collections.abc import Generator

    from graphopt.graph import Node
    from graphopt.rewrite import Skip


def polynomial(share: float, steps: int) -> list[float]:
    """Return the share of zeros after each step: share * (1 - (1 - k/n)^3).

    Args:
        share: The share after the last step.
        steps: Number of steps, 1 or more.

    Source: Zhu and Gupta 2017, arXiv:1710.01878, section 3.
    """
    return [share * (1 - (1 - step / steps) ** 3) for step in range(1, steps + 1)]


def quietly(
    proposals: Generator[Patch | Skip, frozenset[Node], None],
) -> Generator[Patch | Skip, frozenset[Node], None]:
    """Yield the patches of a step on the way: the refusals and the rows of the per-layer table come with the last."""
    touched: frozenset[Node] | None = None
    while True:
        try:
            proposal = next(proposals) if touched is None else proposals.send(touched)
        except StopIteration:
            return
        touched = (yield replace(proposal, layers=())) if isinstance(proposal, Patch) else frozenset()
