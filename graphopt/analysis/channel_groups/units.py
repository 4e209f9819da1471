"""Union-find over channels, on whole arrays at a time: which channels can only be removed together."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Labels: TypeAlias = "NDArray[np.int64]"
"""One label per index of an axis. The same label may stand at several indices, which then go or stay together."""

RESIDUAL = 1
"""Mark of channels that an addition ties to those of another layer."""

HEADS = 2
"""Mark of channels that are batch indices of a product of two computed tensors, as attention heads are."""


class Units:
    """Labels, which of them are tied together, which must stay and why."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.int64)
        self._reason = np.zeros(1024, np.int64)
        self._marks = np.zeros(1024, np.uint8)
        self._count = 0
        self._reasons: dict[str, int] = {"": 0}

    def __len__(self) -> int:
        return self._count

    def fresh(self, count: int) -> Labels:
        """Return so many new labels, tied to nothing."""
        end = self._count + count
        if end > len(self._parent):
            size = max(end, 2 * len(self._parent))
            for name in ("_parent", "_reason", "_marks"):
                old = getattr(self, name)
                grown = np.zeros(size, old.dtype)
                grown[: len(old)] = old
                setattr(self, name, grown)
        made = np.arange(self._count, end, dtype=np.int64)
        self._parent[self._count : end] = made
        self._count = end
        return made

    def roots(self, labels: Labels) -> Labels:
        """Return the representative of each label: equal where labels are tied."""
        found = self._parent[labels]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[labels] = found
        return np.asarray(found, np.int64)

    def tie(self, a: Labels, b: Labels, *, mark: int = 0) -> Labels:
        """Tie two arrays of the same shape element by element and return the first.

        Args:
            a: Labels.
            b: Labels of the same shape.
            mark: Set on both where they were not tied before.
        """
        if a is b:
            return a
        left, right = self.roots(a.ravel()), self.roots(b.ravel())
        apart = np.flatnonzero(left != right)
        if mark:
            self._marks[left[apart]] |= mark
            self._marks[right[apart]] |= mark
        parent = self._parent
        for one, other in zip(left[apart].tolist(), right[apart].tolist(), strict=True):
            low, high = _root(parent, one), _root(parent, other)
            if low != high:
                parent[max(low, high)] = min(low, high)
        return a

    def freeze(self, labels: Labels, reason: str) -> None:
        """Let channels stay; the first reason that is given for one is kept."""
        number = self._reasons.setdefault(reason, len(self._reasons))
        free = labels[self._reason[labels] == 0]
        self._reason[free] = number

    def mark(self, labels: Labels, mark: int) -> None:
        """Set a mark on channels."""
        self._marks[labels] |= mark

    def settled(self) -> tuple[Labels, list[str], NDArray[np.int64], NDArray[np.uint8]]:
        """Return the root of every label, all reasons, and of every root its reason (0: none) and marks."""
        everything = np.arange(self._count, dtype=np.int64)
        roots = self.roots(everything)
        reason = np.zeros(self._count, np.int64)
        given = np.flatnonzero(self._reason[: self._count])[::-1]
        reason[roots[given]] = self._reason[given]  # backwards: the first label's reason is written last
        marks = np.zeros(self._count, np.uint8)
        np.bitwise_or.at(marks, roots, self._marks[: self._count])
        return roots, list(self._reasons), reason, marks


def _root(parent: Labels, label: int) -> int:
    above = int(parent[label])
    while above != label:
        label, above = above, int(parent[above])
    return label
