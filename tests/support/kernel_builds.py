"""The kernels built from their sources, for this machine or another, and a host without Python that runs models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from graphopt.runtime.library import kernel_sources, library_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kernel_cases import Case

HERE = Path(__file__).parents[1] / "kernels"
TOOLCHAIN = HERE / "aarch64-linux-gnu.cmake"
ARM_COMPILER = "aarch64-linux-gnu-g++"
ARM_ROOT = "/usr/aarch64-linux-gnu"
NODE_PACKAGE = "onnxruntime-node@1.23.2"
"""The npm package that holds ONNX Runtime's library for 64-bit Arm."""


def command(*words: str | Path, **environment: str) -> str:
    """Run a command that must succeed; return what it wrote to stdout."""
    done = attempt(*words, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def attempt(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    texts = [str(each) for each in words]
    return subprocess.run(texts, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def need(*tools: str) -> None:
    """Skip the test where a tool is missing."""
    for each in tools:
        if shutil.which(each) is None and not (Path(sys.executable).parent / each).exists():
            pytest.skip(f"{each} is not installed")


def tool(name: str) -> str:
    """Return the tool of the virtual environment, else that of the system."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def build_kernels(folder: Path, *options: str) -> Path:
    """Copy GRAPHOPT_TEST_SOURCES, or the installed sources, into an empty folder and build; return the library."""
    need("cmake", "c++")
    shutil.copytree(
        os.environ.get("GRAPHOPT_TEST_SOURCES") or kernel_sources(),
        folder / "src",
        ignore=shutil.ignore_patterns("obs"),
    )
    command(tool("cmake"), "-S", folder / "src", "-B", folder / "build", *options)
    command(tool("cmake"), "--build", folder / "build", "--parallel", "2")
    return folder / "build" / library_name()


def objects(build: Path) -> dict[str, Path]:
    """Return the object files of a build by the path of their source, e.g. ``sparse_matmul/avx2``."""
    found = {}
    for path in build.rglob("*.cpp.o"):
        _, _, name = path.as_posix().partition("graphopt_kernels.dir/")
        found[name.removesuffix(".cpp.o")] = path
    return found


def wheel_runtime() -> Path:
    """Return the library of the onnxruntime that is installed here; its C interface is what a host needs."""
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    found = sorted((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.1*"))
    if not found:
        pytest.skip("the installed onnxruntime has no library of its own")
    return found[-1]


def arm_runtime(folder: Path) -> Path:
    """Return ONNX Runtime's library for 64-bit Arm Linux: GRAPHOPT_ARM64_ONNXRUNTIME, else out of the npm package.

    Args:
        folder: Where the package is kept between runs.
    """
    given = os.environ.get("GRAPHOPT_ARM64_ONNXRUNTIME")
    if given:
        return Path(given)
    library = folder / "package/bin/napi-v6/linux/arm64/libonnxruntime.so.1"
    if library.exists():
        return library
    need("npm", "tar")
    fetched = attempt("npm", "pack", NODE_PACKAGE, "--silent", "--pack-destination", folder)
    if fetched.returncode != 0:
        pytest.skip(f"npm does not give {NODE_PACKAGE}: {fetched.stderr[-200:]}")
    package = folder / fetched.stdout.split()[-1]
    command("tar", "-xzf", package, "-C", folder, library.relative_to(folder))
    package.unlink()
    return library


@dataclass(frozen=True)
class Host:
    """A program that runs models with a library of kernels.

    Attributes:
        program: The executable.
        library: The kernels it loads.
        runner: Words before the program, e.g. an emulator.
    """

    program: Path
    library: Path
    runner: tuple[str, ...] = ()

    def run(
        self, folder: Path, cases: Iterable[Case], *, threads: int = 1, isa: str = ""
    ) -> dict[str, list[np.ndarray]]:
        """Run all cases in one process; return the outputs by name of the case."""
        cases = list(cases)
        for case in cases:
            (folder / case.name).mkdir(parents=True)
            (folder / case.name / "model.onnx").write_bytes(case.model)
            for i, array in enumerate(case.feeds.values()):
                (folder / case.name / f"input{i}.bin").write_bytes(_tensor_bytes(array))
        folders = [folder / case.name for case in cases]
        said = command(*self.runner, self.program, self.library, str(threads), *folders, GRAPHOPT_ISA=isa)
        _, chosen, how, _ = said.split()
        assert (chosen, how) == (isa, "forced") or not isa, said
        return {
            each.name: [_tensor(path) for path in sorted(each.glob("output*.bin"), key=lambda path: int(path.stem[6:]))]
            for each in folders
        }

    def supported(self) -> tuple[str, ...]:
        """Return the instruction sets that run here."""
        return tuple(command(*self.runner, self.program, self.library, "1").split()[3].split(","))


def build_host(
    folder: Path, library: Path, runtime: Path, *, compiler: str = "c++", runner: tuple[str, ...] = ()
) -> Host:
    """Build the host against ONNX Runtime's library."""
    folder.mkdir(parents=True, exist_ok=True)
    linked = folder / "libonnxruntime.so.1"  # the name that the library gives itself
    linked.symlink_to(runtime)
    template = resources.files("graphopt.emit") / "templates" / "ort_host.h.txt"
    (folder / "ort_host.h").write_text(template.read_text("utf-8"), "utf-8")
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{folder}", f"-Wl,-rpath,{folder}")
    program = folder / "host"
    command(compiler, *flags, HERE / "host.cpp", "-o", program, linked, "-Wl,--allow-shlib-undefined", "-ldl")
    return Host(program, library, runner)


def _tensor_bytes(array: np.ndarray) -> bytes:
    head = np.array([helper.np_dtype_to_tensor_dtype(array.dtype), array.ndim], "<i4")
    return head.tobytes() + np.array(array.shape, "<i8").tobytes() + np.ascontiguousarray(array).tobytes()


def _tensor(path: Path) -> np.ndarray:
    data = path.read_bytes()
    kind, rank = np.frombuffer(data, "<i4", 2)
    shape = np.frombuffer(data, "<i8", rank, 8)
    return np.frombuffer(data, helper.tensor_dtype_to_np_dtype(int(kind)), offset=8 + 8 * rank).reshape(shape)


def worst(found: list[np.ndarray], wanted: Mapping[str, np.ndarray] | list[np.ndarray]) -> float:
    """Return the largest difference over the largest wanted value, over all outputs."""
    sought = list(wanted.values()) if not isinstance(wanted, list) else wanted
    assert len(found) == len(sought)
    errors = [0.0]
    for ours, theirs in zip(found, sought, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        if theirs.size:
            wide = theirs.astype(np.float64)
            errors.append(float(np.abs(ours - wide).max() / max(np.abs(wide).max(), 1e-30)))
    return max(errors)
