"""Damaged weights of every operator: what is accepted runs without touching memory that is not its own.

The installed library between pages that nobody may touch; then builds with the address and undefined-behaviour
sanitizers. With clang, libFuzzer looks further, guided by coverage; GRAPHOPT_FUZZ_SECONDS says how long for each.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from graphopt.runtime.library import kernel_library
from kernel_builds import HERE, attempt, build_kernels, command, need
from kernel_seeds import SOUND, write_seeds

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 20000
SECONDS = int(os.environ.get("GRAPHOPT_FUZZ_SECONDS", "15"))
QUICK = ("-DGRAPHOPT_SANITIZE=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
FLAGS = ("-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-fno-sanitize-recover=all")


operators = pytest.mark.parametrize("operator", SOUND)


def test_every_operator_is_here() -> None:
    assert {path.stem for path in (HERE / "fuzz").glob("*.cpp")} == {f"fuzz_{name}" for name in SOUND}


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kernels(tmp_path_factory.mktemp("sanitized"), *QUICK)


@pytest.fixture(scope="module")
def instrumented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("clang++")
    folder = tmp_path_factory.mktemp("instrumented")
    (folder / "empty.cpp").write_text('extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }')
    if attempt("clang++", "-fsanitize=fuzzer,address", folder / "empty.cpp", "-o", folder / "empty").returncode != 0:
        pytest.skip("clang has no libFuzzer")
    return build_kernels(folder, *QUICK, "-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_CXX_FLAGS=-fsanitize=fuzzer-no-link")


def build(compiler: str, operator: str, library: Path, folder: Path, *flags: str) -> Path:
    source = HERE / "fuzz" / f"fuzz_{operator}.cpp"
    command(compiler, *FLAGS, *flags, source, "-o", folder / "fuzz", library, f"-Wl,-rpath,{library.parent}")
    return folder / "fuzz"


@operators
def test_damaged_weights_between_fences(operator: str, tmp_path: Path) -> None:
    need("c++")
    driver = build("c++", operator, kernel_library(), tmp_path)
    said = command(driver, "2", "1000", *write_seeds(tmp_path / "seeds", operator))
    assert 0 < int(said.split()[0]) < 1000, said


@pytest.mark.slow
@operators
def test_damaged_weights_with_sanitizers(operator: str, sanitized: Path, tmp_path: Path) -> None:
    driver = build("c++", operator, sanitized, tmp_path, "-fsanitize=address,undefined")
    said = command(driver, "1", str(ROUNDS), *write_seeds(tmp_path / "seeds", operator))
    assert 0 < int(said.split()[0]) < ROUNDS, said


@pytest.mark.slow
@operators
def test_damaged_weights_guided_by_coverage(operator: str, instrumented: Path, tmp_path: Path) -> None:
    target = build(
        "clang++", operator, instrumented, tmp_path, "-fsanitize=fuzzer,address,undefined", "-DGRAPHOPT_LIBFUZZER"
    )
    write_seeds(tmp_path / "seeds", operator)
    (tmp_path / "found").mkdir()
    limits = (f"-max_total_time={SECONDS}", "-max_len=65536", "-timeout=30", f"-artifact_prefix={tmp_path}/")
    done = attempt(target, tmp_path / "found", tmp_path / "seeds", *limits)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert "DONE" in done.stderr
    shutil.rmtree(tmp_path / "found")


@pytest.mark.slow
def test_the_tests_of_all_kernels_with_sanitizers(sanitized: Path) -> None:
    """What they call in C is instrumented; Python is not, so the sanitizers' libraries are loaded first."""
    need("c++")
    libraries = [command("c++", f"-print-file-name=lib{name}.so").strip() for name in ("asan", "ubsan", "stdc++")]
    tests = [
        path for path in HERE.glob("test_*.py") if path.stem.endswith(("_kernels", "_blocks", "_validation", "_packed"))
    ]
    assert len(tests) >= 6
    environment = {"LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    done = attempt(sys.executable, *words, *tests, GRAPHOPT_KERNEL_LIBRARY=str(sanitized), **environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
