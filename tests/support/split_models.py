"""Models about the parts of a Split, from one line of ONNX text."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper


def split_model(nodes: str, *, x: str, out: str, opset: int = 17, more: str = "", **constants: Any) -> onnx.ModelProto:
    """Return a model of float tensors.

    Args:
        nodes: Its nodes as ONNX text.
        x: The shape of its input ``x``.
        out: Names of its outputs, whose shapes are not declared.
        opset: Version of the operators.
        more: Further inputs as ONNX text, behind a comma.
        constants: Lists become int64 constants, tuples random floats of that shape.
    """
    outputs = ", ".join(f"float {name}" for name in out.split())
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{x}] x{more}) => ({outputs}) {{ {nodes} }}'
    )
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(0)
    for name, value in constants.items():
        array = (
            np.array(value, np.int64)
            if isinstance(value, list)
            else np.asarray(rng.normal(size=value)).astype(np.float32)
        )
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto
