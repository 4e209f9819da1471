"""Which operators become integer arithmetic on a target, and which tensors share a grid.

Weighted operators (Conv, Gemm, MatMul) are the reason to quantize. What lies between them joins the integer region
where that saves conversions: an Add whose inputs both come out of integer convolutions costs two conversions if it
stays float. Everything else stays float. The choice starts with every operator that could join and drops, until nothing
changes, those that no longer have integer neighbours; time grows with nodes and edges.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.target.operators import Bounds, activation_bounds, is_depthwise, is_overridable, products_of
from graphopt.target.rules import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from graphopt.analysis.types import Types
    from graphopt.graph import Model, Node, Tensor, Use
    from graphopt.target.rules import OpRule, Target

FLOAT32 = 1
PRODUCTS_PER_CONVERSION = 32
"""Products per converted value from which an integer region between float neighbours is faster than a float one."""

VALUES_PER_OPERATOR = 500
"""Values that could be converted in the time that one more operator takes to start."""

DEPTHWISE = "a depthwise convolution is slower in int8 than in float where its neighbours are float"

TOO_SMALL = "too few products per value to pay for converting its float neighbours"
UNPLANNED = "the plan leaves it float"
OVERRIDABLE = "its weight is also an input of the model, which a caller may override: take it out of the inputs first"


@dataclass(slots=True)
class Group:
    """Tensors that share one grid because only data movement lies between them.

    Attributes:
        tensors: The members, in graph order.
        bounds: Values that absorbed activations allow, or None where no member has one.
        fixed: Range known without data, or None.
        exact: Scale and zero point that the target demands, by number type.
        logits: Whether a Softmax reads a member.
    """

    tensors: list[Tensor] = field(default_factory=list)
    bounds: Bounds | None = None
    fixed: Bounds | None = None
    exact: dict[str, tuple[float, int]] = field(default_factory=dict)
    logits: bool = False


@dataclass(slots=True)
class Placement:
    """What becomes integer.

    Attributes:
        nodes: Integer operators with their rules, in graph order; absorbed activations are among them.
        groups: Group of each tensor that lies on a grid.
        joined: Concat operators whose inputs and output share one grid, so that they only move data.
        outputs: Tensor behind each integer operator that has a grid: behind its absorbed activation, which has none of
            its own.
        refused: Weighted operators that stay float, with the reason.
    """

    nodes: dict[Node, OpRule]
    groups: dict[Tensor, Group]
    joined: set[Node]
    outputs: dict[Node, Tensor]
    refused: dict[Node, str]


def place(
    model: Model,
    types: Types,
    target: Target,
    *,
    leave: Mapping[Node, str] | None = None,
    only: Callable[[Node], str | None] = lambda _node: None,
    sizes: Mapping[str, float] | None = None,
    planned: Collection[Node] | None = None,
) -> Placement:
    """Choose the integer operators of the main graph.

    Args:
        model: The model; it is not edited.
        types: Types and shapes of its tensors.
        target: The rules.
        leave: Nodes that must stay float, with the reason.
        only: Returns why a weighted node must not take its static integer form, "" where nobody has to be told, else
            None.
        sizes: Values per sample of the tensors whose ranges are known; operators on others stay float, and regions that
            are too small to pay for the conversions at their borders do. None places without such knowledge.
        planned: Nodes that somebody chose by what they cost here: these are placed as far as the rules allow, and no
            others. None leaves the choice to the placement.
    """
    return Placer(model, types, target, leave or {}, only, sizes, planned).run()


class Placer:
    """The state of one placement."""

    def __init__(
        self,
        model: Model,
        types: Types,
        target: Target,
        leave: Mapping[Node, str],
        only: Callable[[Node], str | None],
        sizes: Mapping[str, float] | None,
        planned: Collection[Node] | None = None,
    ) -> None:
        self.model = model
        self.types = types
        self.target = target
        self.leave = leave
        self.only = only
        self.sizes = sizes
        self.planned = planned
        self.chosen: dict[Node, OpRule] = {}
        self.refused: dict[Node, str] = {}

    def run(self) -> Placement:
        """Return what becomes integer, for a target with integer kernels."""
        for node in self.model.graph.nodes:
            self.consider(node)
        if self.planned is None:
            self._drop_lonely(deque(self.chosen))
            if self.sizes is not None:
                self._drop_small_regions(self.sizes)
        outputs = {
            node: self._behind(node)
            for node, rule in self.chosen.items()
            if self._has_output_grid(node, rule) and not (rule.role is Role.ABSORBED and self._is_absorbed(node))
        }
        groups, joined = self._group(outputs)
        return Placement(dict(self.chosen), groups, joined, outputs, self.refused)

    # ------------------------------------------------------------------------------------------------ candidates

    def consider(self, node: Node) -> None:
        """Choose a node, or note why it stays float."""
        rule = self.target.rule(node)
        if rule is None:
            return
        why = self.refusal(node, rule)
        if why is None:
            self.chosen[node] = rule
        elif rule.role is Role.WEIGHTED and why:
            self.refused[node] = why

    def is_float(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is float32."""
        return self.types.dtype(tensor) == FLOAT32

    def refusal(self, node: Node, rule: OpRule) -> str | None:
        """Return why a node stays float, None where it need not, or "" where nobody has to be told."""
        if node in self.leave:
            return self.leave[node]
        if self.planned is not None and node not in self.planned:
            return UNPLANNED if rule.role is Role.WEIGHTED else ""
        if self.model.opset < rule.since:
            return f"opset {self.model.opset}: {node.op} takes integers from opset {rule.since} on"
        positions = [i for i in rule.data_positions(node) if i < len(node.inputs)]
        moving = [node.inputs[i] for i in positions if constant_value(node.inputs[i]) is None]
        if not moving or (len(moving) < len(positions) and not rule.constant_operand):
            return ""
        for tensor in (*[node.inputs[i] for i in positions], *node.outputs):
            dtype = self.types.dtype(tensor)
            if dtype != FLOAT32:
                return "" if rule.role is not Role.WEIGHTED else f"tensor '{tensor.name}' is not float32"
        grids = moving if not rule.needs_output_grid else [*moving, *node.outputs]
        if self.sizes is not None and any(tensor.name not in self.sizes for tensor in grids):
            return "no run of the calibration data reached it" if rule.role is Role.WEIGHTED else ""
        if rule.role is Role.ABSORBED:
            return None if activation_bounds(node) is not None else ""
        if is_overridable(self.model, node):
            return OVERRIDABLE if rule.role is Role.WEIGHTED else ""
        why = rule.refuse(node) or rule.unprofitable(node)
        return self.only(node) if why is None and rule.role is Role.WEIGHTED else why

    # --------------------------------------------------------------------------------------------- lonely nodes

    def _drop_lonely(self, queue: deque[Node]) -> None:
        """Drop nodes until every one left has the integer neighbours that make its integer form worth it."""
        queued = set(queue)
        while queue:
            node = queue.popleft()
            queued.discard(node)
            if node not in self.chosen or self._is_worth_it(node, self.chosen[node]):
                continue
            rule = self.chosen.pop(node)
            if rule.role is Role.WEIGHTED:
                self.refused[node] = DEPTHWISE
            for neighbour in self._neighbours(node):
                if neighbour in self.chosen and neighbour not in queued:
                    queue.append(neighbour)
                    queued.add(neighbour)

    def _drop_small_regions(self, sizes: Mapping[str, float]) -> None:
        """Drop regions whose products do not pay for converting the values that enter and leave them."""
        for region in self._regions():
            products = sum(products_of(node, sizes) for node in region if self.chosen[node].role is Role.WEIGHTED)
            if products >= PRODUCTS_PER_CONVERSION * self._converted(region, sizes):
                continue
            for node in region:
                if self.chosen.pop(node).role is Role.WEIGHTED:
                    self.refused[node] = TOO_SMALL

    def _regions(self) -> list[list[Node]]:
        """Return the integer operators in groups that hand integers to each other."""
        leader: dict[Node, Node] = {node: node for node in self.chosen}

        def find(node: Node) -> Node:
            while leader[node] is not node:
                leader[node] = leader[leader[node]]
                node = leader[node]
            return node

        for node, rule in self.chosen.items():
            for place in rule.data_positions(node):
                source = producer(node.inputs[place])
                if source in leader and self._has_output_grid(source, self.chosen[source]):
                    leader[find(node)] = find(source)
        regions: dict[Node, list[Node]] = {}
        for node in self.chosen:
            regions.setdefault(find(node), []).append(node)
        return list(regions.values())

    def _converted(self, region: list[Node], sizes: Mapping[str, float]) -> float:
        """Return how many values per sample are rounded on the way into a region and restored on the way out."""
        rounded: set[Tensor] = set()
        restored: set[Tensor] = set()
        for node in region:
            rule = self.chosen[node]
            for place in rule.data_positions(node):
                tensor = node.inputs[place]
                source = producer(tensor)
                if constant_value(tensor) is None and source not in self.chosen:
                    rounded.add(tensor)
            if not self._has_output_grid(node, rule):
                continue
            for tensor in node.outputs if len(node.outputs) > 1 else (self._behind(node),):
                if is_graph_output(tensor) or any(use.node not in self.chosen for use in uses(tensor)):
                    restored.add(tensor)
        return sum(sizes.get(tensor.name, 0.0) + VALUES_PER_OPERATOR for tensor in (*rounded, *restored))

    def _neighbours(self, node: Node) -> Iterator[Node]:
        for tensor in node.inputs:
            source = producer(tensor)
            if source is not None:
                yield source
                # A sibling behind an absorbed activation looks at the node before it.
                yield from (each for t in source.inputs if (each := producer(t)) is not None)
            yield from (use.node for use in uses(tensor))
        for tensor in node.outputs:
            for use in uses(tensor):
                yield use.node
                yield from (inner.node for out in use.node.outputs for inner in uses(out))

    def _is_worth_it(self, node: Node, rule: OpRule) -> bool:
        if rule.role is Role.WEIGHTED:
            if not is_depthwise(node):
                return True
            return self._is_made(node.inputs[0]) and any(self._uses_integers(node))
        if rule.role is Role.ABSORBED and self._is_absorbed(node):
            return True
        tensors = [node.inputs[i] for i in rule.data_positions(node) if constant_value(node.inputs[i]) is None]
        made = [self._is_made(tensor) for tensor in tensors]
        used = self._uses_integers(node)
        if rule.role is Role.MOVE and not any(made):
            return bool(used) and all(used) and not self._shrinks(node)
        return any(made) and any(used) and (all(made) or all(used))

    def _shrinks(self, node: Node) -> bool:
        """Tell whether rounding behind a node that nothing else reads the input of touches fewer values than before it.

        A pool that follows a float operator is also faster in float: there it works on blocks of channels.
        """
        return node.op == "MaxPool" and len(uses(node.inputs[0])) == 1 and not is_graph_output(node.inputs[0])

    def _is_absorbed(self, node: Node) -> bool:
        """Tell whether a Relu or Clip is the only reader of an integer operator's result."""
        source = producer(node.inputs[0])
        if source is None or source not in self.chosen or self.chosen[source].role in {Role.MOVE, Role.ABSORBED}:
            return False
        if len(uses(node.inputs[0])) != 1 or is_graph_output(node.inputs[0]):
            return False
        return self._has_output_grid(source, self.chosen[source])

    def _is_made(self, tensor: Tensor) -> bool:
        """Tell whether a tensor comes out of integer arithmetic, data movement aside: its integers cost nothing."""
        source = producer(tensor)
        while source is not None and source in self.chosen and self.chosen[source].role is Role.MOVE:
            source = producer(source.inputs[self.chosen[source].data_positions(source)[0]])
        if source is None or source not in self.chosen:
            return False
        return self._has_output_grid(source, self.chosen[source])

    def _uses_integers(self, node: Node) -> list[bool]:
        """Return, for every reader of what a node makes (behind its absorbed activation), whether it reads integers."""
        found = []
        for tensor in node.outputs if len(node.outputs) > 1 else (self._behind(node),):
            found += [self._reads_integers(use) for use in uses(tensor)]
            if is_graph_output(tensor):
                found.append(False)
        return found

    def _reads_integers(self, use: Use) -> bool:
        rule = self.chosen.get(use.node)
        return rule is not None and use.index in rule.data_positions(use.node)

    def _has_output_grid(self, node: Node, rule: OpRule) -> bool:
        if rule.role is Role.WEIGHTED and not rule.needs_output_grid:
            if node.op != "Gemm":
                return False
            readers = list(uses(self._behind_gemm(node)))
            return bool(readers) and all(
                self._reads_integers(use) and self.chosen[use.node].role is Role.WEIGHTED for use in readers
            )
        return True

    def _behind_gemm(self, node: Node) -> Tensor:
        """Return what a Gemm makes, behind a Relu or Clip that alone reads it."""
        output: Tensor = node.outputs[0]
        readers = uses(output)
        if len(readers) == 1 and not is_graph_output(output) and readers[0].node in self.chosen:
            reader = readers[0].node
            if self.chosen[reader].role is Role.ABSORBED and not is_graph_output(reader.outputs[0]):
                output = reader.outputs[0]
        return output

    def _behind(self, node: Node) -> Tensor:
        """Return the tensor that an integer operator rounds: its output, or that of the activation it absorbs."""
        output: Tensor = node.outputs[0]
        if self.chosen[node].role is Role.ABSORBED or self.chosen[node].role is Role.MOVE:
            return output
        readers = uses(output)
        if len(readers) == 1 and not is_graph_output(output):
            reader = readers[0].node
            if reader in self.chosen and self.chosen[reader].role is Role.ABSORBED:
                output = reader.outputs[0]
        return output

    # -------------------------------------------------------------------------------------------------- groups

    @staticmethod
    def group_of(groups: dict[Tensor, Group], tensor: Tensor) -> Group:
        """Return the group of a tensor; a tensor without one gets its own."""
        if tensor not in groups:
            groups[tensor] = Group([tensor])
        return groups[tensor]

    def merge(self, groups: dict[Tensor, Group], first: Tensor, second: Tensor) -> None:
        """Let two tensors, and all that share a grid with them, share one."""
        one, other = self.group_of(groups, first), self.group_of(groups, second)
        if one is other:
            return
        if len(one.tensors) < len(other.tensors):
            one, other = other, one
        one.tensors += other.tensors
        one.bounds = one.bounds or other.bounds
        one.fixed = one.fixed or other.fixed
        one.exact = one.exact or other.exact
        one.logits = one.logits or other.logits
        for tensor in other.tensors:
            groups[tensor] = one

    def _group(self, outputs: dict[Node, Tensor]) -> tuple[dict[Tensor, Group], set[Node]]:
        groups: dict[Tensor, Group] = {}
        joined: set[Node] = set()

        for node, rule in self.chosen.items():
            moving = [node.inputs[i] for i in rule.data_positions(node) if constant_value(node.inputs[i]) is None]
            if rule.role is Role.ABSORBED and self._is_absorbed(node):
                self.group_of(groups, node.outputs[0]).bounds = activation_bounds(node)
                continue
            for tensor in moving:
                self.group_of(groups, tensor)
            if rule.role is Role.MOVE:
                for tensor in node.outputs:
                    self.merge(groups, moving[0], tensor)
            elif node in outputs:
                group = self.group_of(groups, outputs[node])
                if rule.fixed_range is not None:
                    group.fixed = rule.fixed_range
                if rule.role is Role.ABSORBED:
                    group.bounds = activation_bounds(node)
        for node in self.chosen:
            if node.op == "Concat" and self._can_share(node, outputs[node], groups):
                joined.add(node)
                for tensor in node.inputs:
                    self.merge(groups, tensor, outputs[node])
        return groups, joined

    def _can_share(self, node: Node, output: Tensor, groups: dict[Tensor, Group]) -> bool:
        """Tell whether the inputs of a Concat may be made on its output's grid at no loss."""
        if output is not node.outputs[0]:
            return False
        inputs = [groups[tensor] for tensor in node.inputs if tensor in groups]
        if len(inputs) != len(node.inputs) or any(group.fixed for group in inputs):
            return False
        if len({group.bounds for group in inputs}) != 1:
            return False
        return all(
            self._is_made(tensor) and len(groups[tensor].tensors) == 1 and len(uses(tensor)) == 1
            for tensor in node.inputs
        )
