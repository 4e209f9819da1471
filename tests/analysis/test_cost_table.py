from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.analysis import cost_table
from graphopt.analysis.cost_table import KERNELS, CostTable, KernelGrid, table_from_cases, tuned_path
from graphopt.errors import RecipeError


def small() -> CostTable:
    """Two numbers of rows, two sizes, three sparsities; two kinds of bits."""
    one = np.array([[[0.5, 1.0, 2.0], [0.5, 1.5, 2.0]], [[1.2, 2.0, 4.0], [1.2, 3.0, 4.0]]])
    sparse = KernelGrid((1, 16), (100, 10000), (0.5, 0.7, 0.9), {"avx2": one, "avx512": 2 * one})
    bits = np.array([[[3.0, 2.0], [6.0, 4.0]], [[1.5, 1.2], [2.0, 1.8]]])
    ours = KernelGrid((1, 16), (100, 10000), (4, 8), {"avx2": bits, "avx512": bits})
    theirs = KernelGrid((1, 16), (100, 10000), (4,), {"avx2": bits[..., :1] / 2, "avx512": bits[..., :1] / 3})
    kernels = {"sparse-matmul": sparse, "low-bit-matmul": ours, "matmul-nbits": theirs}
    return CostTable(kernels, 0.1, "a test")


def of(grid: KernelGrid) -> CostTable:
    return CostTable({"sparse-conv": grid}, 0.1, "a test")


@pytest.mark.parametrize(
    ("m", "weights", "sparsity", "isa", "wanted"),
    [
        (1, 100, 0.7, "avx2", 1.0),
        (1, 100, 0.8, "avx2", 1.5),
        (1, 100, 0.7, "avx512", 2.0),
        (1, 100, 0.7, "any", 1.0),
        (16, 10_000, 0.7, "avx2", 3.0),
        (5000, 1_000_000, 0.7, "avx2", 3.0),
        (4, 10_000, 0.7, "avx2", 1.5),
        (4, 2500, 0.7, "avx2", 1.0),
        (None, 10_000, 0.9, "avx2", 2.0),
        (16, 10_000, 0.95, "avx2", 4.0),
        (16, 10_000, 0.49, "avx2", 0.0),
        (16, 99, 0.9, "avx2", 0.0),
    ],
)
def test_predicted_is_the_lowest_of_the_nearest_sizes(
    m: int | None, weights: int, sparsity: float, isa: str, wanted: float
) -> None:
    assert small().predicted("sparse-matmul", m, weights, sparsity, isa) == pytest.approx(wanted)


@pytest.mark.parametrize(("bits", "wanted"), [(4, 6.0), (8, 4.0), (3, 0.0), (6, 0.0), (2, 0.0)])
def test_predicted_knows_only_the_measured_bits(bits: float, wanted: float) -> None:
    assert small().predicted("low-bit-matmul", 1, 10_000, bits) == wanted


def test_kernel_without_measurements_is_never_faster() -> None:
    assert small().predicted("sparse-conv", 1, 10_000, 0.9) == 0
    assert small().break_even("sparse-conv", 1, 10_000) is None
    assert small().gain("low-bit-matmul", 4, "dense-int8-matmul", 8, 1, 10_000) == 0


@pytest.mark.parametrize(
    ("m", "weights", "isa", "wanted"),
    [
        (16, 100, "avx2", 0.5),
        (1, 100, "avx2", 0.72),
        (1, 100, "avx512", 0.52),
        (None, 100, "any", 0.72),
        (1, 10_000, "avx2", 0.62),
        (16, 99, "avx2", None),
        (0, 100, "avx2", None),
    ],
)
def test_break_even_is_where_the_margin_is_reached(m: int | None, weights: int, isa: str, wanted: float | None) -> None:
    found = small().break_even("sparse-matmul", m, weights, isa)
    assert (found is None) == (wanted is None)
    if found is not None:
        assert found == pytest.approx(wanted)
        lowest = small().predicted("sparse-matmul", m, weights, 0.5, isa)
        assert small().predicted("sparse-matmul", m, weights, found, isa) == pytest.approx(max(1.1, lowest))


def test_break_even_counts_from_the_last_slow_sparsity() -> None:
    dip = of(KernelGrid((1,), (1,), (0.5, 0.6, 0.7, 0.8), {"avx2": np.array([[[2.0, 0.1, 1.1, 1.2]]])}))
    assert dip.break_even("sparse-conv", 1, 1) == pytest.approx(0.7)
    never = of(KernelGrid((1,), (1,), (0.5, 0.8), {"avx2": np.array([[[2.0, 1.09]]])}))
    assert never.break_even("sparse-conv", 1, 1) is None


def test_gain_compares_size_by_size_where_both_were_measured_on_the_same() -> None:
    table = small()
    assert table.gain("low-bit-matmul", 4, "matmul-nbits", 4, 1, 100, "avx2") == pytest.approx(2)
    assert table.gain("low-bit-matmul", 4, "matmul-nbits", 4, None, 100, "any") == pytest.approx(2)
    assert table.gain("low-bit-matmul", 4, "matmul-nbits", 4, None, 100, "avx512") == pytest.approx(3)
    assert table.gain("low-bit-matmul", 8, "matmul-nbits", 4, 16, 10_000, "avx2") == pytest.approx(1.8)
    assert table.gain("low-bit-matmul", 5, "matmul-nbits", 4, 16, 10_000) == 0
    assert table.gain("low-bit-matmul", 4, "matmul-nbits", 4, 16, 99) == 0


def test_gain_over_other_sizes_takes_the_least_favourable_of_each() -> None:
    ours = KernelGrid((1, 8), (1,), (4,), {"avx2": np.array([[[4.0]], [[8.0]]])})
    theirs = KernelGrid((1, 4, 8), (1,), (8,), {"avx2": np.array([[[2.0]], [[1.0]], [[1.0]]])})
    table = CostTable({"low-bit-matmul": ours, "dense-int8-matmul": theirs}, 0.1, "")
    assert table.gain("low-bit-matmul", 4, "dense-int8-matmul", 8, 2, 1) == pytest.approx(2)


def test_fastest_is_the_best_that_reaches_the_margin() -> None:
    candidates = [("sparse-matmul", 0.9), ("low-bit-matmul", 4.0), ("sparse-conv", 0.9), ("matmul-nbits", 4.0)]
    assert small().fastest(candidates, 1, 10_000, "avx2") == ("low-bit-matmul", 4.0, 6.0)
    assert small().fastest(candidates, 16, 10_000, "avx2") == ("sparse-matmul", 0.9, 4.0)
    assert small().fastest([("sparse-matmul", 0.5)], 1, 100, "avx2") is None
    assert small().fastest([], 1, 100) is None


def test_json_round_trip_keeps_every_answer(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(small().to_json(), encoding="utf-8")
    back = CostTable.load(path)
    assert back.to_json() == small().to_json()
    assert back.break_even("sparse-matmul", None, 100) == small().break_even("sparse-matmul", None, 100)
    assert back.predicted("low-bit-matmul", 1, 100, 4) == small().predicted("low-bit-matmul", 1, 100, 4)


def test_default_is_loaded_once_and_sensible() -> None:
    table = CostTable.default()
    assert CostTable.default() is table
    assert table.margin >= 0.05
    at_64 = table.break_even("sparse-matmul", 64, 768 * 3072)
    assert at_64 is not None
    assert at_64 <= 0.8
    assert table.predicted("sparse-matmul", 64, 768 * 3072, 0.9) > 2
    for name, grid in table.kernels.items():
        assert set(grid.speedup) == {"avx2", "avx512vnni"}
        for m in (*grid.m, None):
            for weights in (*grid.weights, 10**7):
                needed = table.break_even(name, m, weights) if KERNELS[name] == "sparsity" else None
                assert needed is None or table.predicted(name, m, weights, needed) >= 1 + table.margin - 1e-9


def test_find_takes_the_named_table_then_the_users_then_that_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_table, "_cache_folder", lambda: tmp_path)
    assert CostTable.find("default") is CostTable.default()
    assert CostTable.find() is CostTable.default()
    monkeypatch.delenv("GRAPHOPT_COST_TABLE")
    assert CostTable.find() is CostTable.default()
    tuned_path().parent.mkdir()
    tuned_path().write_text(small().to_json(), encoding="utf-8")
    assert CostTable.find().measured_on == "a test"
    assert CostTable.find("default") is CostTable.default()
    other = tmp_path / "other.json"
    other.write_text(small().to_json().replace("a test", "another"), encoding="utf-8")
    assert CostTable.find(str(other)).measured_on == "another"
    monkeypatch.setenv("GRAPHOPT_COST_TABLE", str(other))
    assert CostTable.find().measured_on == "another"
    monkeypatch.setenv("GRAPHOPT_COST_TABLE", str(tmp_path / "none.json"))
    with pytest.raises(RecipeError, match=r"none\.json.*cannot be read"):
        CostTable.find()


@pytest.mark.parametrize(
    ("platform", "environment", "wanted"),
    [
        ("linux", {"XDG_CACHE_HOME": "/c"}, "/c/graphopt/cost_table.json"),
        ("linux", {"XDG_CACHE_HOME": ""}, "~/.cache/graphopt/cost_table.json"),
        ("darwin", {}, "~/Library/Caches/graphopt/cost_table.json"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/graphopt/cost_table.json"),
    ],
)
def test_the_users_table_lies_in_the_cache_folder_of_the_system(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], wanted: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tuned_path() == Path(wanted).expanduser()


def test_load_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"GO-C001.*cannot be read"):
        CostTable.load(tmp_path / "none.json")


def test_load_binary_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "table").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be understood"):
        CostTable.load(tmp_path / "table")


def changed(**changes: Any) -> str:
    raw = json.loads(small().to_json())
    for key, value in changes.items():
        (raw if key in raw else raw["kernels"]["sparse-matmul"])[key] = value
    return json.dumps({key: value for key, value in raw.items() if value is not None})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "cannot be understood"),
        ("[]", "cannot be understood"),
        (changed(kernels=None), "cannot be understood"),
        (changed(m=None), "cannot be understood"),
        (changed(version=1), "its version is 1"),
        (changed(kernels={}), "it has no kernel"),
        (changed(kernels={"fast": json.loads(small().to_json())["kernels"]["sparse-matmul"]}), "no kernel 'fast'"),
        (changed(m=[16, 1]), "the axis m does not rise of sparse-matmul"),
        (changed(weights=[1, 1]), "the axis weights does not rise"),
        (changed(levels=[0.5, 0.7, 1.2]), "outside 0..1"),
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
        small().break_even("sparse-matmul", 1, 100, "neon")


def test_unknown_kernel_is_an_error() -> None:
    with pytest.raises(ValueError, match="no kernel 'sparse-mat'"):
        small().predicted("sparse-mat", 1, 100, 0.9)
    with pytest.raises(ValueError, match="no break-even"):
        small().break_even("low-bit-matmul", 1, 100)


def case(m: int, weights: int, sparsity: float, speedup: float, kernel: str = "sparse-matmul") -> dict[str, Any]:
    return {"kernel": kernel, "isa": "avx2", "m": m, "weights": weights, "level": sparsity, "speedup": speedup}


def test_table_from_cases_takes_the_lowest_of_equal_sizes() -> None:
    cases = [case(1, 12, 0.5, 1.5), case(1, 12, 0.5, 1.2), case(1, 12, 0.9, 3), case(1, 12, 0.9, 4)]
    table = table_from_cases([*cases, case(9, 9, 0.7, 2, "sparse-conv")], margin=0.2, measured_on="a test")
    grid = table.kernels["sparse-matmul"]
    assert (grid.m, grid.weights, grid.levels) == ((1,), (12,), (0.5, 0.9))
    assert grid.speedup["avx2"].tolist() == [[[1.2, 3.0]]]
    assert table.kernels["sparse-conv"].speedup["avx2"].tolist() == [[[2.0]]]


def test_table_from_cases_with_a_gap_is_an_error() -> None:
    with pytest.raises(RecipeError, match="must cover a full grid"):
        table_from_cases([case(1, 6, 0.5, 1.5), case(4, 6, 0.9, 1.5)], margin=0.1, measured_on="")
