"""What a compressed file really holds: zeros, patterns, values per weight and rounded activations of its layers.

Weights are read as the runtime sees them: whatever constant nodes make them (dequantization, code books, reshapes) is
run, so that every tool's storage counts alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits")
ROUNDERS = ("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear", "Clip")
INTEGER_LAYERS = ("MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeMatMul")
BLOCK = 32
REACHED = 0.8
"""Share of weights in the format from which a point counts as reached: first and last layers may stay as they are."""
SLACK = 0.02


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer; rows are outputs, the second axis are inputs, the third is space."""

    name: str
    values: NDArray[Any]
    integer: NDArray[Any] | None
    rounded_input: bool
    depthwise: bool

    @property
    def rows(self) -> NDArray[Any]:
        """The matrix of outputs by everything that is summed over."""
        return self.values.reshape(len(self.values), -1)


def found(path: Path, point: dict[str, Any], original: Path, keep: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what a file holds of what a point asks, and whether that is reached.

    Args:
        path: The compressed model.
        point: The point's fields.
        original: The model before.
        keep: Names of nodes that were to be left as they are.
    """
    layers, before = read(path, keep), read(original, keep)
    total = sum(layer.values.size for layer in layers)
    dense = sum(layer.values.size for layer in before)
    row: dict[str, Any] = {"weights": total, "weights_before": dense}
    good = total > 0
    if point["channels"]:
        row["removed"] = round(1 - total / dense, 4)
        good &= row["removed"] >= point["channels"] - SLACK
    # Depthwise layers hold few weights, and zeros in them save nothing: tools may compress them or not.
    layers = [layer for layer in layers if not layer.depthwise]
    total = sum(layer.values.size for layer in layers)
    if point["sparsity"]:
        row["zeros"] = round(1 - sum(int(np.count_nonzero(layer.values)) for layer in layers) / total, 4)
        aimed = point["sparsity"] * (REACHED if point["group"] else 1)
        good &= row["zeros"] >= aimed - SLACK
    if point["group"]:
        row["pattern"] = round(sum(_grouped(layer, point) * layer.values.size for layer in layers) / total, 4)
        good &= row["pattern"] >= REACHED
    if point["rows"]:
        row["pattern"] = round(sum(_blocked(layer, point["rows"]) for layer in layers) / total, 4)
        good &= row["pattern"] >= point["sparsity"] * REACHED
    if point["levels"] and total:
        row["in_format"] = round(sum(_levelled(layer, point["levels"]) for layer in layers) / total, 4)
        good &= row["in_format"] >= REACHED
    if point["activations"]:
        row["rounded_inputs"] = round(sum(layer.rounded_input for layer in layers) / len(layers), 4)
        good &= row["rounded_inputs"] >= REACHED
    return row | {"reached": bool(good)}


def _grouped(layer: Layer, point: dict[str, Any]) -> float:
    """Return the share of weights in groups with few enough, along all that is summed over or along the channels."""
    size, kept = point["group"], point["kept"]
    shares = []
    for matrix in (layer.rows, np.moveaxis(layer.values, 1, -1).reshape(-1, layer.values.shape[1])):
        whole = matrix.shape[1] // size * size
        groups = np.count_nonzero(matrix[:, :whole].reshape(len(matrix), -1, size), axis=2)
        shares.append(float((groups <= kept).sum() * size / matrix.size))
    return max(shares)


def _blocked(layer: Layer, height: int) -> int:
    """Return how many weights lie in blocks of so many outputs that are zero as a whole."""
    matrix = layer.rows
    whole = len(matrix) // height * height
    empty = ~matrix[:whole].reshape(-1, height, matrix.shape[1]).any(1)
    return height * int(empty.sum())


def _levelled(layer: Layer, levels: int) -> int:
    """Return how many weights of a layer are in rows, or in blocks of 32, with few enough values."""
    if layer.integer is not None and len(np.unique(layer.integer)) <= levels:
        return int(layer.values.size)
    matrix = layer.rows
    counts = _distinct(matrix) <= levels
    if counts.all() or matrix.shape[1] <= BLOCK:
        return int(counts.sum()) * int(matrix.shape[1])
    whole = matrix.shape[1] // BLOCK * BLOCK
    blocks = _distinct(matrix[:, :whole].reshape(-1, BLOCK)) <= levels
    return max(int(counts.sum()) * int(matrix.shape[1]), int(blocks.sum()) * BLOCK)


def _distinct(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return the number of different values in each row."""
    ordered = np.sort(matrix, axis=1)
    return np.asarray(1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1))


# ----------------------------------------------------------------------------------------------------------- reading


def read(path: Path, keep: tuple[str, ...] = ()) -> list[Layer]:
    """Return the layers of a file whose weights are constant."""
    model = onnx.load(path)
    made = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    constant = set(stored)
    for node in model.graph.node:
        if all(name in constant for name in node.input if name) and not node.op_type.startswith("Random"):
            constant.update(node.output)
    layers, wanted = [], []
    for node in model.graph.node:
        kept = node.name in keep
        if node.op_type in LAYERS and not kept and len(node.input) > 1 and node.input[1] in constant:
            layers.append(node)
            wanted.append(node.input[1])
    plain = [name for node, name in zip(layers, wanted, strict=True) if node.op_type != "MatMulNBits"]
    values = _values(model, made, stored, plain)
    result = []
    for node, name in zip(layers, wanted, strict=True):
        array = _packed(model, node, stored) if node.op_type == "MatMulNBits" else _oriented(node, values[name])
        if array.ndim < 2:
            continue
        rounded = _is_rounded(made.get(node.input[0]), made)
        groups = next((each.i for each in node.attribute if each.name == "group"), 1)
        depthwise = groups > 1 and array.shape[1] == 1
        result.append(Layer(node.name, array, _integer(made.get(name), stored), rounded, depthwise))
    for node in model.graph.node:
        if node.op_type in INTEGER_LAYERS and node.name not in keep:
            result += _integer_layer(node, made, stored)
    return result


def _values(
    model: onnx.ModelProto, made: dict[str, Any], stored: dict[str, Any], names: list[str]
) -> dict[str, NDArray[Any]]:
    """Return constant tensors by running the nodes that make them."""
    result = {name: numpy_helper.to_array(stored[name]) for name in names if name in stored}
    computed = [name for name in dict.fromkeys(names) if name not in stored]
    if not computed:
        return result
    nodes, needed, seen = [], set(), set()
    waiting = list(computed)
    while waiting:
        name = waiting.pop()
        node = made.get(name)
        if node is None:
            needed.add(name)
        elif id(node) not in seen:
            seen.add(id(node))
            waiting += [each for each in node.input if each]
    nodes = [node for node in model.graph.node if id(node) in seen]
    outputs = [helper.make_empty_tensor_value_info(name) for name in computed]
    tensors = [stored[name] for name in needed if name in stored]
    graph = helper.make_graph(nodes, "constants", [], outputs, tensors)
    part = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    part = onnx.shape_inference.infer_shapes(part)
    for output in part.graph.output:
        output.type.tensor_type.elem_type = output.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return result | dict(zip(computed, session.run(computed, {}), strict=True))


def _oriented(node: Any, array: NDArray[Any]) -> NDArray[Any]:
    """Return weights with outputs in front and inputs behind them."""
    if node.op_type == "MatMul":
        return np.swapaxes(array, -1, -2).reshape(-1, array.shape[-2]) if array.ndim > 1 else array
    if node.op_type == "Gemm":
        turned = any(each.name == "transB" and each.i for each in node.attribute)
        return array if turned else array.T
    return np.swapaxes(array, 0, 1) if node.op_type == "ConvTranspose" else array


def _packed(model: onnx.ModelProto, node: Any, stored: dict[str, Any]) -> NDArray[Any]:
    """Return the weights of MatMulNBits: its product with the identity."""
    columns = next(each.i for each in node.attribute if each.name == "K")
    single = onnx.NodeProto()
    single.CopyFrom(node)
    single.input[0] = "identity"
    source = helper.make_tensor_value_info("identity", onnx.TensorProto.FLOAT, [columns, columns])
    result = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
    tensors = [stored[name] for name in node.input if name in stored]
    graph = helper.make_graph([single], "product", [source], [result], tensors)
    part = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    bias = 0.0
    if len(node.input) > 5 and node.input[5] in stored:
        bias = numpy_helper.to_array(stored[node.input[5]])
    return (session.run(None, {"identity": np.eye(columns, dtype=np.float32)})[0] - bias).T  # type: ignore[no-any-return]


def _integer(node: Any, stored: dict[str, Any]) -> NDArray[Any] | None:
    """Return the integers behind a DequantizeLinear."""
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in stored:
        return None
    array = numpy_helper.to_array(stored[node.input[0]])
    return array.astype(np.int32) if array.dtype != np.float32 else None


def _integer_layer(node: Any, made: dict[str, Any], stored: dict[str, Any]) -> list[Layer]:
    """Return a layer on integers, whose input is rounded by definition."""
    name = next((each for each in node.input[1:] if each in stored and len(stored[each].dims) > 1), None)
    if name is None:
        return []
    array = numpy_helper.to_array(stored[name]).astype(np.int32)
    turned = array.T if "MatMul" in node.op_type else array
    return [Layer(node.name, turned.astype(np.float32), turned, rounded_input=True, depthwise=False)]


def _is_rounded(node: Any, made: dict[str, Any]) -> bool:
    """Return whether a tensor comes from rounding, through nodes that only move values."""
    moving = (
        "Reshape",
        "Transpose",
        "MaxPool",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Pad",
        "Relu",
        "Cast",
        "Mul",
    )
    while node is not None:
        if node.op_type in ROUNDERS[:3]:
            return True
        node = made.get(node.input[0]) if node.op_type in moving and node.input else None
    return False
