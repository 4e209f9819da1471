from __future__ import annotations

import io
from typing import TYPE_CHECKING

from graphopt.report import Quality, Report
from graphopt.report.console import render, render_short, table, to_text

if TYPE_CHECKING:
    from collections.abc import Callable


def test_tables_show_before_after_passes_and_skips(make_big: Callable[[int], Report]) -> None:
    shown = render(make_big(300), stream=io.StringIO())
    for expected in ("354 MB", "118 MB", "3.00x smaller", "1.92x faster", "prune-magnitude", "150x", "is not constant"):
        assert expected in shown
    assert "The loss of 0.79 is within the budget of 1 points of agreement." in shown
    assert "\x1b" not in shown


def test_short_form_has_no_passes(make_big: Callable[[int], Report]) -> None:
    shown = render_short(make_big(300), stream=io.StringIO())
    assert "1.92x faster" in shown
    assert "prune-magnitude" not in shown


def test_report_without_measurements_shows_sizes_only(tiny: Report) -> None:
    shown = render(tiny, stream=io.StringIO())
    assert shown.splitlines()[1].split() == [
        "Size",
        "412",
        "B",
        "380",
        "B",
        "1.08x",
        "smaller",
        "on",
        "disk,",
        "weights",
        "included",
    ]
    assert "Latency" not in shown
    assert "skipped" not in shown


def test_names_from_a_model_reach_no_terminal_as_codes_or_markup(hostile: Report) -> None:
    shown = render(hostile, stream=io.StringIO())
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\\x1b[31m" in shown
    assert "[bold]" in shown


def test_unmet_budget_is_said(tiny: Report) -> None:
    failed = Quality(samples=9, agreement=0.5, budget=1.0, drop=50.0, met=False)
    assert "exceeds the budget" in render_short(tiny.model_copy(update={"quality": failed}), stream=io.StringIO())


def test_many_kinds_of_skips_are_summed_up(tiny: Report) -> None:
    from graphopt.report import PassEntry, SkipEntry

    skips = tuple(SkipEntry(node=f"n{index}", reason="because " + "abcdefghijklmnopqrst"[index]) for index in range(20))
    shown = render(tiny.model_copy(update={"passes": (PassEntry(name="p", skips=skips),)}), stream=io.StringIO())
    assert shown.count("because") == 12
    assert "8x" in shown
    assert "other reasons, listed in the report" in shown


def test_long_cells_are_folded_not_cut() -> None:
    shown = to_text(table(("a",), [("x" * 500,)]), stream=io.StringIO())
    assert shown.count("x") == 500
    assert max(map(len, shown.splitlines())) <= 120


def test_colours_only_on_a_terminal(make_big: Callable[[int], Report]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert "\x1b[" in render(make_big(6), stream=Terminal())
