"""Compute once what is computed several times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphopt.graph import Constant, Graph, Model, Node, is_graph_output, producer
from graphopt.passes.simplify.folding.plan import attributes_key, constant_key
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, PURE, is_constant_node, refers_to_function
from graphopt.rewrite.driver import EVERY, Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract
from graphopt.verify.legality import in_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Rewriter, Tensor

_SWAPPABLE = frozenset(("Add", "Mul", "Equal", "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor"))
"""Operators of two inputs whose order changes no bit of the result (the payload of a NaN aside)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeEqualNodes(RulePass):
    """Merge nodes that compute the same from the same inputs.

    Matches:   Two nodes of the ONNX domain on the list of pure operators, with equal attributes and the same inputs, of
               which constants of up to 1 KiB count as the same where their values are; the inputs of commutative
               operators in either order. The second may lie in a body, the first in the graph around it.
    Produces:  The readers of the later node read the earlier one, which saves the node and its memory.
    Requires:  No random or stateful operator, no control flow, nothing of a custom domain and no node whose attributes
               a function's caller sets. Where both give an output of the model its name, both stay. Constants of equal
               value but different sign of zero or type are different. Quantization pairs stay apart, since runtimes
               fuse only what reads its own.
    Preserves: Every output bitwise (the payload of a NaN aside); public names, types and shapes.
    Source:    Hash-consing of expressions (value numbering); Muchnick, Advanced Compiler Design and Implementation,
               1997, section 12.4.
    """

    name: ClassVar[str] = "merge-equal-nodes"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return one rule that remembers every node it has seen by what it computes."""
        return [Rule((EVERY,), _Numbering().at, depth=0)]


class _Numbering:
    """The nodes seen so far, by graph and by what they compute; an entry is checked again when it is used."""

    def __init__(self) -> None:
        self._seen: dict[Graph, dict[object, dict[object, Node]]] = {}
        self._constants: dict[Constant, tuple[object, object]] = {}

    def at(self, node: Node) -> Patch | None:
        """Return the merger of a node with an earlier one that computes the same, else None."""
        if node.op not in PURE or node.domain not in DEFAULT_DOMAINS or not node.inputs:
            return None
        key = self._key(node)
        graph = node.graph
        assert graph is not None
        found = self._found(node, key, graph)
        if found is not None and found is not node:
            first = found if graph.nodes.label(found) < graph.nodes.label(node) else node
            return _merger(first, found if first is node else node)
        return self._around(node, key, graph)

    def _found(self, node: Node, key: object, graph: Graph) -> Node | None:
        """Return the node seen before that computes the same in this graph; else remember this one."""
        table = self._seen.get(graph)
        if table is None:
            table = self._seen[graph] = {}
        alike = table.get(key)
        if alike is None:
            table[key] = {None: node}  # nothing is like it yet, so its attributes need not be read
            return None
        if None in alike:
            first = alike.pop(None)
            alike[attributes_key(first)] = first
        attributes = attributes_key(node)
        found = alike.get(attributes)
        if found is not None and self._stands(found, key, graph):
            return found
        alike[attributes] = node
        return None

    def _stands(self, node: Node, key: object, graph: Graph) -> bool:
        return node.graph is graph and in_model(node) and self._key(node) == key

    def _around(self, node: Node, key: object, graph: Graph) -> Patch | None:
        """Return the merger with a node of a graph around this one."""
        while graph.parent_node is not None:
            holder = graph.parent_node
            assert holder.graph is not None
            graph = holder.graph
            for found in self._seen.get(graph, {}).get(key, {}).values():
                if not self._stands(found, key, graph) or graph.nodes.label(found) > graph.nodes.label(holder):
                    continue
                if attributes_key(found) == attributes_key(node):
                    return _merger(found, node)
        return None

    def _key(self, node: Node) -> object:
        """Return what is equal for nodes that may be equal; attributes, which are costly to read, are left out."""
        keys: list[object] = []
        for tensor in node.inputs:
            if not tensor.name:
                keys.append(None)
            elif isinstance(tensor, Constant):
                keys.append(self._constant_key(tensor))
            else:
                made = producer(tensor)
                keys.append(tensor if made is None or made.op != "Constant" else _output_key(tensor, made))
        swappable = len(keys) == 2 and node.op in _SWAPPABLE
        outputs = node.outputs
        named = 1 if len(outputs) == 1 else tuple([bool(tensor.name) for tensor in outputs])
        return node.op, frozenset(keys) if swappable else tuple(keys), named

    def _constant_key(self, constant: Constant) -> object:
        known = self._constants.get(constant)
        if known is None or known[0] is not constant.weight:
            fed = constant.home is not None and constant.home.is_overridable(constant)
            known = self._constants[constant] = (constant.weight, constant if fed else constant_key(constant))
        return known[1]


def _output_key(tensor: Tensor, made: Node) -> object:
    """Return the key of what a node with the operator type Constant gives out."""
    value = made.attrs.get("value") if is_constant_node(made) else None
    return constant_key(value) if isinstance(value, Constant) else tensor


def _merger(earlier: Node, later: Node) -> Patch | None:
    """Return the patch that lets the readers of one node read another; None where the interface needs both."""
    if refers_to_function(earlier) or refers_to_function(later):
        return None
    pairs = [(old, new) for old, new in zip(later.outputs, earlier.outputs, strict=True) if old.name]
    if any(is_graph_output(old) and (is_graph_output(new) or later.graph is not earlier.graph) for old, new in pairs):
        return None

    def apply(rewriter: Rewriter) -> None:
        for old, new in pairs:
            rewriter.replace_tensor(old, new)
        rewriter.erase(later)

    return Patch(f"{later.op} computes what '{pairs[0][1].name}' holds already", (later, earlier), apply)
