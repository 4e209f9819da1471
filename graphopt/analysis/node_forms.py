"""Whether every node has the inputs, outputs and attributes that its operator must have.

Passes match operators by name and rely on their form: a Conv has a weight, ``axis`` is an integer. A file may say
anything, so this is checked once before the first pass; no runtime would load such a model.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import onnx

from graphopt.analysis.base import Analysis
from graphopt.analysis.schema_inference import schema_of
from graphopt.errors import GraphError
from graphopt.graph import Function, enclosing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Graph, Model, Node, Tensor

_DEFAULT_DOMAINS = (None, "", "ai.onnx")
_NEWEST = onnx.defs.onnx_opset_version()


class NodeForms(Analysis):
    """That the nodes were well formed when the first pass started; passes keep them so."""

    depends: ClassVar[frozenset[str]] = frozenset()
    sticky: ClassVar[bool] = True

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        """Check every node of the default domain whose operator the installed onnx knows.

        Raises:
            GraphError: A node has too few or too many inputs or outputs, lacks a required one or an attribute, or has
                an attribute of another type.
        """
        here: Graph | None = None
        opset = 0
        for graph, node in model.walk():
            if graph is not here:
                here, opset = graph, max(0, min(graph.opset, _NEWEST))
            if node.domain in _DEFAULT_DOMAINS:
                form = _form(node.op, opset)
                if form is not None:
                    _check(node, graph, form)
        return cls()

    def same_as(self, other: Self) -> bool:
        """Tell that all results are the same."""
        return True


class _Form:
    """What the schema of an operator says, in a shape that is quick to check against."""

    __slots__ = ("attributes", "inputs", "needed", "outputs", "required")

    def __init__(self, schema: Any) -> None:
        single = onnx.defs.OpSchema.FormalParameterOption.Single
        self.inputs = (schema.min_input, schema.max_input)
        self.outputs = (schema.min_output, schema.max_output)
        self.needed = [index for index, formal in enumerate(schema.inputs) if formal.option == single]
        self.attributes = {name: int(each.type.value) for name, each in schema.attributes.items()}
        self.required = [name for name, each in schema.attributes.items() if each.required]


@cache
def _form(op: str, opset: int) -> _Form | None:
    schema = schema_of(op, "", opset)
    return None if schema is None else _Form(schema)


def _check(node: Node, graph: Graph, form: _Form) -> None:
    for what, tensors, (least, most) in (("input", node.inputs, form.inputs), ("output", node.outputs, form.outputs)):
        count = _present(tensors)
        if not least <= len(tensors) or count > most:
            wanted = str(least) if least == most else f"{least} or more" if most > 1 << 20 else f"{least} to {most}"
            raise _error(node, f"it has {count} {what}s", f"{node.op} of opset {graph.opset} has {wanted}")
    inputs = node.inputs
    for index in form.needed:
        if index < len(inputs) and not inputs[index].name:
            raise _error(node, f"its input {index} is left out", "It is not optional")
    if node.carried is None:
        return
    attributes = node.carried.attribute
    if not form.required and not len(attributes):
        return
    seen = set()
    for attribute in attributes:
        seen.add(attribute.name)
        if attribute.ref_attr_name:
            if not any(isinstance(scope, Function) for scope in enclosing(graph)):
                what = f"its attribute '{attribute.name}' refers to '{attribute.ref_attr_name}' of a function"
                raise _error(node, what, "Only nodes in functions may")
            continue
        wanted_type = form.attributes.get(attribute.name)
        # IR version 1 left the type of an attribute unstated
        stated = attribute.type or (graph.ir_version or 0) > 1
        if wanted_type and stated and attribute.type != wanted_type:
            names = onnx.AttributeProto.AttributeType.Name
            what = f"its attribute '{attribute.name}' is {names(attribute.type)}"
            raise _error(node, what, f"{node.op} of opset {graph.opset} has {names(wanted_type)} there")
    lacking = next((name for name in form.required if name not in seen), None)
    if lacking is not None and (not node.attrs_read or lacking not in node.attrs):
        raise _error(node, f"it has no attribute '{lacking}'", f"{node.op} of opset {graph.opset} needs it")


def _present(tensors: Sequence[Tensor]) -> int:
    """Return how many tensors there are up to the last one with a name."""
    count = len(tensors)
    while count and not tensors[count - 1].name:
        count -= 1
    return count


def _error(node: Node, what: str, must: str) -> GraphError:
    label = f"node '{node.name}'" if node.name else f"the node that gives '{next((t.name for t in node.outputs), '')}'"
    return GraphError(what, where=f"{label} ({node.op})", must=must, do="Export the model again, or repair the node")
