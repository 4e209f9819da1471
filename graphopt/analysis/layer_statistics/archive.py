"""Statistics of layers in one .npz file: plain arrays and a line of JSON, nothing pickled."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics.observed import Observed
from graphopt.analysis.layer_statistics.spread import BINS, Histogram, Spread
from graphopt.errors import DataError, WriteError
from graphopt.solve.least_squares import Moments, Squares

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

FORMAT = "graphopt.layer-statistics"
VERSION = 1

_HEAD = "head"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds; see `LayerStatistics`."""

    fingerprint: str
    tables: Mapping[str, Observed]
    layers: Mapping[str, tuple[str, ...]]
    lookups: Mapping[str, NDArray[np.int64]]
    refused: Mapping[str, str]


def flat(contents: Contents) -> Arrays:
    """Return all of it as arrays by name; ``head`` is JSON in bytes."""
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": contents.fingerprint,
        "tables": list(contents.tables),
        "layers": {name: list(tables) for name, tables in contents.layers.items()},
        "lookups": list(contents.lookups),
        "refused": dict(contents.refused),
    }
    arrays: Arrays = {_HEAD: np.frombuffer(json.dumps(head, sort_keys=True).encode(), np.uint8)}
    for place, table in enumerate(contents.tables.values()):
        for name, array in _of_table(table).items():
            arrays[f"table{place}_{name}"] = array
    for place, counts in enumerate(contents.lookups.values()):
        arrays[f"lookup{place}"] = counts
    return arrays


def write(path: str | Path, contents: Contents) -> None:
    """Write contents to a file, whole or not at all.

    Raises:
        WriteError: The file cannot be written.
    """
    target = Path(path)
    name = ""
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            name = file.name
            np.savez(file, **flat(contents))  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except OSError as error:
        if name:
            Path(name).unlink(missing_ok=True)
        raise WriteError(f"the statistics cannot be written: {error.strerror}", where=str(target)) from error


def read(path: str | Path) -> Contents:
    """Read contents from a file.

    Raises:
        DataError: The file is missing, damaged or of another format.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: Arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path)) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise _damaged(path, f"it is no .npz file of plain arrays ({error})") from error
    try:
        head = json.loads(bytes(arrays[_HEAD]))
        kind, version = head["format"], head["version"]
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, "it does not say that it holds statistics of layers") from error
    if kind != FORMAT or version != VERSION:
        raise DataError(
            f"the file has the format {kind} {version}",
            where=str(path),
            must=f"This version reads {FORMAT} {VERSION}.",
            do="Collect the statistics again.",
        )
    try:
        return Contents(
            str(head["fingerprint"]),
            {name: _table(arrays, f"table{place}_") for place, name in enumerate(head["tables"])},
            {name: tuple(tables) for name, tables in head["layers"].items()},
            {name: arrays[f"lookup{place}"] for place, name in enumerate(head["lookups"])},
            dict(head["refused"]),
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise _damaged(path, f"it is not complete ({error})") from error


def _damaged(path: str | Path, what: str) -> DataError:
    return DataError(what, where=str(path), must=f"A file that LayerStatistics.save wrote, format {FORMAT}.")


def _of_table(table: Observed) -> Arrays:
    spread, histogram = table.spread, table.spread.histogram
    arrays: Arrays = {
        "minimum": spread.minimum,
        "maximum": spread.maximum,
        "magnitude": spread.magnitude,
        "counts": histogram.counts,
        "numbers": np.array([spread.count, histogram.exponent, histogram.left_out], np.int64),
    }
    for each in table.moments:
        each.settle()
    for kind, groups in (("moments", table.moments), ("squares", table.squares)):
        if groups:
            arrays[f"{kind}_inner"] = np.stack([each.inner for each in groups])
            arrays[f"{kind}_sum"] = np.stack([each.compressed for each in groups])
            arrays[f"{kind}_rows"] = np.array([each.count for each in groups], np.int64)
    return arrays


def _table(arrays: Arrays, prefix: str) -> Observed:
    def array(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        found = arrays[prefix + name]
        if found.shape != shape:
            msg = f"{prefix}{name} has the shape {list(found.shape)} in place of {list(shape)}"
            raise ValueError(msg)
        return found

    channels = len(arrays[f"{prefix}minimum"])
    spread = Spread(channels)
    spread.minimum, spread.maximum, spread.magnitude = (
        array(name, (channels,)).astype(np.float64) for name in ("minimum", "maximum", "magnitude")
    )
    spread.count, exponent, left_out = (int(number) for number in array("numbers", (3,)))
    spread.histogram = Histogram(exponent, array("counts", (BINS,)).astype(np.int64), left_out)
    table = Observed([], [], spread)
    for kind, axes in (("moments", 2), ("squares", 1)):
        if f"{prefix}{kind}_inner" not in arrays:
            continue
        groups, columns = arrays[f"{prefix}{kind}_sum"].shape
        inner = array(f"{kind}_inner", (groups, *[columns] * axes)).astype(np.float64)
        sums, rows = array(f"{kind}_sum", (groups, columns)), array(f"{kind}_rows", (groups,))
        for group in range(groups):
            each = Moments(columns, symmetric=True) if axes == 2 else Squares(columns)
            each.inner[...] = inner[group]
            each.compressed[...] = sums[group]
            each.count = int(rows[group])
            if isinstance(each, Moments):
                table.moments.append(each)
            else:
                table.squares.append(each)
    return table
