"""The bundle: a folder that holds a compiled model and everything needed to run it.

model.onnx (+ model.onnx.data)     the result
fallback.onnx (+ .data)            the same on standard operators only, where the result uses custom operators
lib/<os>-<arch>/                   the kernel library for this platform, where the result uses custom operators
src/                               its sources, with a CMakeLists.txt that needs a C++17 compiler alone
load.py, load.cpp, load.cs         how to load it; load.cpp runs it through ort_host.h, without a header of ONNX Runtime
recipe.yaml, report.json, report.html, manifest.json
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from graphopt.emit.staging import MANIFEST, staged_directory
from graphopt.runtime import platform_tag
from graphopt.runtime.library import kernel_library, kernel_sources

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.graph import Model

MANIFEST_VERSION = 1
KERNEL_DOMAIN = "ai.graphopt"

_MINIMUM_BY_OPSET = ((20, "1.17"), (21, "1.18"), (22, "1.21"), (23, "1.23"))
_MINIMUM_BY_IR = ((9, "1.17"), (10, "1.18"), (11, "1.23"))
"""First ONNX Runtime that reads an opset or IR version (its release notes name the ONNX release it ships)."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What goes into the folder.

    Attributes:
        model: The result.
        fallback: The same on standard operators only; None where the result has no custom operators.
        recipe: Text of recipe.yaml, complete enough to repeat the run.
        report_json: Text of report.json.
        report_html: Text of report.html.
        version: Of graphopt.
        runtime_version: Of the ONNX Runtime that verified the result.
    """

    model: Model
    fallback: Model | None
    recipe: str
    report_json: str
    report_html: str
    version: str
    runtime_version: str


def write_bundle(directory: Path, bundle: Bundle, *, force: bool = False) -> None:
    """Write the folder, whole or not at all.

    Raises:
        OutputExistsError: The folder exists and ``force`` is not set, or it is not a bundle.
        WriteError: The disk is full or the folder cannot be written.
    """
    with staged_directory(directory, force=force) as stage:
        bundle.model.save(stage / "model.onnx")
        uses_kernels = has_custom_operators(bundle.model)
        if uses_kernels:
            _add_kernels(stage)
        if bundle.fallback is not None:
            bundle.fallback.save(stage / "fallback.onnx")
        _add_snippets(stage, uses_kernels=uses_kernels)
        (stage / "recipe.yaml").write_text(bundle.recipe, encoding="utf-8")
        (stage / "report.json").write_text(bundle.report_json, encoding="utf-8")
        (stage / "report.html").write_text(bundle.report_html, encoding="utf-8")
        manifest = describe(stage, bundle, uses_kernels=uses_kernels)
        (stage / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def has_custom_operators(model: Model) -> bool:
    """Tell whether a node of any scope belongs to the kernels' domain."""
    return any(node.domain == KERNEL_DOMAIN for _, node in model.walk())


def describe(folder: Path, bundle: Bundle, *, uses_kernels: bool) -> dict[str, object]:
    """Return the manifest: versions, what the model needs, and the hash and size of every file."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    return {
        "manifest_version": MANIFEST_VERSION,
        "graphopt": bundle.version,
        "model": "model.onnx",
        "fallback": "fallback.onnx" if bundle.fallback is not None else None,
        "ir_version": bundle.model.ir_version,
        "opset_imports": dict(sorted(bundle.model.opset_imports.items())),
        "minimum_onnxruntime": minimum_runtime(bundle.model),
        "verified_with_onnxruntime": bundle.runtime_version,
        "kernels": {"domain": KERNEL_DOMAIN, "version": 1, "platform": platform_tag()} if uses_kernels else None,
        "files": files,
    }


def minimum_runtime(model: Model) -> str:
    """Return the first ONNX Runtime release that loads the model, as far as its opset and IR version tell.

    1.17 is the oldest that is supported (the custom-operator interface needs it).
    """
    wanted = [_first(_MINIMUM_BY_OPSET, model.opset_imports.get("", 1)), _first(_MINIMUM_BY_IR, model.ir_version)]
    return max(wanted, key=lambda text: tuple(int(part) for part in text.split(".")))


def _first(table: tuple[tuple[int, str], ...], version: int) -> str:
    return next((release for limit, release in table if version <= limit), "1.24")


def sha256_of(path: Path) -> str:
    """Return the hash of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _add_kernels(stage: Path) -> None:
    library = kernel_library()
    folder = stage / "lib" / platform_tag()
    folder.mkdir(parents=True)
    shutil.copyfile(library, folder / library.name)
    shutil.copytree(kernel_sources(), stage / "src", ignore=shutil.ignore_patterns("__pycache__", "build"))


def _add_snippets(stage: Path, *, uses_kernels: bool) -> None:
    folder = resources.files("graphopt.emit") / "templates"
    kind = "kernels" if uses_kernels else "standard"
    templates = {f"load.{language}": f"load_{kind}.{language}.txt" for language in ("py", "cpp", "cs")}
    for name, template in {**templates, "ort_host.h": "ort_host.h.txt"}.items():
        (stage / name).write_text((folder / template).read_text(encoding="utf-8"), encoding="utf-8")
