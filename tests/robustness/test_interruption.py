"""Outputs that cannot be written, a disk that is full, Ctrl-C: nothing is left half-written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from bad_input import Ended, assert_only, assert_refused, command, environment, graphopt
from graphopt import demo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_output_that_exists_is_kept(run: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_text("precious")
    assert_refused(run("simplify", demo.CNN, "-o", tmp_path / "out.onnx"), "GO-U002", 2, "out.onnx", "--force")
    assert (tmp_path / "out.onnx").read_text() == "precious"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    for force in ([], ["--force"]):
        ended = run("compile", demo.CNN, "-o", tmp_path / "out", *force)
        assert_refused(ended, "GO-[UW]00[0-9]", 2, "out")
        assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"
    assert_only(tmp_path, ["out", "out.onnx"])


def test_file_where_the_folder_must_be_is_refused(run: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    for force in ([], ["--force"]):
        ended = run("compile", demo.CNN, "-o", tmp_path / "out", *force)
        assert_refused(ended, "GO-[UW]00[0-9]", 2, "out")
    assert_refused(run("compile", demo.CNN, "-o", tmp_path / "out" / "sub"), "GO-[UW]00[0-9]", 2, "out")
    assert (tmp_path / "out").read_text() == "precious"
    assert_only(tmp_path, ["out"])


def test_folder_where_the_file_must_be_is_refused(run: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for force in ([], ["--force"]):
        ended = run("simplify", demo.CNN, "-o", tmp_path / "out", *force)
        assert_refused(ended, "GO-[UW]00[0-9]", 2, "out")
    assert_only(tmp_path / "out", [])
    assert_only(tmp_path, ["out"])


def test_missing_folder_is_refused(run: Callable[..., Ended], tmp_path: Path) -> None:
    ended = run("simplify", demo.CNN, "-o", tmp_path / "no" / "out.onnx")
    assert_refused(ended, "GO-W001", 2, "no")
    assert_only(tmp_path, [])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")  # noqa: PTH110
def test_device_as_output_is_refused_and_stays_a_device(run: Callable[..., Ended]) -> None:
    ended = run("simplify", demo.CNN, "-o", "/dev/full", "--force")
    assert_refused(ended, "GO-[UW]00[0-9]", 2, "/dev/full")
    assert os.path.exists("/dev/full")  # noqa: PTH110
    assert not os.path.isfile("/dev/full")  # noqa: PTH113


def test_folder_without_permission_is_refused(run: Callable[..., Ended], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    try:
        assert_refused(run("simplify", demo.CNN, "-o", tmp_path / "out.onnx"), "GO-W001", 2)
    finally:
        tmp_path.chmod(0o700)
    assert_only(tmp_path, [])


@pytest.mark.parametrize(
    ("arguments", "output"),
    [(["simplify"], "out.onnx"), (["compile", "--recipe", "default"], "out")],
    ids=["file", "bundle"],
)
@pytest.mark.parametrize("limit", [0, 1000, 300_000])
def test_full_disk_leaves_nothing(tmp_path: Path, arguments: list[str], output: str, limit: int) -> None:
    """A limit on the size of files stands in for a full disk: writing fails halfway, as it does there."""
    verb, *options = arguments
    done = subprocess.run(
        command(verb, demo.CNN, "-o", tmp_path / output, *options),
        env=environment({"PYTHONDONTWRITEBYTECODE": "1"}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert_refused(Ended(done.returncode, done.stdout, done.stderr), "GO-W001", 2, output)
    assert_only(tmp_path, [])


@pytest.mark.parametrize("limit", [1000, 80_000])
def test_full_disk_is_not_blamed_on_the_model(tmp_path: Path, limit: int) -> None:
    """An int8 compilation lets the runtime write a model it optimized, in the folder for temporary files."""
    done = subprocess.run(
        command(
            "compile", demo.CNN, "-o", tmp_path / "out", "--recipe", "int8", "--data", demo.CALIBRATION, "--max-drop", 1
        ),
        env=environment({"PYTHONDONTWRITEBYTECODE": "1"}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert_refused(Ended(done.returncode, done.stdout, done.stderr), "GO-W001", 2, "Free space")
    assert_only(tmp_path, [])


def test_full_disk_keeps_what_force_would_replace(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_text("precious")
    done = subprocess.run(
        command("simplify", demo.CNN, "-o", tmp_path / "out.onnx", "--force"),
        env=environment({"PYTHONDONTWRITEBYTECODE": "1"}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert_refused(Ended(done.returncode, done.stdout, done.stderr), "GO-W001", 2)
    assert (tmp_path / "out.onnx").read_text() == "precious"
    assert_only(tmp_path, ["out.onnx"])


def test_reader_of_stdout_that_went_away_is_no_traceback(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        command("passes"), stdout=writing, stderr=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path
    )
    os.close(writing)
    _, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err


# Feeds that tell when they are read and then take their time: Ctrl-C meets a compilation that is certainly under way.
SLOW_FEEDS = """
import pathlib, time
import numpy as np

def feeds():
    for number in range(40):
        yield {"image": np.zeros((1, 1, 8, 8), np.float32)}
        pathlib.Path("under_way").touch()
        time.sleep(0.2)
"""


def interrupt(process: subprocess.Popen[str]) -> Ended:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, err)


def start(cwd: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment({"PYTHONDONTWRITEBYTECODE": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test runner in the background hands down an ignored SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


@pytest.mark.parametrize("recipe", ["int8", "sparse"])
def test_ctrl_c_during_compilation_ends_with_130_and_leaves_nothing(tmp_path: Path, recipe: str) -> None:
    (tmp_path / "slow.py").write_text(SLOW_FEEDS)
    process = start(tmp_path, "compile", demo.CNN, "-o", "out", "--recipe", recipe, "--data", "slow:feeds")
    deadline = time.monotonic() + 120
    while not (tmp_path / "under_way").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ended = interrupt(process)
    assert ended.status == 130, ended
    assert "interrupted" in ended.err
    assert "Traceback" not in ended.err, ended.err
    assert_only(tmp_path, ["slow.py", "under_way"])


@pytest.mark.slow
@pytest.mark.parametrize("tenths", range(2, 42, 2))
def test_ctrl_c_at_any_time_leaves_all_or_nothing(tmp_path: Path, tenths: int) -> None:
    process = start(tmp_path, "compile", demo.CNN, "-o", "out", "--recipe", "int8", "--data", demo.CALIBRATION)
    time.sleep(tenths / 10)
    ended = interrupt(process)
    left = [entry.name for entry in tmp_path.iterdir()]
    if ended.status == 0:
        assert left == ["out"]
        return
    assert ended.status in {130, -signal.SIGINT}, ended  # before Python runs our code, the signal ends it
    assert left in ([], ["out"]), left
    if left:
        assert graphopt("check", demo.CNN, tmp_path / "out" / "model.onnx", "--contract", "lossy").status == 0
        assert (tmp_path / "out" / "manifest.json").exists()
