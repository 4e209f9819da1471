from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from graphopt.analysis.cost_table import CostTable, table_from_cases
from graphopt.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path


def small() -> CostTable:
    """Two numbers of rows, two sizes, three sparsities."""
    one = np.array([[[0.5, 1.0, 2.0], [0.5, 1.5, 2.0]], [[1.2, 2.0, 4.0], [1.2, 3.0, 4.0]]])
    return CostTable((1, 16), (100, 10000), (0.5, 0.7, 0.9), {"avx2": one, "avx512": 2 * one}, 0.1, "a test")


@pytest.mark.parametrize(
    ("m", "k", "n", "sparsity", "isa", "wanted"),
    [
        (1, 10, 10, 0.7, "avx2", 1.0),
        (1, 10, 10, 0.8, "avx2", 1.5),
        (1, 10, 10, 0.7, "avx512", 2.0),
        (1, 10, 10, 0.7, "any", 1.0),
        (16, 100, 100, 0.7, "avx2", 3.0),
        (5000, 1000, 1000, 0.7, "avx2", 3.0),
        (4, 100, 100, 0.7, "avx2", 1.5),
        (4, 50, 50, 0.7, "avx2", 1.0),
        (None, 100, 100, 0.9, "avx2", 2.0),
        (16, 100, 100, 0.95, "avx2", 4.0),
        (16, 100, 100, 0.49, "avx2", 0.0),
        (16, 9, 11, 0.9, "avx2", 0.0),
    ],
)
def test_predicted_is_the_lowest_of_the_nearest_sizes(
    m: int | None, k: int, n: int, sparsity: float, isa: str, wanted: float
) -> None:
    assert small().predicted(m, k, n, sparsity, isa) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("m", "k", "n", "isa", "wanted"),
    [
        (16, 10, 10, "avx2", 0.5),
        (1, 10, 10, "avx2", 0.72),
        (1, 10, 10, "avx512", 0.52),
        (None, 10, 10, "any", 0.72),
        (1, 100, 100, "avx2", 0.62),
        (16, 9, 11, "avx2", None),
        (0, 10, 10, "avx2", None),
    ],
)
def test_break_even_is_where_the_margin_is_reached(
    m: int | None, k: int, n: int, isa: str, wanted: float | None
) -> None:
    found = small().break_even(m, k, n, isa)
    assert (found is None) == (wanted is None)
    if found is not None:
        assert found == pytest.approx(wanted)
        assert small().predicted(m, k, n, found, isa) == pytest.approx(max(1.1, small().predicted(m, k, n, 0.5, isa)))


def test_break_even_counts_from_the_last_slow_sparsity() -> None:
    dip = CostTable((1,), (1,), (0.5, 0.6, 0.7, 0.8), {"avx2": np.array([[[2.0, 0.1, 1.1, 1.2]]])}, 0.1, "")
    assert dip.break_even(1, 1, 1) == pytest.approx(0.7)
    never = CostTable((1,), (1,), (0.5, 0.8), {"avx2": np.array([[[2.0, 1.09]]])}, 0.1, "")
    assert never.break_even(1, 1, 1) is None


def test_json_round_trip_keeps_every_answer(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(small().to_json(), encoding="utf-8")
    back = CostTable.load(path)
    assert back.to_json() == small().to_json()
    assert back.break_even(None, 10, 10) == small().break_even(None, 10, 10)


def test_default_is_loaded_once_and_sensible() -> None:
    table = CostTable.default()
    assert CostTable.default() is table
    assert set(table.speedup) == {"avx2", "avx512"}
    assert table.margin >= 0.05
    at_64 = table.break_even(64, 768, 3072)
    assert at_64 is not None
    assert at_64 <= 0.8
    assert table.predicted(64, 768, 3072, 0.9) > 2
    for m in (*table.m, None):
        for weights in (*table.weights, 10**7):
            needed = table.break_even(m, weights, 1)
            assert needed is None or table.predicted(m, weights, 1, needed) >= 1 + table.margin - 1e-9


def test_load_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"GO-C001.*cannot be read"):
        CostTable.load(tmp_path / "none.json")


def changed(**changes: Any) -> str:
    raw = json.loads(small().to_json())
    raw.update(changes)
    return json.dumps({key: value for key, value in raw.items() if value is not None})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "cannot be understood"),
        ("[]", "cannot be understood"),
        (changed(m=None), "cannot be understood"),
        (changed(version=2), "its version is 2"),
        (changed(m=[16, 1]), "the axis m does not rise"),
        (changed(weights=[1, 1]), "the axis weights does not rise"),
        (changed(sparsity=[0.5, 0.7, 1.2]), "outside 0..1"),
        (changed(speedup={}), "no instruction set"),
        (changed(speedup={"avx2": [[1.0]]}), r"has the shape \[1, 1\], not \[2, 2, 3\]"),
        (changed(speedup={"avx2": [[[1, 1, 1]] * 2, [[1, 1, 0]] * 2]}), "not a positive number"),
        (changed(speedup={"avx2": [[[1, 1, 1]] * 2, [[1, 1, float("nan")]] * 2]}), "not a positive number"),
        (changed(speedup={"avx2": "fast"}), "cannot be understood"),
        (changed(margin=-1), "the margin is outside"),
    ],
)
def test_load_invalid_table_is_an_error(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        CostTable.from_json(text, where="here")


def test_unknown_instruction_set_is_an_error() -> None:
    with pytest.raises(RecipeError, match="no instruction set 'neon'"):
        small().break_even(1, 10, 10, "neon")


def case(shape: str, sparsity: float, speedup: float) -> dict[str, Any]:
    return {"isa": "avx2", "shape": shape, "sparsity": sparsity, "speedup": speedup}


def test_table_from_cases_takes_the_lowest_of_equal_sizes() -> None:
    cases = [case("1x2x6", 0.5, 1.5), case("1x3x4", 0.5, 1.2), case("1x2x6", 0.9, 3), case("1x3x4", 0.9, 4)]
    table = table_from_cases(cases, margin=0.2, measured_on="a test")
    assert (table.m, table.weights, table.sparsity) == ((1,), (12,), (0.5, 0.9))
    assert table.speedup["avx2"].tolist() == [[[1.2, 3.0]]]


def test_table_from_cases_with_a_gap_is_an_error() -> None:
    with pytest.raises(RecipeError, match="must cover a full grid"):
        table_from_cases([case("1x2x6", 0.5, 1.5), case("4x2x6", 0.9, 1.5)], margin=0.1, measured_on="")
