"""Patterns: small expressions that describe a piece of a graph, matched from its last node upwards.

    x = Wild("x")
    silu = Op("Mul", x, Op("Sigmoid", x), name="mul")

    found = silu.match(node, model)          # None, or a Match
    silu.explain(node, model)                # why not: "Mul 'm': input 1 is produced by Relu 'r', not by Sigmoid"

A pattern is anchored at the operator types of its root. Operands are `Wild` (any tensor), `Const` (a tensor with a
known value), `Op` (a tensor that such a node produces), `Maybe` (may be absent), `Either` (the first alternative that
fits) and `Rest` (all further inputs). A name, or one pattern object, that occurs twice must bind the same object.
Inputs of commutative operators match in either order.

A rewrite consumes the nodes below the root. So they lie in the root's graph, their outputs have no use outside of the
match, and they do not leave the graph; ``shared=True`` lifts all three for a node that stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from graphopt.errors import PassError
from graphopt.graph import Node, constant_value, is_graph_output, producer
from graphopt.rewrite.patch import node_label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from graphopt.graph import Model, Tensor

COMMUTATIVE = frozenset(
    ("Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Max", "Min", "Sum", "Mean")
)
"""Operators of the default domain whose inputs may be swapped."""

MAX_PERMUTED = 4
"""Commutative operators with more inputs than this match in the written order only."""

DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, eq=False)
class Wild:
    """Any tensor.

    Args:
        name: Binds the tensor; the same name elsewhere must be the same tensor. Empty binds nothing.
        where: What the tensor must fulfil besides.
    """

    name: str = ""
    where: Callable[[Tensor], bool] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Const:
    """A tensor whose value is known: an initializer that no caller overrides, or the output of a Constant node.

    Args:
        name: Binds the tensor; ``Match.value`` gives its array.
        where: What the array must fulfil besides; `filled` is a common one.
    """

    name: str = ""
    where: Callable[[np.ndarray], bool] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Maybe:
    """An input that may be absent; where it is there it must match."""

    operand: Operand


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """All further inputs, however many; only as the last operand. ``Match.rest`` gives them."""

    name: str = ""


class Either:
    """The first of several alternatives that fits, given what else was matched."""

    __slots__ = ("alternatives",)

    def __init__(self, *alternatives: Operand) -> None:
        self.alternatives = alternatives


class Op:
    """A tensor that a node of one of these types produces; as the root, that node itself.

    Args:
        types: Operator type, or several separated by ``"|"``.
        *inputs: Operands in order. Inputs that are absent need `Maybe`; more inputs than operands need `Rest`.
        name: Binds the node.
        attrs: What attributes must be: a value, or a function of the value. Absent attributes count with the default
            of the operator's schema.
        domain: Operator domain.
        output: Which output of the node the tensor is (not checked at the root).
        shared: The node stays: it may have other uses, leave the graph, or lie in an outer graph.
        commutative: Whether inputs match in any order; None asks the table of commutative operators.
        where: What the node must fulfil besides.
    """

    __slots__ = ("attrs", "commutative", "domain", "inputs", "name", "output", "shared", "types", "where")

    def __init__(
        self,
        types: str,
        *inputs: Operand,
        name: str = "",
        attrs: Mapping[str, Any] | None = None,
        domain: str = "",
        output: int = 0,
        shared: bool = False,
        commutative: bool | None = None,
        where: Callable[[Node], bool] | None = None,
    ) -> None:
        self.types = tuple(part.strip() for part in types.split("|"))
        self.inputs = inputs
        self.name = name
        self.attrs = dict(attrs or {})
        self.domain = domain
        self.output = output
        self.shared = shared
        self.commutative = (
            domain in DEFAULT_DOMAINS and COMMUTATIVE.issuperset(self.types) if commutative is None else commutative
        )
        self.where = where
        if any(isinstance(operand, Rest) for operand in inputs[:-1]):
            raise PassError(
                "Rest is not the last operand", where=f"pattern {types}", must="Rest stands for all further inputs"
            )

    @property
    def depth(self) -> int:
        """Return how many nodes lie on the longest path of the pattern."""
        return 1 + max((_depth(operand) for operand in self.inputs), default=0)

    def match(self, node: Node, model: Model) -> Match | None:
        """Match with this node as the root.

        Args:
            node: The candidate for the root.
            model: The model that the node is part of.
        """
        return _Search(model, None).run(self, node)

    def explain(self, node: Node, model: Model) -> str:
        """Return why the pattern does not match at this node: the failure furthest into the pattern; empty if it does.

        Args:
            node: The candidate for the root.
            model: The model that the node is part of.
        """
        failures: list[tuple[int, str]] = []
        found = _Search(model, failures).run(self, node)
        return "" if found is not None else max(failures, key=lambda failure: failure[0])[1]


Operand: TypeAlias = Wild | Const | Maybe | Rest | Either | Op


@dataclass(frozen=True, slots=True)
class Match:
    """What a pattern bound.

    Attributes:
        root: The node at the root.
        nodes: All nodes that a rewrite may consume: the root and the nodes below it that are not shared.
        bound: Tensors, nodes and tuples of tensors by name.
    """

    root: Node
    nodes: tuple[Node, ...]
    bound: Mapping[str, Node | Tensor | tuple[Tensor, ...]]

    def node(self, name: str) -> Node:
        """Return the node bound to a name."""
        found = self.bound[name]
        assert isinstance(found, Node)
        return found

    def tensor(self, name: str) -> Tensor:
        """Return the tensor bound to a name."""
        found = self.bound[name]
        assert not isinstance(found, Node | tuple)
        return found

    def value(self, name: str) -> np.ndarray:
        """Return the array of the constant bound to a name; read-only."""
        value = constant_value(self.tensor(name))
        assert value is not None
        return value

    def rest(self, name: str) -> tuple[Tensor, ...]:
        """Return the tensors that a `Rest` bound."""
        found = self.bound[name]
        assert isinstance(found, tuple)
        return found

    def __contains__(self, name: object) -> bool:
        """Tell whether a name was bound; names inside `Maybe` and `Either` may not be."""
        return name in self.bound


def filled(value: float) -> Callable[[np.ndarray], bool]:
    """Return a predicate for `Const`: all elements equal this value, which the array's type holds exactly.

    Args:
        value: The value; NaN equals nothing.
    """

    def holds(array: np.ndarray) -> bool:
        return array.size > 0 and array.dtype.kind not in "OUS" and bool((array.astype(np.float64) == value).all())

    holds.__name__ = f"filled({value})"
    return holds


def attribute(node: Node, key: str, model: Model) -> Any:
    """Return the value of an attribute, or the default of the operator's schema, or None.

    Args:
        node: The node.
        key: Name of the attribute.
        model: The model that the node is part of; its opset selects the schema.
    """
    if key in node.attrs:
        return node.attrs[key]
    domain = "" if node.domain in (None, *DEFAULT_DOMAINS) else str(node.domain)
    return _schema_default(str(node.op), key, model.opset_imports.get(domain, 0), domain)


@cache
def _schema_default(op: str, key: str, version: int, domain: str) -> Any:
    if not version or not onnx.defs.has(op, version, domain):
        return None
    declared = onnx.defs.get_schema(op, version, domain).attributes.get(key)
    if declared is None or not declared.default_value.name:
        return None
    value = onnx.helper.get_attribute_value(declared.default_value)
    return value.decode() if isinstance(value, bytes) else value


@dataclass(frozen=True, slots=True)
class _State:
    """What is bound so far; never changed, so that trying another way needs no undoing."""

    bound: Mapping[str, Node | Tensor | tuple[Tensor, ...]] = field(default_factory=dict)
    nodes: tuple[tuple[Op, Node], ...] = ()

    def bind(self, name: str, value: Node | Tensor | tuple[Tensor, ...]) -> _State | None:
        """Return the state with one more name; None if the name means another object already."""
        if not name:
            return self
        if name in self.bound:
            return self if self.bound[name] is value else None
        return _State({**self.bound, name: value}, self.nodes)


_Goal: TypeAlias = "tuple[Operand, Tensor | None, str]"
"""An operand, the tensor it must match (None: absent), and where that is, for explanations."""


class _Search:
    """Depth-first search over orders and alternatives."""

    def __init__(self, model: Model, failures: list[tuple[int, str]] | None) -> None:
        self.model = model
        self.failures = failures

    def run(self, pattern: Op, node: Node) -> Match | None:
        for state, goals in self._op(pattern, node, _State(), f"{node.op} {node_label(node)!r}"):
            found = self._solve(goals, state)
            if found is not None:
                consumed = tuple(dict.fromkeys(n for p, n in found.nodes if not p.shared or n is node))
                return Match(node, consumed, found.bound)
        return None

    def _fail(self, state: _State, reason: str) -> None:
        if self.failures is not None:
            self.failures.append((len(state.nodes) + len(state.bound), reason))

    def _solve(self, goals: tuple[_Goal, ...], state: _State) -> _State | None:
        if not goals:
            return state if self._closed(state) else None
        (operand, tensor, where), rest = goals[0], goals[1:]
        for after, more in self._operand(operand, tensor, state, where):
            found = self._solve(more + rest, after)
            if found is not None:
                return found
        return None

    def _operand(
        self, operand: Operand, tensor: Tensor | None, state: _State, where: str
    ) -> Iterator[tuple[_State, tuple[_Goal, ...]]]:
        if isinstance(operand, Either):
            for alternative in operand.alternatives:
                yield from self._operand(alternative, tensor, state, where)
        elif isinstance(operand, Maybe):
            if tensor is None:
                yield state, ()
            else:
                yield from self._operand(operand.operand, tensor, state, where)
        elif tensor is None:
            self._fail(state, f"{where} is absent")
        elif isinstance(operand, Op):
            node = producer(tensor)
            if node is None:
                self._fail(state, f"{where} ({tensor.name!r}) is produced by no node, not by {'|'.join(operand.types)}")
            elif not any(output is tensor for output in node.outputs[operand.output : operand.output + 1]):
                self._fail(state, f"{where} is another output of {node_label(node)!r} than {operand.output}")
            else:
                yield from self._op(operand, node, state, where)
        else:
            after = self._leaf(operand, tensor, state, where)
            if after is not None:
                yield after, ()

    def _leaf(self, operand: Wild | Const | Rest, tensor: Tensor, state: _State, where: str) -> _State | None:
        if isinstance(operand, Const):
            value = constant_value(tensor)
            if value is None:
                self._fail(state, f"{where} ({tensor.name!r}) is not constant")
                return None
            if operand.where is not None and not operand.where(value):
                self._fail(state, f"{where} ({tensor.name!r}) is not {_described(operand.where)}")
                return None
        elif isinstance(operand, Wild) and operand.where is not None and not operand.where(tensor):
            self._fail(state, f"{where} ({tensor.name!r}) is not {_described(operand.where)}")
            return None
        after = state.bind(operand.name, tensor)
        if after is None:
            self._fail(state, f"{where} ({tensor.name!r}) is another tensor than the first {operand.name!r}")
        return after

    def _op(self, pattern: Op, node: Node, state: _State, where: str) -> Iterator[tuple[_State, tuple[_Goal, ...]]]:
        """Check the node itself; yield what its inputs must then match, one order after another."""
        label = f"{node.op} {node_label(node)!r}"
        if node.op not in pattern.types or not _same_domain(node.domain, pattern.domain):
            self._fail(state, f"{where} is produced by {label}, not by {'|'.join(pattern.types)}")
            return
        earlier = next((known for other, known in state.nodes if other is pattern), None)
        if earlier is not None:
            if earlier is node:
                yield state, ()
            else:
                self._fail(state, f"{where} is produced by {label}, not by {node_label(earlier)!r}")
            return
        for key, wanted in pattern.attrs.items():
            value = attribute(node, key, self.model)
            if not (wanted(value) if callable(wanted) else value == wanted):
                expected = _described(wanted) if callable(wanted) else repr(wanted)
                self._fail(state, f"{label}: attribute {key} is {value!r}, not {expected}")
                return
        if pattern.where is not None and not pattern.where(node):
            self._fail(state, f"{label} is not {_described(pattern.where)}")
            return
        after = state.bind(pattern.name, node)
        if after is None:
            self._fail(state, f"{label} is another node than the first {pattern.name!r}")
            return
        after = _State(after.bound, (*after.nodes, (pattern, node)))
        yield from self._inputs(pattern, node, after, label)

    def _inputs(self, pattern: Op, node: Node, state: _State, label: str) -> Iterator[tuple[_State, tuple[_Goal, ...]]]:
        tensors: list[Tensor | None] = [tensor if tensor.name else None for tensor in node.inputs]
        while tensors and tensors[-1] is None:
            tensors.pop()
        operands = pattern.inputs
        last = operands[-1] if operands else None
        if isinstance(last, Rest):
            fixed = operands[:-1]
            after = state.bind(last.name, tuple(tensor for tensor in tensors[len(fixed) :] if tensor is not None))
            if after is None:
                self._fail(state, f"{label}: the further inputs differ from the first {last.name!r}")
                return
            state, operands, tensors = after, fixed, tensors[: len(fixed)]
        if len(tensors) > len(operands):
            self._fail(state, f"{label} has {len(tensors)} inputs, not {len(operands)}")
            return
        padded = tensors + [None] * (len(operands) - len(tensors))
        orders: Iterator[tuple[int, ...]] = iter([tuple(range(len(padded)))])
        if pattern.commutative and len(padded) <= MAX_PERMUTED:
            orders = permutations(range(len(padded)))
        for order in orders:
            yield (
                state,
                tuple(
                    (operand, padded[index], f"{label}: input {index}")
                    for operand, index in zip(operands, order, strict=True)
                ),
            )

    def _closed(self, state: _State) -> bool:
        """Tell whether the nodes below the root belong to the match alone."""
        matched = {node for _, node in state.nodes}
        root = state.nodes[0][1]
        for pattern, node in state.nodes:
            if node is root or pattern.shared:
                continue
            label = f"{node.op} {node_label(node)!r}"
            if node.graph is not root.graph:
                self._fail(state, f"{label} lies in another graph than {node_label(root)!r}")
                return False
            for tensor in node.outputs:
                if is_graph_output(tensor):
                    self._fail(state, f"{label}: its output {tensor.name!r} is a graph output")
                    return False
                # counting, since a tensor with thousands of users is common and listing them is not free
                inside = sum(1 for user in matched for each in user.inputs if each is tensor)
                if len(tensor.outputs) > inside:
                    if self.failures is not None:
                        other = next(user for user in tensor.outputs if user not in matched)
                        self._fail(state, f"{label}: {tensor.name!r} is also used by {other.op} {node_label(other)!r}")
                    return False
        return True


def _depth(operand: Operand) -> int:
    if isinstance(operand, Op):
        return operand.depth
    if isinstance(operand, Maybe):
        return _depth(operand.operand)
    if isinstance(operand, Either):
        return max((_depth(alternative) for alternative in operand.alternatives), default=0)
    return 0


def _described(predicate: Callable[..., object]) -> str:
    return str(getattr(predicate, "__name__", predicate)).replace("_", " ")


def _same_domain(found: str | None, wanted: str) -> bool:
    return ("" if found in (None, *DEFAULT_DOMAINS) else found) == ("" if wanted in DEFAULT_DOMAINS else wanted)
