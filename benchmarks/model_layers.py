"""Which layers of a model became slower by lowering, from the runtime's own profiles of both models."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from graphopt.graph import uses
from graphopt.runtime.library import kernel_library

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.graph import Model

DOMAIN = "ai.graphopt"
_PACKED = "_packed"
_FUSED = frozenset(("Add", "Relu", "Clip", "Gelu", "Mul", "Sigmoid"))
_SUFFIX = "_kernel_time"


def labels_of(dense: Model, lowered: Model) -> dict[str, tuple[str, ...]]:
    """Return for each kernel of the lowered model how the dense layer may be called in a profile.

    Both read a weight of one name. The runtime names a convolution that it moved to its own layout, and fused with what
    follows, after an output.
    """
    readers = {node.inputs[1].name: node for _, node in dense.walk() if len(node.inputs) > 1}
    found = {}
    for _, node in lowered.walk():
        if node.domain != DOMAIN or len(node.inputs) < 2:
            continue
        first = readers.get(node.inputs[1].name.removesuffix(_PACKED))
        if first is None:
            continue
        names, last = [first.name], first
        while True:
            names += [f"{last.outputs[0].name}_nchwc", last.name]
            following = uses(last.outputs[0])
            if len(following) != 1:
                break
            last = following[0].node
            if last.op not in _FUSED:
                break
        found[node.name] = tuple(names)
    return found


def layer_ratios(
    dense: Model,
    lowered: Model,
    labels: Mapping[str, Sequence[str]],
    feed: Mapping[str, Any],
    *,
    threads: int,
    runs: int,
) -> dict[str, float]:
    """Return how many times faster each lowered layer is than what it stands for, by the shortest time of each.

    The time of a dense layer is that of the main operator, with what the runtime fused into it; that of its kernel has
    bias, activation and residual in it. Reorders between layouts are left out here: whole models have them.

    Args:
        dense: The model before.
        lowered: The model after.
        labels: As `labels_of` gives them.
        feed: What both run on.
        threads: Threads of each session.
        runs: Runs that are profiled.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for i, model in enumerate((dense, lowered)):
            path = Path(folder) / f"{i}.onnx"
            model.save(path)
            sessions.append(_session(path, Path(folder) / str(i), threads))
        for _ in range(runs):
            for session in sessions:
                session.run(None, dict(feed))
        before, after = (_shortest(Path(session.end_profiling())) for session in sessions)
    found = {}
    for name, candidates in labels.items():
        slow = next((before[key] for key in candidates if key in before), None)
        if slow is not None and name in after:
            found[candidates[0]] = slow / after[name]
    return found


def _session(model: Path, prefix: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    options.log_severity_level = 4
    options.register_custom_ops_library(str(kernel_library()))
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _shortest(profile: Path) -> dict[str, float]:
    """Shortest time of each node in microseconds; other programs on the machine only lengthen them."""
    times: dict[str, float] = {}
    for event in json.loads(profile.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            name, took = event["name"].removesuffix(_SUFFIX), float(event["dur"])
            times[name] = min(took, times.get(name, took))
    return times
