"""If, Loop and Scan, whose bodies read tensors from outside, and functions with attributes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from onnx import AttributeProto, GraphProto, TensorProto, ValueInfoProto, helper

from random_models.builder import BOOL, F32, F64, I64, Builder, Refused
from random_models.values import Value, is_tame, open_graph, run_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FUNCTIONS = "local"
"""Domain of functions."""

MOST_DEPTH = 2


def conditional(b: Builder) -> Value:
    """An If: constant, computed or given condition; branches that share a rank, or not."""
    may_nest(b)
    condition = b.constant(b.ask.chance(50), BOOL) if b.ask.chance(35) else b.pick((BOOL,), (0,))
    bodies, results = [], []
    dtype, rank = F32, -1
    for index in range(2):
        inner = Builder(b.ask, b.opset, b.feeds, b)
        result = _filled(inner, b.ask.integer(1, 3), partial(_is_float_of, rank))
        if b.ask.chance(15):
            result = inner.pick((dtype,), () if rank < 0 else (rank,))
        rank = result.rank if index == 0 and b.ask.chance(85) else rank
        bodies.append(body_of(inner, [], [local(inner, result)]))
        results.append(result)
    may_meet(b, *results)
    exact = all(value.exact for value in results)
    names = ("then_branch", "else_branch")
    return whole(b, "If", [condition], dict(zip(names, bodies, strict=True)), exact=exact)[0]


def may_meet(b: Builder, first: Value, second: Value) -> None:
    """Refuse results of two branches that differ in shape where If demands the same one: before opset 11."""
    if b.opset < 11 and not _same_sizes(first, second):
        raise Refused


def _is_float_of(rank: int, value: Value) -> bool:
    return value.dtype == F32 and rank in {-1, value.rank}


def loop(b: Builder) -> Value:
    """A Loop with a state and a scan output; count and condition constant or given, exits early at times."""
    may_nest(b)
    state = b.pick((F32,), where=lambda value: value.rank < 4)
    trips = b.constant(b.ask.integer(0, 4), I64) if b.ask.chance(70) else b.pick((I64,), (0,))
    if any(array > 6 for array in trips.arrays):
        raise Refused
    condition = None if b.ask.chance(30) else b.constant(not b.ask.chance(10), BOOL)
    inner = Builder(b.ask, b.opset, b.feeds, b)
    inner.smooth = True
    iteration, running, held = inner.fresh("i"), inner.fresh("r"), inner.fresh("s")
    inner.add([Value(held, state.arrays, exact=False)])
    last = _filled(inner, b.ask.integer(1, 3), lambda value: value.is_float)
    bounded = inner.node("Tanh", [last])
    shaped = bounded if _same_sizes(bounded, state) else inner.node("Sin", [inner.known[len(b.known)]])
    if b.ask.chance(30):
        goes_on = inner.fresh("g")
        limit = inner.constant(b.ask.integer(0, 3), I64)
        inner.nodes.append(helper.make_node("Less", [iteration, limit.name], [goes_on]))
    else:
        goes_on = inner.fresh("g")
        inner.nodes.append(helper.make_node("Identity", [running], [goes_on]))
    inputs = [
        helper.make_tensor_value_info(iteration, TensorProto.INT64, []),
        helper.make_tensor_value_info(running, TensorProto.BOOL, []),
        _typed(Value(held, state.arrays), ranked=b.ask.chance(80)),
    ]
    outputs = [goes_on, local(inner, shaped).name]
    scanned = b.ask.chance(60)
    if scanned:
        outputs.append(local(inner, bounded, taken=outputs).name)
    body = helper.make_graph(
        inner.nodes,
        "body",
        inputs,
        [ValueInfoProto(name=name) for name in outputs],
        inner.weights,
    )
    body.output[0].CopyFrom(helper.make_tensor_value_info(goes_on, TensorProto.BOOL, []))
    for value in list(body.output)[1:]:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    found = whole(b, "Loop", [trips, condition, state], {"body": body}, 2 if scanned else 1, exact=False)
    if scanned and any(array.shape[0] == 0 for array in found[1].arrays):
        b.known.remove(found[1])  # of no iteration at all only the rank is certain
        found.pop()
    return b.ask.pick(found)


def scan(b: Builder) -> Value:
    """A Scan over one input, with one state."""
    may_nest(b)
    over = b.pick((F32,), (2, 3), lambda value: all(array.shape[0] > 0 for array in value.arrays))
    slices = tuple(array[0] for array in over.arrays)
    state = b.pick((F32,), where=lambda value: value.rank <= 2)
    inner = Builder(b.ask, b.opset, b.feeds, b)
    inner.smooth = True
    held, row = inner.fresh("s"), inner.fresh("x")
    inner.add([Value(held, state.arrays, exact=False), Value(row, slices, exact=False)])
    last = inner.node("Tanh", [_filled(inner, b.ask.integer(1, 3), lambda value: value.dtype == F32)])
    following = last if _same_sizes(last, state) else inner.node("Cos", [inner.known[len(b.known)]])
    first = local(inner, following)
    second = local(inner, last, taken=[first.name])
    inputs = [_typed(Value(held, state.arrays)), _typed(Value(row, slices))]
    body = helper.make_graph(inner.nodes, "body", inputs, [_typed(first), _typed(second)], inner.weights)
    more: dict[str, Any] = {"scan_input_directions": [1]} if b.ask.chance(25) else {}
    return b.ask.pick(whole(b, "Scan", [state, over], {"body": body, "num_scan_inputs": 1, **more}, 2, exact=False))


def function(b: Builder) -> Value:
    """A function of one input with an attribute, called twice with different values of it."""
    if b.depth or len(b.functions) > 1 or b.alone:
        raise Refused
    x = b.any_float()
    inner = Builder(b.ask, b.opset, b.feeds, b, alone=True)
    formal = inner.fresh("p")
    inner.add([Value(formal, x.arrays, exact=x.exact)])
    inner.smooth = True
    last = _filled(inner, b.ask.integer(1, 3), lambda value: value.dtype == x.dtype)
    result = inner.fresh("q")
    node = helper.make_node(b.ask.pick(("LeakyRelu", "Elu")), [last.name], [result])
    node.attribute.append(AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="slope"))
    if x.dtype != F32:
        raise Refused
    name = inner.fresh("Made")
    made = helper.make_function(
        FUNCTIONS, name, [formal], [result], [*inner.nodes, node], [helper.make_opsetid("", b.opset)], ["slope"]
    )
    outputs = []
    for slope in (0.5, b.ask.pick((0.25, 0.5))):
        call = helper.make_node(name, ["i0"], ["o0"], domain=FUNCTIONS, slope=slope)
        given = _typed(Value("i0", x.arrays))
        session = open_graph([call], [given], ["o0"], b.opset, [made])
        found = None if session is None else run_session(session, [x], 1)
        if found is None or not is_tame("Tanh", [x], {}, found):
            raise Refused
        call.input[0], call.output[0] = x.name, b.fresh()
        outputs.append((call, Value(call.output[0], found[0], exact=False)))
    b.functions.append(made)
    b.nodes.extend(call for call, _ in outputs)
    return b.add([value for _, value in outputs])[b.ask.integer(0, 1)]


def sequence(b: Builder) -> Value:
    """A sequence made, changed and read again."""
    if b.opset < 11:
        raise Refused
    x = b.pick((F32, F64), (1, 2, 3), lambda value: all(array.shape[0] > 1 for array in value.arrays))
    y = b.pick((x.dtype,))
    name, other = b.fresh("q"), b.fresh("q")
    position = b.constant(b.ask.pick((0, -1)), I64)
    nodes = [helper.make_node("SequenceConstruct", [x.name, y.name], [name])]
    held = [x, y]
    if b.ask.chance(50):
        nodes.append(helper.make_node("SequenceInsert", [name, x.name, position.name], [other]))
        held = [x, x, y]  # at 0 before the first, at -1 before the last
        name = other
    found = held[int(position.arrays[0])]
    result = b.fresh()
    nodes.append(helper.make_node("SequenceAt", [name, position.name], [result]))
    b.nodes.extend(nodes)
    return b.add([Value(result, found.arrays, exact=found.exact)])[0]


SCOPES: tuple[tuple[Callable[[Builder], Value], int], ...] = (
    (conditional, 4), (loop, 4), (scan, 2), (function, 3), (sequence, 1),
)  # fmt: skip
"""What there is, with weights."""


def may_nest(b: Builder) -> None:
    """Raise Refused where no further graph may be nested."""
    if b.depth >= MOST_DEPTH or b.alone:
        raise Refused


def _filled(inner: Builder, actions: int, wanted: Callable[[Value], bool]) -> Value:
    """Fill a body and return its last value of a kind."""
    from random_models.model import act

    before = len(inner.known)
    for _ in range(actions):
        act(inner)
    found = [value for value in inner.known[before:] if wanted(value)]
    if not found:
        raise Refused
    return found[-1]


def local(inner: Builder, value: Value, taken: Sequence[str] = ()) -> Value:
    """Return a value that a node of this very body gives, as outputs of bodies have to be, and no output twice."""
    if value.name not in taken and any(value.name in node.output for node in inner.nodes):
        return value
    name = inner.fresh()
    inner.nodes.append(helper.make_node("Identity", [value.name], [name]))
    return Value(name, value.arrays, exact=value.exact)


def _same_sizes(first: Value, second: Value) -> bool:
    return first.dtype == second.dtype and all(
        a.shape == b.shape for a, b in zip(first.arrays, second.arrays, strict=True)
    )


def _typed(value: Value, *, ranked: bool = True) -> ValueInfoProto:
    shape = [None] * value.rank if ranked else None
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)


def body_of(inner: Builder, inputs: Sequence[ValueInfoProto], outputs: Sequence[Value]) -> GraphProto:
    """Return the graph that a builder of a body has made."""
    infos = [ValueInfoProto(name=value.name) for value in outputs]
    for info, value in zip(infos, outputs, strict=True):
        info.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_graph(inner.nodes, inner.fresh("body"), list(inputs), infos, inner.weights)


def whole(
    b: Builder, op: str, inputs: Sequence[Value | None], attributes: dict[str, Any], outputs: int = 1, *, exact: bool
) -> list[Value]:
    """Add a node with bodies, once ONNX Runtime has run it with all that the bodies read."""
    given = [value for value in inputs if value is not None]
    captured = [value for value in b.known if value not in given]
    renamed = [Value(f"i{n}", value.arrays) for n, value in enumerate([*given, *captured])]
    # the bodies name outer tensors, so these stand beside i0, i1, ... under their own names
    passes = [helper.make_node("Identity", [f"i{n}"], [value.name]) for n, value in enumerate([*given, *captured])]
    node = helper.make_node(op, [value.name if value else "" for value in inputs], [], **attributes)
    node.output.extend(f"o{n}" for n in range(outputs))
    session = open_graph([*passes, node], list(map(_typed, renamed)), list(node.output), b.opset, b.functions)
    found = None if session is None else run_session(session, renamed, outputs)
    if found is None or not is_tame("Tanh", given, {}, found):
        raise Refused
    del node.output[:]
    values = [Value(b.fresh(), arrays, exact=exact) for arrays in found]
    node.output.extend(value.name for value in values)
    b.nodes.append(node)
    return b.add(values)
