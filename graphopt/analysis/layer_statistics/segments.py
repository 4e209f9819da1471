"""Runs a model piece by piece, so that the whole of it is computed once, however many stops there are on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt.analysis.layer_statistics.store import Spilled, Store
from graphopt.graph import captures, producer, subgraphs
from graphopt.runtime import run, session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from graphopt.graph import Model, Node, Tensor

    Values = dict[str, Any]

HELD_BYTES = 1 << 28
"""Activations held in memory between two stops; what is more waits in a temporary file."""

SPILLED_BYTES = 1 << 33
"""Activations that wait in a file. A model that needs more is run from its inputs at every stop."""


class _Kind(NamedTuple):
    """Type and number of axes of a value that is held."""

    dtype: Any
    rank: int


class Segments:
    """A model under way on a number of batches.

    Between two stops the model may change where it has not run yet: what lies before a stop must stay as it was.
    Activations that what is still to run reads are held, the feeds are not.

    Args:
        batches: Complete feeds; every iteration must give the same.
        memory: Bytes of activations held in memory.
        disk: Bytes of activations held in a temporary file.
    """

    def __init__(self, batches: Iterable[Values], *, memory: int = HELD_BYTES, disk: int = SPILLED_BYTES) -> None:
        self._batches = batches
        self._store = Store(memory, disk)
        self._held: list[dict[str, Any]] = []
        self._done: set[str] = set()
        self._holding = True

    def advance(self, model: Model, names: Sequence[str]) -> Iterator[Values]:
        """Run on to some tensors of the main graph and yield their values, batch by batch.

        Args:
            model: The model as it is now; nodes are told apart by the names of their outputs.
            names: What is wanted, inputs of the model included. All batches must be taken from the iterator.
        """
        by_output = {tensor.name: node for node in model.graph.nodes for tensor in node.outputs if tensor.name}
        known = _kinds(self._held[0] if self._held else next(iter(self._batches), {}))
        due = _ancestors([by_output[name] for name in names if name not in known], known)
        done = self._done | {tensor.name for node in due for tensor in node.outputs}
        later = [node for node in model.graph.nodes if not any(tensor.name in done for tensor in node.outputs)]
        needed = {tensor.name for node in later for tensor in _read(node)}
        made = {tensor.name for node in due for tensor in node.outputs if tensor.name}
        keep = sorted((made & needed) - set(known)) if self._holding else []
        fetched = list(dict.fromkeys([*(name for name in names if name not in known), *keep]))
        runner = session(_cut(model, fetched, known)) if fetched else None
        taken = {spec.name for spec in runner.get_inputs()} if runner is not None else set()
        held: list[dict[str, Any]] = []
        self._store.turn()
        for batch in self._held or self._batches:
            found = run(runner, _loaded(batch, taken), fetched) if runner is not None else {}
            present = _loaded(batch, [name for name in names if name not in found])
            yield {name: found[name] if name in found else present[name] for name in names}
            if self._holding:
                held.append(self._kept(batch, found, needed))
        if self._holding:
            self._held, self._done = held, done
        else:
            self._held, self._done = [], set()

    def remainder(self, model: Model) -> tuple[Model, Held]:
        """Return what is still to run up to the outputs, as a model of its own, and what it reads, batch by batch.

        Outputs that have been computed are not among those of the part.
        """
        first = self._held[0] if self._held else next(iter(self._batches), {})
        names = [
            tensor.name
            for tensor in dict.fromkeys(model.graph.outputs)
            if producer(tensor) is not None and tensor.name not in self._done
        ]
        part = _cut(model, names, _kinds(first))
        return part, Held(self._held or self._batches, {tensor.name for tensor in part.graph.inputs})

    def _kept(self, batch: Values, found: Values, needed: set[str]) -> dict[str, Any]:
        """Return what of a batch is still to be read, or nothing where that cannot be held."""
        kept: dict[str, Any] = {}
        fresh = [*batch.items(), *found.items()] if not self._held else list(found.items())
        for name, value in batch.items() if self._held else ():
            if name in needed:
                kept[name] = value
            else:
                self._store.drop(value)
        for name, value in fresh:
            if name not in needed:
                continue
            stored = self._store.put(value) if isinstance(value, np.ndarray) else None
            if stored is None:
                self._holding = False
                return {}
            kept[name] = stored
        return kept


class Held:
    """Values by name, batch by batch; each iteration loads anew what waits in a file."""

    def __init__(self, batches: Iterable[Values], names: Collection[str]) -> None:
        self._batches = batches
        self._names = names

    def __iter__(self) -> Iterator[Values]:
        """Yield the values of one batch after the other."""
        return (_loaded(batch, self._names) for batch in self._batches)


def stream(model: Model, names: Sequence[str], batches: Iterable[Values]) -> Iterator[Values]:
    """Yield the values of tensors of the main graph batch by batch: one run of the model, nothing held."""
    runner = None
    for batch in batches:
        if runner is None:
            fetched = [name for name in names if name not in batch]
            runner = session(_cut(model, fetched, _kinds(batch))) if fetched else None
        found = run(runner, batch, fetched) if runner is not None else {}
        yield {name: found[name] if name in found else batch[name] for name in names}


def _kinds(batch: Values) -> dict[str, _Kind]:
    return {
        name: _Kind(value.dtype, len(value.shape))
        for name, value in batch.items()
        if isinstance(value, np.ndarray | Spilled)
    }


def _loaded(batch: Values, names: Collection[str]) -> Values:
    found = {name: batch[name] for name in names if name in batch}
    return {name: value.load() if isinstance(value, Spilled) else value for name, value in found.items()}


def _read(node: Node) -> list[Tensor]:
    """Return what a node reads, what its bodies capture included."""
    return [*node.inputs, *(tensor for _, body in subgraphs(node) for tensor in captures(body))]


def _ancestors(nodes: Sequence[Node], known: Collection[str]) -> set[Node]:
    """Return the nodes and everything they need that is not known."""
    found = set(nodes)
    waiting = list(found)
    while waiting:
        for tensor in _read(waiting.pop()):
            made = None if tensor.name in known else producer(tensor)
            if made is not None and made not in found:
                found.add(made)
                waiting.append(made)
    return found


def _cut(model: Model, names: Sequence[str], known: dict[str, _Kind]) -> Model:
    """Return a copy of the model, sharing its weights, from the known tensors to the named ones."""
    part = model.copy()
    fed = {tensor.name for tensor in part.graph.inputs}
    for node in list(part.graph.nodes):
        for tensor in list(node.outputs):
            if tensor.name in known and tensor.name not in fed:
                tensor.inputs.clear()
                tensor.dtype = known[tensor.name].dtype
                tensor.shape = [None] * known[tensor.name].rank
                part.graph.inputs.append(tensor)
    made = {tensor.name: tensor for node in part.graph.nodes for tensor in node.outputs}
    part.graph.outputs[:] = [made[name] for name in names]
    part.graph.cleanup(remove_unused_graph_inputs=True)
    return part
