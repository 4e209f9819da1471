"""Takes channels out of a graph: constants are cut, numbers that count channels are counted anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, Variable, constant_value, is_graph_output, producer, uses

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from graphopt.analysis.channel_groups import ChannelGroups
    from graphopt.graph import Node, Rewriter, Tensor

    Place = tuple[Node, int]
    Key = tuple[tuple[Any, ...], ...]


class _Edit:
    """What changes in one constant at one place where it is read."""

    def __init__(self) -> None:
        self.keeps: dict[int, NDArray[np.bool_]] = {}
        self.numbers: dict[int, int] = {}
        self.whole: NDArray[Any] | None = None

    def key(self) -> Key:
        """Return something equal for equal edits."""
        keeps = tuple((axis, keep.tobytes()) for axis, keep in sorted(self.keeps.items()))
        whole = () if self.whole is None else (self.whole.tobytes(), self.whole.shape)
        return keeps, tuple(sorted(self.numbers.items())), whole

    def apply(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return the new value."""
        if self.whole is not None:
            value = self.whole.astype(value.dtype)
        for axis, keep in self.keeps.items():
            value = np.compress(keep, value, axis=axis)
        if self.numbers:
            value = np.array(value)
            for position, number in self.numbers.items():
                value.reshape(-1)[position] = number
        return np.ascontiguousarray(value) if value.ndim else value


def slice_units(rewriter: Rewriter, channels: ChannelGroups, removed: NDArray[np.int64]) -> None:
    """Take units out of the graph that `channels` was computed from.

    A constant that several places cut differently becomes one constant each.

    Args:
        rewriter: Edits the model.
        channels: The analysis of its present graph.
        removed: Units, of any groups that have no reason to stay.
    """
    edits: dict[Place, _Edit] = {}
    for cut in channels.cuts:
        keep = channels.stays(cut.labels, removed)
        if not keep.all():
            edits.setdefault((cut.node, cut.index), _Edit()).keeps[cut.axis] = keep
    for count in channels.counts:
        keep = channels.stays(count.labels, removed)
        if keep.all():
            continue
        number = int(keep.sum()) // count.per
        if isinstance(count.place, int):
            assert count.position is not None
            edits.setdefault((count.node, count.place), _Edit()).numbers[count.position] = number
        else:
            _set_number(rewriter, count.node, count.place, count.position, number)
    for lookup in channels.lookups:
        keep, stays = channels.stays(lookup.source, removed), channels.stays(lookup.labels, removed)
        if not keep.all():
            old = constant_value(lookup.node.inputs[1])
            assert old is not None
            edits.setdefault((lookup.node, 1), _Edit()).whole = (np.cumsum(keep) - 1)[old.ravel()[stays]]
    for even in channels.even_splits:
        sizes = [int(channels.stays(part, removed).sum()) for part in even.parts]
        if len(set(sizes)) > 1:
            _state_sizes(rewriter, even.node, sizes)
    _cut(rewriter, edits)
    for tensor, axes in channels.tensors.items():
        kept = {axis: channels.stays(labels, removed) for axis, labels in axes.items()}
        if isinstance(tensor, Variable) and tensor.shape is not None and not all(keep.all() for keep in kept.values()):
            shape = [int(kept[axis].sum()) if axis in kept else size for axis, size in enumerate(tensor.shape)]
            rewriter.set_type(tensor, tensor.dtype, shape)


def _set_number(rewriter: Rewriter, node: Node, attribute: str, position: int | None, number: int) -> None:
    if position is None:
        rewriter.set_attr(node, attribute, number)
        return
    values = list(node.attrs[attribute])
    values[position] = number
    rewriter.set_attr(node, attribute, values)


def _state_sizes(rewriter: Rewriter, node: Node, sizes: list[int]) -> None:
    assert node.graph is not None
    if node.graph.opset < 13:
        rewriter.set_attr(node, "split", sizes)
        return
    if "num_outputs" in node.attrs:
        rewriter.set_attr(node, "num_outputs", None)
    name = f"{node.outputs[0].name}_sizes"
    rewriter.set_input(node, 1, rewriter.constant(np.array(sizes, np.int64), name=name, near=node))


def _cut(rewriter: Rewriter, edits: dict[Place, _Edit]) -> None:
    by_tensor: dict[Tensor, dict[Key, list[Place]]] = {}
    for (node, index), edit in edits.items():
        by_tensor.setdefault(node.inputs[index], {}).setdefault(edit.key(), []).append((node, index))
    for tensor, variants in by_tensor.items():
        old = constant_value(tensor)
        assert old is not None
        places = [place for some in variants.values() for place in some]
        alone = len(variants) == 1 and _all_uses(tensor, places)
        for some in variants.values():
            value = edits[some[0]].apply(old)
            if alone and isinstance(tensor, Constant):
                rewriter.set_weight(tensor, value)
                continue
            made = rewriter.constant(value, name=tensor.name, near=some[0][0])
            for node, index in some:
                rewriter.set_input(node, index, made)
        maker = producer(tensor)
        if maker is not None and not uses(tensor) and not is_graph_output(tensor):
            rewriter.erase(maker)


def _all_uses(tensor: Tensor, places: Iterable[Place]) -> bool:
    return {(use.node, use.index) for use in uses(tensor)} == set(places) and not is_graph_output(tensor)
