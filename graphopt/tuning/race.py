"""One size of layer: every alternative at every level against the dense operator, checked and then timed in turn."""

from __future__ import annotations

import gc
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.errors import KernelError
from graphopt.tuning.alternatives import DENSE, Weights
from graphopt.tuning.stacks import MatmulSize, Size, Stack
from graphopt.tuning.timing import Candidate, timings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.tuning.alternatives import Alternative

    Floats = NDArray[np.float32]

_KEPT_BYTES = 1 << 26  # of the weights of one alternative at one level; larger ones are made again
_EXACT_DB = 90.0
_ROUNDED_DB = 20.0
_WORST = 1e-3  # of the largest value: one wrong number among millions hardly moves the ratio in dB


@dataclass(frozen=True, slots=True)
class Timed:
    """One alternative at one level beside the dense operator of the same run.

    Attributes:
        kernel: Name in cost tables.
        level: Share of zeros or bits.
        size: Of the layer.
        dense_seconds: Median of one dense layer.
        seconds: Median of one layer of the alternative.
        spread: Median absolute deviation of its times.
        runs: Timed runs of each.
        kept: Share of the weights that are not zero, as drawn.
        stored_bytes: What the operator reads for one weight.
        sqnr_db: How near the results are to those of the dense operator on the same matrices.
    """

    kernel: str
    level: float
    size: Size
    dense_seconds: float
    seconds: float
    spread: float
    runs: int
    kept: float
    stored_bytes: int
    sqnr_db: float

    @property
    def speedup(self) -> float:
        """How many times faster than dense."""
        return self.dense_seconds / self.seconds


class Draws:
    """Random weights of the layers of a model, made once for all sizes that differ only in their rows.

    Args:
        layers: Layers in a model, each with weights of its own.
        seed: Of weights and activations.
    """

    def __init__(self, layers: int, seed: int = 0) -> None:
        self.layers = layers
        self._seed = seed
        self._shape: tuple[int, ...] = ()
        self._made: dict[tuple[str, float], list[Weights]] = {}

    def weights(self, alternative: Alternative, level: float, size: Size) -> list[Weights]:
        """Return the weights of one alternative at one level."""
        if size.weight_shape != self._shape:
            self._made.clear()
            self._shape = size.weight_shape
        key = (alternative.kernel, level)
        made = self._made.get(key)
        if made is None:
            rng = np.random.default_rng([self._seed, *self._shape, *alternative.kernel.encode(), round(level * 1000)])
            made = [alternative.make(rng, each, level) for each in layers_of(size, self.layers)]
            if self.layers * made[0].dense.nbytes <= _KEPT_BYTES:
                self._made[key] = made
        return made

    def activations(self, size: Size) -> Floats:
        """Return the input; that of convolutions is as a Relu leaves it."""
        x = np.random.default_rng([self._seed, *size.x_shape]).standard_normal(size.x_shape, dtype=np.float32)
        return x if isinstance(size, MatmulSize) else np.maximum(x, 0)


def race(
    size: Size,
    entries: Sequence[tuple[Alternative, float]],
    draws: Draws,
    *,
    seconds: float,
    threads: int = 1,
    untimed: int = 0,
) -> list[Timed]:
    """Time alternatives against the dense operator on layers of one size.

    Args:
        size: Of the layers.
        entries: Alternatives with their levels.
        draws: Where weights and activations come from.
        seconds: Wall time for all runs together.
        threads: Threads of each session.
        untimed: Runs at the beginning of each turn that do not count.

    Raises:
        KernelError: A result is wrong; nothing was timed.
    """
    x, layers = draws.activations(size), draws.layers
    candidates = [Candidate(stack_of(DENSE, draws.weights(DENSE, 0, size), size), x, threads=threads)]
    drawn: list[tuple[float, float, int]] = []
    for alternative, level in entries:
        weights = draws.weights(alternative, level, size)
        candidate = Candidate(stack_of(alternative, weights, size), x, threads=threads)
        exact = expected(x, [each.dense for each in weights], size)
        sqnr = _checked(candidate.results(), exact, alternative, size)
        share = np.count_nonzero(weights[0].dense) / size.weights
        drawn.append((sqnr, share, sum(part.nbytes for part in weights[0].stored)))
        candidates.append(candidate)
        del weights, exact
    gc.collect()
    times = timings(candidates, seconds=seconds, threads=threads, untimed=untimed)
    dense = statistics.median(times[0]) / layers
    found = []
    for (alternative, level), (ratio, kept, stored), mine in zip(entries, drawn, times[1:], strict=True):
        middle = statistics.median(mine)
        found.append(
            Timed(
                alternative.kernel,
                level,
                size,
                dense,
                middle / layers,
                statistics.median(abs(value - middle) for value in mine) / layers,
                len(mine),
                kept,
                stored,
                ratio,
            )
        )
    return found


def layers_of(size: Size, count: int) -> list[Size]:
    """Return the sizes of the layers of a stack: where outputs are fewer than inputs, every other one leads back."""
    back = size if isinstance(size, MatmulSize) else size.turned
    return [back if number % 2 else size for number in range(count)]


def stack_of(alternative: Alternative, weights: Sequence[Weights], size: Size) -> bytes:
    """Return the model: matrix products all read the input, convolutions follow each other."""
    stack = Stack(size.x_shape)
    if isinstance(size, MatmulSize):
        for each in weights:
            x = alternative.open(stack, "x", size)
            y = alternative.close(stack, alternative.write(stack, x, each, size), size)
            stack.output(y, (size.m, size.n))
        return stack.to_bytes()
    value = alternative.open(stack, "x", size)
    for each, at in zip(weights, layers_of(size, len(weights)), strict=True):
        value = alternative.write(stack, value, each, at)
    stack.output(alternative.close(stack, value, size), size.x_shape)
    return stack.to_bytes()


def expected(x: Floats, dense: Sequence[Floats], size: Size) -> list[Floats]:
    """Return what the layers give on dense operators."""
    if isinstance(size, MatmulSize):
        return [x @ each for each in dense]
    model = stack_of(DENSE, [Weights(each, (each,)) for each in dense], size)
    return Candidate(model, x).results()


def _checked(found: Sequence[Floats], exact: Sequence[Floats], alternative: Alternative, size: Size) -> float:
    """Return the lowest ratio of signal to error of any output in dB, or raise if it is too low."""
    lowest = float("inf")
    for y, wanted in zip(found, exact, strict=True):
        error = y.astype(np.float64) - wanted
        power, noise = float(np.vdot(wanted, wanted)), float(np.vdot(error, error))
        ratio = float(10 * np.log10(power / noise)) if noise else float("inf")
        far = alternative.exact and np.abs(error).max(initial=0) > _WORST * np.abs(wanted).max(initial=0)
        if not ratio >= (_EXACT_DB if alternative.exact else _ROUNDED_DB) or far:
            raise KernelError(
                f"a result is wrong: {ratio:.1f} dB of signal to error",
                where=f"{alternative.kernel} at {size}",
                must="It must agree with the dense operator; nothing was timed.",
                do="Please report this with the output of graphopt doctor",
            )
        lowest = min(lowest, ratio)
    return lowest
