"""What rows of the comparison say: the best peer of each point, whether ours is better, and the table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from benchmarks.compression_peers import OURS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

Row = dict[str, Any]
UNITS = {"perplexity": "%"}


def best_peer(rows: Sequence[Row]) -> Row | None:
    """Return the peer's row that loses least, of those in the format of the point; all of them where none is."""
    scored = [row for row in rows if row["tool"] != OURS and row.get("drop") is not None]
    reached = [row for row in scored if row["format"]["reached"]]
    return min(reached, key=lambda row: float(row["drop"]), default=None)


def compare(ours: Row, peer: Row, resampled: Mapping[str, NDArray[Any]]) -> Row:
    """Return how much less ours loses than a peer, its standard error, and the verdict.

    The error has two parts: the scored samples, on which both are resampled together, and the calibration draws.

    Args:
        ours: Our row.
        peer: The peer's row.
        resampled: ``ours`` and ``peer``: the mean losses in each resampling of the scored samples.
    """
    gain = peer["drop"] - ours["drop"]
    parts = [float((resampled["peer"] - resampled["ours"]).std())]
    parts += [row["spread"] / math.sqrt(len(row["draws"])) for row in (ours, peer)]
    error = math.sqrt(sum(part * part for part in parts))
    verdict = "better" if gain > error else "worse" if gain < -error else "equal"
    return {
        "peer": f"{peer['tool']}:{peer['way']}",
        "gain": round(gain, 3),
        "error": round(error, 3),
        "verdict": verdict,
    }


def lines(rows: Sequence[Row], points: Sequence[str]) -> list[str]:
    """Return one line for each point of one model: ours, the goal, the best peer, the verdict."""
    text = []
    for name in points:
        here = [row for row in rows if row["point"] == name]
        own = next((row for row in here if row["tool"] == OURS), None)
        peer = best_peer(here)
        verdict = (own or {}).get("against") or {}
        against = f"{verdict['verdict']} by {verdict['gain']} +- {verdict['error']}" if verdict else ""
        text.append(f"  {name:12s} {_cell(own, OURS):64s} | {_cell(peer, 'peers'):64s} | {against}")
    return text


def _cell(row: Row | None, name: str) -> str:
    if row is None:
        return f"{name}: none"
    if row.get("drop") is None:
        return f"{name}: {row['error'][:50]}"
    goal = row.get("goal")
    aim = "" if goal is None else f" goal {goal}{' met' if row['drop'] <= goal else ' MISSED'}"
    size = f"{row['bytes'] / row['bytes_before']:.2f}x"
    way = "" if row["tool"] == OURS else f"{row['tool']}:{row['way']} "
    off = "" if row["format"]["reached"] else " NOT IN FORMAT"
    return (
        f"{way}{row['score']:.2f} drop {row['drop']:.2f} ({row['spread']:.2f}) {row['seconds']:.0f}s {size}{aim}{off}"
    )
