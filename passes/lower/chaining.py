"""Where the results of sparse convolutions may lie in padded planes, and what that is worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from graphopt.graph import is_graph_output, producer, uses
from graphopt.solve.pack_sparse_conv import padded_plane

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor, Use, Variable

DOMAIN = "ai.graphopt"
PADDED = "padded"
RESIDUAL = 3
"""The input of SparseConv that has the layout of its output."""

_REORDER_COST = 1.5
"""What a reorder takes per element, over what a convolution of one tap saves that need not copy its input."""


@dataclass(slots=True)
class Chain:
    """Tensors that must have one layout, because each is added to the next.

    Attributes:
        results: Those that a SparseConv computes, in order.
        residuals: Those that something else computes and a SparseConv of the chain adds.
        convs: The nodes that compute the results.
        readers: Inputs X of sparse convolutions that read a result.
        others: Other uses of a result.
        gain: Elements that convolutions of one tap need not copy any more, less those that reorders copy.
    """

    results: list[Variable] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    convs: list[Node] = field(default_factory=list)
    readers: list[Use] = field(default_factory=list)
    others: list[Use] = field(default_factory=list)
    gain: float = 0.0


def is_kernel(node: Node | None, *ops: str) -> bool:
    """Return whether a node is one of these operators of the kernels."""
    return node is not None and node.domain == DOMAIN and node.op in ops


def spatial(tensor: Tensor, types: Types) -> list[int] | None:
    """Return the spatial sizes of an [N, C, spatial...] tensor; None unless all are known numbers."""
    shape = types.shape(tensor)
    if shape is None or len(shape) not in {3, 4}:
        return None
    sizes = [size for size in shape[2:] if isinstance(size, int) and size > 0]
    return sizes if len(sizes) == len(shape) - 2 else None


def chains(nodes: Iterable[Node], types: Types) -> Iterator[Chain]:
    """Yield the chains of sparse convolutions that compute [N, C, spatial...] tensors of known size.

    Args:
        nodes: The nodes of the model, in order.
        types: Shapes.
    """
    convs = [node for node in nodes if is_kernel(node, "SparseConv") and node.attrs.get("layout_out") != PADDED]
    joined: dict[Tensor, Tensor] = {}

    def root(tensor: Tensor) -> Tensor:
        while joined.get(tensor, tensor) is not tensor:
            tensor = joined[tensor]
        return tensor

    for node in convs:
        residual = _residual(node)
        if residual is not None:
            joined[root(node.outputs[0])] = root(residual)
    found: dict[Tensor, Chain] = {}
    for node in convs:
        chain = found.setdefault(root(node.outputs[0]), Chain())
        chain.convs.append(node)
        chain.results.append(node.outputs[0])
    for chain in found.values():
        if all(_may_change(result, types) for result in chain.results):
            _judge(chain, types)
            yield chain


def _residual(node: Node) -> Tensor | None:
    return node.inputs[RESIDUAL] if len(node.inputs) > RESIDUAL and node.inputs[RESIDUAL].name else None


def _may_change(result: Variable, types: Types) -> bool:
    return not is_graph_output(result) and spatial(result, types) is not None


def _judge(chain: Chain, types: Types) -> None:
    for node in chain.convs:
        residual = _residual(node)
        if residual is not None and producer(residual) not in chain.convs and residual not in chain.residuals:
            chain.residuals.append(residual)
            chain.gain -= _REORDER_COST * _elements(residual, types)
    for result in chain.results:
        reordered = False
        for use in uses(result):
            reader = use.node
            if reader in chain.convs and use.index == RESIDUAL:
                continue
            if use.index == 0 and is_kernel(reader, "SparseConv") and reader.graph is _graph(result):
                chain.readers.append(use)
                chain.gain += _saved(reader, result, types)
            else:
                chain.others.append(use)
                reordered = True
        if reordered:
            chain.gain -= _REORDER_COST * _elements(result, types)


def _graph(result: Variable) -> object:
    made = producer(result)
    return None if made is None else made.graph


def _saved(reader: Node, x: Tensor, types: Types) -> float:
    """A convolution of one tap reads whole vectors of its input where they lie, if planes are made of whole vectors."""
    sizes = spatial(x, types)
    assert sizes is not None
    one_tap = all(size == 1 for size in reader.attrs.get("kernel_shape", ()))
    plain = all(step == 1 for step in reader.attrs.get("strides", ())) and not any(reader.attrs.get("pads", ()))
    changes = padded_plane(prod(sizes)) != prod(sizes)
    return float(_elements(x, types)) if one_tap and plain and changes else 0.0


def _elements(tensor: Tensor, types: Types) -> int:
    """Elements of one image."""
    shape, sizes = types.shape(tensor), spatial(tensor, types)
    if shape is None or sizes is None or not isinstance(shape[1], int):
        return 0
    return shape[1] * prod(sizes)
