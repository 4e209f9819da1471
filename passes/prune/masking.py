"""What passes share that choose, layer by layer, which weights stay, and solve those again."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from graphopt.analysis.layer_statistics import end_layers
from graphopt.graph.labels import node_label
from graphopt.passes.prune.gradual import polynomial, quietly
from graphopt.passes.prune.measured import measured_damages
from graphopt.passes.prune.structure import Structure
from graphopt.rewrite.layerwise import LayerwisePass, Problem, Solution
from graphopt.rewrite.named_levels import named_levels, unknown_names
from graphopt.rewrite.sensitivity import finish
from graphopt.solve import allocation, least_squares, scores
from graphopt.solve.patterns import Pattern
from graphopt.solve.threads import one_thread
from graphopt.solve.wanda import wanda_mask

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis import Facts
    from graphopt.graph import Model, Node
    from graphopt.rewrite import Patch, Skip
    from graphopt.rewrite.layer_stop import Stop
    from graphopt.rewrite.sensitivity import Candidate
    from graphopt.rewrite.sweep import Sweep
    from graphopt.solve.least_squares import Statistics
    from graphopt.solve.patterns import Mask

    Matrix = NDArray[np.float64]
    Vector = NDArray[np.float64]

PROTECTED_SHARE = 0.02
"""First and last layers are protected where they hold at most this share of all weights: beyond, what the other layers
would have to lose for them costs more than it saves."""

MOST_FLOPS = 3e12
"""Layers whose weights would take more to solve again keep what choosing left: tens of seconds on one core."""

_ENDLESS = 1e30
"""Loss that stands for what overflowed: more than any other, and the sum over all layers stays finite."""

LEVELS = np.array([0.0, *np.arange(0.1, 0.9, 0.05), *np.arange(0.9, 0.99, 0.02), 0.99])
"""Shares of zeros that the allocation by losses chooses from, for each layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskingPass(LayerwisePass):
    """A pass that chooses which weights of a layer stay; subclasses define `choose` and `losses`.

    Attributes:
        sparsity: Share of zeros over all layers that can be pruned, 0..1; zeros that are there already count. For N:M
            at most its own share: below it the layers that lose least get N:M until the share is reached.
        pattern: Where zeros may lie: ``unstructured``, ``N:M``, or the blocks of outputs by inputs ``4x1``, ``8x1``,
            ``16x1``, ``1x4``, ``4x4``. Inputs of a convolution are grouped along the channels of one kernel place.
        allocation: How layers share it out: ``uniform``, all the same; ``size``, large ones a little sparser: the share
            that stays goes with the number of weights to the power of -1/8; ``erk``, by their shapes, far sparser;
            ``loss``, by what each share costs each layer, relative to what varies in its output; ``kl``, by what it
            costs the outputs of the model where only that layer is pruned, measured.
        protect_ends: Leave the first and the last layers without zeros, where they hold few of the weights; the last
            ones are solved again with the others.
        steps: In how many steps, each solving all layers: step k of n reaches sparsity * (1 - (1 - k/n)^3).
        levels: Shares of single layers, ``NAME=SHARE`` each; the other layers make up for them.
    """

    guard: ClassVar[str] = "strength"
    takes_wide: ClassVar[bool] = True

    sparsity: float = 0.5
    pattern: str = "unstructured"
    allocation: Literal["uniform", "size", "erk", "loss", "kl"] = "uniform"
    protect_ends: bool = True
    steps: int = 1
    samples: int = 1024
    rows: int = 32768
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super(MaskingPass, self).__post_init__()
        named_levels(self.levels, low=0, high=1)
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"sparsity is {self.sparsity}, but it is a share between 0 and 1 (0.8 for 80 %)")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, but it must be 1 or more")
        Pattern.parse(self.pattern)

    @abstractmethod
    def choose(
        self, weights: Sequence[Matrix], given: Sequence[Statistics], squares: Sequence[Vector], share: float
    ) -> list[tuple[Matrix, Mask]]:
        """Return for each group what to put in place of W and which weights stay, [R, C] each.

        Args:
            weights: The weights that are best where all that are not zero now may stay, columns in the order in which
                the pattern groups them.
            given: Statistics of the inputs, columns in the same order.
            squares: Mean squares of the inputs, in the same order.
            share: Share of weights that goes.
        """

    def choose_each(
        self, weights: Sequence[Matrix], given: Sequence[Statistics], squares: Sequence[Vector], shares: Sequence[float]
    ) -> list[list[tuple[Matrix, Mask]]]:
        """Return what `choose` returns, for several shares."""
        return [self.choose(weights, given, squares, share) for share in shares]

    @abstractmethod
    def losses(self, weights: Sequence[Matrix], given: Sequence[Statistics], squares: Sequence[Vector]) -> Vector:
        """Return what the removal of each share of ``LEVELS`` costs a layer, relative to the power of its output."""

    @property
    def parsed(self) -> Pattern:
        """The pattern."""
        return Pattern.parse(self.pattern)

    @property
    def runs_for(self) -> str:
        """What the model must be run for even where statistics are known."""
        return "the allocation kl compares outputs of the model" if self.allocation == "kl" else ""

    def with_strength(self, fraction: float) -> Self:
        """Return the pass at a share of its sparsity, and of the shares of single layers."""
        own = named_levels(self.levels, low=0, high=1)
        levels = tuple(f"{name}={share * fraction:.6g}" for name, share in own.items())
        return replace(self, sparsity=self.sparsity * fraction, levels=levels)

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per layer, for the steps before the last too."""
        yield from unknown_names(model, named_levels(self.levels, low=0, high=1))
        for share in polynomial(1.0, self.steps)[:-1]:
            yield from quietly(replace(self.with_strength(share), steps=1).run(model, facts))
        yield from super(MaskingPass, self).run(model, facts)

    def plan(self, sweep: Sweep, stops: Sequence[Stop], facts: Facts) -> Mapping[str, Any]:
        """Return the share of zeros of each layer, or why it gets none."""
        refused = {stop.key: reason for stop in stops if (reason := self._refusal(stop))}
        own = named_levels(self.levels, low=0, high=1)
        taken = [stop for stop in stops if stop.key not in refused]
        fixed = {stop: own[label] for stop in taken if (label := node_label(stop.layer.node)) in own}
        free = [stop for stop in taken if stop not in fixed]
        # The others lose what is left to lose of the share over all.
        weights = sum(stop.dense.size for stop in free)
        wanted = self.sparsity * sum(stop.dense.size for stop in taken)
        rest = wanted - sum(share * stop.dense.size for stop, share in fixed.items())
        others = replace(self, sparsity=min(1.0, max(0.0, rest / weights))) if fixed and weights else self
        protected = {stops[place] for place in self._ends(sweep.model, stops)}
        ends = {place for place, stop in enumerate(free) if stop in protected}
        shares = dict(zip(free, others._shares(sweep, free, ends), strict=True)) | fixed
        return {**refused, **{stop.key: share for stop, share in shares.items()}}

    def solve(self, problem: Problem) -> Solution | str:
        """Return the weights that stay, solved for the dense outputs from the compressed inputs."""
        share = problem.plan
        if isinstance(share, str):
            return share
        supports = [part != 0 for part in problem.present]
        if not problem.fit:
            return self._by_squares(problem, supports, share)
        ((solved, masks),) = self._solved(problem.stop, problem.dense, supports, problem.fit, problem.squares, [share])
        masked = [np.where(mask, wanted, 0.0) for wanted, mask in zip(problem.dense, masks, strict=True)]
        zeros = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)
        return Solution(solved, otherwise=masked, what=f"{zeros:.1%} zeros")

    def _solved(
        self,
        stop: Stop,
        dense: Sequence[Matrix],
        supports: Sequence[Mask],
        fit: Sequence[Statistics],
        squares: Sequence[Vector],
        shares: Sequence[float],
    ) -> list[tuple[list[Matrix], list[Mask]]]:
        """Return for each share of zeros the solved weights of each group and which stay."""
        order = self._columns(stop)
        back = np.argsort(order)
        full = self._affordable(supports)
        starts = [
            least_squares.solve_rows(wanted, support, given, damping=self.damping)
            if full
            else np.where(support, wanted, 0)
            for wanted, support, given in zip(dense, supports, fit, strict=True)
        ]
        weights = [start[:, order] for start in starts]
        given = [permuted(each, order) for each in fit]
        found = []
        if max(shares) <= 0:
            every = [[(weight, weight != 0) for weight in weights]] * len(shares)
        else:
            every = self.choose_each(weights, given, [each[order] for each in squares], shares)
        for chosen in every:
            masks = [mask[:, back] & support for (_, mask), support in zip(chosen, supports, strict=True)]
            solved = [each[:, back] for each, _ in chosen]
            if self._affordable(masks):
                groups = zip(dense, masks, fit, strict=True)
                solved = [least_squares.solve_rows(*each, damping=self.damping) for each in groups]
            found.append((solved, masks))
        return found

    def candidates(self, stop: Stop, given: Sequence[Statistics], shares: Sequence[float]) -> list[Candidate]:
        """Return what a layer becomes at each share of zeros, all others being as they are.

        Args:
            stop: The layer.
            given: Statistics of its inputs, centred where it has a bias.
            shares: Shares of blocks that go.
        """
        present = stop.form.matrices(stop.layer.array())
        supports = [part != 0 for part in present]
        squares = [np.diag(each.inner) + (each.compressed_mean**2 if stop.bias else 0.0) for each in given]
        solved = self._solved(stop, present, supports, given, squares, shares)
        return [finish(stop, matrices, given, scales_rows=self.variance) for matrices, _ in solved]

    def describe(self, problem: Problem, solution: Solution, taken: int) -> str:
        """Say how many weights are zero, and how many rows were solved."""
        return f"{solution.what}, {taken} of {problem.rows} rows solved" if solution.otherwise else solution.what

    def _by_squares(self, problem: Problem, supports: Sequence[Mask], share: float) -> Solution:
        """Return the weights of a layer too wide for more than mean squares: chosen by Wanda, as they were."""
        order = self._columns(problem.stop)
        back = np.argsort(order)
        found = []
        for present, support, squares in zip(problem.present, supports, problem.squares, strict=True):
            mask = wanda_mask(present[:, order], squares[order], self.parsed, share)[:, back] & support
            found.append(np.where(mask, present, 0.0))
        zeros = 1 - sum(map(np.count_nonzero, found)) / sum(part.size for part in found)
        return Solution(found, what=f"{zeros:.1%} zeros by the mean squares of its inputs")

    def _affordable(self, supports: Sequence[Mask]) -> bool:
        return sum(map(least_squares.solve_flops, supports)) <= MOST_FLOPS

    def _refusal(self, stop: Stop) -> str:
        return Structure(stop.form, stop.dense.shape, self.parsed).refusal()

    def _columns(self, stop: Stop) -> NDArray[np.intp]:
        """Return the columns in the order in which the pattern groups them."""
        return Structure(stop.form, stop.dense.shape, self.parsed).columns

    def _ends(self, model: Model, stops: Sequence[Stop]) -> set[int]:
        if not self.protect_ends:
            return set()
        nodes = end_layers(model.graph, {node for stop in stops for node in stop.layer.nodes})
        ends = {place for place, stop in enumerate(stops) if nodes.intersection(stop.layer.nodes)}
        few = sum(stops[place].dense.size for place in ends) <= PROTECTED_SHARE * sum(s.dense.size for s in stops)
        return ends if few else set()

    def _shares(self, sweep: Sweep, stops: Sequence[Stop], ends: set[int]) -> list[float]:
        sizes = [stop.dense.size for stop in stops]
        own = self.parsed.share
        if own is not None:
            return self._shares_of_groups(sweep, stops, ends, own)
        if self.allocation == "uniform":
            return allocation.uniform_shares(sizes, self.sparsity, ends)
        inner = [place for place in range(len(stops)) if place not in ends]
        total = sum(sizes[place] for place in inner)
        if not total:
            return [0.0] * len(stops)
        share = min(1.0, self.sparsity * sum(sizes) / total)
        found = [0.0] * len(stops)
        if self.allocation in {"erk", "size"}:
            if self.allocation == "erk":
                kept = scores.erk_densities([stops[place].dense.shape for place in inner], 1 - share)
            else:
                kept = scores.size_densities([sizes[place] for place in inner], 1 - share)
            for place, density in zip(inner, kept, strict=True):
                found[place] = 1 - density
            return found
        damages = self._damages(sweep, [stops[place] for place in inner])
        costs = [sizes[place] * (1 - LEVELS) for place in inner]
        least = sum(float(cost.min()) for cost in costs)
        levels = allocation.allocate(damages, costs, max(least, (1 - share) * total)).levels
        for place, level in zip(inner, levels, strict=True):
            found[place] = float(LEVELS[level])
        return found

    def _shares_of_groups(self, sweep: Sweep, stops: Sequence[Stop], ends: set[int], own: float) -> list[float]:
        """Return N:M's own share for as many layers as the sparsity allows, those that lose least first."""
        inner = [place for place in range(len(stops)) if place not in ends]
        if self.sparsity >= own:
            return [0.0 if place in ends else own for place in range(len(stops))]
        budget = self.sparsity * sum(stop.dense.size for stop in stops)
        damages = self._damages(sweep, [stops[place] for place in inner])
        found = [0.0] * len(stops)
        level = int(np.searchsorted(LEVELS, own))
        for place, _ in sorted(zip(inner, damages, strict=True), key=lambda each: float(each[1][level])):
            zeros = own * stops[place].dense.size
            if zeros <= budget:
                found[place], budget = own, budget - zeros
        return found

    def _damages(self, sweep: Sweep, stops: Sequence[Stop]) -> list[Vector]:
        if self.allocation == "kl":
            return measured_damages(self, sweep, stops, LEVELS)
        found = {stop: np.zeros(len(LEVELS)) for stop in stops}
        for stop, seen in sweep.observed(stops):  # matrices of all layers at once may not fit memory
            if not seen.finite() or not seen.fit:
                continue
            order = self._columns(stop)
            weights = [part[:, order] for part in stop.form.matrices(stop.layer.array())]
            given = [permuted(moments.mean(centred=stop.bias is not None), order) for moments in seen.fit]
            squares = [(np.diag(moments.inner) / moments.count)[order] for moments in seen.fit]
            with one_thread():
                found[stop] = self.losses(weights, given, squares)
        return list(found.values())


def relative(errors: Vector, power: float) -> Vector:
    """Return errors as shares of the power of a layer's output: none where the output never varies, finite always."""
    if power <= np.finfo(np.float64).tiny:
        return np.zeros(len(errors))
    with np.errstate(over="ignore"):
        return np.nan_to_num(errors / power, nan=_ENDLESS, posinf=_ENDLESS)


def permuted(given: Statistics, order: NDArray[np.intp]) -> Statistics:
    """Return the statistics of the same inputs in another order."""
    if np.array_equal(order, np.arange(len(order))):
        return given
    grid = np.ix_(order, order)
    return least_squares.Statistics(
        given.inner[grid], given.outer[grid], given.cross[grid], given.dense_mean[order], given.compressed_mean[order]
    )
