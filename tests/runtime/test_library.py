from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest

import graphopt
from graphopt.errors import KernelError
from graphopt.runtime.library import isa_report, kernel_library, kernel_sources, library_name

if TYPE_CHECKING:
    from pathlib import Path


def test_library_is_found_and_exports_what_the_runtime_looks_for() -> None:
    path = kernel_library()
    assert path.name == library_name()
    assert hasattr(ctypes.CDLL(str(path)), "RegisterCustomOps")


def test_sources_are_found() -> None:
    assert (kernel_sources() / "CMakeLists.txt").is_file()
    assert (kernel_sources() / "base" / "ort_abi.h").is_file()


def test_every_entry_of_the_package_path_is_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "second" / "lib").mkdir(parents=True)
    (tmp_path / "second" / "lib" / library_name()).touch()
    monkeypatch.setattr(graphopt, "__path__", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert kernel_library() == tmp_path / "second" / "lib" / library_name()


def test_missing_library_names_the_places_and_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(graphopt, "__path__", [str(tmp_path)])
    with pytest.raises(KernelError, match="GO-K001") as error:
        kernel_library()
    assert str(tmp_path / "lib" / library_name()) in str(error.value)
    assert "make kernels" in str(error.value)
    with pytest.raises(KernelError, match="the sources of the kernels are missing"):
        kernel_sources()


def test_another_library_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.so"
    monkeypatch.setenv("GRAPHOPT_KERNEL_LIBRARY", str(path))
    with pytest.raises(KernelError, match="GRAPHOPT_KERNEL_LIBRARY names no file"):
        kernel_library()
    path.touch()
    assert kernel_library() == path


def test_isa_report_of_a_file_that_is_no_library_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / library_name()
    path.write_bytes(b"not a library")
    with pytest.raises(KernelError, match="does not load"):
        isa_report(path)


def test_isa_report_lists_sets_in_rising_order() -> None:
    report = isa_report()
    order = ["scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "neon", "neon-dotprod"]
    assert list(report.supported) == [name for name in order if name in report.supported]
    assert report.chosen in report.supported
