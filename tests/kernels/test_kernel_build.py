"""The sources that travel with the package: they build alone, and wide instructions stay in their files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt.runtime.library import isa_report, kernel_library, kernel_sources, library_name
from graphopt.solve.pack_sparse import pack_sparse
from kernel_calls import sparse
from kernel_models import model

WIDE_FILES = {"avx2.cpp", "avx512.cpp"}


def command(*arguments: str | Path) -> str:
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def need(*tools: str) -> None:
    beside = Path(sys.executable).parent
    for tool in tools:
        if shutil.which(tool) is None and not (beside / tool).exists():
            pytest.skip(f"{tool} is not installed")


def tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cmake", "c++")
    folder = tmp_path_factory.mktemp("kernels")
    shutil.copytree(kernel_sources(), folder / "src")
    command(tool("cmake"), "-S", folder / "src", "-B", folder / "build")
    command(tool("cmake"), "--build", folder / "build", "--parallel", "2")
    return folder / "build"


def objects(build: Path) -> dict[str, Path]:
    return {path.name.removesuffix(".o"): path for path in build.rglob("*.cpp.o")}


def test_sources_build_alone_and_give_the_same_exports(built: Path) -> None:
    need("nm")
    exports = {
        library: {line.split()[-1] for line in command("nm", "-D", "--defined-only", library).splitlines()}
        for library in (built / library_name(), kernel_library())
    }
    ours, installed = exports.values()
    assert ours == installed
    assert ours == {
        "RegisterCustomOps",
        "graphopt_isa_report",
        "graphopt_sparse_matmul_check",
        "graphopt_sparse_matmul_f32",
    }


def test_sources_are_those_of_the_checkout_or_wheel() -> None:
    names = {path.relative_to(kernel_sources()).as_posix() for path in kernel_sources().rglob("*") if path.is_file()}
    assert {"CMakeLists.txt", "README.md", "base/ort_abi.h", "sparse_matmul/op.cpp"} <= names
    assert all(name.endswith((".cpp", ".h", ".txt", ".md")) for name in names)


def test_library_needs_only_the_system(built: Path) -> None:
    need("objdump")
    text = command("objdump", "-p", built / library_name())
    needed = {line.split()[1].split(".so")[0] for line in text.splitlines() if line.strip().startswith("NEEDED")}
    assert needed <= {"libc", "libm", "libstdc++", "libgcc_s", "ld-linux-x86-64"}


def test_baseline_objects_hold_no_wide_instruction(built: Path) -> None:
    need("objdump")
    if isa_report().supported == ("scalar",):
        pytest.skip("this platform has only the baseline")
    checked = 0
    for name, path in objects(built).items():
        code = command("objdump", "-d", "--no-show-raw-insn", path)
        assert ("%zmm" in code) == (name == "avx512.cpp"), name
        if name not in WIDE_FILES:
            assert "%ymm" not in code, name
            assert "%k1" not in code, name
            assert "\tvmov" not in code, f"{name} uses the VEX encoding"
            checked += 1
    assert checked >= 6


def test_wide_objects_share_no_function_with_others(built: Path) -> None:
    need("nm")
    for name in WIDE_FILES & set(objects(built)):
        symbols = [line.split() for line in command("nm", "-C", "--defined-only", objects(built)[name]).splitlines()]
        shared = [" ".join(parts[2:]) for parts in symbols if parts[1] not in "tbdr"]
        assert shared == [f"graphopt::sparse_matmul::{name.removesuffix('.cpp')}_kernels()"], (
            "only the entry may be visible: an inline function compiled here could replace the baseline's copy"
        )


def test_inner_loop_keeps_its_sums_in_registers(built: Path) -> None:
    need("objdump")
    if "avx512.cpp" not in objects(built):
        pytest.skip("no AVX-512 on this platform")
    lines = command("objdump", "-d", "--no-show-raw-insn", objects(built)["avx512.cpp"]).splitlines()
    fused = [i for i, line in enumerate(lines) if "vfmadd" in line and "%zmm" in line]
    assert len(fused) > 20
    spilled = [
        lines[j]
        for i in fused
        for j in range(i - 3, min(i + 4, len(lines)))
        if "vmova" in lines[j] and "zmm" in lines[j] and "(%rsp)" in lines[j]
    ]
    assert not spilled, spilled


@pytest.mark.slow
def test_damaged_blobs_with_sanitizers(tmp_path: Path) -> None:
    need("cmake", "c++")
    shutil.copytree(kernel_sources(), tmp_path / "src")
    build = tmp_path / "build"
    command(tool("cmake"), "-S", tmp_path / "src", "-B", build, "-DGRAPHOPT_SANITIZE=ON")
    command(tool("cmake"), "--build", build, "--parallel", "2")
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = Path(__file__).with_name("fuzz_packed.cpp")
    driver = tmp_path / "fuzz"
    command("c++", *flags, source, "-o", driver, build / library_name(), f"-Wl,-rpath,{build}")
    seeds = []
    shapes = [(1, 1, 1.0, 128, 512), (60, 40, 0.3, 16, 12), (130, 33, 0.1, 128, 512), (20, 9, 0.0, 7, 4)]
    for i, (k, n, density, k_block, panel_rows) in enumerate(shapes):
        seeds.append(tmp_path / f"seed{i}")
        seeds[-1].write_bytes(pack_sparse(sparse(k, n, density), k_block=k_block, panel_rows=panel_rows).tobytes())
    said = command(driver, "1", "20000", *seeds)
    accepted = int(said.split()[0])
    assert 0 < accepted < 20000, said


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.20.1", ""])
def test_op_runs_in_other_runtimes(version: str, tmp_path: Path) -> None:
    """The oldest ONNX Runtime that graphopt supports, and the newest pip finds."""
    python = tmp_path / "venv" / "bin" / "python"
    command(sys.executable, "-m", "venv", tmp_path / "venv")
    wanted = f"onnxruntime=={version}" if version else "onnxruntime"
    fetched = subprocess.run(
        [str(python), "-m", "pip", "install", "-q", wanted, "numpy"], capture_output=True, text=True, check=False
    )
    if fetched.returncode != 0:
        pytest.skip(f"pip could not install {wanted}: {fetched.stderr.strip().splitlines()[-1]}")

    w = sparse(300, 130, 0.2)
    x = np.random.default_rng(0).standard_normal((40, 300)).astype(np.float32)
    (tmp_path / "m.onnx").write_bytes(model(w, ["batch", 300], activation="relu"))
    np.savez(tmp_path / "a.npz", x=x, y=np.maximum(x.astype(np.float64) @ w, 0))
    body = f"""
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 2
options.register_custom_ops_library({str(kernel_library())!r})
made = ort.InferenceSession({str(tmp_path / "m.onnx")!r}, options)
assert made.get_outputs()[0].shape == ["batch", 130], made.get_outputs()[0].shape
a = np.load({str(tmp_path / "a.npz")!r})
print(ort.__version__, float(np.abs(made.run(None, {{"x": a["x"]}})[0] - a["y"]).max()))
"""
    got, error = command(python, "-c", body).split()
    assert got.startswith(version)
    assert float(error) < 1e-4
