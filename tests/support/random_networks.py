"""Random small networks of weighted layers with feeds: everything that compression meets, in odd combinations.

A network is grown from one value; each step adds a layer or a block that fits its rank. Sizes are tracked, the first
axis is the batch. ONNX Runtime decides whether what was grown is a model: what it refuses is thrown away.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import GraphoptError
from graphopt.runtime import run
from graphopt.verify.reference import open_unoptimized

Shape = tuple[int, ...]
Step = Callable[["Net", "Value"], "Value"]

OPSETS = (10, 11, 12, 13, 13, 15, 16, 17, 17, 18, 19, 20, 21, 21, 22, 23, 25)
DOMAIN = "random.functions"
_ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


@dataclass(frozen=True)
class Value:
    """A tensor of the network; ``shape`` leaves the batch axis out, which stands first."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Network:
    """A network with feeds for it.

    Attributes:
        proto: The model.
        feeds: An array per input, samples along the first axis.
        odd: What makes it unusual, for messages.
    """

    proto: onnx.ModelProto
    feeds: dict[str, Any]
    odd: tuple[str, ...]


@dataclass
class Net:
    """A network as it grows."""

    source: random.Random
    opset: int
    dtype: np.dtype[Any]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    shareable: dict[Shape, str] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)
    names: int = 0

    def chance(self, share: float) -> bool:
        return self.source.random() < share

    def pick(self, items: Any) -> Any:
        return self.source.choice(items)

    def fresh(self, stem: str) -> str:
        self.names += 1
        return f"{stem}{self.names}"

    @property
    def draw(self) -> np.random.Generator:
        return np.random.default_rng(self.source.getrandbits(32))

    def constant(self, array: Any, *, node: bool = False) -> str:
        name = self.fresh("c")
        tensor = numpy_helper.from_array(np.asarray(array), name)
        if node:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.weights.append(tensor)
        return name

    def weight(self, shape: Shape, fan: int) -> str:
        """Return the name of a weight: sometimes that of another layer, sparse, low in rank or partly zero."""
        if shape in self.shareable and self.chance(0.15):
            self.odd.append("shared weight")
            return self.shareable[shape]
        draw = self.draw
        array = draw.standard_normal(shape) / np.sqrt(max(1, fan))
        if self.chance(0.1):
            array *= np.exp(draw.standard_normal(shape[:1] + (1,) * (len(shape) - 1)) * 2)
        if self.chance(0.08):
            array[draw.random(shape) < 0.6] = 0
            self.odd.append("zeros")
        if self.chance(0.04):
            array[draw.integers(0, shape[0])] = 0
            self.odd.append("zero row")
        if self.chance(0.02):
            array[:] = 0
            self.odd.append("zero weight")
        if self.chance(0.02):
            array.flat[0] = np.nan
            self.odd.append("NaN weight")
        name = self.constant(array.astype(self.dtype), node=self.chance(0.08))
        self.shareable[shape] = name
        return name

    def vector(self, shape: Shape, *, positive: bool = False) -> str:
        array = self.draw.standard_normal(shape) * 0.3
        return self.constant((np.abs(array) + 0.5 if positive else array).astype(self.dtype))

    def node(
        self, op: str, inputs: list[str], shape: Shape, *, outputs: int = 1, domain: str = "", **attrs: Any
    ) -> Value:
        names = [self.fresh("t") for _ in range(outputs)]
        label = {} if self.chance(0.2) else {"name": self.fresh("n")}
        self.nodes.append(helper.make_node(op, inputs, names, domain=domain, **label, **attrs))
        value = Value(names[0], shape)
        self.values.append(value)
        return value

    def ints(self, values: list[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def reshape(self, x: Value, shape: Shape) -> Value:
        return self.node("Reshape", [x.name, self.ints([-1, *shape])], shape)

    def transpose(self, x: Value, order: tuple[int, ...]) -> Value:
        return self.node("Transpose", [x.name], tuple(x.shape[axis - 1] for axis in order[1:]), perm=list(order))


def random_network(seed: int, *, most: int = 7) -> Network:
    """Return the network of a seed.

    Args:
        seed: Everything follows from it.
        most: Most steps.
    """
    for attempt in range(40):
        made = _made(random.Random(f"network {seed}.{attempt}"), most)
        if made is not None and _runs(made):
            return made
    raise AssertionError(f"seed {seed} gives no valid network")


def _runs(made: Network) -> bool:
    try:
        onnx.checker.check_model(made.proto, full_check=True)
        most = 1 if any(word == "batch 1" for word in made.odd) else 2
        feed = {name: array[:most] for name, array in made.feeds.items()}
        run(open_unoptimized(made.proto.SerializeToString()), feed)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, GraphoptError):
        return False
    return True


def _made(source: random.Random, most: int) -> Network | None:
    from random_layers import STEPS

    kind = source.choices(("float32", "float16", "float64"), (85, 9, 6))[0]
    net = Net(source, source.choice(OPSETS), np.dtype(kind))
    count = source.choice((1, 2, 3, 8, 24, 40, 40, 64))
    inputs: list[onnx.ValueInfoProto] = []
    feeds: dict[str, Any] = {}
    batch: int | str = "N" if source.random() < 0.85 else 1
    starts = [_start(net, inputs, feeds, batch, count) for _ in range(source.choice((1, 1, 1, 2)))]
    heads = []
    for start in starts:
        x = start
        for _ in range(source.randint(1, most)):
            table = STEPS.get(len(x.shape), ())
            if not table:
                break
            steps, shares = zip(*table, strict=True)
            x = source.choices(steps, shares)[0](net, x)
        heads.append(x)
    if len(heads) == 2 and heads[0].shape == heads[1].shape:
        heads = [net.node("Add", [each.name for each in heads], heads[0].shape)]
    element = _ELEMENTS[kind]
    read = {name for node in net.nodes for name in node.input}
    outputs = list(dict.fromkeys(heads))
    outputs += [each for each in net.values if each not in outputs and (each.name not in read or net.chance(0.03))]
    made = {name for node in net.nodes for name in node.output}
    if not made.issuperset(each.name for each in outputs):
        return None
    infos = [helper.make_tensor_value_info(each.name, element, [batch, *each.shape]) for each in outputs]
    _publish_weights(net, inputs, infos)
    graph = helper.make_graph(net.nodes, "network", inputs, infos, net.weights)
    imports = [helper.make_opsetid("", net.opset)]
    if net.functions:
        imports.append(helper.make_opsetid(DOMAIN, 1))
    versions = {10: 5, 11: 6, 12: 7, 13: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
    version = versions.get(net.opset, 11)
    model = helper.make_model(
        graph, opset_imports=imports, ir_version=max(8, version) if net.functions else version, functions=net.functions
    )
    odd = [f"opset {net.opset}", kind, f"batch {batch}", f"{count} samples", *net.odd]
    return Network(model, feeds, tuple(odd))


def _start(net: Net, inputs: list[onnx.ValueInfoProto], feeds: dict[str, Any], batch: int | str, count: int) -> Value:
    c, n = net.pick((1, 2, 3, 4, 8)), net.pick((1, 4, 5, 8))
    shapes: list[Shape] = [(c, n + 3, n + 3), (c, n + 2, n + 5), (n, net.pick((4, 8, 16))), (net.pick((5, 8, 16)),)]
    shapes += [(net.pick((2, 4)), 3, 4, 4), (c, net.pick((6, 9)))]
    shape = net.pick(shapes)
    name = net.fresh("x")
    if net.chance(0.15):
        return _tokens(net, inputs, feeds, batch, count)
    array = net.draw.standard_normal((count, *shape))
    kind = net.source.choices(
        ("normal", "constant", "dead channel", "relu", "huge", "mean", "offset"), (58, 5, 8, 12, 4, 10, 3)
    )[0]
    if kind == "constant":
        array[:] = 0.5
    elif kind == "dead channel":
        array[:, 0] = 0
    elif kind == "relu":
        array = np.maximum(array, 0)
    elif kind == "huge":
        array *= 1e30 if net.dtype != np.float16 else 200
    elif kind == "mean":
        array += 3
    elif kind == "offset":
        array += 1000
    if kind not in {"normal", "relu", "mean"}:
        net.odd.append(f"{kind} input")
    feeds[name] = array.astype(net.dtype)
    inputs.append(helper.make_tensor_value_info(name, _ELEMENTS[net.dtype.name], [batch, *shape]))
    return Value(name, shape)


def _tokens(net: Net, inputs: list[onnx.ValueInfoProto], feeds: dict[str, Any], batch: int | str, count: int) -> Value:
    """Return embeddings of tokens; the table may become the weight of a later layer too."""
    rows, width, length = net.pick((6, 11, 40)), net.pick((4, 8, 16)), net.pick((1, 3, 6))
    name, table = net.fresh("ids"), net.weight((rows, width), width)
    feeds[name] = net.draw.integers(0, rows, (count, length))
    inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, [batch, length]))
    found = net.node("Gather", [table, name], (length, width))
    if net.chance(0.5):
        net.odd.append("tied embedding")
        back = net.fresh("t")
        net.nodes.append(helper.make_node("Transpose", [table], [back], perm=[1, 0]))
        return net.node("MatMul", [found.name, back], (length, rows))
    return found


def _publish_weights(net: Net, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> None:
    """Let a few weights be inputs that callers may replace, or outputs."""
    for tensor in net.weights:
        if len(tensor.dims) < 2:
            continue
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        if net.chance(0.02):
            net.odd.append("overridable")
            inputs.append(info)
        elif net.chance(0.02):
            net.odd.append("weight is output")
            outputs.append(info)
