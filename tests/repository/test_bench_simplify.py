"""The benchmark of simplification judges results rightly and writes what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # the benchmarks are no package of graphopt

from benchmarks import simplify_growth, simplify_judge, simplify_latency, simplify_peers, simplify_table  # noqa: E402
from benchmarks.simplify_values import difference, same_bits  # noqa: E402

ORIGINAL = """
    <ir_version: 8, opset_import: ["" : 17]>
    main (float[N,4] x, float[4] w = {1, 2, 3, 4}) => (float[M,4] y) {
      a = Identity(x)
      b = Mul(a, w)
      y = Relu(b)
    }
"""


@pytest.fixture
def original(tmp_path: Path) -> simplify_judge.Original:
    return simplify_judge.Original(written(tmp_path / "original.onnx", ORIGINAL), None)


def written(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(text), str(path))
    return path


def judged(original: simplify_judge.Original, text: str) -> simplify_judge.Verdict:
    return original.judge(written(original.path.with_name("result.onnx"), text))


def test_equal_result_with_fewer_nodes_is_valid(original: simplify_judge.Original) -> None:
    verdict = judged(original, ORIGINAL.replace("a = Identity(x)", "").replace("Mul(a", "Mul(x"))
    assert (original.nodes, verdict.nodes) == (3, 2)
    assert (verdict.equality, verdict.checker, verdict.interface, verdict.overriding) == ("=", "pass", "same", "kept")
    assert verdict.valid


@pytest.mark.parametrize(
    ("old", "new", "field", "said"),
    [
        ("Relu(b)", "Tanh(b)", "equality", "wrong"),
        ("Relu(b)", "Mul(b, b)", "equality", "wrong"),
        ("float[N,4] x", "float[1,4] x", "interface", "input x: 1[N,4] became 1[1,4]"),
        ("float[N,4] x", "float[K,4] x", "interface", "input x: 1[N,4] became 1[K,4]"),
        ("float[M,4] y", "float[M] y", "checker", "fails"),
        ("a = Identity(x)", "a = Identity(z)", "equality", "does not load"),
        ("float[M,4] y", "float[?,4] y", "interface", "output y: 1[M,4] became 1[?,4]"),
        ("y)", "y, float[N,4] b)", "interface", "outputs ['y'] became ['y', 'b']"),
    ],
    ids=["operator", "values", "fixed input", "renamed input", "rank", "undefined", "forgotten", "more outputs"],
)
def test_fault_is_found(original: simplify_judge.Original, old: str, new: str, field: str, said: str) -> None:
    assert old in ORIGINAL
    verdict = judged(original, ORIGINAL.replace(old, new))
    assert not verdict.valid
    assert str(getattr(verdict, field)).startswith(said)


def test_output_dimension_that_became_a_number_is_told_apart(original: simplify_judge.Original) -> None:
    verdict = judged(original, ORIGINAL.replace("float[M,4] y", "float[16,4] y"))
    assert verdict.interface == simplify_judge.REFINED
    assert simplify_judge.refines("1[?,4]", "1[batch,4]", numbers=False)
    assert not simplify_judge.refines("1[?,4]", "1[16,4]", numbers=False)
    assert not simplify_judge.refines("1[?,4]", "1[?,4,1]", numbers=True)
    assert not simplify_judge.refines("1[?,4]", "7[?,4]", numbers=True)


@pytest.mark.parametrize(
    ("inputs", "weight", "said"),
    [
        ("", "float[4] w = {1, 2, 3, 4}", "lost (1 of 1)"),
        (", float[4] w = {1, 2, 3, 4}", "float[4] v = {1, 2, 3, 4}", "ignored"),
    ],
    ids=["folded", "still an input, without effect"],
)
def test_weight_that_no_longer_overrides_is_found(
    original: simplify_judge.Original, inputs: str, weight: str, said: str
) -> None:
    name = weight.split()[1]
    verdict = judged(
        original,
        f"""
        <ir_version: 8, opset_import: ["" : 17]>
        main (float[N,4] x{inputs}) => (float[M,4] y) <{weight}> {{
          b = Mul(x, {name})
          y = Relu(b)
        }}
        """,
    )
    assert verdict.equality == "="
    assert verdict.overriding == said


def test_operators_of_one_runtime_are_not_standard(original: simplify_judge.Original) -> None:
    text = ORIGINAL.replace('"" : 17', '"" : 17, "com.microsoft" : 1').replace("Relu(b)", "com.microsoft.QuickGelu(b)")
    verdict = judged(original, text)
    assert verdict.domains == ["com.microsoft"]
    assert not verdict.valid


def test_nodes_of_every_scope_count_and_constants_do_not() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        main (bool c, float[N] x) => (float[N] y) {
          two = Constant <value = float {2}> ()
          y = If (c) <
            then_branch = t () => (float[N] u) { u = local.twice(x, two) },
            else_branch = e () => (float[N] v) { one = Constant <value = float {1}> ()  w = Mul(x, one)  v = Neg(w) }
          >
        }
        <domain: "local", opset_import: ["" : 17]>
        twice (a, b) => (o) { p = Mul(a, b)  o = Identity(p) }
    """)
    assert simplify_judge.count_nodes(proto) == 6


def test_values_are_compared_to_the_last_bit() -> None:
    zeros = [np.zeros(2, np.float32)]
    assert not same_bits(zeros, [-zeros[0]])
    assert same_bits([np.array([np.nan, 1])], [np.array([np.nan, 1])])
    assert difference(zeros, [-zeros[0]]) == 0
    assert difference([np.array([1, 2])], [np.array([1, 3])]) == float("inf")
    assert difference([np.array([1.0, np.inf])], [np.array([1.0, np.nan])]) == float("inf")
    assert difference([np.array([1.0, 2.0])], [np.array([1.0, 1.5])]) == 0.25
    assert difference([np.zeros((2, 0))], [np.zeros((0, 2))]) == float("inf")


def row(tool: str, nodes: int, **changes: Any) -> dict[str, Any]:
    fine = {"equality": "=", "checker": "pass", "interface": "same", "overriding": "none", "domains": [], "valid": True}
    return {"model": "m", "tool": tool, "original_nodes": 9, "nodes": nodes} | fine | changes


def test_table_picks_the_best_of_the_valid() -> None:
    rows = [
        row("onnxsim", 4, overriding="lost (1 of 1)"),
        row("onnxslim", 1, equality="wrong", valid=False),
        row("onnxscript", 5),
        row("ort-extended", 2),
        row("onnxsim>onnxslim", 3),
        row("polygraphy", 9, interface=simplify_judge.REFINED),
        {"model": "m", "tool": "graphsurgeon", "original_nodes": 9, "error": "exit 1"},
        row("graphopt", 3),
    ]
    assert (simplify_table.best(rows, chains=False) or {})["tool"] == "onnxsim"
    assert (simplify_table.best(rows, chains=False, strict=True) or {})["tool"] == "onnxscript"
    assert (simplify_table.best(rows, chains=True) or {})["tool"] == "onnxsim>onnxslim"
    text = simplify_table.node_table(rows, [item["tool"] for item in rows])
    heads, line = text.splitlines()[:2]
    assert [cell for cell in ("4=o", "1X", "5=", "2=", "9=r", "-", "3=", "-1") if cell not in line.split()] == []
    assert len(heads.split("  ")) > 10
    assert "Sums: best peer 4, best strict 5, best chain 3, ours 3\nBehind the best peer on: none" in text


def test_growth_is_an_exponent_of_nodes() -> None:
    timed = {"tool": "t", "peak_mb": 1.0, "nodes": 1}
    rows = [
        timed | {"size": 10, "original_nodes": 10, "cpu": 1.0},
        timed | {"size": 100, "original_nodes": 100, "cpu": 100.0},
        {"tool": "t", "size": 1000, "original_nodes": 1000, "error": "more than 9 CPU seconds"},
    ]
    cells = simplify_growth.exponents(rows)["t"]
    assert cells[1].endswith("exponent 2.00")
    assert cells[2] == "1000: more than 9 CPU seconds"


def test_time_is_measured_by_size_until_a_tool_fails(tmp_path: Path) -> None:
    files = [(size, written(tmp_path / f"{size}.onnx", ORIGINAL)) for size in (3, 30_000)]
    broken = tmp_path / "broken.onnx"
    onnx.save(onnx.parser.parse_model(ORIGINAL.replace("Relu(b)", "Relu(y)")), str(broken))
    runner = simplify_peers.Runner(None, tmp_path / "work", simplify_peers.Limits(60))
    rows = list(simplify_growth.time_rows(runner, [*files, (40_000, broken), (50_000, broken)], ["graphopt"], runs=1))
    assert [(found["size"], found.get("nodes")) for found in rows] == [(3, 2), (30_000, 2), (40_000, None)]
    assert rows[0]["cpu"] > 0
    assert rows[0]["valid"]
    assert "valid" not in rows[1]


def test_noise_of_a_ratio_is_what_was_seen_or_its_error() -> None:
    assert simplify_latency.spread([1.01, 0.96], [0.001, 0.002]) == pytest.approx(0.04)
    assert simplify_latency.spread([1.0], [0.05]) == pytest.approx(0.1)
    assert simplify_latency.standard_error(np.ones(9)) == 0
    assert simplify_latency.standard_error(np.array([1.0, 2.0, 3.0, 100.0])) == pytest.approx(1.2533 * 1.4826 / 2)


def test_failed_step_ends_a_chain(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    runner = simplify_peers.Runner(None, tmp_path / "work", simplify_peers.Limits(cpu_seconds=60))
    run = runner.run("graphopt>graphopt", broken)
    assert run.error is not None
    assert run.error.startswith("after graphopt: exit 1: graphopt.errors.")


def test_benchmark_runs_and_rows_of_the_same_environment_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import bench_simplify

    for name in ("one", "two"):
        (tmp_path / "assets" / "graphs").mkdir(parents=True, exist_ok=True)
        written(tmp_path / "assets" / "graphs" / f"{name}.onnx", ORIGINAL)
    out = tmp_path / "results" / "simplify.json"
    options = ["--assets", str(tmp_path / "assets"), "--out", str(out), "--repeats", "1", "--seconds", "0.01"]
    bench_simplify.main(["nodes", "latency", "--models", "one", "--keep", str(tmp_path / "kept"), *options])
    printed = capsys.readouterr().out
    assert "one: 3 -> graphopt 2 = valid" in printed
    assert "Sums:" in printed
    assert onnx.load(str(tmp_path / "kept" / "one.graphopt.onnx")).graph.node[-1].op_type == "Relu"
    bench_simplify.main(["nodes", "--models", "two", *options])
    found = json.loads(out.read_text())
    assert [(item["model"], item["nodes"], item["valid"]) for item in found["nodes"]] == [
        ("one", 2, True),
        ("two", 2, True),
    ]
    assert found["latency"][0]["results"]["graphopt"]["ratio"] > 0
    assert "one:" not in capsys.readouterr().out  # not asked for


def test_large_model_is_written_measured_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplify_growth, "WIDTH", 64)
    limits = simplify_peers.Limits(60, resident_mb=4000)
    runner = simplify_peers.Runner(None, tmp_path / "work", limits)
    found = list(simplify_growth.memory_rows(runner, ["graphopt"], tmp_path, 64 * 64 * 4 * 3 / 1e9))
    assert found[0]["weight_bytes"] == 64 * 64 * 4 * 3
    assert found[0]["nodes"] < found[0]["original_nodes"] == 36
    assert 0 < found[0]["anonymous_mb"] <= found[0]["peak_mb"]
    assert not (tmp_path / "large").exists()


def test_memory_above_the_limit_ends_a_tool(tmp_path: Path) -> None:
    source = written(tmp_path / "m.onnx", ORIGINAL)
    runner = simplify_peers.Runner(None, tmp_path / "work", simplify_peers.Limits(60, resident_mb=5))
    assert runner.run("graphopt", source).error == "more than 5 MB resident"


def test_wrong_part_is_refused() -> None:
    script = ROOT / "benchmarks" / "bench_simplify.py"
    done = subprocess.run([sys.executable, str(script), "speed"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the parts are nodes, time, memory, latency" in done.stderr
