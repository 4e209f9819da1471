"""Compute in 16-bit floats instead of 32-bit ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import ml_dtypes
import numpy as np
from onnx import TensorProto

from graphopt.analysis.schema_inference import schema_of
from graphopt.analysis.types import Types
from graphopt.graph import (
    Constant,
    Function,
    Graph,
    Model,
    Node,
    constant_value,
    enclosing,
    is_graph_output,
    producer,
    subgraphs,
)
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import LayerRecord, Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Generator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Rewriter, Tensor, Variable

Array = np.ndarray[Any, Any]

KEPT_OPERATORS = (
    "CumProd", "CumSum", "Exp", "Log", "LogSoftmax", "MeanVarianceNormalization", "NonMaxSuppression", "Pow", "Range",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Resize",
)  # fmt: skip
"""Operators whose 16-bit results overflow or lose the most: sums of many terms, powers, exponentials, positions.

MeanVarianceNormalization is a function of ONNX with float32 constants: with other types onnx.checker refuses it.
"""

_ELEMENT = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_NUMPY = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_UNTOUCHED = frozenset(("Constant", "ConstantOfShape", "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear",
    "DynamicQuantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
    "EyeLike", "Multinomial", "SequenceConstruct", "SequenceInsert", "SequenceAt", "SplitToSequence",
    "ConcatFromSequence", "Optional", "OptionalGetElement"))  # fmt: skip
"""Operators whose element type is an attribute or that of a sequence, or that say what runs in low precision."""
_DOMAINS = (None, "", "ai.onnx")

_MOVING = frozenset(("Compress", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements",
    "GatherND", "Identity", "Pad", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Shape", "Size",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze"))  # fmt: skip
"""Operators that compute nothing: 16 bits are worth no Cast for them alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertPrecision(Pass):
    """Compute in float16 or bfloat16, with float32 where that would overflow, and at the public inputs and outputs.

    Matches:   Nodes of the ONNX domain that compute in float32 and whose operator, in the model's opset, takes the
               narrower type; in the main graph and in bodies. Nodes that only move data follow those around them that
               compute, or read a weight.
    Produces:  The same nodes on 16-bit tensors, their weights stored in 16 bits, with one Cast where a tensor passes
               between the two precisions. Halves the bytes of the weights; faster on hardware that computes so.
    Requires:  The operator is not on the list ``keep_operators`` nor the node on ``keep``; no weight of it is beyond
               the range of the type, and no caller may override one. Inputs that must be float32 (the scales of
               Resize) stay so. Nodes of functions, which other calls may share, nodes of other domains and quantization
               pairs stay.
    Preserves: Names, types and shapes of public tensors. Values move by the rounding of the type at every tensor: 11
               significant bits of float16, 8 of bfloat16.
    Source:    IEEE 754-2019, binary16; Micikevicius et al., Mixed Precision Training, ICLR 2018.

    Options:
        to: The type to compute in.
        keep: Names of nodes that stay float32.
        keep_operators: Operator types that stay float32.
    """

    name: ClassVar[str] = "convert-precision"
    contract: ClassVar[Contract] = Contract.LOSSY
    guard: ClassVar[str] = "layers"
    uses_data: ClassVar[bool] = False
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    to: Literal["float16", "bfloat16"] = "float16"
    keep: tuple[str, ...] = ()
    keep_operators: tuple[str, ...] = KEPT_OPERATORS

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per graph, inner graphs first."""
        types = facts.get(Types)
        for graph in reversed(list(model.graphs())):
            if any(isinstance(scope, Function) for scope in enclosing(graph)):
                continue
            chosen = []
            for node in graph.nodes:
                reason = self._why_kept(node, graph, types)
                if reason is None:
                    chosen.append(node)
                elif reason:
                    yield Skip(node, reason)
            chosen = _worthwhile(chosen, types)
            if chosen:
                yield self._patch(graph, chosen, types)

    def _why_kept(self, node: Node, graph: Graph, types: Types) -> str | None:
        """Return why a node stays float32; empty where it has nothing to do with floats; None where it is converted."""
        ports = [*node.inputs, *node.outputs]
        if not any(tensor.name and types.dtype(tensor) == TensorProto.FLOAT for tensor in ports):
            return ""
        if node.op in _UNTOUCHED or any(True for _ in subgraphs(node)):
            return ""
        if node.domain not in _DOMAINS:
            return f"nothing is known of the types of {node.domain}::{node.op}"
        if node.name in self.keep:
            return "keep names it"
        if node.op in self.keep_operators:
            return f"{node.op} is on the list of operators that stay float32"
        if _narrow(node, graph, types, _ELEMENT[self.to]) is None:
            return f"{node.op} of opset {graph.opset} does not take {self.to}"
        largest = float(ml_dtypes.finfo(_NUMPY[self.to]).max)
        for tensor in node.inputs:
            if isinstance(tensor, Constant) and tensor.home is not None and tensor.home.is_overridable(tensor):
                return f"whoever runs the model may override '{tensor.name}'"
            value = constant_value(tensor) if tensor.name and types.dtype(tensor) == TensorProto.FLOAT else None
            if value is not None and value.size and float(np.nanmax(np.abs(value), initial=0.0)) > largest:
                finite = np.abs(value[np.isfinite(value)])
                if finite.size and finite.max() > largest:
                    return f"'{tensor.name}' holds {finite.max():.4g}, and {self.to} ends at {largest:.4g}"
        return None

    def _patch(self, graph: Graph, chosen: list[Node], types: Types) -> Patch:
        element = _ELEMENT[self.to]
        ports = {node: _narrow(node, graph, types, element) or _Ports() for node in chosen}
        layers = tuple(
            LayerRecord(node_label(node), node.op, self.to)
            for node in chosen
            if any(isinstance(tensor, Constant) for tensor in node.inputs[1:])
        )
        conversion = _Conversion(graph, ports, types, self.to)
        reason = f"compute {len(chosen)} nodes of graph '{graph.name}' in {self.to}"
        return Patch(reason, tuple(chosen), conversion.apply, layers)


def _worthwhile(chosen: list[Node], types: Types) -> list[Node]:
    """Return the nodes without those that only move data or look at sizes, and have nobody beside them who computes.

    Each such group would be a Cast, the same moves, and a Cast back.
    """
    left = {node for node in chosen if node.op in _MOVING and not _reads_weights(node, types)}
    beside = [node for node in chosen if node not in left]
    while beside:
        node = beside.pop()
        makers = [producer(tensor) for tensor in node.inputs]
        readers = [reader for tensor in node.outputs for reader in tensor.outputs]
        floats = [other for other in (*makers, *readers) if other in left and _share_floats(node, other, types)]
        left.difference_update(floats)
        beside.extend(dict.fromkeys(floats))
    return [node for node in chosen if node not in left]


def _reads_weights(node: Node, types: Types) -> bool:
    return any(constant_value(each) is not None and types.dtype(each) == TensorProto.FLOAT for each in node.inputs)


def _share_floats(first: Node, second: Node, types: Types) -> bool:
    """Tell whether one of two nodes reads a float32 tensor that the other gives."""
    shared = {*first.outputs, *second.outputs}.intersection((*first.inputs, *second.inputs))
    return any(types.dtype(tensor) == TensorProto.FLOAT for tensor in shared)


@dataclass(slots=True)
class _Ports:
    """Which inputs and outputs of a node change their type, by position."""

    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


def _narrow(node: Node, graph: Graph, types: Types, element: int) -> _Ports | None:
    """Return the ports of a node that change to an element type; None where its operator does not allow that."""
    schema = schema_of(node.op, "", graph.opset)
    if schema is None:
        return None
    allowed = {each.type_param_str: set(each.allowed_type_strs) for each in schema.type_constraints}
    wanted = f"tensor({'float16' if element == TensorProto.FLOAT16 else 'bfloat16'})"
    found = _Ports()
    for tensors, formals, positions in (
        (node.inputs, schema.inputs, found.inputs),
        (node.outputs, schema.outputs, found.outputs),
    ):
        for index, tensor in enumerate(tensors):
            if not tensor.name or types.dtype(tensor) != TensorProto.FLOAT:
                continue
            formal = formals[min(index, len(formals) - 1)]
            constraint = allowed.get(formal.type_str)
            if constraint is None:
                continue  # this port is float32 for good
            if wanted not in constraint:
                return None
            positions.append(index)
    return found if found.inputs or found.outputs else None


class _Conversion:
    """The conversion of one graph."""

    def __init__(
        self, graph: Graph, ports: dict[Node, _Ports], types: Types, to: Literal["float16", "bfloat16"]
    ) -> None:
        self.graph = graph
        self.ports = ports
        self.types = types
        self.element = _ELEMENT[to]
        self.dtype = _NUMPY[to]
        self.narrow: dict[Tensor, Tensor] = {}

    def apply(self, rewriter: Rewriter) -> None:
        """Put a twin on 16-bit tensors in the place of every chosen node; whoever else reads it reads a Cast back."""
        for node, ports in self.ports.items():  # in topological order
            self._replace(rewriter, node, ports)
        rewriter.erase(self.ports)

    def _replace(self, rewriter: Rewriter, node: Node, ports: _Ports) -> None:
        inputs = [
            self._narrowed(rewriter, tensor, node) if index in ports.inputs else tensor
            for index, tensor in enumerate(node.inputs)
        ]
        given = [tensor if tensor.name else None for tensor in inputs]
        count = len(node.outputs)
        like = [tensor if tensor.name else None for tensor in node.outputs]
        made = rewriter.op(
            node.op,
            given,
            attrs=dict(node.attrs),
            outputs=count,
            like=like,
            near=node,
            origin=[node],
            domain=node.domain,
        )
        results: tuple[Variable, ...] = (made,) if count == 1 else made
        twin = results[0].inputs[0]
        for index, (wide, result) in enumerate(zip(list(node.outputs), results, strict=True)):
            if not wide.name:
                rewriter.drop_output(twin, index)
            elif index in ports.outputs:
                rewriter.set_type(result, self.dtype, wide.shape)
                self._widen(rewriter, wide, result, node)
            else:
                rewriter.replace_tensor(wide, result)
        twin.name, node.name = node.name, twin.name

    def _narrowed(self, rewriter: Rewriter, tensor: Tensor, node: Node) -> Tensor:
        """Return the 16-bit form of a tensor: of a constant its values, of a chosen node its output, else a Cast."""
        found = self.narrow.get(tensor)
        if found is None:
            value = constant_value(tensor)
            if value is not None:
                values = value.astype(self.dtype)
                found = rewriter.constant(values, name=tensor.name, near=node, onnx_dtype=self.element)
            else:
                found = rewriter.op("Cast", [tensor], attrs={"to": self.element}, near=node)
                rewriter.set_type(found, self.dtype, tensor.shape)
            self.narrow[tensor] = found
        return found

    def _widen(self, rewriter: Rewriter, wide: Tensor, narrow: Variable, node: Node) -> None:
        """Note the 16-bit form of an output, and cast it back if anybody still needs the wide one."""
        self.narrow[wide] = narrow
        if is_graph_output(wide) or any(not self._reads_narrow(reader, wide) for reader in wide.outputs):
            back = rewriter.op("Cast", [narrow], attrs={"to": TensorProto.FLOAT}, like=wide, near=node)
            rewriter.replace_tensor(wide, back)
            self.narrow[back] = narrow

    def _reads_narrow(self, reader: Node, tensor: Tensor) -> bool:
        ports = self.ports.get(reader)
        return ports is not None and all(i in ports.inputs for i, each in enumerate(reader.inputs) if each is tensor)
