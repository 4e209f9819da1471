"""A bundle needs onnxruntime and nothing else: loaded in a process that can import nothing more, its sources built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from bundle_results import expected
from graphopt import demo

RUN = """
import runpy
import sys

sys.path.insert(0, sys.argv[1])
import numpy as np

bundle = runpy.run_path(sys.argv[2] + "/load.py")
with np.load(sys.argv[3]) as feed:
    outputs = bundle["load"](threads=2).run(None, dict(feed))
np.savez(sys.argv[4], *outputs)
print(" ".join(sorted({name.split(".")[0] for name in sys.modules} & {"graphopt", "onnx", "onnxruntime"})))
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Return a folder from which onnxruntime and numpy can be imported, and nothing else."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in ("onnxruntime", "numpy"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        home = Path(spec.origin).parent
        for each in (home, home.with_name(f"{name}.libs")):
            if each.exists():
                (folder / each.name).symlink_to(each, target_is_directory=True)
    return folder


def run_alone(bundle: Path, packages: Path, folder: Path) -> list[np.ndarray]:
    """Run the bundle's load.py from an empty folder on eight test images; return the outputs."""
    (folder / "empty").mkdir(exist_ok=True)
    with np.load(demo.TEST) as test:
        np.savez(folder / "feed.npz", image=test["image"][:8])
    command = [sys.executable, "-I", "-S", "-c", RUN, packages, bundle, folder / "feed.npz", folder / "out.npz"]
    done = subprocess.run(
        [str(each) for each in command], cwd=folder / "empty", env={}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["onnxruntime"]
    assert os.listdir(folder / "empty") == []  # noqa: PTH208 - names alone
    with np.load(folder / "out.npz") as outputs:
        return [outputs[name] for name in outputs.files]


def test_bundle_runs_where_only_onnxruntime_is_installed(bundle: Path, packages: Path, tmp_path: Path) -> None:
    (found,) = run_alone(bundle, packages, tmp_path)
    np.testing.assert_allclose(found, expected(bundle), rtol=1e-5, atol=1e-5)


def test_without_a_library_for_the_platform_the_fallback_is_loaded(
    bundle: Path, packages: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    shutil.rmtree(copy / "lib", ignore_errors=True)
    (found,) = run_alone(copy, packages, tmp_path)
    np.testing.assert_allclose(found, expected(bundle), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_library_built_from_the_bundles_sources_computes_the_same(bundle: Path, packages: Path, tmp_path: Path) -> None:
    kernels = json.loads((bundle / "manifest.json").read_text("utf-8"))["kernels"]
    if kernels is None:
        assert not (bundle / "src").exists()
        assert not (bundle / "lib").exists()
        return
    beside = Path(sys.executable).parent / "cmake"
    cmake = str(beside) if beside.exists() else shutil.which("cmake")
    if cmake is None or shutil.which("c++") is None:
        pytest.skip("cmake or a C++ compiler is not installed")
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (library,) = (copy / "lib" / kernels["platform"]).iterdir()
    library.unlink()
    for arguments in (["-S", copy / "src", "-B", tmp_path / "build"], ["--build", tmp_path / "build"]):
        done = subprocess.run([cmake, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    shutil.copy(tmp_path / "build" / library.name, library)
    (found,) = run_alone(copy, packages, tmp_path)
    np.testing.assert_allclose(found, expected(bundle), rtol=1e-5, atol=1e-5)
