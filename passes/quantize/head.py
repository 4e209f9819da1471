"""What the first integer operators of a model need to be fast: whole groups of channels, and little to round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph import is_graph_output, producer, uses

if TYPE_CHECKING:
    from graphopt.graph import Node, Rewriter, Tensor


def pool_first(rw: Rewriter, tensor: Tensor) -> Tensor:
    """Let a float MaxPool that is to be rounded pool before the Relu that stands before it; return what to round.

    Both orders are equal. The runtime moves rounding in front of a MaxPool, to four times the values or more, but not
    in front of a Relu, which then disappears into the rounding.
    """
    pool = producer(tensor)
    before = producer(pool.inputs[0]) if pool is not None and pool.op == "MaxPool" and len(pool.outputs) == 1 else None
    if pool is None or before is None or before.op != "Relu" or len(uses(before.outputs[0])) != 1:
        return tensor
    if len(uses(tensor)) != 1 or is_graph_output(tensor) or is_graph_output(before.outputs[0]):
        return tensor
    rw.set_input(pool, 0, before.inputs[0])
    rw.erase([before])
    made: Tensor = rw.op("Relu", [tensor], like=tensor, near=uses(tensor)[0].node)
    return made


def has_image_channels(node: Node, shape: tuple[int, ...]) -> bool:
    """Tell whether a convolution reads three channels and its integer form is faster on four.

    The direct integer kernel takes input channels in fours; without it patches are gathered byte by byte. Padding with
    zeros is exact.
    """
    return shape[1] == 3 and int(node.attrs.get("group", 1)) == 1 and shape[0] >= 16 and shape[0] % 4 == 0
