"""The pass ``round-weights``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.layer_statistics import Layer, Refusal, end_layers, find_layers
from graphopt.graph.labels import node_label
from graphopt.passes.quantize import storage
from graphopt.passes.quantize.measured import allocate_bits
from graphopt.rewrite.layerwise import LayerwisePass, Problem, Solution
from graphopt.rewrite.named_levels import named_levels, unknown_names
from graphopt.solve import rounding
from graphopt.solve.least_squares import solve_rows
from graphopt.target.operators import is_depthwise

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from graphopt.analysis import Facts
    from graphopt.graph import Model, Node, Rewriter
    from graphopt.rewrite.layer_stop import Stop
    from graphopt.rewrite.layerwise import Written
    from graphopt.rewrite.patch import Patch, Skip
    from graphopt.rewrite.sweep import Sweep

Cube = NDArray[np.float64]

SMALLEST_WEIGHT = 256
"""Values below which a weight stays float: its scales and the operator that restores it would take more."""


MATRIX_PULL = 3
"""How many times the damping of convolutions matrix products have."""

ENDS_SHARE = 0.1
"""Share of all weights that the first and the last layers together may hold to have ``ends_bits``; the largest of them
that are too much for it are rounded like the others: at 8 bits one such layer would decide the size of the model."""

FEW_ZEROS = 0.1
"""Up to this share, zeros are what the weights happened to be; more were made by pruning."""

RECURRENT = frozenset(("LSTM", "GRU", "RNN"))
"""Errors of their weights add up from step to step."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one layer is rounded to."""

    scheme: Literal["integer", "ternary", "binary", "codebook"]
    bits: int
    granularity: rounding.Granularity
    opset: int
    end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundWeights(LayerwisePass):
    """Round weights to few bits so that each layer gives the outputs it gave before, and store them in so many.

    Layers are rounded front to back against the dense model's outputs on the compressed model's inputs, so each makes
    up for those before it. Weights that are zero stay zero. The grid is written into the model: later passes keep it.

    Attributes:
        bits: Of a weight: 2 to 8 for integers, 1 to 8 for a code book of 2^bits values.
        scheme: ``integer``; ``ternary`` (minus, zero, plus one scale); ``binary`` (minus or plus one scale);
            ``codebook`` (values anywhere, shared by the whole weight).
        granularity: What shares a scale: the ``tensor``, a ``channel`` of the output, or a ``block`` of inputs of one
            channel where the layer is a matrix (convolutions of larger kernels have one scale per channel then).
        block: Inputs of a block.
        symmetric: Zero lies in the middle of the grid; else each scale has a zero point, which integer kernels lack.
            None: blocks, which they lack as well, have zero points, channels and tensors none.
        method: ``auto``: GPTQ, then coordinate descent with refitted scales; ``gptq`` alone; ``adaround``, then the
            same descent: slower and as good; ``nearest``: the nearest level of a grid up to the largest weight.
        allocation: ``uniform``: every layer has ``bits``; ``kl``: each has 2 to 8, ``bits`` on average over the
            weights, by what rounding that layer alone costs the model's outputs, measured; for integers, with data.
        levels: Bits of single layers, ``NAME=BITS`` each, as integers; ``allocation`` leaves these alone.
        ends_bits: Bits of the first and the last layers where these hold at most a tenth of the weights, of depthwise
            convolutions, of recurrent layers and, where there is data, of layers in bodies, which nobody can observe;
            integers per channel.
        damping: Pull towards the dense weights, relative to the mean square of the inputs: strong, since what layers
            read in use differs from the samples more than some held back from these show. Matrix products, which see
            fewer rows and other texts, have three times as much as convolutions.

    Matches: Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN with constant weights of 256 values or more, in bodies
        too.
    Produces: The same nodes behind a DequantizeLinear of integers (2 bits from opset 25 on, 4 from 21 on, else 8), one
        bit per weight behind BitShift and BitwiseAnd for large binary weights (opset 18), a Gather of values for code
        books; Q = argmin tr((Q - W)(H + d)(Q - W)') with H = E[z z'], z the layer's inputs in the compressed model; the
        bias keeps the mean output. Without data every weight takes its nearest level.
    Requires: Opset 13 for a scale per channel, 21 for blocks; weights that no caller may override.
    Preserves: Zeros (binary weights have none: layers with more than a tenth of them stay), names, types and shapes.
        Not values: LOSSY.
    Source: Frantar et al. 2023, arXiv:2210.17323; Behdin et al. 2023, arXiv:2309.01885; Zhang et al. 2024,
        arXiv:2403.07134; Nagel et al. 2020, arXiv:2004.10568; Han et al. 2016, arXiv:1510.00149, section 3; bias:
        Nagel et al. 2019, arXiv:1906.04721, section 4.2.
    """

    name: ClassVar[str] = "round-weights"
    guard: ClassVar[str] = "layers"
    data_free: ClassVar[bool] = True
    takes_wide: ClassVar[bool] = True

    bits: int = 4
    scheme: Literal["integer", "ternary", "binary", "codebook"] = "integer"
    granularity: Literal["tensor", "channel", "block"] = "channel"
    block: int = 32
    symmetric: bool | None = None
    method: Literal["auto", "gptq", "adaround", "nearest"] = "auto"
    allocation: Literal["uniform", "kl"] = "uniform"
    levels: tuple[str, ...] = ()
    ends_bits: int = 8
    damping: float = 0.1

    def __post_init__(self) -> None:
        super(RoundWeights, self).__post_init__()
        if any(bits != int(bits) for bits in named_levels(self.levels, low=2, high=8).values()):
            raise ValueError("levels gives layers whole numbers of bits")
        least = 1 if self.scheme == "codebook" else 2
        if not least <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}, but it must be {least} to 8")
        if not 2 <= self.ends_bits <= 8:
            raise ValueError(f"ends_bits is {self.ends_bits}, but it must be 2 to 8")
        if self.block < 16 or self.block & (self.block - 1):
            raise ValueError(f"block is {self.block}, but it must be a power of two, 16 or more")

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per layer."""
        # What rows share cannot follow a gain of one row.
        shared = self.granularity == "tensor" or self.scheme == "codebook" or model.opset < storage.AXIS_SINCE
        alone = replace(self, variance=self.variance and not shared)
        yield from unknown_names(model, named_levels(self.levels, low=2, high=8))
        yield from LayerwisePass.run(alone, model, facts)

    @property
    def runs_for(self) -> str:
        """What the model must be run for even where statistics are known."""
        shares = self.allocation == "kl" and self.scheme == "integer"
        return "the allocation kl compares outputs of the model" if shares else ""

    def layers(self, model: Model) -> Iterator[Layer | Refusal]:
        """Yield the layers, depthwise and recurrent ones too, that gain by being stored in few bits."""
        for found in find_layers(model, keep=self.keep, depthwise=True, recurrent=True):
            if isinstance(found, Refusal):
                yield found
                continue
            array = found.array()
            reason = storage.refusal(array.dtype.name, model.opset)
            if not reason and array.size < SMALLEST_WEIGHT:
                reason = f"it has {array.size} weights: their scale would take as much as few bits save"
            yield Refusal(found.node, reason) if reason else found

    def plan(self, sweep: Sweep, stops: Sequence[Stop], facts: Facts) -> Mapping[str, Any]:
        """Return what each layer is rounded to."""
        ends = _small_ends(sweep.model, stops)
        # What lies in a body cannot be observed, so nothing makes up for rounding it.
        blind = (
            {stop.layer.node for stop in stops if stop.layer.scope is not sweep.model.graph}
            if sweep.batches or sweep.known is not None
            else set()
        )
        safe = ends | blind
        own = named_levels(self.levels, low=2, high=8)
        plans = {stop: self._plan(stop, sweep.model.opset, end=stop.layer.node in safe) for stop in stops}
        chosen: dict[str, int] = {}
        for stop, plan in plans.items():
            bits = own.get(node_label(stop.layer.node))
            if bits is not None:
                plans[stop] = replace(plan, scheme="integer", bits=int(bits))
        if self.allocation == "kl" and self.scheme == "integer":
            free = {
                stop: plan.granularity
                for stop, plan in plans.items()
                if not (plan.end or stop.reading is None or node_label(stop.layer.node) in own)
            }

            def levels_of(stop: Stop, bits: int) -> rounding.Levels:
                return self._levels(replace(plans[stop], bits=bits))

            chosen = allocate_bits(sweep, free, self.bits, levels_of, damping=self.damping, variance=self.variance)
        return {stop.key: replace(plan, bits=chosen.get(stop.key, plan.bits)) for stop, plan in plans.items()}

    def _plan(self, stop: Stop, opset: int, *, end: bool) -> _Plan:
        channel: rounding.Granularity = "row" if opset >= storage.AXIS_SINCE else "tensor"
        if end or is_depthwise(stop.layer.node) or stop.layer.node.op in RECURRENT:
            return _Plan("integer", self.ends_bits, channel, opset, end=True)
        matrix = not stop.layer.node.op.startswith("Conv") or set(stop.dense.shape[2:]) == {1}
        if self.granularity == "tensor":
            channel = "tensor"
        elif self.granularity == "block" and matrix and opset >= storage.BLOCKS_SINCE:
            channel = self.block
        return _Plan(self.scheme, self.bits, channel, opset)

    def solve(self, problem: Problem) -> Solution | str:
        """Return the rounded weights with what writes them as integers."""
        plan: _Plan = problem.plan
        stacked = len(problem.dense) > 1 and problem.layer.node.op != "Conv"
        if stacked and plan.granularity != "tensor" and plan.opset < storage.BLOCKS_SINCE:
            return f"its scales vary along two axes, which DequantizeLinear has from opset {storage.BLOCKS_SINCE} on"
        zeros = any((part == 0).any() for part in problem.present)
        mask = [part != 0 for part in problem.present] if zeros else None
        if plan.scheme == "binary" and mask is not None and np.mean([part.mean() for part in mask]) < 1 - FEW_ZEROS:
            return "it has zeros, which binary weights cannot keep; ternary ones do"
        if plan.scheme == "binary":
            mask = None
        measured = problem.measured and bool(problem.fit)
        if not measured:
            given = rounding.Problem(
                np.stack(problem.present), _unknown(problem), None if mask is None else np.stack(mask)
            )
        else:
            given = rounding.asymmetric_target(problem.dense, problem.fit, damping=self._pull(problem), mask=mask)
        if plan.scheme == "codebook":
            return self._codebook(problem, given, plan)
        return self._integers(problem, given, plan, measured=measured)

    def _integers(self, problem: Problem, given: rounding.Problem, plan: _Plan, *, measured: bool) -> Solution:
        levels = self._levels(plan)
        # The pull to the old scale keeps the first guess of the scales sane; with a mask the target lies off it.
        weight = np.stack(problem.present)
        if measured and given.mask is not None:
            groups = zip(problem.dense, given.mask, problem.fit, strict=True)
            weight = np.stack([solve_rows(*each, damping=self._pull(problem)) for each in groups])
        elif measured:
            weight = given.target
        method = self.method if measured else "nearest"
        grid, values = rounding.round_layer(given, levels, plan.granularity, method=method, weight=weight)
        plain = None
        if measured and plan.scheme == "integer" and plan.granularity != "tensor":
            plain, other = rounding.round_layer(
                given, levels, plan.granularity, method="nearest", weight=np.stack(problem.present)
            )

        def record(rw: Rewriter, written: Written) -> None:
            stored = _stored(problem, grid, values, written)
            if plain is not None:
                taken = [
                    np.broadcast_to(rows[:, None], part.shape) for rows, part in zip(written.taken, values, strict=True)
                ]
                like = (
                    problem.stop.form.weight(
                        [part.astype(np.float64) for part in taken], np.empty(written.weight.shape)
                    )
                    > 0
                )
                stored = _chosen(like, stored, _stored(problem, plain, other, written))
            storage.write_grid(rw, problem.layer.node, written.tensor, stored, plan.opset)

        return Solution(list(values), list(other) if plain is not None else None, self._what(problem, plan), record)

    def _pull(self, problem: Problem) -> float:
        return self.damping if problem.layer.node.op.startswith("Conv") else self.damping * MATRIX_PULL

    def _levels(self, plan: _Plan) -> rounding.Levels:
        if plan.scheme == "ternary":
            return rounding.TERNARY
        if plan.scheme == "binary":
            return rounding.BINARY
        blocks = not isinstance(plan.granularity, str)
        symmetric = plan.end or (not blocks if self.symmetric is None else self.symmetric)
        return rounding.integer_levels(plan.bits, symmetric=symmetric, narrow=plan.bits == 8)

    def _codebook(self, problem: Problem, given: rounding.Problem, plan: _Plan) -> Solution:
        book = rounding.lloyd(given, 2**plan.bits)
        values = book.nearest(given.target, given.mask)
        if problem.measured and problem.fit:
            book, values = rounding.alternate_codebook(given, book)

        def record(rw: Rewriter, written: Written) -> None:
            places = problem.stop.form.weight(
                [book.codes(part).astype(np.float64) for part in values], np.empty(written.weight.shape, np.int64)
            )
            storage.write_codebook(rw, problem.layer.node, written.tensor, places, book.values, plan.opset)

        return Solution(list(values), None, self._what(problem, plan), record)

    def _what(self, problem: Problem, plan: _Plan) -> str:
        """Return what a layer is rounded to, and how it is stored where that takes more."""
        if plan.scheme == "codebook":
            element = storage.element_type(0, 2**plan.bits - 1, plan.opset)
            return f"{2**plan.bits} values for the tensor, stored as {storage.type_name(element)}"
        sharing = plan.granularity if isinstance(plan.granularity, str) else f"block of {plan.granularity}"
        sharing = "channel" if sharing == "row" else sharing
        name = plan.scheme if plan.scheme != "integer" else f"{plan.bits} bits"
        if plan.scheme == "binary" and storage.packs_bits(problem.layer.array().size, plan.opset):
            return f"{name} per {sharing}, stored in single bits"
        levels = self._levels(plan)
        low, high = (-1, 1) if plan.scheme == "binary" else (levels.low, levels.high)
        fewest = storage.fewest_bits(problem.layer.array().shape)
        element = storage.element_type(low, high, plan.opset, fewest)
        return f"{name} per {sharing}, stored as {storage.type_name(element)}"


def _small_ends(model: Model, stops: Sequence[Stop]) -> set[Node]:
    """Return the first and the last layers, but the largest where all would hold more than their share of the weights.

    Args:
        model: The model.
        stops: All layers that are rounded.
    """
    ends = end_layers(model.graph, {stop.layer.node for stop in stops})
    left = ENDS_SHARE * sum(stop.dense.size for stop in stops)
    found = set()
    for stop in sorted((stop for stop in stops if stop.layer.node in ends), key=lambda stop: stop.dense.size):
        left -= stop.dense.size
        if left < 0:
            break
        found.add(stop.layer.node)
    return found


def _unknown(problem: Problem) -> Cube:
    """Return ones for the moments of inputs of which nothing is known; they take no memory."""
    columns = problem.present[0].shape[1]
    return np.broadcast_to(np.ones(()), (len(problem.present), columns, columns))


def _stored(problem: Problem, grid: rounding.Grid, values: Cube, written: Written) -> storage.Stored:
    """Return the integers in the layout of the weight, each row's scale multiplied with its gain."""
    columns = values.shape[2]
    scale, zero = (np.broadcast_to(part, values.shape) for part in grid.spread(columns))
    gain = np.stack(written.gains)[:, :, None]
    scale = (scale * gain).astype(np.float32).astype(np.float64)
    like = np.empty(written.weight.shape)
    parts = (problem.stop.form.weight(list(part), like) for part in (grid.codes(values), scale, zero))
    codes, scales, zeros = parts
    # A masked weight of a binary grid does not occur; elsewhere zero has the integer of the zero point.
    return storage.Stored(codes.astype(np.int64), scales, zeros)


def _chosen(taken: NDArray[np.bool_], first: storage.Stored, second: storage.Stored) -> storage.Stored:
    """Return the first where it was taken, else the second."""
    return storage.Stored(
        np.where(taken, first.codes, second.codes),
        np.where(taken, first.scale, second.scale),
        np.where(taken, first.zero, second.zero),
    )
