"""slice-tables: the first rows of a table are sliced, not gathered by a list of their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
import pytest

from graphopt.errors import RunError
from graphopt.graph import read_model
from graphopt.passes.simplify.slice_tables import SliceTables
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import run, session
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable

CONSTANTS = "int64 k0 = {0}, int64 k1 = {1}, int64 k2 = {2}, int32 i0 = {0}, int32 i1 = {1}"
END = "s = Shape(x) n = Gather(s, k1)"


def text(nodes: str, *, table: str = "6, 4", opset: int = 17, inputs: str = "float[b, l, 4] x") -> str:
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    return f"{head} g ({inputs}, float[{table}] t) => (float[c, d, e] y) <{CONSTANTS}> {{ {nodes} }}"


def feed(b: int, length: int, rows: int = 6) -> dict[str, Any]:
    x = np.arange(b * length * 4, dtype=np.float32).reshape(b, length, 4)
    return {"x": x, "t": np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) / 7}


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("length", [0, 1, 6])
def test_rows_are_sliced(opset: int, length: int) -> None:
    source = text(f"{END} r = Range(k0, n, k1) p = Gather(t, r) y = Add(x, p)", opset=opset)
    model = read_model(onnx.parser.parse_model(source))
    after = model.copy()
    assert PassManager([SliceTables()], verify="fast").run(after).patches == 1
    assert PassManager([SliceTables()]).run(after.copy()).patches == 0
    found, expected = (run(session(each, optimize=False), feed(2, length))["y"] for each in (after, model))
    assert found.tobytes() == expected.tobytes()
    assert found.shape == expected.shape
    assert sorted(node.op for _, node in after.walk()) == ["Add", "Gather", "Shape", "Slice", "Unsqueeze"]


def test_another_axis_and_type(golden: Callable[[str], None]) -> None:
    nodes = f"{END} m = Cast<to = 6>(n) r = Range(i0, m, i1) p = Gather<axis = -1>(t, r) y = Mul(p, z)"
    source = text(nodes, inputs="float[b, l, 4] x, float[5, l] z", table="5, 64")
    golden(check_pass(SliceTables(), source.replace("float[c, d, e] y", "float[c, d] y")).text)


LIST = (
    "int64[1, 6] rows = {0, 1, 2, 3, 4, 5}, int64[6] flat = {0, 1, 2, 3, 4, 5}, int64[1] v0 = {0}, int64[1] v1 = {1}, "
)
PART = "s = Shape(x) n = Gather(s, v1)"


@pytest.mark.parametrize("length", [0, 1, 5, 6, 9])
@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ("c = Slice(rows, v0, n, v1) p = Gather(t, c) y = Neg(p)", ["Slice", "Unsqueeze", "Neg"]),
        ("c = Slice(flat, v0, n, v0) p = Gather(t, c) y = Unsqueeze(p, v0)", ["Slice", "Unsqueeze"]),
        ("c = Slice(flat, v1, n, v0, v1) p = Gather(t, c) y = Unsqueeze(p, v0)", ["Slice", "Unsqueeze"]),
    ],
)
def test_part_of_a_list_of_all_rows(nodes: str, left: list[str], length: int) -> None:
    source = text(f"{PART} {nodes}").replace("<int64 k0", f"<{LIST} int64 k0")
    before = read_model(onnx.parser.parse_model(source))
    after = before.copy()
    assert PassManager([SliceTables()]).run(after).patches == 1
    assert sorted(node.op for _, node in after.walk()) == sorted(["Shape", "Gather", *left])
    found, expected = (run(session(each, optimize=False), feed(2, length))["y"] for each in (after, before))
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("rows", "table"), [("{0, 1, 2, 3, 5, 4}", "6, 4"), ("{0, 1, 2, 3, 4, 5}", "7, 4"), ("{0, 1, 2, 3, 4, 5}", "m, 4")]
)
def test_other_lists_stay(rows: str, table: str) -> None:
    nodes = f"{PART} c = Slice(list, v0, n, v0) p = Gather(t, c) y = Unsqueeze(p, v0)"
    source = text(nodes, table=table).replace("<int64 k0", f"<{LIST} int64[6] list = {rows}, int64 k0")
    assert PassManager([SliceTables()]).run(read_model(onnx.parser.parse_model(source))).patches == 0


def test_more_rows_than_there_are_still_fail() -> None:
    before = read_model(onnx.parser.parse_model(text(f"{END} r = Range(k0, n, k1) p = Gather(t, r) y = Add(x, p)")))
    after = before.copy()
    assert PassManager([SliceTables()]).run(after).patches == 1
    for model in (before, after):
        with pytest.raises(RunError):
            run(session(model, optimize=False), feed(2, 7))


KEPT: dict[str, tuple[str, str]] = {
    "start": (f"{END} r = Range(k1, n, k1) p = Gather(t, r) q = Gather(x, k0) y = Add(x, p)", "6, 4"),
    "step": (f"{END} r = Range(k0, n, k2) p = Gather(t, r) y = Add(x, p)", "6, 4"),
    "indices are read": (
        f"{END} r = Range(k0, n, k1) p = Gather(t, r) h = Size(r) w = Cast<to = 1>(h) q = Mul(p, w) y = Add(x, q)",
        "6, 4",
    ),
    "nobody checks the rows": (f"{END} r = Range(k0, n, k1) p = Gather(t, r) y = Unsqueeze(p, v)", "6, 4"),
    "one row": (f"{END} r = Range(k0, n, k1) p = Gather(t, r) y = Add(x, p)", "1, 4"),
    "perhaps one row": (f"{END} r = Range(k0, n, k1) p = Gather(t, r) y = Add(x, p)", "m, 4"),
    "perhaps negative": (f"{END} o = Sub(n, k2) r = Range(k0, o, k1) p = Gather(t, r) y = Add(x, p)", "6, 4"),
}


@pytest.mark.parametrize("case", KEPT)
def test_other_rows_are_gathered(case: str) -> None:
    nodes, table = KEPT[case]
    source = text(nodes, table=table).replace("<int64 k0", "<int64[1] v = {0}, int64 k0")
    assert PassManager([SliceTables()]).run(read_model(onnx.parser.parse_model(source))).patches == 0
