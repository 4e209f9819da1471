from __future__ import annotations

import pytest

from graphopt.report import text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1_157_228, "1.16 MB"),
        (999_999, "1.00 MB"),
        (58.4e9, "58.4 GB"),
        (3e15, "3000 TB"),
    ],
)
def test_size_has_three_digits(value: float, expected: str) -> None:
    assert text.size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, "7"), (999, "999"), (1000, "1.00 k"), (1_157_228, "1.16 M"), (7.2e9, "7.20 G"), (5e15, "5000 T")],
)
def test_short_count_has_three_digits(value: float, expected: str) -> None:
    assert text.short_count(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(12.345, "12.3 ms"), (123.45, "123 ms"), (0.1, "0.10 ms"), (0.0123, "12.3 µs")]
)
def test_milliseconds_change_to_microseconds_when_short(value: float, expected: str) -> None:
    assert text.milliseconds(value) == expected
    assert text.milliseconds(0.05, beside=0.6) == "0.05 ms"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.001, "< 0.01 s"), (0.0, "0.00 s"), (0.006, "0.01 s"), (12.34, "12.3 s"), (200.4, "3 min 20 s")],
)
def test_seconds_change_to_minutes_when_long(value: float, expected: str) -> None:
    assert text.seconds(value) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (4.0, 1.0, "4.00x smaller"),
        (1.0, 4.0, "4.00x larger"),
        (100.0, 100.2, "same"),
        (120.0, 1.0, "120.0x smaller"),
        (0.0, 0.0, "same"),
        (0.0, 1.0, "n/a"),
        (1.0, 0.0, "n/a"),
    ],
)
def test_ratio_says_which_way(before: float, after: float, expected: str) -> None:
    assert text.ratio(before, after, smaller="smaller", larger="larger") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, "100.0 %"), (0.99999, "> 99.9 %"), (0.0, "0.0 %"), (0.00001, "< 0.1 %"), (0.9921, "99.2 %")],
)
def test_percent_never_rounds_to_perfect(value: float, expected: str) -> None:
    assert text.percent(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain/name.1", "plain/name.1"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\u202eb", "a\\u202eb"),
        ("a\nb", "a\\nb"),
        ("größe 重み", "größe 重み"),
        ("lone \ud800", "lone \\ud800"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
    ],
)
def test_printable_writes_out_what_moves_the_cursor_or_hides(value: str, expected: str) -> None:
    assert text.printable(value) == expected


def test_printable_keeps_what_it_is_told_to_and_cuts_the_middle() -> None:
    assert text.printable("a\nb", keep="\n") == "a\nb"
    cut = text.printable("x" * 50 + "y" * 50, limit=20)
    assert len(cut) == 20
    assert cut.startswith("xxx")
    assert cut.endswith("yyy")
    assert "…" in cut
