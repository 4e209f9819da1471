"""Judge a simplified model against its original: nodes, size, checker, interface, and the values that it computes."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime as ort

from benchmarks.simplify_values import changed_weights, difference, feeds_for, same_bits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

STANDARD = {"", "ai.onnx", "ai.onnx.ml"}
CLOSE = 1e-3
"""Largest difference, relative to the largest value of the output, that rounding may make."""
REFINED = "dimensions refined"
"""Names for unknown dimensions, numbers for symbolic ones of outputs: no fault of the values, yet another type."""
_FIRST_OVERRIDABLE_IR = 4


@dataclass
class Verdict:
    """What a result is worth; ``valid`` sums it up, overriding apart."""

    nodes: int
    bytes: int
    checker: str
    interface: str
    overriding: str
    equality: str
    difference: float | None
    domains: list[str]

    @property
    def valid(self) -> bool:
        """Whether the result can stand for the original wherever the original ran, with its weights as they are."""
        return (
            self.checker in {"pass", "original fails too"}
            and self.interface in {"same", REFINED}
            and self.equality in {"=", "~"}
            and not self.domains
        )

    def row(self) -> dict[str, Any]:
        """Return the verdict for JSON."""
        return asdict(self) | {"valid": self.valid}


class Original:
    """A model with the feeds and outputs that results are compared with."""

    def __init__(self, path: Path, data: Path | None, seed: int = 0) -> None:
        self.path = path
        self.proto = onnx.load(str(path), load_external_data=False)
        self.checker = check(path)
        self.nodes = count_nodes(self.proto)
        self.bytes = file_bytes(path)
        self.overridable = overridable(self.proto)
        session = unoptimized(path)
        self.feeds = feeds_for(path, session, data, seed)
        self.names = [output.name for output in self.proto.graph.output]
        self.outputs = [session.run(self.names, feed) for feed in self.feeds]
        self.override_feeds = [self.feeds[0] | change for change in changed_weights(self.proto, self.overridable, seed)]
        self.override_outputs = [session.run(self.names, feed) for feed in self.override_feeds]

    def judge(self, path: Path) -> Verdict:
        """Judge one result."""
        proto = onnx.load(str(path), load_external_data=False)
        problem = check(path)
        checker = "pass" if problem is None else f"fails: {problem}"
        if problem is not None and self.checker is not None:
            checker = "original fails too"
        equality, difference, overriding = self._values(path, proto)
        return Verdict(
            nodes=count_nodes(proto),
            bytes=file_bytes(path),
            checker=checker,
            interface=interface_changes(self.proto, proto) or "same",
            overriding=overriding,
            equality=equality,
            difference=difference,
            domains=sorted({node.domain for node in all_nodes(proto)} - STANDARD),
        )

    def _values(self, path: Path, proto: onnx.ModelProto) -> tuple[str, float | None, str]:
        try:
            session = unoptimized(path)
        except Exception as error:  # the runtime's own errors have no common base
            return f"does not load: {first_line(error)}", None, "not tested"
        try:
            found = [session.run(self.names, feed) for feed in self.feeds]
        except Exception as error:
            return f"does not run: {first_line(error)}", None, "not tested"
        differences = [difference(a, b) for a, b in zip(self.outputs, found, strict=True)]
        worst = max(differences)
        exact = all(same_bits(a, b) for a, b in zip(self.outputs, found, strict=True))
        equality = "=" if exact else "~" if worst <= CLOSE else "wrong"
        return equality, worst, self._overriding(session, proto)

    def _overriding(self, session: ort.InferenceSession, proto: onnx.ModelProto) -> str:
        if not self.overridable:
            return "none"
        names = {value.name for value in proto.graph.input}
        lost = sum(name not in names for name in self.overridable)
        if lost:
            return f"lost ({lost} of {len(self.overridable)})"
        for feed, expected in zip(self.override_feeds, self.override_outputs, strict=True):
            if difference(expected, session.run(self.names, feed)) > CLOSE:
                return "ignored"
        return "kept"


def first_line(error: Exception) -> str:
    """Return the beginning of an error's text, without the folder that this run happened to use."""
    return re.sub(r"(?<![\w.])/(?:[^\s/:]+/)+", "", str(error).strip().splitlines()[0])[:200]


def unoptimized(path: Path) -> ort.InferenceSession:
    """Return a session that runs the model as it is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check(path: Path) -> str | None:
    """Return what onnx.checker finds, types and shapes included, or None."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        return first_line(error)
    return None


def file_bytes(path: Path) -> int:
    """Return the size of a model file and of the data files it names."""
    names = {
        entry.value
        for tensor in all_tensors(onnx.load(str(path), load_external_data=False))
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [path, *(path.parent / name for name in names)]
    return sum(file.stat().st_size for file in files if file.exists())


def all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield initializers of every scope and the tensors in attributes."""
    for graph in all_graphs(proto):
        yield from graph.initializer
    for node in all_nodes(proto):
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def all_graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and every sub-graph, those of functions included."""
    yield proto.graph
    for node in all_nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of every scope."""
    stack: list[Iterable[onnx.NodeProto]] = [proto.graph.node, *(function.node for function in proto.functions)]
    while stack:
        for node in stack.pop():
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    stack.append(attribute.g.node)
                stack.extend(graph.node for graph in attribute.graphs)


def count_nodes(proto: onnx.ModelProto) -> int:
    """Return the number of nodes of every scope, Constant nodes left out."""
    return sum(node.op_type != "Constant" or node.domain not in STANDARD for node in all_nodes(proto))


def overridable(proto: onnx.ModelProto) -> list[str]:
    """Return the inputs whose initializer is only their default value."""
    if proto.ir_version < _FIRST_OVERRIDABLE_IR:
        return []  # such models list every weight as an input and cannot override one
    names = {tensor.name for tensor in proto.graph.initializer}
    return [value.name for value in proto.graph.input if value.name in names]


def interface_changes(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """Return how inputs that must be fed and outputs differ in names, order, types and dimensions; empty if not."""
    found: list[str] = []
    refined = False
    for kind in ("input", "output"):
        old, new = declared(before, kind), declared(after, kind)
        if [name for name, _ in old] != [name for name, _ in new]:
            found.append(f"{kind}s {[name for name, _ in old]} became {[name for name, _ in new]}"[:200])
            continue
        changed = [(name, a, b) for (name, a), (_, b) in zip(old, new, strict=True) if a != b]
        if changed and all(refines(a, b, numbers=kind == "output") for _, a, b in changed):
            refined = True
            continue
        found.extend(f"{kind} {name}: {a} became {b}" for name, a, b in changed[:1])
    return "; ".join(found) or (REFINED if refined else "")


def refines(before: str, after: str, *, numbers: bool) -> bool:
    """Tell whether a type only says more: unknown dimensions that got a name, or (``numbers``) got a size."""
    (kind, _, old), (again, _, new) = (text.rstrip("]").partition("[") for text in (before, after))
    pairs = list(zip(old.split(","), new.split(","), strict=False))
    same_rank = old.count(",") == new.count(",") and bool(new)
    named = all(
        a == b or (a == "?" and not b.isdigit()) or (numbers and not a.isdigit() and b.isdigit()) for a, b in pairs
    )
    said_more = same_rank and named
    return kind == again and (said_more or (numbers and old == "..."))


def declared(proto: onnx.ModelProto, kind: str) -> list[tuple[str, str]]:
    """Return the names and types of the inputs that must be fed, or of the outputs."""
    weights = {tensor.name for tensor in proto.graph.initializer} if kind == "input" else set()
    return [(value.name, described(value.type)) for value in getattr(proto.graph, kind) if value.name not in weights]


def described(kind: onnx.TypeProto) -> str:
    """Return a type as text that tells unknown, symbolic and fixed dimensions apart."""
    if kind.WhichOneof("value") != "tensor_type":
        return str(kind.SerializeToString(deterministic=True).hex())
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return f"{tensor.elem_type}[...]"
    dims = [str(getattr(dim, dim.WhichOneof("value") or "", "?")) or "?" for dim in tensor.shape.dim]
    return f"{tensor.elem_type}[{','.join(dims)}]"
