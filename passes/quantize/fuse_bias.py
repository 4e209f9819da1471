"""The pass ``fuse-bias``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphopt.analysis.types import Types
from graphopt.graph import Constant, constant_value, is_graph_output, producer, uses
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, Patch, Skip, node_label

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter

STANDARD_DOMAINS = (None, "", "ai.onnx")
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseBias(Pass):
    """Move a constant that is added behind a convolution into its bias.

    Some exporters write the bias of a convolution as an Add of its own. Float runtimes fuse both again; an integer
    convolution followed by an Add would be rounded twice and the Add would cost as much as the convolution.

    Matches: Conv or ConvTranspose, then an Add of a constant with one value per channel or one value in all; nothing
        else reads the convolution's result.
    Produces: the convolution with the constant, plus the bias it had, as bias.
    Requires: constant weight and bias that no caller may override, float32 or float64; known rank.
    Preserves: names, types and shapes. Values up to one rounding of the sum: ROUNDING.
    Source: distributivity of convolution over its bias; a product of the ONNX operator definition.
    """

    name: ClassVar[str] = "fuse-bias"
    contract: ClassVar[Contract] = Contract.ROUNDING
    uses_data: ClassVar[bool] = False

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per Add behind a convolution."""
        for addition in [node for _, node in model.walk() if node.op == "Add" and node.domain in STANDARD_DOMAINS]:
            types = facts.get(Types)
            found = match(model, types, addition)
            if found is None:
                continue
            node, bias = found
            if isinstance(bias, str):
                yield Skip(addition, bias)
                continue

            def apply(
                rw: Rewriter,
                node: Node = node,
                addition: Node = addition,
                bias: NDArray[np.floating] = bias,
            ) -> None:
                rw.set_input(node, 2, rw.constant(bias, name=f"{node.name or node.op}_bias", near=node))
                rw.replace_tensor(addition.outputs[0], node.outputs[0])
                rw.erase([addition])

            yield Patch(
                f"fuse Add '{node_label(addition)}' into {node.op} '{node_label(node)}'", (node, addition), apply
            )


def match(model: Model, types: Types, addition: Node) -> tuple[Node, NDArray[np.floating] | str] | None:
    """Return the convolution behind which an Add stands and their common bias, or why they stay apart, or None."""
    for place, tensor in enumerate(addition.inputs):
        node = producer(tensor)
        if node is None or node.op not in {"Conv", "ConvTranspose"} or node.domain not in STANDARD_DOMAINS:
            continue
        if node.graph is not addition.graph:
            continue
        weight, added = constant_value(node.inputs[1]), constant_value(addition.inputs[1 - place])
        if weight is None or added is None:
            return None
        if len(uses(tensor)) != 1 or is_graph_output(tensor):
            return node, f"the result of {node.op} '{node_label(node)}' is read without the constant as well"
        if weight.dtype not in FLOATS or added.dtype != weight.dtype or types.rank(tensor) != weight.ndim:
            return node, f"types or rank of {node.op} '{node_label(node)}' do not fit or are unknown"
        group = node.attrs.get("group", 1)
        if not isinstance(group, int):
            return node, f"the number of groups of {node.op} '{node_label(node)}' is an argument of its function"
        channels = weight.shape[0] if node.op == "Conv" else weight.shape[1] * group
        values = per_channel(added, channels, weight.ndim)
        if values is None:
            return node, f"the constant of shape {list(added.shape)} is not one value per channel"
        before = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
        if before is None:
            return node, values
        old = constant_value(before)
        if old is None or (isinstance(before, Constant) and model.graph.is_overridable(before)):
            return node, f"the bias of {node.op} '{node_label(node)}' is not a constant"
        return node, np.asarray(values + old, weight.dtype)
    return None


def per_channel(added: NDArray[np.generic], channels: int, rank: int) -> NDArray[np.floating] | None:
    """Return a broadcast constant as one value per channel, or None where it varies along another axis."""
    if added.ndim > rank:
        return None
    shape = (1,) * (rank - added.ndim) + added.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in {1, channels}:
        return None
    return np.ascontiguousarray(np.broadcast_to(added.reshape(-1), (channels,)))
