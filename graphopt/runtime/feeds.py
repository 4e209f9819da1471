"""Feeds: the data a model is calibrated and judged on, streamed one complete feed at a time.

A source holds arrays named as the model's inputs. How an array is divided into samples follows from its rank:

* one axis more than the input: the first axis counts samples, each slice is one complete feed;
* the input's rank: the first axis is the batch axis and each row a sample (B rows where the model fixes the axis to B);
* a scalar for a scalar input: the same value in every feed.

Memory holds the sample in hand and never grows with the data; nothing is ever unpickled.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import DataError, GraphoptError
from graphopt.runtime.arrays import StoredArray, open_npz
from graphopt.runtime.fit import Array, cast, cast_refusal, check_names, feed_shapes, rank_error
from graphopt.runtime.inputs import InputSpec, input_specs
from graphopt.runtime.named_function import named_function

Feed = dict[str, Any]
Source = (
    str | os.PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]]
)

_SOURCES = "Data is an .npz file, a folder of them, or module:function."


@dataclass(frozen=True, slots=True)
class _Share:
    """Every sample whose number falls in ``part`` evenly spaced ones of ``whole``, or all the others."""

    part: int
    whole: int
    others: bool

    def takes(self, number: int) -> bool:
        chosen = number * self.part // self.whole != (number + 1) * self.part // self.whole
        return chosen != self.others

    def size(self) -> int:
        return self.whole - self.part if self.others else self.part


@dataclass(frozen=True)
class Feeds:
    """A re-iterable stream of complete feeds that fit a model.

    Iterating yields one dict per sample, an array per input with the batch axis kept, checked and in the input's
    element type. Every pass over the data gives the same samples in the same order.

    Attributes:
        inputs: The inputs of the model.
        name: What the data is called in messages.
    """

    inputs: tuple[InputSpec, ...]
    name: str
    _pieces: Callable[[], Iterator[_Piece]]
    _shares: tuple[_Share, ...] = ()
    _allow_nan: bool = False
    _keep: tuple[object, ...] = ()

    @classmethod
    def open(cls, source: Source | Feeds, inputs: object, *, allow_nan: bool = False) -> Feeds:
        """Open data for a model.

        Args:
            source: An .npz file, a folder of them (in the order of their names), ``"module:function"`` or
                ``"file.py:function"`` (called for every pass over the data, returns an iterable of dicts), a function
                of that kind, a dict of arrays, or an iterable of dicts. Labels and other arrays that are no inputs are
                left out.
            inputs: The model, a session of it, or its input specifications.
            allow_nan: Take values that are not a number.

        Returns:
            The feeds. The first sample has been read and checked.

        Raises:
            DataError: The source cannot be read, is empty, or does not fit the inputs.
        """
        if isinstance(source, Feeds):
            return source
        specs = input_specs(inputs)
        if isinstance(source, str | os.PathLike):
            feeds = cls._from_text(os.fspath(source), specs)
        elif isinstance(source, Mapping):
            feeds = cls(specs, "the given arrays", _Once(_DictPiece(source, "the given arrays", specs)))
        elif callable(source):
            feeds = cls(specs, getattr(source, "__name__", "the given function"), _Called(source, specs))
        elif isinstance(source, Iterable):
            kept = source if iter(source) is not source else _Spool(source)
            feeds = cls(specs, "the given feeds", _Called(lambda: kept, specs), _keep=(kept,))
        else:
            raise DataError(
                f"an object of type {type(source).__name__} holds no feeds",
                must="It must be an .npz file, a folder, module:function, a dict of arrays, or an iterable of dicts.",
            )
        feeds = replace(feeds, _allow_nan=allow_nan)
        if next(iter(feeds), None) is None:
            raise DataError(
                "there is not one sample", where=feeds.name, do="Give at least two: one to calibrate, one to judge."
            )
        return feeds

    @classmethod
    def _from_text(cls, text: str, specs: tuple[InputSpec, ...]) -> Feeds:
        path = Path(text)
        if path.is_dir():
            files = sorted(path.glob("*.npz"))
            if not files:
                raise DataError("the folder holds no .npz file", where=text)
            return cls(specs, text, lambda: (_NpzPiece(file, specs) for file in files))
        if path.exists() or ":" not in text:
            return cls(specs, text, lambda: iter([_NpzPiece(path, specs)]))
        return cls(specs, text, _Called(named_function(text, must=_SOURCES, error=DataError), specs))

    def __len__(self) -> int:
        """Return the number of samples: of files only the headers are read, a function is run once."""
        if self._shares:
            return self._shares[-1].size()
        if "size" not in self.__dict__:
            self.__dict__["size"] = sum(piece.count for piece in self._pieces())
        return int(self.__dict__["size"])

    def __iter__(self) -> Iterator[Feed]:
        """Yield the samples, each a complete feed."""
        counters = [0] * len(self._shares)

        def taken() -> bool:
            for level, share in enumerate(self._shares):
                number = counters[level]
                counters[level] += 1
                if not share.takes(number):
                    return False
            return True

        for piece in self._pieces():
            numbers = [number for number in range(piece.count) if taken()]
            for feed in piece.samples(numbers) if numbers else ():
                yield self._checked(feed, piece.where)

    def _checked(self, feed: Feed, where: str) -> Feed:
        ready = {}
        for spec in self.inputs:
            if spec.name in feed:
                value = feed[spec.name]
                ready[spec.name] = (
                    cast(value, spec, where, allow_nan=self._allow_nan) if spec.dtype is not None else value
                )
        feed_shapes({k: v.shape for k, v in ready.items() if isinstance(v, np.ndarray)}, self.inputs, where)
        return ready

    def batches(self, size: int) -> Iterator[Feed]:
        """Yield feeds of up to ``size`` samples, joined along the batch axis.

        Samples are joined where every input has a free first axis, of one name if it has names, and neighbours agree in
        all other sizes; else each sample is its own batch.

        Args:
            size: Largest number of samples in a batch, at least 1.
        """
        if size < 1:
            raise DataError(f"a batch of {size} samples", must="A batch holds at least one sample.")
        group: list[Feed] = []
        for feed in self:
            if group and (len(group) == size or not self._joins(group[0], feed)):
                yield _joined(group)
                group = []
            group.append(feed)
        if group:
            yield _joined(group)

    def _joins(self, first: Feed, second: Feed) -> bool:
        return self.batchable and all(
            each.keys() == first.keys() and all(each[k].shape[0] == 1 for k in each) for each in (first, second)
        ) and all(first[k].shape == second[k].shape for k in first)  # fmt: skip

    @property
    def batchable(self) -> bool:
        """Whether every input has a free first axis that can be a batch axis, shared by all of them."""
        firsts = [spec.shape[0] if spec.shape else 0 for spec in self.inputs if spec.required]
        named = {first for first in firsts if isinstance(first, str)}
        return bool(firsts) and not any(isinstance(first, int) for first in firsts) and len(named) <= 1

    def split(self, share: float = 0.2, at_least: int = 16) -> tuple[Feeds, Feeds]:
        """Divide the samples into those for calibration and those held back for judging.

        The judging samples are spread evenly over the data: ``share`` of it, at least ``at_least`` where there are
        twice as many samples, never more than half. The same data always divides the same way and no sample is in both.

        Args:
            share: Share held back, between 0 and 1.
            at_least: Number held back at least.

        Returns:
            The calibration feeds and the judging feeds.

        Raises:
            DataError: There is only one sample.
        """
        total = len(self)
        if total < 2:
            raise DataError(
                "one sample cannot be divided into calibration and judging",
                where=self.name,
                do="Give two samples or more.",
            )
        judged = min(max(math.ceil(Fraction(share).limit_denominator(1_000_000) * total), at_least), total // 2)
        return self._with(_Share(judged, total, others=True)), self._with(_Share(judged, total, others=False))

    def take(self, count: int) -> Feeds:
        """Return at most ``count`` of the samples, spread evenly over the data."""
        total = len(self)
        return self if count >= total else self._with(_Share(max(count, 1), total, others=False))

    def first(self) -> Feed:
        """Return the first sample."""
        return next(iter(self))

    def _with(self, share: _Share) -> Feeds:
        return replace(self, _shares=(*self._shares, share))


# ------------------------------------------------------------------------------------------------------------- pieces


class _Piece:
    """Arrays that lie in memory or in one file, divided into samples."""

    def __init__(self, arrays: Mapping[str, Any], where: str, specs: tuple[InputSpec, ...]) -> None:
        check_names(arrays, specs, where)
        self.where = where
        self.specs = tuple(spec for spec in specs if spec.name in arrays)
        self.arrays = {spec.name: arrays[spec.name] for spec in self.specs}
        self._check_types()
        # rows of the first axis per sample; 0: the array is the same in every sample; -1: rows are whole feeds
        self.steps = {spec.name: self._step(spec) for spec in self.specs}
        self.count = self._count()

    def samples(self, numbers: Sequence[int]) -> Iterator[Feed]:
        """Yield the samples of these numbers, which ascend."""
        streams = {name: self._stream(name, numbers) for name in self.arrays}
        for _ in numbers:
            yield {name: next(stream) for name, stream in streams.items()}

    def _stream(self, name: str, numbers: Sequence[int]) -> Iterator[Any]:
        step, array = self.steps[name], self.arrays[name]
        if step == 0:
            return itertools.repeat(array.whole() if isinstance(array, StoredArray) else array)
        spans = ((number * abs(step), abs(step)) for number in numbers)
        if isinstance(array, StoredArray):
            blocks = array.blocks(spans)
        else:
            blocks = (array[first : first + count] for first, count in spans)
        return (block[0] for block in blocks) if step == -1 else blocks

    def _check_types(self) -> None:
        for spec in self.specs:
            array = self.arrays[spec.name]
            if spec.dtype is None:
                continue
            refusal = cast_refusal(array.dtype, spec.dtype)
            if refusal:
                raise DataError(
                    refusal, where=f"{self.where}, input '{spec.name}'", must=f"The model takes {spec}.",
                    do=f"Convert the array with .astype('{spec.dtype}') where that is what you mean.",
                )  # fmt: skip

    def _step(self, spec: InputSpec) -> int:
        if spec.dtype is None:
            return 0
        shape = self.arrays[spec.name].shape
        rank = len(shape) if spec.shape is None else len(spec.shape)
        if len(shape) == rank + 1:
            return -1
        if len(shape) != rank:
            raise rank_error(spec, shape, self.where)
        if rank == 0:
            return 0
        fixed = spec.shape[0] if spec.shape else None
        return fixed if isinstance(fixed, int) and fixed > 0 else 1

    def _count(self) -> int:
        rows = {name: self.arrays[name].shape[0] for name, step in self.steps.items() if step}
        counts = {name: rows[name] // abs(self.steps[name]) for name in rows}
        uneven = [name for name in rows if rows[name] % abs(self.steps[name])]
        if not uneven and len(set(counts.values())) <= 1:
            return next(iter(counts.values()), 1)
        if self._is_one_feed():
            self.steps = dict.fromkeys(self.steps, 0)
            return 1
        if uneven:
            spec = next(each for each in self.specs if each.name == uneven[0])
            raise DataError(
                f"{rows[spec.name]} rows for input '{spec.name}'", where=self.where,
                must=f"The model takes {spec}: {abs(self.steps[spec.name])} rows make one feed.",
                do="Give a multiple of that.",
            )  # fmt: skip
        raise DataError(
            f"the arrays hold different numbers of samples: {', '.join(f'{k} {v}' for k, v in counts.items())}",
            where=self.where,
            must="Every array holds the same samples.",
            do="Give each array one axis more, the first counting complete feeds, where inputs have no batch axis.",
        )

    def _is_one_feed(self) -> bool:
        """Whether the arrays are one complete feed of a model in which some input has no batch axis."""
        if any(step == -1 for step in self.steps.values()):
            return False
        if not any(spec.shape and isinstance(spec.shape[0], int) for spec in self.specs):
            return False
        try:
            feed_shapes({name: self.arrays[name].shape for name in self.arrays}, self.specs, self.where)
        except DataError:
            return False
        return True


class _DictPiece(_Piece):
    def __init__(self, arrays: Mapping[str, Any], where: str, specs: tuple[InputSpec, ...]) -> None:
        if not isinstance(arrays, Mapping):
            raise DataError(
                f"a feed of type {type(arrays).__name__}", where=where, must="A feed is a dict of arrays by input name."
            )
        tensors = {spec.name for spec in specs if spec.dtype is not None}
        super().__init__({k: _array(v, k, where) if k in tensors else v for k, v in arrays.items()}, where, specs)


class _NpzPiece(_Piece):
    def __init__(self, path: Path, specs: tuple[InputSpec, ...]) -> None:
        super().__init__(open_npz(path), str(path), specs)


def _array(value: Any, name: str, where: str) -> Array:
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"the value for '{name}' is no array: {error}", where=where) from error


# ------------------------------------------------------------------------------------------------------------ sources


class _Once:
    def __init__(self, piece: _Piece) -> None:
        self._piece = piece

    def __call__(self) -> Iterator[_Piece]:
        return iter([self._piece])


class _Called:
    """Dicts from a function that is called for every pass over the data."""

    def __init__(self, function: Callable[[], Iterable[Mapping[str, Any]]], specs: tuple[InputSpec, ...]) -> None:
        self._function = function
        self._specs = specs

    def __call__(self) -> Iterator[_Piece]:
        source = iter(self._guarded(lambda: iter(self._function())))
        for number in itertools.count():
            feed = self._guarded(lambda: next(source, None))
            if feed is None:
                return
            yield _DictPiece(feed, f"feed {number}", self._specs)

    @staticmethod
    def _guarded(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except GraphoptError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(
                f"the data function raised {type(error).__name__}: {error}",
                must="It must return an iterable of dicts of arrays.",
            ) from error


class _Spool:
    """An iterator that can be read only once, kept on disk so that it can be read again."""

    def __init__(self, source: Iterable[Mapping[str, Any]]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="graphopt-feeds-")
        self._count = 0
        for feed in source:
            if not isinstance(feed, Mapping):
                raise DataError(
                    f"a feed of type {type(feed).__name__}", must="A feed is a dict of arrays by input name."
                )
            np.savez(
                self._file(self._count),
                allow_pickle=False,
                **{k: _array(v, k, f"feed {self._count}") for k, v in feed.items()},
            )
            self._count += 1

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for number in range(self._count):
            yield {name: array.whole() for name, array in open_npz(self._file(number)).items()}

    def _file(self, number: int) -> Path:
        return Path(self._folder.name) / f"{number}.npz"


def _joined(group: list[Feed]) -> Feed:
    if len(group) == 1:
        return group[0]
    return {name: np.concatenate([feed[name] for feed in group]) for name in group[0]}
