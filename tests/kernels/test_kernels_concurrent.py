"""One session, many threads: every operator gives the bits it gives alone, whatever else runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from graphopt.runtime import session
from graphopt.runtime.library import kernel_library
from kernel_cases import Case, all_cases, large_cases

CALLERS = 4
ROUNDS = 40


def feeds_of(case: Case) -> list[dict[str, np.ndarray]]:
    """The case's feed, its numbers in other orders, and fewer of them: scratch memory grows and shrinks."""
    shuffled = [
        {name: np.random.default_rng(seed).permuted(array, axis=None) for name, array in case.feeds.items()}
        for seed in range(3)
    ]
    return [case.feeds, *shuffled, {name: array[: len(array) // 2] for name, array in case.feeds.items()}]


@pytest.mark.parametrize("case", [*large_cases(), *all_cases()], ids=lambda case: case.name)
def test_concurrent_runs_give_the_bits_of_single_ones(case: Case) -> None:
    alone = session(case.model, kernels=kernel_library(), threads=1)
    feeds = feeds_of(case)
    wanted = [alone.run(None, feed)[0] for feed in feeds]
    shared = session(case.model, kernels=kernel_library(), threads=2)

    def call(seed: int) -> list[str]:
        order = np.random.default_rng(seed).integers(0, len(feeds), ROUNDS)
        runs = [(int(i), shared.run(None, feeds[i])[0]) for i in order]
        return [f"feed {i}" for i, found in runs if not np.array_equal(found, wanted[i], equal_nan=True)]

    with ThreadPoolExecutor(CALLERS) as pool:
        assert not [each for found in pool.map(call, range(CALLERS)) for each in found]
