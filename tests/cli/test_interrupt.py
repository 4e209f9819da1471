"""Ctrl-C in the middle of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SLOW_DATA = """
import pathlib, time
import numpy as np

def feeds():
    for index in range(40):
        yield {"x": np.zeros((1, 8), np.float32)}
        if index == 3:
            pathlib.Path("started").touch()
        if pathlib.Path("started").exists():
            time.sleep(0.2)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("verb", "output"), [("compile", "out"), ("quantize", "out.onnx")])
def test_interrupted_run_is_status_130_and_leaves_nothing(
    command: list[str], environment: dict[str, str], model: Path, tmp_path: Path, verb: str, output: str
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_DATA)
    before = {path.name for path in tmp_path.iterdir()}
    process = subprocess.Popen(
        [*command, verb, str(model), "-o", output, "--data", "slow:feeds"],
        cwd=tmp_path,
        env={
            **environment,
            "PYTHONPATH": f"{environment['PYTHONPATH']}{os.pathsep}{tmp_path}",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "interrupted: nothing was left half-written\n"
    assert out == ""
    assert {path.name for path in tmp_path.iterdir()} - before == {"started"}
