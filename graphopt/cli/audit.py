"""``graphopt audit``: what the runtime makes of a quantized model, whoever made it, and which rules it breaks."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli.job import add_target
from graphopt.cli.outputs import refuse_file
from graphopt.cli.terminal import log, write, write_json
from graphopt.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import RenderableType

    from graphopt.cli.parser import Parser
    from graphopt.repair import Repaired
    from graphopt.target import BrokenRule
    from graphopt.target.audit import Audit

BROKEN = 4
"""Status where a rule is broken that matters for the result."""

COSTS = {True: "wrong or refused", False: "time"}
PLAIN = ("repairs", "left", "times", "random", "refusal", "failure")
"""What --json has of a repair as it is."""

REPAIRS = {
    "written-zero": "zero points written out",
    "shared-signed": "int8 activations as the uint8 that stand for the same numbers",
    "one-scale": "one scale for activations that had one per channel",
    "weight-form": "float weights stored as the integers they were rounded to",
    "plain-constant": "bounds and parameters that were stored as integers as constants",
    "whole-table": "integers looked up, what was found restored",
    "batch-norm": "BatchNormalization taken into the scales of the weight before it",
    "pair-before-activation": "no rounding between an operator and the Relu or Clip behind it",
    "cut-off": "grids that end where the Relu or Clip before them does",
    "weight-axis": "weights rounded anew, one scale per output",
    "weight-zeros": "weights with zero point 0, one scale per output",
    "weight-limit": "weights up to 64, so that products fit 16 bits",
    "equal-grids": "one grid before and behind data movement",
    "open-result": "a pair behind operators whose result was not rounded",
    "several-readers": "one pair for all that reads a tensor",
    "gemm-factor": "factors of Gemm taken into its weight and bias",
    "all-inputs": "constant operands rounded too",
    "bias-scale": "biases as int32 on the product of the scales",
    "integer-movement": "data movement on the integers themselves",
    "idle-pair": "rounding removed that no integer operator stands beside",
}
MOST_LEFT = 8
NAME, REASON = 40, 160
"""Characters of names and reasons that are shown; --json has all."""


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file or a bundle")
    parser.add_argument("--data", metavar="FEEDS", help="inputs to compare on; seeded random ones by default")
    parser.add_argument(
        "--repair", action="store_true", help="mend what keeps the runtime from integers, and write the model to -o"
    )
    parser.add_argument("-o", "--output", metavar="OUT.onnx", help="the file for the mended model")
    add_target(parser)
    parser.epilog = (
        "examples:\n  graphopt audit int8.onnx\n  graphopt audit int8.onnx --target tensorrt\n"
        "  graphopt audit int8.onnx --repair -o mended.onnx --data feeds.npz\n\n"
        "With --repair, --data also shows the ranges of tensors that lack a pair.\n"
        "The status is 4 where a broken rule makes results wrong or gets the model refused."
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the model against the rules of the target, let the runtime optimize it, and print what came of it."""
    if arguments.repair or arguments.output is not None:
        return _repair(arguments)
    from graphopt.target.audit import audit

    feeds = None
    if arguments.data is not None:
        from graphopt.runtime import Feeds, session

        feeds = Feeds.open(arguments.data, session(arguments.model))
    found = audit(arguments.model, arguments.target, feeds=feeds)
    if arguments.json:
        write_json(asdict(found))
    else:
        write(_page(found))
    return BROKEN if any(rule.serious for rule in found.broken) else 0


def _repair(arguments: argparse.Namespace) -> int:
    """Mend the model, print what came of it, write it."""
    if not arguments.repair:
        raise UsageError("an audit alone writes no model", where="-o", do="Give --repair too, or leave it out")
    if arguments.output is None:
        raise UsageError("the mended model needs a file", where="--repair", do="Give -o OUT.onnx")
    output = Path(arguments.output)
    refuse_file(output, force=arguments.force)
    from graphopt.repair import repair
    from graphopt.target import find_target

    if find_target(arguments.target).session is None:
        must = "Quantize the float model with --target of this runtime, or take this one back with --requantize"
        raise UsageError(f"there are no repairs for {arguments.target}", where="--repair", must=must)
    found = repair(arguments.model, arguments.target, data=arguments.data, seed=arguments.seed)
    found.model.save(output, force=arguments.force)
    log(f"wrote {output}", quiet=arguments.quiet)
    if arguments.json:
        write_json({**{name: getattr(found, name) for name in PLAIN}, **_figures(found)})
    else:
        write(_repair_page(found))
    return BROKEN if any(rule.serious for rule in found.after.broken) else 0


def _figures(found: Repaired) -> dict[str, object]:
    return {
        "before": asdict(found.before),
        "after": asdict(found.after),
        "quality": None if found.quality is None else asdict(found.quality),
    }


def _repair_page(found: Repaired) -> str:
    from rich.console import Group
    from rich.text import Text

    from graphopt.report import text
    from graphopt.report.console import table, to_text

    counts = [
        ("integer operators", found.before.integer_count, found.after.integer_count),
        ("float operators beside them", found.before.floating_count, found.after.floating_count),
        ("conversions left", found.before.conversions, found.after.conversions),
        ("rules broken", len(found.before.broken), len(found.after.broken)),
    ]
    rows = [(name, text.count(before), text.count(after)) for name, before, after in counts]
    if found.times is not None:
        rows.append(("one run, ms", f"{found.times[0]:.3g}", f"{found.times[1]:.3g}"))
    parts: list[RenderableType] = [table(("as the runtime optimizes it", "given", "mended"), rows, left=1)]
    if found.refusal:
        parts += [Text(), Text(f"The model is returned as it was: {found.refusal}.")]
    elif found.repairs:
        done = [(rule, REPAIRS[rule], text.count(number)) for rule, number in found.repairs.items()]
        parts += [Text(), table(("mended", "how", "nodes"), done, left=2)]
    else:
        parts += [Text(), Text("Nothing to mend.")]
    if found.left:
        left = [(_short(name), _short(why, REASON)) for name, why in list(found.left.items())[:MOST_LEFT]]
        parts += [Text(), table(("left as it is", "reason"), left, left=2)]
        if len(found.left) > MOST_LEFT:
            parts += [Text(f"and {len(found.left) - MOST_LEFT} more; --json has all")]
    if found.quality is not None:
        on = "random inputs" if found.random else f"{found.quality.samples} samples"
        agreement = "" if found.quality.agreement is None else f", {100 * found.quality.agreement:.4g} % agreement"
        parts += [Text(), Text(f"Beside the given model on {on}: {found.quality.worst_sqnr_db:.1f} dB{agreement}.")]
    if found.failure:
        parts += [Text(), Text(f"The two could not be compared: {found.failure}")]
    if found.after.broken:
        parts += [Text(), *_broken(found.after.broken)]
    return to_text(Group(*parts))


def _page(found: Audit) -> str:
    from rich.console import Group
    from rich.text import Text

    from graphopt.report import text
    from graphopt.report.console import table, to_text
    from graphopt.target import find_target

    rows = [
        *((op, "integer", text.count(number)) for op, number in found.integer.items()),
        *((op, "moves integers", text.count(number)) for op, number in found.moving.items()),
        *((op, "float", text.count(number)) for op, number in found.floating.items()),
        ("QuantizeLinear, DequantizeLinear", "between them", text.count(found.conversions)),
    ]
    title = "operator after optimization" if found.ran else "operator, as the model declares it"
    parts: list[RenderableType] = [table((title, "computes in", "nodes"), rows, left=2), Text()]
    if not found.ran:
        runtime = find_target(found.target).runtime
        parts += [Text(f"{runtime} is not installed here: the model was checked against its rules, not run.")]
    if found.optimization_error is not None:
        error = f"Optimization by the runtime changes outputs by at most {100 * found.optimization_error:.3g} %."
        parts += [Text(error)]
    if found.failure:
        parts += [Text(f"The model runs only where the runtime optimizes it: {found.failure}")]
    if found.stayed_float:
        shown = [(node.name, node.op, node.rule, node.reason) for node in found.stayed_float]
        parts += [Text(), table(("stays float", "operator", "rule", "reason"), shown, left=4)]
    if found.broken:
        parts += [Text(), *_broken(found.broken)]
    elif not found.ran:
        parts += [Text(f"No rule of {found.target} is broken.")]
    return to_text(Group(*parts))


def _broken(broken: Sequence[BrokenRule]) -> list[RenderableType]:
    """Return a table of the rules with their remedies, and one of the nodes that break them."""
    from rich.text import Text

    from graphopt.report import text
    from graphopt.report.console import table

    worst_first = sorted(broken, key=lambda each: not each.serious)
    counts = Counter(each.rule for each in worst_first)
    rules = {each.rule: each for each in worst_first}.values()
    summary = [(each.rule, COSTS[each.serious], each.remedy, text.count(counts[each.rule])) for each in rules]
    lines = [(each.rule, _short(each.node), each.op, _short(each.reason, REASON)) for each in worst_first]
    return [
        table(("broken rule", "costs", "remedy", "nodes"), summary, left=3),
        Text(),
        table(("rule", "node", "operator", "reason"), lines, left=4),
    ]


def _short(name: str, length: int = NAME) -> str:
    """Return the end of a long name: some exporters write names of several lines."""
    return name if len(name) <= length else f"…{name[1 - length :]}"
