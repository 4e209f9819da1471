"""The manager: applies, counts, stops, verifies, and names what went wrong."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from graphopt.analysis.base import Analysis
from graphopt.errors import DataError, GraphError, PassError, UsageError, VerificationError
from graphopt.graph import Node, Variable
from graphopt.rewrite import Contract, LayerRecord, PassManager, Patch, Skip
from graphopt.rewrite.manager import MAX_ORIGINS
from graphopt.rewrite.pass_ import Pass, Steps
from pass_oracle import parse
from toy_passes import MergeRelu, ScaleWeights, edits

if TYPE_CHECKING:
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Rewriter

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
RELUS = HEAD + "g (float[4] x) => (float[4] y) { a = Relu(x)\n b = Relu(a)\n d = Relu(b)\n y = Relu(d) }"
DENSE = (
    HEAD
    + """g (float[2,2] x) => (float[2,2] y) <float[2,2] v = {1, 2, 3, 4}, float[2,2] w = {0.5, 1, 1.5, 2}> {
    a = MatMul(x, v)
    [scale] y = MatMul(a, w)
}"""
)


def test_counts_patches_skips_nodes_and_options() -> None:
    model = parse(RELUS)
    outcome = PassManager([MergeRelu(), ScaleWeights(factor=2.0)]).run(model)
    first, second = outcome.records
    assert (first.name, first.patches, first.nodes_before, first.nodes_after) == ("merge-relu", 3, 4, 1)
    assert [patch.number for patch in first.log] == [1, 2, 3]
    assert first.log[0].nodes == ("Relu -> b", "Relu -> a")
    assert second.options == {"factor": 2.0, "first": 1}
    assert second.nodes_before == second.nodes_after == 1
    assert first.seconds > 0
    assert not outcome.stopped
    assert outcome.patches == 3


def test_layers_of_applied_patches_are_recorded() -> None:
    layer = LayerRecord("n", "Relu", "nothing", kept=False, reason="a test")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Layers(Pass):
        name: ClassVar[str] = "layers"
        contract: ClassVar[Contract] = Contract.LOSSY

        def run(self, model: Model, facts: Facts) -> Steps:
            yield Skip("somewhere", "not that one")
            yield Patch("note", (), lambda rewriter: None, (layer,))

    record = PassManager([Layers()]).run(parse(RELUS)).records[0]
    assert record.layers == [layer]
    assert record.skips == [("somewhere", "not that one")]


@pytest.mark.parametrize("count", range(6))
def test_stop_after_counts_over_the_whole_pipeline(count: int) -> None:
    model = parse(RELUS.replace("y = Relu(d)", "e = Relu(d)\n y = Add(e, w)").replace("{ a", "<float w = {1}> { a"))
    outcome = PassManager([MergeRelu(), ScaleWeights(factor=2.0)], stop_after=count).run(model)
    assert outcome.patches == min(count, 4)
    assert outcome.stopped == (count < 4)
    assert sum(node.op == "Relu" for node in model.graph.nodes) == max(1, 4 - count)


def test_touched_nodes_come_back_to_the_pass() -> None:
    seen: list[frozenset[Node]] = []

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Asks(Pass):
        name: ClassVar[str] = "asks"
        contract: ClassVar[Contract] = Contract.EXACT

        def run(self, model: Model, facts: Facts) -> Steps:
            first, second = model.graph.nodes[:2]
            seen.append((yield Skip(first, "later")))
            seen.append((yield Patch("turn", (second,), lambda rewriter: rewriter.set_op(second, "Relu"))))

    model = parse(RELUS)
    PassManager([Asks()]).run(model)
    assert seen == [frozenset(), frozenset([model.graph.nodes[1]])]


def test_names_create_registered_passes_and_progress_is_told() -> None:
    told: list[tuple[int, int, str, int]] = []
    manager = PassManager([MergeRelu(), "eliminate-dead"], progress=lambda *state: told.append(state))
    manager.run(parse(RELUS))
    assert told[0] == (0, 2, "merge-relu", 1)
    assert told[-1][:3] == (1, 2, "eliminate-dead")


@pytest.mark.parametrize(("options", "said"), [({"verify": "some"}, "verify is 'some'"), ({"stop_after": -1}, "-1")])
def test_senseless_settings_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        PassManager([], **options)


# ------------------------------------------------------------------------------------------------------- provenance


def test_new_nodes_come_from_the_nodes_of_the_patch() -> None:
    text = HEAD + "g (float[4] x) => (float[4] y) { [one] a = Relu(x)\n [two] y = Neg(a) }"
    model = parse(text)
    model.graph.nodes[0].metadata["from"] = "layer.0"
    model.graph.nodes[1].metadata["from"] = "layer.1"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Join(Pass):
        name: ClassVar[str] = "join"
        contract: ClassVar[Contract] = Contract.EXACT

        def run(self, model: Model, facts: Facts) -> Steps:
            first, second = model.graph.nodes

            def apply(rewriter: Rewriter) -> None:
                new = rewriter.op("Min", [first.inputs[0]], like=second.outputs[0], near=second)
                rewriter.replace_tensor(second.outputs[0], new)
                rewriter.erase([first, second])

            yield Patch("join", (first, second), apply)

    PassManager([Join()]).run(model)
    (node,) = model.graph.nodes
    assert node.origin == ("one", "two")
    assert node.metadata == {"from": "layer.0; layer.1"}
    kept = parse(model.to_bytes()).graph.nodes[0]
    assert kept.metadata["from"] == "layer.0; layer.1"


def test_patch_over_many_nodes_does_not_name_them_all() -> None:
    body = "\n".join(f"[n{i}] t{i + 1} = Relu(t{i})" for i in range(MAX_ORIGINS + 1))
    model = parse(HEAD + f"g (float[4] t0) => (float[4] t{MAX_ORIGINS + 1}) {{ {body} }}")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Front(Pass):
        name: ClassVar[str] = "front"
        contract: ClassVar[Contract] = Contract.EXACT

        def run(self, model: Model, facts: Facts) -> Steps:
            nodes = tuple(model.graph.nodes)

            def apply(rewriter: Rewriter) -> None:
                new = rewriter.op("Identity", [nodes[3].inputs[0]], like=nodes[3].inputs[0], near=nodes[3])
                rewriter.set_input(nodes[3], 0, new)

            yield Patch("insert", nodes, apply)

    PassManager([Front()]).run(model)
    assert next(node for node in model.graph.nodes if node.op == "Identity").origin == ("n3",)


# ----------------------------------------------------------------------------------------------------------- errors


def test_pass_that_raises_is_named() -> None:
    broken = edits("broken")(matches=lambda model: list(model.graph.nodes)[9])
    with pytest.raises(PassError, match=r"GO-P001 broken: it raised IndexError before its first patch"):
        PassManager([broken]).run(parse(RELUS))


def test_patch_that_raises_is_named_with_number_reason_and_node() -> None:
    def edit(rewriter: Rewriter, model: Model) -> None:
        raise ZeroDivisionError("no")

    with pytest.raises(PassError, match=r"broken, patch 4 \(edit\), node 'Relu -> y': .*ZeroDivisionError: no"):
        PassManager([MergeRelu(), edits("broken")(edit=edit)]).run(parse(RELUS))


def test_interrupt_passes_through() -> None:
    def edit(rewriter: Rewriter, model: Model) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PassManager([edits("slow")(edit=edit)]).run(parse(RELUS))


def test_yield_of_something_else_is_refused() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Odd(Pass):
        name: ClassVar[str] = "odd"
        contract: ClassVar[Contract] = Contract.EXACT

        def run(self, model: Model, facts: Facts) -> Any:
            yield "patch"

    with pytest.raises(PassError, match="odd: it yielded 'patch'"):
        PassManager([Odd()]).run(parse(RELUS))


def test_illegal_model_is_the_models_fault_not_the_passes() -> None:
    model = parse(RELUS)
    model.graph.nodes[1].inputs[0] = Variable("nowhere", np.float32, [4])
    with pytest.raises(GraphError, match="nowhere"):
        PassManager([MergeRelu()]).run(model)


def cut(rewriter: Rewriter, model: Model) -> None:
    """Leave a tensor that nothing computes, behind the rewriter's back."""
    model.graph.nodes[0].inputs[0] = Variable("nowhere", np.float32, [4])
    rewriter.set_attr(model.graph.nodes[0], "seen", 1)


def rename_output(rewriter: Rewriter, model: Model) -> None:
    model.graph.outputs[0].name = "other"
    rewriter.set_attr(model.graph.nodes[-1], "seen", 1)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (cut, r"'nowhere', which nothing computes or feeds"),
        (rename_output, r"the public outputs changed: y: type 1 \[4\] became other: type 1 \[4\]"),
    ],
)
def test_illegal_patch_is_named_with_the_way_to_bisect(edit: Any, said: str) -> None:
    with pytest.raises(VerificationError) as caught:
        PassManager([MergeRelu(), edits("wrong")(edit=edit)]).run(parse(RELUS))
    message = str(caught.value)
    assert re.search(said, message), message
    assert "wrong, patch 4 (edit), node" in message
    assert "graphopt bisect" in message
    assert "--stop-after 3" in message


def test_patch_that_forgets_a_type_is_illegal() -> None:
    model = parse(RELUS)
    inner = model.graph.nodes[0].outputs[0]
    inner.dtype = np.dtype(np.float32)

    def lose_type(rewriter: Rewriter, model: Model) -> None:
        inner.dtype = None

    with pytest.raises(VerificationError, match="tensor 'a' lost its element type"):
        PassManager([edits("forget")(edit=lose_type)]).run(model)


def test_off_checks_nothing() -> None:
    model = parse(RELUS.replace("Relu(a)", "Neg(a)"))
    PassManager([edits("wrong")(edit=rename_output)], verify="off").run(model)
    assert model.graph.outputs[0].name == "other"


# ------------------------------------------------------------------------------------------------ full verification


def test_full_passes_what_is_right(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        outcome = PassManager([MergeRelu(), ScaleWeights(factor=1.0)], verify="full").run(parse(RELUS))
    assert outcome.notes == []


@pytest.mark.parametrize(
    ("factor", "right"), [(1.0, True), (1 + 2**-22, True), (1.01, False), (0.5, False), (float("nan"), False)]
)
def test_full_holds_a_rounding_pass_to_the_rounding_bound(factor: float, right: bool) -> None:
    manager = PassManager([ScaleWeights(factor=factor)], verify="full")
    if right:
        assert manager.run(parse(DENSE)).patches == 2
    else:
        with pytest.raises(VerificationError, match=r"scale-weights: it breaks its contract \(rounding\) on feed 0"):
            manager.run(parse(DENSE))


def test_full_holds_an_exact_pass_to_every_bit() -> None:
    def negate_zero(rewriter: Rewriter, model: Model) -> None:
        rewriter.set_weight(model.graph.nodes[0].inputs[1], np.array([-0.0], np.float32))

    text = HEAD + "g (float[4] x) => (float[4] y) <float[1] z = {0}> { y = Mul(x, z) }"
    with pytest.raises(VerificationError, match="breaks its contract \\(exact\\)"):
        PassManager([edits("flip")(edit=negate_zero)], verify="full").run(parse(text))
    negligible = edits("flip", Contract.LOSSY)(edit=negate_zero)
    assert PassManager([negligible], verify="full").run(parse(text)).patches == 1


def test_full_refuses_a_lossy_pass_that_makes_nan() -> None:
    def poison(rewriter: Rewriter, model: Model) -> None:
        rewriter.set_weight(model.graph.nodes[0].inputs[1], np.full((2, 2), np.nan, np.float32))

    with pytest.raises(VerificationError, match="not finite where the reference is"):
        PassManager([edits("poison", Contract.LOSSY)(edit=poison)], verify="full").run(parse(DENSE))


class NodeCount(Analysis):
    """Counts nodes: changes with the structure."""

    depends = frozenset({"structure"})

    def __init__(self, count: int) -> None:
        self.count = count

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> NodeCount:
        return cls(sum(1 for _ in model.walk()))

    def same_as(self, other: NodeCount) -> bool:
        return other.count == self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Liar(MergeRelu):
    name: ClassVar[str] = "liar"
    requires: ClassVar[tuple[type[Analysis], ...]] = (NodeCount,)
    preserves: ClassVar[tuple[type[Analysis], ...]] = (NodeCount,)


def test_full_catches_a_false_claim_to_preserve_an_analysis() -> None:
    with pytest.raises(VerificationError, match="liar: it claims to preserve NodeCount"):
        PassManager([Liar()], verify="full").run(parse(RELUS))
    PassManager([Liar()], verify="fast").run(parse(RELUS))


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleLiar(MergeRelu):
    name: ClassVar[str] = "idle-liar"
    preserves: ClassVar[tuple[type[Analysis], ...]] = (NodeCount,)


def test_full_catches_a_false_claim_about_an_analysis_that_nobody_had_asked_for() -> None:
    with pytest.raises(VerificationError, match="idle-liar: it claims to preserve NodeCount"):
        PassManager([IdleLiar()], verify="full").run(parse(RELUS))


@dataclass(slots=True, eq=False)
class NeedsData(NodeCount):
    @classmethod
    def compute(cls, model: Model, facts: Facts) -> NeedsData:
        raise DataError("there is no calibration data")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepsRanges(MergeRelu):
    name: ClassVar[str] = "keeps-ranges"
    preserves: ClassVar[tuple[type[Analysis], ...]] = (NeedsData,)


def test_full_notes_a_claim_that_it_cannot_check() -> None:
    outcome = PassManager([KeepsRanges()], verify="full").run(parse(RELUS))
    assert outcome.patches == 3
    assert "keeps-ranges preserves NeedsData, which was not checked" in outcome.notes[0]


def test_records_name_the_contract_of_their_pass() -> None:
    record = PassManager([MergeRelu()]).run(parse(RELUS)).records[0]
    assert record.contract is MergeRelu.contract


def test_full_refuses_a_type_that_inference_contradicts() -> None:
    def mistype(rewriter: Rewriter, model: Model) -> None:
        rewriter.set_type(model.graph.nodes[0].outputs[0], np.float32, [3])

    with pytest.raises(VerificationError, match="refuses the model now"):
        PassManager([edits("mistype")(edit=mistype)], verify="full").run(parse(RELUS))


def test_full_says_what_it_could_not_check() -> None:
    head = '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>'
    model = parse(head + " g (float[4] x) => (float[4] y) { a = my.Odd(x)\n b = Relu(a)\n y = Relu(b) }")
    outcome = PassManager([MergeRelu()], verify="full").run(model)
    assert len(outcome.notes) == 1
    assert "cannot be run" in outcome.notes[0]


def test_full_does_not_compare_numbers_of_a_random_model() -> None:
    text = HEAD + "g (float[4] x) => (float[4] y) { a = RandomNormalLike(x)\n b = Relu(a)\n y = Relu(b) }"
    outcome = PassManager([MergeRelu()], verify="full").run(parse(text))
    assert outcome.patches == 1
    assert "other results in each run" in outcome.notes[0]
