from __future__ import annotations

import ctypes
import platform

import pytest

from graphopt.runtime.library import isa_report
from kernel_builds import kernels_under_test
from kernel_calls import Library

X86 = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512gfni")
ARM = ("scalar", "neon", "neon-dotprod")
KNOWN = X86 if platform.machine().lower() in {"x86_64", "amd64"} else ARM


@pytest.fixture(scope="session")
def library() -> Library:
    return Library(ctypes.CDLL(str(kernels_under_test())))


@pytest.fixture(params=KNOWN)
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name not in isa_report(kernels_under_test()).supported:
        pytest.skip(f"this CPU does not run {name}")
    return name
