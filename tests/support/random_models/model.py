"""Whole models: inputs of all kinds, a number of actions, junk as exporters leave it, outputs wherever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from hypothesis import assume
from hypothesis import strategies as st
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from graphopt.errors import GraphoptError
from graphopt.runtime import run
from graphopt.verify.reference import open_unoptimized
from random_models.builder import BOOL, F16, F32, F64, I32, I64, U8, Builder, Refused
from random_models.choices import Decider, Drawn, Seeded
from random_models.idioms import IDIOMS
from random_models.movement import MOVEMENT
from random_models.neighbourhoods import NEIGHBOURHOODS
from random_models.operators import OPERATORS
from random_models.scopes import FUNCTIONS, SCOPES
from random_models.values import Value

if TYPE_CHECKING:
    from random_models.choices import Choices

OPSETS = range(9, 27)
SYMBOLS = ("batch", "length", "n")
SIZES = ((2, 1, 3), (3, 5, 4), (2, 6, 1))
"""Sizes of each symbol, one per feed."""

FEEDS = 3
_IR = {9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
_KINDS = ((OPERATORS, 40), (MOVEMENT, 28), (NEIGHBOURHOODS, 26), (IDIOMS, 14), (SCOPES, 7))


@dataclass(frozen=True)
class Made:
    """A generated model with feeds on which it runs, well-conditioned."""

    proto: onnx.ModelProto
    feeds: list[dict[str, Any]]


def random_model(seed: int, *, most: int = 14) -> Made:
    """Return the model of a seed.

    Args:
        seed: Everything follows from it.
        most: Most actions; each adds one node or a neighbourhood of them.
    """
    for attempt in range(20):
        made = _made(Seeded(f"{seed}.{attempt}"), most)
        if is_valid(made):
            return made
    raise AssertionError(f"seed {seed} gives no valid model")


@st.composite
def random_models(draw: Any, most: int = 8) -> Made:
    """Draw a model; hypothesis shrinks its decisions."""
    made = _made(Drawn(draw), most)
    assume(is_valid(made))
    return made


def is_valid(made: Made) -> bool:
    """Tell whether the checker accepts a model and ONNX Runtime runs it as a whole."""
    try:
        onnx.checker.check_model(made.proto, full_check=True)
        running = open_unoptimized(made.proto.SerializeToString())
        for feed in made.feeds:
            run(running, feed)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, GraphoptError):
        return False
    return True


def act(b: Builder) -> None:
    """Add something."""
    kinds = [(table, weight) for table, weight in _KINDS if not (b.smooth and table is SCOPES)]
    for _ in range(12):
        table = _weighted(b.ask, kinds)
        try:
            _weighted(b.ask, table)(b)
        except Refused:
            continue
        return


def _weighted(ask: Decider, table: Any) -> Any:
    at = ask.integer(0, sum(weight for _, weight in table) - 1)
    for item, weight in table:
        at -= weight
        if at < 0:
            return item
    raise AssertionError


def _made(source: Choices, most: int) -> Made:
    ask = Decider(source)
    b = Builder(ask, ask.pick(OPSETS[8:] if ask.chance(60) else OPSETS), FEEDS)
    inputs = _inputs(b)
    for _ in range(ask.integer(1, most)):
        act(b)
        if ask.chance(8):
            _junk(b)
    outputs, infos = _outputs(b, inputs)
    given, overridable = _public(b, inputs)
    graph = helper.make_graph(b.nodes, "random", given, infos, b.weights)
    imports = [helper.make_opsetid("", b.opset)]
    if b.functions:
        imports.append(helper.make_opsetid(FUNCTIONS, 1))
    version = _IR.get(b.opset, 11)  # newer opsets say that they need newer versions; nothing in these models does
    model = helper.make_model(
        graph, opset_imports=imports, ir_version=max(version, 8) if b.functions else version, functions=b.functions
    )
    _annotate(b, model, outputs)
    feeds = [{value.name: value.arrays[k] for value in inputs} for k in range(FEEDS)]
    for name in overridable:
        weight = next(tensor for tensor in b.weights if tensor.name == name)
        feeds[-1][name] = _other(numpy_helper.to_array(weight))
    return Made(model, feeds)


def _other(array: np.ndarray) -> np.ndarray:
    """Return another value for an overridable initializer."""
    return array if array.dtype.kind != "f" else (array * array.dtype.type(0.5) + array.dtype.type(0.25))


# --------------------------------------------------------------------------------------------------------------- inputs


def _inputs(b: Builder) -> list[Value]:
    shapes: list[tuple[Any, ...]] = [
        ("batch", 4), ("batch", "length", 4), ("batch", 2, "n", 5), ("batch", 3, 6, 6), ("length",), (2, 3), (4,), (),
        (1, "length", 6), ("batch", "length"), ("n", 1), (2, 4, 1, 3), ("batch", 6, "length"), ("batch", "length", 8),
        ("batch", 5, 5, 2),
    ]  # fmt: skip
    found = []
    for index in range(b.ask.integer(1, 4)):
        dtype: np.dtype[Any] = F32 if index == 0 else b.ask.pick((F32, F32, F32, F64, F16, I64, I32, BOOL, U8))
        shape = b.ask.pick(shapes) if dtype != BOOL or b.ask.chance(40) else ()
        if dtype == I64 and b.ask.chance(50):
            shape = ()
        generator = b.ask.generator()
        arrays = tuple(_array(generator, dtype, [_size(d, k) for d in shape]) for k in range(FEEDS))
        name = b.fresh(b.ask.pick(("x", "input.", "in/")))
        b.declared[name] = shape
        found += b.add([Value(name, arrays)])
    return found


def _size(dim: int | str, feed: int) -> int:
    return dim if isinstance(dim, int) else SIZES[feed][SYMBOLS.index(dim)]


def _array(generator: np.random.Generator, dtype: np.dtype[Any], shape: list[int]) -> np.ndarray:
    if dtype == BOOL:
        return np.asarray(generator.random(shape) < 0.5)
    if dtype.kind in "iu":
        return np.asarray(generator.integers(0, 4, shape)).astype(dtype)
    return np.asarray(generator.uniform(-1.5, 1.5, shape)).astype(dtype)


def _public(b: Builder, inputs: list[Value]) -> tuple[list[ValueInfoProto], list[str]]:
    """Return the inputs as declared, with unread ones, and initializers that may be overridden among them."""
    given = []
    for value in inputs:
        shape: list[int | str | None] = list(b.declared[value.name])
        if b.ask.chance(10):
            shape = [None if isinstance(dim, str) else dim for dim in shape]
        given.append(helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), shape))
    overridable = []
    if b.ask.chance(8) and b.weights:
        weight = b.ask.pick(b.weights)
        place = b.ask.integer(0, len(given))
        given.insert(place, helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
        if weight.data_type in {TensorProto.FLOAT, TensorProto.DOUBLE} and _is_read_smoothly(b, weight.name):
            overridable.append(weight.name)
    return given, overridable


def _is_read_smoothly(b: Builder, name: str) -> bool:
    """Tell whether another value of a weight leaves the model well-conditioned: it is only added."""
    readers = [node for node in b.nodes if name in node.input]
    return all(node.op_type == "Add" for node in readers) and not any(
        name.encode() in node.SerializeToString() for node in b.nodes if node.op_type in {"If", "Loop", "Scan"}
    )


# ------------------------------------------------------------------------------------------------------- outputs, junk


def _outputs(b: Builder, inputs: list[Value]) -> tuple[list[Value], list[ValueInfoProto]]:
    read = {name for node in b.nodes for name in node.input}
    made = {name for node in b.nodes for name in node.output}
    values = [value for value in b.known if value.name in made and not value.constant]
    if not values:
        x = inputs[0]
        b.nodes.append(helper.make_node("Neg" if x.is_float else "Identity", [x.name], ["only"]))
        values = b.add([Value("only", tuple(-array if x.is_float else array for array in x.arrays))])
    leaves = [value for value in values if value.name not in read]
    chosen = [value for value in leaves[-5:] if b.ask.chance(85)]
    chosen += [value for value in values if value not in chosen and b.ask.chance(4)]
    chosen = chosen or [values[-1]]
    return chosen, [_declared(b, value) for value in chosen]


def _declared(b: Builder, value: Value) -> ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(value.dtype)
    kind = b.ask.integer(0, 9)
    if kind == 0:
        return helper.make_tensor_value_info(value.name, element, [None] * value.rank)
    shape: list[int | str | None] = []
    for axis in range(value.rank):
        sizes = tuple(array.shape[axis] for array in value.arrays)
        symbols = [name for index, name in enumerate(SYMBOLS) if sizes == tuple(each[index] for each in SIZES)]
        fixed = len(set(sizes)) == 1 and kind > 3
        shape.append(sizes[0] if fixed else symbols[0] if symbols and kind > 1 else b.ask.pick((None, f"d{axis}")))
    return helper.make_tensor_value_info(value.name, element, shape)


def _junk(b: Builder) -> None:
    """Add what exporters leave behind: identities, dead nodes, equal weights, casts to the own type."""
    try:
        kind = b.ask.integer(0, 4)
        x = b.any_float()
        if kind == 0:
            b.node("Identity", [x])
        elif kind == 1:
            b.node("Exp", [b.node("Neg", [x])])
        elif kind == 2:
            b.cast(x, x.dtype)
        elif kind == 3:
            twin = b.constant(np.arange(4), x.dtype)
            b.constant(twin.arrays[0])
        else:
            b.node("Dropout", [x])
    except Refused:
        return


def _annotate(b: Builder, model: onnx.ModelProto, outputs: list[Value]) -> None:
    """Add types of some values, texts, and properties."""
    public = {value.name for value in (*model.graph.input, *model.graph.output)}
    made = {name for node in b.nodes for name in node.output}
    if b.ask.chance(40):
        for value in b.known:
            if value.name in made - public and b.ask.chance(50):
                element = helper.np_dtype_to_tensor_dtype(value.dtype)
                model.graph.value_info.append(helper.make_tensor_value_info(value.name, element, [None] * value.rank))
    if b.ask.chance(10):
        model.doc_string = "made"
        model.graph.node[0].doc_string = f"of {len(outputs)} outputs"
        model.metadata_props.add(key="k", value="v")
