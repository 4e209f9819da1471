"""Every operator on processors that this machine has not, emulated by QEMU, in a real ONNX Runtime of that platform."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING

import pytest

from graphopt.runtime import session
from graphopt.runtime.library import kernel_library
from kernel_builds import (
    ARM_COMPILER,
    ARM_ROOT,
    HERE,
    TOOLCHAIN,
    Host,
    arm_runtime,
    build_host,
    build_kernels,
    command,
    need,
    objects,
    wheel_runtime,
    worst,
)
from kernel_cases import Case, all_cases
from kernel_seeds import SOUND, write_seeds

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

pytestmark = pytest.mark.slow
DOT_PRODUCT = re.compile(r"\s[su]u?dot\s")


@pytest.fixture(scope="module")
def wanted() -> dict[str, tuple[Case, list[np.ndarray]]]:
    """All cases with the outputs of this machine."""
    library = kernel_library()
    return {case.name: (case, session(case.model, kernels=library).run(None, case.feeds)) for case in all_cases()}


@pytest.fixture(scope="module")
def arm_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cmake", ARM_COMPILER)
    return build_kernels(tmp_path_factory.mktemp("arm64"), f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}")


@pytest.fixture(scope="module")
def arm_host(arm_library: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Host:
    need("qemu-aarch64")
    assert pytestconfig.cache is not None
    runtime = arm_runtime(pytestconfig.cache.mkdir("onnxruntime-node"))
    folder = tmp_path_factory.mktemp("arm64_host")
    runner = ("qemu-aarch64", "-L", ARM_ROOT)
    return build_host(folder, arm_library, runtime, compiler=ARM_COMPILER, runner=runner)


@pytest.fixture(scope="module")
def x86_host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    if platform.machine() != "x86_64":
        pytest.skip("x86-64 is emulated on x86-64 only")
    need("qemu-x86_64")
    folder = tmp_path_factory.mktemp("x86")
    return build_host(folder / "host", build_kernels(folder), wheel_runtime())


def check(host: Host, folder: Path, wanted: dict[str, tuple[Case, list[np.ndarray]]], **options: object) -> None:
    found = host.run(folder, [case for case, _ in wanted.values()], **options)  # type: ignore[arg-type]
    for name, (case, outputs) in wanted.items():
        assert worst(found[name], outputs) <= case.rounding, name


@pytest.mark.parametrize("isa", ["scalar", "neon", "neon-dotprod"])
def test_arm64(arm_host: Host, wanted: dict[str, tuple[Case, list[np.ndarray]]], isa: str, tmp_path: Path) -> None:
    assert arm_host.supported() == ("scalar", "neon", "neon-dotprod")
    check(arm_host, tmp_path, wanted, isa=isa, threads=2)


def test_arm64_without_dot_products_takes_neon(
    arm_host: Host, wanted: dict[str, tuple[Case, list[np.ndarray]]], tmp_path: Path
) -> None:
    old = Host(arm_host.program, arm_host.library, ("qemu-aarch64", "-cpu", "cortex-a57", "-L", ARM_ROOT))
    assert old.supported() == ("scalar", "neon")
    check(old, tmp_path, wanted)


@pytest.mark.parametrize("operator", SOUND)
def test_arm64_agrees_with_the_reference_on_odd_weights(arm_host: Host, operator: str, tmp_path: Path) -> None:
    library, program = arm_host.library, tmp_path / "fuzz"
    source = HERE / "fuzz" / f"fuzz_{operator}.cpp"
    command(ARM_COMPILER, "-std=c++17", "-O1", source, "-o", program, library, f"-Wl,-rpath,{library.parent}")
    said = command(*arm_host.runner, program, "5", "400", *write_seeds(tmp_path / "seeds", operator))
    assert 0 < int(said.split()[0]) < 400, said


def test_arm64_dot_products_stay_in_their_files(arm_library: Path) -> None:
    need("aarch64-linux-gnu-objdump")
    for name, path in objects(arm_library.parent).items():
        code = command("aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", path)
        in_file_of_its_own = name.rpartition("/")[2].partition("_")[0] == "dotprod"
        assert bool(DOT_PRODUCT.search(code)) == in_file_of_its_own, name


@pytest.mark.parametrize(("cpu", "isa"), [("Nehalem", "scalar"), ("Haswell", "avx2"), ("max", "avx2")])
def test_x86_of_other_generations(
    x86_host: Host, wanted: dict[str, tuple[Case, list[np.ndarray]]], cpu: str, isa: str, tmp_path: Path
) -> None:
    host = Host(x86_host.program, x86_host.library, ("qemu-x86_64", "-cpu", cpu))
    assert host.supported()[-1] == isa
    check(host, tmp_path, wanted)
