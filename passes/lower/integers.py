"""Layers of 8-bit integers as quantized models write them, and what the operator that replaces them may take over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, Function, constant_value, is_graph_output, producer, uses
from graphopt.passes.lower.epilogue import Following, as_bias, read_epilogue
from graphopt.passes.lower.grids import grid_of_restored, grid_of_rounding, is_usable, only_rounds
from graphopt.passes.lower.linear import why_other_gemm
from graphopt.solve.pack_sparse_int8 import MAX_K
from graphopt.target.reading import is_conversion, restored

if TYPE_CHECKING:
    from collections.abc import Container

    from numpy.typing import NDArray

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor, Variable
    from graphopt.passes.lower.grids import Grid
    from graphopt.target.reading import Restored

STANDARD_DOMAINS = (None, "", "ai.onnx")


@dataclass(frozen=True, slots=True, eq=False)
class Int8Layer:
    """A layer whose operands are 8-bit integers, as it stands in the graph.

    Attributes:
        node: The MatMul, Gemm, Conv or MatMulInteger.
        source: The node whose first input it reads: uint8, or the floats that are rounded.
        x_grid: Scale and zero point of that; None where they are found in every run.
        stored_weight: The tensor that holds the integers of the weight.
        values: They, int8; of shape [K, N] for products, of the shape of the weight for convolutions.
        scales: float32 of shape [N].
        fixes: int32 bias on the grid of the sums, of shape [N], or None.
        epilogue: What is done to the floats: bias, residual, activation.
        y_grid: Scale and zero point of a uint8 result; None where it is float.
        nodes: The node and those that go with it, in order; the last one gives the result.
        operands: Nodes in front of it that go where nothing else reads them.
        one_axis: Whether it is a convolution along one axis, with a window of height 1 in ``values``.
    """

    node: Node
    source: Node
    x_grid: Grid | None
    stored_weight: Tensor
    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    fixes: NDArray[np.int32] | None
    epilogue: Following
    y_grid: Grid | None
    nodes: tuple[Node, ...]
    operands: tuple[Node, ...]
    one_axis: bool = False

    @property
    def x(self) -> Tensor:
        """What it reads."""
        x: Tensor = self.source.inputs[0]
        return x

    @property
    def output(self) -> Variable:
        """The tensor that holds the result."""
        output: Variable = self.nodes[-1].outputs[0]
        return output

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of grids and activation."""
        made = dict(self.epilogue.attrs)
        if self.x_grid is not None:
            made |= {"x_scale": self.x_grid[0], "x_zero_point": self.x_grid[1]}
        if self.y_grid is not None:
            made |= {"output": "uint8", "y_scale": self.y_grid[0], "y_zero_point": self.y_grid[1]}
        return made


def match_static(node: Node, types: Types, taken: Container[Node] = ()) -> Int8Layer | str | None:
    """Return a MatMul, Gemm or Conv between conversions, why it is left alone, or None where it is no such layer.

    Args:
        node: A MatMul, Gemm or Conv.
        types: Shapes of the activations.
        taken: Nodes that go with another layer.
    """
    if len(node.inputs) < 2:
        return None
    x, weight = restored(node.inputs[0]), restored(node.inputs[1])
    if x is None or x.is_constant or weight is None or not weight.is_constant:
        return None
    if isinstance(node.graph, Function):
        return "it is in the body of a function, which has no initializers; inline the function first"
    transposed = node.op == "Gemm" and bool(node.attrs.get("transB", 0))
    along = 0 if node.op == "Conv" or transposed else 1
    grid = grid_of_restored(x)
    reason = (
        grid
        if isinstance(grid, str)
        else _why_other_weight(weight, along, rank=None if node.op == "Conv" else 2)
        or (why_other_gemm(node) if node.op == "Gemm" else "")
    )
    if reason or isinstance(grid, str):
        return reason
    values, scale = weight.values, weight.scale
    assert values is not None
    assert scale is not None
    values = np.ascontiguousarray(values.T) if transposed else values
    n = values.shape[0] if node.op == "Conv" else values.shape[1]
    scales = np.ascontiguousarray(np.broadcast_to(np.asarray(scale, np.float32).reshape(-1), (n,)))
    layer = Int8Layer(
        node=node,
        source=x.node,
        x_grid=grid,
        stored_weight=weight.integers,
        values=values,
        scales=scales,
        fixes=None,
        epilogue=Following(node.outputs[0]),
        y_grid=None,
        nodes=(node,),
        operands=(x.node, weight.node),
    )
    if len(node.inputs) > 2 and node.inputs[2].name:
        found = _with_bias(layer, node.inputs[2])
        if found is None:
            return f"its bias '{node.inputs[2].name}' is not a constant with one number per output"
        layer = found
    return _with_rounding_of_x(_with_followers(layer, types, taken), x, taken)


def match_dynamic(node: Node, types: Types, taken: Container[Node] = ()) -> Int8Layer | str | None:
    """Return a MatMulInteger whose input a DynamicQuantizeLinear rounds, with what makes floats of its sums.

    Args:
        node: A MatMulInteger.
        types: Shapes of the activations.
        taken: Nodes that go with another layer.
    """
    x = producer(node.inputs[0])
    if x is None or x.op != "DynamicQuantizeLinear" or x.domain not in STANDARD_DOMAINS:
        return None
    if isinstance(node.graph, Function):
        return "it is in the body of a function, which has no initializers; inline the function first"
    if node.inputs[0] is not x.outputs[0] or len(node.inputs) < 3 or node.inputs[2] is not x.outputs[2]:
        return "its zero point is not that of its input"
    stored, turned = _turned(node.inputs[1])
    values = constant_value(stored)
    if values is None:
        return f"its weight '{node.inputs[1].name}' is not constant"
    zero = constant_value(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3].name else np.zeros((), np.int8)
    if values.dtype != np.int8 or values.ndim != 2 or not values.size or zero is None or zero.any():
        return "its weight is not a matrix of int8 with the zero point 0"
    values = np.ascontiguousarray(values.T) if turned is not None else values
    if values.shape[0] > MAX_K:
        return f"its weight has {values.shape[0]} rows; the kernel takes up to {MAX_K}"
    real = _scaled(node, x.outputs[1])
    if real is None:
        return "its sums are not multiplied with the scale of its input and a constant alone"
    nodes, factor, scale = real
    if scale.size not in {1, values.shape[1]} or scale.dtype != np.float32 or not is_usable(scale):
        return "the scales of its weight are not one positive number per output"
    scales = np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), values.shape[1:]))
    layer = Int8Layer(
        node=node,
        source=x,
        x_grid=None,
        stored_weight=stored,
        values=values,
        scales=scales,
        fixes=None,
        epilogue=Following(nodes[-1].outputs[0]),
        y_grid=None,
        nodes=(node, *nodes),
        operands=(x, factor, *(() if turned is None else (turned,))),
    )
    return _with_followers(layer, types, taken)


def only_reader(tensor: Tensor, node: Node) -> Node | None:
    """Return the node that alone reads a result, in the graph of ``node``."""
    readers = uses(tensor)
    if is_graph_output(tensor) or len(readers) != 1:
        return None
    reader: Node = readers[0].node
    return reader if reader.graph is node.graph else None


def _why_other_weight(weight: Restored, along: int, *, rank: int | None) -> str:
    values, name = weight.values, weight.integers.name
    if constant_value(weight.integers) is None or values is None:
        overridable = isinstance(weight.integers, Constant)
        return f"its weight '{name}' is {'an input of the graph as well' if overridable else 'not stored as integers'}"
    if values.dtype != np.int8 or not values.size or (rank is not None and values.ndim != rank):
        return f"its weight '{name}' is {values.dtype} of shape {list(values.shape)}, not int8 of one layer"
    if weight.zero is not None and weight.zero.any():
        return f"its weight '{name}' has a zero point other than 0"
    if weight.zero is None and len(weight.node.inputs) > 2 and weight.node.inputs[2].name:
        return f"the zero points of its weight '{name}' are not constant"
    scale = weight.scale
    if scale is None or weight.block or scale.dtype != np.float32 or not is_usable(scale):
        return f"its weight '{name}' has no constant positive scales"
    if scale.size > 1 and ((weight.axis or 0) % values.ndim != along or scale.size != values.shape[along]):
        return f"the scales of its weight '{name}' are not one per output"
    terms = values.size // values.shape[along]
    return f"its weight '{name}' has {terms} rows; the kernel takes up to {MAX_K}" if terms > MAX_K else ""


def _with_bias(layer: Int8Layer, tensor: Tensor) -> Int8Layer | None:
    """The layer with its bias; None where that is not one constant number per output."""
    n = layer.scales.size
    found = restored(tensor)
    if found is not None and found.values is not None and found.values.dtype == np.int32 and found.scale is not None:
        fits = found.values.shape in {(n,), (1, n)} and found.scale.size in {1, n} and not found.block
        if not fits or layer.x_grid is None or (found.zero is not None and found.zero.any()):
            return None
        product = np.float32(layer.x_grid[0]) * layer.scales
        layer = replace(layer, operands=(*layer.operands, found.node))
        values, scale = found.values.reshape(-1), np.asarray(found.scale, np.float32).reshape(-1)
        if np.allclose(scale, product, rtol=1e-5, atol=0):
            return replace(layer, fixes=np.asarray(values, np.int32))
        bias: NDArray[np.float32] | None = (values.astype(np.float64) * scale).astype(np.float32)
    else:
        bias = as_bias(tensor, n, rank=1 if layer.node.op == "Conv" else 2)
    return None if bias is None else replace(layer, epilogue=replace(layer.epilogue, bias=bias))


def _with_followers(layer: Int8Layer, types: Types, taken: Container[Node]) -> Int8Layer:
    """The layer with the sums, the activation and the rounding that follow it, each the only reader."""
    n = None if layer.node.op == "Conv" else layer.scales.size  # what is added to channels is the Conv's own bias
    epilogue = read_epilogue(layer.output, n, types, bias=layer.epilogue.bias, taken=taken, rounded=True)
    if not epilogue.nodes:
        epilogue = _behind_pair(layer, types, taken) or epilogue
    layer = replace(layer, epilogue=epilogue, nodes=(*layer.nodes, *epilogue.nodes))
    rounding = _rounding_of(layer.output, layer.node)
    if rounding is None:
        return layer
    return replace(layer, y_grid=grid_of_rounding(rounding), nodes=(*layer.nodes, rounding))


def _behind_pair(layer: Int8Layer, types: Types, taken: Container[Node]) -> Following | None:
    """What follows a pair of conversions that has no other purpose than to make bytes of the result, and the pair.

    A pair in front of an Add of bytes stays: ONNX Runtime adds bytes faster than the kernel reads floats that were
    restored from them.
    """
    rounding = _rounding_of(layer.output, layer.node)
    restoring = None if rounding is None else only_reader(rounding.outputs[0], layer.node)
    if rounding is None or restoring is None or not is_conversion(restoring, "DequantizeLinear"):
        return None
    y = restoring.outputs[0]
    found, grid = restored(y), grid_of_rounding(rounding)
    if found is None or grid is None or grid_of_restored(found) != grid or not only_rounds(grid, least=-1, most=1):
        return None
    epilogue = read_epilogue(y, None, types, bias=layer.epilogue.bias, taken=taken, rounded=True)
    residual = epilogue.residual
    adds_bytes = residual is not None and restored(residual) and _rounding_of(epilogue.output, layer.node)
    if not epilogue.nodes or adds_bytes:
        return None
    return replace(epilogue, nodes=(rounding, restoring, *epilogue.nodes))


def _rounding_of(y: Tensor, node: Node) -> Node | None:
    """The QuantizeLinear that alone reads a result and makes bytes of it, in the graph of a node."""
    reader = only_reader(y, node)
    rounds = reader is not None and is_conversion(reader, "QuantizeLinear") and reader.inputs[0] is y
    return reader if rounds and reader is not None and grid_of_rounding(reader) is not None else None


def _is(node: Node, op: str) -> bool:
    return bool(node.op == op and node.domain in STANDARD_DOMAINS)


def _with_rounding_of_x(layer: Int8Layer, x: Restored, taken: Container[Node]) -> Int8Layer:
    """The layer reading floats where it alone reads what a QuantizeLinear makes of them on the same grid."""
    node = x.rounding
    if node is None or node in taken or not _is_alone(x.integers) or node.graph is not layer.node.graph:
        return layer
    if not _is_alone(x.node.outputs[0]) or grid_of_rounding(node) != layer.x_grid or node.inputs[0].onnx_dtype != 1:
        return layer
    return replace(layer, source=node, operands=(*layer.operands, node))


def _is_alone(tensor: Tensor) -> bool:
    """Whether one node reads a tensor and nothing else."""
    return len(uses(tensor)) == 1 and not is_graph_output(tensor)


def _turned(tensor: Tensor) -> tuple[Tensor, Node | None]:
    """What holds a matrix, and the Transpose between."""
    node = producer(tensor)
    if node is not None and _is(node, "Transpose") and list(node.attrs.get("perm", [1, 0])) == [1, 0]:
        return node.inputs[0], node
    return tensor, None


def _scaled(node: Node, step: Tensor) -> tuple[tuple[Node, Node], Node, NDArray[Any]] | None:
    """Cast and Mul behind a MatMulInteger, the Mul of the scales, and the scales of the weight."""
    cast = only_reader(node.outputs[0], node)
    if cast is None or not _is(cast, "Cast") or cast.attrs.get("to") != 1:
        return None
    mul = only_reader(cast.outputs[0], node)
    if mul is None or not _is(mul, "Mul"):
        return None
    factor = producer(mul.inputs[1] if mul.inputs[0] is cast.outputs[0] else mul.inputs[0])
    if factor is None or not _is(factor, "Mul"):
        return None
    others = [tensor for tensor in factor.inputs if tensor is not step]
    scale = constant_value(others[0]) if len(others) == 1 else None
    if scale is None or scale.ndim > 1:
        return None
    return (cast, mul), factor, scale
