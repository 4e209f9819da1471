"""Measures what each unit of a model costs in each precision: time on this machine, damage to the outputs, bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import graphopt
from graphopt.analysis import Facts
from graphopt.errors import RunError, UnsupportedError, UsageError
from graphopt.graph import Model, constant_value, read_model
from graphopt.graph.labels import node_label
from graphopt.mixed_precision.pieces import Pieces, without_border
from graphopt.mixed_precision.units import OUTSIDE, Crossing, Unit, find_units
from graphopt.report.build import environment, model_info
from graphopt.report.precision import ChoiceCost, HandoverCosts, PrecisionTable, UnitCosts
from graphopt.report.report import SkipEntry, Tool
from graphopt.rewrite import PassManager, load_recipe
from graphopt.rewrite.registry import create
from graphopt.rewrite.sensitivity import damage
from graphopt.runtime import Feeds, input_specs, timings
from graphopt.verify.quality import Judge, open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from graphopt.runtime.feeds import Source

    Progress = Callable[[str, int, int], None]

JUDGING_SAMPLES = 128
"""Samples that damage is measured on, at most."""

CALIBRATION_SAMPLES = 64
"""Samples that single layers are rounded on, at most."""

HELD_BACK_SAMPLES = 64
BLOCK = 32
BITS = (8, 4)
"""Bits of weights alone."""


def prepare(model: Model | str | Path) -> Model:
    """Return a model as it is when it is quantized: optimized by the preset ``default``, in an opset with all types."""
    made = (model if isinstance(model, Model) else read_model(model)).copy()
    made.sort()
    steps = [*load_recipe("default").create(), create("raise-opset", {"to": 21}), create("fuse-bias", {})]
    PassManager(steps, verify="off").run(made, None)
    made.sort()
    return made


def measure_costs(
    model: Model | str | Path,
    data: Source | Feeds,
    *,
    target: str = "ort-cpu",
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> PrecisionTable:
    """Return the table of a model.

    Args:
        model: The float model, as the user has it.
        data: Feeds; a fifth of them is held back to measure damage on.
        target: Whose rules say what has an integer form.
        threads: Intra-op threads of every measurement.
        seed: Seeds whatever is random.
        progress: Told which unit is measured.

    Raises:
        UsageError: There is one sample only.
        GraphoptError: The model or the data cannot be used.

    Cost: for each layer three trials of the whole model on the held-back samples and a few tenths of a second.
    """
    source = model if isinstance(model, Model) else read_model(model)
    made = prepare(source)
    feeds = Feeds.open(data, input_specs(made))
    if len(feeds) < 2:
        raise UsageError("there is one sample only", where="--data", must="One calibrates, another is compared on")
    calibration, judging = feeds.split(at_least=HELD_BACK_SAMPLES)
    return _Measuring(
        source, made, calibration.take(CALIBRATION_SAMPLES), judging.take(JUDGING_SAMPLES), target, threads, seed
    ).run(progress or _silent)


class _Measuring:
    def __init__(
        self, source: Model, model: Model, calibration: Feeds, judging: Feeds, target: str, threads: int, seed: int
    ) -> None:
        self.source = source
        self.model = model
        self.calibration = calibration
        self.judging = judging
        self.target = target
        self.threads = threads
        self.seed = seed
        self.facts = Facts(model, feeds=calibration, target=target, seed=seed)
        self.judge = Judge(model, judging, threads=threads)
        first = next(iter(judging))
        self.pieces = Pieces(model, first, threads)
        self.measure: str = "noise"

    def run(self, tell: Progress) -> PrecisionTable:
        labels = tuple(node_label(node) for node in self.model.graph.nodes)
        static = self._changed("insert-qdq", {"planned": labels, "embeddings": False})
        narrow = self._changed(
            "round-weights", {"bits": 8, "granularity": "block", "block": BLOCK, "method": "nearest"}
        )
        dynamic = {name for name, what in static.items() if "dynamic" in what}
        units, crossings = find_units(self.model, self.facts, {*dynamic, *narrow})
        self.pieces.observe([t.name for unit in units for t in (*unit.inputs, *unit.outputs)])
        skips: list[SkipEntry] = []
        rows = []
        for place, unit in enumerate(units):
            tell(unit.name, place, len(units))
            integer = unit.placeable and unit.name not in dynamic and (not unit.weighted or unit.name in static)
            rows.append(self._unit(unit, integer, unit.name in dynamic, unit.name in narrow, skips))
        first = self.pieces.feed
        whole = timings([open_session(self.model, threads=self.threads)], first, budget_seconds=1.0)[0]
        kept = sum(row.choices[0].bytes for row in rows)
        return PrecisionTable(
            tool=Tool(version=graphopt.__version__),
            model_sha256=model_info(self.source).sha256,
            measure="kl" if self.measure == "kl" else "noise",
            samples=len(self.judging),
            threads=self.threads,
            float_seconds=float(np.median(whole)) / 1e3,
            summed_seconds=sum(row.choices[0].seconds for row in rows),
            other_bytes=max(0, model_info(self.model, written=False).bytes - kept),
            units=tuple(rows),
            tensors=tuple(self._handover(each, units) for each in crossings),
            skips=tuple(skips),
            environment=environment(),
        )

    def _changed(self, name: str, options: Mapping[str, Any]) -> dict[str, str]:
        """Return what a pass does to which layer."""
        trial = self.model.copy()
        manager = PassManager([create(name, options)], verify="off", seed=self.seed, target=self.target)
        outcome = manager.run(trial, self.calibration if name == "insert-qdq" else None)
        rows = [layer for record in outcome.records for layer in record.layers]
        known = {node_label(node) for node in self.model.graph.nodes}
        return {layer.name: layer.what for layer in rows if layer.kept and layer.name in known}

    # -------------------------------------------------------------------------------------------------------- one unit

    def _unit(self, unit: Unit, integer: bool, dynamic: bool, narrow: bool, skips: list[SkipEntry]) -> UnitCosts:
        forms: dict[str, list[dict[str, Any]]] = {}
        if integer:
            forms["int8"] = [{"insert-qdq": {"planned": unit.labels, "embeddings": False}}]
        if dynamic:
            forms["dynamic"] = [{"insert-qdq": {"planned": unit.labels, "embeddings": False}}]
        if narrow:
            for bits in BITS:
                forms[f"weights{bits}"] = [{"round-weights": self.rounding({unit.name: bits})}]
        seconds, sizes = self._times(unit, forms, skips)
        choices = [
            ChoiceCost(choice="float", integer=False, seconds=seconds["float"], damage=0.0, bytes=sizes["float"])
        ]
        for choice, steps in forms.items():
            if choice not in seconds:
                continue
            loss = 0.0 if unit.moves else self._damage(steps)
            if loss is not None:
                choices.append(
                    ChoiceCost(
                        choice=choice,  # type: ignore[arg-type]
                        integer=choice == "int8",
                        seconds=seconds[choice],
                        damage=loss,
                        bytes=sizes[choice],
                    )
                )
        return UnitCosts(name=unit.name, nodes=unit.labels, op=unit.nodes[0].op, choices=tuple(choices))

    def rounding(self, bits: Mapping[str, int]) -> dict[str, Any]:
        """Return the options of round-weights that round some layers and leave all others."""
        return rounding_options([node_label(node) for _, node in self.model.walk(functions=False)], bits)

    def _times(
        self, unit: Unit, forms: Mapping[str, Sequence[Mapping[str, Any]]], skips: list[SkipEntry]
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Return seconds and bytes of a unit's forms, by choice; those that cannot be made or run are missing."""
        piece, feed = self.pieces.cut(unit)
        made = {"float": piece}
        for choice, steps in forms.items():
            form = piece.copy()
            try:
                outcome = self._manager(steps).run(form, Feeds.open([feed], input_specs(piece)))
                if outcome.patches:
                    form.sort()
                    made[choice] = without_border(form) if choice == "int8" else form
            except (UnsupportedError, RunError) as error:
                skips.append(SkipEntry(node=unit.name, reason=f"{choice}: {error}"))
        key = (*self._signature(unit), *made)
        times = self.pieces.seconds(list(made.values()), feed, key)
        # what operators and names take beside the integers is counted with them
        bare, whole = kept_bytes(piece), len(piece.to_bytes())
        sizes = {choice: max(0, bare + len(form.to_bytes()) - whole) for choice, form in made.items()}
        return dict(zip(made, times, strict=True)), sizes

    def _signature(self, unit: Unit) -> tuple[Any, ...]:
        shapes = [
            (str(self.pieces.values[t.name].dtype), self.pieces.values[t.name].shape)
            if t.name in self.pieces.values
            else tuple(constant_value(t).shape if constant_value(t) is not None else ())  # type: ignore[union-attr]
            for node in unit.nodes
            for t in node.inputs
            if not t.is_empty()
        ]
        attrs = [(node.op, sorted((key, str(value)) for key, value in node.attrs.items())) for node in unit.nodes]
        return (str(attrs), str(shapes))

    def _damage(self, steps: Sequence[Mapping[str, Any]]) -> float | None:
        """Return what compressing one unit does to the outputs; None where nothing came of it."""
        trial = self.model.copy()
        outcome = self._manager(steps).run(trial, self.calibration, self.facts.fork(trial))
        if not outcome.patches:
            return None
        quality = self.judge.measure(trial)
        if quality.kl is not None:
            self.measure = "kl"
        return max(0.0, damage(quality)[0])

    def _manager(self, steps: Sequence[Mapping[str, Any]]) -> PassManager:
        built = [create(name, options) for step in steps for name, options in step.items()]
        return PassManager(built, verify="off", seed=self.seed, target=self.target)

    # ----------------------------------------------------------------------------------------------------- conversions

    def _handover(self, crossing: Crossing, units: Sequence[Unit]) -> HandoverCosts:
        value = self.pieces.values[crossing.tensor.name]
        rounding, restoring = conversion_seconds(self.pieces, value)
        names = ["" if place == OUTSIDE else units[place].name for place in crossing.readers]
        maker = "" if crossing.maker == OUTSIDE else units[crossing.maker].name
        return HandoverCosts(
            tensor=crossing.tensor.name, maker=maker, readers=tuple(names), rounding=rounding, restoring=restoring
        )


def rounding_options(labels: Sequence[str], bits: Mapping[str, int]) -> dict[str, Any]:
    """Return the options of round-weights that round some layers and leave all others.

    Args:
        labels: Names of all nodes.
        bits: Of each layer that is rounded.
    """
    return {
        "bits": 8,
        "granularity": "block",
        "block": BLOCK,
        "levels": tuple(f"{name}={count}" for name, count in bits.items()),
        "keep": tuple(name for name in dict.fromkeys(labels) if name not in bits),
    }


def conversion_seconds(pieces: Pieces, value: NDArray[Any]) -> tuple[float, float]:
    """Return the time to round a tensor of a size, and to restore it."""
    from onnx import TensorProto, helper, numpy_helper

    forms = []
    shape = [int(value.size)]
    for op, given, made in (
        ("QuantizeLinear", TensorProto.FLOAT, TensorProto.UINT8),
        ("DequantizeLinear", TensorProto.UINT8, TensorProto.FLOAT),
    ):
        node = helper.make_node(op, ["x", "s", "z"], ["y"])
        constants = [numpy_helper.from_array(np.float32(0.05), "s"), numpy_helper.from_array(np.uint8(120), "z")]
        inputs = [helper.make_tensor_value_info("x", given, shape)]
        outputs = [helper.make_tensor_value_info("y", made, shape)]
        graph = helper.make_graph([node], op, inputs, outputs, constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        forms.append(read_model(proto))
    feed = {"x": value.reshape(-1).astype(np.float32)}
    rounding = pieces.seconds(forms[:1], feed, ("QuantizeLinear", value.size))
    restoring = pieces.seconds(forms[1:], {"x_float": feed["x"]}, ("DequantizeLinear", value.size))
    return rounding[0], restoring[0]


def kept_bytes(model: Model) -> int:
    """Return the bytes of the constants of a model."""
    return sum(constant.nbytes for graph in model.graphs() for constant in graph.initializers)


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
