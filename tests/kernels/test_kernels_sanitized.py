"""The kernels built with the address and undefined-behaviour sanitizers, on damaged weights of every operator.

With clang, libFuzzer looks further, guided by coverage; GRAPHOPT_FUZZ_SECONDS says how long for each operator.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from graphopt.solve.pack_sparse import pack_sparse
from kernel_builds import HERE, attempt, build_kernels, command, need
from kernel_calls import sparse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow
ROUNDS = 20000
SECONDS = int(os.environ.get("GRAPHOPT_FUZZ_SECONDS", "15"))
QUICK = ("-DGRAPHOPT_SANITIZE=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
FLAGS = ("-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-fno-sanitize-recover=all")


def sparse_matmul() -> list[bytes]:
    shapes = [(1, 1, 1.0, 128, 512), (60, 40, 0.3, 16, 12), (130, 33, 0.1, 128, 512), (20, 9, 0.0, 7, 4)]
    return [
        pack_sparse(sparse(k, n, density), k_block=k_block, panel_rows=panel_rows).tobytes()
        for k, n, density, k_block, panel_rows in shapes
    ]


SOUND: dict[str, Callable[[], list[bytes]]] = {"sparse_matmul": sparse_matmul}
"""Packed weights of each operator, which are then damaged."""

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


def seeds(folder: Path, operator: str) -> list[Path]:
    folder.mkdir()
    made = []
    for i, data in enumerate(SOUND[operator]()):
        made.append(folder / f"seed{i}")
        made[-1].write_bytes(data)
    return made


def build(compiler: str, operator: str, library: Path, folder: Path, *flags: str) -> Path:
    source = HERE / "fuzz" / f"fuzz_{operator}.cpp"
    command(compiler, *FLAGS, *flags, source, "-o", folder / "fuzz", library, f"-Wl,-rpath,{library.parent}")
    return folder / "fuzz"


@operators
def test_damaged_weights(operator: str, sanitized: Path, tmp_path: Path) -> None:
    driver = build("c++", operator, sanitized, tmp_path, "-fsanitize=address,undefined")
    said = command(driver, "1", str(ROUNDS), *seeds(tmp_path / "seeds", operator))
    assert 0 < int(said.split()[0]) < ROUNDS, said


@operators
def test_damaged_weights_guided_by_coverage(operator: str, instrumented: Path, tmp_path: Path) -> None:
    target = build(
        "clang++", operator, instrumented, tmp_path, "-fsanitize=fuzzer,address,undefined", "-DGRAPHOPT_LIBFUZZER"
    )
    seeds(tmp_path / "seeds", operator)
    (tmp_path / "found").mkdir()
    limits = (f"-max_total_time={SECONDS}", "-max_len=65536", "-timeout=30", f"-artifact_prefix={tmp_path}/")
    done = attempt(target, tmp_path / "found", tmp_path / "seeds", *limits)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert "DONE" in done.stderr
    shutil.rmtree(tmp_path / "found")
