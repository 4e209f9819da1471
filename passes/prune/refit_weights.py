"""The pass ``refit-weights``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphopt.analysis.dense_reference import DenseReference
from graphopt.graph import Constant, constant_value
from graphopt.passes.prune.bias import Bias, find_bias
from graphopt.passes.prune.layers import Layer, find_layers
from graphopt.passes.prune.moments import Reading, collect, producers
from graphopt.passes.prune.rows import Form, form_of
from graphopt.passes.prune.segments import Segments
from graphopt.rewrite import Contract, LayerRecord, Pass, Patch, Skip, node_label
from graphopt.solve import least_squares
from graphopt.solve.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis import Facts
    from graphopt.graph import Model, Node, Rewriter
    from graphopt.passes.prune.moments import Sums

    Matrix = NDArray[np.float64]

BATCH = 8
"""Samples per run where the batch axis is free."""

LEAST_BATCHES = 8
"""Whole batches are kept from the fit, so there must be some."""

LARGEST_COLUMNS = 8192
"""Statistics of wider layers do not fit memory: two matrices of columns squared for the fit and two to judge it."""

MOST_FLOPS = 3e12
"""A layer that costs more is left as it is: tens of seconds on one core."""


@dataclass(frozen=True, slots=True)
class _Problem:
    """One layer to solve again."""

    layer: Layer
    dense: NDArray[np.generic]
    form: Form
    reading: Reading
    bias: Bias | None
    dense_bias: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitWeights(Pass):
    """Solve the weights that pruning left again, so that each layer gives the outputs it gave before.

    Layers are solved front to back against the dense model's outputs on the compressed model's inputs, so each repairs
    what those before it lost. Rows whose error on samples kept from the fit does not fall stay as they are.

    Attributes:
        samples: Calibration samples that are run at most.
        rows: Rows of input that a layer is fitted and judged on, at most.
        damping: Pull towards the dense weights, relative to the mean square of the inputs.
        variance: Also scale each row so that its output varies as much as before; needs a bias that takes the mean.
        keep: Names of nodes left as they are.

    Matches: Conv, Gemm and MatMul of the main graph whose weight pruning may touch, where prune-magnitude ran before.
    Produces: The same nodes; V = argmin E |W x - V z|^2 over the weights that are not zero, x and z the layer's inputs
        before and after pruning; the bias keeps the mean output (a Conv or Gemm without bias may get one).
    Requires: Calibration data; the model before pruning, which prune-magnitude records.
    Preserves: Zeros, names, types and shapes. Not values: LOSSY.
    Source: He et al. 2017, arXiv:1707.06168, section 3.1.2; Hubara et al. 2021, arXiv:2102.08124, section 3; bias:
        Nagel et al. 2019, arXiv:1906.04721, section 4.2.
    """

    name: ClassVar[str] = "refit-weights"
    contract: ClassVar[Contract] = Contract.LOSSY

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

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per layer that got better."""
        dense = facts.get(DenseReference).model
        if dense is None:
            yield Skip(model.graph.name or "model", "no weights were pruned before, so there is nothing to repair")
            return
        if facts.feeds is None:
            yield Skip(model.graph.name or "model", "refitting weights needs calibration data; give --data")
            return
        problems: list[_Problem] = []
        for found in self._problems(model, dense):
            if isinstance(found, Skip):
                yield found
            else:
                problems.append(found)
        feeds = facts.feeds.take(self.samples)
        batches = list(feeds.batches(max(1, min(BATCH, len(feeds) // LEAST_BATCHES))))
        before, now = Segments(batches), Segments(batches)
        rows = -(-self.rows // len(batches))
        for stage in _stages(problems):
            readings = [problem.reading for problem in stage]
            names = [each.tensor for each in readings]
            with one_thread():
                reached = before.advance(dense, names), now.advance(model, names)
                sums = collect(*reached, readings, rows=rows, seed=facts.seed)
            for problem in stage:
                with one_thread():
                    proposal = self._refit(problem, sums[problem.reading.key])
                yield proposal

    def _problems(self, model: Model, dense: Model) -> Iterator[_Problem | Skip]:
        origin = producers(dense)
        computed = {tensor.name for node in model.graph.nodes for tensor in node.outputs}
        computed |= {tensor.name for tensor in model.graph.inputs}
        for layer in find_layers(model, keep=self.keep):
            if isinstance(layer, Layer):
                yield _state(layer, model, origin, computed)

    def _refit(self, problem: _Problem, sums: Sums) -> Patch | Skip:
        node = problem.layer.node
        if not all(moments.finite() for moments in (*sums.fit, *sums.judge)):
            return Skip(node, "too few samples reached it, or they were not finite")
        array = problem.layer.array()
        dense, present = problem.form.matrices(problem.dense), problem.form.matrices(array)
        if sum(least_squares.solve_flops(part != 0) for part in present) > MOST_FLOPS:
            return Skip(node, "solving it would take too long")
        centred = problem.bias is not None
        solved: list[Matrix] = []
        shifts: list[Matrix] = []
        better = 0
        for wanted, kept, fit, judge in zip(dense, present, sums.fit, sums.judge, strict=True):
            given, held = fit.mean(centred=centred), judge.mean(centred=centred)
            found = least_squares.solve_rows(wanted, kept != 0, given, damping=self.damping)
            falls = least_squares.rows_improved(wanted, found, kept, held)
            better += int(falls.sum())
            chosen = np.where(falls[:, None], found, kept)
            solved.append(chosen)
            if centred and self.variance:
                chosen = chosen * least_squares.variance_gain(wanted, chosen, given)[:, None]
                solved[-1] = chosen
            shifts.append(least_squares.bias_shift(wanted, chosen, fit.mean(centred=False)))
        weight = problem.form.weight(solved, array)
        # A weight that became zero in its own type would be lost to the next run.
        weight = np.where((weight == 0) & (array != 0), array, weight)
        rows = sum(map(len, dense))
        bias = problem.bias
        shift = np.concatenate(shifts)
        if not better and bias is None:
            return Skip(node, "no row got better on the samples kept from the fit")
        if not np.isfinite(weight.astype(np.float64)).all():
            return Skip(node, f"the solution does not fit {array.dtype.name}")

        def apply(rewriter: Rewriter) -> None:
            if isinstance(problem.layer.weight, Constant):
                rewriter.set_weight(problem.layer.weight, weight)
            else:
                rewriter.replace_uses(
                    problem.layer.weight, rewriter.constant(weight, name=problem.layer.weight.name, near=node)
                )
            if bias is not None:
                bias.write(rewriter, problem.dense_bias + shift * bias.factor, np.zeros(rows, array.dtype), node)

        what = f"{better} of {rows} rows refitted" + (", bias corrected" if bias is not None else "")
        record = LayerRecord(node_label(node), node.op, what)
        return Patch(f"refit {node.op} '{node_label(node)}': {what}", problem.layer.nodes, apply, (record,))


def _state(layer: Layer, model: Model, origin: dict[str, Node], computed: set[str]) -> _Problem | Skip:
    """Return a layer's problem, or why it has none."""
    node = layer.node
    if layer.scope is not model.graph:
        return Skip(node, "it lies in a body, whose activations cannot be observed")
    if len(layer.nodes) > 1:
        return Skip(node, f"its weight is shared by {len(layer.nodes)} nodes")
    before = origin.get(node.outputs[0].name)
    tensor = node.inputs[0 if node.op != "MatMul" else 1 - layer.index]
    if before is None or before.op != node.op or len(before.inputs) <= layer.index or tensor.name not in computed:
        return Skip(node, "the model before pruning has no such layer")
    weight = constant_value(before.inputs[layer.index])
    if weight is None or weight.shape != layer.array().shape or isinstance(tensor, Constant):
        return Skip(node, "the model before pruning has no such layer")
    form = form_of(node, layer.index, weight)
    if isinstance(form, str):
        return Skip(node, form)
    matrices = form.matrices(weight)
    columns = matrices[0].shape[1]
    if columns > LARGEST_COLUMNS:
        return Skip(node, f"it has {columns} columns; its statistics would not fit memory")
    rows = sum(map(len, matrices))
    bias = find_bias(node, rows)
    known = find_bias(before, rows)
    if bias is not None and known is None:
        bias = None
    reading = Reading(node.outputs[0].name, tensor.name, form, columns)
    return _Problem(layer, weight, form, reading, bias, known.values(rows) if known is not None else np.zeros(rows))


def _stages(problems: Sequence[_Problem]) -> list[list[_Problem]]:
    """Divide the problems into steps, front to back: layers that read the same tensor are solved together.

    Others are not: a layer fitted to inputs that change afterwards would repair the same loss twice.
    """
    together: list[list[_Problem]] = []
    for problem in problems:
        if together and together[-1][0].reading.tensor == problem.reading.tensor:
            together[-1].append(problem)
        else:
            together.append([problem])
    return together
