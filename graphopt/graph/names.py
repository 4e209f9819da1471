"""Names that are new in every scope of a model, the same in every run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.graph.graphs import Graph


class NameAllocator:
    """Gives out names of tensors and nodes. One counter per base, no addresses, hashes or clocks."""

    def __init__(self) -> None:
        self._taken: set[str] | None = None
        self._repeated: set[str] = set()
        self._next: dict[str, int] = {}
        self._roots: Iterable[Graph] = ()

    def bind(self, roots: Iterable[Graph]) -> None:
        """Say which graphs the names have to be new in; they are looked at when the first name is asked for."""
        self._roots = roots
        self._taken = None

    def refresh(self) -> None:
        """Look at all names again, after edits that did not go through the rewriter."""
        self._taken = None

    def _names(self) -> set[str]:
        if self._taken is None:
            defined: list[str] = []
            others: list[str] = []
            for root in self._roots:
                for graph in _scopes(root):
                    defined += [t.name for t in {*graph.inputs, *graph.initializers}]
                    others += [t.name for t in graph.outputs]
                    if graph.record is not None:
                        others += graph.record.reserved_names()
                    for node in graph.nodes:
                        others.append(node.name)
                        others += [tensor.name for tensor in node.inputs]
                        defined += [tensor.name for tensor in node.outputs]
            taken = {*defined, *others}
            taken.discard("")
            self._taken = taken
            self._repeated = {name for name, count in Counter(defined).items() if count > 1}
        return self._taken

    def fresh(self, base: str, tag: str = "") -> str:
        """Return a name that no tensor and no node has, and reserve it.

        Args:
            base: What it is about: usually the name of the replaced tensor or node.
            tag: What was done: ``fresh("conv1", "dq")`` gives ``conv1__dq``, then ``conv1__dq_1`` and so on.
        """
        taken = self._names()
        stem = (base or "unnamed") + (f"__{tag}" if tag else "")
        if not tag and stem not in taken and base:
            taken.add(stem)
            return stem
        count = self._next.get(stem, 0)
        name = stem if count == 0 else f"{stem}_{count}"
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        self._next[stem] = count + 1
        taken.add(name)
        return name

    def reserve(self, name: str) -> bool:
        """Take a name if it is free; tell whether it was."""
        taken = self._names()
        if name in taken:
            return False
        taken.add(name)
        return True

    def is_repeated(self, name: str) -> bool:
        """Tell whether several tensors have this name, each in its scope; or had when names were first asked for."""
        self._names()
        return name in self._repeated

    def is_taken(self, name: str) -> bool:
        """Tell whether a tensor or a node has this name."""
        return name in self._names()


def _scopes(root: Graph) -> Iterable[Graph]:
    from graphopt.graph.scopes import nested_graphs

    return nested_graphs(root)
