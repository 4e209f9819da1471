"""Compares a quantized model with its float one, tensor by tensor, and names the first layer that goes wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import graphopt
from graphopt.analysis import Facts
from graphopt.analysis.quantization_error import Finding, View, compare_weights, explain, match, measure
from graphopt.analysis.quantization_error.explain import comparable
from graphopt.analysis.types import Types
from graphopt.errors import UsageError
from graphopt.graph import Model, is_sorted, read_model
from graphopt.graph.labels import node_label
from graphopt.report.build import environment, model_info
from graphopt.report.quantization_errors import QuantizationErrors, TensorEntry
from graphopt.report.report import SkipEntry, Tool
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, input_specs, random_feeds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from graphopt.analysis.quantization_error import Pair, TensorError, WeightError
    from graphopt.runtime.feeds import Source

    Progress = Callable[[str, int, int], None]

SAMPLES = 32
"""Samples compared at most: sums of squares over all values of a tensor settle after a few."""

RANDOM_SAMPLES = 8
FLOATS = frozenset((1, 10, 11, 16))


def find_quantization_errors(
    model: Model | str | Path,
    quantized: Model | str | Path,
    data: Source | Feeds | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> QuantizationErrors:
    """Return the error of every tensor that both models have.

    Args:
        model: The float model.
        quantized: The same model quantized, by this or another tool, in any form.
        data: Feeds of the float model; None takes seeded random inputs that fit the declared shapes.
        samples: Samples compared at most.
        seed: Seeds the random inputs.
        threads: Intra-op threads of the sessions.
        progress: Told what is being compared.

    Raises:
        UsageError: The two models have no tensor in common.
        GraphoptError: A model or the data cannot be used.
    """
    one, two = (_sorted(each) for each in (model, quantized))
    expanded = two.copy()
    PassManager(["expand-qoperators"], verify="off").run(expanded, None)
    expanded.sort()
    specs = input_specs(one)
    feeds = random_feeds(specs, count=RANDOM_SAMPLES, seed=seed) if data is None else Feeds.open(data, specs)
    feeds = feeds.take(samples)
    left, right = View(one), View(expanded)
    pairs = match(one, expanded)
    if all(pair.how == "input" for pair in pairs):
        raise UsageError(
            "the two models have no tensor in common",
            where=str(quantized) if not isinstance(quantized, Model) else "the quantized model",
            must="One is the other, quantized",
        )
    errors = measure(left, right, pairs, feeds, threads=threads, progress=progress)
    weights = {pair.name: found for pair in pairs if (found := compare_weights(left, right, pair)) is not None}
    worst, rows = explain(errors, weights)
    return QuantizationErrors(
        tool=Tool(version=graphopt.__version__),
        model=model_info(one),
        quantized=model_info(two),
        data="random" if data is None else feeds.name,
        samples=len(feeds),
        tensors=tuple(
            _entry(error, weights.get(error.pair.name), *rows[error.pair.name]) for error in errors if comparable(error)
        ),
        worst=worst.name if isinstance(worst, Finding) else None,
        unmatched=tuple(_unmatched(one, left, pairs, errors)),
        environment=environment(),
        seed=seed,
    )


def _sorted(source: Model | str | Path) -> Model:
    model = source if isinstance(source, Model) else read_model(source)
    if not all(is_sorted(root, nested=True) for root in model.roots()):
        model = model.copy()
        model.sort()
    return model


def _entry(error: TensorError, weight: WeightError | None, drop: float, reason: str) -> TensorEntry:
    pair = error.pair
    grid = error.grids[0] if len(error.grids) == 1 else None
    return TensorEntry(
        name=pair.name,
        op=pair.op,
        layer="" if pair.node is None else node_label(pair.node),
        counterpart=pair.tensor.name,
        how=pair.how,
        rounded=pair.rounded,
        own_db=error.own_db,
        accumulated_db=error.accumulated_db,
        drop_db=drop,
        weight_db=None if weight is None else weight.sqnr_db,
        low=error.low,
        high=error.high,
        grid_low=None if grid is None else grid.low,
        grid_high=None if grid is None else grid.high,
        outside=None if grid is None else grid.outside / max(error.count, 1),
        reason=reason,
    )


def _unmatched(model: Model, view: View, pairs: list[Pair], errors: list[TensorError]) -> list[SkipEntry]:
    known = {pair.name for pair in pairs}
    types = Facts(model).get(Types)
    found = [SkipEntry(node=each.pair.name, reason=each.unlike) for each in errors if each.unlike]
    left = [
        SkipEntry(node=tensor.name, reason=f"the quantized model has nothing for this {node.op}")
        for node in model.graph.nodes
        for tensor in node.outputs
        if tensor.name not in known and types.dtype(tensor) in FLOATS and not view.is_constant(tensor)
    ]
    return [*found, *(entry for entry in left if entry.node)]
