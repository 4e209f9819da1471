"""Every analysis is listed, documented, and names counters that exist."""

from __future__ import annotations

import pytest

from graphopt.analysis import Captures, Cost, Liveness, NetworkView, RowScale, ShapeValues, Types, Uses
from graphopt.analysis.base import COUNTERS, Analysis
from graphopt.analysis.catalogue import all_analyses, summary


def test_the_catalogue_lists_what_the_package_exports() -> None:
    found = all_analyses()
    assert {Captures, Cost, Liveness, NetworkView, RowScale, ShapeValues, Types, Uses} <= set(found.values())
    assert list(found) == sorted(found)
    assert Analysis not in found.values()


@pytest.mark.parametrize("name", all_analyses())
def test_an_analysis_is_documented_and_depends_on_counters(name: str) -> None:
    kind = all_analyses()[name]
    assert summary(kind).rstrip(".;") != ""
    assert kind.depends <= frozenset(COUNTERS)
    assert kind.may_survive <= frozenset(COUNTERS)
    assert not (kind.sticky and kind.may_survive)
