"""Passes that change the weights of a model layer by layer, front to back, each on what it really reads.

A layer computes y = W x + b. Its inputs in the dense model are x, in the model as compressed so far z. A pass says
for one layer which weights V stand for W; everything around that is the same for all of them and stands here: finding
the layers, running both models from layer to layer, the statistics, judging on samples kept from the fit, the repair of
variance and mean, the records.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.dense_reference import DenseReference
from graphopt.analysis.layer_statistics import (
    Batches,
    CollectedStatistics,
    Layer,
    LayerStatistics,
    Refusal,
    find_layers,
)
from graphopt.graph.labels import node_label
from graphopt.rewrite.layer_stop import Stop, find_stops
from graphopt.rewrite.new_weight import write_weight
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, LayerRecord, Patch, Skip
from graphopt.rewrite.sweep import Sweep
from graphopt.solve import least_squares
from graphopt.solve.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from graphopt.analysis import Facts
    from graphopt.analysis.layer_statistics import Sums
    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.solve.least_squares import Statistics

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Rows = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Problem:
    """One layer to solve.

    Attributes:
        stop: Where it stands: the layer, how it is read as rows, its bias.
        dense: W of each group in the dense model, [R, C]: what the outputs are aimed at.
        present: W of each group as it is now.
        fit: Statistics of each group's inputs to solve on; centred where a bias takes up the means.
        judge: The same of samples kept from the fit; ``fit`` again where statistics were collected before.
        centred: Whether there is a bias that takes up the means, so that only what varies must be matched.
        squares: Mean square of each column of z, [C]: the diagonal of E[z z'], never centred.
        measured: Whether the statistics were measured. Without data, and for layers that cannot be observed, E[z z'],
            E[x x'] and E[x z'] are the identity, ``squares`` ones and the means zero. Of layers with more than
            ``LARGEST_COLUMNS`` columns, which only passes get that take them, ``fit`` and ``judge`` are empty.
        plan: What `LayerwisePass.plan` said about this layer, or None.
        seed: Decides all draws.
    """

    stop: Stop
    dense: tuple[Matrix, ...]
    present: tuple[Matrix, ...]
    fit: tuple[Statistics, ...]
    judge: tuple[Statistics, ...]
    squares: tuple[Vector, ...]
    centred: bool
    measured: bool
    plan: Any
    seed: int

    @property
    def layer(self) -> Layer:
        """The layer."""
        return self.stop.layer

    @property
    def rows(self) -> int:
        """Rows of all groups together."""
        return sum(map(len, self.dense))


@dataclass(frozen=True, slots=True)
class Written:
    """What was written for a layer, for passes that record more than weights.

    Attributes:
        tensor: What holds the weights now.
        weight: Its values.
        gains: Per group, by what each row was multiplied after it was solved, [R].
        taken: Per group, which rows have the solution and not the one it falls back on, [R].
    """

    tensor: Tensor
    weight: NDArray[Any]
    gains: tuple[Vector, ...]
    taken: tuple[Rows, ...]


@dataclass(frozen=True, slots=True)
class Solution:
    """What a pass wants for a layer.

    Attributes:
        matrices: V of each group, [R, C].
        otherwise: V of each group for rows whose error on the held-back samples is not lower with ``matrices``; None
            takes every row as solved.
        what: What was done, for the per-layer table.
        record: Called in the patch after the weights were written.
    """

    matrices: Sequence[Matrix]
    otherwise: Sequence[Matrix] | None = None
    what: str = ""
    record: Callable[[Rewriter, Written], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerwisePass(Pass):
    """A pass that solves one layer after the other; subclasses define `solve`.

    `CollectedStatistics` that are recorded take the place of data: every layer is solved on what it read in the dense
    model (x is z), and judged on the same samples. Data that is given too serves what has to run the model, and layers
    for which the statistics do not hold.

    Attributes:
        samples: Calibration samples that are run at most.
        rows: Rows of input that a layer is fitted and judged on, at most.
        damping: Pull towards the dense weights, relative to the mean square of the inputs.
        variance: Also scale each row so that its output varies as much as before; needs a bias that takes the mean.
        keep: Names of nodes left as they are.

    Class attributes:
        repairs: It only repairs what another pass removed, so it skips a model from which nothing was removed. Other
            passes record the model they first see as the dense one.
        data_free: It takes layers without statistics too: all of them where there is no data, else those that cannot be
            observed. They come first, so that the layers behind them see what was done.
        takes_wide: It takes layers of more than ``LARGEST_COLUMNS`` columns too, for which there is no more than the
            mean square of each.
        corrects_bias: The mean output is kept through the bias.
    """

    contract: ClassVar[Contract] = Contract.LOSSY
    repairs: ClassVar[bool] = False
    data_free: ClassVar[bool] = False
    takes_wide: ClassVar[bool] = False
    corrects_bias: ClassVar[bool] = True

    samples: int = 512
    rows: int = 16384
    damping: float = 0.01
    variance: bool = True
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in ("samples", "rows"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} is {getattr(self, option)}, but it must be 1 or more")
        if not 0 < self.damping < 1e6:
            raise ValueError(f"damping is {self.damping}, but it must be above 0")

    @property
    def runs_for(self) -> str:
        """What the pass must run the model for even where statistics are known, as a clause; empty where nothing."""
        return ""

    @abstractmethod
    def solve(self, problem: Problem) -> Solution | str:
        """Return the new weights of a layer, or why it stays as it is."""

    def layers(self, model: Model) -> Iterator[Layer | Refusal]:
        """Yield the layers that the pass takes, front to back, and the refusals it reports."""
        return find_layers(model, keep=self.keep)

    def plan(self, sweep: Sweep, stops: Sequence[Stop], facts: Facts) -> Mapping[str, Any]:
        """Return what is to be decided over all layers before the first is solved, by ``stop.key``."""
        return {}

    def finish(self, problem: Problem, weight: NDArray[Any]) -> NDArray[Any]:
        """Return the weight as it is written, in the type it is stored in; the last word on rounding."""
        return weight

    def describe(self, problem: Problem, solution: Solution, taken: int) -> str:
        """Return what was done, for the per-layer table, where so many rows have the solution."""
        return solution.what

    def refuse_unchanged(self, problem: Problem) -> str:
        """Return the reason to give where nothing changes."""
        return "its weights are already what they would become"

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per layer that changes."""
        if self.repairs and facts.get(DenseReference).model is None:
            yield Skip(model.graph.name or "model", "no weights were pruned before, so there is nothing to repair")
            return
        known = facts.get(CollectedStatistics).found
        if known is None and facts.feeds is None:
            known = facts.cached(LayerStatistics)
        observed = facts.feeds is not None or known is not None
        if not observed and not self.data_free:
            yield Skip(model.graph.name or "model", f"{self.name} needs calibration data; give --data")
            return
        if known is not None and facts.feeds is None and self.runs_for:
            yield Skip(model.graph.name or "model", f"{self.runs_for}, which no statistics hold; give --data too")
            return
        DenseReference.remember(model, facts)
        dense = facts.get(DenseReference).model
        assert dense is not None
        batches = () if facts.feeds is None else Batches.of(facts.feeds, self.samples)
        count = len(batches)
        sweep = Sweep(model, dense, batches, -(-self.rows // max(1, count)), facts.seed, known, count - 1)
        stops: list[Stop] = []
        for found in find_stops(model, dense, self.layers(model), observed=observed, strict=self.repairs):
            stop = found if isinstance(found, Refusal) else _checked(found, sweep, takes_wide=self.takes_wide)
            if isinstance(stop, Refusal):
                yield Skip(stop.node, stop.reason)
            elif stop.reading is None and not self.data_free:
                yield Skip(stop.layer.node, stop.unobserved)
            elif stop.wide and not self.takes_wide:
                yield Skip(stop.layer.node, "it has too many columns for statistics of them to fit memory")
            else:
                stops.append(stop)
        plans = self.plan(sweep, stops, facts)
        for stop in stops:
            if stop.reading is None:
                yield self._proposal(stop, None, plans.get(stop.key), facts.seed)
        for stop, sums, last in sweep.walk([stop for stop in stops if stop.reading is not None]):
            yield self._proposal(stop, sums, plans.get(stop.key), facts.seed, last=last)

    def _proposal(self, stop: Stop, sums: Sums | None, plan: Any, seed: int, *, last: bool = False) -> Patch | Skip:
        with one_thread():
            problem = _state(stop, sums, plan, seed, last=last, data_free=self.data_free)
            if isinstance(problem, str):
                return Skip(stop.layer.node, problem)
            solution = self.solve(problem)
            return Skip(stop.layer.node, solution) if isinstance(solution, str) else self._patch(problem, solution)

    def _patch(self, problem: Problem, solution: Solution) -> Patch | Skip:
        layer, bias = problem.layer, problem.stop.bias
        node, array = layer.node, layer.array()
        taken = _accepted(problem, solution)
        chosen = list(solution.matrices)
        if solution.otherwise is not None:
            pairs = zip(taken, solution.matrices, solution.otherwise, strict=True)
            chosen = [np.where(rows[:, None], found, old) for rows, found, old in pairs]
        gains = [np.ones(len(part)) for part in chosen]
        if problem.centred and problem.measured and self.variance:
            groups = zip(problem.dense, chosen, problem.fit, strict=True)
            gains = [least_squares.variance_gain(wanted, found, given) for wanted, found, given in groups]
            chosen = [part * gain[:, None] for part, gain in zip(chosen, gains, strict=True)]
        with np.errstate(over="ignore"):  # what does not fit the type is refused below
            weight = self.finish(problem, problem.stop.form.weight(chosen, array))
        corrects = self.corrects_bias and problem.measured and len(problem.fit) > 0 and bias is not None
        if not corrects and np.array_equal(weight, array):
            return Skip(node, self.refuse_unchanged(problem))
        if not np.isfinite(weight.astype(np.float64)).all():
            return Skip(node, f"the solution does not fit {array.dtype.name}")
        shift = np.zeros(problem.rows)
        if corrects:
            groups = zip(problem.dense, chosen, problem.fit, strict=True)
            shift = np.concatenate([least_squares.bias_shift(wanted, found, given) for wanted, found, given in groups])

        def apply(rewriter: Rewriter) -> None:
            tensor = write_weight(rewriter, layer.weight, weight, node)
            if corrects and bias is not None:
                like = np.zeros(problem.rows, array.dtype)
                bias.write(rewriter, problem.stop.dense_bias + shift * bias.factor, like, node)
            if solution.record is not None:
                solution.record(rewriter, Written(tensor, weight, tuple(gains), tuple(taken)))

        what = self.describe(problem, solution, sum(int(rows.sum()) for rows in taken))
        what += ", bias corrected" if corrects else ""
        records = tuple(LayerRecord(node_label(each), each.op, what) for each in layer.nodes)
        return Patch(f"{self.name} {node.op} '{node_label(node)}': {what}", layer.nodes, apply, records)


def _checked(stop: Stop, sweep: Sweep, *, takes_wide: bool) -> Stop:
    """Return the stop, as one that cannot be observed where there are statistics alone that do not do for it."""
    found = None if stop.reading is None or sweep.batches else sweep.known_of(stop)
    if found is None or (not isinstance(found, str) and (found.moments or takes_wide)):
        return stop
    reason = found if isinstance(found, str) else "of what it reads the collected statistics hold mean squares only"
    return replace(stop, at="", readings=(), ahead=(), unobserved=reason)


def _accepted(problem: Problem, solution: Solution) -> list[Rows]:
    """Return which rows take the solution, per group."""
    if solution.otherwise is None or not problem.judge:
        return [np.ones(len(part), np.bool_) for part in solution.matrices]
    groups = zip(problem.dense, solution.matrices, solution.otherwise, problem.judge, strict=True)
    return [least_squares.rows_improved(wanted, found, old, held) for wanted, found, old, held in groups]


def _state(stop: Stop, sums: Sums | None, plan: Any, seed: int, *, last: bool, data_free: bool) -> Problem | str:
    """Return a layer's problem, or why it has none; ``last`` uses the sums up."""
    dense, present = stop.form.matrices(stop.dense), stop.form.matrices(stop.layer.array())
    if sums is None or not sums.finite():
        if not data_free:
            return "too few samples reached it, or they were not finite"
        same = () if stop.wide else tuple(least_squares.identity(part.shape[1]) for part in dense)
        ones = tuple(np.ones(part.shape[1]) for part in dense)
        return Problem(stop, tuple(dense), tuple(present), same, same, ones, False, False, plan, seed)
    centred = stop.bias is not None and not sums.squares
    squares = [each.inner / each.count for each in sums.squares]
    squares = squares or [np.diag(moments.inner) / moments.count for moments in sums.fit]
    return Problem(
        stop,
        tuple(dense),
        tuple(present),
        tuple(moments.mean(centred=centred, last=last) for moments in sums.fit),
        tuple(moments.mean(centred=centred, last=last) for moments in sums.judge or sums.fit),
        tuple(squares),
        centred,
        True,
        plan,
        seed,
    )
