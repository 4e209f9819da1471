"""Runs a float and a quantized model on the same data and sums, tensor by tensor, what differs.

Each tensor of the quantized model is computed twice: as the model computes it, with all errors of the layers before,
and by its own layer alone, whose inputs come out of the float model. Tensors are compared in groups and batch by batch,
so that memory holds one batch of one group.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt.analysis.tensor_grid import grid_of, integer_type, is_conversion, written_grid
from graphopt.graph import Variable, uses
from graphopt.runtime import run, session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis.quantization_error.matching import Pair
    from graphopt.analysis.quantization_error.view import View
    from graphopt.graph import Model, Tensor
    from graphopt.runtime import Feeds

    Values = Mapping[str, NDArray[Any]]

BATCH = 8
"""Samples per run where the batch axis is free."""

GROUP_BYTES = 64 << 20
"""Float values of one batch that are compared at once."""

PROBED_TENSORS = 16
"""Tensors fetched together before their sizes are known."""

CEILING_DB = 200.0
"""Reported for values that are equal bit for bit."""


@dataclass(slots=True)
class GridUse:
    """How a tensor's values lie on one grid.

    Attributes:
        low: Smallest real value on the grid.
        high: Largest.
        scale: Distance of two neighbours.
        outside: Values beyond either end.
        cut_off: Energy of what is cut off there.
        rounded: Energy of what rounding inside changes.
    """

    low: float
    high: float
    scale: float
    outside: int = 0
    cut_off: float = 0.0
    rounded: float = 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Take in float values."""
        limited = np.clip(values, self.low, self.high)
        self.outside += int(np.count_nonzero(limited != values))
        self.cut_off += float(np.square(values - limited, dtype=np.float64).sum())
        steps = np.rint((limited - self.low) / self.scale) * self.scale + self.low
        self.rounded += float(np.square(limited - steps, dtype=np.float64).sum())


@dataclass(slots=True)
class TensorError:
    """What was summed for one pair.

    Attributes:
        pair: The tensors.
        count: Values compared.
        power: Energy of the float values.
        own: Energy of the error that the layer adds by itself.
        accumulated: Energy of the error with those of all layers before.
        low: Smallest float value.
        high: Largest.
        grids: The grids that it is rounded to.
        unlike: Why the two cannot be compared; empty where they can.
    """

    pair: Pair
    count: int = 0
    power: float = 0.0
    own: float = 0.0
    accumulated: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    grids: list[GridUse] = field(default_factory=list)
    unlike: str = ""

    @property
    def own_db(self) -> float:
        """SQNR of the layer alone."""
        return ratio_db(self.power, self.own)

    @property
    def accumulated_db(self) -> float:
        """SQNR with the errors of all layers before."""
        return ratio_db(self.power, self.accumulated)

    @property
    def rms(self) -> float:
        """Root of the mean square of the float values."""
        return float(np.sqrt(self.power / max(self.count, 1)))

    def add(self, want: NDArray[Any], own: NDArray[Any], accumulated: NDArray[Any]) -> None:
        """Take in one batch."""
        if not want.shape == own.shape == accumulated.shape:
            self.unlike = f"its shapes differ: {list(want.shape)} and {list(accumulated.shape)}"
            return
        if not want.size or not (np.isfinite(want).all() and np.isfinite(own).all() and np.isfinite(accumulated).all()):
            self.unlike = "it holds infinities or NaN" if want.size else ""
            return
        exact = want.astype(np.float64)
        self.count += want.size
        self.power += float(np.square(exact).sum())
        self.own += float(np.square(exact - own).sum())
        self.accumulated += float(np.square(exact - accumulated).sum())
        self.low, self.high = min(self.low, float(want.min())), max(self.high, float(want.max()))
        for grid in self.grids:
            grid.add(exact)


def ratio_db(power: float, noise: float) -> float:
    """Return a ratio of energies in dB, within plus and minus `CEILING_DB`."""
    if noise <= 0.0:
        return CEILING_DB
    return float(np.clip(10 * np.log10(power / noise), -CEILING_DB, CEILING_DB)) if power > 0 else -CEILING_DB


def measure(
    model: View,
    quantized: View,
    pairs: Sequence[Pair],
    feeds: Feeds,
    *,
    threads: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[TensorError]:
    """Return the errors of all pairs, in their order.

    Args:
        model: The float model.
        quantized: The quantized model.
        pairs: Tensors to compare; see `match`.
        feeds: Samples for the float model; a quantized model that takes integers gets them rounded.
        threads: Intra-op threads of the sessions.
        progress: Told which group of tensors is measured.

    Cost: for each group of tensors two runs of both models on the data.
    """
    limited = {pair.tensor for pair in pairs if pair.how == "absorbed" and pair.rounded}
    errors = [
        TensorError(pair, grids=grids_of(quantized, pair) if pair.rounded or pair.tensor not in limited else [])
        for pair in pairs
    ]
    size = batch_of(quantized.model)
    batches = list(itertools.islice(feeds.batches(size), 1))
    if not pairs or not batches:
        return errors
    convert = _converted(model.model, quantized.model)
    reference = session(_exposed(model.model, [pair.name for pair in pairs]), threads=threads)
    whole = session(_exposed(quantized.model, [value_name(quantized, pair) for pair in pairs]), threads=threads)
    kinds = _kinds(reference, batches[0], list(dict.fromkeys(pair.name for pair in pairs)))
    theirs = _kinds(whole, convert(batches[0]), list(dict.fromkeys(value_name(quantized, pair) for pair in pairs)))
    for error in errors:
        mine, other = kinds[error.pair.name].shape, theirs[value_name(quantized, error.pair)].shape
        error.unlike = "" if mine == other else f"its shapes differ: {list(mine)} and {list(other)}"
    pairs = [error.pair for error in errors if not error.unlike]
    groups = list(_groups([error for error in errors if not error.unlike], kinds))
    for place, group in enumerate(groups):
        if progress is not None:
            progress("comparing", place, len(groups))
        wanted = [each.pair for each in group]
        alone, forced = _alone(quantized, pairs, wanted, kinds)
        single = session(alone, threads=threads)
        taken = {spec.name: spec.type for spec in single.get_inputs()}
        needed = [pair for pair in pairs if forced[pair.name] in taken]
        names = list(dict.fromkeys(pair.name for pair in (*wanted, *needed)))
        for batch in feeds.batches(size):
            exact = _fetched(reference, batch, names)
            fed = {forced[pair.name]: exact[pair.name] for pair in needed}
            own = run(single, {**{n: v for n, v in convert(batch).items() if n in taken}, **fed})
            both = _fetched(whole, convert(batch), [value_name(quantized, pair) for pair in wanted])
            for error in group:
                name = value_name(quantized, error.pair)
                error.add(np.asarray(exact[error.pair.name]), np.asarray(own[name]), np.asarray(both[name]))
    return errors


def grids_of(view: View, pair: Pair) -> list[GridUse]:
    """Return the grids with one scale that a tensor of the quantized model is rounded to."""
    found: list[GridUse] = []
    for node in view.roundings(pair.tensor):
        if not is_conversion(node, "QuantizeLinear"):
            continue
        grid = written_grid(node)
        bounds, values = grid.bounds(integer_type(node.outputs[0])), grid.values
        if bounds is None or values is None:
            continue
        use = GridUse(*bounds, float(values[0].reshape(-1)[0]))
        if all((use.low, use.high) != (each.low, each.high) for each in found):
            found.append(use)
    return found


def value_name(view: View, pair: Pair) -> str:
    """Return the name of the tensor that is compared."""
    restored = view.restored(pair.tensor) if pair.rounded else []
    return str(restored[0].name if restored else pair.tensor.name)


def batch_of(model: Model) -> int:
    """Return how many samples a model takes at once, `BATCH` at most."""
    fixed = [each.shape[0] for each in model.graph.inputs if isinstance(each, Variable) and each.shape]
    return min([BATCH, *(size for size in fixed if isinstance(size, int) and size > 0)])


def _fetched(runner: Any, batch: Values, names: Sequence[str]) -> dict[str, Any]:
    """Return tensors by name, inputs included."""
    inputs = {name: value for name, value in batch.items() if name in names}
    computed = [name for name in names if name not in inputs]
    return {**inputs, **(run(runner, batch, computed) if computed else {})}


def _exposed(model: Model, names: Sequence[str]) -> Model:
    """Return a copy of a model in which tensors are outputs too."""
    copy = model.copy()
    made = {tensor.name: tensor for node in copy.graph.nodes for tensor in node.outputs}
    present = {tensor.name for tensor in copy.graph.outputs}
    for name in dict.fromkeys(names):
        if name in made and name not in present:
            if made[name].dtype is None:
                made[name].dtype = np.dtype(np.float32)
            copy.graph.outputs.append(made[name])
    return copy


class _Kind(NamedTuple):
    """What is known of a tensor before it is compared."""

    dtype: Any
    shape: tuple[int, ...]
    nbytes: int


def _kinds(reference: Any, batch: Values, names: Sequence[str]) -> dict[str, _Kind]:
    """Return type, shape and bytes in one batch of tensors, looked at a few at a time."""
    found: dict[str, _Kind] = {}
    for place in range(0, len(names), PROBED_TENSORS):
        for name, value in _fetched(reference, batch, names[place : place + PROBED_TENSORS]).items():
            array = np.asarray(value)
            found[name] = _Kind(array.dtype, array.shape, int(array.nbytes))
    return found


def _groups(errors: Sequence[TensorError], kinds: Mapping[str, _Kind]) -> Iterator[list[TensorError]]:
    """Divide tensors into groups of neighbours whose values of one batch take at most `GROUP_BYTES`."""
    group: list[TensorError] = []
    filled = 0
    for error in errors:
        size = kinds[error.pair.name].nbytes
        if group and filled + size > GROUP_BYTES:
            yield group
            group, filled = [], 0
        group.append(error)
        filled += size
    if group:
        yield group


def _alone(
    quantized: View, pairs: Sequence[Pair], wanted: Sequence[Pair], kinds: Mapping[str, _Kind]
) -> tuple[Model, dict[str, str]]:
    """Return the quantized model in which every layer reads what the float model gives it.

    Args:
        quantized: The model.
        pairs: All tensors that are known in the float model.
        wanted: Those whose values are outputs of the result.
        kinds: Types and shapes of the float tensors.

    Returns:
        The model, and the name of the input that stands for each float tensor.
    """
    copy = quantized.model.copy()
    tensors: dict[str, Tensor] = {tensor.name: tensor for node in copy.graph.nodes for tensor in node.outputs}
    tensors |= {tensor.name: tensor for tensor in copy.graph.inputs}
    limited = {pair.tensor for pair in pairs if pair.how == "absorbed" and pair.rounded}
    forced: dict[str, str] = {}
    for place, pair in enumerate(pairs):
        name = f"float_{place}_of_model"
        while name in tensors:
            name += "_"
        forced[pair.name] = name
        if pair.tensor in limited and not pair.rounded:
            continue  # what is read is the limited form
        stand_in = Variable(name, kinds[pair.name].dtype, [None] * len(kinds[pair.name].shape))
        old = [each.name for each in quantized.restored(pair.tensor)] if pair.rounded else [pair.tensor.name]
        for use in [use for each in old for use in list(uses(tensors[each]))]:
            use.node.inputs[use.index] = stand_in
        copy.graph.inputs.append(stand_in)
    outputs = dict.fromkeys(value_name(quantized, pair) for pair in wanted)
    copy.graph.outputs[:] = [tensors[name] for name in outputs]
    for tensor in copy.graph.outputs:
        if tensor.dtype is None:
            tensor.dtype = np.dtype(np.float32)
    copy.graph.cleanup(remove_unused_graph_inputs=True)
    return copy, forced


def _converted(model: Model, quantized: Model) -> Callable[[Values], dict[str, Any]]:
    """Return what turns feeds of the float model into feeds of the quantized one, in its names and types."""
    theirs = [each for each in quantized.graph.inputs if isinstance(each, Variable)]
    known = {each.name: each for each in theirs}
    inputs: dict[str, Variable] = {}
    for place, tensor in enumerate(each for each in model.graph.inputs if isinstance(each, Variable)):
        found = known.get(tensor.name) or (theirs[place] if place < len(theirs) else None)
        if found is not None:
            inputs[tensor.name] = found
    grids = {each.name: grid.values for each in inputs.values() if (grid := grid_of(each)) is not None}

    def convert(batch: Values) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in batch.items():
            if name not in inputs:
                continue
            grid = grids.get(inputs[name].name)
            if grid is not None and grid[0].size == 1 and value.dtype.kind == "f":
                scale, zero = (each.reshape(()) for each in grid)
                limits = np.iinfo(zero.dtype)
                codes = np.rint(value / scale) + zero.astype(np.float32)
                value = np.clip(codes, limits.min, limits.max).astype(zero.dtype)
            made[inputs[name].name] = value
        return made

    return convert
