"""Random networks through every compressing pass: a few in every run, many where there is time."""

from __future__ import annotations

import os

import numpy as np
import pytest

from compression_plans import OPTIONS, random_plan
from fuzz_compression import fuzz
from random_networks import random_network

MANY = int(os.environ.get("GRAPHOPT_FUZZ_COUNT", "1500"))


def test_a_few_random_networks_are_compressed_without_a_fault() -> None:
    tally = fuzz(range(40), most=4)
    assert not tally.faults, "\n".join(f"seed {seed}: {fault}" for seed, fault in tally.faults)
    assert tally.patched.total() > 60
    assert tally.patched["removal"] > 10
    assert tally.patched["shards"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_many_random_networks_are_compressed_without_a_fault(part: int) -> None:
    count = MANY // 3
    tally = fuzz(range(400_000 + part * count, 400_000 + (part + 1) * count))
    assert not tally.faults, "\n".join(f"seed {seed}: {fault}" for seed, fault in tally.faults)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["prune-second-order", "prune-wanda", "round-weights"])
def test_solved_weights_lose_less_than_plain_ones_in_the_mean(step: str) -> None:
    tally = fuzz(range(500_000, 500_400), only=step)
    ratios = tally.damage[step]
    assert len(ratios) > 20
    assert np.mean(ratios) < -0.1


def test_a_seed_gives_the_same_network_and_plan_again() -> None:
    first, second = random_network(11), random_network(11)
    assert first.proto.SerializeToString(deterministic=True) == second.proto.SerializeToString(deterministic=True)
    assert random_plan(11) == random_plan(11)


def test_networks_are_of_many_kinds() -> None:
    found: set[str] = set()
    odd: set[str] = set()
    for seed in range(150):
        made = random_network(seed)
        found.update(node.op_type for node in made.proto.graph.node)
        odd.update(made.odd)
    assert {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "Gather", "If", "Loop", "Split"} <= found
    assert {"shared weight", "zeros", "tied embedding", "overridable", "weight is output", "batch 1"} <= odd


def test_every_compressing_pass_has_plans() -> None:
    assert {random_plan(seed).compress[0] for seed in range(200)} == set(OPTIONS)
