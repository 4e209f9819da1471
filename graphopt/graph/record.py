"""What the reader bound to objects so that the writer can put it back: order, value_info, annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

    from graphopt.graph.tensors import Constant, Tensor


class Record:
    """Of one graph, as it was read.

    Attributes:
        inputs: Graph inputs in order, initializers among them.
        outputs: (tensor, message) of each graph output.
        value_infos: (tensor or None, message); None for a name that the graph does not define.
        annotations: Quantization annotations with the tensors that they name.
        idle: Initializers that nobody used.
    """

    __slots__ = ("annotations", "idle", "inputs", "outputs", "value_infos")

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[tuple[Tensor, onnx.ValueInfoProto]] = []
        self.value_infos: list[tuple[Tensor | None, onnx.ValueInfoProto]] = []
        self.annotations: list[tuple[Tensor | None, list[Tensor | None], onnx.TensorAnnotation]] = []
        self.idle: set[Constant] = set()

    def bind_value_infos(self, infos: Iterable[onnx.ValueInfoProto], local: dict[str, Tensor]) -> None:
        """Bind value_info to the tensors of the graph."""
        self.value_infos = [(local.get(info.name), info) for info in infos]

    def bind_annotations(self, protos: Iterable[onnx.TensorAnnotation], local: dict[str, Tensor]) -> None:
        """Bind quantization annotations to the tensors of the graph."""
        for proto in protos:
            parameters = [local.get(entry.value) for entry in proto.quant_parameter_tensor_names]
            self.annotations.append((local.get(proto.tensor_name), parameters, proto))

    def reserved_names(self) -> list[str]:
        """Return names that messages carried verbatim refer to."""
        return [info.name for tensor, info in self.value_infos if tensor is None]

    def moved(self, tensors: dict[Tensor, Tensor]) -> Record:
        """Return the record of a copy of the graph, bound to the copies of the tensors."""
        twin = Record()
        twin.inputs = [tensors[t] for t in self.inputs if t in tensors]
        twin.outputs = [(tensors[t], info) for t, info in self.outputs if t in tensors]
        twin.value_infos = [
            (None if t is None else tensors.get(t), info) for t, info in self.value_infos if t is None or t in tensors
        ]
        twin.annotations = [
            (None if t is None else tensors.get(t), [None if p is None else tensors.get(p) for p in ps], proto)
            for t, ps, proto in self.annotations
            if t is None or t in tensors
        ]
        twin.idle = {tensors[t] for t in self.idle if t in tensors}
        return twin
