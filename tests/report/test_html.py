from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from graphopt.report import LayerEntry, PassEntry, Quality, Report, SkipEntry, WeightEntry, render_html

if TYPE_CHECKING:
    from collections.abc import Callable

VOID = {"meta", "input", "br", "rect"}
ATTRIBUTES = {
    *(
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "style",
        "id",
        "data-sort",
        "data-value",
        "data-filter",
    ),
    *("type", "placeholder", "aria-label", "hidden", "title", "role", "viewbox", "preserveaspectratio"),
    *("x", "y", "width", "height"),
}


class Page(HTMLParser):
    """Reads a page, and fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in {"script", "style"}:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_page_is_well_formed_and_has_every_section(make_big: Callable[[int], Report]) -> None:
    page = Page(render_html(make_big(300)))
    for expected in (
        "encoder_legacy_op17.onnx",
        "3.00x smaller",
        "1.92x faster",
        "99.2 % ± 0.3",
        "1,017 held-back samples",
        "The loss of 0.79 is within the budget of 1 points of agreement.",
        "What was decided",
        "300 layers in model order",
        "513 patches in 15.9 s",
        "197 places, 3 kinds of reasons",
        "input … is not constant",
        "2,100 nodes before, 1,500 after",
        "13 more operators",
        "Some Processor 9000",
    ):
        assert expected in page.text
    assert page.tags.count("rect") > 600


def test_page_of_a_tiny_model_leaves_out_what_is_not_known(tiny: Report) -> None:
    page = Page(render_html(tiny))
    assert "1 patch in" in page.text
    for absent in ("Layers", "Latency", "Agreement", "What was skipped", "What was decided", "budget"):
        assert absent not in page.text
    assert "svg" not in page.tags


def test_text_from_a_model_cannot_become_markup(hostile: Report, make_big: Callable[[int], Report]) -> None:
    attacked = render_html(hostile)
    page = Page(attacked)
    assert set(page.tags) <= set(Page(render_html(make_big(10))).tags) | {"p", "s", "small"}
    assert page.attributes <= ATTRIBUTES
    assert page.tags.count("script") == 1
    assert page.tags.count("style") == 1
    assert "<img src=x onerror=alert(1)>" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", attacked)


def test_page_asks_for_nothing_and_runs_only_its_own_script(make_big: Callable[[int], Report]) -> None:
    page = render_html(make_big(20))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<iframe|<img|src=", page.split("</style>")[0])
    assert not re.search(r"<link|<iframe|<img|<object|\bsrc=|\bhref=|\bon[a-z]+=", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy[1] == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_page_is_the_same_for_the_same_report(make_big: Callable[[int], Report]) -> None:
    assert render_html(make_big(30)) == render_html(make_big(30))


def test_page_follows_the_colours_of_the_system(tiny: Report) -> None:
    page = render_html(tiny)
    assert "prefers-color-scheme: dark" in page
    assert "color-scheme: light dark" in page


def test_budget_that_is_not_met_stands_out(tiny: Report) -> None:
    failed = Quality(samples=9, agreement=0.5, budget=1.0, drop=50.0, met=False, standard_error=0.1)
    page = render_html(tiny.model_copy(update={"quality": failed}))
    assert 'class="verdict bad">The loss of 50 exceeds the budget of 1' in page


def test_layer_says_what_was_kept_and_what_was_taken_back(tiny: Report) -> None:
    def layer(name: str, *, kept: bool, reverted: bool) -> LayerEntry:
        return LayerEntry(name=name, op="Conv", what="80 % zeros", kept=kept, reverted=reverted, reason="it hurts")

    rows = (
        layer("a", kept=False, reverted=False),
        layer("b", kept=False, reverted=True),
        layer("c", kept=True, reverted=False),
    )
    text = Page(render_html(tiny.model_copy(update={"layers": rows}))).text
    assert "a Conv left left as it was: it hurts" in text
    assert "b Conv reverted 80 % zeros taken back: it hurts" in text
    assert "c Conv changed 80 % zeros it hurts" in text
    assert "1 changed, 1 left, 1 reverted" in text


@pytest.mark.parametrize(("count", "more"), [(200, False), (5000, True)])
def test_long_lists_of_skips_are_cut_and_say_so(tiny: Report, count: int, more: bool) -> None:
    skips = tuple(SkipEntry(node=f"node{index}", reason="too small") for index in range(count))
    page = render_html(tiny.model_copy(update={"passes": (PassEntry(name="p", skips=skips),)}))
    assert ("4,800 more in report.json" in page) is more
    assert len(page) < 60_000


def test_endless_kinds_of_everything_are_cut(tiny: Report) -> None:
    skips = tuple(SkipEntry(node="n", reason=f"reason {'x' * index}") for index in range(1000))
    operators = {f"Op{'x' * index}": 1 for index in range(1000)}
    huge = tiny.model_copy(
        update={
            "passes": (PassEntry(name="p", skips=skips),),
            "notes": tuple(f"note {index}" for index in range(1000)),
            "model": tiny.model.model_copy(
                update={"before": tiny.model.before.model_copy(update={"operators": operators})}
            ),
        }
    )
    page = Page(render_html(huge)).text
    for expected in (
        "800 more kinds in report.json",
        "800 more notes in report.json",
        "501 more operators in report.json",
    ):
        assert expected in page


def test_many_layers_are_cut_and_say_so(tiny: Report) -> None:
    rows = tuple(
        LayerEntry(name=f"l{index}", op="Conv", what="x", kept=True, reverted=False, reason="") for index in range(3001)
    )
    page = Page(render_html(tiny.model_copy(update={"layers": rows})))
    assert "1 more layer in report.json." in page.text


def test_chart_of_very_many_layers_shares_bars(make_big: Callable[[int], Report]) -> None:
    page = Page(render_html(make_big(1200)))
    assert "1,200 layers in model order, 3 in each bar" in page.text
    assert page.tags.count("g") == 400


def test_chart_is_as_high_as_the_largest_weight_of_either_model(tiny: Report) -> None:
    grown = tuple(
        WeightEntry(
            name=f"l{index}",
            op="MatMul",
            parameters=10,
            bytes_before=40,
            bytes_after=80,
            type_before="float",
            type_after="float",
            zeros_before=0,
            zeros_after=0,
        )
        for index in range(2)
    )
    page = render_html(tiny.model_copy(update={"weights": grown}))
    assert 'class="o" x="70.00" y="60.00" width="360.00" height="60.00"' in page
    assert 'class="a" x="70.00" y="0.00" width="360.00" height="120.00"' in page


def test_long_names_are_shortened_in_the_middle(tiny: Report) -> None:
    name = "head" + "x" * 5000 + "tail"
    entry = LayerEntry(name=name, op="Conv", what="x", kept=True, reverted=False, reason="")
    page = render_html(tiny.model_copy(update={"layers": (entry,)}))
    assert "x" * 200 not in page
    assert "…" in page
    assert "xxtail" in page
