"""One forward sweep that finds types, shapes and values of shape computations, through every scope of a model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from graphopt.analysis import (
    control_flow,
    shape_rules_kernels,
    shape_rules_linear,
    shape_rules_movement,
    shape_rules_sizes,
    value_arithmetic,
)
from graphopt.analysis.declarations import Conflict, Declarations, is_static
from graphopt.analysis.merging import join, outside, signature
from graphopt.analysis.schema_inference import infer_by_schema
from graphopt.analysis.shape_rules import RULES
from graphopt.analysis.site import INTEGERS, NOTHING, VALUE_LIMIT, Known, ShapeClashError, Site, as_value
from graphopt.analysis.value_rules import VALUE_RULES
from graphopt.graph.objects import Constant, Function, Graph, Node, Tensor, node_subgraphs
from graphopt.graph.order import is_sorted, tensors_read
from graphopt.graph.scopes import captures

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from graphopt.analysis.site import Value
    from graphopt.graph.model import Model
    from graphopt.graph.weights import Weight

_DEFAULT_DOMAINS = (None, "", "ai.onnx")
_RULE_MODULES = (shape_rules_kernels, shape_rules_linear, shape_rules_movement, shape_rules_sizes, value_arithmetic)

_CALL_BUDGET = 20
"""Nodes of function bodies that are looked at again for each call, as a multiple of the nodes of the model."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A node whose types could not be inferred.

    Attributes:
        node: The node.
        reason: Why: no schema, or what the inputs contradict.
    """

    node: Node
    reason: str


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where a graph is swept.

    Attributes:
        prefix: What the names of symbols made here begin with, after the question mark.
        imports: Opset version by domain.
        bindings: Attributes of the call that a function's body refers to; None outside functions.
        generic: Whether the body belongs to a function that nothing calls, so that its attributes are unknown.
    """

    prefix: str
    imports: Mapping[str, int]
    bindings: Mapping[str, Any] | None = None
    generic: bool = False


class Sweep:
    """The facts of every tensor of a model, found in one pass from inputs to outputs.

    Attributes:
        known: The facts by tensor, of every scope.
        failures: Why nothing could be inferred, by node.
        weights: The storage of every constant that was looked at.
        values_read: The constants whose elements were read.
    """

    def __init__(self, model: Model) -> None:
        self.known: dict[Tensor, Known] = {}
        self.failures: dict[Node, str] = {}
        self.weights: dict[Constant, Weight] = {}
        self.values_read: set[Constant] = set()
        self._functions = {function.unique_id: function for function in model.functions}
        self._calls: dict[object, list[Known]] = {}
        self._bodies: dict[Function, dict[Tensor, Known]] = {}
        self._active: list[Function] = []
        self._orders: dict[Graph, list[Node]] = {}
        self._declared = Declarations(model.graph)
        self._visits = 0
        self._limit = _CALL_BUDGET * sum(len(graph.nodes) for graph in model.graphs()) + 10_000
        self._run(model)
        self._orders.clear()  # edits may follow

    def of(self, tensor: Tensor) -> Known:
        """Return the facts of a tensor; of one that was added since the sweep, they are inferred now.

        What was found stays true as long as edits let every tensor keep its meaning.
        """
        known = self.known.get(tensor)
        if known is None:
            return self._added(tensor) if tensor.name else NOTHING
        if isinstance(tensor, Constant) and self.weights.get(tensor) is not tensor.weight:
            del self.known[tensor]
            self.values_read.discard(tensor)
            return self._input(tensor) or NOTHING
        return known

    def value(self, tensor: Tensor) -> Value | None:
        """Return the elements of a small tensor where something is known of them; those of a constant are read now."""
        known = self.of(tensor)
        if known.value is None and isinstance(tensor, Constant):
            return self._read(tensor)
        return known.value

    def refine(self, nodes: Iterable[Node]) -> list[Node]:
        """Infer nodes again, and their users where that tells more; return those of which more is known now."""
        queue = deque(node for node in nodes if node.graph is not None)
        refined: dict[Node, None] = {}
        while queue:
            node = queue.popleft()
            if node.graph is None:
                continue
            before = {tensor: self.known[tensor] for tensor in node.outputs if tensor in self.known}
            self._node(node, _scope_of(node.graph))
            self._orders.clear()
            for tensor, known in before.items():
                if _tells_more(self.known[tensor], known):
                    refined[node] = None
                    queue.extend(tensor.outputs)
                    queue.extend(
                        body.parent_node for role, body in tensor.roles if role == "output" and body.parent_node
                    )
                else:
                    self.known[tensor] = known
        return list(refined)

    @property
    def conflicts(self) -> dict[Tensor, Conflict]:
        """Declarations that contradict what was inferred, by tensor."""
        return self._declared.conflicts

    def _added(self, wanted: Tensor) -> Known:
        """Infer a tensor that the sweep has not seen, and what it is computed from."""
        stack = [wanted]
        while stack:
            tensor = stack[-1]
            if tensor in self.known:
                stack.pop()
                continue
            node = tensor.inputs[0] if tensor.inputs and not isinstance(tensor, Constant) else None
            if node is None or node.graph is None:
                stack.pop()
                if self._input(tensor) is NOTHING:
                    self.known[tensor] = self._declared.settle(tensor, Known(), "")
                continue
            missing = [t for t in tensors_read(node) if t.name and t not in self.known and not isinstance(t, Constant)]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            self._node(node, _scope_of(node.graph))
            self._orders.clear()
        return self.known.get(wanted, NOTHING)

    # ------------------------------------------------------------------------------------------------------- scopes

    def _run(self, model: Model) -> None:
        graph = model.graph
        scope = _Scope("", graph.imports)
        for tensor in graph.inputs:
            self.known[tensor] = self._declared.settle(tensor, Known(), scope.prefix)
        self._graph(graph, scope)
        for function in model.functions:
            if function not in self._bodies:
                body = _Scope(
                    f"{function.domain}.{function.name}.{function.overload}/", function.imports, {}, generic=True
                )
                self._inputs(function, [Known()] * len(function.inputs), body)
                self._graph(function, body)
        for function, facts in self._bodies.items():
            scope = _Scope(f"{function.domain}.{function.name}.{function.overload}/", function.imports)
            for tensor, known in facts.items():
                self.known[tensor] = self._declared.settle(tensor, known, scope.prefix)

    def _inputs(self, graph: Graph, given: list[Known], scope: _Scope) -> None:
        for tensor, known in zip(graph.inputs, given, strict=False):
            self.known[tensor] = self._declared.settle(tensor, known, scope.prefix)
        for tensor in graph.inputs[len(given) :]:
            self.known[tensor] = self._declared.settle(tensor, Known(), scope.prefix)

    def _graph(self, graph: Graph, scope: _Scope) -> None:
        for node in self._order(graph):
            self._node(node, scope)

    def _order(self, graph: Graph) -> list[Node]:
        order = self._orders.get(graph)
        if order is None:
            order = self._orders[graph] = list(graph.nodes) if is_sorted(graph) else _sorted(graph)
        return order

    # -------------------------------------------------------------------------------------------------------- nodes

    def _node(self, node: Node, scope: _Scope) -> None:
        self._visits += 1
        if self.failures:
            self.failures.pop(node, None)
        try:
            found = self._infer(node, scope)
            _check_sizes(found)
        except ShapeClashError as error:
            self.failures[node] = str(error)
            found = []
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            self.failures[node] = f"attributes or inputs are not what {node.op} takes: {type(error).__name__}: {error}"
            found = []
        for index, tensor in enumerate(node.outputs):
            if tensor.name:
                known = found[index] if index < len(found) else NOTHING
                self.known[tensor] = self._declared.settle(tensor, known, scope.prefix)

    def _infer(self, node: Node, scope: _Scope) -> list[Known]:
        domain = "" if node.domain in _DEFAULT_DOMAINS else str(node.domain)
        attrs = node.attrs if scope.bindings is None else self._attributes(node, scope.bindings, generic=scope.generic)
        if attrs is None:
            return []
        if node.op == "Constant" and not domain:
            return [constant_known(attrs)]
        tensors = node.inputs
        known_of = self.known.get
        inputs = [known_of(tensor) or self._input(tensor) for tensor in tensors]
        version = scope.imports.get(domain) or (scope.imports.get("ai.onnx") if not domain else None) or 1
        site = Site(node.op, attrs, inputs, len(node.outputs), version, lambda index: self._read(tensors[index]))
        for value in attrs.values():  # a loop: it is asked of every node
            if isinstance(value, Graph):
                return self._bodied(node, site, scope)
        function = self._functions.get((domain, node.op, node.overload)) if self._functions else None
        if function is not None:
            return self._called(function, node, site, scope)
        found_rule = RULES.get((domain, node.op))
        found = infer_by_schema(site, domain, scope.imports) if found_rule is None else found_rule(site)
        value_rule = VALUE_RULES.get(node.op)
        if value_rule is not None and not domain and _may_have_value(found):
            for known, value in zip(found, value_rule(site, found), strict=False):
                if value is not None and value.size <= VALUE_LIMIT:
                    known.value = value
        return found

    def _attributes(self, node: Node, bindings: Mapping[str, Any], *, generic: bool) -> dict[str, Any] | None:
        """Return the attributes with references to the call's filled in; None where those are unknown."""
        attrs = node.attrs
        if not any(isinstance(value, gs.Node.AttributeRef) for value in attrs.values()):
            return attrs
        if generic:
            return None
        resolved = {}
        for name, value in attrs.items():
            if not isinstance(value, gs.Node.AttributeRef):
                resolved[name] = value
            elif bindings.get(value.name) is not None:
                resolved[name] = bindings[value.name]
        return resolved

    def _bodied(self, node: Node, site: Site, scope: _Scope) -> list[Known]:
        prefix = scope.prefix + _place(node, self._visits) + "/"

        def run(name: str, given: Any) -> list[Known]:
            body = site.attrs.get(name)
            if not isinstance(body, Graph):
                msg = f"attribute '{name}' holds no graph"
                raise ShapeClashError(msg)
            inner = _Scope(f"{prefix}{name}:", scope.imports, scope.bindings, scope.generic)
            self._inputs(body, list(given), inner)
            self._graph(body, inner)
            return [self._input(tensor) or Known() for tensor in body.outputs]

        if node.op == "If":
            return control_flow.infer_if(site, run, f"?{prefix}")
        if node.op == "Loop":
            return control_flow.infer_loop(site, run, f"?{prefix}", exhausted=self._exhausted)
        if node.op == "Scan":
            return control_flow.infer_scan(site, run, f"?{prefix}", exhausted=self._exhausted)
        return control_flow.infer_opaque_bodies(site, run)

    def _exhausted(self) -> bool:
        return self._visits > self._limit

    def _called(self, function: Function, node: Node, site: Site, scope: _Scope) -> list[Known]:
        if function in self._active:
            msg = f"function {function.name} calls itself"
            raise ShapeClashError(msg)
        if self._exhausted():
            msg = f"the calls of functions unfold to more than {self._limit} nodes"
            raise ShapeClashError(msg)
        prefix = f"{scope.prefix}{_place(node, self._visits)}/"
        given = [self._with_value(site, index) for index in range(len(site.known))]
        attributes = {**function.attributes, **site.attrs}
        key = (function, tuple(signature(known) for known in given), repr(sorted(attributes.items(), key=str)))
        found = self._calls.get(key) if all(is_plain(value) for value in attributes.values()) else None
        if found is None:
            self._active.append(function)
            try:
                inner = _Scope(prefix, function.imports, attributes)
                self._inputs(function, given, inner)
                self._graph(function, inner)
            finally:
                self._active.pop()
            found = [outside(self._input(tensor) or Known(), f"?{prefix}") for tensor in function.outputs]
            self._calls[key] = found
            self._merge_body(function)
        return [Known(known.dtype, known.shape, known.value, known.proto) for known in found]

    def _merge_body(self, function: Function) -> None:
        facts = self._bodies.get(function)
        present = {tensor: self.known[tensor] for tensor in _tensors(function) if tensor in self.known}
        if facts is None:
            self._bodies[function] = present
        else:
            for tensor, known in present.items():
                facts[tensor] = join(facts[tensor], known) if tensor in facts else known

    # ------------------------------------------------------------------------------------------------------ tensors

    def _input(self, tensor: Tensor) -> Known | None:
        known = self.known.get(tensor)
        if known is None and tensor.name:
            if isinstance(tensor, Constant):
                weight = tensor.weight
                self.weights[tensor] = weight
                known = self.known[tensor] = self._stored(tensor, weight)
            else:
                known = NOTHING
        return known

    def _stored(self, constant: Constant, weight: Weight) -> Known:
        """Return the facts of an initializer: its own shape, unless whoever runs the model may give another."""
        home = constant.home
        if home is None or not home.is_overridable(constant):
            return Known(weight.onnx_dtype, tuple(weight.shape))
        return self._declared.fed(constant, weight.onnx_dtype, home.initializer_inputs.get(constant))

    def _read(self, tensor: Tensor) -> Value | None:
        known = self.known.get(tensor)
        if not isinstance(tensor, Constant) or known is None or tensor in self.values_read:
            return None
        if known.dtype not in _READABLE or (tensor.home is not None and tensor.home.is_overridable(tensor)):
            return None
        if known.shape is None or _element_count(known.shape) > VALUE_LIMIT:
            return None
        self.values_read.add(tensor)
        known.value = tensor.array().astype(np.object_)
        return known.value

    def _with_value(self, site: Site, index: int) -> Known:
        value = site.value(index)
        known = site.input(index)
        return known if value is known.value else Known(known.dtype, known.shape, value, known.proto)


def _scope_of(graph: Graph) -> _Scope:
    """Return where a node that was added later is looked at: in no particular call of a function."""
    path: list[str] = []
    root = graph
    while root.parent is not None and root.parent_node is not None:
        attribute = next((name for name, body in node_subgraphs(root.parent_node) if body is root), "")
        path.append(f"{_place(root.parent_node, 0)}/{attribute}:")
        root = root.parent
    prefix = "".join(reversed(path))
    return (
        _Scope(prefix, root.imports, {}, generic=True) if isinstance(root, Function) else _Scope(prefix, root.imports)
    )


def _tells_more(new: Known, old: Known) -> bool:
    """Whether facts found later are more exact than those found first."""
    if old.dtype == 0 != new.dtype:
        return True
    if new.value is not None and _numbers(new.value) > _numbers(old.value):
        return True
    if new.shape is None:
        return False
    return old.shape is None or _count_static(new.shape) > _count_static(old.shape)


def _count_static(shape: Any) -> int:
    return sum(1 for size in shape if isinstance(size, int))


def _numbers(value: Value | None) -> int:
    return -1 if value is None else sum(1 for entry in value.ravel().tolist() if isinstance(entry, int | float))


_READABLE = INTEGERS | {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL}


def constant_known(attrs: Mapping[str, Any]) -> Known:
    """Return the facts of a Constant node's output, with its value where it is small.

    Raises:
        ShapeClashError: The node has no attribute that states a value.
    """
    for name, value in attrs.items():
        if name == "value" and isinstance(value, Constant):
            known = Known(value.onnx_dtype, tuple(value.shape))
            if known.dtype in _READABLE and _element_count(value.shape) <= VALUE_LIMIT:
                known.value = value.array().astype(np.object_)
            return known
        if name in {"value_int", "value_float"}:
            dtype = TensorProto.INT64 if name == "value_int" else TensorProto.FLOAT
            return Known(dtype, (), as_value([value], ()))
        if name in {"value_ints", "value_floats"}:
            dtype = TensorProto.INT64 if name == "value_ints" else TensorProto.FLOAT
            return Known(dtype, (len(value),), as_value(list(value)) if len(value) <= VALUE_LIMIT else None)
        if name == "value_string":
            return Known(TensorProto.STRING, ())
        if name == "value_strings":
            return Known(TensorProto.STRING, (len(value),) if isinstance(value, list) else (None,))
        if name == "sparse_value":
            sparse = value.proto.sparse_tensor
            return Known(sparse.values.data_type, tuple(int(size) for size in sparse.dims))
    msg = f"attributes {sorted(attrs)} state no value"
    raise ShapeClashError(msg)


def _check_sizes(found: list[Known]) -> None:
    for known in found:
        for size in known.shape or ():
            if isinstance(size, int) and size < 0:
                msg = f"an output would have the size {size}"
                raise ShapeClashError(msg)


def _may_have_value(found: list[Known]) -> bool:
    for known in found:
        shape = known.shape
        if shape is None or len(shape) > 3 or not is_static(shape) or _element_count(shape) > VALUE_LIMIT:
            return False
    return True


def _element_count(shape: Any) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _place(node: Node, visit: int) -> str:
    return next((tensor.name for tensor in node.outputs if tensor.name), f"#{visit}")


def is_plain(value: object) -> bool:
    """Return whether the text of an attribute tells it apart from every other."""
    return isinstance(value, int | float | str | list) or value is None


def _tensors(graph: Graph) -> Iterator[Tensor]:
    stack = [graph]
    while stack:
        body = stack.pop()
        yield from body.inputs
        for node in body.nodes:
            yield from (tensor for tensor in node.outputs if tensor.name)
            stack.extend(inner for _, inner in node_subgraphs(node))


def _sorted(graph: Graph) -> list[Node]:
    """Return the nodes of an unsorted graph with producers before consumers; nodes of a cycle come last."""
    nodes = list(graph.nodes)
    waiting = dict.fromkeys(nodes, 0)
    followers: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        read = [*node.inputs, *[tensor for _, body in node_subgraphs(node) for tensor in captures(body)]]
        for tensor in read:
            for made in tensor.inputs:
                if made in followers and made is not node:
                    followers[made].append(node)
                    waiting[node] += 1
    ready = [node for node in reversed(nodes) if waiting[node] == 0]
    order: dict[Node, None] = {}
    while ready:
        node = ready.pop()
        order[node] = None
        for after in followers[node]:
            waiting[after] -= 1
            if waiting[after] == 0:
                ready.append(after)
    return [*order, *[node for node in nodes if node not in order]]
