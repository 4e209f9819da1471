"""The cache of analyses: computed on demand, kept as long as the version counters they depend on stand still."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from graphopt.analysis.base import COUNTERS, Analysis
from graphopt.errors import AnalysisError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from graphopt.graph import Model
    from graphopt.runtime import Feeds

A = TypeVar("A", bound=Analysis)


@dataclass(slots=True)
class _Entry:
    """One cached result with the counters it saw and the counters it depends on, inherited ones included."""

    result: Analysis
    stamp: dict[str, int]
    depends: frozenset[str]


@dataclass(slots=True)
class _Frame:
    """An analysis that is being computed: what it has asked for so far."""

    kind: type[Analysis]
    depends: set[str] = field(default_factory=set)


class Facts:
    """What is known about one model, computed when first asked for.

    Args:
        model: The model that the facts are about.
        feeds: Samples for analyses that run the model; None where there are none.
        target: Name of the target that costs are estimated for.
        seed: Seed for every analysis that draws random numbers.
    """

    def __init__(self, model: Model, *, feeds: Feeds | None = None, target: str = "ort-cpu", seed: int = 0) -> None:
        self.model = model
        self.feeds = feeds
        self.target = target
        self.seed = seed
        self._entries: dict[type[Analysis], _Entry] = {}
        self._frames: list[_Frame] = []
        self._held: frozenset[type[Analysis]] = frozenset()

    @contextmanager
    def holding(self, kinds: Iterable[type[Analysis]]) -> Iterator[None]:
        """Compute analyses now and take them for valid inside the block, whatever is edited there.

        Args:
            kinds: Analyses that answer truly in spite of the edits that will be made, because every tensor keeps its
                meaning and they look up what is new.
        """
        for kind in kinds:
            self.get(kind)
        before, self._held = self._held, self._held | frozenset(kinds)
        try:
            yield
        finally:
            self._held = before

    def get(self, kind: type[A]) -> A:
        """Return the analysis for the present version of the model, computed or from the cache.

        Args:
            kind: The class of the analysis.

        Raises:
            AnalysisError: The analysis asks for itself, directly or through others.
        """
        entry = self._entries.get(kind)
        if entry is None or not (kind in self._held or self._holds(entry)):
            entry = self._entries[kind] = self._recorded(kind, entry) if kind.sticky else self._computed(kind)
        if self._frames:
            self._frames[-1].depends |= entry.depends
        assert isinstance(entry.result, kind)
        return entry.result

    def cached(self, kind: type[A]) -> A | None:
        """Return the analysis if the cache holds it for the present version of the model, else None; never computes."""
        entry = self._entries.get(kind)
        if entry is None or not (kind in self._held or self._holds(entry)):
            return None
        assert isinstance(entry.result, kind)
        return entry.result

    def record(self, result: Analysis) -> None:
        """Keep a result that a pass found and that nobody can recompute; it replaces an earlier one of its class."""
        self._entries[type(result)] = _Entry(result, self._stamp(), type(result).depends)

    def invalidate(self, preserving: Iterable[type[Analysis]] = ()) -> None:
        """Forget what the model's edits since its computation made stale.

        A result whose counters stand still stays; one that may survive the change is looked at when it is wanted
        again. A result of a class in ``preserving`` is taken as valid for the present model on the word of the caller;
        :meth:`false_claims` checks that word. Recorded results stay. A result that is held stays too and keeps its age:
        after the block, a claim for the last edit must not pass for one for all that happened inside.
        """
        claimed = frozenset(preserving)
        for kind, entry in list(self._entries.items()):
            if kind in self._held:
                continue
            if kind in claimed:
                entry.stamp = self._stamp()
            elif not kind.sticky and not self._changed(entry) <= kind.may_survive:
                del self._entries[kind]

    def false_claims(self, preserving: Iterable[type[Analysis]]) -> list[type[Analysis]]:
        """Return the classes whose cached result is not what the present model gives: claims that are not true.

        Recomputes each claimed analysis that is in the cache, from nothing, and compares. Call it before
        :meth:`invalidate`; the cache is left as it is.
        """
        present = Facts(self.model, feeds=self.feeds, target=self.target, seed=self.seed)
        for kind, entry in self._entries.items():
            if kind.sticky:
                present._entries[kind] = _Entry(entry.result.follow(self.model), self._stamp(), entry.depends)
        found = []
        for kind in dict.fromkeys(preserving):
            claimed = self._entries.get(kind)
            if claimed is not None and not kind.sticky and not claimed.result.covers(present.get(kind)):
                found.append(kind)
        return found

    def fork(self, model: Model) -> Facts:
        """Return the facts of a copy of the model: recorded results follow, computed ones are computed anew."""
        copy = Facts(model, feeds=self.feeds, target=self.target, seed=self.seed)
        for kind, entry in self._entries.items():
            if kind.sticky:
                copy.record(entry.result.follow(model))
        return copy

    def _stamp(self) -> dict[str, int]:
        return {counter: getattr(self.model.versions, counter) for counter in COUNTERS}

    def _changed(self, entry: _Entry) -> set[str]:
        versions = self.model.versions
        return {counter for counter in entry.depends if getattr(versions, counter) != entry.stamp[counter]}

    def _holds(self, entry: _Entry) -> bool:
        changed = self._changed(entry)
        if not changed:
            return True
        result = entry.result
        if result.sticky or not changed <= result.may_survive or not result.survives(self.model):
            return False
        entry.stamp = self._stamp()
        return True

    def _recorded(self, kind: type[Analysis], entry: _Entry | None) -> _Entry:
        result = kind.compute(self.model, self) if entry is None else entry.result.follow(self.model)
        return _Entry(result, self._stamp(), kind.depends)

    def _computed(self, kind: type[Analysis]) -> _Entry:
        if any(frame.kind is kind for frame in self._frames):
            chain = " > ".join(frame.kind.__name__ for frame in self._frames)
            raise AnalysisError(
                f"the analysis {kind.__name__} needs itself",
                where=f"{chain} > {kind.__name__}",
                must="An analysis may only ask for analyses that do not ask for it",
                do="Compute the shared part as an analysis of its own",
            )
        stamp = self._stamp()
        self._frames.append(_Frame(kind))
        try:
            result = kind.compute(self.model, self)
        finally:
            frame = self._frames.pop()
        return _Entry(result, stamp, kind.depends | frame.depends)
