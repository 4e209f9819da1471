"""graphopt calibrate, and what quantize does with what it wrote."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


@pytest.fixture
def cache(graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path) -> Path:
    path = tmp_path / "ranges.json"
    ran = graphopt_here("calibrate", wide[0], "--data", wide[1], "-o", path)
    assert ran.status == 0, ran.err
    return path


def test_ranges_are_printed_and_written(graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    ran = graphopt_here("calibrate", wide[0], "--data", wide[1], "-o", path, "--calibrator", "minmax", "--json")
    assert ran.status == 0, ran.err
    shown, written = json.loads(ran.out), json.loads(path.read_text())
    assert shown["samples"] == written["samples"] == 80
    assert [each["name"] for each in shown["tensors"]] == list(written["tensors"])
    assert all([each["low"], each["high"]] == each["seen"] for each in shown["tensors"])
    assert graphopt_here("calibrate", wide[0], "--data", wide[1], "-o", path).status == 2
    page = graphopt_here("calibrate", wide[0], "--data", wide[1], "-o", path, "--force").out
    assert "80 samples" in page
    assert "auto" in page


def grids(path: Path) -> dict[str, float]:
    """Return the scale of every tensor that is rounded."""
    graph = onnx.load(path).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {node.input[0]: float(values[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"}


def test_quantize_writes_the_cache_and_reads_it_without_data(
    graphopt_here: Run, wide: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = wide
    path, one, two = tmp_path / "ranges.json", tmp_path / "one.onnx", tmp_path / "two.onnx"
    ran = graphopt_here("quantize", model, "-o", one, "--data", data, "--calibration-cache", path)
    assert ran.status == 0, ran.err
    assert json.loads(path.read_text())["samples"] < 80, "what judges must not calibrate"
    ran = graphopt_here("quantize", model, "-o", two, "--calibration-cache", path)
    assert ran.status == 0, ran.err
    assert grids(one)
    assert grids(two) == grids(one)


def test_an_edited_range_reaches_the_model(
    graphopt_here: Run, wide: tuple[Path, Path], cache: Path, tmp_path: Path
) -> None:
    document = json.loads(cache.read_text())
    document["tensors"]["x"] |= {"low": -1.275, "high": 1.275}
    cache.write_text(json.dumps(document))
    out = tmp_path / "out.onnx"
    ran = graphopt_here("quantize", wide[0], "-o", out, "--calibration-cache", cache, "--calibrator", "minmax")
    assert ran.status == 0, ran.err
    assert grids(out)["x"] == pytest.approx(0.01)


def test_merged_shards_are_the_whole(graphopt_here: Run, wide: tuple[Path, Path], cache: Path, tmp_path: Path) -> None:
    model, data = wide
    with np.load(data) as arrays:
        x = arrays["x"]
    parts = []
    for number, part in enumerate((x[:40], x[40:])):
        np.savez(tmp_path / f"part{number}.npz", x=part)
        parts.append(tmp_path / f"part{number}.json")
        ran = graphopt_here("calibrate", model, "--data", tmp_path / f"part{number}.npz", "-o", parts[-1])
        assert ran.status == 0, ran.err
    merged = tmp_path / "merged.json"
    assert graphopt_here("calibrate", "--merge", *parts, "-o", merged).status == 0
    one, two = (json.loads(path.read_text()) for path in (merged, cache))
    assert one["samples"] == two["samples"]
    assert {name: (each["low"], each["high"]) for name, each in one["tensors"].items()} == {
        name: (each["low"], each["high"]) for name, each in two["tensors"].items()
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("calibrate", "{model}", "-o", "{out}"), "missing --data"),
        (("calibrate", "-o", "{out}"), "missing MODEL and --data"),
        (("calibrate", "{model}", "-o", "{out}", "--merge", "{cache}"), "MODEL has no use beside --merge"),
        (("calibrate", "--merge", "{cache}", "-o", "{out}", "--calibrator", "mse"), "--calibrator has no use"),
        (
            ("calibrate", "{model}", "--data", "{data}", "-o", "{out}", "--calibrator", "entropie"),
            "Did you mean entropy?",
        ),
        (("calibrate", "{model}", "--data", "{data}", "-o", "{out}", "--percentile", "0.99"), "a share in percent"),
        (("calibrate", "--merge", "{cache}", "{data}", "-o", "{out}"), "GO-D002"),
        (("quantize", "{model}", "-o", "{out}", "--calibration-cache", "{out}.json"), "no data to make it from"),
        (("quantize", "{model}", "-o", "{out}", "--calibration-cache", "{data}"), "GO-D002"),
        (("quantize", "{other}", "-o", "{out}", "--calibration-cache", "{cache}"), "the cache is of another model"),
    ],
)
def test_what_makes_no_sense_is_refused(
    graphopt_here: Run, wide: tuple[Path, Path], cache: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    other = onnx.load(wide[0])
    other.graph.node[0].output[0] = other.graph.node[1].input[0] = "renamed"
    onnx.save(other, tmp_path / "other.onnx")
    names = {
        "model": wide[0],
        "data": wide[1],
        "cache": cache,
        "out": tmp_path / "out",
        "other": tmp_path / "other.onnx",
    }
    ran = graphopt_here(*(argument.format(**names) for argument in arguments))
    assert ran.status == 2
    assert words in ran.err
    assert not (tmp_path / "out").exists()


def test_merging_caches_of_other_models_is_refused(graphopt_here: Run, cache: Path, tmp_path: Path) -> None:
    document = json.loads(cache.read_text())
    document["model"] = "another"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    ran = graphopt_here("calibrate", "--merge", cache, other, "-o", tmp_path / "merged.json")
    assert ran.status == 2
    assert "different models" in ran.err
    assert str(other) in ran.err
