"""The best layouts of a region: fewest turns first, then fewest bytes that turns move; a minimum cut.

Layout 0 is the side of the source. A value that is made in layout 0 and read in layout 1, by however many, is turned
once: an arc from its maker to a node in front of its readers, which may not be on the side of the source if one of the
readers is not. The other way round likewise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.analysis.dim_values import evaluate
from graphopt.analysis.dims import product
from graphopt.graph import is_graph_input, is_graph_output, producer
from graphopt.passes.simplify.layout.axes import softmax_now
from graphopt.passes.simplify.layout.min_cut import ENDLESS, SINK, SOURCE, Network
from graphopt.passes.simplify.layout.region import MOST_READERS, element_bytes
from graphopt.passes.simplify.layout.relayout import may_relay
from graphopt.passes.simplify.look import Look

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.graph import Node
    from graphopt.passes.simplify.layout.region import Region, Value

_CHANGE = 1  # of a node, so that none changes for nothing
_INSIDE = 1 << 9  # a turn that is neither the first nor the last thing done stands between what might be fused
_BESIDE_LAYER = 1 << 10
_BYTE = 1 << 12
_TURN = 1 << 60
_MOST_BYTES = 1 << 44
_OPEN_SIZE = 64  # what a size that only the run decides is taken for

_LAYERS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul"})


@dataclass(frozen=True, slots=True)
class _Ends:
    """Who decides in which layout a value is needed; a node of the network each.

    Attributes:
        maker: Who makes it.
        readers: Who read it.
    """

    maker: int
    readers: frozenset[int]


def better_layouts(region: Region, facts: ShapeValues) -> dict[Node, int] | None:
    """Return the movers that change and their new layouts, None where that saves nothing.

    Args:
        region: The region.
        facts: Values of shape computations.
    """
    network = Network()
    numbers = {node: network.node() for node in region.movers}
    ends = [_ends(value, region, numbers) for value in region.values]
    prices = [_price(value, region) for value in region.values]
    slow = {node: _slow(node, region, facts) for node in region.movers}
    after = [
        0 if may_relay(value.root, region.types) else price for value, price in zip(region.values, prices, strict=True)
    ]
    for end, price in zip(ends, after, strict=True):
        _add_value(network, end, price)
    for node, number in numbers.items():
        costs = list(slow[node])
        costs[1 - region.movers[node].layout] += _CHANGE
        network.arc(SOURCE, number, costs[1])
        network.arc(number, SINK, costs[0])
    sides = network.source_side()
    chosen = [0 if at_source else 1 for at_source in sides]
    chosen[SOURCE], chosen[SINK] = 0, 1
    now = sum(len(value.turns) * price for value, price in zip(region.values, prices, strict=True))
    now += sum(costs[region.movers[node].layout] for node, costs in slow.items())
    then = sum(price for end, price in zip(ends, after, strict=True) if _is_turned(end, chosen))
    then += sum(costs[chosen[numbers[node]]] for node, costs in slow.items())
    if then >= now:
        return None
    changes = {node: chosen[number] for node, number in numbers.items() if chosen[number] != region.movers[node].layout}
    return changes if _keeps_names(region, changes) else None


def _is_turned(end: _Ends, chosen: list[int]) -> bool:
    return any(chosen[reader] != chosen[end.maker] for reader in end.readers)


def _add_value(network: Network, end: _Ends, price: int) -> None:
    if not end.readers:
        return
    ahead, behind = network.node(), network.node()
    network.arc(end.maker, ahead, price)
    network.arc(behind, end.maker, price)
    for reader in sorted(end.readers):
        network.arc(ahead, reader, ENDLESS)
        network.arc(reader, behind, ENDLESS)


def _ends(value: Value, region: Region, numbers: Mapping[Node, int]) -> _Ends:
    root = value.root
    made = producer(root)
    fixed = (SOURCE, SINK)
    maker = fixed[value.tensors[root]]
    if made is not None and region.decides(made, root):
        maker = numbers[made]
    readers: set[int] = set()
    for tensor, layout in value.tensors.items():
        if is_graph_output(tensor):
            readers.add(fixed[layout])
        if len(tensor.outputs) > MOST_READERS:
            readers.add(fixed[layout])
            continue
        for reader in dict.fromkeys(tensor.outputs):
            if reader in value.turns or reader in value.free:
                continue
            if reader not in numbers:
                readers.add(fixed[layout])
                continue
            other = region.movers[reader].other
            for place, each in enumerate(reader.inputs):
                if each is tensor:
                    moves = region.value(tensor, other.inputs[place]) is not None
                    readers.add(numbers[reader] if moves else fixed[layout])
    return _Ends(maker, frozenset(readers))


def _price(value: Value, region: Region) -> int:
    """Return what a turn of a value costs: less at the ends of the graph, more beside a layer that others fuse into."""
    root = value.root
    few = (tensor.outputs for tensor in value.tensors if len(tensor.outputs) <= MOST_READERS)
    beside = [producer(root), *(reader for readers in few for reader in readers)]
    price = _TURN
    if any(node is not None and node.op in _LAYERS for node in beside):
        price += _BESIDE_LAYER
    if producer(root) is not None and not any(is_graph_output(tensor) for tensor in value.tensors):
        price += _INSIDE
    return price if value.keeps_order else price + _bytes(value, region) * _BYTE


def _bytes(value: Value, region: Region) -> int:
    size = evaluate(product(value.shape), {}, _OPEN_SIZE)
    return min(max(1, size or _OPEN_SIZE) * element_bytes(value.root, region.types), _MOST_BYTES)


def _slow(node: Node, region: Region, facts: ShapeValues) -> tuple[int, int]:
    """Return what a node costs besides in each layout, because the runtime lays it out anew for itself."""
    mover = region.movers[node]
    if node.op not in {"Softmax", "LogSoftmax"}:
        return (0, 0)
    value = region.value(node.outputs[0], mover.other.outputs[0])
    price = 0 if value is None else 2 * _bytes(value, region) * _BYTE
    here = price if softmax_now(Look(node, region.types, facts)) else 0
    there = price if mover.other.slow else 0
    return (there, here) if mover.layout else (here, there)


def _keeps_names(region: Region, changes: Mapping[Node, int]) -> bool:
    """Whether outputs of graphs keep their names without a node that only renames."""
    for value in region.values:
        root = value.root
        made = producer(root)
        changed = made in changes
        named: dict[int, int] = {}
        for tensor, layout in value.tensors.items():
            if is_graph_output(tensor):
                named[layout] = named.get(layout, 0) + 1
        if any(count > 1 for count in named.values()) or (named and may_relay(root, region.types)):
            return False
        if named and changed and not region.decides(made, root):
            return False
        here = value.tensors[root]
        if changed or not named.get(here) or is_graph_output(root):
            continue
        if made is None or made.graph is not region.graph or is_graph_input(root) or root.roles:
            return False
    return True
