"""Feeds: how arrays become samples, what is refused and why, division, batches, streaming."""

from __future__ import annotations

import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from graphopt.errors import DataError
from graphopt.runtime import Feeds, InputSpec, random_feeds, session

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
IMAGE = (InputSpec("x", F32, ("batch", 3, 4)),)
TEXT = (InputSpec("ids", I64, ("batch", "seq")), InputSpec("mask", I64, ("batch", "seq")))
STATEFUL = (InputSpec("frames", F32, ("steps", 1, 5)), InputSpec("state", F32, (2, 1, 3)), InputSpec("rate", I64, ()))


def images(count: int, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(count * 12).reshape(count, 3, 4).astype(dtype)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# ------------------------------------------------------------------------------------------------- samples by rank


def test_equal_rank_makes_each_row_a_sample_with_its_batch_axis() -> None:
    feeds = Feeds.open({"x": images(5)}, IMAGE)
    assert len(feeds) == 5
    assert [feed["x"].shape for feed in feeds] == [(1, 3, 4)] * 5
    assert np.array_equal(np.concatenate([feed["x"] for feed in feeds]), images(5))


def test_one_axis_more_makes_each_slice_a_complete_feed() -> None:
    data = {
        "frames": np.zeros((4, 7, 1, 5), np.float32),
        "state": np.ones((4, 2, 1, 3), np.float32),
        "rate": np.arange(4),
    }
    feeds = list(Feeds.open(data, STATEFUL))
    assert [{k: v.shape for k, v in feed.items()} for feed in feeds] == [
        {"frames": (7, 1, 5), "state": (2, 1, 3), "rate": ()}
    ] * 4
    assert [int(feed["rate"]) for feed in feeds] == [0, 1, 2, 3]


def test_scalar_for_a_scalar_input_is_the_same_in_every_sample() -> None:
    specs = (InputSpec("x", F32, ("n", 2)), InputSpec("t", F32, ()))
    feeds = list(Feeds.open({"x": np.zeros((3, 2), np.float32), "t": np.float32(0.5)}, specs))
    assert len(feeds) == 3
    assert all(feed["t"] == np.float32(0.5) and feed["t"].shape == () for feed in feeds)


def test_fixed_batch_takes_that_many_rows_per_feed() -> None:
    feeds = list(Feeds.open({"x": np.arange(12, dtype=np.float32).reshape(6, 2)}, (InputSpec("x", F32, (2, 2)),)))
    assert [feed["x"].tolist() for feed in feeds] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]


def test_arrays_of_a_model_without_batch_axis_are_one_feed_when_they_fit_as_a_whole() -> None:
    data = {"frames": np.zeros((7, 1, 5), np.float32), "state": np.zeros((2, 1, 3), np.float32), "rate": np.int64(1)}
    (feed,) = Feeds.open(data, STATEFUL)
    assert feed["frames"].shape == (7, 1, 5)


def test_unknown_rank_takes_rows() -> None:
    assert len(Feeds.open({"x": images(3)}, (InputSpec("x", F32, None),))) == 3


def test_arrays_that_are_no_inputs_are_left_out() -> None:
    assert list(Feeds.open({"x": images(2), "labels": np.arange(2)}, IMAGE).first()) == ["x"]


def test_overridable_input_may_be_missing() -> None:
    specs = (*IMAGE, InputSpec("gain", F32, (1,), required=False))
    assert list(Feeds.open({"x": images(2)}, specs).first()) == ["x"]


# -------------------------------------------------------------------------------------------------------- sources


def test_npz_compressed_fortran_and_stored_give_the_same_samples(tmp_path: Path) -> None:
    stored = saved(tmp_path / "a.npz", x=images(6))
    np.savez_compressed(tmp_path / "b.npz", x=images(6))
    np.savez(tmp_path / "c.npz", x=np.asfortranarray(images(6)))
    first = [feed["x"].tobytes() for feed in Feeds.open(stored, IMAGE)]
    for other in ("b.npz", "c.npz"):
        assert [feed["x"].tobytes() for feed in Feeds.open(str(tmp_path / other), IMAGE)] == first


def test_folder_is_read_file_by_file_in_the_order_of_names(tmp_path: Path) -> None:
    saved(tmp_path / "2.npz", x=images(3)[2:])
    saved(tmp_path / "1.npz", x=images(3)[:2])
    feeds = Feeds.open(tmp_path, IMAGE)
    assert len(feeds) == 3
    assert np.array_equal(np.concatenate([feed["x"] for feed in feeds]), images(3))


def test_function_of_a_file_and_of_a_module_is_called_for_every_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "feeds_for_test.py").write_text(
        "import numpy as np\ndef make():\n"
        "    for i in range(3):\n        yield {'x': np.full((1, 3, 4), i, np.float32)}\n"
    )
    monkeypatch.chdir(tmp_path)
    for text in ("feeds_for_test:make", f"{tmp_path / 'feeds_for_test.py'}:make"):
        feeds = Feeds.open(text, IMAGE)
        for _ in range(2):
            assert [feed["x"].max() for feed in feeds] == [0, 1, 2]
        assert len(feeds) == 3
    assert str(tmp_path) not in sys.path


def test_iterator_that_can_be_read_once_is_read_again_from_disk() -> None:
    feeds = Feeds.open(({"x": np.full((1, 3, 4), i, np.float32)} for i in range(4)), IMAGE)
    for _ in range(2):
        assert [feed["x"].max() for feed in feeds] == [0, 1, 2, 3]


def test_dicts_of_an_iterable_may_hold_batches() -> None:
    assert len(Feeds.open([{"x": images(3)}, {"x": images(2)}], IMAGE)) == 5


def test_feeds_are_taken_as_they_are() -> None:
    feeds = Feeds.open({"x": images(2)}, IMAGE)
    assert Feeds.open(feeds, IMAGE) is feeds


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f4", "fortran_order": False, "shape": (3000, 3, 10000)}
        )
        block = np.zeros((10, 3, 10000), np.float32).tobytes()
        for _ in range(300):
            stream.write(block)  # 360 MB in all
    code = (
        "import resource, sys, numpy as np\nfrom graphopt.runtime import Feeds, InputSpec\n"
        "feeds = Feeds.open(sys.argv[1], (InputSpec('x', np.dtype(np.float32), ('n', 3, 10000)),))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "a, b = feeds.split()\nassert sum(1 for _ in a) == 2400 and sum(1 for _ in b) == 600\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown = subprocess.run([sys.executable, "-P", "-c", code, str(path)], capture_output=True, text=True, check=True)
    kibibytes = int(grown.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert kibibytes < 30_000
    assert resource.getpagesize() > 0


# ------------------------------------------------------------------------------------------------------- refusals

REFUSED: dict[str, tuple[dict[str, Any], tuple[InputSpec, ...], str]] = {
    "wrong name": ({"inputs": images(2)}, IMAGE, "Rename the array 'inputs' to 'x'"),
    "missing": ({"ids": np.zeros((2, 3), np.int64)}, TEXT, "no array for the input 'mask'"),
    "rank": ({"x": np.zeros((3,), np.float32)}, IMAGE, "4 axes, the first counting complete feeds, or 3"),
    "fixed size": ({"x": np.zeros((2, 3, 5), np.float32)}, IMAGE, "axis 2 of input 'x' has 5"),
    "symbol": (
        {"ids": np.zeros((2, 3), np.int64), "mask": np.zeros((2, 4), np.int64)}, TEXT, "'seq' is 3 in input 'ids' and 4"
    ),
    "counts": ({"ids": np.zeros((2, 3), np.int64), "mask": np.zeros((3, 3), np.int64)}, TEXT, "ids 2, mask 3"),
    "no sample": ({"x": np.zeros((0, 3, 4), np.float32)}, IMAGE, "not one sample"),
    "float to int": ({"ids": np.zeros((2, 3)), "mask": np.zeros((2, 3), np.int64)}, TEXT, "float64 values cannot"),
    "int64 to float": ({"x": images(2, np.int64)}, IMAGE, "int64 values may not be exact in float32"),
    "out of range": ({"q": np.array([[300]])}, (InputSpec("q", np.dtype(np.uint8), ("n", 1)),), "300 do not fit uint8"),
    "not a number": ({"x": np.where(images(2) == 17, np.nan, 0).astype("f4")}, IMAGE, "[0, 1, 1] is not a number"),
    "uneven rows": ({"q": np.zeros((3, 1), np.float32)}, (InputSpec("q", F32, (2, 1)),), "2 rows make one feed"),
    "text": ({"x": np.array([["a"]])}, (InputSpec("x", F32, ("n", 1)),), "cannot become float32"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_does_not_fit_is_refused_with_the_reason(case: str) -> None:
    data, specs, words = REFUSED[case]
    with pytest.raises(DataError) as caught:
        list(Feeds.open(data, specs))
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("have", "want"),
    [("uint16", "int64"), ("int64", "int32"), ("float64", "float32"), ("uint8", "float32"), ("bool", "int64")],
)
def test_values_that_stay_the_same_are_cast(have: str, want: str) -> None:
    feeds = Feeds.open({"x": images(2, have)}, (InputSpec("x", np.dtype(want), ("n", 3, 4)),))
    assert feeds.first()["x"].dtype == want
    assert np.array_equal(feeds.first()["x"], images(1, have).astype(want))


def test_nan_is_taken_on_request_and_infinity_always() -> None:
    data = images(1)
    data[0, 0, :2] = np.nan, -np.inf
    assert np.isnan(Feeds.open({"x": data}, IMAGE, allow_nan=True).first()["x"]).sum() == 1
    data[0, 0, 0] = np.inf
    assert np.isinf(Feeds.open({"x": data}, IMAGE).first()["x"]).sum() == 2


def damaged(path: Path, kind: str) -> Path:
    saved(path, x=images(40))
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        data = data[: len(data) // 2]
    elif kind == "random":
        data = bytearray(np.random.default_rng(0).bytes(500))
    elif kind == "flipped byte":
        data[len(data) // 2] ^= 0xFF
    elif kind == "empty":
        data = bytearray()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["truncated", "random", "flipped byte", "empty"])
def test_damaged_file_is_a_data_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError):
        list(Feeds.open(damaged(tmp_path / "d.npz", kind), IMAGE))


def test_header_that_promises_more_than_the_file_holds_allocates_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "h.npz", "w") as archive, archive.open("x.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3, 4)})
        stream.write(b"\0" * 48)
    with pytest.raises(DataError, match="needs 52776558133248 bytes and the file has 48"):
        Feeds.open(tmp_path / "h.npz", IMAGE)


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    np.savez(tmp_path / "p.npz", x=np.array([Trap()], dtype=object))
    with pytest.raises(DataError, match="Python objects"):
        Feeds.open(tmp_path / "p.npz", IMAGE)
    assert not (tmp_path / "executed").exists()


def test_missing_file_empty_folder_and_bad_function_are_data_errors(tmp_path: Path) -> None:
    sources = [str(tmp_path / "no.npz"), str(tmp_path), "no_such_module:f", "math:no_such", "math:pi"]
    for source in sources:
        with pytest.raises(DataError):
            Feeds.open(source, IMAGE)
    with pytest.raises(DataError, match="ZeroDivisionError"):
        Feeds.open(lambda: [1 / 0], IMAGE)  # type: ignore[list-item]
    with pytest.raises(DataError, match="dict of arrays"):
        Feeds.open([3], IMAGE)  # type: ignore[list-item]
    with pytest.raises(DataError, match="holds no feeds"):
        Feeds.open(3, IMAGE)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ division, batches


@pytest.mark.parametrize(("total", "judged"), [(2, 1), (3, 1), (20, 10), (32, 16), (40, 16), (100, 20), (101, 21)])
def test_split_holds_back_a_fifth_at_least_16_at_most_half(total: int, judged: int) -> None:
    feeds = Feeds.open({"x": images(total)}, IMAGE)
    calibration, judging = feeds.split()
    assert (len(calibration), len(judging)) == (total - judged, judged)
    first, second = ([feed["x"].tobytes() for feed in part] for part in (calibration, judging))
    assert (len(first), len(second)) == (total - judged, judged)
    assert not set(first) & set(second)
    assert set(first) | set(second) == {feed["x"].tobytes() for feed in feeds}
    assert second == [feed["x"].tobytes() for feed in feeds.split()[1]]


def test_split_of_a_split_stays_disjoint_and_take_spreads() -> None:
    feeds = Feeds.open({"x": images(100)}, IMAGE)
    rest, judging = feeds.split()
    inner, other = rest.split(0.5, 1)
    numbers = [{int(f["x"][0, 0, 0]) // 12 for f in part} for part in (inner, other, judging)]
    assert [len(n) for n in numbers] == [40, 40, 20]
    assert len(set().union(*numbers)) == 100
    assert [int(f["x"][0, 0, 0]) // 12 for f in feeds.take(4)] == [24, 49, 74, 99]
    assert feeds.take(1000) is feeds


def test_one_sample_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="one sample"):
        Feeds.open({"x": images(1)}, IMAGE).split()


def test_batches_join_samples_of_equal_shape() -> None:
    feeds = Feeds.open(
        [{"ids": np.zeros((n, s), np.int64), "mask": np.zeros((n, s), np.int64)} for n, s in [(3, 4), (2, 5)]], TEXT
    )
    assert [feed["ids"].shape for feed in feeds.batches(2)] == [(2, 4), (1, 4), (2, 5)]
    with pytest.raises(DataError, match="at least one"):
        next(feeds.batches(0))


def test_batches_never_join_where_an_input_has_no_batch_axis() -> None:
    data = {
        "frames": np.zeros((4, 1, 1, 5), np.float32),
        "state": np.ones((4, 2, 1, 3), np.float32),
        "rate": np.arange(4),
    }
    assert [feed["frames"].shape for feed in Feeds.open(data, STATEFUL).batches(4)] == [(1, 1, 5)] * 4


def test_sizes_that_run_are_not_sought_beyond_memory() -> None:
    """With four free axes a size of 1024 would be values of 4 GB."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[a, b, c, d] x) => (float[a, b, d] y)
        <int64[1] two = {2}> { y = Squeeze(x, two) }"""
    feeds = random_feeds(session(onnx.parser.parse_model(text).SerializeToString()), count=1)
    assert next(iter(feeds))["x"].size <= 1 << 25
