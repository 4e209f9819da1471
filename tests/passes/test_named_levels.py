"""Levels of single layers by name, in every pass that takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import demo
from graphopt.analysis.layer_statistics import Layer, find_layers
from graphopt.errors import RecipeError
from graphopt.graph import Model, read_model
from graphopt.rewrite import Outcome, PassManager, create
from graphopt.rewrite.named_levels import named_levels
from graphopt.runtime import Feeds

QUICK = {"rows": 512, "samples": 32}


def compressed(name: str, **options: Any) -> tuple[Model, Outcome]:
    model = read_model(demo.CNN)
    data = Feeds.open(demo.CALIBRATION, model).take(32)
    steps = [create("fold-constants"), create("fuse-batch-norm"), create(name, {**QUICK, **options})]
    return model, PassManager(steps, verify="fast").run(model, data)


def zeros(model: Model) -> dict[str, tuple[int, int]]:
    """Zeros and weights of each layer."""
    layers = [found for found in find_layers(model) if isinstance(found, Layer)]
    return {each.node.name: (int((each.array() == 0).sum()), each.array().size) for each in layers}


def test_a_layer_has_its_own_share_and_the_others_make_up_for_it() -> None:
    levels = ["/0/Conv=0", "/4/Conv=0.25", "nobody=0.5"]
    model, outcome = compressed("prune-wanda", sparsity=0.6, protect_ends=False, levels=levels)
    found = zeros(model)
    assert found["/0/Conv"][0] == 0
    assert found["/4/Conv"][0] == pytest.approx(0.25 * found["/4/Conv"][1], rel=0.02)
    assert sum(gone for gone, _ in found.values()) == pytest.approx(0.6 * sum(n for _, n in found.values()), rel=0.02)
    assert dict(outcome.records[-1].skips)["nobody"] == "no node has this name"


def test_a_layer_has_its_own_bits() -> None:
    _, outcome = compressed("round-weights", bits=4, levels=["/4/Conv=6", "/0/Conv=3"])
    bits = {layer.name: layer.what.split(" ")[0] for layer in outcome.records[-1].layers}
    assert (bits["/4/Conv"], bits["/0/Conv"], bits["/7/first/Conv"]) == ("6", "3", "4")


def test_strength_weakens_the_shares_of_single_layers_too() -> None:
    step: Any = create("prune-wanda", {"sparsity": 0.8, "levels": ["a=0.5", "b=1"]})
    half = step.with_strength(0.5)
    assert half.sparsity == 0.4
    assert named_levels(half.levels, low=0, high=1) == {"a": 0.25, "b": 0.5}


@pytest.mark.parametrize(
    ("name", "levels", "message"),
    [
        ("prune-wanda", ["a"], "NAME=LEVEL"),
        ("prune-second-order", ["a=1.5"], "a level from 0 to 1"),
        ("round-weights", ["a=9"], "a level from 2 to 8"),
        ("round-weights", ["a=3.5"], "whole numbers of bits"),
        ("round-weights", ["a=3", "a=4"], "'a' twice"),
        ("prune-wanda", ["=0.5"], "NAME=LEVEL"),
        ("prune-wanda", ["a=nan"], "NAME=LEVEL"),
    ],
)
def test_entries_of_another_form_are_refused(name: str, levels: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        create(name, {"levels": levels})


def test_names_may_hold_equals_signs() -> None:
    assert named_levels(["a=b=0.5"], low=0, high=1) == {"a=b": 0.5}
    assert np.isclose(named_levels(["x=1e-1"], low=0, high=1)["x"], 0.1)
