"""What a report says first: headline figures, skips grouped by reason, one row per layer. No markup here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from graphopt.report import text

if TYPE_CHECKING:
    from graphopt.report.report import LayerEntry, Quality, Report, WeightEntry

Tone = Literal["good", "bad", "neutral"]

NOISE_SHARE = 0.02
"""Latencies that differ by less than this are called the same: medians on a desktop machine repeat no better."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity of the model before and after.

    Attributes:
        label: Its name.
        before: The old value, in words; empty where there is none.
        after: The new value, in words.
        change: The change, in words; may be empty.
        tone: Whether the change is an improvement.
        before_value: The old value, for a bar; None where a bar says nothing.
        after_value: The new value, for a bar.
        detail: How it was measured; may be empty.
        major: Whether people ask for it first.
        share: For a share of something whole, 0..1: what a single bar shows.
    """

    label: str
    before: str
    after: str
    change: str
    tone: Tone
    before_value: float | None = None
    after_value: float | None = None
    detail: str = ""
    major: bool = True
    share: float | None = None


@dataclass(frozen=True, slots=True)
class SkipGroup:
    """Places that one pass left alone for one kind of reason.

    Attributes:
        pass_name: The pass.
        reason: The reason; names and numbers in which the members differ are written as an ellipsis.
        members: Node and its own complete reason.
    """

    pass_name: str
    reason: str
    members: tuple[tuple[str, str], ...]

    @property
    def uniform(self) -> bool:
        """True when all members have the same reason word for word."""
        return len({reason for _, reason in self.members}) == 1


@dataclass(slots=True)
class LayerRow:
    """Everything that is known about one layer.

    Attributes:
        name: Name of the node.
        op: Its operator.
        entries: What passes did, in order.
        skips: Passes that left it alone, with the reason.
        weight: Its weight before and after, where known.
    """

    name: str
    op: str
    entries: list[LayerEntry] = field(default_factory=list)
    skips: list[tuple[str, str]] = field(default_factory=list)
    weight: WeightEntry | None = None

    @property
    def status(self) -> Literal["changed", "reverted", "left", "untouched"]:
        """What became of the layer: changed by some pass, else taken back, else left on purpose, else not looked at."""
        if any(entry.kept for entry in self.entries):
            return "changed"
        if any(entry.reverted for entry in self.entries):
            return "reverted"
        return "left" if self.entries or self.skips else "untouched"


def figures(report: Report) -> list[Figure]:
    """Return the headline figures: size, latency, quality, parameters that are not zero, nodes."""
    before, after = report.model.before, report.model.after
    found = [
        Figure(
            "Size",
            text.size(before.bytes),
            text.size(after.bytes),
            text.ratio(before.bytes, after.bytes, smaller="smaller", larger="larger"),
            _tone(before.bytes, after.bytes),
            before.bytes,
            after.bytes,
            "on disk, weights included",
        )
    ]
    if report.latency_ms is not None:
        time = report.latency_ms
        same = abs(time.before - time.after) <= NOISE_SHARE * max(time.before, time.after)
        found.append(
            Figure(
                "Latency",
                text.milliseconds(time.before),
                text.milliseconds(time.after),
                "same" if same else text.ratio(time.before, time.after, smaller="faster", larger="slower"),
                "neutral" if same else _tone(time.before, time.after),
                time.before,
                time.after,
                f"median of {time.runs} runs each in turn, {_threads(time.threads)}"
                + (f"; fallback {text.milliseconds(time.fallback)}" if time.fallback is not None else ""),
            )
        )
    if report.quality is not None:
        found.extend(quality_figures(report.quality))
    found.append(
        Figure(
            "Nodes",
            text.count(before.nodes),
            text.count(after.nodes),
            _difference(before.nodes, after.nodes),
            "good" if after.nodes < before.nodes else "neutral",  # more nodes need not run slower: Q and DQ fuse
            before.nodes,
            after.nodes,
            "all scopes",
            major=False,
        )
    )
    found.append(
        Figure(
            "Parameters",
            text.short_count(before.parameters),
            text.short_count(after.parameters),
            _difference(before.parameters, after.parameters),
            "neutral",
            before.parameters,
            after.parameters,
            "elements of constant weights",
            major=False,
        )
    )
    return found


def quality_figures(quality: Quality) -> list[Figure]:
    """Return the figures of quality, the one that was judged first."""
    judged_tone: Tone = "good" if quality.met else "bad"
    detail = judged_on(quality)
    found = []
    own_metric = quality.after is not None
    if quality.after is not None:
        found.append(
            Figure(
                _metric_label(quality.metric),
                f"{quality.before:.4g}" if quality.before is not None else "",
                f"{quality.after:.4g}",
                _metric_change(quality.before, quality.after),
                judged_tone,
                detail="your metric",
            )
        )
    if quality.agreement is not None:
        error = "" if quality.standard_error is None else f" ± {100.0 * quality.standard_error:.1f}"
        label = "Agreement, order of similarities" if quality.metric == "similarity" else "Agreement"
        found.append(
            Figure(
                label,
                "",
                text.percent(quality.agreement) + error,
                "" if own_metric else loss_of(quality),
                "neutral" if own_metric else judged_tone,
                detail=detail,
                major=not own_metric,
                share=quality.agreement,
            )
        )
    if quality.kl is not None:
        error = "" if quality.kl_error is None else f" ± {quality.kl_error:.2g}"
        value = f"{quality.kl:.2g}{error} nats"
        found.append(Figure("Divergence", "", value, "", "neutral", detail=f"KL, {detail}", major=False))
    if quality.sqnr_db is not None:
        judged = not own_metric and quality.agreement is None
        found.append(
            Figure(
                "Signal to noise",
                "",
                decibels(quality.sqnr_db),
                "",
                judged_tone if judged else "neutral",
                detail=f"worst output, {detail}",
                major=judged,
            )
        )
    return found


def loss_of(quality: Quality) -> str:
    """Return the loss in words, where it is not obvious from the figure: empty when nothing was lost."""
    return (
        "" if not quality.drop or quality.budget is None else f"{quality.drop:.2g} of {quality.budget:.3g} points lost"
    )


def judged_on(quality: Quality) -> str:
    """Return on how many samples of what kind the quality was measured."""
    plural = "" if quality.samples == 1 else "s"
    if quality.held_back:
        return f"{text.count(quality.samples)} held-back sample{plural}"
    return f"{text.count(quality.samples)} sample{plural}, not held back"


def budget_line(quality: Quality) -> str:
    """Return one sentence on the budget."""
    if quality.budget is None:
        return "No budget was set."
    loss = "" if quality.drop is None else f" of {quality.drop:.3g}"
    budget = f"the budget of {quality.budget:.3g} {_budget_unit(quality)}"
    if quality.met and quality.drop is not None and quality.drop > quality.budget:
        if quality.expected_loss is not None:
            likely = f"{quality.expected_loss:.2g} ± {quality.expected_loss_error or 0.0:.2g} points of accuracy"
            return (
                f"The loss{loss} is more than {budget}, but the changed choices were between nearly equal classes: "
                f"they cost an expected {likely} on {judged_on(quality)}."
            )
        return f"The loss{loss} exceeds {budget} by less than its own standard error on {judged_on(quality)}."
    return f"The loss{loss} {'is within' if quality.met else 'exceeds'} {budget}."


def decibels(value: float) -> str:
    """Return a ratio in decibels; ratios of 120 dB and more mean equal outputs."""
    return "equal outputs" if value >= 120.0 else f"{value:.1f} dB"


def skip_groups(report: Report) -> list[SkipGroup]:
    """Return the skips grouped by pass and kind of reason, passes in order, the largest group first.

    A pass that ran several times is one pass here, and what it skipped each time is counted once.
    """
    groups: dict[str, dict[str, dict[tuple[str, str], None]]] = {}
    for entry in report.passes:
        kinds = groups.setdefault(entry.name, {})
        for skip in entry.skips:
            kinds.setdefault(_kind(skip.reason), {})[skip.node, skip.reason] = None
    found: list[SkipGroup] = []
    for name, kinds in groups.items():
        for kind, members in sorted(kinds.items(), key=lambda item: -len(item[1])):
            same = len({reason for _, reason in members}) == 1
            found.append(SkipGroup(name, next(iter(members))[1] if same else kind, tuple(members)))
    return found


def layer_rows(report: Report) -> list[LayerRow]:
    """Return one row per layer: those with weights in model order, then the others that passes spoke of."""
    rows: dict[str, LayerRow] = {}
    for weight in report.weights:
        row = rows.setdefault(weight.name, LayerRow(weight.name, weight.op))
        row.weight = weight
    for entry in report.layers:
        rows.setdefault(entry.name, LayerRow(entry.name, entry.op)).entries.append(entry)
    for step in report.passes:
        for skip in step.skips:
            if skip.node in rows and (step.name, skip.reason) not in rows[skip.node].skips:
                rows[skip.node].skips.append((step.name, skip.reason))
    return list(rows.values())


def _metric_label(name: str | None) -> str:
    words = (name or "metric").rpartition(":")[2].replace("_", " ")
    return words[:1].upper() + words[1:]


def _metric_change(before: float | None, after: float) -> str:
    if before is None:
        return ""
    return "same" if before == after else f"{after - before:+.3g}"


def _kind(reason: str) -> str:
    return re.sub(r"(?<![\w.])-?\d+(\.\d+)?(e-?\d+)?(?![\w])", "…", re.sub(r"'[^']*'|\"[^\"]*\"", "…", reason))


def _tone(before: float, after: float) -> Tone:
    if abs(before - after) < text.SAME * max(before, after):
        return "neutral"
    return "good" if after < before else "bad"


def _difference(before: int, after: int) -> str:
    if before == after:
        return "same"
    change = f"{'+' if after > before else '-'}{text.count(abs(after - before))}"
    if not before:
        return change
    percent = 100.0 * (after - before) / before
    if abs(percent) < 0.05:
        return change
    return f"{change} ({percent:+.{0 if abs(percent) >= 1.0 else 1}f} %)"


def _threads(count: int) -> str:
    if count == 0:
        return "threads chosen by ONNX Runtime"
    return f"{count} thread{'' if count == 1 else 's'}"


def _budget_unit(quality: Quality) -> str:
    if quality.after is not None:
        return "metric units"
    return "points of agreement" if quality.agreement is not None else "dB of SQNR below 40"
