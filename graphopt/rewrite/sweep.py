"""One walk over the layers of a model that is being compressed: both models run once, from layer to layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from graphopt.analysis.layer_statistics import Segments, Sums, collect, column_norms, stream
from graphopt.analysis.layer_statistics.statistics import MATRIX_BYTES
from graphopt.rewrite.layer_stop import Stop, stages
from graphopt.solve.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from graphopt.analysis.layer_statistics import Batches, LayerStatistics, Observed, Reading
    from graphopt.graph import Model

Runner: TypeAlias = "Callable[[Model, Sequence[str]], Iterator[dict[str, Any]]]"


@dataclass(frozen=True, slots=True)
class Sweep:
    """One walk over a model: the data it runs on.

    Attributes:
        model: The model that is changed.
        dense: The model that it is measured against.
        batches: Complete feeds; none where there is no data.
        rows: Rows of input per batch and layer.
        seed: Decides which.
        known: Statistics that were collected before: layers for which they hold are solved on them, the others on the
            data, where there is any.
        last: Number of the last batch.
    """

    model: Model
    dense: Model
    batches: Batches | tuple[()]
    rows: int
    seed: int
    known: LayerStatistics | None = None
    last: int = -1

    def observe(self, stops: Sequence[Stop]) -> dict[str, Sums]:
        """Return what all these layers read in the model as it is now (x is z), by ``stop.key``; one run over the data.

        Memory holds the sums of all of them at once; `observed` bounds it. Layers that cannot be observed are missing.
        """
        known = {stop.key: sums for stop in stops if (sums := self._known(stop)) is not None}
        rest = [stop for stop in stops if stop.key not in known]
        readings = [each for stop in rest for each in (*stop.readings, *stop.ahead)]
        if not readings or not self.batches:
            return known
        names = list(dict.fromkeys(reading.tensor for reading in readings))
        with one_thread():
            values = ((found, found) for found in stream(self.model, names, self.batches))
            return known | collect(values, readings, rows=self.rows, seed=self.seed, last=self.last)

    def observed(self, stops: Sequence[Stop], most: int = MATRIX_BYTES) -> Iterator[tuple[Stop, Sums]]:
        """Yield what `observe` returns layer by layer, in as many runs as it takes for sums of ``most`` bytes each."""
        group: list[Stop] = []
        held = 0
        for stop in stops:
            size = 0 if stop.wide else 16 * stop.form.groups * stop.form.columns(stop.dense.shape) ** 2
            if group and held + size > most:
                found = self.observe(group)
                yield from ((each, found[each.key]) for each in group if each.key in found)
                group, held = [], 0
            group.append(stop)
            held += size
        found = self.observe(group)
        yield from ((each, found[each.key]) for each in group if each.key in found)

    def walk(self, stops: Sequence[Stop]) -> Iterator[tuple[Stop, Sums, bool]]:
        """Yield the layers front to back with their sums; each may be changed before the next is asked for.

        With each comes whether its sums may be used up, because no other layer shares them.

        Both models are run once, and once more before where layers show what they read only further on. Layers for
        which statistics are known come before all others: they need no run, and those see what was done to them.
        """
        rest = []
        for stop in stops:
            sums = self._known(stop)
            if sums is not None or not self.batches:
                yield stop, sums or Sums(), False
            else:
                rest.append(stop)
        if rest:
            yield from self._run_to(rest)

    def _run_to(self, stops: Sequence[Stop]) -> Iterator[tuple[Stop, Sums, bool]]:
        """Yield what `walk` yields, by running both models from layer to layer."""
        ahead = self._ahead([each for stop in stops for each in stop.ahead])
        before, now = Segments(self.batches), Segments(self.batches)
        for stage in stages(stops):
            readings = [each for stop in stage for each in stop.readings]
            with one_thread():
                sums = self._collected(before.advance, now.advance, readings) if readings else {}
            for place, stop in enumerate(stage):
                parts = [each[stop.key] for each in (sums, ahead) if stop.key in each]
                found = parts[0] if len(parts) == 1 else parts[0].merge(parts[1])
                shared = any(each.get(later.key) is found for later in stage[place + 1 :] for each in (sums, ahead))
                yield stop, found, not shared

    def _known(self, stop: Stop) -> Sums | None:
        found = self.known_of(stop)
        if found is None or isinstance(found, str) or (self.batches and not found.moments and not stop.wide):
            return None
        return Sums(found.moments, [], found.squares)

    def known_of(self, stop: Stop) -> Observed | str | None:
        """Return what is known of what a layer reads, why that does not hold for it, or None where nothing is known."""
        if self.known is None:
            return None
        norms = column_norms(stop.form, stop.dense)
        return self.known.read_by([(each.tensor, each.form) for each in (*stop.readings, *stop.ahead)], norms)

    def _ahead(self, readings: Sequence[Reading]) -> dict[str, Sums]:
        def run(model: Model, names: Sequence[str]) -> Iterator[dict[str, Any]]:
            return stream(model, names, self.batches)

        with one_thread():
            return self._collected(run, run, readings) if readings else {}

    def _collected(self, dense: Runner, now: Runner, readings: Sequence[Reading]) -> dict[str, Sums]:
        names = list(dict.fromkeys(each.tensor for each in readings))
        wanted = list(dict.fromkeys(each.tensor for each in readings if each.paired))
        reached = zip(dense(self.dense, wanted), now(self.model, names), strict=True)
        return collect(reached, readings, rows=self.rows, seed=self.seed, last=self.last)
