"""Small models of a few equal layers with weights of their own: one layer alone would stay in the cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_OPSET = 17
_IR_VERSION = 8
_DOMAINS = {"": _OPSET, "ai.graphopt": 1, "com.microsoft": 1}


@dataclass(frozen=True, slots=True)
class MatmulSize:
    """Products X W of [m, k] and [k, n]."""

    m: int
    k: int
    n: int

    @property
    def weights(self) -> int:
        """Elements of W."""
        return self.k * self.n

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return (self.m, self.k)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of W."""
        return (self.k, self.n)

    @property
    def fan_in(self) -> int:
        """Products that make one output."""
        return self.k

    @property
    def multiplications(self) -> int:
        """Multiplications of the dense layer."""
        return self.m * self.k * self.n

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"


@dataclass(frozen=True, slots=True)
class ConvSize:
    """Convolutions of a square map by a square window, with stride 1 and padding that keeps the map's size."""

    window: int
    channels: int
    side: int
    batch: int = 1

    @property
    def m(self) -> int:
        """Output positions over the whole batch."""
        return self.batch * self.side * self.side

    @property
    def weights(self) -> int:
        """Elements of W."""
        return self.channels * self.fan_in

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return (self.batch, self.channels, self.side, self.side)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of W: [outputs, inputs, window, window]."""
        return (self.channels, self.channels, self.window, self.window)

    @property
    def fan_in(self) -> int:
        """Products that make one output."""
        return self.channels * self.window * self.window

    @property
    def multiplications(self) -> int:
        """Multiplications of the dense layer."""
        return self.m * self.weights

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the operator."""
        return {"kernel_shape": [self.window] * 2, "pads": [self.window // 2] * 4}

    def __str__(self) -> str:
        return f"{self.window}x{self.window} {self.channels}@{self.side}"


Size = MatmulSize | ConvSize


@dataclass(slots=True)
class Stack:
    """A model under construction: one float32 input ``x``, nodes in order, float32 outputs."""

    x_shape: tuple[int, ...]
    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def constant(self, array: NDArray[Any]) -> str:
        """Add an initializer and return its name."""
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def output(self, name: str, shape: Sequence[int]) -> None:
        """Declare a tensor as an output."""
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def to_bytes(self) -> bytes:
        """Return the serialized model."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(self.x_shape))
        graph = helper.make_graph(self.nodes, "stack", [x], self.outputs, self.initializers)
        opsets = [helper.make_opsetid(domain, version) for domain, version in _DOMAINS.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        data: bytes = model.SerializeToString()
        return data
