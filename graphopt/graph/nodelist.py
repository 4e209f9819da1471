"""The node list of a graph: a list for graphsurgeon, a linked list with position labels for the rewriter.

Both forms exist and either may be out of date: reading as a list rebuilds the list in one pass, an O(1) edit rebuilds
the links in one pass if plain list operations changed the order in between. Labels grow along the list, so that two
nodes of one graph are compared in O(1). Iteration goes over a snapshot: editing while iterating is safe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex

from graphopt.graph.edges import Edges, HookedList, Uses, index_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Python integers have no upper bound: 1024 insertions fit between two neighbours before all labels are renewed.
_GAP = 1 << 1024


class NodeList(HookedList[Any]):
    """The nodes of one graph, in order. Every node in it has ``node.graph`` set to that graph."""

    __slots__ = ("_first", "_last", "_linked_now", "_listed_now", "_size", "graph")

    def __init__(self, graph: object, nodes: Iterable[Any] = ()) -> None:
        list.__init__(self, nodes)
        self.graph = graph
        self._linked_now = False
        self._listed_now = True
        self._first: Any = None
        self._last: Any = None
        self._size = 0
        for node in list.__iter__(self):
            self._take(node)

    # ------------------------------------------------------------------------------------------------ O(1) editing

    def insert_before(self, anchor: Any, node: Any) -> None:
        """Insert ``node`` directly before ``anchor``. O(1)."""
        self._link()
        self._insert(node, anchor.link_prev, anchor)

    def insert_after(self, anchor: Any, node: Any) -> None:
        """Insert ``node`` directly after ``anchor``. O(1)."""
        self._link()
        self._insert(node, anchor, anchor.link_next)

    def insert_last(self, node: Any) -> None:
        """Insert ``node`` at the end. O(1)."""
        self._link()
        self._insert(node, self._last, None)

    def discard(self, node: Any) -> None:
        """Remove ``node``. O(1)."""
        self._link()
        fields = node.__dict__  # here and below: past __setattr__, which watches inputs and outputs
        before, after = fields["link_prev"], fields["link_next"]
        if before is None:
            self._first = after
        else:
            before.__dict__["link_next"] = after
        if after is None:
            self._last = before
        else:
            after.__dict__["link_prev"] = before
        fields["link_prev"] = fields["link_next"] = fields["graph"] = None
        self._size -= 1
        self._listed_now = False

    def label(self, node: Any) -> int:
        """Return a number that is larger than that of every node before ``node`` in this list. O(1)."""
        if not self._linked_now:
            self._link()
        return node.link_label  # type: ignore[no-any-return]

    def labelled(self) -> list[Any]:
        """Return the nodes, of which each has its label in ``link_label`` until the list changes. O(nodes)."""
        self._link()
        return list(self)

    def _insert(self, node: Any, before: Any, after: Any) -> None:
        self._take(node)
        fields = node.__dict__
        fields["link_prev"], fields["link_next"] = before, after
        if before is None:
            self._first = node
        else:
            before.__dict__["link_next"] = node
        if after is None:
            self._last = node
        else:
            after.__dict__["link_prev"] = node
        self._size += 1
        self._listed_now = False
        low = before.link_label if before is not None else (after.link_label - 2 * _GAP if after is not None else 0)
        high = after.link_label if after is not None else low + 2 * _GAP
        if high - low < 2:
            self._renumber()
        else:
            fields["link_label"] = (low + high) // 2

    def _renumber(self) -> None:
        label, node = 0, self._first
        while node is not None:
            label += _GAP
            node.link_label = label
            node = node.link_next

    def _link(self) -> None:
        if self._linked_now:
            return
        before, label, size = None, 0, 0
        self._first = None
        for node in list.__iter__(self):
            label += _GAP
            size += 1
            fields = node.__dict__
            fields["link_label"], fields["link_prev"], fields["link_next"] = label, before, None
            if before is None:
                self._first = node
            else:
                before.__dict__["link_next"] = node
            before = node
        self._last = before
        self._size = size
        self._linked_now = True

    # ------------------------------------------------------------------------------------------------ as a list

    def settle(self) -> None:
        """Rebuild the plain list if O(1) edits changed it. O(nodes)."""
        if self._listed_now:
            return
        nodes, node = [], self._first
        while node is not None:
            nodes.append(node)
            node = node.link_next
        list.__setitem__(self, slice(None), nodes)
        self._listed_now = True

    def _changing(self) -> None:
        self.settle()
        self._linked_now = False

    def _take(self, node: Any) -> None:
        if type(getattr(node, "inputs", None)) is not Edges:
            from graphopt.graph.adopt import adopt_node

            adopt_node(node)
        node.__dict__["graph"] = self.graph

    def _linked(self, item: Any) -> None:
        self._take(item)

    def _unlinked(self, item: Any) -> None:
        if getattr(item, "graph", None) is self.graph and not any(node is item for node in list.__iter__(self)):
            item.graph = None

    def append(self, item: Any) -> None:
        """Append one node."""
        if self._linked_now:
            listed = self._listed_now
            self._insert(item, self._last, None)
            if listed:
                list.append(self, item)
                self._listed_now = True
            return
        list.append(self, item)
        self._take(item)

    def insert(self, index: SupportsIndex, item: Any) -> None:
        """Insert one node."""
        self._changing()
        HookedList.insert(self, index, item)

    def remove(self, item: Any) -> None:
        """Remove one node: this very object."""
        self._changing()
        del self[index_of(self, item)]

    def pop(self, index: SupportsIndex = -1) -> Any:
        """Remove and return one node."""
        self._changing()
        return HookedList.pop(self, index)

    def reverse(self) -> None:
        """Reverse the order."""
        self._changing()
        list.reverse(self)

    def sort(self, **options: Any) -> None:
        """Sort in place."""
        self._changing()
        list.sort(self, **options)

    def replace_all(self, nodes: Iterable[Any]) -> None:
        """Take these nodes, in this order, instead of the present ones."""
        new = list(nodes)
        self._changing()
        for node in list.__iter__(self):
            node.__dict__["graph"] = None
        list.__setitem__(self, slice(None), new)
        for node in new:
            self._take(node)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice) and index == slice(None):
            self.replace_all(value)
            return
        self._changing()
        HookedList.__setitem__(self, index, value)

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        self._changing()
        HookedList.__delitem__(self, index)

    def __iter__(self) -> Iterator[Any]:
        self.settle()
        return iter(tuple(list.__iter__(self)))

    def __reversed__(self) -> Iterator[Any]:
        return iter(tuple(self)[::-1])

    def __len__(self) -> int:
        return list.__len__(self) if self._listed_now else self._size

    def __bool__(self) -> bool:
        return len(self) > 0

    def __getitem__(self, index: Any) -> Any:
        self.settle()
        return list.__getitem__(self, index)

    def __contains__(self, item: object) -> bool:
        return any(node is item for node in self)

    def __eq__(self, other: object) -> bool:
        self.settle()
        return list.__eq__(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} nodes>"

    def index(self, item: Any, *limits: SupportsIndex) -> int:
        """Return the position of a node."""
        self.settle()
        return list.index(self, item, *limits)

    def count(self, item: Any) -> int:
        """Return how often a node is in the list."""
        self.settle()
        return list.count(self, item)

    def copy(self) -> list[Any]:
        """Return a plain list of the nodes."""
        return list(self)


class RoleList(HookedList[Any]):
    """The ``inputs`` or ``outputs`` of a graph; every tensor in it knows the graph in its ``roles``."""

    __slots__ = ("graph", "role")

    def __init__(self, graph: object, role: str, tensors: Iterable[Any] = ()) -> None:
        list.__init__(self)
        self.graph = graph
        self.role = role
        self.extend(tensors)

    def _linked(self, item: Any) -> None:
        if not isinstance(item.inputs, Uses):
            from graphopt.graph.adopt import adopt_tensor

            adopt_tensor(item)
        item.roles = (*getattr(item, "roles", ()), (self.role, self.graph))

    def _unlinked(self, item: Any) -> None:
        roles = list(getattr(item, "roles", ()))
        for position in range(len(roles) - 1, -1, -1):
            if roles[position][0] == self.role and roles[position][1] is self.graph:
                del roles[position]
                break
        item.roles = tuple(roles)

    def __contains__(self, item: object) -> bool:
        return any(tensor is item for tensor in self)
