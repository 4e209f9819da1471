"""Runs local rules to a fixed point: a work list, never a rescan of the whole graph.

Rules are indexed by the operator types of their roots. One walk over all scopes seeds the work list; after a patch only
what it touched comes back: the touched nodes (which include those that lost a user) and their users at once, and what
lies further down or up, as far as a rule looks, once the list has run dry, so that patches close to each other share
that search. Users of a hub, a tensor with very many uses, come back last, so that n patches at a hub of n users do not
cost n * n. The rules of several passes share one work list, so that a pipeline of them reaches its common fixed point
in one go.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from graphopt.errors import GraphoptError, PassError
from graphopt.graph import Function, Node, producer, subgraphs
from graphopt.rewrite.pass_ import Pass, Steps
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.legality import in_model

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from graphopt.analysis import Facts
    from graphopt.graph import Model, Tensor
    from graphopt.rewrite.pattern import Match, Op

HUB = 64
"""A tensor with more users than this is a hub: its users come back once, when the work list has run dry."""

PATCHES_PER_NODE = 10
"""The watchdog stops passes that make more patches than this many per node (and at least `PATCHES_AT_LEAST`)."""

PATCHES_AT_LEAST = 200

EVERY = "*"
"""As a root: nodes of every operator type. As a domain: of every domain."""


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One local rewrite.

    Attributes:
        roots: Operator types of the root node, in one domain; ``("*",)`` for all.
        rewrite: Called with a root; returns a patch, a refusal, or None where the rule has nothing to say.
        depth: How many nodes above the root the rule looks at.
        domain: Operator domain of the root; ``"*"`` for all.
        below: How many nodes below the root the rule looks at.
    """

    roots: tuple[str, ...]
    rewrite: Callable[[Node], Patch | Skip | None]
    depth: int = 1
    domain: str = ""
    below: int = 0

    @classmethod
    def of(cls, pattern: Op, rewrite: Callable[[Match], Patch | Skip | None], model: Model) -> Rule:
        """Return the rule that rewrites every match of a pattern.

        Args:
            pattern: What to find.
            rewrite: Called with each match.
            model: The model that is searched.
        """

        def at(node: Node) -> Patch | Skip | None:
            found = pattern.match(node, model)
            return None if found is None else rewrite(found)

        return cls(pattern.types, at, pattern.depth, pattern.domain)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A rewrite of many nodes at once, for work whose cost is shared: it waits until no rule applies any more.

    Attributes:
        roots: Operator types of the nodes to gather; ``("*",)`` for all.
        wants: Whether to gather a node; asked at every visit, so it must be cheap.
        rewrite: Called with the gathered nodes that are still in the model, in topological order.
        domain: Operator domain of the nodes; ``"*"`` for all.
        first: Whether it is asked once before any rule, with what it wants of the whole model.
        depth: How many nodes above a node `wants` looks at.
        below: How many nodes below it `wants` looks at.
    """

    roots: tuple[str, ...]
    wants: Callable[[Node], bool]
    rewrite: Callable[[Sequence[Node]], Steps]
    domain: str = ""
    first: bool = False
    depth: int = 1
    below: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePass(Pass):
    """A pass made of local rules, run to a fixed point over all scopes and functions.

    Rule passes that follow each other share one work list. So their facts have to stay true while others edit: a
    tensor never changes its meaning, and what computes something else gets new nodes with new outputs. Each rule must
    lower a cost, such as the number of nodes; otherwise rules may undo each other, which the watchdog turns into an
    error. A skip is reported once per node, and only if the node is still there at the end and no patch changed it
    afterwards.
    """

    @abstractmethod
    def rules(self, model: Model, facts: Facts) -> Sequence[Rule | Batch]:
        """Return the rules, in the order in which they are tried at a node."""

    def run(self, model: Model, facts: Facts) -> Steps:
        """Yield the patches of the rules until none applies."""
        return drive(self.rules(model, facts), model, name=self.name)


def drive(rules: Sequence[Rule | Batch], model: Model, *, name: str) -> Steps:
    """Run rules to a fixed point.

    Args:
        rules: The rules, in the order in which they are tried at a node.
        model: The model.
        name: Name of the pass, for errors.

    Raises:
        PassError: The rules do not reach a fixed point.
    """
    steps = Joint([(name, rules)], model).steps()
    touched: frozenset[Node] | None = None
    while True:
        try:
            _, proposal = next(steps) if touched is None else steps.send(touched)
        except StopIteration:
            return
        touched = yield proposal


JointSteps: TypeAlias = "Generator[tuple[int, Patch | Skip], frozenset[Node], None]"
"""Pairs of the index of a pass and what it proposes; what is sent back are the nodes that the patch touched."""


class Joint:
    """The rules of several passes on one work list.

    Args:
        passes: Names of the passes and their rules; earlier ones are tried first at a node.
        model: The model.

    Attributes:
        seconds: Wall time spent looking, by pass.
    """

    def __init__(self, passes: Sequence[tuple[str, Sequence[Rule | Batch]]], model: Model) -> None:
        self.names = [name for name, _ in passes]
        self.model = model
        self.seconds = [0.0] * len(passes)
        self._work = _WorkList([(index, rule) for index, (_, rules) in enumerate(passes) for rule in rules])
        self._skips: dict[tuple[int, Node], Skip] = {}
        self._skipped: dict[Node, list[int]] = {}
        self._recent: deque[str] = deque(maxlen=4)
        self._patches = 0
        self._nodes = 0

    def steps(self) -> JointSteps:
        """Yield the patches until no rule applies, then the skips.

        Raises:
            PassError: The rules do not reach a fixed point, or one raised.
        """
        work = self._work
        for _, node in self.model.walk():
            self._nodes += 1
            work.push(node)
            work.asked.add(node)
            for wants, waiting in work.first_batches(node):
                if wants(node):
                    waiting[node] = None
        while (gathered := work.gathered()) is not None:
            yield from self._batch(*gathered)
        while True:
            root = work.pop()
            if root is None:
                gathered = work.gathered()
                if gathered is None:
                    break
                yield from self._batch(*gathered)
                continue
            proposal = self._visit(root)
            if proposal is not None:
                self._count(proposal[1], root)
                touched = yield proposal
                self._applied(touched, root)
        for (index, node), skip in self._skips.items():
            if in_model(node):
                yield index, skip

    def _visit(self, node: Node) -> tuple[int, Patch] | None:
        """Return the first patch of the rules at a node; remember what they refuse."""
        clock = time.perf_counter
        start = clock()
        unchanged = self._work.was_asked(node)
        for index, ask, waiting, first in self._work.rules_at(node):
            try:
                if waiting is not None:
                    if unchanged and first:
                        continue
                    if ask(node):
                        waiting[node] = None
                    else:
                        waiting.pop(node, None)
                    continue
                proposal = ask(node)
            except (GraphoptError, MemoryError):
                raise
            except Exception as error:
                raise PassError(
                    f"a rule raised {type(error).__name__}: {error}",
                    where=f"{self.names[index]}, node {node_label(node)!r} ({node.op})",
                    must="A rule returns a Skip for what it does not support",
                    do="Report it with the model, or take the pass out of the recipe",
                ) from error
            if proposal is None:
                continue
            if isinstance(proposal, Patch):
                self.seconds[index] += clock() - start
                return index, proposal
            self._refuse(index, proposal, node)
        return None

    def _batch(self, index: int, batch: Batch, nodes: Sequence[Node]) -> JointSteps:
        start = time.perf_counter()
        steps = batch.rewrite(nodes)
        touched: frozenset[Node] | None = None
        while True:
            try:
                proposal = next(steps) if touched is None else steps.send(touched)
            except StopIteration:
                break
            finally:
                self.seconds[index] += time.perf_counter() - start
            if isinstance(proposal, Patch):
                self._count(proposal, nodes[0])
                touched = yield index, proposal
                self._applied(touched, None)
            else:
                touched = frozenset()
                if isinstance(proposal.node, Node):
                    self._refuse(index, proposal, proposal.node)
            start = time.perf_counter()

    def _refuse(self, index: int, skip: Skip, node: Node) -> None:
        if (index, node) not in self._skips:
            self._skips[index, node] = skip
            self._skipped.setdefault(node, []).append(index)

    def _count(self, patch: Patch, root: Node) -> None:
        self._patches += 1
        self._recent.append(patch.reason)
        limit = max(PATCHES_PER_NODE * self._nodes, PATCHES_AT_LEAST)
        if self._patches > limit:
            last = "; ".join(self._recent)
            raise PassError(
                f"rules still match after {limit} patches on {self._nodes} nodes; the last were {last}",
                where=f"{', '.join(self.names)}, node {node_label(root)!r}",
                must="Each rule lowers a cost, so that none undoes another",
                do="Make the rules agree on one form",
            )

    def _applied(self, touched: frozenset[Node], root: Node | None) -> None:
        for changed in touched:
            for index in self._skipped.pop(changed, ()):
                self._skips.pop((index, changed), None)
        self._work.push_around(touched if root is None else touched | {root})


@dataclass(slots=True)
class _Reach:
    """How far the rules of one operator type look."""

    depth: int = 0
    below: int = 0


_Waiting: TypeAlias = "dict[Node, None]"
"""The nodes that a batch has gathered."""

_Asked: TypeAlias = "tuple[int, Callable[[Node], Any], _Waiting | None, bool]"
"""What a visit needs of a rule: the index of its pass; what to call with the node; for a batch, where to gather nodes
that it wants, and whether it is asked before any rule."""


@dataclass(slots=True)
class _WorkList:
    """Nodes that a rule may match, first in first out, each at most once."""

    rules: list[tuple[int, Rule | Batch]]
    queue: deque[Node] = field(default_factory=deque)
    queued: set[Node] = field(default_factory=set)
    asked: set[Node] = field(default_factory=set)
    hubs: dict[Tensor, None] = field(default_factory=dict)
    deferred: dict[Node, None] = field(default_factory=dict)
    batches: dict[Batch, _Waiting] = field(default_factory=dict)
    _by_key: dict[tuple[object, object], list[_Asked]] = field(default_factory=dict)
    _reach: dict[tuple[object, object], _Reach] = field(default_factory=dict)
    _first: dict[tuple[object, object], list[tuple[Callable[[Node], bool], _Waiting]]] = field(default_factory=dict)
    depth: int = 0
    below: int = 0

    def __post_init__(self) -> None:
        self.depth = max((rule.depth for _, rule in self.rules), default=0)
        self.below = max((rule.below for _, rule in self.rules), default=0)
        self.batches = {rule: {} for _, rule in self.rules if isinstance(rule, Batch)}

    def rules_at(self, node: Node) -> list[_Asked]:
        """Return the rules that have the type of a node as a root, in order."""
        key = (node.domain, node.op)
        found = self._by_key.get(key)
        if found is None:
            domain = "" if node.domain in {None, "ai.onnx"} else str(node.domain)
            rules = [
                (index, rule)
                for index, rule in self.rules
                if rule.domain in {domain, EVERY} and (node.op in rule.roots or EVERY in rule.roots)
            ]
            self._reach[key] = _Reach(
                max((rule.depth for _, rule in rules), default=0), max((rule.below for _, rule in rules), default=0)
            )
            batches = [rule for _, rule in rules if isinstance(rule, Batch)]
            self._first[key] = [(batch.wants, self.batches[batch]) for batch in batches if batch.first]
            found = self._by_key[key] = [
                (index, rule.wants, self.batches[rule], rule.first)
                if isinstance(rule, Batch)
                else (index, rule.rewrite, None, False)
                for index, rule in rules
            ]
        return found

    def was_asked(self, node: Node) -> bool:
        """Return whether the first batches were asked about a node, and nothing around it has changed since."""
        if node in self.asked:
            self.asked.discard(node)
            return True
        return False

    def push(self, node: Node) -> None:
        """Queue a node, unless it is queued or no rule has its type as a root."""
        self.asked.discard(node)
        if node not in self.queued and self.rules_at(node):
            self.queued.add(node)
            self.queue.append(node)

    def pop(self) -> Node | None:
        """Return the next node that is still in its graph, or None where no rule applies any more."""
        while True:
            while self.queue:
                node = self.queue.popleft()
                self.queued.discard(node)
                if in_model(node):
                    return node
            if self.deferred:
                self._push_deferred()
            elif self.hubs:
                hubs = list(self.hubs)
                self.hubs.clear()
                for user in [user for hub in hubs for user in hub.outputs]:
                    self.push(user)
            else:
                return None

    def first_batches(self, node: Node) -> list[tuple[Callable[[Node], bool], _Waiting]]:
        """Return how batches that are asked before any rule want a node, and where they gather; it was pushed."""
        return self._first[node.domain, node.op]

    def gathered(self) -> tuple[int, Batch, list[Node]] | None:
        """Return the first batch with nodes, which are then its own affair; None at the fixed point."""
        for batch, waiting in self.batches.items():
            nodes = [node for node in waiting if in_model(node)]
            waiting.clear()
            if nodes:
                index = next(index for index, rule in self.rules if rule is batch)
                return index, batch, in_position(nodes)
        return None

    def push_around(self, touched: Iterable[Node]) -> None:
        """Queue the nodes whose match may depend on a patch.

        Args:
            touched: Nodes that it created or rewired, or that lost users.
        """
        alive = [node for node in touched if in_model(node)]
        for node in in_position(alive):
            self.push(node)
            self.deferred[node] = None
            for user in self._users(node):
                self.push(user)

    def _push_deferred(self) -> None:
        """Queue what lies around the nodes touched since the list ran dry last, as far as the rules there look."""
        start = [node for node in self.deferred if in_model(node)]
        self.deferred.clear()
        self._spread(start, self.depth, self._users, lambda reach: reach.depth)
        self._spread(start, self.below, _producers, lambda reach: reach.below)

    def _spread(
        self, start: list[Node], limit: int, step: Callable[[Node], list[Node]], reach: Callable[[_Reach], int]
    ) -> None:
        seen = set(start)
        level = start
        for distance in range(1, limit + 1):
            after: list[Node] = []
            for node in level:
                for other in step(node):
                    if other not in seen:
                        seen.add(other)
                        after.append(other)
                        if self.rules_at(other) and reach(self._reach[other.domain, other.op]) >= distance:
                            self.push(other)
            level = after

    def _users(self, node: Node) -> list[Node]:
        found: list[Node] = []
        for tensor in node.outputs:
            if len(tensor.outputs) > HUB:
                self.hubs[tensor] = None
            else:
                found += tensor.outputs[:]
        return found


def _producers(node: Node) -> list[Node]:
    return [made for made in map(producer, node.inputs) if made is not None]


def in_position(nodes: Iterable[Node]) -> list[Node]:
    """Return nodes of a model in the order in which they stand in it; see `position`."""
    found = list(nodes)
    if len(found) < 2:
        return found
    graph = found[0].graph
    if graph is None or len({node.graph for node in found}) > 1:
        found.sort(key=position)
    else:
        found.sort(key=graph.nodes.label)  # nearly always: there is no need to say which graph
    return found


def position(node: Node) -> tuple[str | int, ...]:
    """Return where a node stands in its model, as a key to sort nodes of all scopes by: the same in every run.

    Args:
        node: A node in a model.
    """
    key: tuple[str | int, ...] = ()
    graph = node.graph
    while graph is not None:
        key = (graph.nodes.label(node), *key)
        owner = graph.parent_node
        if owner is None:
            break
        attribute = next(name for name, body in subgraphs(owner) if body is graph)
        key = (attribute, *key)
        node, graph = owner, owner.graph
    root = graph.unique_id if isinstance(graph, Function) else ("", "", "")
    return (*root, *key)
