from __future__ import annotations

import ctypes
import platform

import pytest

from graphopt.runtime.library import kernel_library
from kernel_calls import Library, runs_here

X86 = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni")
ARM = ("scalar", "neon", "neon-dotprod")
KNOWN = X86 if platform.machine().lower() in {"x86_64", "amd64"} else ARM


@pytest.fixture(scope="session")
def library() -> Library:
    return Library(ctypes.CDLL(str(kernel_library())))


@pytest.fixture(params=KNOWN)
def isa(request: pytest.FixtureRequest) -> str:
    return runs_here(request.param)
