"""What a model consists of: operators, inputs and outputs, weights, opsets, and what one run costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from graphopt.analysis import Cost as CostAnalysis
from graphopt.analysis import Facts
from graphopt.errors import UsageError
from graphopt.graph import Constant, ExternalWeight, Model, read_model, uses
from graphopt.report import text
from graphopt.runtime import input_specs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType

    from graphopt.graph import Node

LARGEST = 10
"""Weights that are listed by name."""
NAME_LIMIT = 48
"""Longest name in a table, in characters."""
SMALLEST_WEIGHT = 2
"""Elements from which a constant counts as a weight: scalars are settings of operators."""
STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training"})


@dataclass(frozen=True, slots=True)
class Weight:
    """One constant.

    Attributes:
        name: Name of the tensor; that of the node for a Constant node.
        type: Element type as ONNX calls it, in lower case.
        shape: Its dimensions.
        bytes: Bytes of its values, packed as stored.
        used_by: The first operator that reads it, by type and name.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    used_by: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run costs, as far as shapes are known.

    Attributes:
        flops: Arithmetic operations; a multiplication and its addition count as two.
        bytes: Bytes of tensors read and written.
        dispatches: Operators that the runtime calls.
        unknown: Nodes whose cost is not known; they count 0.
        sizes: What the symbolic dimensions of the inputs were taken as.
    """

    flops: int
    bytes: int
    dispatches: int
    unknown: int
    sizes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a model consists of.

    Attributes:
        path: The file.
        bytes: Bytes on disk: the file, and the external data it names.
        ir_version: Version of the file format.
        opsets: Version by domain; the default domain is ``ai.onnx``.
        producer: The program that wrote it, with its version; may be empty.
        inputs: Each as ``name: type[shape]``; initializers that a feed may override are not listed.
        outputs: Likewise.
        nodes: Nodes of all scopes.
        operators: Nodes by operator, the most frequent first; of other domains as ``domain::Operator``.
        custom_domains: Domains that a stock runtime does not know.
        functions: Model-local functions.
        subgraphs: Bodies of If, Loop and Scan.
        parameters: Elements of all weights.
        weight_bytes: Their bytes.
        types: Bytes of weights by element type.
        largest: The largest weights.
        cost: What one run costs.
    """

    path: str
    bytes: int
    ir_version: int
    opsets: dict[str, int]
    producer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: int
    operators: dict[str, int]
    custom_domains: tuple[str, ...]
    functions: int
    subgraphs: int
    parameters: int
    weight_bytes: int
    types: dict[str, int]
    largest: tuple[Weight, ...]
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain data for JSON."""
        return asdict(self)


def inspect(source: str | Path, sizes: Mapping[str, int] | None = None) -> Inspection:
    """Read a model and list what it consists of.

    Args:
        source: An ONNX file, or a bundle folder, whose ``model.onnx`` is read.
        sizes: Symbolic dimensions by name, for the cost; the others are taken as 1.

    Raises:
        ReadError: The file is no model.
        UsageError: No input has a dimension of such a name.
    """
    path = Path(source)
    path = path / "model.onnx" if path.is_dir() else path
    model = read_model(path)
    operators = Counter(_operator(node) for _, node in model.walk())
    weights = list(_weights(model))
    types: Counter[str] = Counter()
    for weight in weights:
        types[weight.type] += weight.bytes
    return Inspection(
        path=str(path),
        bytes=_bytes_on_disk(path, model),
        ir_version=model.ir_version,
        opsets={domain or "ai.onnx": version for domain, version in sorted(model.opset_imports.items())},
        producer=_producer(model),
        inputs=tuple(str(spec) for spec in input_specs(model) if spec.required),
        outputs=tuple(str(spec) for spec in input_specs(list(model.graph.outputs))),
        nodes=sum(operators.values()),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        custom_domains=tuple(sorted(_custom_domains(model))),
        functions=len(model.functions),
        subgraphs=sum(1 for _ in model.graphs()) - 1 - len(model.functions),
        parameters=sum(_elements(weight.shape) for weight in weights),
        weight_bytes=sum(weight.bytes for weight in weights),
        types=dict(types.most_common()),
        largest=tuple(sorted(weights, key=lambda weight: (-weight.bytes, weight.name))[:LARGEST]),
        cost=_cost(model, sizes or {}),
    )


def render(found: Inspection) -> str:
    """Return the findings as text for a terminal."""
    from rich.console import Group
    from rich.text import Text

    from graphopt.report.console import table, to_text

    facts = [
        ("file", f"{found.path}, {text.size(found.bytes)}"),
        ("written by", found.producer),
        (
            "versions",
            f"IR {found.ir_version}, " + ", ".join(f"{name} {number}" for name, number in found.opsets.items()),
        ),
        *(("input", line) for line in found.inputs),
        *(("output", line) for line in found.outputs),
        ("nodes", _scopes(found)),
        ("weights", f"{text.short_count(found.parameters)} elements, {text.size(found.weight_bytes)}{_types(found)}"),
        ("one run", _cost_line(found.cost)),
        ("custom operators", ", ".join(found.custom_domains)),
    ]
    rows = [(name, value) for name, value in facts if value]
    parts: list[RenderableType] = [table(("", ""), rows, left=2)]
    counted = [(name, text.count(number)) for name, number in found.operators.items()]
    parts += [Text(), table(("operator", "nodes"), counted)]
    if found.largest:
        largest = [
            (_short(each.name), each.type, "x".join(map(str, each.shape)), _short(each.used_by), text.size(each.bytes))
            for each in found.largest
        ]
        parts += [Text(), table(("largest weights", "type", "shape", "used by", "size"), largest, left=4)]
    return to_text(Group(*parts))


def _short(name: str) -> str:
    return text.printable(name, limit=NAME_LIMIT)


def _operator(node: Node) -> str:
    return f"{node.domain}::{node.op}" if node.domain and node.domain != "ai.onnx" else str(node.op)


def _weights(model: Model) -> Iterator[Weight]:
    """Yield every constant with more than one element once, with its first reader."""
    seen: set[int] = set()
    for _, node in model.walk():
        constants = [(tensor.name, tensor) for tensor in node.inputs if isinstance(tensor, Constant)]
        if node.op == "Constant" and isinstance(node.attrs.get("value"), Constant):
            constants = [(node.outputs[0].name, node.attrs["value"])]
            readers = uses(node.outputs[0])
            node = readers[0].node if readers else node
        for name, constant in constants:
            if id(constant) in seen or _elements(constant.shape) < SMALLEST_WEIGHT:
                continue
            seen.add(id(constant))
            kind = onnx.TensorProto.DataType.Name(constant.onnx_dtype).lower()
            yield Weight(str(name), kind, tuple(constant.shape), int(constant.nbytes), f"{node.op} {node.name}".strip())


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for dimension in shape:
        total *= dimension
    return total


def _custom_domains(model: Model) -> set[str]:
    own = {function.domain for function in model.functions}
    return {str(node.domain) for _, node in model.walk() if (node.domain or "") not in STANDARD_DOMAINS | own}


def _producer(model: Model) -> str:
    carried = model.carried
    if carried is None:
        return ""
    version = carried.producer_version.removesuffix("None")  # tf2onnx writes "1.17.0 None"
    return f"{carried.producer_name} {version}".strip()


def _bytes_on_disk(path: Path, model: Model) -> int:
    files = {path}
    for _, node in model.walk():
        for tensor in node.inputs:
            if isinstance(tensor, Constant) and isinstance(tensor.weight, ExternalWeight):
                files.add(tensor.weight.file.path)
    return sum(file.stat().st_size for file in files)


def _cost(model: Model, sizes: Mapping[str, int]) -> Cost:
    symbols = {dim for spec in input_specs(model) for dim in spec.shape or () if isinstance(dim, str)}
    for name in sizes:
        if name not in symbols:
            raise UsageError(
                f"no input has a dimension '{name}'",
                where="--size",
                must=f"The symbolic dimensions are {', '.join(sorted(symbols)) or 'none'}",
            )
    total = Facts(model).get(CostAnalysis).total(sizes, default=1)
    assumed = {name: sizes.get(name, 1) for name in sorted(symbols)}
    return Cost(total.flops, total.read_bytes + total.written_bytes, total.dispatches, total.unknown, assumed)


def _scopes(found: Inspection) -> str:
    line = text.count(found.nodes)
    if found.subgraphs:
        line += f", in {text.count(found.subgraphs + 1)} scopes"
    if found.functions:
        line += f", {text.count(found.functions)} functions"
    return line


def _types(found: Inspection) -> str:
    if not found.types:
        return ""
    parts = ", ".join(f"{name} {text.size(number)}" for name, number in found.types.items())
    return f" ({parts})"


def _cost_line(cost: Cost) -> str:
    line = (
        f"{text.short_count(cost.flops)} operations, {text.size(cost.bytes)} moved, {text.count(cost.dispatches)} calls"
    )
    if cost.sizes:
        line += f", with {', '.join(f'{name} {size}' for name, size in cost.sizes.items())}"
    return f"{line}; {text.count(cost.unknown)} nodes of unknown cost" if cost.unknown else line
