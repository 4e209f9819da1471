"""The sizes and levels that a cost table knows, and measuring all of them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from graphopt.analysis.cost_table import BITS, KERNELS, CostTable, table_from_cases
from graphopt.runtime.library import isa_report
from graphopt.tuning.alternatives import CONVOLUTIONS, MATMULS, POINTWISE
from graphopt.tuning.race import Draws, race
from graphopt.tuning.stacks import ConvSize, MatmulSize

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from graphopt.tuning.alternatives import Alternative
    from graphopt.tuning.stacks import Size

MARGIN = 0.2
"""How much faster than dense a kernel must be before a layer is lowered: layers of one size differ in their shape."""

_NARROWER = 4
_CHAINED = "-chained"

_BITS = {
    "matmul-nbits": (2, 4, 8),
    "matmul-nbits-128": (2, 4, 8),
    "dense-int8-matmul": (8,),
    "dense-int8-conv": (8,),
    "low-bit-matmul-ternary": (2,),
}
"""Bits that not every low-bit alternative has."""

Progress = Callable[[str, int, int], None]
"""Told what is being measured, how many sizes are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        rows: Rows of activations.
        matrices: Weights of matrix products, [k, n].
        maps: Sides of the square maps that are convolved.
        channels: Inputs and outputs of the convolutions with a window of 3 x 3.
        pointwise: Channels of the convolutions without a window, which lead to a quarter of them and back: most layers
            of that kind are narrow at one side, where they gain less than square ones.
        sparsities: Shares of zeros.
        bits: Bits of a weight.
        seconds: Wall time for all levels of an alternative at one size.
        layers: Layers with weights of their own in each model.
    """

    rows: tuple[int, ...]
    matrices: tuple[tuple[int, int], ...]
    maps: tuple[int, ...]
    channels: tuple[int, ...]
    pointwise: tuple[int, ...]
    sparsities: tuple[float, ...]
    bits: tuple[int, ...]
    seconds: float
    layers: int


QUICK = Plan(
    rows=(1, 16, 128),
    matrices=((64, 64), (384, 384), (768, 3072)),
    maps=(7, 14, 56),
    channels=(16, 64, 128),
    pointwise=(64, 256, 512),
    sparsities=(0.5, 0.7, 0.85, 0.95),
    bits=(1, 2, 3, 4, 8),
    seconds=0.05,
    layers=2,
)
"""A coarse grid, in one or two minutes."""

FULL = Plan(
    rows=(1, 4, 16, 64, 256),
    matrices=((64, 64), (128, 384), (384, 1536), (768, 3072), (2048, 4096)),
    maps=(7, 14, 28, 56),
    channels=(16, 64, 128, 256),
    pointwise=(32, 128, 256, 512, 1024),
    sparsities=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    bits=(1, 2, 3, 4, 8),
    seconds=0.3,
    layers=2,
)
"""The grid of the table of the package."""


def tune(plan: Plan = QUICK, *, only: Collection[str] = (), progress: Progress | None = None) -> CostTable:
    """Measure a cost table on this machine, for the instruction set that the kernels use in this process.

    Args:
        plan: What is measured.
        only: Names of kernels to measure; all if empty.
        progress: Told what is being measured.

    Raises:
        KernelError: The library of kernels does not load, or a result of a kernel is wrong.
    """
    chosen = isa_report().chosen
    with pinned():
        return table_from_cases(_cases(plan, only, chosen, progress), margin=MARGIN, measured_on=machine())


def machine() -> str:
    """Return the processor and the version of ONNX Runtime that a table was measured on."""
    return f"{_processor()}, onnxruntime {ort.__version__}, one thread"


def _cases(plan: Plan, only: Collection[str], isa: str, progress: Progress | None) -> Iterator[dict[str, Any]]:
    work = [
        (alternative, sizes)
        for sizes, alternatives in _sizes(plan)
        for alternative in alternatives
        if not only or alternative.kernel in only
    ]
    for done, (alternative, sizes) in enumerate(work):
        if progress:
            progress(f"{alternative.kernel} {sizes[0].weights} weights", done, len(work))
        draws = Draws(plan.layers)
        entries = [(alternative, level) for level in levels_of(alternative.kernel, plan)]
        for size in sizes:
            for timed in race(size, entries, draws, seconds=plan.seconds):
                case = {"isa": isa, "m": size.m, "weights": size.weights, "level": timed.level}
                for kernel in names_of(timed.kernel):
                    yield {**case, "kernel": kernel, "speedup": timed.speedup}


def _sizes(plan: Plan) -> Iterator[tuple[list[Size], Sequence[Alternative]]]:
    """Sizes that differ only in their rows, and what runs them."""
    for k, n in plan.matrices:
        yield [MatmulSize(m, k, n) for m in plan.rows], MATMULS
    for width in plan.channels:
        yield [ConvSize(3, width, side) for side in plan.maps], CONVOLUTIONS
    for width in plan.pointwise:
        yield [ConvSize(1, width, side, width // _NARROWER) for side in plan.maps], POINTWISE


def names_of(kernel: str) -> tuple[str, ...]:
    """Return the names that a measurement counts for.

    Whether a convolution that is lowered will be handed padded planes is only known when all are: it must be faster
    both ways.
    """
    return (kernel, kernel.removesuffix(_CHAINED)) if kernel.endswith(_CHAINED) else (kernel,)


def levels_of(kernel: str, plan: Plan) -> tuple[float, ...]:
    """Return the levels of a plan that a kernel has."""
    if KERNELS[kernel] == BITS:
        return tuple(float(bits) for bits in plan.bits if bits in _BITS.get(kernel, plan.bits))
    return plan.sparsities


@contextmanager
def pinned(cpus: int = 1) -> Iterator[None]:
    """Keep the calling thread, and the threads it starts, on so many CPUs; a system without affinity is left alone."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-cpus:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _processor() -> str:
    """The processor as the system names it; Linux tells family and model apart where clouds hide the name."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine()
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    parts = [found.get("model name", platform.machine())]
    parts += [f"{key.split()[-1]} {found[key]}" for key in ("cpu family", "model") if key in found]
    return " ".join(parts)
