"""The cheapest way to split nodes into two sides: a minimum cut, found by Dinic's algorithm."""

from __future__ import annotations

from collections import deque

SOURCE, SINK = 0, 1
ENDLESS = 1 << 80
"""A capacity that no cut can afford."""


class Network:
    """A directed network with whole-numbered capacities; node 0 is the source, node 1 the sink."""

    def __init__(self) -> None:
        self._arcs: list[list[int]] = [[], []]  # numbers of the arcs that leave a node; arc ^ 1 is its reverse
        self._heads: list[int] = []
        self._left: list[int] = []

    def node(self) -> int:
        """Return a new node."""
        self._arcs.append([])
        return len(self._arcs) - 1

    def arc(self, tail: int, head: int, capacity: int) -> None:
        """Add an arc that is cut where its tail is on the side of the source and its head on that of the sink."""
        if capacity <= 0 or tail == head:
            return
        self._arcs[tail].append(len(self._heads))
        self._heads.append(head)
        self._left.append(capacity)
        self._arcs[head].append(len(self._heads))
        self._heads.append(tail)
        self._left.append(0)

    def source_side(self) -> list[bool]:
        """Return for every node whether it is on the side of the source in the minimum cut next to the source."""
        while True:
            level = self._levels()
            if level[SINK] < 0:
                return [depth >= 0 for depth in level]
            self._saturate(level)

    def _levels(self) -> list[int]:
        level = [-1] * len(self._arcs)
        level[SOURCE] = 0
        queue = deque([SOURCE])
        while queue:
            node = queue.popleft()
            for arc in self._arcs[node]:
                head = self._heads[arc]
                if self._left[arc] and level[head] < 0:
                    level[head] = level[node] + 1
                    queue.append(head)
        return level

    def _saturate(self, level: list[int]) -> None:
        """Push flow along shortest paths until none is left; iterative, since paths may be long."""
        following = [0] * len(self._arcs)
        path: list[int] = []
        node = SOURCE
        while True:
            if node == SINK:
                amount = min(self._left[arc] for arc in path)
                for arc in path:
                    self._left[arc] -= amount
                    self._left[arc ^ 1] += amount
                cut = next(place for place, arc in enumerate(path) if not self._left[arc])
                node = self._heads[path[cut] ^ 1]
                del path[cut:]
                continue
            arcs = self._arcs[node]
            while following[node] < len(arcs):
                arc = arcs[following[node]]
                if self._left[arc] and level[self._heads[arc]] == level[node] + 1:
                    break
                following[node] += 1
            if following[node] < len(arcs):
                path.append(arcs[following[node]])
                node = self._heads[path[-1]]
            elif path:
                node = self._heads[path.pop() ^ 1]
                following[node] += 1
            else:
                return
