"""Where the library of custom-op kernels and its sources lie, and which instruction set it chose.

An editable install keeps the Python files in the checkout and the built library in site-packages, so both are looked
for along ``graphopt.__path__``, never beside this file.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import graphopt
from graphopt.errors import KernelError

_NAMES = {"win32": "graphopt_kernels.dll", "darwin": "libgraphopt_kernels.dylib"}
_REBUILD = "Run `make kernels` in a checkout, or reinstall graphopt."


@dataclass(frozen=True, slots=True)
class IsaReport:
    """Which instruction set the kernels use in this process.

    Attributes:
        chosen: One of ``supported``; kernels/base/isa.h says what each name stands for.
        forced: Whether ``GRAPHOPT_ISA`` asked for it.
        supported: Every set this CPU and this library run, the preferred last.
    """

    chosen: str
    forced: bool
    supported: tuple[str, ...]


def kernel_library() -> Path:
    """Return the path of the custom-op library that belongs to this installation.

    The environment variable ``GRAPHOPT_KERNEL_LIBRARY`` names another, for example one built with other flags.

    Raises:
        KernelError: The library is not there.
    """
    given = os.environ.get("GRAPHOPT_KERNEL_LIBRARY")
    if given:
        if Path(given).is_file():
            return Path(given)
        must = "It must be the path of a library of kernels."
        raise KernelError("GRAPHOPT_KERNEL_LIBRARY names no file", where=given, must=must, do="Correct it or unset it.")
    return _installed(Path("lib") / library_name(), "the library of custom-op kernels is missing")


def kernel_sources() -> Path:
    """Return the folder with the C++ sources of the kernels and the CMakeLists.txt that builds them.

    They are those the installed library was built from.

    Raises:
        KernelError: The folder is not there.
    """
    return _installed(Path("kernels_src") / "CMakeLists.txt", "the sources of the kernels are missing").parent


def library_name() -> str:
    """Return the file name of the library on this platform."""
    return _NAMES.get(sys.platform, "libgraphopt_kernels.so")


def isa_report(library: Path | None = None) -> IsaReport:
    """Ask the library which instruction set it uses; the answer is fixed for the process at the first use.

    Args:
        library: The library to ask; that of this installation by default.

    Raises:
        KernelError: The library is missing or does not load, or ``GRAPHOPT_ISA`` names an instruction set that is
            unknown or that this CPU does not run.
    """
    path = kernel_library() if library is None else library
    try:
        ask = ctypes.CDLL(os.fspath(path)).graphopt_isa_report
    except (OSError, AttributeError) as cause:
        what = f"the library of custom-op kernels does not load ({cause})"
        raise KernelError(what, where=str(path), must="It must be built for this platform.", do=_REBUILD) from cause
    ask.restype = ctypes.c_char_p
    answer = ask().decode()
    if answer.startswith("error: "):
        raise KernelError(answer.removeprefix("error: "))
    chosen, how, supported = answer.split()
    return IsaReport(chosen, how == "forced", tuple(supported.split(",")))


def _installed(relative: Path, what: str) -> Path:
    roots = [Path(root) for root in graphopt.__path__]
    for root in roots:
        path = root / relative
        if path.exists():
            return path
    looked = ", ".join(str(root / relative) for root in roots)
    raise KernelError(what, where=looked, must="It is built when graphopt is installed.", do=_REBUILD)
