"""Computing nodes whose inputs are known: many in one ONNX Runtime session, the reference where it has no kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.reference

from graphopt.errors import GraphoptError
from graphopt.graph import Constant, Graph, Model, Node, Variable, constant_value, dtypes
from graphopt.runtime import run, session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.graph import Tensor

Array = np.ndarray[Any, Any]

_NEWEST_IR = 10  # says nothing about operators, and every supported runtime knows it
_FED_KINDS = "fiub"  # other element types travel inside the model, where every one of them can


@dataclass(slots=True)
class Evaluation:
    """What came out.

    Attributes:
        values: The value of each wanted tensor that could be computed.
        failures: Why nodes could not be computed, by node; what follows them was left out.
        sessions: How many ONNX Runtime sessions were made.
    """

    values: dict[Tensor, Array] = field(default_factory=dict)
    failures: dict[Node, str] = field(default_factory=dict)
    sessions: int = 0


def evaluate(
    nodes: Sequence[Node],
    wanted: Sequence[Tensor],
    element_types: Mapping[Tensor, int],
    known: Mapping[Tensor, Array],
    *,
    opset: int,
    ir_version: int,
) -> Evaluation:
    """Compute tensors from constants.

    All nodes run in one session with every optimization off, so the values are those the runtime itself would compute.
    Where it refuses, the nodes are halved until the one it has no kernel for stands alone and the reference evaluator
    of onnx computes that one.

    Args:
        nodes: The nodes, in topological order. Every input is constant, in ``known``, or an output of an earlier one.
        wanted: Outputs whose values are asked for.
        element_types: ONNX element type of tensors, where known; a result of another type is a failure.
        known: Values of tensors that are not constants of the model.
        opset: Version of the ONNX domain the nodes are written in.
        ir_version: IR version of the model.
    """
    result = Evaluation()
    job = _Job(element_types, dict(known), opset, ir_version, result)
    job.run(list(nodes), list(dict.fromkeys(wanted)))
    result.values = {tensor: job.known[tensor] for tensor in wanted if tensor in job.known}
    return result


@dataclass(slots=True)
class _Job:
    element_types: Mapping[Tensor, int]
    known: dict[Tensor, Array]
    opset: int
    ir_version: int
    result: Evaluation

    def run(self, nodes: list[Node], wanted: list[Tensor]) -> None:
        made: set[Tensor] = set()
        ready = []
        for node in nodes:  # what follows a failed node has no inputs
            if all(not t.name or t in self.known or t in made or constant_like(t) for t in node.inputs):
                ready.append(node)
                made.update(node.outputs)
        nodes = ready
        wanted = [tensor for tensor in wanted if tensor in made]
        if not nodes or not wanted:
            return
        try:
            self.result.sessions += 1
            self._keep(wanted, self._by_runtime(nodes, wanted))
        except GraphoptError as error:
            if len(nodes) == 1:
                self._by_reference(nodes[0], wanted, str(error))
                return
            first, second = nodes[: len(nodes) // 2], nodes[len(nodes) // 2 :]
            crossing = {tensor for node in second for tensor in node.inputs}
            self.run(first, [t for node in first for t in node.outputs if t in crossing or t in wanted])
            self.run(second, wanted)

    def _by_runtime(self, nodes: list[Node], wanted: list[Tensor]) -> dict[Tensor, Array]:
        model, feed, names = self._model(nodes, wanted)
        outputs = run(session(model.to_bytes(), optimize=False), feed)
        return {tensor: outputs[names[tensor]] for tensor in wanted}

    def _by_reference(self, node: Node, wanted: list[Tensor], refusal: str) -> None:
        model, feed, names = self._model([node], wanted)
        try:
            evaluator = onnx.reference.ReferenceEvaluator(model.to_bytes())
            outputs = evaluator.run([names[tensor] for tensor in wanted], feed)
            self._keep(wanted, {tensor: np.asarray(value) for tensor, value in zip(wanted, outputs, strict=True)})
        except Exception as error:  # the reference raises whatever its operators raise; the node is left alone
            reason = " ".join(str(error).split())
            self.result.failures[node] = f"neither runtime can compute it: {refusal} The reference: {reason}"

    def _keep(self, wanted: list[Tensor], values: dict[Tensor, Array]) -> None:
        for tensor in wanted:
            expected = self.element_types.get(tensor, 0)
            found = dtypes.onnx_dtype_of(values[tensor].dtype)
            if expected not in {0, found}:
                raise GraphoptError(f"the value of '{tensor.name}' has element type {found} instead of {expected}")
        self.known.update(values)

    def _model(self, nodes: list[Node], wanted: list[Tensor]) -> tuple[Model, dict[str, Array], dict[Tensor, str]]:
        """Return a model of copies of the nodes, what to feed it, and its names of the wanted tensors."""
        copies: dict[Tensor, Tensor] = {}
        feed: dict[str, Array] = {}
        inputs: list[Tensor] = []
        twins: list[Node] = []

        def twin(tensor: Tensor) -> Tensor:
            if not tensor.name:
                return Variable("")
            if tensor not in copies:
                copies[tensor] = self._source(tensor, f"v{len(copies)}", feed, inputs)
            return copies[tensor]

        for node in nodes:
            sources = [twin(tensor) for tensor in node.inputs]
            results: list[Tensor] = []
            for tensor in node.outputs:
                copy = Variable(f"v{len(copies)}" if tensor.name else "", self.element_types.get(tensor) or None)
                if tensor.name:
                    copies[tensor] = copy
                results.append(copy)
            made = node.copy(sources, results)
            made.name = f"n{len(twins)}"
            twins.append(made)
        graph = Graph(twins, inputs, [copies[tensor] for tensor in wanted], "folding", opset=self.opset)
        graph.ir_version = min(max(self.ir_version, 4), _NEWEST_IR)
        return Model(graph), feed, {tensor: copies[tensor].name for tensor in wanted}

    def _source(self, tensor: Tensor, name: str, feed: dict[str, Array], inputs: list[Tensor]) -> Tensor:
        value = self.known.get(tensor)
        if value is None:
            value = constant_value(tensor)
        assert value is not None, tensor
        if value.dtype.kind not in _FED_KINDS or value.dtype.isbuiltin != 1:
            return Constant(name, value)
        feed[name] = value
        fed = Variable(name, value.dtype, value.shape)
        inputs.append(fed)
        return fed


def constant_like(tensor: Tensor) -> bool:
    """Whether a tensor has no producing node that would have to run: an initializer or the output of a Constant."""
    return isinstance(tensor, Constant) or (bool(tensor.inputs) and tensor.inputs[0].op == "Constant")
