"""Valid models to start from, and seeded ways to damage them: bytes, protobuf fields and graph structure."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message

INTEGERS = (
    -1,
    0,
    1,
    2,
    3,
    7,
    16,
    127,
    128,
    255,
    256,
    65535,
    1 << 31,
    (1 << 31) - 1,
    -(1 << 31),
    1 << 40,
    (1 << 63) - 1,
    -(1 << 63),
)
FLOATS = (0.0, -1.0, 1e-45, 3.4e38, float("nan"), float("inf"), -float("inf"))
OPERATORS = (
    *(
        "Add",
        "Mul",
        "Relu",
        "Identity",
        "Constant",
        "Shape",
        "Reshape",
        "Transpose",
        "Concat",
        "Slice",
        "Gather",
        "Cast",
    ),
    *(
        "Conv",
        "BatchNormalization",
        "Gemm",
        "MatMul",
        "If",
        "Loop",
        "Scan",
        "LSTM",
        "Pad",
        "Resize",
        "Split",
        "Squeeze",
    ),
    *("ConstantOfShape", "Range", "Expand", "Tile", "Where", "NonZero", "TopK", "QuantizeLinear", "DequantizeLinear"),
    *(
        "SequenceConstruct",
        "SequenceAt",
        "Optional",
        "StringNormalizer",
        "RandomNormal",
        "Dropout",
        "Einsum",
        "Unknown",
        "",
    ),
)

TEXTS = {
    "linear": """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 3] x) => (float[n, 2] y)
        <float[3, 4] w = {1,2,3,4,5,6,7,8,9,1,2,3}, float[4] b = {1,2,3,4}, float[4, 2] v = {1,2,3,4,5,6,7,8}>
        { h = Gemm(x, w, b) r = Relu(h) y = MatMul(r, v) }""",
    "shapes": """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 2, 3] x) => (float[n, m] y) <int64[1] zero = {0}, int64[1] minus = {-1}>
        { s = Shape(x) b = Gather<axis = 0>(s, zero) t = Concat<axis = 0>(b, minus) y = Reshape(x, t) }""",
    "constants": """<ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x) => (float[4] y)
        { f0 = Constant<value_int = 0>() f4 = Constant<value_int = 4>() f1 = Constant<value_int = 1>()
          a = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() i = Constant<value_ints = [4]>() z = ConstantOfShape(i)
          r = Range(f0, f4, f1) c = Cast<to = 1>(r) d = Add(a, z) e = Mul(c, d) y = Add(x, e) }""",
    "if": """<ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> { n = Neg(x)
        y = If (c) <then_branch = t () => (float[2] ty) { u = Add(n, w) ty = Identity(u) },
                    else_branch = f () => (float[2] fy) <float[2] k = {3, 4}> { fy = Mul(x, k) }> }""",
    "loop": """<ir_version: 8, opset_import: ["" : 17]>
        g (int64 n, bool c, float[2] x) => (float[2] y, float[k, 2] all) <float[2] w = {1, 2}>
        { y, all = Loop (n, c, x) <body = b (int64 i, bool ci, float[2] v) => (bool co, float[2] vo, float[2] so)
          { co = Identity(ci) vo = Add(v, w) so = Identity(vo) }> }""",
    "function": """<ir_version: 9, opset_import: ["" : 17, "f" : 1]>
        g (float[2] x) => (float[2] y) { h = f.twice(x) y = f.twice(h) }
        <domain: "f", opset_import: ["" : 17]>
        twice (a) => (b) { c = Constant<value = float {2.0}>() b = Mul(a, c) }""",
    "quantized": """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 4] x) => (float[1, 2] y)
        <int8[4, 2] w = {1,2,3,4,5,6,7,8}, float s = {0.1}, uint8 z = {128}, int8 o = {0}>
        { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, s, o) y = MatMul(d, v) }""",
    "sequence": """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <int64 i = {0}> { q = SequenceConstruct(x, x) y = SequenceAt(q, i) }""",
    "strings": """<ir_version: 8, opset_import: ["" : 17]>
        g (string[1] x) => (string[1] y)
        { y = StringNormalizer<case_change_action = "LOWER", stopwords = ["a"]>(x) }""",
    "unused": """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <float[2] dead = {1, 2}> { a = Dropout(x) b = Exp(a) y, m = Dropout(a) }""",
}  # fmt: skip


@cache
def seeds() -> dict[str, bytes]:
    """Return small valid models by name, each with other features."""
    found = {name: onnx.parser.parse_model(text) for name, text in TEXTS.items()}
    found["convolution"] = _convolution()
    found["carried"] = _carried()
    return {name: model.SerializeToString(deterministic=True) for name, model in found.items()}


def _convolution() -> ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "gain": (4,), "shift": (4,), "mean": (4,), "var": (4,), "v": (4, 1, 3, 3), "g": (4, 2)}
    weights = [numpy_helper.from_array(rng.random(shape, np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "var"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["d"], name="depthwise", group=4, auto_pad="SAME_UPPER"),
        helper.make_node("Add", ["d", "r"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["y"], name="classify"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["n", 3, 5, 5])], [value("y", 1, ["n", 2])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _carried() -> ModelProto:
    """Return a model with what readers tend to forget: metadata, sparse and packed weights, an overridable one."""
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("sparse", 1, [2], [1.0, 2.0]),
        helper.make_tensor("i", TensorProto.INT64, [2], [0, 3]),
        [2, 2],
    )
    packed = helper.make_tensor("packed", TensorProto.INT4, [2, 2], [1, -2, 3, -4])
    free = numpy_helper.from_array(np.ones((2, 2), np.float32), "free")
    scale = numpy_helper.from_array(np.float32(0.5), "scale")
    nodes = [
        helper.make_node("MatMul", ["x", "sparse"], ["a"]),
        helper.make_node("DequantizeLinear", ["packed", "scale"], ["d"]),
        helper.make_node("MatMul", ["a", "d"], ["b"]),
        helper.make_node("MatMul", ["b", "free"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, [1, 2]), value("free", 1, [2, 2])], [value("y", 1, [1, 2])], [packed, free, scale]
    )
    graph.sparse_initializer.append(sparse)
    graph.doc_string = "documented"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"author": "nobody"})
    return model


def mutate(seed: int, index: int) -> bytes:
    """Return input number ``index`` of a run: the same bytes whenever seed and index are the same."""
    draw = random.Random(f"{seed}/{index}")
    name = draw.choice(sorted(seeds()))
    start = seeds()[name]
    if draw.random() < 0.3:
        return _damaged(start, draw)
    model = ModelProto.FromString(start)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        draw.choice((_change_field, _change_field, _change_list, _change_graph, _change_graph))(model, draw)
    return bytes(model.SerializeToString())


def _damaged(data: bytes, draw: random.Random) -> bytes:
    """Return the bytes with a few of them changed, taken out, doubled or cut off."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if not found:
            break
        place = draw.randrange(len(found))
        kind = draw.randrange(6)
        if kind == 0:
            found[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[place] = draw.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del found[place : place + draw.randrange(1, 9)]
        elif kind == 3:
            found[place:place] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 4:
            length = draw.randrange(1, 65)
            found[place:place] = found[place : place + length]
        else:
            del found[place:]
    return bytes(found)


def _messages(message: Message) -> Iterator[Message]:
    """Yield a message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for each in value if _repeated(field) else [value]:
                yield from _messages(each)


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _names(model: ModelProto) -> list[str]:
    found = {name for node in model.graph.node for name in (*node.input, *node.output, node.name)}
    return sorted(found | {tensor.name for tensor in model.graph.initializer} | {"", "x", "\x00", "ä" * 5, "a/b c"})


def _value(field: FieldDescriptor, present: Any, model: ModelProto, draw: random.Random) -> Any:
    """Return another value for a scalar field."""
    if field.type in {field.TYPE_STRING, field.TYPE_BYTES}:
        text = draw.choice(
            (draw.choice(_names(model)), draw.choice(OPERATORS), present[: len(present) // 2] if present else "")
        )
        text = text.decode("latin-1") if isinstance(text, bytes) else text
        if field.type == field.TYPE_STRING:
            return text
        return draw.choice((text.encode(), draw.randbytes(draw.randrange(20)), b""))
    if field.type in {field.TYPE_FLOAT, field.TYPE_DOUBLE}:
        return draw.choice(FLOATS)
    if field.type == field.TYPE_ENUM:
        return draw.choice([value.number for value in field.enum_type.values])
    number = draw.choice((*INTEGERS, present + 1 if isinstance(present, int) else 1))
    low, high = {
        field.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
        field.TYPE_UINT64: (0, (1 << 64) - 1),
    }.get(field.type, (-(1 << 63), (1 << 63) - 1))
    return max(low, min(high, number))


def _change_field(model: ModelProto, draw: random.Random) -> None:
    """Give one scalar field of one message another value, or clear it."""
    message = draw.choice(list(_messages(model)))
    fields = [field for field in message.DESCRIPTOR.fields if field.type != field.TYPE_MESSAGE and not _repeated(field)]
    if not fields:
        return
    field = draw.choice(fields)
    if draw.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(field, getattr(message, field.name), model, draw))


def _change_list(model: ModelProto, draw: random.Random) -> None:
    """Take out, double, swap or change entries of one repeated field."""
    choices = [(each, field) for each in _messages(model) for field in each.DESCRIPTOR.fields if _repeated(field)]
    message, field = draw.choice([(m, f) for m, f in choices if len(getattr(m, f.name))] or choices)
    entries = getattr(message, field.name)
    count = len(entries)
    kind = draw.randrange(4)
    if kind == 0 and count:
        del entries[draw.randrange(count)]
    elif field.type == field.TYPE_MESSAGE:
        if count:
            entries.add().CopyFrom(entries[draw.randrange(count)])
            if kind == 1:
                entries.sort(key=lambda _: draw.random())
        else:
            entries.add()
    elif kind == 1 or not count:
        entries.append(
            _value(field, entries[0] if count else 0 if field.type != field.TYPE_STRING else "", model, draw)
        )
    else:
        place = draw.randrange(count)
        entries[place] = _value(field, entries[place], model, draw)


def _change_graph(model: ModelProto, draw: random.Random) -> None:
    """Rewire, retype or replace something that has a meaning."""
    nodes = list(model.graph.node)
    names = _names(model)
    kind = draw.randrange(8)
    if kind == 0 and nodes:
        draw.choice(nodes).op_type = draw.choice(OPERATORS)
    elif kind == 1 and nodes:
        node = draw.choice(nodes)
        node.input[:] = [draw.choice(names) if draw.random() < 0.5 else name for name in node.input]
    elif kind == 2 and nodes:
        node = draw.choice(nodes)
        node.output[:] = [draw.choice(names) if draw.random() < 0.5 else name for name in node.output]
    elif kind == 3 and model.graph.initializer:
        tensor = draw.choice(model.graph.initializer)
        tensor.dims[:] = [draw.choice(INTEGERS) for _ in range(draw.randrange(4))]
    elif kind == 4 and model.graph.initializer:
        tensor = draw.choice(model.graph.initializer)
        tensor.data_type = draw.randrange(27)
        if draw.random() < 0.5:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=draw.choice(("../x", "/etc/passwd", "x", "", "a\x00b", ".")))
    elif kind == 5 and model.opset_import:
        draw.choice(model.opset_import).version = draw.choice((-1, 0, 1, 6, 8, 9, 11, 12, 13, 18, 21, 24, 99, 1 << 40))
    elif kind == 6 and nodes:
        other = ModelProto.FromString(seeds()[draw.choice(sorted(seeds()))])
        model.graph.node.add().CopyFrom(draw.choice(other.graph.node))
    elif kind == 7 and nodes:
        attribute = draw.choice(nodes).attribute.add()
        attribute.name = draw.choice(("axis", "perm", "to", "value", "body", "then_branch", "pads", "strides", "group"))
        attribute.type = draw.choice(
            (AttributeProto.INT, AttributeProto.INTS, AttributeProto.GRAPH, AttributeProto.TENSOR)
        )
        attribute.i = draw.choice(INTEGERS)
        attribute.ints.extend(draw.choice(INTEGERS) for _ in range(draw.randrange(4)))
