"""The minimum cut is what trying all ways to split the nodes finds, and it is the one next to the source."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from graphopt.passes.simplify.layout.min_cut import ENDLESS, SINK, SOURCE, Network

NODES = 6
ARCS = st.lists(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1), st.integers(0, 9)), max_size=16)


def value(arcs: list[tuple[int, int, int]], near: list[bool]) -> int:
    return sum(capacity for tail, head, capacity in arcs if tail != head and near[tail] and not near[head])


@given(ARCS)
def test_no_split_is_cheaper(arcs: list[tuple[int, int, int]]) -> None:
    network = Network()
    for _ in range(NODES - 2):
        network.node()
    for tail, head, capacity in arcs:
        network.arc(tail, head, capacity)
    near = network.source_side()
    assert near[SOURCE]
    assert not near[SINK]
    splits = [[True, False, *rest] for rest in product((True, False), repeat=NODES - 2)]
    least = min(value(arcs, split) for split in splits)
    assert value(arcs, near) == least
    cheapest = [split for split in splits if value(arcs, split) == least]
    assert sum(near) == min(sum(split) for split in cheapest)


def test_endless_arcs_are_not_cut() -> None:
    network = Network()
    first, second = network.node(), network.node()
    network.arc(SOURCE, first, 5)
    network.arc(first, second, ENDLESS)
    network.arc(second, SINK, 7)
    assert network.source_side() == [True, False, False, False]


def test_long_chain_does_not_recurse() -> None:
    network = Network()
    before = SOURCE
    for place in range(20_000):
        node = network.node()
        network.arc(before, node, 3 if place == 10_000 else 4)
        before = node
    network.arc(before, SINK, 4)
    assert sum(network.source_side()) == 10_001
