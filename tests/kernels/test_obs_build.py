"""The library of solvers: what it exports, the same bits on every instruction set, and clean under the sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt.runtime.library import isa_report
from graphopt.solve.obs_library import solver_library

SOURCES = Path(__file__).parents[2] / "kernels"
SMALL = """
import hashlib, sys
import numpy as np
from graphopt.solve.obs import damped, removal_path
from graphopt.solve.patterns import Pattern
draw = np.random.default_rng(0)
inputs = draw.standard_normal((200, 90)) @ draw.standard_normal((90, 90))
inner, weight = damped(inputs.T @ inputs, 0.01), draw.standard_normal((9, 90))
found = hashlib.sha256()
for name in ("unstructured", "4x1", "1x4", "2:4"):
    path = removal_path(weight, inner, Pattern.parse(name), threads=2)
    found.update(path.order.tobytes() + path.losses.tobytes())
print(found.hexdigest())
"""


def command(*arguments: str | Path, **environment: str) -> str:
    words = [str(each) for each in arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    if not beside.exists() and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return str(beside) if beside.exists() else name


def test_it_exports_its_entry_alone() -> None:
    text = command(tool("nm"), "-D", "--defined-only", solver_library())
    assert {line.split()[-1] for line in text.splitlines()} == {"graphopt_obs_path"}


def test_every_instruction_set_gives_the_same_bits() -> None:
    found = {
        isa: command(sys.executable, "-c", SMALL, GRAPHOPT_ISA=isa, OPENBLAS_NUM_THREADS="1")
        for isa in isa_report().supported
    }
    assert len(set(found.values())) == 1, found


def test_an_instruction_set_that_is_unknown_is_an_error() -> None:
    words = [sys.executable, "-c", SMALL]
    environment = {**os.environ, "GRAPHOPT_ISA": "avx1024"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    assert "GRAPHOPT_ISA is 'avx1024'" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not (SOURCES / "obs").is_dir(), reason="made from a checkout only")
def test_with_sanitizers(tmp_path: Path) -> None:
    build = tmp_path / "build"
    command(tool("cmake"), "-S", SOURCES, "-B", build, "-DGRAPHOPT_SANITIZE=ON")
    command(tool("cmake"), "--build", build, "--parallel", "2", "--target", "graphopt_solvers")
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    driver = tmp_path / "paths"
    source = Path(__file__).with_name("obs_paths.cpp")
    command(tool("c++"), *flags, source, "-o", driver, build / solver_library().name, f"-Wl,-rpath,{build}")
    answered, refused = map(int, command(driver, "1", "3000").split())
    assert answered > 2000
    assert refused > 100
