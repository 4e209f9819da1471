"""RowScale: recorded by name, multiplied, renamed, and gone with its weight."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis import Facts, RowScale
from graphopt.graph import Model, Rewriter
from shape_agreement import read_text

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[b, 2] x) => (float y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3] c = {0, 0, 0}> {
    a = MatMul (x, w)
    y = Add (a, c)
}"""


@pytest.fixture
def model() -> Model:
    return read_text(TEXT)


def scale(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_scales_multiply_and_are_read_only(model: Model) -> None:
    weight = model.graph.nodes[0].inputs[1]
    record = RowScale().with_scale(weight, scale(1, 2, 3), axis=1).with_scale("w", scale(2, 2, 0.5), axis=1)
    found = record.of("w")
    assert found is not None
    assert found.tolist() == [2, 4, 1.5]
    assert record.axis(weight) == 1
    assert not found.flags.writeable
    assert RowScale().of("w") is None
    assert RowScale().axis("w") is None


def test_the_given_array_may_change_afterwards() -> None:
    given = scale(1, 2, 3)
    record = RowScale().with_scale("w", given)
    given[0] = 9
    assert record == RowScale().with_scale("w", scale(1, 2, 3))


def test_records_compare_by_content() -> None:
    record = RowScale().with_scale("w", scale(1, 2), axis=0)
    assert record == RowScale().with_scale("w", scale(1, 2), axis=0)
    assert record != RowScale().with_scale("w", scale(1, 2), axis=1)
    assert record != RowScale().with_scale("w", scale(1, 3), axis=0)
    assert record != RowScale()


def test_a_renamed_weight_takes_its_scale_along() -> None:
    record = RowScale().with_scale("w", scale(1, 2)).renamed("w", "v")
    assert list(record) == ["v"]
    assert record.renamed("other", "u") is record


def test_an_entry_goes_with_its_weight_or_its_channels(model: Model) -> None:
    facts = Facts(model)
    facts.record(facts.get(RowScale).with_scale("w", scale(1, 2, 3), axis=1).with_scale("gone", scale(1)))
    model.versions.structure += 1
    assert list(facts.get(RowScale)) == ["w"]
    with Rewriter(model) as rw:
        rw.set_weight(model.graph.nodes[0].inputs[1], np.ones((2, 3), np.float32))
    assert len(facts.get(RowScale)) == 1
    with Rewriter(model) as rw:
        rw.set_weight(model.graph.nodes[0].inputs[1], np.ones((2, 5), np.float32))
    assert len(facts.get(RowScale)) == 0


def test_a_copy_of_the_model_keeps_the_record(model: Model) -> None:
    facts = Facts(model)
    facts.record(facts.get(RowScale).with_scale("w", scale(1, 2, 3), axis=1))
    copy = facts.fork(model.copy())
    assert copy.get(RowScale) == facts.get(RowScale)


def test_adding_to_a_copy_leaves_the_record_as_it_was() -> None:
    record = RowScale().with_scale("w", scale(1, 2))
    grown = record.copy()
    grown.add("w", scale(3, 3))
    grown.add("v", scale(5), axis=1)
    assert record == RowScale().with_scale("w", scale(1, 2))
    assert grown == record.with_scale("w", scale(3, 3)).with_scale("v", scale(5), axis=1)
