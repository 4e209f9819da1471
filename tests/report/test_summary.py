from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from graphopt.report import Latency, LayerEntry, PassEntry, Quality, Report, SkipEntry, WeightEntry, summary

if TYPE_CHECKING:
    from collections.abc import Callable


def test_skips_are_grouped_by_pass_and_kind_of_reason(tiny: Report) -> None:
    entry = PassEntry(
        name="fuse-batch-norm",
        skips=(
            SkipEntry(node="a", reason="weight 'w1' is used 3 times"),
            SkipEntry(node="b", reason="no constant weight"),
            SkipEntry(node="c", reason="weight 'w2' is used 2 times"),
        ),
    )
    other = PassEntry(name="insert-qdq", skips=(SkipEntry(node="b", reason="no constant weight"),))
    groups = summary.skip_groups(tiny.model_copy(update={"passes": (entry, other)}))
    assert [(group.pass_name, group.reason, len(group.members)) for group in groups] == [
        ("fuse-batch-norm", "weight … is used … times", 2),
        ("fuse-batch-norm", "no constant weight", 1),
        ("insert-qdq", "no constant weight", 1),
    ]
    assert [group.uniform for group in groups] == [False, True, True]
    assert groups[0].members[1] == ("c", "weight 'w2' is used 2 times")


def test_what_a_pass_skips_every_time_is_counted_once(tiny: Report) -> None:
    entry = PassEntry(name="fold-constants", skips=(SkipEntry(node="loop", reason="it is control flow"),))
    (group,) = summary.skip_groups(tiny.model_copy(update={"passes": (entry, entry)}))
    assert group.members == (("loop", "it is control flow"),)


def test_types_inside_words_are_not_taken_for_numbers(tiny: Report) -> None:
    entry = PassEntry(
        name="p",
        skips=(SkipEntry(node="a", reason="the type is float16"), SkipEntry(node="b", reason="the type is int64")),
    )
    assert len(summary.skip_groups(tiny.model_copy(update={"passes": (entry,)}))) == 2


def test_layer_shows_which_passes_skipped_it(tiny: Report) -> None:
    record = LayerEntry(name="fc", op="MatMul", what="80 % zeros", kept=True, reverted=False, reason="")
    steps = tuple(
        PassEntry(name=name, skips=(SkipEntry(node="fc", reason=reason), SkipEntry(node="other", reason="no")))
        for name, reason in (("lower-sparse-matmul", "too dense"), ("insert-qdq", "no data"))
    )
    (row,) = summary.layer_rows(tiny.model_copy(update={"layers": (record,), "passes": steps}))
    assert row.skips == [("lower-sparse-matmul", "too dense"), ("insert-qdq", "no data")]
    assert row.status == "changed"


@pytest.mark.parametrize(
    ("marks", "status"),
    [
        ([], "untouched"),
        ([(False, False)], "left"),
        ([(False, False), (True, False)], "changed"),
        ([(False, False), (False, True)], "reverted"),
        ([(False, True), (True, False)], "changed"),
    ],
)
def test_status_of_a_layer_is_what_finally_became_of_it(marks: list[tuple[bool, bool]], status: str) -> None:
    entries = [LayerEntry(name="n", op="Conv", what="w", kept=kept, reverted=back, reason="") for kept, back in marks]
    assert summary.LayerRow("n", "Conv", entries).status == status


def test_layers_join_weights_and_records_by_name(tiny: Report) -> None:
    weight = WeightEntry(
        name="conv",
        op="Conv",
        parameters=4,
        bytes_before=16,
        bytes_after=4,
        type_before="float",
        type_after="int8",
        zeros_before=0,
        zeros_after=0,
    )
    records = tuple(
        LayerEntry(name=name, op="Conv", what=what, kept=True, reverted=False, reason="")
        for name, what in (("conv", "80 % zeros"), ("add", "8 bit"), ("conv", "int8"))
    )
    rows = summary.layer_rows(tiny.model_copy(update={"weights": (weight,), "layers": records}))
    assert [(row.name, row.weight is not None, [entry.what for entry in row.entries]) for row in rows] == [
        ("conv", True, ["80 % zeros", "int8"]),
        ("add", False, ["8 bit"]),
    ]


def test_latency_within_noise_is_called_the_same(tiny: Report) -> None:
    def change(after: float) -> str:
        time = Latency(before=10.0, after=after, threads=1, runs=9)
        found = summary.figures(tiny.model_copy(update={"latency_ms": time}))
        return next(figure.change for figure in found if figure.label == "Latency")

    assert change(9.85) == "same"
    assert change(5.0) == "2.00x faster"
    assert change(20.0) == "2.00x slower"


def test_user_metric_is_the_figure_judged() -> None:
    quality = Quality(
        samples=9,
        metric="mine:top_f1",
        before=0.91,
        after=0.905,
        agreement=0.99,
        standard_error=0.004,
        budget=0.01,
        drop=0.005,
    )
    found = summary.quality_figures(quality)
    assert [(figure.label, figure.before, figure.after, figure.change) for figure in found] == [
        ("Top f1", "0.91", "0.905", "-0.005"),
        ("Agreement", "", "99.0 % ± 0.4", ""),
    ]
    assert summary.budget_line(quality) == "The loss of 0.005 is within the budget of 0.01 metric units."


def test_loss_beyond_the_budget_but_within_the_error_says_so() -> None:
    quality = Quality(samples=40, agreement=0.975, standard_error=0.025, budget=1.0, drop=2.5)
    line = summary.budget_line(quality)
    assert line.startswith(
        "The loss of 2.5 exceeds the budget of 1 points of agreement by less than its own standard error"
    )


def test_budget_that_is_not_met_says_so() -> None:
    quality = Quality(samples=9, sqnr_db=25.0, budget=5.0, drop=15.0, met=False)
    assert summary.budget_line(quality) == "The loss of 15 exceeds the budget of 5 dB of SQNR below 40."
    assert summary.quality_figures(quality)[0].tone == "bad"


def test_random_samples_are_not_called_held_back(make_big: Callable[[int], Report]) -> None:
    report = make_big(6)
    assert report.quality is not None
    assert summary.judged_on(report.quality) == "1,017 held-back samples"
    assert (
        summary.judged_on(report.quality.model_copy(update={"held_back": False, "samples": 1}))
        == "1 sample, not held back"
    )
