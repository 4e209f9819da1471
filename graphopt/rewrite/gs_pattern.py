"""Patterns written for graphsurgeon's ``GraphPattern``, as patterns of ours.

What graphsurgeon's own matcher gets wrong does not come along: operands of commutative operators match in either order,
operators of other domains do not match, and nodes are told apart by identity, not by their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.errors import UnsupportedError
from graphopt.rewrite.pattern import Const, Op, Operand, Rest, Wild

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_graphsurgeon import GraphPattern


def from_graph_pattern(pattern: GraphPattern) -> Op:
    """Return a ``GraphPattern`` as a pattern anchored at the node of its first output.

    Its nodes are bound under their names (``"outer.inner"`` inside a sub-pattern), its constants under theirs, its
    input tensors as ``"input0"``, ``"input1"`` and so on. Nodes that give a declared output may have other users.

    Args:
        pattern: The pattern; ``set_output_tensors`` has been called on it.

    Raises:
        UnsupportedError: It has no output, or not every node lies above the first one.
    """
    if pattern.op is not None:
        return Op(pattern.op, Rest("inputs"), name="node", where=pattern.check_func)
    if not pattern.output_tensors:
        raise UnsupportedError(
            "the GraphPattern has no output", must="A pattern is matched from its output", do="Call set_output_tensors"
        )
    translation = _Translation(pattern)
    inputs = [Wild(f"input{number}") for number in range(len(pattern.input_tensors))]
    root = translation.tensor(pattern, "", pattern.output_tensors[0], inputs)
    missing = sorted(_names(pattern, "") - {name for name, _ in translation.made})
    if missing or not isinstance(root, Op):
        raise UnsupportedError(
            f"the nodes {', '.join(missing) or 'none'} of the GraphPattern do not lie above its first output",
            must="Every node contributes to the first output tensor",
            do="Put the last node first in set_output_tensors, or split the pattern",
        )
    return root


class _Translation:
    """The operands made so far: one object per node and output, so that a shared node stays one node."""

    def __init__(self, pattern: GraphPattern) -> None:
        self.outputs = {(id(pattern), tensor) for tensor in pattern.output_tensors}
        self.made: dict[tuple[str, int], Operand] = {}
        self.constants: dict[tuple[int, int], Const] = {}

    def tensor(self, pattern: GraphPattern, prefix: str, tensor: int, inputs: Sequence[Operand]) -> Operand:
        """Return the operand of a tensor of a pattern whose own inputs are these operands."""
        if tensor in pattern.input_tensors:
            place: int = pattern.input_tensors.index(tensor)
            return inputs[place]
        if tensor in pattern.constant_tensors:
            constant = Const(prefix + pattern.constant_tensors[tensor])
            return self.constants.setdefault((id(pattern), tensor), constant)
        node = pattern.tensor_inputs[tensor][0]
        position = pattern.node_outputs[node].index(tensor)
        key = (prefix + node, position)
        if key not in self.made:
            operands = [self.tensor(pattern, prefix, each, inputs) for each in pattern.node_inputs[node]]
            self.made[key] = self._node(pattern, prefix, node, position, operands)
        return self.made[key]

    def _node(
        self, pattern: GraphPattern, prefix: str, node: str, position: int, operands: Sequence[Operand]
    ) -> Operand:
        inner: Any = pattern.nodes[node]
        if inner.op is None:
            return self.tensor(inner, f"{prefix}{node}.", inner.output_tensors[position], operands)
        given = [(id(pattern), tensor) for tensor in pattern.node_outputs[node]]
        return Op(
            inner.op,
            *operands,
            name=prefix + node,
            output=position,
            where=inner.check_func,
            shared=any(each in self.outputs for each in given),
        )


def _names(pattern: GraphPattern, prefix: str) -> set[str]:
    names: set[str] = set()
    for node, inner in pattern.nodes.items():
        names |= {prefix + node} if inner.op is not None else {prefix + node, *_names(inner, f"{prefix}{node}.")}
    return names
