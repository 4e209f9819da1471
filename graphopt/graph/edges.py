"""Edge lists: plain lists for graphsurgeon, exact and O(1) per edge for us.

A node's ``inputs`` and ``outputs`` hold tensors, a tensor's ``inputs`` (producers) and ``outputs`` (consumers, one
entry per edge) hold nodes; every change of one side changes the other. Three rules of the lists of graphsurgeon are
closed here: an iterable is read before anything changes, slices work, and an edge is found by identity.

Removing a node from the use list of a hub would scan the list. ``Uses`` therefore counts removals and filters them out
when the list is read next, so that moving n edges costs O(n) in whatever order they are moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")


def index_of(items: list[Any], item: object) -> int:
    """Return the position of an object by identity, else by equality, searching from the end.

    Raises:
        ValueError: The object is not in the list.
    """
    for position in range(list.__len__(items) - 1, -1, -1):
        if list.__getitem__(items, position) is item:
            return position
    return list.index(items, item)


class HookedList(list[T]):
    """A list that tells ``_linked`` and ``_unlinked`` about every element that enters or leaves it."""

    __slots__ = ()

    def _linked(self, item: T) -> None:
        raise NotImplementedError

    def _unlinked(self, item: T) -> None:
        raise NotImplementedError

    def append(self, item: T) -> None:
        """Append one element."""
        list.append(self, item)
        self._linked(item)

    def extend(self, items: Iterable[T]) -> None:
        """Append every element of an iterable, which is read first."""
        for item in list(items):
            self.append(item)

    def insert(self, index: SupportsIndex, item: T) -> None:
        """Insert one element."""
        list.insert(self, index, item)
        self._linked(item)

    def remove(self, item: T) -> None:
        """Remove one occurrence of an element: this very object if it is there."""
        del self[index_of(self, item)]

    def pop(self, index: SupportsIndex = -1) -> T:
        """Remove and return one element."""
        item = list.pop(self, index)
        self._unlinked(item)
        return item

    def clear(self) -> None:
        """Remove every element."""
        self[:] = ()

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice):
            new, old = list(value), list.__getitem__(self, index)
            list.__setitem__(self, index, new)
            for item in old:
                self._unlinked(item)
            for item in new:
                self._linked(item)
            return
        previous = list.__getitem__(self, index)
        if previous is value:
            return
        list.__setitem__(self, index, value)
        self._unlinked(previous)
        self._linked(value)

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        old = list.__getitem__(self, index)
        list.__delitem__(self, index)
        for item in cast("list[T]", old if isinstance(index, slice) else [old]):
            self._unlinked(item)

    def __iadd__(self, items: Iterable[T]) -> HookedList[T]:  # type: ignore[override]
        self.extend(items)
        return self

    def __imul__(self, count: SupportsIndex) -> HookedList[T]:
        items = list(self)
        self[:] = items * int(count)
        return self

    def __add__(self, other: Iterable[T]) -> list[T]:  # type: ignore[override]
        return [*self, *other]

    def __copy__(self) -> list[T]:
        return list(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[T]:
        return list(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return list, (list(self),)


class Edges(HookedList[Any]):
    """The ``inputs`` or ``outputs`` of a node; ``field`` names the list of the tensor that mirrors it."""

    __slots__ = ("field", "owner")

    def __init__(self, owner: object, field: str, initial: Iterable[Any] = ()) -> None:
        list.__init__(self)
        self.owner = owner
        self.field = field
        self.extend(initial)

    def _linked(self, item: Any) -> None:
        if type(getattr(item, self.field)) is not Uses:
            from graphopt.graph.adopt import adopt_tensor

            adopt_tensor(item)
        list.append(getattr(item, self.field), self.owner)

    def _unlinked(self, item: Any) -> None:
        getattr(item, self.field).discard_one(self.owner)


class Uses(HookedList[Any]):
    """The ``inputs`` (producers) or ``outputs`` (consumers) of a tensor; ``field`` is the mirrored list of the node."""

    __slots__ = ("_gone", "_gone_count", "field", "owner")

    def __init__(self, owner: object, field: str) -> None:
        list.__init__(self)
        self.owner = owner
        self.field = field
        self._gone: dict[int, int] | None = None
        self._gone_count = 0

    def discard_one(self, node: object) -> None:
        """Forget one edge to ``node``; the other side has been changed already. O(1), amortised."""
        if list.__len__(self) < 8 and self._gone is None:
            list.__delitem__(self, index_of(self, node))
            return
        if self._gone is None:
            self._gone = {}
        key = id(node)
        self._gone[key] = self._gone.get(key, 0) + 1
        self._gone_count += 1
        if self._gone_count * 2 > list.__len__(self):
            self._settle()

    def first(self) -> Any:
        """Return the first node or None; of the producers of a tensor there is at most one. O(1)."""
        if self._gone is not None:
            self._settle()
        return list.__getitem__(self, 0) if list.__len__(self) else None

    def _settle(self) -> None:
        gone = self._gone
        if gone is None:
            return
        self._gone, self._gone_count = None, 0
        kept = []
        for node in list.__iter__(self):
            left = gone.get(id(node), 0)
            if left:
                gone[id(node)] = left - 1
            else:
                kept.append(node)
        list.__setitem__(self, slice(None), kept)

    def _linked(self, item: Any) -> None:
        list.append(getattr(item, self.field), self.owner)

    def _unlinked(self, item: Any) -> None:
        edges = getattr(item, self.field)
        list.__delitem__(edges, index_of(edges, self.owner))

    def __iter__(self) -> Iterator[Any]:
        self._settle()
        return iter(tuple(list.__iter__(self)))

    def __len__(self) -> int:
        return list.__len__(self) - self._gone_count

    def __bool__(self) -> bool:
        return list.__len__(self) > self._gone_count

    def __getitem__(self, index: Any) -> Any:
        self._settle()
        return list.__getitem__(self, index)

    def __contains__(self, item: object) -> bool:
        self._settle()
        return any(node is item for node in list.__iter__(self))

    def __reversed__(self) -> Iterator[Any]:
        self._settle()
        return list.__reversed__(self)

    def __eq__(self, other: object) -> bool:
        self._settle()
        return list.__eq__(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        self._settle()
        return list.__repr__(self)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._settle()
        HookedList.__setitem__(self, index, value)

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        self._settle()
        HookedList.__delitem__(self, index)

    def insert(self, index: SupportsIndex, item: Any) -> None:
        """Insert one node."""
        self._settle()
        HookedList.insert(self, index, item)

    def pop(self, index: SupportsIndex = -1) -> Any:
        """Remove and return one node."""
        self._settle()
        return HookedList.pop(self, index)

    def index(self, item: Any, *limits: SupportsIndex) -> int:
        """Return the position of a node."""
        self._settle()
        return list.index(self, item, *limits)

    def count(self, item: Any) -> int:
        """Return the number of edges to a node."""
        self._settle()
        return list.count(self, item)

    def copy(self) -> list[Any]:
        """Return a plain list of the nodes."""
        return list(self)


def set_edges(self: Any, name: str, value: Any) -> None:
    """Set an attribute of a node or a tensor; ``inputs`` and ``outputs`` keep their list and change its contents."""
    if name in {"inputs", "outputs"} and name in self.__dict__:
        current = self.__dict__[name]
        if value is not current:
            current[:] = list(value)
    else:
        object.__setattr__(self, name, value)
