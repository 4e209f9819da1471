"""Where the value of a folded tensor is put: an initializer, shared where the same value is there already."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, Function, Graph, Model, Node, enclosing, is_graph_output

if TYPE_CHECKING:
    from graphopt.graph import Rewriter, Tensor

Array = np.ndarray[Any, Any]

_SHARED_BYTES = 256
"""Smaller values are not worth one initializer for many readers."""


class Placement:
    """Puts values into one model; values of the same type, shape and bytes share one initializer.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._pool: dict[tuple[str, tuple[int, ...], bytes], Constant] = {}

    def put(self, rewriter: Rewriter, node: Node, tensor: Tensor, value: Array) -> None:
        """Let all readers of an output of a node read its value instead, which keeps the name of the tensor.

        Args:
            rewriter: The rewriter of the patch.
            node: The node; the caller erases it.
            tensor: One of its outputs.
            value: The value, of exactly the element type and shape of the tensor.
        """
        graph = node.graph
        assert graph is not None
        if needs_node(graph, self._model) or is_graph_output(tensor):
            attrs = {"value": Constant("", value)}
            rewriter.replace_tensor(
                tensor, rewriter.op("Constant", [], attrs=attrs, like=tensor, near=node, origin=[node])
            )
            return
        if value.nbytes < _SHARED_BYTES:
            rewriter.replace_uses(tensor, self._made(rewriter, node, tensor, value))
            return
        key = (value.dtype.name, value.shape, blake2b(value.tobytes(), digest_size=16).digest())
        shared = self._shared(key, graph)
        if shared is None:
            shared = self._pool[key] = self._made(rewriter, node, tensor, value)
        rewriter.replace_uses(tensor, shared)

    def _made(self, rewriter: Rewriter, node: Node, tensor: Tensor, value: Array) -> Constant:
        """Return a new initializer under the name of the tensor, which gets another."""
        constant: Constant = rewriter.constant(value, name=tensor.name, near=node)
        constant.name, tensor.name = tensor.name, constant.name
        return constant

    def _shared(self, key: tuple[str, tuple[int, ...], bytes], graph: Graph) -> Constant | None:
        """Return the initializer that has this value, moved outwards until this graph sees it."""
        found = self._pool.get(key)
        if found is None or found.home is None or not found.outputs:
            return None
        around = set(enclosing(graph))
        home = next((scope for scope in enclosing(found.home) if scope in around), None)
        if home is None:
            return None
        if home is not found.home:
            del found.home.initializers[found]
            home.initializers[found] = None
            found.home = home
        return found


def needs_node(graph: Graph, model: Model) -> bool:
    """Whether a constant of a graph has to be a node: functions have no initializers, before IR 4 they are inputs."""
    *_, root = enclosing(graph)
    return isinstance(root, Function) or model.ir_version < 4
