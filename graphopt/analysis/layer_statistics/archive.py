"""Statistics of layers in one .npz file: plain arrays and a line of JSON, nothing pickled."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics.observed import Observed
from graphopt.analysis.layer_statistics.spread import BINS, Histogram, Spread
from graphopt.errors import DataError, WriteError
from graphopt.runtime.arrays import open_npz
from graphopt.solve.least_squares import Moments, Squares

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from graphopt.runtime.arrays import StoredArray

    Arrays = dict[str, NDArray[Any]]
    Stored = Mapping[str, StoredArray]

FORMAT = "graphopt.layer-statistics"
VERSION = 2

_HEAD = "head"

_SLACK = 1e-3
"""By so much, relative to the mean squares, sums of float32 products may break what holds for exact ones."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds; see `LayerStatistics`."""

    fingerprint: str
    samples: int
    tables: Mapping[str, Observed]
    forms: Mapping[str, tuple[str, str]]
    layers: Mapping[str, tuple[str, ...]]
    norms: Mapping[str, NDArray[np.float64]]
    lookups: Mapping[str, NDArray[np.int64]]
    refused: Mapping[str, str]


def flat(contents: Contents) -> Arrays:
    """Return all of it as arrays by name; ``head`` is JSON in bytes."""
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": contents.fingerprint,
        "samples": contents.samples,
        "tables": {name: contents.forms[name] for name in contents.tables},
        "layers": dict(contents.layers),
        "lookups": list(contents.lookups),
        "refused": dict(contents.refused),
    }
    arrays: Arrays = {_HEAD: np.frombuffer(json.dumps(head, sort_keys=True).encode(), np.uint8)}
    for place, table in enumerate(sorted(contents.tables)):
        for name, array in _of_table(contents.tables[table]).items():
            arrays[f"table{place}_{name}"] = array
    for place, name in enumerate(sorted(contents.layers)):
        arrays[f"norms{place}"] = contents.norms[name]
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
    """Read contents from a file: nothing is unpickled, and nothing that takes more memory than the file is long.

    Raises:
        DataError: The file is missing, damaged or of another format.
    """
    stored = _stored(Path(path))
    try:
        head = json.loads(stored[_HEAD].whole().tobytes())
        kind, version = head["format"], head["version"]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, "it does not say that it holds statistics of layers") from error
    if kind != FORMAT or version != VERSION:
        raise DataError(
            f"the file has the format {kind} {version}",
            where=str(path),
            must=f"This version reads {FORMAT} {VERSION}.",
            do="Collect the statistics again.",
        )
    try:
        return _contents(head, stored)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise _damaged(path, f"it is not complete ({error})") from error


def _stored(path: Path) -> Stored:
    """Return the arrays of a file, which are read one by one when they are asked for."""
    try:
        stored = open_npz(path)
        size = sum(array.dtype.itemsize * int(np.prod(array.shape, dtype=object)) for array in stored.values())
        if size > path.stat().st_size:
            raise _damaged(path, f"its arrays take {size} bytes, more than the file has")
        return stored
    except DataError as error:
        if not path.exists():
            raise DataError("there is no such file", where=str(path), do="Check the path.") from error
        raise _damaged(path, f"it is no .npz file of plain arrays ({error.what})") from error
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror})") from error


def _contents(head: Any, arrays: Stored) -> Contents:
    tables = {str(name): _table(arrays, f"table{place}_") for place, name in enumerate(head["tables"])}
    layers = {str(name): tuple(map(str, parts)) for name, parts in head["layers"].items()}
    unknown = {part for parts in layers.values() for part in parts} - set(tables)
    if unknown:
        msg = f"nothing is there of '{min(unknown)}', which a layer reads"
        raise ValueError(msg)
    return Contents(
        str(head["fingerprint"]),
        int(head["samples"]),
        tables,
        {str(name): (str(tensor), str(form)) for name, (tensor, form) in head["tables"].items()},
        layers,
        {name: _vector(arrays, f"norms{place}") for place, name in enumerate(layers)},
        {str(name): _counts(arrays, f"lookup{place}") for place, name in enumerate(head["lookups"])},
        {str(name): str(why) for name, why in head["refused"].items()},
    )


def _damaged(path: str | Path, what: str) -> DataError:
    return DataError(what, where=str(path), must=f"A file that LayerStatistics.save wrote, format {FORMAT}.")


def _vector(arrays: Stored, name: str) -> NDArray[np.float64]:
    found = arrays[name].whole().astype(np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        msg = f"{name} is no list of finite numbers"
        raise ValueError(msg)
    return found


def _counts(arrays: Stored, name: str) -> NDArray[np.int64]:
    found = arrays[name].whole().astype(np.int64)
    if found.ndim != 1 or (found < 0).any():
        msg = f"{name} is no list of counts"
        raise ValueError(msg)
    return found


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
            # one group, as most have: a view, for the matrices may take half of the memory
            alone = len(groups) == 1
            arrays[f"{kind}_inner"] = groups[0].inner[None] if alone else np.stack([each.inner for each in groups])
            arrays[f"{kind}_sum"] = np.stack([each.compressed for each in groups])
            arrays[f"{kind}_rows"] = np.array([each.count for each in groups], np.int64)
    return arrays


def _table(arrays: Stored, prefix: str) -> Observed:
    def array(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        found = arrays[prefix + name]
        if found.shape != shape:
            msg = f"{prefix}{name} has the shape {list(found.shape)} in place of {list(shape)}"
            raise ValueError(msg)
        return found.whole()

    (channels,) = arrays[f"{prefix}minimum"].shape
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
        inner = array(f"{kind}_inner", (groups, *[columns] * axes))
        sums, rows = array(f"{kind}_sum", (groups, columns)), array(f"{kind}_rows", (groups,))
        for group in range(groups):
            each = Moments(columns, symmetric=True) if axes == 2 else Squares(columns)
            each.inner[...] = inner[group]
            each.compressed[...] = sums[group]
            each.count = int(rows[group])
            if not _is_possible(each):
                msg = f"{prefix}{kind} holds numbers that no samples have"
                raise ValueError(msg)
            if isinstance(each, Moments):
                table.moments.append(each)
            else:
                table.squares.append(each)
    return table


def _is_possible(sums: Moments | Squares) -> bool:
    """Tell whether sums may be those of samples; solvers rely on it. Sums that overflowed may: they are never used."""
    if sums.count < 0 or not np.isfinite(sums.inner).all():
        return sums.count >= 0
    squares = sums.inner if sums.inner.ndim == 1 else np.diag(sums.inner)
    if (squares < 0).any():
        return False
    sizes = np.sqrt(squares)
    if not (np.abs(sums.compressed) <= (1 + _SLACK) * np.sqrt(sums.count) * sizes).all():
        return False
    uneven = np.abs(sums.inner - sums.inner.T)  # zeros for squares alone
    return bool((uneven <= (_SLACK * sizes[:, None] * sizes if sums.inner.ndim == 2 else 0)).all())
