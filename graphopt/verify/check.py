"""Compares two models on the same feeds, under a contract: the job behind ``graphopt check``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from graphopt.errors import CheckFailedError
from graphopt.graph import Model, read_model
from graphopt.runtime import Feeds, input_specs, random_feeds, run
from graphopt.verify.bound import rounding_tolerances
from graphopt.verify.contract import Contract
from graphopt.verify.equality import Difference, Tolerance, compare, worst
from graphopt.verify.quality import Judge, Quality
from graphopt.verify.reference import open_unoptimized

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from graphopt.runtime.feeds import Source as FeedSource

    Source = Model | Path | str

COMPARED_AT_ONCE = 16
"""Feeds whose outputs are held at once; the trials of the rounding bound start their sessions once for all of them."""

RANDOM_SAMPLES = 16
"""Seeded random feeds that stand in where no data is given."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a comparison found.

    Attributes:
        contract: What had to hold.
        samples: Feeds compared.
        random: Whether the feeds were seeded random ones.
        outputs: The worst difference of every output over all feeds.
        quality: Agreement and SQNR, as a budget counts them.
        passed: Whether the contract, or the budget given, holds.
        reason: Why not; empty where it does.
    """

    contract: Contract
    samples: int
    random: bool
    outputs: tuple[Difference, ...]
    quality: Quality
    passed: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, for JSON."""
        return {
            "contract": self.contract.value,
            "samples": self.samples,
            "random": self.random,
            "passed": self.passed,
            "reason": self.reason,
            "outputs": [asdict(output) for output in self.outputs],
            "quality": {**asdict(self.quality), "drop": self.quality.drop, "unit": self.quality.unit},
        }


def check(
    reference: Source,
    candidate: Source,
    data: FeedSource | Feeds | None = None,
    *,
    contract: Contract | str = Contract.ROUNDING,
    seed: int = 0,
    max_drop: float | None = None,
) -> CheckResult:
    """Compare two models with the same inputs and outputs.

    Args:
        reference: The model that is right: a file, a bundle folder or a model.
        candidate: The other one.
        data: Feeds as `Feeds.open` takes them; None draws seeded random inputs that fit the declared shapes.
        contract: ``exact`` is bitwise, ``rounding`` holds the bound that rounding derives from the reference, ``lossy``
            prints figures and fails only beyond ``max_drop``.
        seed: Seeds the random inputs and the trials of the rounding bound.
        max_drop: Largest loss, in points of agreement or dB of SQNR below 40.

    Raises:
        CheckFailedError: The two have different inputs or outputs.
        GraphoptError: One of the models or the data cannot be used.
    """
    contract = Contract(contract)
    first, second = open_unoptimized(reference), open_unoptimized(candidate)
    _same_interface(first, second)
    specs = input_specs(first)
    feeds = random_feeds(specs, count=RANDOM_SAMPLES, seed=seed) if data is None else _open(data, specs)
    comparisons = []
    for some in batched(feeds, COMPARED_AT_ONCE):
        right = [run(first, feed) for feed in some]
        tolerances: list[dict[str, Tolerance]] | list[None] = [None] * len(some)
        if contract is Contract.ROUNDING:
            tolerances = rounding_tolerances(_in_memory(reference), some, right, seed=seed)
        for feed, outputs, allowed in zip(some, right, tolerances, strict=True):
            comparisons.append(compare(outputs, run(second, feed), contract, allowed))
    found = worst(comparisons)
    quality = Judge(reference, feeds).measure(candidate)
    reason = found.reason
    if not reason and max_drop is not None and quality.drop > max_drop:
        reason = f"it loses {quality.drop:.3f} {quality.unit} where {max_drop:g} are allowed"
    return CheckResult(contract, len(feeds), data is None, found.outputs, quality, not reason, reason)


def batched(feeds: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield the feeds in lists of at most ``size``, in order."""
    waiting = iter(feeds)
    while some := list(islice(waiting, size)):
        yield some


def _open(data: FeedSource | Feeds, specs: Any) -> Feeds:
    return data if isinstance(data, Feeds) else Feeds.open(data, specs)


def _in_memory(source: Source) -> Model:
    if isinstance(source, Model):
        return source
    from pathlib import Path

    path = Path(source)
    return read_model(path / "model.onnx" if path.is_dir() else path)


def _same_interface(first: Any, second: Any) -> None:
    for what, left, right in (
        ("inputs", first.get_inputs(), second.get_inputs()),
        ("outputs", first.get_outputs(), second.get_outputs()),
    ):
        here, there = ({each.name: each.type for each in side} for side in (left, right))
        if here != there:
            raise CheckFailedError(
                f"the {what} are {_listed(here)} and {_listed(there)}",
                must=f"Models that are compared have the same {what}, of the same types",
            )


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in values.items())
