"""The files for AVX-VNNI on processors that have only AVX-512 VNNI: the same code, encoded so that they run it."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING

import pytest

from graphopt.runtime.library import isa_report
from kernel_builds import HERE, attempt, build_kernels

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="about x86-64 instructions")
def test_avxvnni_files_pass_the_tests_of_their_operators(tmp_path: Path) -> None:
    supported = isa_report().supported
    if "avxvnni" in supported:
        pytest.skip("this CPU has AVX-VNNI: the other tests run these files as they are")
    if "avx512vnni" not in supported:
        pytest.skip("this CPU has no 8-bit dot products")
    library = build_kernels(tmp_path, f"-DGRAPHOPT_AVXVNNI_AS_AVX512={HERE / 'avxvnni_as_avx512.h'}")
    tests = [path for path in HERE.glob("test_*.py") if "low_bit" in path.name or "int8" in path.name]
    words = ("-m", "pytest", "-q", "-k", "avxvnni")
    done = attempt(sys.executable, *words, *tests, GRAPHOPT_KERNEL_LIBRARY=str(library), PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
