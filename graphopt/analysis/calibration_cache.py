"""A calibration cache: the range chosen for every activation of a model, in a file that can be edited and reused.

The file is JSON. Of each tensor it says, in readable numbers, which range was chosen and by which calibrator, and what
was seen; the statistics that another choice, or a merge with other shards, needs follow as packed arrays. Whoever
changes ``low`` or ``high`` of a tensor settles its range.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import math
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from graphopt.analysis.activation_ranges import Ranges, TensorRange, activations
from graphopt.analysis.activation_ranges.choice import CALIBRATORS, SHARE, choose
from graphopt.analysis.activation_ranges.tensor import BINS, Channels
from graphopt.errors import CalibrationCacheError, WriteError
from graphopt.solve.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from graphopt.graph import Model

FORMAT = "graphopt.calibration"
VERSION = 1

BY_HAND = "by hand"
"""Stands in the place of the calibrator where the range was set by a person."""

LARGEST_FILE = 1 << 30
"""Bytes of a file that is read at all."""

MOST_CHANNELS = 1 << 20
MOST_EXPONENT = 128
"""Powers of two that histograms of float32 values reach."""


@dataclass(frozen=True, slots=True)
class CalibrationCache:
    """Ranges of the activations of one model.

    Attributes:
        model: What tells the structure of the model from others; see `structure_of`.
        samples: Samples that were seen.
        calibrator: What chose the ranges.
        share: For ``percentile``, in percent.
        tensors: What was seen, by name of the tensor, each with the range chosen.
    """

    model: str
    samples: int
    calibrator: str
    share: float
    tensors: Mapping[str, TensorRange]

    @classmethod
    def of(
        cls, ranges: Ranges, model: str, *, calibrator: str = "auto", share: float = SHARE, edits: Self | None = None
    ) -> Self:
        """Choose the range of every tensor.

        Args:
            ranges: What was seen, histograms too.
            model: What `structure_of` says of the model.
            calibrator: One of ``CALIBRATORS``.
            share: For ``percentile``.
            edits: A cache whose ranges set by hand are taken over.
        """
        kept = {} if edits is None else {name: seen for name, seen in edits.tensors.items() if seen.edited}
        tensors = {name: _settled(seen, calibrator, share) for name, seen in ranges.tensors.items()}
        for name, seen in kept.items():
            tensors[name] = replace(tensors.get(name, seen), chosen=seen.chosen, edited=True)
        return cls(model, ranges.samples, calibrator, share, tensors)

    def ranges(self, calibrator: str = "auto") -> Ranges:
        """Return the ranges in the form that placing takes.

        Args:
            calibrator: ``auto`` keeps what was chosen; any other chooses again, except what was set by hand.
        """
        if calibrator == "auto":
            return Ranges(dict(self.tensors), self.samples)
        free = {name: seen if seen.edited else replace(seen, chosen=None) for name, seen in self.tensors.items()}
        return Ranges(free, self.samples)

    def merge(self, other: Self) -> Self:
        """Return what both have seen, ranges chosen again; in any order and grouping the same.

        Raises:
            CalibrationCacheError: They are of different models, chosen in different ways, or edited differently.
        """
        if self.model != other.model:
            raise CalibrationCacheError(
                "the caches are of different models",
                must="Caches of one model can be merged",
                do="Calibrate both with the same file",
            )
        if (self.calibrator, self.share) != (other.calibrator, other.share):
            raise CalibrationCacheError(
                f"one was chosen by {self.calibrator}, the other by {other.calibrator}",
                must="Both take the same calibrator",
                do="Calibrate both with the same --calibrator and --percentile",
            )
        return replace(
            self,
            samples=self.samples + other.samples,
            tensors={
                name: self._merged(name, self.tensors.get(name), other.tensors.get(name))
                for name in dict.fromkeys([*self.tensors, *other.tensors])
            },
        )

    def _merged(self, name: str, one: TensorRange | None, two: TensorRange | None) -> TensorRange:
        if one is None or two is None:
            found = one or two
            assert found is not None
            return found
        if one.edited and two.edited and one.chosen != two.chosen:
            raise CalibrationCacheError(
                f"tensor '{name}' is set by hand to {one.chosen} and to {two.chosen}",
                must="Ranges set by hand agree",
                do="Set the same range in both files",
            )
        merged = one.merge(two)
        if one.edited or two.edited:
            return replace(merged, chosen=one.chosen if one.edited else two.chosen, edited=True)
        return _settled(merged, self.calibrator, self.share)

    def require_model(self, model: Model, where: str) -> None:
        """Refuse a model of another structure.

        Raises:
            CalibrationCacheError: The cache is of another model.
        """
        if structure_of(model) != self.model:
            raise CalibrationCacheError(
                "the cache is of another model",
                where=where,
                must="A cache holds for the model it was made for, with any weights",
                do="Calibrate this model: graphopt calibrate MODEL --data FEEDS -o CACHE.json",
            )

    def require_tensors(self, model: Model, where: str) -> None:
        """Refuse ranges set by hand of tensors that a model lacks, and caches none of whose tensors it has.

        Raises:
            CalibrationCacheError: A name is unknown.
        """
        known = {tensor.name for tensor in activations(model)}
        edited = [name for name, seen in self.tensors.items() if seen.edited and name not in known]
        if edited or not known & self.tensors.keys():
            name = edited[0] if edited else next(iter(self.tensors), "")
            raise CalibrationCacheError(
                f"there is no tensor '{name}'",
                where=where,
                must="Ranges are of tensors of the model, named as in the file that graphopt calibrate writes",
                do=_nearest(name, known),
            )

    def to_json(self) -> str:
        """Return the text of the file."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "samples": self.samples,
            "calibrator": self.calibrator,
            "percentile": self.share,
        }
        lines = [f" {json.dumps(name)}: {json.dumps(_entry(self, seen))}" for name, seen in self.tensors.items()]
        body = ",\n".join(lines)
        return f'{json.dumps(head, indent=1)[:-2]},\n "tensors": {{\n{body}\n }}\n}}\n'

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            WriteError: It cannot be written.
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("x", encoding="utf-8") as file:
                file.write(self.to_json())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            raise WriteError(f"the cache cannot be written: {error.strerror}", where=str(target)) from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file; nothing in it is trusted.

        Raises:
            CalibrationCacheError: The file is missing, damaged, of another format, or a range in it makes no sense.
        """
        try:
            if Path(path).stat().st_size > LARGEST_FILE:
                raise _error(path, f"the file has more than {LARGEST_FILE >> 20} MiB")
            document = json.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise _error(path, f"it cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise _error(path, f"it is no JSON ({error})") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
            kind = document.get("format") if isinstance(document, dict) else type(document).__name__
            version = document.get("version") if isinstance(document, dict) else ""
            raise _error(path, f"the file has the format {kind} {version}", must=f"It must be {FORMAT} {VERSION}")
        try:
            return cls._of_document(document)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, zlib.error) as error:
            raise _error(path, f"it is damaged or edited wrongly: {_said(error)}") from error

    @classmethod
    def _of_document(cls, document: Mapping[str, Any]) -> Self:
        calibrator, share, samples = document["calibrator"], float(document["percentile"]), document["samples"]
        if calibrator not in CALIBRATORS or not 50 < share <= 100:
            raise ValueError(f"calibrator {calibrator!r} with percentile {share}")
        if not isinstance(samples, int) or samples < 0 or not isinstance(document["model"], str):
            raise ValueError("samples and model are no number and no text")
        tensors = {str(name): _tensor(str(name), entry) for name, entry in document["tensors"].items()}
        found = cls(document["model"], samples, calibrator, share, tensors)
        for name, seen in tensors.items():
            if not seen.edited and choose(replace(seen, chosen=None), calibrator, share=share) != seen.chosen:
                tensors[name] = replace(seen, edited=True)
        return found


def structure_of(model: Model) -> str:
    """Return what tells the structure of a model from others: operators, how they are connected, and the inputs.

    Weights do not count: a cache holds for a model that was trained on, as well as it holds for its data.
    """
    digest = hashlib.sha256()
    for tensor in model.graph.inputs:
        shape = getattr(tensor, "shape", None)
        digest.update(
            f"{tensor.name} {getattr(tensor, 'dtype', None)} {None if shape is None else len(shape)}\n".encode()
        )
    for _, node in model.walk():
        names = [[str(tensor.name) for tensor in side] for side in (node.inputs, node.outputs)]
        digest.update(f"{node.domain} {node.op} {names}\n".encode())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------- one tensor, as JSON


def _settled(seen: TensorRange, calibrator: str, share: float) -> TensorRange:
    free = replace(seen, chosen=None, edited=False)
    return replace(free, chosen=choose(free, calibrator, share=share))


def _entry(cache: CalibrationCache, seen: TensorRange) -> dict[str, Any]:
    assert seen.chosen is not None, "every tensor of a cache has a range"
    entry: dict[str, Any] = {
        "low": seen.chosen[0],
        "high": seen.chosen[1],
        "calibrator": BY_HAND if seen.edited else cache.calibrator,
    }
    entry |= {"seen": [seen.low, seen.high], "values": seen.values, "batches": seen.batches, "zeros": seen.zeros}
    entry["sums"] = [seen.lows, seen.highs]
    if seen.histogram is not None:
        entry["histogram"] = {"exponent": seen.histogram.exponent, "counts": _packed(seen.histogram.counts)}
    if seen.channels is not None:
        channels = seen.channels
        entry["channels"] = {
            "axis": channels.axis,
            "rows": channels.rows,
            "count": len(channels.sums),
            "sums": _packed(channels.sums),
            "squares": _packed(channels.squares),
        }
        if channels.lows is not None and channels.highs is not None:
            entry["channels"] |= {"lows": _packed(channels.lows), "highs": _packed(channels.highs)}
    return entry


def _tensor(name: str, entry: Mapping[str, Any]) -> TensorRange:
    low, high = _number(entry["low"], name, "low"), _number(entry["high"], name, "high")
    if low > high:
        raise ValueError(f"the range of '{name}' is inverted: {low} to {high}")
    edited = entry.get("calibrator") == BY_HAND or "histogram" not in entry
    ends = [_number(end, name, "seen") for end in entry["seen"]]
    sums = [_number(end, name, "sums") for end in entry["sums"]]
    counts = [_count(entry[key], name, key) for key in ("batches", "values", "zeros")]
    if len(ends) != 2 or len(sums) != 2 or ends[0] > ends[1]:
        raise ValueError(f"'{name}' was seen from {ends}")
    histogram = _histogram(name, entry["histogram"]) if "histogram" in entry else None
    channels = _channels(name, entry["channels"]) if "channels" in entry else None
    axis = 1 if channels is None else channels.axis
    return TensorRange(
        low=ends[0],
        high=ends[1],
        lows=sums[0],
        highs=sums[1],
        batches=counts[0],
        values=counts[1],
        histogram=histogram,
        zeros=counts[2],
        channels=channels,
        axis=axis,
        chosen=(low, high),
        edited=edited,
    )


def _histogram(name: str, stored: Mapping[str, Any]) -> Histogram:
    exponent = stored["exponent"]
    if not isinstance(exponent, int) or abs(exponent) > MOST_EXPONENT + BINS.bit_length() + 24:
        raise ValueError(f"the histogram of '{name}' has the exponent {exponent}")
    counts = _unpacked(stored["counts"], np.dtype(np.int64), BINS)
    if (counts < 0).any():
        raise ValueError(f"the histogram of '{name}' has negative counts")
    return Histogram(exponent, counts)


def _channels(name: str, stored: Mapping[str, Any]) -> Channels:
    count, rows, axis = (stored[key] for key in ("count", "rows", "axis"))
    if axis not in {1, -1} or not 0 < _count(count, name, "channels") <= MOST_CHANNELS:
        raise ValueError(f"'{name}' has {count} channels along axis {axis}")
    keys = ("sums", "squares", "lows", "highs") if "lows" in stored else ("sums", "squares")
    found = [_unpacked(stored[key], np.dtype(np.float64), count) for key in keys]
    if not all(np.isfinite(each).all() for each in found) or (found[1] < 0).any():
        raise ValueError(f"the sums of '{name}' are no sums of values and squares")
    if len(found) == 4 and (found[2] > found[3]).any():
        raise ValueError(f"channels of '{name}' have inverted ranges")
    return Channels(axis, found[0], found[1], _count(rows, name, "rows"), *found[2:])


def _packed(array: NDArray[Any]) -> str:
    """Return an array as text: little-endian, compressed, base 64."""
    raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(zlib.compress(raw, 9)).decode("ascii")


def _unpacked(text: object, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """Return a packed array of a known length; what unpacks to more is refused before it takes memory."""
    if not isinstance(text, str):
        raise TypeError("an array is no text")
    unpacking = zlib.decompressobj()
    raw = unpacking.decompress(base64.b64decode(text, validate=True), count * dtype.itemsize)
    if len(raw) != count * dtype.itemsize or unpacking.decompress(unpacking.unconsumed_tail, 1):
        raise ValueError(f"an array has not {count} numbers")
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean '{found[0]}'?" if found else ""


def _number(value: object, name: str, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"'{what}' of '{name}' is {value!r}, not a finite number")
    return float(value)


def _count(value: object, name: str, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"'{what}' of '{name}' is {value!r}, not a count")
    return value


def _said(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


def _error(path: str | Path, what: str, *, must: str = "") -> CalibrationCacheError:
    return CalibrationCacheError(
        what, where=str(path), must=must or f"It must be a file that graphopt calibrate wrote, {FORMAT} {VERSION}"
    )
