"""What must hold for a compressed random network."""

from __future__ import annotations

import traceback
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from channel_models import difference, free_units, groups_of, masked, sliced
from compression_plans import PRUNING, Plan, passes_of
from graphopt.analysis.layer_statistics import Layer, LayerStatistics, find_layers, form_of
from graphopt.graph import Constant, Model, producer, read_model
from graphopt.passes.prune.structure import Structure
from graphopt.passes.quantize import round_weights, weightonly
from graphopt.rewrite import Outcome, Pass, PassManager, create
from graphopt.runtime import Feeds, run, session
from graphopt.solve.patterns import Pattern
from graphopt.verify.legality import check_legal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from random_networks import Network

STABLE = frozenset(("prune-magnitude", "equalize-layers", "smooth-activations"))
"""Passes that say that a second run changes nothing."""

EXACT_ENOUGH = frozenset(("equalize-layers", "smooth-activations", "scale-channels"))
"""Passes that keep the outputs up to rounding."""

GROWTH = 400
"""Bytes that scales, zero points, operators and biases may add to these tiny models."""


class CompressionFaultError(AssertionError):
    """Something that must hold does not."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass
class Tally:
    """What a run found."""

    models: int = 0
    patched: Counter[str] = field(default_factory=Counter)
    skips: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, CompressionFaultError]] = field(default_factory=list)
    damage: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __str__(self) -> str:
        return f"{self.models} models, {self.patched.total()} patches, {len(self.faults)} faults"


def judge(made: Network, plan: Plan, tally: Tally | None = None) -> Outcome:
    """Compress a network and check what must hold.

    Raises:
        CompressionFaultError: Something does not.
    """
    original = read_model(made.proto)
    data = _data(made, original) if plan.data else None
    start = original.copy()
    _manage(start, passes_of(plan.before), data, plan)
    step = _fault("options", lambda: create(plan.compress[0], plan.compress[1]))
    result = start.copy()
    outcome = _manage(result, [step], data, plan)
    record = outcome.records[-1]
    for node, reason in record.skips:
        if not (node and reason and reason[0] != " " and len(reason) > 8):
            raise CompressionFaultError("skip without a reason", f"{node!r}: {reason!r}")
    feed = _feed(made)
    check_result(original, start, result, feed)
    check_zeros(step, record, result)
    _check_size(start, result, step)
    again = start.copy()
    _manage(again, [step], data, plan)
    if again.to_bytes() != result.to_bytes():
        raise CompressionFaultError("not deterministic", plan.compress[0])
    if step.name in STABLE and not (step.name == "prune-magnitude" and getattr(step, "steps", 1) != 1):
        patches = _manage(result.copy(), [step], data, plan).records[-1]
        if patches.patches:
            raise CompressionFaultError("a second run changes something", str([each.reason for each in patches.log]))
    if step.name in EXACT_ENOUGH and not ("float16" in made.odd and "huge input" in made.odd):
        _check_close(start, result, feed)
    later = result.copy()
    masks = zero_masks(result)
    _manage(later, passes_of(plan.after), data, plan)
    check_result(original, start, later, feed)
    if "default" not in plan.after and "round-weights" not in plan.after:
        check_masks(masks, later)
    # NaN times a zero is NaN, until an operator such as GRU makes a number of it
    removed = 0 if "NaN weight" in made.odd else check_removal(original, feed, plan.seed)
    collected = check_shards(original, made, plan.seed) if plan.seed else 0
    pair = plain_and_solved(made, plan)
    if tally is not None:
        tally.patched.update({step.name: record.patches, "removal": removed, "shards": collected})
        if pair is not None:
            tally.damage[step.name].append(float(np.log(pair[1] / pair[0])))
        tally.skips.update(reason for _, reason in record.skips)
    return outcome


def _data(made: Network, model: Model) -> Feeds:
    return _fault("data", lambda: Feeds.open(made.feeds, model))  # type: ignore[no-any-return]


def _feed(made: Network) -> dict[str, Any]:
    most = 1 if "batch 1" in made.odd else 4
    return {name: array[:most] for name, array in made.feeds.items()}


def _fault(kind: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except CompressionFaultError:
        raise
    except Exception as error:
        root = error.__cause__ or error
        frames = traceback.extract_tb(root.__traceback__)[-4:]
        places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
        text = f"{error}" if root is error else f"{type(root).__name__}: {root} ({type(error).__name__})"
        raise CompressionFaultError(f"{kind} raises {type(error).__name__}", f"{text[:400]} [{places}]") from error


def _manage(model: Model, steps: list[Pass], data: Feeds | None, plan: Plan) -> Outcome:
    manager = PassManager(steps, verify=plan.verify, seed=plan.seed)  # type: ignore[arg-type]
    name = steps[0].name if len(steps) == 1 else "passes"
    return _fault(name, lambda: manager.run(model, data))  # type: ignore[no-any-return]


def outputs_of(model: Model, feed: Mapping[str, Any], *, optimize: bool) -> dict[str, np.ndarray]:
    """Return what a model computes."""
    found = run(session(model.to_bytes(), optimize=optimize), dict(feed))
    return {name: np.asarray(array) for name, array in found.items()}


def check_result(original: Model, start: Model, result: Model, feed: Mapping[str, Any]) -> None:
    """Check that a result is legal, runs, keeps its interface, and is finite where it was."""
    _fault("legality", lambda: check_legal(result))
    _fault("checker", lambda: onnx.checker.check_model(onnx.load_from_string(result.to_bytes()), full_check=True))
    for one, other in zip(_interface(original), _interface(result), strict=True):
        if one != other:
            raise CompressionFaultError("interface", f"{one} became {other}")
    before = outputs_of(start, feed, optimize=False)
    for optimize in (False, True):
        after = _fault(f"run optimize={optimize}", partial(outputs_of, result, feed, optimize=optimize))
        for name, array in before.items():
            if array.dtype != after[name].dtype or array.shape != after[name].shape:
                raise CompressionFaultError("output type", f"{name}: {array.shape} became {after[name].shape}")
            if np.isfinite(array).all() and not np.isfinite(after[name]).all():
                raise CompressionFaultError("not finite", f"{name}, largest {np.abs(array).max(initial=0):.3g} before")


def _interface(model: Model) -> tuple[list[Any], list[Any]]:
    graph = onnx.load_from_string(model.to_bytes()).graph
    return [each.SerializeToString() for each in graph.input], [each.SerializeToString() for each in graph.output]


def _check_close(before: Model, after: Model, feed: Mapping[str, Any]) -> None:
    one, other = (outputs_of(model, feed, optimize=False) for model in (before, after))
    for name, array in one.items():
        scale = float(np.abs(array).max(initial=0)) + 1e-6
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            continue
        limit = 0.05 if array.dtype == np.float16 else 2e-3
        gap = float(np.abs(array.astype(np.float64) - other[name].astype(np.float64)).max(initial=0))
        if gap > limit * scale:
            raise CompressionFaultError("not equal up to rounding", f"{name}: {gap:.3g} of {scale:.3g}")


def check_zeros(step: Pass, record: Any, model: Model) -> None:
    """Check that every layer that was pruned follows the pattern, and the share over all of them."""
    if step.name not in PRUNING:
        return
    pattern = Pattern.parse(step.pattern)  # type: ignore[attr-defined]
    done = {layer.name for layer in record.layers}
    for found in find_layers(model, depthwise=True):
        if not isinstance(found, Layer) or not any(node.name in done for node in found.nodes if node.name):
            continue
        array = found.array()
        form = form_of(found.node, found.index, array)
        assert not isinstance(form, str)
        structure = Structure(form, array.shape, pattern)
        for part in structure.matrices(array):
            if not (part == 0).any() or pattern == Pattern():
                continue
            if pattern.of and step.sparsity >= (pattern.share or 0):  # type: ignore[attr-defined]
                groups = (part.reshape(len(part), -1, pattern.of) != 0).sum(axis=2)
                if part.shape[1] % pattern.of or groups.max() > pattern.keep:
                    raise CompressionFaultError("pattern", f"{found.node.name} keeps {groups.max()} of {pattern.of}")


def zero_masks(model: Model) -> dict[str, np.ndarray]:
    """Return where the weights of each layer are zero, by the name of its first output."""
    return {
        found.node.outputs[0].name: found.array() == 0
        for found in find_layers(model, depthwise=True)
        if isinstance(found, Layer)
    }


def check_masks(masks: Mapping[str, np.ndarray], later: Model) -> None:
    """Check that weights that were zero are zero when they have become integers, at the place where they are used."""
    nodes = {node.outputs[0].name: node for node in later.graph.nodes if node.outputs}
    wanted: dict[str, str] = {}
    for name in masks:
        node = nodes.get(name)
        if node is None or node.op not in {"Conv", "Gemm", "MatMul", "ConvTranspose"}:
            continue
        made = [tensor.name for tensor in node.inputs[:2] if _restored(tensor)]
        if len(made) == 1:
            wanted[made[0]] = name
    if not wanted:
        return
    proto = onnx.load_from_string(later.to_bytes())
    keep = [node for node in proto.graph.node if set(node.output) & set(wanted)]
    del proto.graph.node[:], proto.graph.output[:], proto.graph.input[:], proto.graph.value_info[:]
    proto.graph.node.extend(keep)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    for tensor, array in run(session(proto.SerializeToString(), optimize=False), {}).items():
        mask = masks[wanted[tensor]]
        if array.shape == mask.shape and (np.asarray(array)[mask] != 0).any():
            raise CompressionFaultError("zeros are lost", f"weight {tensor} of {wanted[tensor]}")


def _restored(tensor: Any) -> bool:
    made = producer(tensor)
    return made is not None and made.op == "DequantizeLinear" and isinstance(made.inputs[0], Constant)


def _check_size(start: Model, result: Model, step: Pass) -> None:
    before, after = len(start.to_bytes()), len(result.to_bytes())
    nodes = sum(1 for _ in result.walk())
    if after > before + GROWTH + 60 * nodes and step.name not in {"insert-qdq", "round-weights"}:
        raise CompressionFaultError("the file grows", f"{before} bytes became {after}")


def check_removal(model: Model, feed: Mapping[str, Any], seed: int) -> int:
    """Check that a model without some channels equals the one in which nothing reads them; return how many went."""
    channels = _fault("channel groups", lambda: groups_of(model))
    units = free_units(channels, np.random.default_rng(seed))
    if not len(units):
        return 0
    small = _fault("slicing", lambda: sliced(model, units))
    _fault("legality of slices", lambda: check_legal(small))
    hidden = _fault("masking", lambda: masked(model, units))
    kinds = {array.dtype.name for array in outputs_of(hidden, feed, optimize=False).values()}
    limit = 0.03 if "float16" in kinds else 1e-4
    if all(np.isfinite(array).all() for array in outputs_of(hidden, feed, optimize=False).values()):
        gap = _fault("run of slices", lambda: difference(hidden, small, feed))
        if gap > limit:
            raise CompressionFaultError("removal is not masking", f"{len(units)} units, {gap:.3g}")
    return len(units)


def check_shards(model: Model, made: Network, seed: int) -> int:
    """Check that statistics of two parts of the data merge to those of the whole; return of how many layers."""
    count = len(next(iter(made.feeds.values())))
    cut = 1 + seed % max(1, count - 1)
    if count < 2 or any(node.op == "If" for node in model.graph.nodes):  # its condition looks at the whole batch
        return 0
    parts = [{name: array[part] for name, array in made.feeds.items()} for part in (slice(cut), slice(cut, None))]

    def collect(arrays: dict[str, Any]) -> LayerStatistics:
        feeds = Feeds.open(arrays, model)
        return LayerStatistics.collect(model, feeds, samples=10**6, positions=10**6, seed=seed)

    whole = _fault("statistics", lambda: collect(made.feeds))
    merged = _fault("merged statistics", lambda: collect(parts[0]).merge(collect(parts[1])))
    if whole.layers.keys() != merged.layers.keys():
        raise CompressionFaultError("shards know other layers", f"{sorted(whole.layers)} and {sorted(merged.layers)}")
    limit = 1e-2 if "float16" in made.odd else 1e-4  # other batches round otherwise
    for name in whole.layers:
        one, other = whole.of(name), merged.of(name)
        assert one is not None
        assert other is not None
        for field_name in ("minimum", "maximum"):
            span = float(np.nanmax(np.abs(one.spread.maximum), initial=0.0))
            a, b = getattr(one.spread, field_name), getattr(other.spread, field_name)
            if not np.allclose(a, b, rtol=1e-2, atol=1e-3 * span, equal_nan=True):
                raise CompressionFaultError("ranges of shards differ", f"{name}: {field_name}")
        for mine, theirs in zip(one.moments, other.moments, strict=True):
            finite = mine.finite(), theirs.finite()  # takes in what waits
            if mine.count != theirs.count:
                raise CompressionFaultError("shards count other rows", f"{name}: {mine.count} and {theirs.count}")
            scale = float(np.abs(mine.inner).max(initial=0))
            if all(finite) and np.abs(mine.inner - theirs.inner).max(initial=0) > limit * scale:
                raise CompressionFaultError("moments of shards differ", name)
    for name, lookups in whole.lookups.items():
        if not np.array_equal(lookups, merged.lookups[name]):
            raise CompressionFaultError("lookups of shards differ", name)
    return len(whole.layers)


def plain_and_solved(made: Network, plan: Plan) -> tuple[float, float] | None:
    """Return what the plain and the solved form of a plan lose on samples kept from the calibration, relative.

    Plain is the removal of the smallest weights of each layer, or rounding to the nearest level. None where that says
    nothing: odd networks, few samples, no loss.
    """
    name, options = plan.compress
    count = len(next(iter(made.feeds.values())))
    if count < 24 or any("input" in word or word in {"float16", "NaN weight"} for word in made.odd):
        return None
    if name == "round-weights":
        plain = create(name, {**options, "method": "nearest", "variance": False, "allocation": "uniform"})
        other = create(name, {**options, "method": "auto", "damping": 0.01, "rows": 16384, "samples": 512})
    elif name in PRUNING[1:] and 0 < options["sparsity"] < 0.9:
        few = {"sparsity": options["sparsity"], "pattern": options["pattern"]}
        plain = create("prune-magnitude", {**few, "scope": "local"})
        other = create(name, {**few, "allocation": "uniform", "protect_ends": False})
    else:
        return None
    model = read_model(made.proto)
    seen = count - count // 4
    data = Feeds.open({key: array[:seen] for key, array in made.feeds.items()}, model)
    held = {key: array[seen:] for key, array in made.feeds.items()}
    if "batch 1" in made.odd:
        held = {key: array[:1] for key, array in held.items()}
    want = outputs_of(model, held, optimize=False)
    lost = []
    for step in (plain, other):
        result = model.copy()
        _manage(result, [step], data, plan)
        found = outputs_of(result, held, optimize=False)
        lost.append(sum(_distance(array, found[key]) for key, array in want.items() if array.dtype.kind == "f"))
    return (lost[0], lost[1]) if all(np.isfinite(lost)) and min(lost) > 1e-6 else None


def _distance(want: np.ndarray, found: np.ndarray) -> float:
    power = float(np.square(want, dtype=np.float64).sum())
    return float(np.square(found.astype(np.float64) - want).sum()) / power if power > 0 else 0.0


@contextmanager
def small_weights_count() -> Iterator[None]:
    """Let the weights of these small networks be stored as integers too, although that saves nothing."""
    modules: list[Any] = [round_weights, weightonly]
    held = [(module, module.SMALLEST_WEIGHT) for module in modules]
    for module in modules:
        module.SMALLEST_WEIGHT = 16
    try:
        yield
    finally:
        for module, size in held:
            module.SMALLEST_WEIGHT = size
