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
    """Convolutions of a square map by a square window, with stride 1 and padding that keeps the map's size.

    Attributes:
        window: Side of the window.
        channels: Input channels.
        side: Of the map.
        narrow: Output channels where they are fewer; every other layer of a stack then leads back.
    """

    window: int
    channels: int
    side: int
    narrow: int = 0

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.narrow or self.channels

    @property
    def turned(self) -> ConvSize:
        """The size of the layer that leads back."""
        return ConvSize(self.window, self.outputs, self.side, self.channels) if self.narrow else self

    @property
    def m(self) -> int:
        """Output positions."""
        return self.side * self.side

    @property
    def weights(self) -> int:
        """Elements of W."""
        return self.outputs * self.fan_in

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return (1, self.channels, self.side, self.side)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of W: [outputs, inputs, window, window]."""
        return (self.outputs, self.channels, self.window, self.window)

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
        channels = f"{self.channels}-{self.narrow}" if self.narrow else str(self.channels)
        return f"{self.window}x{self.window} {channels}@{self.side}"


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
