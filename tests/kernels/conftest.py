from __future__ import annotations

import ctypes

import pytest

from graphopt.runtime.library import isa_report, kernel_library
from kernel_calls import Library


@pytest.fixture(scope="session")
def library() -> Library:
    return Library(ctypes.CDLL(str(kernel_library())))


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name not in isa_report().supported:
        pytest.skip(f"this CPU does not run {name}")
    return name
