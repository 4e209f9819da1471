"""Runs local rules to a fixed point: a work list, never a rescan of the whole graph.

Rules are indexed by the operator types of their roots. One walk over all scopes seeds the work list; after a patch only
what it touched comes back: the touched nodes, which include those that lost a user, and the nodes below them as far as
a rule looks up. Users of a hub, a tensor with very many uses, come back once the list has run dry, so that n patches at
a hub of n users do not cost n * n.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError, PassError
from graphopt.graph import Function, Node, subgraphs
from graphopt.rewrite.pass_ import Pass, Steps
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.legality import in_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from graphopt.analysis import Facts
    from graphopt.graph import Model, Tensor
    from graphopt.rewrite.pattern import Match, Op

HUB = 64
"""A tensor with more users than this is a hub: its users come back once, when the work list has run dry."""

PATCHES_PER_NODE = 10
"""The watchdog stops a pass that makes more patches than this many per node (and at least `PATCHES_AT_LEAST`)."""

PATCHES_AT_LEAST = 200


@dataclass(frozen=True, slots=True)
class Rule:
    """One local rewrite.

    Attributes:
        roots: Operator types of the root node, in one domain.
        rewrite: Called with a root; returns a patch, a refusal, or None where the rule has nothing to say.
        depth: How many nodes above the root the rule looks at.
        domain: Operator domain of the root.
    """

    roots: tuple[str, ...]
    rewrite: Callable[[Node], Patch | Skip | None]
    depth: int = 1
    domain: str = ""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePass(Pass):
    """A pass made of local rules, run to a fixed point over all scopes and functions.

    Each rule must lower a cost, such as the number of nodes; otherwise rules may undo each other, which the watchdog
    turns into an error. A skip is reported once per node, and only if the node is still there at the end and no patch
    changed it afterwards.
    """

    @abstractmethod
    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rules, in the order in which they are tried at a node."""

    def run(self, model: Model, facts: Facts) -> Steps:
        """Yield the patches of the rules until none applies."""
        return drive(self.rules(model, facts), model, name=self.name)


def drive(rules: Sequence[Rule], model: Model, *, name: str) -> Steps:
    """Run rules to a fixed point.

    Args:
        rules: The rules, in the order in which they are tried at a node.
        model: The model.
        name: Name of the pass, for errors.

    Raises:
        PassError: The rules do not reach a fixed point.
    """
    work = _WorkList(rules)
    count = 0
    for _, node in model.walk():
        count += 1
        work.push(node)
    limit = max(PATCHES_PER_NODE * count, PATCHES_AT_LEAST)
    recent: deque[str] = deque(maxlen=4)
    skips: dict[Node, Skip] = {}
    patches = 0
    while (root := work.pop()) is not None:
        proposal = _proposal(work, root, name)
        if isinstance(proposal, Skip):
            skips[root] = proposal
        elif proposal is not None:
            patches += 1
            recent.append(proposal.reason)
            if patches > limit:
                raise PassError(
                    f"its rules still match after {limit} patches on {count} nodes; the last were {'; '.join(recent)}",
                    where=f"{name}, node {node_label(root)!r}",
                    must="Each rule lowers a cost, so that none undoes another",
                    do="Make the rules agree on one form",
                )
            touched = yield proposal
            for changed in touched:
                skips.pop(changed, None)
            work.push_around({*touched, root})
    for node, skip in skips.items():
        if in_model(node):
            yield skip


def _proposal(work: _WorkList, node: Node, name: str) -> Patch | Skip | None:
    try:
        return work.first(node)
    except (GraphoptError, MemoryError):
        raise
    except Exception as error:
        raise PassError(
            f"a rule raised {type(error).__name__}: {error}",
            where=f"{name}, node {node_label(node)!r} ({node.op})",
            must="A rule returns a Skip for what it does not support",
            do="Report it with the model, or take the pass out of the recipe",
        ) from error


class _WorkList:
    """Nodes that a rule may match, first in first out, each at most once."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules: dict[tuple[str, str], list[Rule]] = {}
        for rule in rules:
            for root in rule.roots:
                self.rules.setdefault((rule.domain, root), []).append(rule)
        self.depth = max((rule.depth for listed in self.rules.values() for rule in listed), default=0)
        self.queue: deque[Node] = deque()
        self.queued: set[Node] = set()
        self.hubs: dict[Tensor, None] = {}

    def push(self, node: Node) -> None:
        """Queue a node, unless it is queued or no rule has its type as a root."""
        if node not in self.queued and _key(node) in self.rules:
            self.queued.add(node)
            self.queue.append(node)

    def pop(self) -> Node | None:
        """Return the next node that is still in its graph, or None at the fixed point."""
        while self.queue or self.hubs:
            if not self.queue:
                for user in [user for hub in self.hubs for user in hub.outputs]:
                    self.push(user)
                self.hubs.clear()
                continue
            node = self.queue.popleft()
            self.queued.discard(node)
            if in_model(node):
                return node
        return None

    def first(self, node: Node) -> Patch | Skip | None:
        """Return the first patch of the rules at a node, else their first skip, else None."""
        refusal: Skip | None = None
        for rule in self.rules.get(_key(node), ()):
            proposal = rule.rewrite(node)
            if isinstance(proposal, Patch):
                return proposal
            refusal = refusal or proposal
        return refusal

    def push_around(self, touched: set[Node]) -> None:
        """Queue the nodes whose match may depend on a patch.

        Args:
            touched: Nodes that it created or rewired, or that lost users.
        """
        level = sorted(filter(in_model, touched), key=position)
        seen: set[Node] = set()
        for _ in range(self.depth + 1):
            level = [node for node in dict.fromkeys(level) if node not in seen]
            seen.update(level)
            for node in level:
                self.push(node)
            level = [user for node in level for user in self._users(node)]

    def _users(self, node: Node) -> list[Node]:
        found: list[Node] = []
        for tensor in node.outputs:
            if len(tensor.outputs) > HUB:
                self.hubs[tensor] = None
            else:
                found.extend(tensor.outputs)
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


def _key(node: Node) -> tuple[str, str]:
    domain = node.domain
    return ("" if domain in {None, "ai.onnx"} else str(domain), str(node.op))
