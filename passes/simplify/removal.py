"""Nodes that go and nodes that are stated anew: names of outputs, readers, and what nobody reads any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.graph import Constant, Node, Tensor, Variable, is_graph_input, is_graph_output, owner, producer
from graphopt.passes.simplify.purity import is_constant
from graphopt.rewrite.patch import Patch, Skip

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphopt.analysis.types import Types
    from graphopt.graph import Rewriter


def bypass(node: Node, source: Tensor, reason: str = "", types: Types | None = None) -> Patch | Skip:
    """Return the patch that lets the readers of a node's first output read a tensor of the same value instead.

    Args:
        node: The node; it is erased, and so are the nodes before it that nobody reads then.
        source: The tensor: same element type, shape and values as the output.
        reason: What is done, for people.
        types: Given where more may be known of the source than of the output: then the readers are inferred again.

    Returns:
        A refusal where a public name needs the node.
    """
    kept = why_kept(node, source)
    if kept:
        return Skip(node, kept)
    output = node.outputs[0]

    def apply(rewriter: Rewriter) -> None:
        if is_graph_output(output) and isinstance(source, Variable):
            # what it declared may be wrong, what was proved is not
            rewriter.set_type(source, output.dtype, output.shape)
        before = list(node.inputs)
        readers = list(dict.fromkeys(output.outputs))
        rewriter.replace_tensor(output, source)
        rewriter.erase(node)
        erase_unread(rewriter, before)
        for refined in () if types is None else types.refine(readers):
            rewriter.mark(refined)

    return Patch(reason or f"{node.op} gives out '{source.name}' unchanged", (node,), apply)


def why_kept(node: Node, source: Tensor) -> str:
    """Return why a node that changes nothing has to stay; empty where it may go."""
    output = node.outputs[0]
    used = [tensor.name for tensor in node.outputs[1:] if tensor.name and (tensor.outputs or is_graph_output(tensor))]
    if used:
        return f"its further outputs are read: {', '.join(used)}"
    if not is_graph_output(output):
        return ""
    if is_graph_input(source) or isinstance(source, Constant) or is_constant(source):
        return f"it gives the graph output '{output.name}' its name, and '{source.name}' keeps its own"
    if owner(source) is not node.graph:
        return f"it gives '{source.name}' of an outer graph out of the body as '{output.name}'"
    if is_graph_output(source):
        return f"'{output.name}' and '{source.name}' are both outputs of the graph"
    return ""


def restate(
    rewriter: Rewriter,
    node: Node,
    op: str,
    inputs: Sequence[Tensor | None],
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """State a node anew; its outputs keep their values, so their names and types stay.

    Args:
        rewriter: The rewriter of the patch.
        node: The node.
        op: Its operator from now on.
        inputs: Its inputs from now on; None omits one.
        attrs: Its attributes from now on, all of them.
    """
    before = list(node.inputs)
    if node.op != op:
        rewriter.set_op(node, op)
    wanted = dict(attrs or {})
    for key in [key for key in node.attrs if key not in wanted]:
        rewriter.set_attr(node, key, None)
    for key, value in wanted.items():
        rewriter.set_attr(node, key, value)
    for index, tensor in enumerate(inputs):
        rewriter.set_input(node, index, tensor)
    for index in range(len(node.inputs) - 1, len(inputs) - 1, -1):
        rewriter.set_input(node, index, None)
    erase_unread(rewriter, before)


def erase_unread(rewriter: Rewriter, tensors: Iterable[Tensor]) -> None:
    """Erase the producers of tensors that nobody reads, and what was there for them alone.

    Args:
        rewriter: The rewriter of the patch.
        tensors: Tensors that may have lost their last reader.
    """
    stack = list(tensors)
    while stack:
        node = producer(stack.pop())
        if node is None or node.graph is None or any(map(_is_read, node.outputs)):
            continue
        stack.extend(node.inputs)
        rewriter.erase(node)


def _is_read(tensor: Tensor) -> bool:
    return bool(tensor.name) and bool(tensor.outputs or is_graph_output(tensor))
