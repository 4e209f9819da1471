"""What is published: a source archive that holds the passes once, and a wheel made from it that lacks nothing."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = {
    "graphopt/analysis/kernel_cost.json",
    "graphopt/demo/digits_cnn.onnx",
    "graphopt/demo/digits_transformer.onnx",
    "graphopt/demo/digits_calibration.npz",
    "graphopt/demo/digits_test.npz",
    "graphopt/kernels_src/CMakeLists.txt",
    "graphopt/kernels_src/base/ort_abi.h",
    "graphopt/lib/libgraphopt_kernels.so",
    "graphopt/lib/libgraphopt_solvers.so",
    "graphopt/py.typed",
    "graphopt/report/page.css",
    "graphopt/report/page.js",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "graphopt" / "passes").is_symlink(), reason="made from a checkout only"),
    pytest.mark.skipif(find_spec("scikit_build_core") is None, reason="scikit-build-core is not installed"),
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the source archive of this checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    code = "import sys; from scikit_build_core import build; build.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, check=True)
    (made,) = folder.glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel made from the unpacked archive, where there is no checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (sources,) = folder.iterdir()
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "made", "."]
    done = subprocess.run([str(each) for each in command], cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (folder / "made").glob("*.whl")
    return made


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as file:
        return [name for name in file.namelist() if not name.endswith("/")]


def test_archive_holds_the_passes_once_as_files(archive: Path) -> None:
    with tarfile.open(archive) as file:
        members = {member.name.partition("/")[2]: member for member in file.getmembers()}
    assert members["graphopt/passes/simplify/fold_constants.py"].isfile()
    assert not any(name.split("/")[0] == "passes" for name in members)


def test_only_graphopt_can_be_imported_from_the_wheel(wheel: Path) -> None:
    assert {name.split("/")[0] for name in names(wheel)} == {"graphopt", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}
    assert wheel.name.split("-")[2] == "py3"


def test_wheel_has_every_module_and_its_data_once(wheel: Path) -> None:
    found = names(wheel)
    assert len(found) == len(set(found))
    modules = {f"graphopt/{path.relative_to(ROOT / 'graphopt')}" for path in (ROOT / "graphopt").rglob("*.py")}
    modules |= {f"graphopt/passes/{path.relative_to(ROOT / 'passes')}" for path in (ROOT / "passes").rglob("*.py")}
    presets = {f"graphopt/rewrite/presets/{path.name}" for path in (ROOT / "graphopt/rewrite/presets").glob("*.yaml")}
    templates = {f"graphopt/emit/templates/{path.name}" for path in (ROOT / "graphopt/emit/templates").glob("*.txt")}
    assert presets
    assert templates
    assert NEEDED | modules | presets | templates <= set(found)


def test_command_line_is_installed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (entry,) = [name for name in file.namelist() if name.endswith("entry_points.txt")]
        assert "graphopt=graphopt.cli:main" in file.read(entry).decode().replace(" ", "")
