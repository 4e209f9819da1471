"""Runs a model piece by piece, so that the whole of it is computed once, however many stops there are on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import captures, producer, subgraphs
from graphopt.runtime import run, session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graphopt.graph import Model, Node, Tensor

    Values = dict[str, Any]

HELD_BYTES = 1 << 30
"""Activations held between two stops. A model that needs more is run from its inputs at every stop."""


class Segments:
    """A model under way on a number of batches.

    Between two stops the model may change where it has not run yet: what lies before a stop must stay as it was.

    Args:
        batches: Complete feeds; they are held, and so are the activations that what is still to run reads.
    """

    def __init__(self, batches: Sequence[Values]) -> None:
        self._feeds = list(batches)
        self._held: list[Values] = [dict(feed) for feed in batches]
        self._done: set[str] = set()
        self._holding = True

    def advance(self, model: Model, names: Sequence[str]) -> Iterator[Values]:
        """Run on to some tensors of the main graph and yield their values, batch by batch.

        Args:
            model: The model as it is now; nodes are told apart by the names of their outputs.
            names: What is wanted, inputs of the model included. All batches must be taken from the iterator.
        """
        by_output = {tensor.name: node for node in model.graph.nodes for tensor in node.outputs if tensor.name}
        known = set(self._held[0]) if self._held else set()
        due = _ancestors([by_output[name] for name in names if name not in known], known)
        done = self._done | {tensor.name for node in due for tensor in node.outputs}
        later = [node for node in model.graph.nodes if not any(tensor.name in done for tensor in node.outputs)]
        needed = {tensor.name for node in later for tensor in _read(node)}
        made = {tensor.name for node in due for tensor in node.outputs if tensor.name}
        keep = sorted((made & needed) - known) if self._holding else []
        fetched = list(dict.fromkeys([*(name for name in names if name not in known), *keep]))
        runner = session(_cut(model, fetched, self._held[0])) if fetched else None
        taken = {spec.name for spec in runner.get_inputs()} if runner is not None else set()
        held_bytes = 0
        for place, held in enumerate(self._held):
            found = run(runner, {name: held[name] for name in taken}, fetched) if runner is not None else {}
            values = {**held, **found}
            yield {name: values[name] for name in names}
            if self._holding:
                self._held[place] = {name: value for name, value in values.items() if name in needed}
                if not all(isinstance(value, np.ndarray) for value in self._held[place].values()):
                    self._holding = False
                held_bytes += sum(value.nbytes for value in self._held[place].values() if isinstance(value, np.ndarray))
                self._holding = self._holding and held_bytes <= HELD_BYTES
        if self._holding:
            self._done = done
        else:
            self._held, self._done = [dict(feed) for feed in self._feeds], set()


def _read(node: Node) -> list[Tensor]:
    """Return what a node reads, what its bodies capture included."""
    return [*node.inputs, *(tensor for _, body in subgraphs(node) for tensor in captures(body))]


def _ancestors(nodes: Sequence[Node], known: set[str]) -> set[Node]:
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


def _cut(model: Model, names: Sequence[str], known: Values) -> Model:
    """Return a copy of the model, sharing its weights, from the known tensors to the named ones."""
    part = model.copy()
    fed = {tensor.name for tensor in part.graph.inputs}
    for node in list(part.graph.nodes):
        for tensor in list(node.outputs):
            if tensor.name in known and tensor.name not in fed:
                tensor.inputs.clear()
                tensor.dtype = known[tensor.name].dtype
                tensor.shape = [None] * known[tensor.name].ndim
                part.graph.inputs.append(tensor)
    made = {tensor.name: tensor for node in part.graph.nodes for tensor in node.outputs}
    part.graph.outputs[:] = [made[name] for name in names]
    part.graph.cleanup(remove_unused_graph_inputs=True)
    return part
