"""Replace calls of the model's own functions by their bodies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import onnx.defs
import onnx_graphsurgeon as gs

from graphopt.graph import Function, Graph, Model, Node, Tensor, Variable, walk_graphs
from graphopt.graph.moving import bind_attributes, copy_nodes
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Rewriter
    from graphopt.rewrite.pass_ import Steps

_Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineFunctions(Pass):
    """Replace calls of the model's own functions by their bodies.

    Matches:   Nodes of the main graph and of the bodies in it that call a function of the model, functions that those
               call in turn included.
    Produces:  Copies of the nodes of the function with new names that begin with the name of the call, attributes of
               the call in place of references to them, and the call as their origin; then the model without the
               functions that nobody calls any more. Patterns across the borders of functions come into reach. The
               nodes of the file can grow, since a function is written once however often it is called, so this pass
               runs on request alone.
    Requires:  Operators mean the same in the opset of the function and in that of the model: their schemas are the
               same, or the model does not import the domain yet. A function does not call itself. The main graph has at
               most ``max_nodes`` nodes afterwards.
    Preserves: Every output bitwise; public names, types and shapes; the documentation of the copied nodes.
    Source:    ONNX IR specification, model-local functions; procedure integration, Muchnick, Advanced Compiler Design
               and Implementation, 1997, 15.2.

    Options:
        keep: Functions that stay, as ``domain::name`` or ``name``.
        max_nodes: How many nodes the main graph may have with those that are copied, bodies included.
    """

    name: ClassVar[str] = "inline-functions"
    contract: ClassVar[Contract] = Contract.EXACT

    keep: tuple[str, ...] = ()
    max_nodes: int = 1_000_000

    def run(self, model: Model, facts: Facts) -> Steps:
        """Yield one patch per call, outer calls first, then one for the functions that are left without a caller."""
        functions = {function.unique_id: function for function in model.functions}
        recursive = _recursive(functions)
        count = sum(1 for _ in model.walk(functions=False))
        stack = [node for _, node in model.walk(functions=False)][::-1]
        while stack:
            node = stack.pop()
            function = functions.get(_called(node))
            if function is None or node.graph is None:
                continue
            reason = self._why_kept(function, node, model, recursive, count)
            if reason:
                yield Skip(node, reason)
                continue
            count += _size(function) - 1
            call = _Call(node, function)
            yield Patch(f"inline function {_title(function)}", (node,), call.apply)
            stack.extend(inner for top in reversed(call.copies) for inner in reversed(list(_with_bodies(top))))
        yield from _uncalled(model)

    def _why_kept(
        self, function: Function, node: Node, model: Model, recursive: frozenset[Function], count: int
    ) -> str:
        """Return why a call stays; empty where it can go."""
        if function.name in self.keep or _title(function) in self.keep:
            return "the option keep names the function"
        if function in recursive:
            return f"the function {_title(function)} calls itself"
        if count + _size(function) - 1 > self.max_nodes:
            return f"the main graph would have more than {self.max_nodes} nodes"
        if len(node.inputs) > len(function.inputs) or len(node.outputs) > len(function.outputs):
            return f"the call has more inputs or outputs than the function {_title(function)}"
        omitted = [t for i, t in enumerate(function.inputs) if i >= len(node.inputs) or not node.inputs[i].name]
        if any(output in omitted for output in function.outputs):
            return "the function gives out an input that the call omits"
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            return "the call passes a graph as an attribute"
        return _why_other_meaning(function, model)


def _called(node: Node) -> _Key:
    return ("" if node.domain in DEFAULT_DOMAINS else str(node.domain), str(node.op), node.overload)


def _title(function: Function) -> str:
    return f"{function.domain}::{function.name}" + (f":{function.overload}" if function.overload else "")


def _size(function: Function) -> int:
    return sum(1 for _ in walk_graphs([function]))


def _with_bodies(node: Node) -> Iterator[Node]:
    """Yield a node and the nodes of its bodies."""
    yield node
    for value in node.attrs.values():
        if isinstance(value, Graph):
            yield from (inner for _, inner in walk_graphs([value]))


def _recursive(functions: dict[_Key, Function]) -> frozenset[Function]:
    """Return the functions that call themselves, directly or through others, or call one that does."""
    calls = {
        function: {functions[_called(node)] for _, node in walk_graphs([function]) if _called(node) in functions}
        for function in functions.values()
    }
    done: set[Function] = set()
    while True:  # a function is fine once all it calls are; what never gets there is on a cycle or leads to one
        fine = [function for function, called in calls.items() if function not in done and called <= done]
        if not fine:
            return frozenset(calls) - done
        done.update(fine)


def _why_other_meaning(function: Function, model: Model) -> str:
    """Return which operator of a function is another one in the opset of the model; empty where all are the same."""
    own = {(other.domain, other.name) for other in model.functions}
    for _, node in walk_graphs([function]):
        domain = "" if node.domain in DEFAULT_DOMAINS else str(node.domain)
        if (domain, node.op) in own:
            continue
        inside, outside = _version(function, domain), _version(model.graph, domain)
        if not outside or inside == outside:
            continue
        if _since(node.op, domain, inside) is None or _since(node.op, domain, inside) != _since(
            node.op, domain, outside
        ):
            where = domain or "ai.onnx"
            return f"{node.op} of {where} {inside}, as the function has it, may differ from that of {where} {outside}"
    return ""


def _version(graph: Graph, domain: str) -> int:
    return graph.opset if not domain else graph.imports.get(domain, 0)


@cache
def _since(op: str, domain: str, version: int) -> int | None:
    """Return since which version an operator is what it is in a version of its domain; None where that is unknown."""
    try:
        return int(onnx.defs.get_schema(op, version, domain).since_version)
    except onnx.defs.SchemaError:
        return None


@dataclass(slots=True)
class _Call:
    """One call that is replaced.

    Attributes:
        copies: The nodes that replaced it; empty before.
    """

    node: Node
    function: Function
    copies: list[Node]

    def __init__(self, node: Node, function: Function) -> None:
        self.node = node
        self.function = function
        self.copies = []

    def apply(self, rewriter: Rewriter) -> None:
        node, function = self.node, self.function
        assert node.graph is not None
        self._import(node.graph)
        twins: dict[Tensor, Tensor] = {tensor: Variable("") for tensor in function.inputs}
        twins.update(zip(function.inputs, node.inputs, strict=False))
        bound = {key: value for key, value in (*function.attributes.items(), *node.attrs.items()) if value is not None}
        prefix = (node.name or next((t.name for t in node.outputs if t.name), function.name)) + "/"
        self.copies = copy_nodes(rewriter, list(function.nodes), twins, node, prefix=prefix)
        for copy in self.copies:
            copy.origin = node.origin or ((node.name,) if node.name else ())
            for inner in _with_bodies(copy):
                bind_attributes(inner, bound)
        for output, result in zip(node.outputs, function.outputs, strict=False):
            if output.name:
                _give(rewriter, output, twins.get(result, result))
        rewriter.erase(node)

    def _import(self, graph: Graph) -> None:
        for domain, version in self.function.imports.items():
            if domain in DEFAULT_DOMAINS:
                if not graph.opset:
                    graph.opset = version
            else:
                graph.imports.setdefault(domain, version)


def _give(rewriter: Rewriter, output: Tensor, result: Tensor) -> None:
    """Let the readers of an output of the call read the result, of which the call may have declared the type."""
    if output.onnx_dtype and not result.onnx_dtype and isinstance(result, Variable):
        rewriter.set_type(result, output.dtype, output.shape)
    rewriter.replace_tensor(output, result)


def _uncalled(model: Model) -> Iterator[Patch]:
    """Yield one patch that removes the functions which no node of the main graph calls, directly or through others."""
    functions = {function.unique_id: function for function in model.functions}
    needed: set[Function] = set()
    stack: list[Graph] = [model.graph]
    while stack:
        for _, node in walk_graphs([stack.pop()]):
            function = functions.get(_called(node))
            if function is not None and function not in needed:
                needed.add(function)
                stack.append(function)
    idle = [function for function in model.functions if function not in needed]
    if not idle:
        return

    def apply(rewriter: Rewriter) -> None:
        for function in idle:
            rewriter.drop_function(function)

    names = ", ".join(map(_title, idle))
    yield Patch(f"remove the functions that nobody calls: {names}", (), apply)
