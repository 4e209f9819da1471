"""Allocation by measured divergence: shares follow what layers cost the outputs, and the sum is what was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import demo
from graphopt.analysis.layer_statistics import Layer, find_layers
from graphopt.graph import Model, read_model
from graphopt.passes.prune.masking import LEVELS
from graphopt.passes.prune.measured import between
from graphopt.passes.prune.prune_second_order import PruneSecondOrder
from graphopt.passes.prune.prune_wanda import PruneWanda
from graphopt.rewrite import PassManager, create
from graphopt.runtime import Feeds


def zeros(model: Model) -> dict[str, float]:
    layers = [found for found in find_layers(model) if isinstance(found, Layer)]
    return {layer.node.name: 1 - np.count_nonzero(layer.array()) / layer.array().size for layer in layers}


def size_of(model: Model) -> dict[str, int]:
    return {each.node.name: each.array().size for each in find_layers(model) if isinstance(each, Layer)}


def compressed(step: Any) -> Model:
    model = read_model(demo.CNN)
    data = Feeds.open(demo.CALIBRATION, model).take(64)
    PassManager([create("fold-constants"), create("fuse-batch-norm"), step], verify="fast").run(model, data)
    return model


@pytest.mark.parametrize("cls", [PruneWanda, pytest.param(PruneSecondOrder, marks=pytest.mark.slow)])
def test_sensitive_layers_lose_less_and_the_share_is_kept(cls: Any) -> None:
    model = compressed(cls(sparsity=0.8, allocation="kl", rows=1024, protect_ends=False))
    found = zeros(model)
    sizes = size_of(model)
    share = sum(found[name] * sizes[name] for name in found) / sum(sizes.values())
    assert share == pytest.approx(0.8, abs=0.02)
    # Everything depends on the 288 weights of the first convolution; those of 3x3x64 inputs are redundant.
    assert found["/0/Conv"] == min(found.values()) < 0.6
    assert found["/7/first/Conv"] > 0.8


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model() -> None:
    step = PruneWanda(sparsity=0.7, allocation="kl", rows=512, samples=32)
    assert compressed(step).to_bytes() == compressed(step).to_bytes()


def test_layers_that_lose_least_get_the_pattern_first() -> None:
    model = compressed(PruneWanda(sparsity=0.4, pattern="2:4", allocation="kl", rows=512, protect_ends=False))
    found = zeros(model)
    assert set(np.round(list(found.values()), 6)) <= {0.0, 0.5}
    assert found["/0/Conv"] == 0.0  # one input is no multiple of four
    assert found["/7/first/Conv"] == 0.5
    assert (
        0.3 < sum(share * size_of(model)[name] for name, share in found.items()) / sum(size_of(model).values()) <= 0.4
    )


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=6))
def test_between_measured_shares_damage_never_falls(damages: list[float]) -> None:
    shares = np.linspace(0.3, 0.9, len(damages)) if len(damages) > 1 else np.array([0.5])
    found = between(LEVELS, tuple(shares), np.sort(damages))
    assert found[0] == 0.0
    assert (np.diff(found) >= -1e-9 * found[1:]).all()
    assert np.isfinite(found).all()
    at = between(shares, tuple(shares), np.sort(damages))
    np.testing.assert_allclose(at, np.sort(damages), rtol=1e-6)


def test_a_layer_that_does_no_damage_is_worth_nothing() -> None:
    assert (between(LEVELS, (0.5, 0.9), np.zeros(2)) < 1e-200).all()
