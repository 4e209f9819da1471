"""Random models through the whole simplification: a few in every run, thousands where there is time."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from fuzz_simplify import fuzz, judge_made
from random_models import Made, random_model, random_models
from random_models.builder import Builder, Refused
from random_models.choices import Decider, Seeded
from random_models.scopes import conditional
from random_models.values import Value

MANY = int(os.environ.get("GRAPHOPT_FUZZ_COUNT", "2000"))


def test_a_few_random_models_are_simplified_without_a_fault() -> None:
    tally = fuzz(range(60))
    assert not tally.faults, "\n".join(f"seed {seed}: {fault}" for seed, fault in tally.faults)
    assert tally.nodes_after < tally.nodes_before
    assert tally.interpreted > 20


@pytest.mark.slow
def test_many_random_models_are_simplified_without_a_fault() -> None:
    tally = fuzz(range(100_000, 100_000 + MANY))
    assert not tally.faults, "\n".join(f"seed {seed}: {fault}" for seed, fault in tally.faults)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_models())
def test_drawn_models_are_simplified_without_a_fault(made: Made) -> None:
    judge_made(made)


def test_a_seed_gives_the_same_model_again() -> None:
    first, second = random_model(11), random_model(11)
    assert first.proto.SerializeToString(deterministic=True) == second.proto.SerializeToString(deterministic=True)
    assert random_model(12).proto != first.proto


def test_models_are_of_many_kinds() -> None:
    found: set[str] = set()
    opsets: set[int] = set()
    for seed in range(120):
        proto = random_model(seed).proto
        found.update(node.op_type for node in proto.graph.node)
        opsets.add(proto.opset_import[0].version)
    assert len(found) > 90
    assert len(opsets) > 12
    assert {"If", "Loop", "Conv", "BatchNormalization", "Softmax", "Slice"} <= found


def test_branches_differ_in_shape_only_where_if_allows_it() -> None:
    def shapes(seed: int, opset: int) -> set[tuple[int, ...]]:
        """Return the shapes that an If gives on the two sides of its condition."""
        b = Builder(Decider(Seeded(seed)), opset, 2)
        b.add([Value("c", (np.array(True), np.array(False))), Value("x", (np.ones((2, 3), np.float32),) * 2)])
        try:
            return {array.shape for array in conditional(b).arrays}
        except Refused:
            return set()

    seeds = range(60)
    before = [len(shapes(seed, 10)) for seed in seeds]
    since = [len(shapes(seed, 11)) for seed in seeds]
    assert max(before) == 1
    assert max(since) == 2
