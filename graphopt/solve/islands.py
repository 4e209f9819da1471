"""Divides a graph into integer and float islands, where values that cross a border have to be converted.

Every node takes one of its options: on which side it computes, how long that takes, how much damage it does and how
many bytes it keeps. A tensor that a float node makes and an integer node reads is rounded, once for all its readers;
the other way round it is restored. For fixed prices of time, damage and bytes the cheapest choice is a minimum cut:

* the source stands for integers, the sink for float; a node is cut off from the side that it does not take;
* a tensor has a node of its own for rounding, which any integer reader pulls to the integer side and which its float
  maker pays for; and one for restoring, the other way round.

A budget is met by raising its price: the sweep finds the cheapest price at which the budget holds, then single nodes
move back as far as it lasts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTSIDE = -1
"""Stands for the inputs and the outputs of the graph, which are float."""

CAPACITY_STEPS = 10**12
"""Costs become whole numbers, this many for their sum: sums of floats could make a flow that never ends."""

PRICE_STEPS, FIRST_PRICE, PRICE_FACTOR = 40, 1e-3, 4.0
"""Steps in which prices rise, the first one above nothing, and by how much each grows."""

FALL_STEPS = 24
"""Bisection steps in which a price falls again."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to compute a node.

    Attributes:
        name: What it is called.
        integer: Whether it reads and makes integers.
        seconds: Time.
        damage: What it does to the outputs, 0 for none; damages are taken to add up.
        size: Bytes of its weights.
    """

    name: str
    integer: bool
    seconds: float
    damage: float = 0.0
    size: float = 0.0


@dataclass(frozen=True, slots=True)
class Handover:
    """A tensor between nodes.

    Attributes:
        maker: Position of the node that makes it, or `OUTSIDE`.
        readers: Positions of those that read it, `OUTSIDE` for an output of the graph.
        rounding: Seconds to round it.
        restoring: Seconds to restore it.
    """

    maker: int
    readers: tuple[int, ...]
    rounding: float
    restoring: float


@dataclass(frozen=True, slots=True)
class Islands:
    """What is to be divided.

    Attributes:
        options: Of each node, at least one.
        tensors: What they hand to each other.
    """

    options: tuple[tuple[Option, ...], ...]
    tensors: tuple[Handover, ...] = ()


@dataclass(frozen=True, slots=True)
class Prices:
    """What is paid for one unit of each."""

    seconds: float = 0.0
    damage: float = 0.0
    size: float = 0.0

    def of(self, option: Option) -> float:
        """Return the price of an option, conversions aside."""
        return self.seconds * option.seconds + self.damage * option.damage + self.size * option.size


@dataclass(frozen=True, slots=True)
class Division:
    """One option per node.

    Attributes:
        choice: Position of each node's option.
        seconds: Of all nodes and conversions.
        damage: Of all nodes.
        size: Of all nodes.
    """

    choice: tuple[int, ...]
    seconds: float
    damage: float
    size: float

    def amount(self, what: str) -> float:
        """Return ``seconds``, ``damage`` or ``size``."""
        return {"seconds": self.seconds, "damage": self.damage, "size": self.size}[what]


def evaluate(problem: Islands, choice: Sequence[int]) -> Division:
    """Return what a choice costs, conversions included.

    Args:
        problem: The islands.
        choice: Position of each node's option.
    """
    taken = [options[place] for options, place in zip(problem.options, choice, strict=True)]
    seconds = [option.seconds for option in taken]
    for tensor in problem.tensors:
        made = tensor.maker != OUTSIDE and taken[tensor.maker].integer
        read = [reader != OUTSIDE and taken[reader].integer for reader in tensor.readers]
        if not made and any(read):
            seconds.append(tensor.rounding)
        if made and not all(read):
            seconds.append(tensor.restoring)
    return Division(
        tuple(choice),
        math.fsum(seconds),
        math.fsum(option.damage for option in taken),
        math.fsum(option.size for option in taken),
    )


def divide(problem: Islands, prices: Prices) -> Division:
    """Return the cheapest choice for fixed prices: exact.

    Args:
        problem: The islands.
        prices: Zero or more each.

    Cost: one minimum cut of nodes plus twice the tensors, by preflow-push.
    Source: Boykov, Veksler and Zabih 2001, IEEE TPAMI 23(11), section 4 (binary labels); Ishikawa 2003 for the nodes of
        tensors.
    """
    best: list[dict[bool, int]] = []
    for options in problem.options:
        side: dict[bool, int] = {}
        for place, option in enumerate(options):
            old = side.get(option.integer)
            if old is None or prices.of(option) < prices.of(options[old]):
                side[option.integer] = place
        best.append(side)
    graph = _network(problem, prices, best)
    _, (integers, _) = nx.minimum_cut(graph, "integer", "float")
    choice = []
    for node, side in enumerate(best):
        integer = node in integers if len(side) == 2 else next(iter(side))
        choice.append(side[integer])
    return evaluate(problem, choice)


def _network(problem: Islands, prices: Prices, best: Sequence[dict[bool, int]]) -> nx.DiGraph[object]:
    costs: defaultdict[tuple[object, object], float] = defaultdict(float)
    for node, side in enumerate(best):
        options = problem.options[node]
        if True in side:
            costs[node, "float"] += prices.of(options[side[True]])
        if False in side:
            costs["integer", node] += prices.of(options[side[False]])
    endless: set[tuple[object, object]] = set()
    for node, side in enumerate(best):
        if True not in side:
            endless.add((node, "float"))
        if False not in side:
            endless.add(("integer", node))
    for place, tensor in enumerate(problem.tensors):
        maker: object = "float" if tensor.maker == OUTSIDE else tensor.maker
        readers = ["float" if reader == OUTSIDE else reader for reader in tensor.readers]
        rounded, restored = ("rounded", place), ("restored", place)
        costs[rounded, maker] += prices.seconds * tensor.rounding
        endless |= {(reader, rounded) for reader in readers if reader != "float"}
        if maker != "float":
            costs[maker, restored] += prices.seconds * tensor.restoring
            endless |= {(restored, reader) for reader in readers}
    unit = math.fsum(costs.values()) / CAPACITY_STEPS or 1.0
    graph: nx.DiGraph[object] = nx.DiGraph()
    graph.add_nodes_from(["integer", "float"])
    for (start, end), cost in costs.items():
        if (start, end) not in endless:
            graph.add_edge(start, end, capacity=round(cost / unit))
    graph.add_edges_from(endless)  # without a capacity: never cut
    return graph


def divide_within(problem: Islands, goal: str, budgets: dict[str, float]) -> Division | None:
    """Return a choice with little of one amount among those whose other amounts fit, or None where none is found.

    Args:
        problem: The islands.
        goal: What is to be small: ``seconds``, ``damage`` or ``size``.
        budgets: Largest amount of each of the others that is limited.

    The price of what is over its budget rises until all budgets hold; then each price in turn falls as far as they
    still do, and single nodes take options that lower the goal while the budgets last. For one budget the result is
    optimal where it lies on the convex hull of what can be had, else as good as the next point of the hull, at least.
    For several it is as good as these prices come: it may miss a choice that fits.

    Cost: `PRICE_STEPS` minimum cuts and `FALL_STEPS` for each budget, at most.
    Source: Everett 1963; Shoham and Gersho 1988, IEEE Trans. ASSP 36(9), section III.
    """
    prices = dict.fromkeys(budgets, 0.0)
    found = divide(problem, _priced(problem, goal, prices))
    for _ in range(PRICE_STEPS):
        if _fits(found, budgets):
            break
        for what, budget in budgets.items():
            if found.amount(what) > budget:
                prices[what] = max(FIRST_PRICE, prices[what] * PRICE_FACTOR)
        found = divide(problem, _priced(problem, goal, prices))
    if not _fits(found, budgets):
        return None
    for what in budgets:
        low, high = 0.0, prices[what]
        for _ in range(FALL_STEPS if high else 0):
            middle = math.sqrt(low * high) if low > 0 else high / PRICE_FACTOR
            tried = divide(problem, _priced(problem, goal, {**prices, what: middle}))
            if _fits(tried, budgets):
                high = middle
                found = tried if tried.amount(goal) < found.amount(goal) else found
            else:
                low = middle
        prices[what] = high
    return _spent(problem, found, goal, budgets)


def _priced(problem: Islands, goal: str, prices: dict[str, float]) -> Prices:
    """Return prices for amounts in the units of what the whole problem costs at most."""
    tops = {
        what: math.fsum(max(getattr(option, what) for option in options) for options in problem.options) or 1.0
        for what in ("seconds", "damage", "size")
    }
    paid = {what: price / tops[what] for what, price in prices.items()}
    paid[goal] = paid.get(goal, 0.0) + 1.0 / tops[goal]
    if "seconds" not in paid:
        paid["seconds"] = 1e-6 / tops["seconds"]  # of equal choices the faster one
    return Prices(**paid)


def _fits(division: Division, budgets: dict[str, float]) -> bool:
    return all(division.amount(what) <= budget * (1 + 1e-9) for what, budget in budgets.items())


def _spent(problem: Islands, division: Division, goal: str, budgets: dict[str, float]) -> Division:
    """Move single nodes to options that lower the goal most while the budgets last."""
    while True:
        best = division
        for node, options in enumerate(problem.options):
            for place in range(len(options)):
                if place == division.choice[node]:
                    continue
                choice = (*division.choice[:node], place, *division.choice[node + 1 :])
                tried = evaluate(problem, choice)
                if _fits(tried, budgets) and tried.amount(goal) < best.amount(goal) - 1e-15 * abs(best.amount(goal)):
                    best = tried
        if best is division:
            return division
        division = best
