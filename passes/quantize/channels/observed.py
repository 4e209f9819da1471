"""How large the channels of tensors are on real data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics import CollectedStatistics, column_norms, form_of, stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis import Facts
    from graphopt.analysis.layer_statistics import Batches, LayerStatistics, Observed
    from graphopt.graph import Model
    from graphopt.passes.quantize.channels.links import Link

    Vector = NDArray[np.float64]


def known_statistics(facts: Facts) -> LayerStatistics | None:
    """Return statistics that were collected before, in place of data; None where there are none."""
    return facts.get(CollectedStatistics).found


def collected(link: Link, known: LayerStatistics) -> Observed | str:
    """Return what statistics hold of what the layers of a link read, or why that does not hold for them."""
    reason = ""
    for reader in link.readers:
        form = form_of(reader.node, 1, reader.value)
        if isinstance(form, str):
            reason = reason or form
            continue
        found = known.read_by([(link.tensor.name, form)], column_norms(form, reader.value))
        if not isinstance(found, str):
            return found
        reason = found
    return reason


def largest(model: Model, links: Sequence[Link], batches: Batches) -> dict[str, Vector]:
    """Return max|x_c| of each channel by the names of the links' tensors: one run over the data.

    Values that are not finite count as none.
    """
    found = {link.tensor.name: np.zeros(link.channels) for link in links}
    for values in stream(model, list(found), batches) if found else ():
        for link in links:
            found[link.tensor.name] = np.maximum(found[link.tensor.name], _reduced(link, values).max(axis=0, initial=0))
    return found


class MeanSizes:
    """Sums of |x_c| of each channel, taken as values go by.

    Args:
        links: Whose tensors are summed up.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = links
        self._sums = [np.zeros(link.channels) for link in links]
        self._counts = [0] * len(links)

    def passing(self, values: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """Yield batches of values as they are."""
        for each in values:
            for place, link in enumerate(self._links):
                rows = _reduced(link, each)
                self._sums[place] += rows.sum(axis=0)
                self._counts[place] += len(rows)
            yield each

    def means(self, place: int) -> Vector:
        """Return mean|x_c| of a link, zeros where nothing was seen."""
        return np.asarray(self._sums[place] / max(1, self._counts[place]))


def _reduced(link: Link, values: dict[str, Any]) -> NDArray[np.float64]:
    """Return |x| as rows of channels, [n, channels]."""
    array = np.abs(values[link.tensor.name].astype(np.float64))
    moved = array if link.readers[0].spatial < 0 else np.moveaxis(array, 1, -1)
    rows = moved.reshape(-1, link.channels)
    return np.asarray(np.where(np.isfinite(rows), rows, 0.0))
