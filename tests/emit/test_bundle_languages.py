"""A bundle's snippets where nothing of graphopt is: C++ with a compiler and ONNX Runtime's library, Python in a new
virtual environment, C# compiled against the few declarations it needs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bundle_results import expected, images
from kernel_builds import attempt, command, need, wheel_runtime

if TYPE_CHECKING:
    from pathlib import Path

DRIVER = """
#define main signature
#include "load.cpp"
#undef main
#include <fstream>
#include <iterator>

int main(int, char** words) {
  const auto session = load(words[1], 2);
  std::ifstream file(words[2], std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  ort_host::Tensor image;
  image.dims = {8};
  for (size_t i = 1; i < session->inputs()[0].dims.size(); ++i) image.dims.push_back(session->inputs()[0].dims[i]);
  image.bytes.assign(bytes.begin(), bytes.end());
  const auto outputs = session->run({image});
  const std::string made(outputs[0].bytes.begin(), outputs[0].bytes.end());
  std::ofstream(words[3], std::ios::binary) << made;
  return 0;
}
"""

RUN = """
import runpy
import sys
import numpy as np
session = runpy.run_path(sys.argv[1] + "/load.py")["load"](2)
np.save(sys.argv[3], session.run(None, {"image": np.load(sys.argv[2])})[0])
"""

DECLARED = """
namespace Microsoft.ML.OnnxRuntime
{
    public class SessionOptions
    {
        public int IntraOpNumThreads { get; set; }
        public void RegisterCustomOpLibrary(string libraryPath) { }
    }
    public class InferenceSession
    {
        public InferenceSession(string modelPath, SessionOptions options) { }
    }
}
"""


def compiled(bundle: Path, folder: Path, source: Path) -> Path:
    """Build a source beside the snippets, as the snippet says."""
    need("c++")
    (folder / "runtime").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "runtime" / name).symlink_to(wheel_runtime())
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{bundle}")
    linked = (f"-L{folder / 'runtime'}", "-lonnxruntime", f"-Wl,-rpath,{folder / 'runtime'}")
    command("c++", *flags, source, "-o", folder / "load", *linked)
    return folder / "load"


def run_with_nothing(*words: str | Path, folder: Path) -> str:
    """Run a command without an environment, from an empty folder."""
    (folder / "empty").mkdir()
    texts = [str(each) for each in words]
    done = subprocess.run(texts, cwd=folder / "empty", env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_cpp_computes_the_same(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "drive.cpp").write_text(DRIVER, "utf-8")
    (tmp_path / "in").write_bytes(images().tobytes())
    run_with_nothing(
        compiled(bundle, tmp_path, tmp_path / "drive.cpp"), bundle, tmp_path / "in", tmp_path / "out", folder=tmp_path
    )
    wanted = expected(bundle)
    found = np.fromfile(tmp_path / "out", np.float32).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_cpp_without_a_library_for_the_platform_takes_the_fallback(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    shutil.rmtree(copy / "lib", ignore_errors=True)
    said = run_with_nothing(compiled(copy, tmp_path, copy / "load.cpp"), copy, folder=tmp_path)
    assert said.splitlines()[0] == "input  image, rank 4"
    done = attempt(tmp_path / "load", tmp_path)
    assert done.returncode == 1
    assert "onnx" in done.stderr


@pytest.mark.slow
def test_python_in_a_new_environment_computes_the_same(
    bundle: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.getbasetemp() / "onnxruntime_alone"
    if not home.exists():
        command(sys.executable, "-m", "venv", home)
        fetched = attempt(home / "bin" / "python", "-m", "pip", "install", "-q", "onnxruntime")
        if fetched.returncode != 0:
            shutil.rmtree(home)
            pytest.skip(f"pip does not give onnxruntime: {fetched.stderr[-200:]}")
    np.save(tmp_path / "in.npy", images())
    files = (bundle, tmp_path / "in.npy", tmp_path / "out.npy")
    run_with_nothing(home / "bin" / "python", "-I", "-c", RUN, *files, folder=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected(bundle), rtol=1e-5, atol=1e-5)


def test_csharp_compiles(bundle: Path, tmp_path: Path) -> None:
    if shutil.which("mcs") is None:
        pytest.skip("mcs (Debian's mono-mcs) is not installed")
    (tmp_path / "declared.cs").write_text(DECLARED, "utf-8")
    command("mcs", "-target:library", f"-out:{tmp_path / 'bundle.dll'}", tmp_path / "declared.cs", bundle / "load.cs")
