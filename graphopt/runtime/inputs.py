"""What a model takes: name, element type and shape of each input, from whichever object describes the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from graphopt.errors import UnsupportedError

Dimension = int | str | None
"""An exact size, the name of a symbolic size, or None where nothing is known."""

_BY_ORT_NAME: dict[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "string": np.object_,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "float8e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8e5m2": ml_dtypes.float8_e5m2,
    "float8e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
}
_BY_ONNX_NUMBER: dict[int, str] = {
    1: "float", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "double", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Name of the input.
        dtype: Element type; None for what is no tensor (sequence, map, optional).
        shape: Size per axis; None where even the rank is unknown.
        required: False for an initializer that a feed may override.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[Dimension, ...] | None
    required: bool = True

    def __str__(self) -> str:
        """Return the input as ``name: float32[batch, 3, 32, 32]``."""
        kind = "no tensor" if self.dtype is None else ("string" if self.dtype.kind == "O" else self.dtype.name)
        shape = (
            "of unknown rank"
            if self.shape is None
            else f"[{', '.join('?' if d is None else str(d) for d in self.shape)}]"
        )
        return f"{self.name}: {kind}{shape}"


def input_specs(source: object) -> tuple[InputSpec, ...]:
    """Return the inputs of a session, of a graphopt model or graph, or of an iterable of any of their input objects.

    Args:
        source: An ``onnxruntime.InferenceSession``, a ``Model``, a ``Graph``, or an iterable of ``InputSpec``, graph
            tensors (``.name .dtype .shape``) or ``onnxruntime.NodeArg`` (``.name .type .shape``).

    Raises:
        UnsupportedError: The object describes no inputs.
    """
    if hasattr(source, "get_inputs") and hasattr(source, "get_overridable_initializers"):
        optional = tuple(_spec(each, required=False) for each in source.get_overridable_initializers())
        return tuple(_spec(each) for each in source.get_inputs()) + optional
    if hasattr(source, "graph"):
        source = source.graph
    if hasattr(source, "inputs") and hasattr(source, "nodes"):
        graph: Any = source
        stored = [constant for constant in getattr(graph, "initializer_inputs", ()) if graph.is_overridable(constant)]
        source = [*graph.inputs, *stored]
    if isinstance(source, Iterable) and not isinstance(source, str | bytes | Mapping):
        return tuple(_spec(each) for each in source)
    raise UnsupportedError(
        f"an object of type {type(source).__name__} does not describe the inputs of a model",
        must="It must be a session, a model, or a list of inputs.",
    )


def output_names(session: Any) -> list[str]:
    """Return the names of a session's outputs in their order."""
    return [str(each.name) for each in session.get_outputs()]


def ort_element(name: str) -> np.dtype[Any] | None:
    """Return the numpy type of an ONNX Runtime type string such as ``tensor(float)``; None for what is no tensor."""
    inner = name[len("tensor(") : -1] if name.startswith("tensor(") else ""
    return np.dtype(_BY_ORT_NAME[inner]) if inner in _BY_ORT_NAME else None


def _spec(item: Any, *, required: bool = True) -> InputSpec:
    if isinstance(item, InputSpec):
        return item
    is_node_arg = isinstance(getattr(item, "type", None), str)
    if is_node_arg and not hasattr(item, "dtype"):
        return InputSpec(str(item.name), ort_element(item.type), _shape(item.shape), required)
    # an initializer that is also a graph input has values: a feed may leave it out
    return InputSpec(str(item.name), _element(item), _shape(item.shape), required and not hasattr(item, "values"))


def _element(tensor: Any) -> np.dtype[Any] | None:
    dtype = tensor.dtype
    if dtype is None:
        return None
    if isinstance(dtype, int):
        name = _BY_ONNX_NUMBER.get(dtype)
        return None if name is None else np.dtype(_BY_ORT_NAME[name])
    found = np.dtype(dtype)
    return np.dtype(object) if found.kind in "OSU" else found


def _shape(shape: Any) -> tuple[Dimension, ...] | None:
    if shape is None:
        return None
    return tuple(_dimension(each) for each in shape)


def _dimension(value: Any) -> Dimension:
    if isinstance(value, int | np.integer):
        return int(value) if value >= 0 else None
    return str(value) if value else None
