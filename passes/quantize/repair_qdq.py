"""The pass ``repair-qdq``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphopt.analysis.activation_ranges import Ranges
from graphopt.analysis.types import Types
from graphopt.passes.quantize.repairing.coverage import Coverage
from graphopt.passes.quantize.repairing.grids import (
    end_with_activations,
    even_grids,
    free_activations,
    give_one_scale,
    look_integers_up,
    make_unsigned,
    move_integers,
    plain_constants,
    write_zeros,
)
from graphopt.passes.quantize.repairing.weights import (
    center_weights,
    fold_normalization,
    lower_weights,
    round_biases,
    store_integers,
    take_factors,
    turn_scales,
)
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, Patch, Skip
from graphopt.target import find_target
from graphopt.target.numbers import UINT8
from graphopt.target.quantized import quantized_operators

if TYPE_CHECKING:
    from collections.abc import Generator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node

ROUNDS = 8
"""Times that all repairs are tried: one makes room for another."""

REPAIRS = (
    write_zeros,
    make_unsigned,
    give_one_scale,
    store_integers,
    take_factors,
    free_activations,
    end_with_activations,
    turn_scales,
    center_weights,
    lower_weights,
    even_grids,
)
"""Repairs that need no data, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairQdq(Pass):
    """Mend what keeps ONNX Runtime from computing a quantized model on integers, whoever quantized it.

    Attributes:
        drop_idle: Also remove pairs that no integer operator stands beside: they round for nothing.
        floating: Names of operators that stay float; pairs that serve them alone go.

    Matches: QuantizeLinear and DequantizeLinear around float operators, where a rule of the target is broken.
    Produces: zero points written out; uint8 for int8 activations, the same numbers; one scale for activations with one
        per channel; no pair between an operator and the Relu or Clip behind it; grids that end where those do; one grid
        on both sides of data movement; pairs behind operators between quantized ones that lack them, on the grid of
        their input where that bounds the result (data movement, pools, Concat, Sigmoid), on ranges of the data
        elsewhere; one pair where a tensor has several or float readers too; weights as integers with zero point 0 and
        scales along their outputs; int32 biases on the product of the scales; a BatchNormalization in the scales of the
        weight before it.
    Requires: a target of ONNX Runtime whose activations are uint8, constant scales, float32 activations.
    Preserves: names, types and shapes of inputs and outputs, which operators are quantized, integers of weights but
        for those with scales along the wrong axis. Values up to a few steps of the grids that change: LOSSY.
    Source: the conditions of ONNX Runtime's QDQ selectors, as the rules of the target list them.
    """

    name: ClassVar[str] = "repair-qdq"
    contract: ClassVar[Contract] = Contract.LOSSY

    drop_idle: bool = True
    floating: tuple[str, ...] = ()

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield patches until no rule of those above is broken any more."""
        target = find_target(facts.target)
        if target.activations[0] is not UINT8 or target.session is None:
            yield Skip(model.graph.name or "the model", f"there are no repairs for {target.name}")
            return
        if not quantized_operators(model):
            yield Skip(model.graph.name or "the model", "it is not quantized")
            return
        yield from plain_constants(model, target)
        yield from look_integers_up(model, target)
        yield from fold_normalization(model, target)
        yield from round_biases(model, target)  # a bias along a wrong axis would not run for the ranges
        seen = facts.get(Ranges) if facts.feeds is not None else None
        skips: dict[str, Skip] = {}
        for _ in range(ROUNDS):
            patches = 0
            for repair in REPAIRS:
                for patch in repair(model, target):
                    patches += 1
                    yield patch
            skips = {}
            for found in Coverage(model, target, facts.get(Types), seen, frozenset(self.floating)).missing():
                if isinstance(found, Skip):
                    skips[str(found.node)] = found
                else:
                    patches += 1
                    yield found
            for patch in round_biases(model, target):
                patches += 1
                yield patch
            if not patches:
                break
        yield from (skip for skip in skips.values())
        yield from move_integers(model, target)
        yield from round_biases(model, target)
        if self.drop_idle:
            yield from Coverage(model, target, facts.get(Types), seen, frozenset(self.floating)).idle()
