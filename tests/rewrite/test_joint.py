"""Rule passes that share a work list: one fixed point, live facts, batches, rules that look down, the account."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import pytest

from graphopt.analysis.types import Types
from graphopt.errors import VerificationError
from graphopt.graph import Rewriter
from graphopt.rewrite import Batch, Contract, PassManager, Patch, Rule, RulePass, Skip
from graphopt.rewrite.driver import EVERY
from graphopt.rewrite.manager import count_nodes
from pass_oracle import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node
    from graphopt.rewrite import Steps

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def rule_pass(label: str, make: Callable[[Model, Facts], Sequence[Rule | Batch]]) -> RulePass:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Made(RulePass):
        name: ClassVar[str] = label
        contract: ClassVar[Contract] = Contract.LOSSY

        def rules(self, model: Model, facts: Facts) -> Sequence[Rule | Batch]:
            return make(model, facts)

    return Made()


def renaming(old: str, new: str, log: list[str] | None = None) -> Callable[[Model, Facts], Sequence[Rule]]:
    def at(node: Node) -> Patch:
        if log is not None:
            log.append(f"{old} to {new}")
        return Patch(f"{old} to {new}", (node,), lambda rewriter: rewriter.set_op(node, new))

    return lambda _model, _facts: [Rule((old,), at, depth=0)]


def ops(model: Model) -> list[str]:
    return [node.op for _, node in model.walk()]


def test_passes_reach_their_common_fixed_point_in_one_go() -> None:
    model = parse(HEAD + "g (float[2] x) => (float[2] y) { a = Relu(x) b = Exp(a) y = Neg(b) }")
    chain = [
        rule_pass("third", renaming("Tanh", "Abs")),
        rule_pass("second", renaming("Sigmoid", "Tanh")),
        rule_pass("first", renaming("Relu", "Sigmoid")),
    ]
    outcome = PassManager(chain).run(model)
    assert ops(model) == ["Abs", "Exp", "Neg"]
    assert [(record.name, record.patches) for record in outcome.records] == [("third", 1), ("second", 1), ("first", 1)]


def test_each_pass_is_charged_with_the_nodes_it_removed() -> None:
    model = parse(HEAD + "g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) c = Identity(b) y = Exp(c) }")

    def bypass(op: str) -> Callable[[Model, Facts], Sequence[Rule]]:
        def at(node: Node) -> Patch:
            def apply(rewriter: object) -> None:
                rewriter.replace_tensor(node.outputs[0], node.inputs[0])  # type: ignore[attr-defined]
                rewriter.erase(node)  # type: ignore[attr-defined]

            return Patch(f"bypass {op}", (node,), apply)

        return lambda _model, _facts: [Rule((op,), at)]

    outcome = PassManager([rule_pass("relus", bypass("Relu")), rule_pass("identities", bypass("Identity"))]).run(model)
    assert [(r.nodes_before, r.nodes_after) for r in outcome.records] == [(4, 2), (2, 1)]
    assert count_nodes(model) == 1


def test_facts_stay_live_and_are_inferred_for_what_is_new() -> None:
    model = parse(HEAD + "g (float[n, 4] x) => (float[m, 8] y) { a = Relu(x) y = Exp(a) }")
    seen: list[object] = []

    def make(_model: Model, facts: Facts) -> Sequence[Rule]:
        types = facts.get(Types)

        def widen(node: Node) -> Patch:
            def apply(rewriter: object) -> None:
                wide = rewriter.op("Concat", [node.inputs[0]] * 2, attrs={"axis": 1}, near=node)  # type: ignore[attr-defined]
                made = rewriter.op("Sigmoid", [wide], near=node)  # type: ignore[attr-defined]
                rewriter.replace_tensor(node.outputs[0], made)  # type: ignore[attr-defined]
                rewriter.erase(node)  # type: ignore[attr-defined]

            return Patch("widen", (node,), apply)

        def look(node: Node) -> Skip:
            seen.append(types.shape(node.outputs[0]))
            return Skip(node, "only looks")

        return [Rule(("Relu",), widen), Rule(("Sigmoid",), look)]

    outcome = PassManager([rule_pass("widen", make)]).run(model)
    assert [[str(size) for size in shape] for shape in seen] == [["n", "8"]] * 2  # type: ignore[attr-defined]
    assert [reason for _, reason in outcome.records[0].skips] == ["only looks"]


def test_a_tensor_that_changes_its_meaning_is_found_out() -> None:
    model = parse(HEAD + "g (float[2, 3] x) => (float y) { a = Transpose<perm = [0, 1]>(x) y = ReduceSum(a) }")

    def make(_model: Model, facts: Facts) -> Sequence[Rule]:
        facts.get(Types).shape(model.graph.nodes[0].outputs[0])

        def at(node: Node) -> Patch | None:
            if node.attrs["perm"] == [1, 0]:
                return None
            return Patch("turn", (node,), lambda rewriter: rewriter.set_attr(node, "perm", [1, 0]))

        return [Rule(("Transpose",), at)]

    with pytest.raises(VerificationError, match="type of tensor 'a' is not what it was"):
        PassManager([rule_pass("turn", make)], verify="full").run(model)


def test_a_batch_waits_for_the_rules_and_its_patches_wake_them() -> None:
    model = parse(HEAD + "g (float[2] x) => (float[2] y) { a = Relu(x) b = Exp(a) c = Relu(b) y = Neg(c) }")
    log: list[str] = []

    def make(_model: Model, _facts: Facts) -> Sequence[Rule | Batch]:
        def rewrite(nodes: Sequence[Node]) -> Steps:
            log.append(f"batch of {len(nodes)}")
            for node in nodes:
                yield Patch("to Relu", (node,), partial(Rewriter.set_op, node=node, op="Relu"))

        return [*renaming("Relu", "Abs", log)(_model, _facts), Batch(("Exp", "Neg"), lambda _: True, rewrite)]

    PassManager([rule_pass("batch", make)]).run(model)
    assert log == ["Relu to Abs", "Relu to Abs", "batch of 2", "Relu to Abs", "Relu to Abs"]
    assert ops(model) == ["Abs"] * 4


def test_a_first_batch_is_asked_before_any_rule() -> None:
    model = parse(HEAD + "g (float[2] x) => (float[2] y) { a = Relu(x) y = Exp(a) }")
    log: list[str] = []

    def make(_model: Model, _facts: Facts) -> Sequence[Rule | Batch]:
        def rewrite(nodes: Sequence[Node]) -> Steps:
            log.append(f"batch of {len(nodes)}")
            yield from ()

        return [*renaming("Relu", "Abs", log)(_model, _facts), Batch((EVERY,), lambda _: True, rewrite, first=True)]

    PassManager([rule_pass("batch", make)]).run(model)
    assert log[:2] == ["batch of 2", "Relu to Abs"]


@pytest.mark.parametrize(("below", "visits"), [(0, 1 + 1), (2, 2 + 1)])  # and one when nothing changes any more
def test_a_rule_that_looks_down_is_asked_again_when_something_there_changed(below: int, visits: int) -> None:
    model = parse(HEAD + "g (float[2] x) => (float[2] y) { a = Neg(x) b = Exp(a) y = Relu(b) }")
    asked: list[str] = []

    def make(_model: Model, _facts: Facts) -> Sequence[Rule]:
        def look(node: Node) -> None:
            asked.append(node.op)

        return [Rule(("Neg",), look, depth=0, below=below), *renaming("Relu", "Abs")(_model, _facts)]

    PassManager([rule_pass("look", make)]).run(model)
    assert asked == ["Neg"] * visits


def test_a_rule_for_every_operator_sees_all_domains_only_if_it_says_so() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>\n'
    model = parse(text + "g (float[2] x) => (float[2] y) { a = my.Thing(x) y = Exp(a) }")
    seen: list[str] = []

    def make(_model: Model, _facts: Facts) -> Sequence[Rule]:
        return [
            Rule((EVERY,), lambda node: seen.append(f"default {node.op}")),
            Rule((EVERY,), lambda node: seen.append(f"any {node.op}"), domain=EVERY),
        ]

    PassManager([rule_pass("every", make)]).run(model)
    assert seen == ["any Thing", "default Exp", "any Exp"]
