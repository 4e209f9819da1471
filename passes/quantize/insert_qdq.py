"""The pass ``insert-qdq``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from graphopt.analysis.activation_ranges.choice import SHARE
from graphopt.analysis.layer_statistics import end_layers
from graphopt.analysis.types import Types
from graphopt.errors import UnsupportedError
from graphopt.passes.quantize.candidates import (
    float_neighbours,
    has_weights,
    inner_refusals,
    is_sequence_product,
    logarithm_readers,
    products_per_rounding,
)
from graphopt.passes.quantize.dynamic import make_dynamic, make_integer_table, matrix, table_refusal
from graphopt.passes.quantize.evening import EvenInputs
from graphopt.passes.quantize.grids import GridOf, ranges_of
from graphopt.passes.quantize.integers import describe
from graphopt.passes.quantize.pairing.masks import make_finite
from graphopt.passes.quantize.pairing.patches import declare_pairs
from graphopt.passes.quantize.static import StaticForm
from graphopt.passes.quantize.weightonly import StoredWeights, are_finite, stored_places
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, LayerRecord, Patch, Skip, node_label
from graphopt.target import find_number, find_target
from graphopt.target.numbers import FP8, NUMBERS
from graphopt.target.operators import is_overridable
from graphopt.target.placement import OVERRIDABLE, TOO_SMALL, Placement, place
from graphopt.target.quantized import quantized_operators
from graphopt.target.rules import Pairs, Role
from graphopt.target.stored import NOT_FINITE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from graphopt.analysis.activation_ranges import Ranges
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.target.numbers import Number
    from graphopt.target.rules import OpRule, Target

KEPT = "kept float as asked"
NOT_FLOAT32 = "its input is not float32"
NO_DATA = "its inputs have no known range: static quantization needs calibration data, and a convolution that rounds \
its inputs at run time is slower than float"
PRODUCTS_PER_ROUNDING = 16
"""Products per rounded or restored value below which a matrix product is faster in float."""

DYNAMIC_SINCE = 11
CLIPPED_SINCE = 12
"""The first opset whose Clip takes integers."""

FLOAT32 = 1
SEQUENCE = "rows of a sequence: its inputs are rounded at run time, because single tokens stretch a fixed grid"


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertQdq(Pass):
    """Quantize activations and weights to 8 bits, placed by the rules of the target.

    Attributes:
        weights: Type of the weights: ``int8`` (on some targets uint8 for some operators), ``fp8`` with fp8 activations
            or none.
        activations: ``uint8``, ``int8``, ``uint16``, ``int16`` and ``fp8`` round activations to grids found on
            calibration data, where the target has kernels for them; ``int4`` too, but what an inner layer multiplies
            has 16 levels, kept as the integers 0 to 15; ``dynamic`` finds a grid in every run, for linear layers only;
            ``auto`` takes the target's first type where there is data, except for linear layers that read sequences
            where the target has dynamic ones; ``none`` stores the weights alone as integers, for size, not speed.
        symmetric: Zero points of activations are 0 (128 for unsigned types with negative values); None: as the target
            prefers.
        per_channel: One weight scale per output channel; one per weight below opset 13, which has no others.
        weight_calibrator: What the scales of weights with static activations reach to: the largest weight, or what
            changes the outputs least (``mse``: the error of each weight counts by the mean square of what it meets).
        calibrator: How ranges follow from what was seen: ``minmax``, ``moving-average`` of the ranges of batches,
            ``percentile``, ``entropy`` or ``mse``; ``auto`` is mse, the best on the models measured, and what was
            chosen where there is a cache.
        percentile: Share of values that a range keeps, in percent, for ``percentile``.
        cache: A file that ``graphopt calibrate`` wrote: ranges are taken from there, and no data is needed.
        even_channels: Divide inputs that are rounded at run time by a factor per channel where that lowers the error
            expected by 3 dB or more, and multiply the weights; needs data, and one product in every run.
        correct_bias: Let biases make up for what rounding the weights adds to the mean of each output.
        embeddings: Round the tables of embeddings to int8 as well.
        keep: Names of nodes that stay float; one without a name goes by operator and first output, ``Conv -> y``.
        planned: Names of the nodes that become integer, those between weighted ones as well, chosen by what they were
            found to cost (see ``graphopt quantize --budget-latency``); none leaves the choice to the target.

    Matches: Conv, Gemm and MatMul with constant weights; Add, Mul, Concat, pools and further operators with integer
        kernels between them; data movement between those; Gather from large constant tables.
    Produces: int8 weights behind DequantizeLinear, where they stand on a grid already on that one; int32 biases on the
        product of the scales, one QuantizeLinear behind each integer operator, data movement on the integers; a fourth
        channel for images of three, or four columns merged where channels come last; DynamicQuantizeLinear and
        MatMulInteger for dynamic layers; a Gather of integers for tables.
    Requires: opset 10 (13 for a scale per channel), float32 activations, weights that no caller may override, and
        calibration data for static grids. Run fuse-batch-norm and fold-constants before.
    Preserves: names, types and shapes of inputs and outputs. Not values: LOSSY.
    Source: Jacob et al. 2018, arXiv:1712.05877, sections 2 and 3; Nagel et al. 2019, arXiv:1906.04721, section 4.2
        (bias correction); Nagel et al. 2021, arXiv:2106.08295.
    """

    name: ClassVar[str] = "insert-qdq"
    contract: ClassVar[Contract] = Contract.LOSSY
    guard: ClassVar[str] = "layers"

    weights: Literal["int8", "fp8"] = "int8"
    activations: Literal["auto", "uint8", "int8", "uint16", "int16", "fp8", "int4", "dynamic", "none"] = "auto"
    symmetric: bool | None = None
    per_channel: bool = True
    weight_calibrator: Literal["minmax", "mse"] = "minmax"
    calibrator: Literal["auto", "minmax", "moving-average", "percentile", "entropy", "mse"] = "auto"
    percentile: float = SHARE
    cache: str = ""
    even_channels: bool = True
    correct_bias: bool = True
    embeddings: bool = True
    keep: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile is {self.percentile}, but it is a share in percent above 50, at most 100")

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per operator, weighted operators with a row for the per-layer table."""
        target = find_target(facts.target)
        refusal = self._model_refusal(model)
        if refusal is not None:
            yield Skip(model.graph.name or "the model", refusal)
            return
        per_channel = self.per_channel and model.opset >= target.per_channel_since
        number = self._number(model, target)
        if self.activations == "none":
            yield from self._weights_alone(model, per_channel=per_channel)
            return
        if target.mask is not None and (facts.feeds is not None or self.cache):
            yield from make_finite(model)
        types = facts.get(Types)
        static = self.activations != "dynamic" and (facts.feeds is not None or bool(self.cache))
        dynamic = self._dynamic_layers(model, target, types, static=static)
        ranges = None
        if static and (self.planned or has_weights(model, target, types, {*dynamic, *self._kept(model)})):
            try:
                ranges = ranges_of(model, facts, self.calibrator, self.cache)
            except UnsupportedError as error:
                yield Skip(model.graph.name or "the model", f"no range can be observed: {error.what}")
        leave = dict.fromkeys(self.keep, KEPT)
        known = ranges_of(model, facts, self.calibrator, self.cache) if ranges is None and self.cache else ranges
        even = EvenInputs(model, facts, dynamic if self.even_channels else (), known)
        if ranges is not None:
            kind = target.grid_kind(number, symmetric=self.symmetric)
            grids = GridOf(ranges, self.calibrator, self.percentile, kind)
            only = self._refusals(model, target, types, ranges, dynamic, kind.number.levels)
            if target.pairs is Pairs.KERNELS:
                yield from self._place_static(
                    model, target, types, ranges, grids, leave, dynamic, only, per_channel=per_channel
                )
            else:
                kept = {node: leave[label] for node in model.graph.nodes if (label := node_label(node)) in leave}
                yield from declare_pairs(
                    *(model, types, target, ranges, grids, kept, only),
                    per_channel=per_channel,
                    correct_bias=self.correct_bias,
                    weigh=self.weight_calibrator == "mse",
                )
        else:
            yield from self._refuse_static(model, target, types, dynamic, leave)
        for node, why in dynamic.items():
            yield self._dynamic_patch(node, why, even, per_channel=per_channel, limit=target.weights.limit)
        if self.embeddings and target.integer_tables:
            yield from self._tables(model, leave)
        yield from inner_refusals(model, target)

    def _number(self, model: Model, target: Target) -> Number:
        """Return the type of static activations.

        Raises:
            UsageError: The target has no kernels for what was asked.
        """
        if self.activations in {"auto", "none"} or (self.activations == "dynamic" and target.dynamic):
            wanted = FP8 if self.weights == "fp8" and FP8 in target.activations else None
            return wanted or target.default_number(model)
        if self.activations == "int4" and target.pairs is Pairs.KERNELS:
            return target.activations[0]
        return find_number(target, self.activations)

    def _kept(self, model: Model) -> list[Node]:
        keep = set(self.keep)
        return [node for node in model.graph.nodes if node_label(node) in keep]

    def _model_refusal(self, model: Model) -> str | None:
        found = quantized_operators(model)
        if found:
            return f"the model is quantized already: it has {', '.join(found)}"
        if model.opset < 10:
            return f"opset {model.opset} has no QuantizeLinear: run raise-opset before"
        return None

    def _refusals(
        self, model: Model, target: Target, types: Types, ranges: Ranges, dynamic: dict[Node, str], levels: int
    ) -> Callable[[Node], str | None]:
        """Return what tells why a weighted operator must not have static grids, "" where nobody has to be told."""
        before_log = logarithm_readers(model, target, ranges, levels)

        def refuse(node: Node) -> str | None:
            if node in dynamic:
                return ""
            if self.activations == "auto" and target.dynamic and is_sequence_product(node, types):
                return TOO_SMALL
            if node in before_log:
                return f"its values reach Log '{before_log[node]}', which makes rounding errors of small values large"
            return None if ranges.get(node.inputs[0].name) else "no run of the calibration data reached it"

        return refuse

    # ----------------------------------------------------------------------------------------------------- static

    def _place_static(
        self,
        model: Model,
        target: Target,
        types: Types,
        ranges: Ranges,
        grids: GridOf,
        leave: dict[str, str],
        dynamic: dict[Node, str],
        only: Callable[[Node], str | None],
        *,
        per_channel: bool,
    ) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield the patches of static grids, in graph order."""
        leave_nodes = {node: leave[label] for node in model.graph.nodes if (label := node_label(node)) in leave}
        planned = {node for node in model.graph.nodes if node_label(node) in self.planned} if self.planned else None
        placement = place(model, types, target, leave=leave_nodes, only=only, sizes=ranges.sizes(), planned=planned)
        for node, why in placement.refused.items():
            if node not in dynamic:
                yield Skip(node, why)
        for node, why in float_neighbours(model, target, placement):
            yield Skip(node, why)

        def means_of(tensor: Tensor) -> NDArray[np.float64] | None:
            seen = ranges.get(tensor.name) if self.correct_bias else None
            return None if seen is None else seen.channel_means()

        def powers_of(tensor: Tensor) -> NDArray[np.float64] | None:
            seen = ranges.get(tensor.name)
            return None if seen is None else seen.channel_powers()

        inner: set[Node] = set()
        if self.activations == "int4" and model.opset >= CLIPPED_SINCE:
            weighted = {node for node, rule in placement.nodes.items() if rule.role is Role.WEIGHTED}
            inner = weighted - end_layers(model.graph, weighted)
        form = StaticForm(
            types,
            placement,
            grids,
            means_of,
            per_channel=per_channel,
            few_levels=inner,
            limit=target.weights.limit,
            powers_of=powers_of if self.weight_calibrator == "mse" else None,
        )
        for node, rule in placement.nodes.items():
            patch = self._static_patch(form, placement, node, rule, few=node in inner)
            if patch is not None:
                yield patch

    def _static_patch(
        self, form: StaticForm, placement: Placement, node: Node, rule: OpRule, *, few: bool
    ) -> Patch | None:
        if rule.role is Role.WEIGHTED:

            def weighted(rw: Rewriter) -> None:
                form.weighted(rw, node, rule)

            what = f"{form.describe(node)}, {'int4' if few else form.number.name} activations"
            record = LayerRecord(node_label(node), node.op, what, reason=f"runs as {rule.kernel}")
            return Patch(f"quantize {node.op} '{node_label(node)}' to {what}", (node,), weighted, (record,))
        if rule.role is Role.MOVE or node in placement.joined:

            def move(rw: Rewriter) -> None:
                form.move(rw, node, rule)

            return Patch(f"move integers through {node.op} '{node_label(node)}'", (node,), move)
        if node not in placement.outputs:
            return None

        def join(rw: Rewriter) -> None:
            form.join(rw, node, rule)

        return Patch(f"compute {node.op} '{node_label(node)}' on {form.number.name}", (node,), join)

    # ---------------------------------------------------------------------------------------------------- dynamic

    def _dynamic_layers(self, model: Model, target: Target, types: Types, *, static: bool) -> dict[Node, str]:
        """Return the layers whose inputs are rounded at run time, with the reason."""
        found: dict[Node, str] = {}
        if self.activations not in {"auto", "dynamic"} or not target.dynamic or model.opset < DYNAMIC_SINCE:
            return found
        for graph, node in model.walk(functions=False):
            rule = target.rule(node)
            if node.op not in {"MatMul", "Gemm"} or rule is None or node_label(node) in self.keep:
                continue
            if self.planned and node_label(node) not in self.planned:
                continue
            if rule.refuse(node) is not None or is_overridable(model, node) or matrix(node) is None:
                continue
            if types.dtype(node.inputs[0]) != FLOAT32:
                continue
            if products_per_rounding(node) < PRODUCTS_PER_ROUNDING:
                continue
            if self.activations == "dynamic":
                found[node] = "its inputs are rounded at run time, as asked"
            elif graph is not model.graph:
                found[node] = "it lies inside a body, where no range can be observed: rounded at run time"
            elif not static:
                found[node] = "without data its inputs are rounded at run time"
            elif is_sequence_product(node, types):
                found[node] = SEQUENCE
        return found

    def _dynamic_patch(self, node: Node, why: str, even: EvenInputs, *, per_channel: bool, limit: int) -> Patch:
        what = f"{describe(node, per_channel=per_channel)}, dynamic uint8 activations"
        gain = even.gain_db(node)
        why += f"; channels evened out, {gain:.1f} dB less error expected" if gain else ""
        record = LayerRecord(node_label(node), node.op, what, reason=why)

        def apply(rw: Rewriter) -> None:
            even.apply(rw, node)
            make_dynamic(rw, node, per_channel=per_channel, limit=limit)

        return Patch(f"quantize {node.op} '{node_label(node)}' to {what}: {why}", (node,), apply, (record,))

    def _refuse_static(
        self, model: Model, target: Target, types: Types, dynamic: dict[Node, str], leave: dict[str, str]
    ) -> Iterator[Skip]:
        for node in model.graph.nodes:
            rule = target.rule(node)
            if rule is None or rule.role is not Role.WEIGHTED or node in dynamic:
                continue
            overridable = OVERRIDABLE if is_overridable(model, node) else None
            other = None if types.dtype(node.inputs[0]) == FLOAT32 else NOT_FLOAT32
            yield Skip(node, leave.get(node_label(node)) or overridable or rule.refuse(node) or other or NO_DATA)

    # ----------------------------------------------------------------------------------------------- weights, tables

    def _weights_alone(self, model: Model, *, per_channel: bool) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield the patches that store weights as integers and leave the arithmetic as it is, in every scope."""
        number = NUMBERS[self.weights]
        if model.opset < number.since:
            yield Skip(model.graph.name or "the model", f"opset {model.opset} has no {number.name}: run raise-opset")
            return
        stored = StoredWeights(per_channel=per_channel, number=number)
        for node in [node for _, node in model.walk(functions=False)]:
            places = stored_places(node)
            if not places:
                continue
            if is_overridable(model, node) or node_label(node) in self.keep:
                yield Skip(node, OVERRIDABLE if is_overridable(model, node) else KEPT)
                continue
            if not are_finite(node, places):
                yield Skip(node, NOT_FINITE)
                continue

            def apply(rw: Rewriter, node: Node = node, places: list[int] = places) -> None:
                stored.store(rw, node, places)

            shared = "channel" if per_channel else "tensor"
            what = f"{number.name} weights per {shared}, float arithmetic"
            record = LayerRecord(node_label(node), node.op, what, reason="restored in every run, as asked")
            yield Patch(
                f"store the weights of {node.op} '{node_label(node)}' in {number.name}", (node,), apply, (record,)
            )
        if self.embeddings:
            yield from self._tables(model, dict.fromkeys(self.keep, KEPT))

    def _tables(self, model: Model, leave: dict[str, str]) -> Generator[Patch | Skip, frozenset[Node], None]:
        for node in [node for _, node in model.walk(functions=False)]:
            why = table_refusal(node)
            if why == "":
                continue
            if why is None and is_overridable(model, node):
                why = OVERRIDABLE
            why = leave.get(node_label(node), why)
            if why is not None:
                yield Skip(node, why)
                continue
            record = LayerRecord(
                node_label(node), node.op, "int8 table, one scale", reason="rows are restored after the lookup"
            )

            def apply(rw: Rewriter, node: Node = node) -> None:
                make_integer_table(rw, node)

            yield Patch(f"keep the table of Gather '{node_label(node)}' in int8", (node,), apply, (record,))
