"""The pass ``prune-channels``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from graphopt.analysis.channel_groups import ChannelGroups, Role
from graphopt.analysis.layer_statistics import CollectedStatistics, Layer, LayerStatistics, find_layers
from graphopt.analysis.row_scale import RowScale
from graphopt.passes.prune.channels.choice import Choice, kept_units
from graphopt.passes.prune.channels.reconstruction import Reconstruction
from graphopt.passes.prune.channels.slicing import slice_units
from graphopt.rewrite import Contract, LayerRecord, Pass, Patch, Skip, node_label

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from graphopt.analysis import Facts
    from graphopt.analysis.channel_groups import Group
    from graphopt.analysis.channel_groups.units import Labels
    from graphopt.graph import Model, Node, Rewriter

_KINDS = ("channels", "heads", "neurons")


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneChannels(Pass):
    """Take channels, attention heads and neurons out of the model, and let what stays make up for them.

    Attributes:
        ratio: Share of the units that goes from each group that may lose any, 0..1; one stays in any case.
        select: Which go: ``block-obs``, those that the layers reading them can best do without, the others solved
            again; ``correlation``, those that the others predict best; ``lasso``, those whose gates a penalty closes;
            ``l1`` and ``l2``, the least norm of the weights that make them; ``entropy``, the least entropy of their
            activations; ``random``. Without data those that need it become ``l2``.
        scope: ``group``: every group loses the same share; ``global``: as many operations go as with equal shares, but
            more of them where the layers that read them lose less, as ``block-obs`` or ``correlation`` measure it;
            groups that few rows were seen of keep the equal share.
        what: Kinds of units: ``channels`` of convolutions, ``heads`` of attention, ``neurons`` between two matrix
            products.
        tied: Also take channels that additions tie across layers, such as the width of a residual stream.
        multiple: What stays is rounded to a multiple of so many where a group has eight times as many or more.
        behind: Also solve again the layers behind those that lose columns.
        samples: Calibration samples that are run at most.
        rows: Rows of input that a layer is fitted and judged on, at most.
        damping: Pull towards the dense weights, relative to the mean square of the inputs.
        variance: Also scale each row so that its output varies as much as before; needs a bias that takes the mean.
        keep: Names of nodes whose weights make or read no unit that goes.

    Matches: Groups of channels of the main graph that can be followed from the weights that make them to the weights
        that read them, through whatever treats them alike.
    Produces: The same nodes with smaller constants; W z becomes V z_S, V = argmin E |W x - V z_S|^2, x and z what the
        layer reads before and after; the bias keeps the mean output. Sizes in shapes and attributes are counted anew.
        Without data the columns that stay are as they were.
    Requires: Units that no output of the model, no sum over them and no unknown operator needs.
    Preserves: Inputs and outputs, names, structure. Not values: LOSSY.
    Source: Fang et al. 2023, arXiv:2301.12900 (groups); Kurtic et al. 2023, arXiv:2302.04089, section 3 (block OBS); He
        et al. 2017, arXiv:1707.06168 (least squares, LASSO); Li et al. 2017, arXiv:1608.08710 (L1); Luo and Wu 2017,
        arXiv:1706.05791 (entropy); Jordan et al. 2022, arXiv:2211.08403 (variance).
    """

    name: ClassVar[str] = "prune-channels"
    contract: ClassVar[Contract] = Contract.LOSSY
    guard: ClassVar[str] = "strength"

    ratio: float = 0.25
    select: Literal["block-obs", "correlation", "lasso", "l1", "l2", "entropy", "random"] = "block-obs"
    scope: Literal["group", "global"] = "group"
    what: tuple[str, ...] = _KINDS
    tied: bool = False
    multiple: int = 8
    behind: bool = True
    samples: int = 512
    rows: int = 16384
    damping: float = 0.01
    variance: bool = True
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}, but it is a share between 0 and 1 (0.5 for half of the channels)")
        if self.multiple < 1:
            raise ValueError(f"multiple is {self.multiple}, but it must be 1 or more")
        for kind in self.what:
            if kind not in _KINDS:
                raise ValueError(f"what names {kind!r}, but there are only {', '.join(_KINDS)}")

    def with_strength(self, fraction: float) -> Self:
        """Return the pass at a share of its ratio."""
        return replace(self, ratio=self.ratio * fraction)

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield a patch per layer that is solved again, and one that takes the units out."""
        channels = facts.get(ChannelGroups)
        groups: list[Group] = []
        for group in channels.groups:
            reason = self._refusal(group)
            if reason:
                yield Skip(group.producers[0].node, f"its {len(group)} {group.kind} stay: {reason}")
            else:
                groups.append(group)
        for found in find_layers(model, keep=self.keep, depthwise=True, recurrent=True):
            if found.node.graph is not model.graph:
                followed = "it lies in a body, where channels are not followed"
                yield Skip(found.node, followed if isinstance(found, Layer) else found.reason)
        keep = {group: kept_units(group, self.ratio, self.multiple) for group in groups}
        if self.scope == "group":
            groups = [group for group in groups if keep[group] < len(group)]
        if not groups or all(keep[group] == len(group) for group in groups):
            return
        choice = Choice(channels, groups, keep, self.select, facts.seed)
        collected = facts.get(CollectedStatistics).found or facts.cached(LayerStatistics)
        if facts.feeds is not None or collected is not None:
            walk = Reconstruction(
                choice=choice,
                behind=self.behind,
                samples=self.samples,
                rows=self.rows,
                damping=self.damping,
                variance=self.variance,
                shared=self.scope == "global" and self.select in {"block-obs", "correlation"},
                multiple=self.multiple,
            )
            yield from walk.run(model, facts)
        for group in groups:
            if group not in choice.removed:
                choice.decide_by_weights(group)
        if not len(choice.units):
            return
        # weights were replaced and biases added since, which changes no label
        present = facts.get(ChannelGroups)
        assert [group.units.tolist() for group in present.groups] == [group.units.tolist() for group in channels.groups]
        scales = _scales(facts.get(RowScale), present, choice.units)
        yield self._removal(present, choice)
        facts.record(scales)

    def _refusal(self, group: Group) -> str:
        """Return why a group loses nothing."""
        if group.reason:
            return group.reason
        if len(group) < 2:
            return "there is only one"
        if group.kind not in self.what:
            return f"the option what does not name {group.kind}"
        if group.tied and not self.tied:
            return "additions tie them across layers; the option tied takes them"
        kept = next((node for node in _nodes(group) if node_label(node) in self.keep), None)
        return "" if kept is None else f"'{node_label(kept)}' is to be kept"

    def _removal(self, channels: ChannelGroups, choice: Choice) -> Patch:
        removed = choice.units
        records = []
        for group in choice.groups:
            if not len(choice.removed[group]):
                continue
            what = f"{len(group) - len(choice.removed[group])} of {len(group)} {group.kind} kept"
            reason = f"ranked by {choice.select}"
            records += [
                LayerRecord(node_label(each.node), each.node.op, what, reason=reason) for each in group.producers
            ]

        def apply(rewriter: Rewriter) -> None:
            slice_units(rewriter, channels, removed)

        counts = {kind: sum(len(choice.removed[g]) for g in choice.groups if g.kind == kind) for kind in _KINDS}
        text = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        nodes = tuple(dict.fromkeys(node for group in choice.groups for node in _nodes(group)))
        return Patch(f"take out {text}", nodes, apply, tuple(records))


def _nodes(group: Group) -> Iterator[Node]:
    for layer in (*group.producers, *group.consumers):
        yield layer.node


def _scales(scales: RowScale, channels: ChannelGroups, removed: Labels) -> RowScale:
    """Return the scales of folded weights without the rows that go."""
    for cut in channels.cuts:
        weight = cut.node.inputs[cut.index]
        if cut.role is not Role.CONSUME and scales.axis(weight.name) == cut.axis:
            scales = scales.cut(weight.name, channels.stays(cut.labels, removed))
    return scales
