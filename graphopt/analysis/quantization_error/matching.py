"""Which tensor of a quantized model stands for which of the float one: by name, by node, else by where it lies.

Tools rename what they touch. The names that are left are islands; between them the graphs are walked side by side: a
node is the counterpart of another where it has the same operator and reads the counterparts of its inputs. Where
several do, attributes decide, then the weights that are most alike, then the order. An activation that the ends of a
grid stand for, or a BatchNormalization folded into a weight, has no node in the quantized model: what it makes is then
what comes out of the node before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.manager import Facts
from graphopt.analysis.quantization_error.view import LIMITS, View
from graphopt.analysis.quantization_error.weights import WEIGHTS, constant_values, likeness
from graphopt.analysis.tensor_grid import integer_type, is_conversion, written_grid
from graphopt.analysis.types import Types
from graphopt.graph import Constant, producer, uses
from graphopt.graph.labels import node_label

if TYPE_CHECKING:
    from graphopt.graph import Model, Node, Tensor

SUFFIXES = (
    *("_quantized", "_QuantizeLinear_Output", "_DequantizeLinear_Output", "_QuantizeLinear", "_DequantizeLinear"),
    *("_quant", "_dequant", "_output_quantized", "_qdq", "_Q", "_DQ"),
)
"""What tools append to the names of tensors and nodes that they round."""

FLOATS = frozenset((1, 10, 11, 16))
"""Element types whose values are compared: float32, float16, float64, bfloat16."""

FOLDED = frozenset(("BatchNormalization", "Add", "Sub", "Mul", "Div"))
"""Operators that can disappear into the weight and bias of the layer before, with a constant."""

ALIKE = 0.9
"""Cosine from which two tables are taken for the same."""

TELLING = ("kernel_shape", "strides", "pads", "dilations", "group", "axis", "axes", "perm", "transA", "transB", "to")


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of the float model and what stands for it in the quantized one.

    Attributes:
        name: Of the float tensor.
        op: What made it; empty for an input of the model.
        node: The node that made it, or None.
        counterpart: The node of the quantized model that made the other, or None.
        tensor: What holds the real values in the quantized model before they are rounded, if they are.
        rounded: Whether the values to compare are those after rounding: everything behind reads those.
        how: ``input``, ``name``, ``node``, ``structure`` or ``absorbed``.
        sources: Names of the nearest float tensors with a counterpart that it is computed from.
        between: Names of the nodes between those and it that have no counterpart of their own.
    """

    name: str
    op: str
    node: Node | None
    counterpart: Node | None
    tensor: Tensor
    rounded: bool
    how: str
    sources: tuple[str, ...] = ()
    between: tuple[str, ...] = ()


def match(model: Model, quantized: Model) -> list[Pair]:
    """Return the pairs, in the order of the float model.

    Args:
        model: The float model, sorted.
        quantized: The quantized model, sorted, its operators on integers written between conversions.
    """
    return _Matcher(View(model), View(quantized)).run()


class _Matcher:
    def __init__(self, model: View, quantized: View) -> None:
        self.model = model
        self.quantized = quantized
        self.types = Facts(model.model).get(Types)
        self.aliases = _aliases(quantized)
        self.nodes = {_bare(node.name): node for node in quantized.model.graph.nodes if node.name and _computes(node)}
        self.places = {node: place for place, node in enumerate(quantized.model.graph.nodes)}
        self.pairs: dict[Tensor, Pair] = {}
        self.taken: dict[tuple[Tensor, bool], Tensor] = {}
        self.used: set[Node] = set()

    def run(self) -> list[Pair]:
        self._inputs()
        for node in self.model.model.graph.nodes:
            for place, tensor in enumerate(node.outputs):
                if tensor.name and self.types.dtype(tensor) in FLOATS and not self.model.is_constant(tensor):
                    self._find(node, place, tensor)
        ordered = [self.pairs[tensor] for tensor in self.pairs]
        return [self._finished(pair) for pair in ordered]

    def _inputs(self) -> None:
        theirs = [each for each in self.quantized.model.graph.inputs if not isinstance(each, Constant)]
        by_name = {each.name: each for each in theirs}
        for place, tensor in enumerate(self.model.model.graph.inputs):
            if isinstance(tensor, Constant) or self.types.dtype(tensor) not in FLOATS:
                continue
            other = by_name.get(tensor.name) or (theirs[place] if place < len(theirs) else None)
            if other is None:
                continue
            direct = [use.node for use in uses(other)]
            if len(direct) == 1 and is_conversion(direct[0], "DequantizeLinear"):
                other = direct[0].outputs[0]  # integers are given
            self._pair(tensor, Pair(tensor.name, "", None, None, other, rounded=False, how="input"))

    def _find(self, node: Node, place: int, tensor: Tensor) -> None:
        found, how = self.aliases.get(_bare(tensor.name)), "name"
        if found is not None and found.name != tensor.name and (found, False) in self.taken:
            found = None  # a name with something cut off must not take what a name as it stands has
        other = self._same_node(node)
        if found is None and other is not None and place < len(other.outputs):
            found, how = self.quantized.source(other.outputs[place]), "node"
        if found is None:
            other = self._alongside(node)
            if other is not None and place < len(other.outputs):
                found, how = self.quantized.source(other.outputs[place]), "structure"
        if found is not None:
            maker = producer(found)
            if node.op in LIMITS and maker is not None and maker.op != node.op and self._is_limited(node, found):
                self._absorbed(node, tensor, found)
                return
            earlier = self.taken.get((found, False))
            if earlier is not None and how != "name":
                return
            if earlier is not None and self.pairs[earlier].how != "input":
                del self.pairs[earlier]
            self._pair(tensor, self._made(tensor, node, found, how))
            return
        self._folded(node, tensor)

    def _is_limited(self, node: Node, found: Tensor) -> bool:
        """Tell whether only rounding makes the limited values of what was found."""
        if not self.quantized.restored(found):
            return False
        source = self.model.source(node.inputs[0])
        known = source in self.pairs and self.pairs[source].tensor is found
        return known or self._grid_limits(node, found)

    def _grid_limits(self, node: Node, found: Tensor) -> bool:
        return node.op == "Relu" and any(
            is_conversion(each, "QuantizeLinear")
            and (bounds := written_grid(each).bounds(integer_type(each.outputs[0]))) is not None
            and abs(bounds[0]) <= 1e-6 * max(1.0, bounds[1])
            for each in self.quantized.roundings(found)
        )

    def _folded(self, node: Node, tensor: Tensor) -> None:
        """Pair what a node makes with what comes out before it, where the quantized model has no such node."""
        live = [each for each in node.inputs if not each.is_empty() and not self.model.is_constant(each)]
        if len(live) != 1 or node.op not in LIMITS | FOLDED:
            return
        source = self.model.source(live[0])
        pair = self.pairs.get(source)
        if pair is None or any(reader.op == node.op for reader in self.quantized.readers(pair.tensor)):
            return
        if node.op in LIMITS:
            self._absorbed(node, tensor, pair.tensor)
        elif len(self.model.readers(source)) == 1 and pair.how != "input" and not self._is_given_out(source):
            del self.pairs[source]
            self.taken.pop((pair.tensor, False), None)
            self._pair(tensor, self._made(tensor, node, pair.tensor, "absorbed"))

    def _is_given_out(self, tensor: Tensor) -> bool:
        return any(each is tensor for each in self.model.model.graph.outputs)

    def _absorbed(self, node: Node, tensor: Tensor, found: Tensor) -> None:
        if (found, True) in self.taken or not self.quantized.restored(found):
            return
        pair = Pair(tensor.name, node.op, node, producer(found), found, rounded=True, how="absorbed")
        self._pair(tensor, pair)

    def _made(self, tensor: Tensor, node: Node, found: Tensor, how: str) -> Pair:
        return Pair(tensor.name, node.op, node, producer(found), found, rounded=False, how=how)

    def _pair(self, tensor: Tensor, pair: Pair) -> None:
        self.pairs[tensor] = pair
        self.taken[pair.tensor, pair.rounded] = tensor
        if pair.counterpart is not None:
            self.used.add(pair.counterpart)

    def _finished(self, pair: Pair) -> Pair:
        """Return a pair with what it is computed from, rounded where all readers read that."""
        rounded = pair.rounded or (
            (pair.tensor, True) not in self.taken and self.quantized.is_always_rounded(pair.tensor)
        )
        sources, between = self._sources(pair.node)
        return replace(pair, rounded=rounded, sources=sources, between=between)

    def _sources(self, node: Node | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        found: dict[str, None] = {}
        seen: set[Node] = set()
        waiting = [] if node is None else [node]
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            for tensor in at.inputs:
                if tensor in self.pairs:
                    found[self.pairs[tensor].name] = None
                elif (maker := producer(tensor)) is not None and not self.model.is_constant(tensor):
                    waiting.append(maker)
        weighted = [each for each in seen - {node} if each is not None and each.op in WEIGHTS]
        return tuple(found), tuple(sorted(node_label(each) for each in weighted))

    # ------------------------------------------------------------------------------------------ nodes side by side

    def _same_node(self, node: Node) -> Node | None:
        other = self.nodes.get(_bare(node.name)) if node.name else None
        return other if other is not None and other.op == node.op else None

    def _alongside(self, node: Node) -> Node | None:
        """Return the node of the same operator that reads the counterparts of what this one reads."""
        read = [self.model.source(each) for each in node.inputs if not each.is_empty()]
        wanted = [self.pairs[each].tensor for each in read if each in self.pairs]
        if not wanted:
            return self._same_table(node)
        found = [
            other
            for other in self.quantized.readers(wanted[0])
            if other.op == node.op and other not in self.used and self._reads(other, wanted)
        ]
        if len(found) > 1:
            alike = [other for other in found if _same_attributes(node, other)]
            found = alike or found
        if len(found) > 1:
            mine = constant_values(self.model, node)
            ranks = [(-likeness(mine, constant_values(self.quantized, each)), self.places[each]) for each in found]
            return found[int(np.lexsort(tuple(zip(*ranks, strict=True))[::-1])[0])]
        return found[0] if found else None

    def _same_table(self, node: Node) -> Node | None:
        """Return the lookup in the table that is most like the one of a lookup."""
        if node.op != "Gather" or not self.model.is_constant(node.inputs[0]):
            return None
        mine = constant_values(self.model, node)
        ranked = [
            (likeness(mine, constant_values(self.quantized, other)), -place, other)
            for other, place in self.places.items()
            if other.op == "Gather" and other not in self.used and self.quantized.is_constant(other.inputs[0])
        ]
        best = max(ranked, key=lambda each: each[:2], default=None)
        return best[2] if best is not None and best[0] > ALIKE else None

    def _reads(self, node: Node, wanted: list[Tensor]) -> bool:
        read = {self.quantized.source(each) for each in node.inputs if not each.is_empty()}
        return all(each in read for each in wanted)


def _computes(node: Node) -> bool:
    return node.op not in {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Identity", "Constant"}


def _same_attributes(node: Node, other: Node) -> bool:
    return all(str(node.attrs.get(key)) == str(other.attrs.get(key)) for key in TELLING)


def _bare(name: str) -> str:
    """Return a name without what tools append."""
    cut = True
    while cut:
        cut = False
        for suffix in SUFFIXES:
            if name.endswith(suffix) and len(name) > len(suffix):
                name, cut = name.removesuffix(suffix), True
    return name


def _aliases(view: View) -> dict[str, Tensor]:
    """Return what each name of a quantized model stands for; a name as it stands wins over one that was cut."""
    found: dict[str, Tensor] = {}
    cut: dict[str, Tensor] = {}
    for node in view.model.graph.nodes:
        for tensor in node.outputs:
            if tensor.name and not view.is_constant(tensor):
                found[tensor.name] = view.source(tensor)
                cut.setdefault(_bare(tensor.name), view.source(tensor))
    return {**cut, **found}
