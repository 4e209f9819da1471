"""round-weights with bits by measured divergence: as many on average as asked for, most where they count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from graphopt import demo
from graphopt.graph import read_model
from graphopt.passes.quantize.round_weights import RoundWeights
from graphopt.rewrite import PassManager, create
from graphopt.runtime import Feeds
from graphopt.verify.quality import Judge, Quality

if TYPE_CHECKING:
    from typing import Literal

SIZES = {"/3/first/Conv": 9216, "/3/second/Conv": 9216, "/4/Conv": 18432, "/7/first/Conv": 36864}
SIZES |= {"/7/second/Conv": 36864}


def rounded(bits: int, allocation: Literal["uniform", "kl"], samples: int = 64) -> tuple[dict[str, int], Quality]:
    model = read_model(demo.CNN)
    calibration, held_back = Feeds.open(demo.CALIBRATION, model).split()
    judge = Judge(model, held_back)
    step = RoundWeights(bits=bits, allocation=allocation, rows=1024, samples=samples)
    steps = [create("fold-constants"), create("fuse-batch-norm"), step]
    outcome = PassManager(steps, verify="fast").run(model, calibration)
    found = {layer.name: int(layer.what.split(" ")[0]) for layer in outcome.records[-1].layers}
    return found, judge.measure(model)


def average(bits: dict[str, int]) -> float:
    return sum(bits[name] * size for name, size in SIZES.items()) / sum(SIZES.values())


@pytest.mark.slow
def test_bits_are_as_many_as_asked_for_and_do_less_damage() -> None:
    equal, plain = rounded(3, "uniform", samples=256)
    chosen, better = rounded(3, "kl", samples=256)
    assert {equal[name] for name in SIZES} == {3}
    assert 2.8 < average(chosen) <= 3.0
    assert len({chosen[name] for name in SIZES}) > 1
    assert chosen["/0/Conv"] == chosen["/10/Gemm"] == 8
    assert plain.kl is not None
    assert better.kl is not None
    assert better.kl < plain.kl


def test_fewest_bits_leave_no_choice() -> None:
    chosen, _ = rounded(2, "kl", samples=16)
    assert {chosen[name] for name in SIZES} == {2}


def test_without_data_every_layer_has_the_same() -> None:
    model = read_model(demo.CNN)
    outcome = PassManager([RoundWeights(bits=3, allocation="kl")], verify="fast").run(model, None)
    assert {layer.what.split(" ")[0] for layer in outcome.records[-1].layers} == {"3", "8"}
