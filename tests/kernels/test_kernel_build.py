"""The sources that travel with the package: they build alone, and wide instructions stay in their files."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING

import pytest

from graphopt.runtime.library import kernel_library, kernel_sources
from kernel_builds import build_kernels, command, need, objects

if TYPE_CHECKING:
    from pathlib import Path

VEX = r"\tv[a-z]"
EVEX = r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2[0-9]|3[01])\b"
DOT_PRODUCT = r"vpdp(bu|ws)"
BYTES_ANYWHERE = r"gf2p8|vperm[it2]*b\b|vpmultishift"
FORBIDDEN = {
    "avx2": rf"{EVEX}|{DOT_PRODUCT}|gf2p8",
    "avxvnni": rf"{EVEX}|gf2p8",
    "avx512": rf"{DOT_PRODUCT}|{BYTES_ANYWHERE}",
    "avx512vnni": BYTES_ANYWHERE,
}
"""Instructions that a file may not hold, by its instruction set; all other files hold none beyond the baseline."""
LOOPS = re.compile(r"\tj[a-z]+ +([0-9a-f]+) ")

x86_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="about x86-64 instructions")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kernels(tmp_path_factory.mktemp("kernels"))


def instruction_set(name: str) -> str:
    """Return the set that a source is compiled for by its name, '' for the baseline."""
    first = name.rpartition("/")[2].partition("_")[0]
    return first if first in FORBIDDEN else ""


def code_of(path: Path) -> str:
    return command("objdump", "-d", "--no-show-raw-insn", path)


def test_sources_build_alone_and_give_the_same_exports(built: Path) -> None:
    need("nm")
    ours, installed = (
        {line.split()[-1] for line in command("nm", "-D", "--defined-only", library).splitlines()}
        for library in (built, kernel_library())
    )
    assert ours == installed
    text = "".join(path.read_text("utf-8") for path in kernel_sources().rglob("*.cpp"))
    declared = re.findall(r"^GRAPHOPT_EXPORT [\w* ]+?(\w+)\(", text, re.MULTILINE)
    assert {"RegisterCustomOps", "graphopt_isa_report"} <= ours
    assert ours == {name for name in declared if "_obs_" not in name}
    assert all(name.startswith("graphopt_") for name in ours - {"RegisterCustomOps"})


def test_sources_are_those_of_the_checkout_or_wheel() -> None:
    names = {path.relative_to(kernel_sources()).as_posix() for path in kernel_sources().rglob("*") if path.is_file()}
    assert {"CMakeLists.txt", "README.md", "base/ort_abi.h", "sparse_matmul/op.cpp"} <= names
    assert all(name.endswith((".cpp", ".h", ".txt", ".md")) for name in names)


def test_every_source_is_built(built: Path) -> None:
    sources = kernel_sources()
    names = {path.relative_to(sources).as_posix().removesuffix(".cpp") for path in sources.rglob("*.cpp")}
    folders = {name.rpartition("/")[0] for name in objects(built.parent)}
    missing = {name for name in names - set(objects(built.parent)) if name.rpartition("/")[0] in folders}
    foreign = ("neon", "dotprod") if platform.machine() == "x86_64" else tuple(FORBIDDEN)
    assert {name for name in missing if not name.rpartition("/")[2].startswith(foreign)} == set()


def test_library_needs_only_the_system(built: Path) -> None:
    need("objdump")
    text = command("objdump", "-p", built)
    needed = {line.split()[1].split(".so")[0] for line in text.splitlines() if line.strip().startswith("NEEDED")}
    assert needed <= {"libc", "libm", "libstdc++", "libgcc_s", "ld-linux-x86-64", "ld-linux-aarch64"}


@x86_only
def test_objects_hold_only_instructions_of_their_set(built: Path) -> None:
    need("objdump")
    found = objects(built.parent)
    assert {"sparse_matmul/avx2", "sparse_matmul/avx512", "base/register"} <= set(found)
    for name, path in found.items():
        isa = instruction_set(name)
        pattern = FORBIDDEN[isa] if isa else rf"{VEX}|{EVEX}|%ymm"
        wrong = [line for line in code_of(path).splitlines() if re.search(pattern, line)]
        assert not wrong, f"{name}: {wrong[:3]}"


def test_wide_objects_share_no_function_with_others(built: Path) -> None:
    need("nm")
    wide = {name: path for name, path in objects(built.parent).items() if instruction_set(name)}
    for name, path in wide.items():
        symbols = [line.split(maxsplit=2)[1:] for line in command("nm", "-C", "--defined-only", path).splitlines()]
        shared = [(kind, text) for kind, text in symbols if kind not in "tbdr"]
        own = f"graphopt::{name.rpartition('/')[0]}::"
        assert shared, name
        assert all(kind in "TRD" and text.startswith(own) for kind, text in shared), (
            f"{name} shares {shared}: an inline function compiled here could replace the baseline's copy"
        )


def inner_loops(lines: list[str]) -> list[list[str]]:
    """Return the bodies of the loops of a disassembly that hold no other jump."""
    at = {line.split(":")[0].strip(): i for i, line in enumerate(lines) if ":\t" in line}
    spans = []
    for i, line in enumerate(lines):
        jump = LOOPS.search(line)
        start = at.get(jump[1]) if jump else None
        if start is not None and start <= i:
            spans.append((start, i))
    bodies = (lines[start : end + 1] for start, end in spans)
    return [body for body in bodies if sum("\tj" in line for line in body) == 1]


def spills(body: list[str]) -> list[str]:
    return [line for line in body if re.search(r"\tv?mov[au]\S* .*%[yz]mm\d+.*\(%r[sb]p", line)]


def test_loops_are_found_with_what_they_spill() -> None:
    text = """
      10:\tmov    %rdi,%rax
      14:\tvmovaps %zmm1,0x40(%rsp)
      18:\tvfmadd231ps %zmm1,%zmm2,%zmm3
      1c:\tjne    14 <f+0x4>
      20:\tjmp    10 <f>
    """
    (body,) = inner_loops(text.splitlines())
    assert len(body) == 3
    assert len(spills(body)) == 1


@x86_only
def test_inner_loops_keep_their_sums_in_registers(built: Path) -> None:
    """GCC 12 puts arrays of vectors on the stack where a loop is not unrolled: several times slower.

    A sum or two that find no register cost little.
    """
    need("objdump")
    seen = 0
    for name, path in objects(built.parent).items():
        if not instruction_set(name):
            continue
        for body in inner_loops(code_of(path).splitlines()):
            sums = sum("vfmadd" in line or "vpdpbusd" in line for line in body)
            if sums < 4:
                continue
            seen += 1
            assert 4 * len(spills(body)) < sums, f"{name}: " + "\n".join(body)
    assert seen >= 8
