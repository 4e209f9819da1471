"""Models of one SparseMatMul node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto, helper, numpy_helper

from graphopt.solve.pack_sparse import pack_sparse

if TYPE_CHECKING:
    import numpy as np


def model(
    w: np.ndarray,
    x_shape: list[int | str | None],
    *,
    bias: np.ndarray | None = None,
    packed: np.ndarray | None = None,
    weight_is_input: bool = False,
    empty_bias: bool = False,
    x_type: int = TensorProto.FLOAT,
    **attributes: object,
) -> bytes:
    k, n = w.shape
    given: dict[str, object] = {"K": k, "N": n, **attributes}
    blob = pack_sparse(w) if packed is None else packed
    names = ["x", "w"] + ([""] if empty_bias else [] if bias is None else ["b"])
    node = helper.make_node("SparseMatMul", names, ["y"], name="layer", domain="ai.graphopt")
    node.attribute.extend(helper.make_attribute(key, value) for key, value in given.items() if value is not None)
    inputs = [helper.make_tensor_value_info("x", x_type, x_shape)]
    initializers = [numpy_helper.from_array(blob, "w")]
    if weight_is_input:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.UINT8, [blob.size]))
    if bias is not None:
        initializers.append(numpy_helper.from_array(bias, "b"))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.graphopt", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data
