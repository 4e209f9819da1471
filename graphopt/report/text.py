"""Words and numbers for people: sizes, ratios, counts, and names from models made safe to show."""

from __future__ import annotations

import unicodedata

SAME = 0.005
"""Quantities that differ by a smaller share are called the same."""
_UNITS = ("B", "kB", "MB", "GB", "TB")
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that move the cursor, reorder text or show nothing: control, format, surrogate, separators."""


def printable(text: str, *, keep: str = "", limit: int | None = None) -> str:
    r"""Return the text with every control and reordering character written as an escape.

    Names in a model are untrusted: an escape sequence must not reach a terminal, nor a right-to-left mark a page.

    Args:
        text: Any text.
        keep: Characters left as they are, for example ``"\n"``.
        limit: Longest result in characters; the middle of a longer text is replaced by an ellipsis.
    """
    if not text.isascii() or not text.isprintable():
        text = "".join(
            character
            if character in keep or unicodedata.category(character) not in _HIDDEN
            else character.encode("unicode_escape").decode("ascii")
            for character in text
        )
    if limit is not None and len(text) > limit:
        head = (limit - 1) * 2 // 3
        text = f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"
    return text


def size(count: float) -> str:
    """Return bytes in decimal units with three significant digits: 1 157 228 is "1.16 MB"."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{_three_digits(value)} {unit}"
        value /= 1000.0
    return f"{_three_digits(value)} {_UNITS[-1]}"


def count(value: int) -> str:
    """Return a whole number with commas between thousands: 12345 is "12,345"."""
    return f"{value:,}"


def short_count(value: float) -> str:
    """Return a number of parameters or operations in short: 1_157_228 is "1.16 M"."""
    for unit in ("", " k", " M", " G", " T"):
        if abs(value) < 999.5 or unit == " T":
            return f"{value:.0f}" if not unit else f"{_three_digits(value)}{unit}"
        value /= 1000.0
    return f"{value:.0f}"


def milliseconds(value: float, *, beside: float | None = None) -> str:
    """Return a duration in ms with three significant digits, or µs below 0.1 ms.

    Args:
        value: The duration, ms.
        beside: A duration whose unit is taken, so that both can be compared.
    """
    if (value if beside is None else beside) < 0.1:
        return f"{_three_digits(value * 1000.0)} µs"
    return f"{_three_digits(value)} ms"


def seconds(value: float) -> str:
    """Return a duration in s: "< 0.01 s", "12.3 s", "3 min 20 s"."""
    if 0.0 < value < 0.005:
        return "< 0.01 s"
    if value >= 120.0:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{value:.2f} s" if value < 10.0 else f"{value:.1f} s"


def ratio(before: float, after: float, *, smaller: str, larger: str) -> str:
    """Return how much a quantity changed in words: "3.7x smaller", "1.2x larger" or "same".

    Args:
        before: Old value, not negative.
        after: New value, not negative.
        smaller: Word for a quantity that fell, for example "faster" for a latency.
        larger: Word for a quantity that rose.
    """
    if before <= 0.0 or after <= 0.0:
        return "same" if before == after else "n/a"
    factor = before / after
    word = smaller if factor >= 1.0 else larger
    factor = max(factor, 1.0 / factor)
    if factor < 1.0 + SAME:
        return "same"
    return f"{factor:.2f}x {word}" if factor < 9.995 else f"{factor:.1f}x {word}"


def percent(value: float, digits: int = 1) -> str:
    """Return a share as percent: 0.9921 is "99.2 %"; shares that are not exactly 0 or 1 never round to 0 or 100."""
    text = f"{value * 100.0:.{digits}f}"
    step = 10.0**-digits
    if value < 1.0 and float(text) == 100.0:
        return f"> {100.0 - step:.{digits}f} %"
    if value > 0.0 and float(text) == 0.0:
        return f"< {step:.{digits}f} %"
    return f"{text} %"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"
