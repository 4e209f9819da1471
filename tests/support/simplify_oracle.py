"""What must hold of simplification, whatever passes it consists of; every check of one model in one call.

    verdict = judge(model, feeds)

raises `SimplifyFaultError` where the result is another model to its user: other outputs, another interface, invalid,
larger than the growth rule permits; or where simplification crashes, does not end in one run, or depends on anything
but the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from graphopt.errors import GraphoptError
from graphopt.graph import is_sorted, read_model
from graphopt.rewrite import PassManager, load_recipe
from graphopt.runtime import run
from graphopt.verify.bound import float_types, relative_error, rounding_tolerances
from graphopt.verify.contract import Contract, weakest
from graphopt.verify.equality import Tolerance, compare
from graphopt.verify.reference import open_unoptimized
from simplify_oracle_reference import interpret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from graphopt.graph import Model
    from graphopt.rewrite.manager import Outcome
    from simplify_oracle_options import Options

GROWTH_BYTES = 1 << 16
"""What folding may add to a file; see the growth rule of fold-constants."""

BOOKKEEPING_BYTES = 1 << 11
"""What names and type records of new nodes may add to a file."""


LOSSY_SHARE = 0.1
"""How far an output may be off in 16 bits, as a share of its largest element: the models are well-conditioned."""


class SimplifyFaultError(AssertionError):
    """Simplification did something wrong.

    Attributes:
        kind: crash, invalid, interface, unstable, random, growth, refused (the result does not run), wrong (in ONNX
            Runtime) or wrong-reference.
        detail: What is wrong.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Verdict:
    """What was found out about one model.

    Attributes:
        result: The simplified model.
        contract: What the passes that changed it promise.
        passes: The passes that changed it.
        compared: Feeds on which ONNX Runtime ran both.
        interpreted: Feeds on which onnx.reference ran both.
    """

    result: onnx.ModelProto
    contract: Contract
    passes: tuple[str, ...]
    compared: int = 0
    interpreted: int = 0
    messages: tuple[str, ...] = field(default=())

    @property
    def ops(self) -> list[str]:
        """Return the operators of all scopes and functions."""
        return operators(self.result)


PASSES: list[str] = []
"""Names of the passes that are judged; empty stands for the preset ``default``."""


def passes() -> Sequence[Any]:
    """Return the passes that are judged."""
    return PASSES or load_recipe("default").passes


def simplified(data: bytes) -> tuple[bytes, Outcome]:
    """Run the passes, as the pipeline does, and return the model's bytes and the account."""
    model = read_model(data)
    if not all(is_sorted(root, nested=True) for root in model.roots()):
        model.sort()
    outcome = PassManager(passes(), verify="fast").run(model)
    return model.to_bytes(), outcome


def judge(
    source: onnx.ModelProto | bytes,
    feeds: Sequence[Mapping[str, Any]] = (),
    *,
    odd: Sequence[Mapping[str, Any]] = (),
    runtime: bool = True,
    interpreter: bool = True,
    random: bool = False,
    options: Options | None = None,
) -> Verdict:
    """Simplify a model and check everything that must hold.

    Args:
        source: The model.
        feeds: Complete feeds. Those on which the original fails are left out.
        odd: Feeds of NaN, infinities and extremes, compared where only exact passes changed the model: there nothing
            may differ, while rounding may decide whether a number overflows.
        runtime: Compare in ONNX Runtime, if it runs the original.
        interpreter: Compare in onnx.reference, if it runs the original.
        random: The model draws random numbers: only types and shapes of the outputs are compared.
        options: What the user asks for; the result has to equal the model that `Options.asked_for` returns.

    Raises:
        SimplifyFaultError: Something does not hold.
    """
    data = source if isinstance(source, bytes) else source.SerializeToString(deterministic=True)
    before = onnx.load_from_string(data)
    run_all = simplified if options is None else options.simplified
    given = data
    try:
        first, outcome = run_all(data)
    except Exception as error:
        raise SimplifyFaultError("crash", _chain(error)) from error
    after = onnx.load_from_string(first)
    if options is not None:
        before = options.asked_for(before)
        feeds, odd = options.feeds(before, feeds), options.feeds(before, odd)
    check_interface(before, after)
    check_valid(before, after)
    check_growth(data, first)
    log = [record for record in outcome.records if record.log]
    contract = weakest([record.contract for record in log])
    candidate = first
    if options is not None:
        data = options.with_kept(before).SerializeToString(deterministic=True)
        candidate = options.with_kept(after).SerializeToString(deterministic=True)
        runtime = runtime and options.precision != "bfloat16"  # for which ONNX Runtime has few kernels
    bounds = _Bounds(data, contract)
    chosen = [*feeds, *(_judged(odd, bounds.model) if contract is Contract.EXACT and not bounds.coarse else ())]
    compared = _in_runtime(data, candidate, chosen, bounds, random=random) if runtime else 0
    interpreter = interpreter and not random and contract is not Contract.LOSSY
    interpreted = _in_reference(data, candidate, feeds, bounds) if interpreter else 0
    check_stable(given, first, run_all)
    return Verdict(after, contract, tuple(record.name for record in log), compared, interpreted)


def _judged(odd: Sequence[Mapping[str, Any]], model: Model) -> list[Mapping[str, Any]]:
    """Return feeds without what ONNX Runtime itself gets wrong: NaN and -inf where a MaxPool gives indices.

    Without them it takes another kernel, whose maximum of these alone is the lowest float. No pass can help that.
    """
    if not any(node.op == "MaxPool" and len(node.outputs) > 1 for _, node in model.walk()):
        return list(odd)
    return [{name: _finite_below(value) for name, value in feed.items()} for feed in odd]


def _finite_below(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    return np.where(np.isneginf(value) | np.isnan(value), np.finfo(value.dtype).min, value)


def check_stable(
    data: bytes,
    first: bytes,
    run_all: Callable[[bytes], tuple[bytes, Outcome]] | None = None,
) -> None:
    """Check that a second run gives the same bytes, and that a run on the result changes nothing.

    Args:
        data: The model.
        first: The result.
        run_all: What made it; None stands for `simplified`.
    """
    run_all = run_all or simplified
    if run_all(data)[0] != first:
        raise SimplifyFaultError("random", "two runs on the same model give different bytes")
    try:
        again, outcome = run_all(first)
    except Exception as error:
        raise SimplifyFaultError("unstable", f"simplifying the result again fails: {_chain(error)}") from error
    if again != first:
        patches = [f"{record.name}: {patch.reason}" for record in outcome.records for patch in record.log]
        raise SimplifyFaultError("unstable", f"simplifying the result again changes it: {patches[:4]}")


def check_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Check that inputs, outputs and overridable initializers are the same, in order, with types and dimensions."""
    for what, left, right in (
        ("inputs", _inputs(before), _inputs(after)),
        ("outputs", _outputs(before), _outputs(after)),
    ):
        if left != right:
            raise SimplifyFaultError(
                "interface", f"the {what} are {_names(right)}, not {_names(left)} (or their types differ)"
            )


def check_valid(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Check that onnx.checker accepts the result wherever it accepts the original, with and without inference."""
    for full in (False, True):
        try:
            onnx.checker.check_model(before, full_check=full)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            continue
        try:
            onnx.checker.check_model(after, full_check=full)
        except Exception as error:
            raise SimplifyFaultError("invalid", " ".join(str(error).split())[:500]) from error


def check_growth(data: bytes, first: bytes) -> None:
    """Check that the file did not grow by more than folding may add."""
    if len(first) > len(data) + GROWTH_BYTES + BOOKKEEPING_BYTES:
        raise SimplifyFaultError("growth", f"{len(data)} bytes became {len(first)}")


def operators(model: onnx.ModelProto) -> list[str]:
    """Return the operators of all nodes, in every scope and function."""

    def within(nodes: Any) -> Any:
        for node in nodes:
            yield node.op_type
            for attribute in node.attribute:
                for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                    yield from within(graph.node)

    return [op for nodes in (model.graph.node, *(f.node for f in model.functions)) for op in within(nodes)]


class _Bounds:
    """How far outputs may lie apart, derived only when it is asked for."""

    def __init__(self, data: bytes, contract: Contract) -> None:
        self.model = read_model(data)
        self.contract = contract
        self.outputs: dict[int, dict[str, Any]] = {}  # of the original in ONNX Runtime, by the number of the feed
        self.coarse = any(dtype.itemsize == 2 for dtype in float_types(self.model))

    def is_witnessed(self, number: int, outputs: dict[str, Any]) -> bool:
        """Tell whether onnx.reference and ONNX Runtime agree about the original; else the former is no witness here."""
        if number not in self.outputs:
            return True
        loose = {name: Tolerance(0.01 * _largest(value), 1 << 30) for name, value in outputs.items()}
        return compare(self.outputs[number], outputs, Contract.ROUNDING, loose).equal

    def for_runtime(self, feeds: list[Any], outputs: list[Any]) -> tuple[Contract, list[dict[str, Tolerance]]]:
        """Return the contract and the tolerances of each feed.

        Types of 16 bits are computed in 32 bits and rounded between nodes, less often where there are fewer nodes:
        there even rewrites that are exact by themselves are held to the rounding bound.
        """
        contract = Contract.ROUNDING if self.coarse and self.contract is Contract.EXACT else self.contract
        if contract is not Contract.ROUNDING:
            return contract, [{} for _ in feeds]
        return contract, rounding_tolerances(self.model, feeds, outputs)

    def for_reference(self, feed: Mapping[str, Any], outputs: dict[str, Any]) -> dict[str, Tolerance]:
        """Return the tolerances of one feed; without ONNX Runtime there are no trials, only tau with a reserve."""
        tau = 16 * relative_error(self.model)
        plain = {name: Tolerance(tau * _largest(value)) for name, value in outputs.items()}
        try:
            tried = rounding_tolerances(self.model, [feed], [outputs])[0]
        except GraphoptError:
            return plain
        return {name: Tolerance(max(plain[name].absolute, tried[name].absolute), tried[name].flips) for name in outputs}


def _in_runtime(
    data: bytes,
    first: bytes,
    feeds: Sequence[Mapping[str, Any]],
    bounds: _Bounds,
    *,
    random: bool,
) -> int:
    try:
        running = open_unoptimized(data)
    except GraphoptError:
        return 0
    usable, right = [], []
    for number, feed in enumerate(feeds):
        try:
            outputs = run(running, feed)
        except GraphoptError:
            continue
        if is_denied(onnx.load_from_string(data).graph, feed, outputs):
            continue
        usable.append(feed)
        right.append(outputs)
        bounds.outputs[number] = outputs
    if not usable:
        return 0
    try:
        candidate = open_unoptimized(first)
        found = [run(candidate, feed) for feed in usable]
    except GraphoptError as error:
        raise SimplifyFaultError("refused", " ".join(str(error).split())[:600]) from error
    if random:
        same = [_kinds(each) for each in right] == [_kinds(each) for each in found]
        if not same:
            raise SimplifyFaultError("wrong", f"types or shapes are {_kinds(found[0])}, not {_kinds(right[0])}")
        return len(usable)
    contract, tolerances = bounds.for_runtime(usable, right)
    for number, (each, got, allowed) in enumerate(zip(right, found, tolerances, strict=True)):
        comparison = compare(each, got, contract, allowed)
        if not comparison.equal:
            raise SimplifyFaultError("wrong", f"feed {number}, {contract.value}: {comparison.reason}")
        far = [each.name for each in comparison.outputs if each.max_rel > LOSSY_SHARE]
        if contract is Contract.LOSSY and far:
            raise SimplifyFaultError("wrong", f"feed {number}, {contract.value}: {far} are far from the original")
    return len(usable)


def _in_reference(data: bytes, first: bytes, feeds: Sequence[Mapping[str, Any]], bounds: _Bounds) -> int:
    compared = 0
    if _is_misread(onnx.load_from_string(first)):
        return 0
    for number, feed in enumerate(feeds):
        with np.errstate(all="ignore"):
            try:
                with np.errstate(divide="raise"):  # of integers by 0 it makes 0, and the definition makes nothing
                    right = interpret(data, [feed])
            except Exception:
                continue
            if is_denied(onnx.load_from_string(data).graph, feed, right[0]):
                continue
            try:
                found = interpret(first, [feed])
            except GraphoptError:
                continue  # an operator that it does not implement, or not in this form, may be new in the result
            except Exception as error:
                raise SimplifyFaultError("refused", f"onnx.reference: {_chain(error)}") from error
        if not all(isinstance(each, np.ndarray) for each in right[0].values()):
            continue
        if not bounds.is_witnessed(number, right[0]):
            continue
        comparison = compare(right[0], found[0], Contract.EXACT)
        if not comparison.equal:  # folded values come from ONNX Runtime, which rounds otherwise than onnx.reference
            comparison = compare(right[0], found[0], Contract.ROUNDING, bounds.for_reference(feed, right[0]))
        if not comparison.equal:
            raise SimplifyFaultError("wrong-reference", f"feed {number}: {comparison.reason}")
        compared += 1
    return compared


def is_denied(graph: onnx.GraphProto, feed: Mapping[str, Any], outputs: Mapping[str, Any]) -> bool:
    """Tell whether a feed gives an output another size than its declared symbol has, which an input decides."""
    sizes: dict[str, int] = {}
    for value in graph.input:
        fed = feed.get(value.name)
        if not isinstance(fed, np.ndarray):  # a sequence or an optional: its type names no size of its own
            continue
        for dim, size in zip(value.type.tensor_type.shape.dim, fed.shape, strict=False):
            if dim.dim_param:
                sizes.setdefault(dim.dim_param, size)
    return any(
        sizes.get(dim.dim_param, size) != size
        for value in graph.output
        if isinstance(outputs.get(value.name), np.ndarray)
        for dim, size in zip(value.type.tensor_type.shape.dim, outputs[value.name].shape, strict=False)
    )


def _is_misread(model: onnx.ModelProto) -> bool:
    """Tell whether onnx.reference computes a node of the model wrongly: it was compared with the definition by hand.

    Padded poolings, maxima over all; groups of ConvTranspose, which all get the bias of the first; inputs that are left
    out, in whose place it takes an output that is left out.
    """
    if any("" in node.output for node in model.graph.node) and any("" in node.input for node in model.graph.node):
        return True
    for node in model.graph.node:
        ints = {each.name: list(each.ints) or each.i for each in node.attribute}
        if node.op_type == "GlobalMaxPool" or (node.op_type == "ConvTranspose" and ints.get("group", 1) != 1):
            return True
        if node.op_type in {"MaxPool", "AveragePool", "LpPool"} and any(ints.get("pads") or ()):
            return True
    return False


def _inputs(model: onnx.ModelProto) -> list[tuple[str, bytes, bool]]:
    """Return the inputs; before IR 4 every initializer is listed as one, which says nothing."""
    given = {tensor.name for tensor in model.graph.initializer}
    return [
        (value.name, value.type.SerializeToString(deterministic=True), value.name in given)
        for value in model.graph.input
        if value.name not in given or model.ir_version >= 4
    ]


def _outputs(model: onnx.ModelProto) -> list[tuple[str, bytes]]:
    return [(value.name, value.type.SerializeToString(deterministic=True)) for value in model.graph.output]


def _names(values: Sequence[tuple[Any, ...]]) -> list[str]:
    return [value[0] for value in values]


def _largest(value: Any) -> float:
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OUSb" or not value.size:
        return 0.0
    wide = np.abs(value.astype(np.complex128 if value.dtype.kind == "c" else np.float64))
    return float(wide[np.isfinite(wide)].max(initial=0.0))


def _kinds(outputs: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{getattr(value, 'dtype', type(value))}{np.shape(value)}" for name, value in outputs.items()}


def _chain(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(f"{type(cause).__name__}: {error}".split())[:600]
