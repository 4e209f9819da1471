"""One binary in every ONNX Runtime from 1.17 on.

``GRAPHOPT_TEST_RUNTIMES`` lists other versions, by blanks; ``newest`` is what pip finds. ``GRAPHOPT_TEST_VENVS`` is a
folder whose subfolders are virtual environments, named by version; those that are missing are made there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt.runtime import session
from graphopt.runtime.library import kernel_library
from kernel_builds import attempt, command
from kernel_cases import all_cases

pytestmark = pytest.mark.slow
VERSIONS = os.environ.get("GRAPHOPT_TEST_RUNTIMES", "1.17.3 1.20.1 newest").split()

RUN = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime
for folder in map(Path, sys.argv[2:]):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(sys.argv[1])
    made = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    with np.load(folder / "feed.npz") as feed, np.load(folder / "wanted.npz") as wanted:
        found = made.run(None, dict(feed))
        same = len(found) == len(wanted.files)
        for ours, name in zip(found, wanted.files):
            same = same and ours.dtype == wanted[name].dtype and np.array_equal(ours, wanted[name], equal_nan=True)
    if not same:
        sys.exit(f"{folder.name} differs")
print(onnxruntime.__version__)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All cases with the outputs of the onnxruntime that is installed here."""
    made = []
    for case in all_cases():
        folder = tmp_path_factory.mktemp(case.name)
        (folder / "model.onnx").write_bytes(case.model)
        np.savez(folder / "feed.npz", **case.feeds)  # type: ignore[arg-type]
        outputs = session(case.model, kernels=kernel_library(), threads=2).run(None, case.feeds)
        np.savez(folder / "wanted.npz", *outputs)
        made.append(folder)
    return made


@pytest.fixture
def python(version: str, tmp_path: Path) -> Path:
    home = Path(os.environ.get("GRAPHOPT_TEST_VENVS", tmp_path)) / version
    found = home / "bin" / "python"
    if not found.exists():
        command(sys.executable, "-m", "venv", home)
        numpy = "numpy<2" if version.startswith(("1.17.", "1.18.")) else "numpy"
        wanted = "onnxruntime" if version == "newest" else f"onnxruntime=={version}"
        fetched = attempt(found, "-m", "pip", "install", "-q", wanted, numpy)
        if fetched.returncode != 0:
            pytest.skip(f"pip does not give {wanted}: {fetched.stderr[-200:]}")
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_give_the_same_bits_in_every_runtime(version: str, python: Path, folders: list[Path]) -> None:
    said = command(python, "-c", RUN, kernel_library(), *folders).strip()
    assert said.startswith(version) or version == "newest"
