"""Node counts of every tool as text: on each model the best peer, the best chain of peers and graphopt; the sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.simplify_peers import NOT_PORTABLE, OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Row = dict[str, Any]
_LEGEND = """\
Nodes over all scopes, Constant nodes left out. = bit-equal, ~ equal within rounding, X wrong values, L does not load or
run, I invalid for the checker, F another interface, r dimensions named or refined, o overridable weights no longer
override, * other than standard operators, - not run or failed. A best result is valid: equal values, checker,
interface, standard operators. Peers may refine dimensions and lose overriding, except where it says strict."""


def best(rows: Iterable[Row], *, chains: bool, strict: bool = False) -> Row | None:
    """Return the valid result of fewest nodes among peers, or among chains of peers and peers."""
    found = [
        row
        for row in rows
        if row.get("valid")
        and row["tool"] != OURS
        and row["tool"] not in NOT_PORTABLE
        and (chains or ">" not in row["tool"])
        and (not strict or (row["interface"] == "same" and row["overriding"] in {"none", "kept"}))
    ]
    return min(found, key=lambda row: row["nodes"], default=None)


def marks(row: Row | None) -> str:
    """Return the node count with letters for what is special about it."""
    if row is None or row.get("error"):
        return "-"
    letters = row["equality"] if row["equality"] in {"=", "~"} else "X" if row["equality"] == "wrong" else "L"
    letters += "I" if row["checker"].startswith("fails") else ""
    letters += "" if row["interface"] == "same" else "r" if row["interface"].endswith("refined") else "F"
    letters += "o" if row["overriding"] not in {"none", "kept", "not tested"} else ""
    letters += "*" if row["domains"] else ""
    return f"{row['nodes']}{letters}"


def node_table(rows: Sequence[Row], tools: Sequence[str]) -> str:
    """Return the table, a line for each model, and the sums over models where all named have a result."""
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    singles = [tool for tool in tools if ">" not in tool and tool != OURS]
    chains = [tool for tool in tools if ">" in tool]
    columns = ["model", "original", *singles, *(f"chain {i + 1}" for i in range(len(chains)))]
    columns += ["best peer", "best strict", "best chain", "ours", "behind"]
    lines = [columns]
    sums = {"best peer": 0, "best strict": 0, "best chain": 0, "ours": 0}
    worse: list[str] = []
    for model, found in by_model.items():
        named = {row["tool"]: row for row in found}
        peer, strict = best(found, chains=False), best(found, chains=False, strict=True)
        chain, ours = best(found, chains=True), named.get(OURS)
        own = ours["nodes"] if ours is not None and not ours.get("error") else None
        line = [model, str(found[0]["original_nodes"]), *(marks(named.get(tool)) for tool in [*singles, *chains])]
        line += [f"{row['nodes']} {row['tool']}" if row else "-" for row in (peer, strict)]
        line += [str(chain["nodes"]) if chain else "-", marks(ours)]
        behind = own - peer["nodes"] if own is not None and peer is not None else None
        line.append("" if behind is None else f"{behind:+d}")
        lines.append(line)
        if own is None or peer is None or strict is None or chain is None:
            continue
        for name, count in zip(sums, (peer["nodes"], strict["nodes"], chain["nodes"], own), strict=True):
            sums[name] += count
        if own > peer["nodes"]:
            worse.append(f"{model} ({own} to {peer['nodes']}, strict {strict['nodes']})")
    text = aligned(lines)
    numbered = "\n".join(f"chain {i + 1}: {tool.replace('>', ' > ')}" for i, tool in enumerate(chains))
    total = ", ".join(f"{name} {count}" for name, count in sums.items())
    behind_on = f"Behind the best peer on: {', '.join(worse) or 'none'}"
    return f"{text}\n\nSums: {total}\n{behind_on}\n{numbered}\n{_LEGEND}"


def aligned(lines: Sequence[Sequence[str]], pad: Callable[[str, int], str] = str.ljust) -> str:
    """Return rows of cells as text in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(pad, line, widths)).rstrip() for line in lines)
