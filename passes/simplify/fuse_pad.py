"""Fold Pad into the padding of the convolution or pooling behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.dims import at_least
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output, producer
from graphopt.graph.dtypes import numpy_dtype
from graphopt.passes.simplify.look import Look
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_READERS = ("Conv", "AveragePool", "MaxPool")
_NOT_NEGATIVE = ("Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt")


@dataclass(frozen=True, slots=True, kw_only=True)
class FusePad(RulePass):
    """Let Conv, AveragePool and MaxPool pad by themselves.

    Matches:   Pad of spatial axes with a constant, read by Conv, AveragePool and MaxPool alone.
    Produces:  These with the sum of both paddings. One node less, and the padded copy of the activation is not written.
    Requires:  No negative padding, none of the batch or the channels, and no auto_pad that follows the size. Conv: the
               constant is 0. AveragePool: it is 0, and the pooling counts its own padding (count_include_pad) or has
               none. MaxPool: it is the least value of the type (minus infinity for floats), or at most 0 where the
               input is the output of Relu, Sigmoid or the like: a MaxPool leaves its padding out, so a padding by zeros
               in front of negative numbers is another function. Its indices are not read. Both pools: no ceil_mode, no
               dilations, less padding than the kernel on each side, and no empty image, so that each window has an
               element.
    Preserves: Names, types and shapes of all outputs; values up to rounding: kernels for padded convolutions may add up
               in another order.
    Source:    ONNX operator specifications of Pad, Conv, AveragePool and MaxPool.
    """

    name: ClassVar[str] = "fuse-pad"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the one rule."""
        types, values = facts.get(Types), facts.get(ShapeValues)
        return [Rule(("Pad",), lambda node: _fuse(Look(node, types, values)), depth=1, below=1)]


def _fuse(look: Look) -> Patch | Skip | None:
    node, output = look.node, look.output
    readers = list(dict.fromkeys(output.outputs))
    if not readers or is_graph_output(output) or look.opset < 2 or refers_to_function(node):
        return None
    for reader in readers:
        alone = reader.inputs[0] is output and output not in reader.inputs[1:]
        if not is_op(reader, *_READERS) or not alone or reader.graph is not node.graph or refers_to_function(reader):
            return None
    ends = _ends(look)
    if isinstance(ends, str):
        return Skip(node, ends)
    value = _value(look)
    if value is None:
        return Skip(node, "it does not pad with a constant that is known")
    paddings: list[tuple[Node, list[int]]] = []
    for reader in readers:
        padding = _padding(look.at(reader), ends, value, look.node.inputs[0])
        if isinstance(padding, str):
            return Skip(node, f"{reader.op} '{node_label(reader)}': {padding}")
        paddings.append((reader, padding))
    data = node.inputs[0]

    def apply(rewriter: Rewriter) -> None:
        for reader, padding in paddings:
            rewriter.set_input(reader, 0, data)
            rewriter.set_attr(reader, "pads", padding)
            rewriter.set_attr(reader, "auto_pad", None)
            if reader.op == "AveragePool":
                rewriter.set_attr(reader, "count_include_pad", 1)
        rewriter.erase(node)

    into = ", ".join(f"{reader.op} '{node_label(reader)}'" for reader in readers)
    return Patch(f"fold '{node_label(node)}' into {into}", (node, *readers), apply)


def _ends(look: Look) -> list[int] | str:
    """Return the padding of the spatial axes, all beginnings and then all ends, or why it cannot be had."""
    mode = look.attr("mode", "constant")
    if (mode.decode() if isinstance(mode, bytes) else mode) != "constant":
        return f"it pads in the mode {mode!r}"
    pads = look.ints(1, "pads")
    if pads is None:
        return "its sizes are not constant"
    half = len(pads) // 2
    begins, ends = pads[:half], pads[half:]
    if look.input(3) is not None:
        rank, axes = look.types.rank(look.node.inputs[0]), look.ints(3, "")
        if rank is None or axes is None or len(axes) != half:
            return "its axes are not constant, or the rank of its input is not known"
        by_axis = {axis % rank: (begin, end) for axis, begin, end in zip(axes, begins, ends, strict=True)}
        begins, ends = ([by_axis.get(axis, (0, 0))[side] for axis in range(rank)] for side in (0, 1))
    if min((*begins, *ends), default=0) < 0:
        return "it cuts off"
    if any((*begins[:2], *ends[:2])):
        return "it pads the batch or the channels"
    return [*begins[2:], *ends[2:]]


def _value(look: Look) -> Any:
    """Return the number that is padded with, None where it is not known."""
    if look.opset >= 11 and look.input(2) is not None:
        return look.scalar(2)
    kind = numpy_dtype(look.dtype(look.node.inputs[0]))
    number = look.attr("value", 0.0) if look.opset < 11 else 0
    return None if kind is None else np.asarray(number).astype(kind)[()]


def _padding(look: Look, ends: list[int], value: Any, data: Tensor) -> list[int] | str:
    """Return the padding of a reader that takes over a Pad, or why it cannot."""
    node = look.node
    given = look.attr("auto_pad", "NOTSET")
    auto = given.decode() if isinstance(given, bytes) else str(given)
    if auto not in {"NOTSET", "VALID", ""}:
        return f"its padding is {auto}"
    own = [int(pad) for pad in look.attr("pads", ())] if auto != "VALID" else []
    own = own or [0] * len(ends)
    if len(own) != len(ends):
        return f"it has {len(own)} paddings for {len(ends)}"
    total = [first + second for first, second in zip(own, ends, strict=True)]
    if node.op == "Conv":
        return total if value == 0 else f"it pads with zeros, the Pad with {value}"
    reason = _why_windows_differ(look, total, data)
    if reason:
        return reason
    if node.op == "AveragePool":
        if value != 0:
            return f"it pads with zeros, the Pad with {value}"
        if any(own) and not int(look.attr("count_include_pad", 0)):
            return "it does not count its own padding"
        return total if look.opset >= 7 else "it cannot count padding before opset 7"
    if any(tensor.name and (tensor.outputs or is_graph_output(tensor)) for tensor in node.outputs[1:]):
        return "its indices are read"
    if value <= 0 and is_op(producer(data), *_NOT_NEGATIVE):
        return total
    least = np.iinfo(value.dtype).min if value.dtype.kind in "iu" else -np.inf
    return total if value == least else f"it leaves its padding out, the Pad pads with {value}"


def _why_windows_differ(look: Look, total: list[int], data: Tensor) -> str:
    """Return why a window of a pooling may hold nothing but padding, or end elsewhere; empty where none does."""
    kernel = [int(size) for size in look.attr("kernel_shape", ())]
    if int(look.attr("ceil_mode", 0)):
        return "it rounds its size up (ceil_mode)"
    if any(int(step) != 1 for step in look.attr("dilations", ())):
        return "it has dilations"
    if 2 * len(kernel) != len(total) or any(pad >= size for pad, size in zip(total, kernel * 2, strict=True)):
        return f"the padding {total} is not smaller than the kernel {kernel}"
    shape = look.shape(data)
    if shape is None or len(shape) != len(kernel) + 2 or not all(at_least(size, 1) for size in shape[2:]):
        return "the image may be empty"
    return ""
