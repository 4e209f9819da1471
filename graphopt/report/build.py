"""Makes the report of a run from the two models, the measurements and the records of the passes."""

from __future__ import annotations

import hashlib
import os
import platform
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime

import graphopt
from graphopt.errors import KernelError, ModelTooLargeError
from graphopt.graph import Constant
from graphopt.report.report import (
    Environment,
    Latency,
    LayerEntry,
    ModelInfo,
    ModelPair,
    PassEntry,
    Quality,
    Report,
    SkipEntry,
    Tool,
)
from graphopt.report.weights import weight_entries
from graphopt.runtime.library import isa_report

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

    from graphopt.graph import Model
    from graphopt.rewrite.manager import PassRecord
    from graphopt.verify.quality import Quality as Measurement


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of one run.

    Attributes:
        quality: The last measurement of the result against the original.
        held_back: Whether the samples were held back from the user's data (else they are random).
        max_drop: The budget, or None.
        met: Whether it was met.
        milliseconds: Timed runs of the original, the result and, where there is one, the fallback.
        threads: Intra-op threads.
        metric_name: Of the user's metric: ``module:function``, or the function's name.
    """

    quality: Measurement
    held_back: bool
    max_drop: float | None
    met: bool
    milliseconds: Sequence[Sequence[float]]
    threads: int
    metric_name: str = "metric"


def build_report(
    before: Model,
    after: Model,
    measured: Measured | None,
    *,
    records: Iterable[PassRecord],
    target: str,
    recipe: str,
    notes: Iterable[str],
    seed: int,
) -> Report:
    """Return the report of one run."""
    records = list(records)
    return Report(
        tool=Tool(version=graphopt.__version__),
        model=ModelPair(before=model_info(before), after=model_info(after, written=False)),
        quality=_quality(measured) if measured else None,
        latency_ms=_latency(measured) if measured else None,
        passes=tuple(_pass_entry(record) for record in records),
        layers=tuple(_layer_entries(records)),
        weights=tuple(weight_entries(before, after)),
        environment=environment(),
        target=target,
        recipe=recipe,
        notes=tuple(notes),
        seed=seed,
    )


def model_info(model: Model, *, written: bool = True) -> ModelInfo:
    """Return size and contents of a model, all scopes counted.

    Args:
        model: The model.
        written: Whether it is what its file holds; a model that was edited has no file yet.
    """
    path = Path(model.path) if written and model.path else None
    operators: Counter[str] = Counter()
    for _, node in model.walk():
        operators[f"{node.domain}::{node.op}" if node.domain else str(node.op)] += 1
    constants = list(_constants(model))
    return ModelInfo(
        path=str(path) if path else None,
        sha256=_digest(model, path),
        nodes=sum(operators.values()),
        bytes=_size(model),
        parameters=sum(_elements(each) for each in constants if _elements(each) > 1 and _is_number(each)),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
    )


def environment() -> Environment:
    """Return where this process measures."""
    try:
        chosen = isa_report().chosen
    except KernelError:
        chosen = "none"
    return Environment(
        onnxruntime=onnxruntime.__version__,
        onnx=onnx.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        cpu=_cpu(),
        isa=chosen,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 0),
        system=f"{platform.system()} {platform.machine()}",
    )


def _quality(measured: Measured) -> Quality:
    found = measured.quality
    name = {"top-1": "agreement", "sqnr": "sqnr_db"}.get(found.kind, found.kind)
    name = measured.metric_name if found.kind == "metric" else name
    return Quality(
        samples=found.samples,
        held_back=measured.held_back,
        agreement=found.agreement,
        sqnr_db=found.worst_sqnr_db,
        standard_error=found.standard_error,
        expected_loss=found.expected_loss,
        expected_loss_error=found.expected_loss_error,
        kl=found.kl,
        kl_error=found.kl_error,
        sqnr_error_db=found.sqnr_error_db,
        metric=name,
        before=found.metric_reference,
        after=found.metric,
        drop=found.drop,
        budget=measured.max_drop,
        met=measured.met,
    )


def _latency(measured: Measured) -> Latency:
    before, after, *rest = (statistics.median(times) for times in measured.milliseconds)
    runs = len(measured.milliseconds[0])
    return Latency(before=before, after=after, threads=measured.threads, runs=runs, fallback=rest[0] if rest else None)


def _pass_entry(record: PassRecord) -> PassEntry:
    return PassEntry(
        name=record.name,
        options={name: _plain(value) for name, value in record.options.items()},
        patches=record.patches,
        skips=tuple(SkipEntry(node=node, reason=reason) for node, reason in record.skips),
        seconds=record.seconds,
        nodes_before=record.nodes_before,
        nodes_after=record.nodes_after,
        contract=record.contract.value,
    )


def _plain(value: object) -> JsonValue:
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _layer_entries(records: Iterable[PassRecord]) -> Iterable[LayerEntry]:
    for record in records:
        for layer in record.layers:
            yield LayerEntry(
                name=layer.name,
                op=layer.op,
                what=layer.what,
                kept=layer.kept,
                reverted=layer.reverted,
                reason=layer.reason,
                pass_name=record.name,
            )


def _constants(model: Model) -> Iterable[Constant]:
    seen: set[int] = set()
    for _, node in model.walk():
        for tensor in node.inputs:
            if isinstance(tensor, Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
        value = node.attrs.get("value") if node.op == "Constant" else None
        if isinstance(value, Constant) and id(value) not in seen:
            seen.add(id(value))
            yield value


def _elements(constant: Constant) -> int:
    return int(np.prod(constant.shape, dtype=np.int64)) if constant.shape else 1


def _is_number(constant: Constant) -> bool:
    return constant.onnx_dtype not in {onnx.TensorProto.STRING, onnx.TensorProto.BOOL}


def _digest(model: Model, path: Path | None) -> str:
    if path is not None and path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    try:
        return hashlib.sha256(model.to_bytes()).hexdigest()
    except ModelTooLargeError:
        return ""


def _size(model: Model) -> int:
    try:
        return len(model.to_bytes())
    except ModelTooLargeError:
        return sum(int(each.nbytes) for each in _constants(model))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
