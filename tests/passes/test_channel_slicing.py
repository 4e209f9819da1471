"""A model without some channels computes what it computes where nothing reads these channels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel_models import NETWORKS, difference, feed_of, free_units, groups_of, masked, sliced
from graphopt.verify.legality import check_legal


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=st.integers(0, 1 << 16))
@settings(max_examples=6, deadline=None)
def test_sliced_equals_masked(name: str, seed: int) -> None:
    model = NETWORKS[name]()
    removed = free_units(groups_of(model), np.random.default_rng(seed))
    assert len(removed)
    small = sliced(model, removed)
    check_legal(small)
    onnx.checker.check_model(onnx.load_from_string(small.to_bytes()), full_check=True)
    assert difference(masked(model, removed), small, feed_of(name)) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_removing_matters_and_makes_it_smaller(name: str) -> None:
    model = NETWORKS[name]()
    removed = free_units(groups_of(model), np.random.default_rng(1))
    assert difference(model, masked(model, removed), feed_of(name)) > 1e-4
    assert len(sliced(model, removed).to_bytes()) < len(model.to_bytes())


@pytest.mark.parametrize("name", NETWORKS)
def test_again_and_again(name: str) -> None:
    """Each unit can go on its own, down to the last one of each group."""
    model = NETWORKS[name]()
    draw = np.random.default_rng(0)
    for _ in range(40):
        channels = groups_of(model)
        free = [group for group in channels.groups if not group.reason and len(group) > 1]
        if not free:
            break
        unit = draw.permutation(free[draw.integers(len(free))].units)[:1]
        small = sliced(model, unit)
        assert difference(masked(model, unit), small, feed_of(name)) < 1e-5
        model = small
    else:
        pytest.fail("units never ran out")
