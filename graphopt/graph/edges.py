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
        self.owner = owner
        self.field = field
        for item in list(initial):
            list.append(self, item)
            self._linked(item)

    def _linked(self, item: Any) -> None:
        uses = getattr(item, self.field)
        if not isinstance(uses, Uses):
            from graphopt.graph.adopt import adopt_tensor

            adopt_tensor(item)
            uses = getattr(item, self.field)
        list.append(uses, self.owner)

    def _unlinked(self, item: Any) -> None:
        getattr(item, self.field).discard_one(self.owner)

    def clear(self) -> None:
        """Remove every tensor."""
        old = self[:]
        list.clear(self)
        field, owner = self.field, self.owner
        for item in old:
            getattr(item, field).discard_one(owner)


class Uses(HookedList[Any]):
    """The ``inputs`` (producers) or ``outputs`` (consumers) of a tensor; ``field`` is the mirrored list of the node.

    Its length, its truth and its elements are asked for all the time, so they are those of a plain list, which are not
    written in Python; while removed edges are still to be filtered out, the list is of the class `ThinnedUses`.
    """

    __slots__ = ("_gone", "_gone_count", "field", "owner")

    _gone: dict[int, int]
    """By the identity of a node, how many of its edges have gone; only where the class is `ThinnedUses`."""

    _gone_count: int

    owner: object
    field: str

    def discard_one(self, node: object) -> None:
        """Forget one edge to ``node``; the other side has been changed already. O(1), amortised."""
        if len(self) < 8:
            list.__delitem__(self, -1 if self and self[-1] is node else index_of(self, node))
        else:
            self._gone, self._gone_count = {}, 0
            self.__class__ = ThinnedUses
            self.discard_one(node)

    def first(self) -> Any:
        """Return the first node or None; of the producers of a tensor there is at most one. O(1)."""
        return self[0] if self else None

    def _linked(self, item: Any) -> None:
        list.append(getattr(item, self.field), self.owner)

    def _unlinked(self, item: Any) -> None:
        edges = getattr(item, self.field)
        list.__delitem__(edges, index_of(edges, self.owner))

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])  # edges may change meanwhile

    def __contains__(self, item: object) -> bool:
        return any(node is item for node in self[:])

    def copy(self) -> list[Any]:
        """Return a plain list of the nodes."""
        return self[:]


def new_uses(tensor: object) -> tuple[Uses, Uses]:
    """Return the producers and the consumers of a new tensor, none yet."""
    makers, readers = Uses(), Uses()  # tensors are made by the ten thousand: an __init__ would double the time
    makers.owner = readers.owner = tensor
    makers.field, readers.field = "outputs", "inputs"
    return makers, readers


class ThinnedUses(Uses):
    """Uses of which some are still in the list although they have gone; most questions filter them out first."""

    __slots__ = ()

    def discard_one(self, node: object) -> None:
        """Forget one edge to ``node``; the other side has been changed already. O(1), amortised."""
        key = id(node)
        self._gone[key] = self._gone.get(key, 0) + 1
        self._gone_count += 1
        if self._gone_count * 2 > list.__len__(self):
            self._settle()

    def _settle(self) -> None:
        """Filter out what has gone, after which the list is as any other."""
        gone = self._gone
        kept = []
        for node in list.__iter__(self):
            left = gone.get(id(node), 0)
            if left:
                gone[id(node)] = left - 1
            else:
                kept.append(node)
        self.__class__ = Uses  # type: ignore[assignment]
        list.__setitem__(self, slice(None), kept)

    def first(self) -> Any:
        """Return the first node or None. O(1), amortised."""
        self._settle()
        return self.first()

    def __iter__(self) -> Iterator[Any]:
        self._settle()
        return iter(self)

    def __len__(self) -> int:
        return list.__len__(self) - self._gone_count

    def __bool__(self) -> bool:
        return list.__len__(self) > self._gone_count

    def __getitem__(self, index: Any) -> Any:
        self._settle()
        return self[index]

    def __contains__(self, item: object) -> bool:
        self._settle()
        return item in self

    def __reversed__(self) -> Iterator[Any]:
        self._settle()
        return reversed(self)

    def __eq__(self, other: object) -> bool:
        self._settle()
        return self == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        self._settle()
        return repr(self)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._settle()
        self[index] = value

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        self._settle()
        del self[index]

    def insert(self, index: SupportsIndex, item: Any) -> None:
        """Insert one node."""
        self._settle()
        self.insert(index, item)

    def pop(self, index: SupportsIndex = -1) -> Any:
        """Remove and return one node."""
        self._settle()
        return self.pop(index)

    def index(self, item: Any, *limits: SupportsIndex) -> int:
        """Return the position of a node."""
        self._settle()
        return self.index(item, *limits)

    def count(self, item: Any) -> int:
        """Return the number of edges to a node."""
        self._settle()
        return self.count(item)

    def copy(self) -> list[Any]:
        """Return a plain list of the nodes."""
        self._settle()
        return self.copy()


def set_edges(self: Any, name: str, value: Any) -> None:
    """Set an attribute of a node or a tensor; ``inputs`` and ``outputs`` keep their list and change its contents."""
    if name in {"inputs", "outputs"} and name in self.__dict__:
        current = self.__dict__[name]
        if value is not current:
            current[:] = list(value)
    else:
        object.__setattr__(self, name, value)
