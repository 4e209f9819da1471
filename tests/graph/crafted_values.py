"""Models of one attribute, element type or tensor type each, and the small model that all crafted ones start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, TypeProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

DTYPES = [int(v) for k, v in TensorProto.DataType.items() if k not in {"UNDEFINED", "STRING"}]


def base() -> ModelProto:
    """x -> Relu -> h -> Add(w) -> y with everything named."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    h = helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 4])
    w = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="relu"),
        helper.make_node("Add", ["h", "w"], ["y"], name="add"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [w], value_info=[h])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="crafted")


def branch(name: str, op: str, tensors: list[str]) -> GraphProto:
    out = f"{name}_out"
    return helper.make_graph(
        [helper.make_node(op, tensors, [out], name=f"{name}_{op}")],
        name,
        [],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["N", 4])],
    )


# ------------------------------------------------------------------------------------------------------- attributes


def attribute_models() -> Iterator[tuple[str, ModelProto]]:
    tensor = numpy_helper.from_array(np.arange(3, dtype=np.int64), "t")
    named = helper.make_tensor("named", TensorProto.FLOAT, [2], [1.0, 2.0])
    named.doc_string = "typed data"
    sparse = helper.make_sparse_tensor(named, numpy_helper.from_array(np.array([0, 2], np.int64)), [4])
    kind = TypeProto()
    kind.tensor_type.elem_type = TensorProto.FLOAT
    graph = branch("attr", "Relu", ["h"])
    values: dict[str, AttributeProto] = {
        "int": helper.make_attribute("a", -(2**62)),
        "float": helper.make_attribute("a", 0.1),
        "string": helper.make_attribute("a", "grüße"),
        "ints": helper.make_attribute("a", [1, 2, 3]),
        "floats": helper.make_attribute("a", [1.0, 2.5]),
        "strings": helper.make_attribute("a", ["x", "y"]),
        "tensor": helper.make_attribute("a", tensor),
        "tensor_typed": helper.make_attribute("a", named),
        "tensors": helper.make_attribute("a", [tensor, named]),
        "graph": helper.make_attribute("a", graph),
        "graphs": helper.make_attribute("a", [graph, graph]),
        "sparse": helper.make_attribute("a", sparse),
        "sparses": helper.make_attribute("a", [sparse, sparse]),
        "type": helper.make_attribute("a", kind),
        "types": helper.make_attribute("a", [kind, kind]),
        "not_utf8": AttributeProto(name="a", type=AttributeProto.STRING, s=b"\xff\xfe"),
        "not_utf8_strings": AttributeProto(name="a", type=AttributeProto.STRINGS, strings=[b"ok", b"\xff"]),
        "empty_ints": AttributeProto(name="a", type=AttributeProto.INTS),
        "empty_floats": AttributeProto(name="a", type=AttributeProto.FLOATS),
        "empty_strings": AttributeProto(name="a", type=AttributeProto.STRINGS),
        "empty_string": AttributeProto(name="a", type=AttributeProto.STRING, s=b""),
        "int_without_value": AttributeProto(name="a", type=AttributeProto.INT),
        "without_kind": AttributeProto(name="a", ints=[1, 2]),
        "two_values": AttributeProto(name="a", type=AttributeProto.INT, i=3, f=1.5),
        "nan": AttributeProto(name="a", type=AttributeProto.FLOAT, f=float("nan")),
    }
    for name, attribute in values.items():
        model = base()
        node = helper.make_node("Op", ["h"], ["o"], name="op", domain="custom")
        node.attribute.append(attribute)
        node.attribute.append(helper.make_attribute("zz", 1))
        model.graph.node.append(node)
        model.opset_import.append(helper.make_opsetid("custom", 1))
        yield f"attribute_{name}", model
    for key in (
        "value_float",
        "value_floats",
        "value_int",
        "value_ints",
        "value_string",
        "value_strings",
        "sparse_value",
    ):
        model = base()
        single: object = {"float": 1.5, "int": 2, "string": "s", "sparse": sparse}[
            key.replace("value", "").strip("_").rstrip("s")
        ]
        value = [single, single] if key.endswith("s") else single
        model.graph.node.append(helper.make_node("Constant", [], ["k"], **{key: value}))
        yield f"constant_{key}", model


# ---------------------------------------------------------------------------------------------- element types and types


def random_array(dtype: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return an array of random bits of an ONNX element type, unpacked."""
    rng = np.random.default_rng(seed)
    target = np.dtype(helper.tensor_dtype_to_np_dtype(dtype))
    if dtype == TensorProto.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    name = TensorProto.DataType.Name(dtype)
    if name in {"INT4", "INT2"}:
        limit = 8 if name == "INT4" else 2
        return rng.integers(-limit, limit, shape).astype(target)
    widths = {"UINT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
    if name in widths:
        return rng.integers(0, 1 << widths[name], shape).astype(np.uint8).view(target)
    raw = rng.integers(0, 256, (*shape, target.itemsize)).astype(np.uint8)
    return np.asarray(raw.view(target).reshape(shape))


def typed_tensor(dtype: int, array: np.ndarray, name: str) -> TensorProto:
    """Return a tensor that keeps its values in the typed field."""
    return helper.make_tensor(name, dtype, array.shape, array.reshape(-1))


def dtype_models() -> Iterator[tuple[str, ModelProto]]:
    for dtype in DTYPES:
        label = TensorProto.DataType.Name(dtype).lower()
        for shape in ((), (1,), (0,), (3,), (2, 5), (9,)):
            model = base()
            array = random_array(dtype, shape, seed=len(shape))
            model.graph.initializer.append(numpy_helper.from_array(array, "raw"))
            quiet = np.zeros(shape, array.dtype)
            model.graph.initializer.append(typed_tensor(dtype, quiet, "typed"))
            model.graph.input.append(helper.make_tensor_value_info("i", dtype, shape))
            model.graph.node.append(helper.make_node("Op", ["raw", "typed", "i"], ["o"], domain="custom"))
            yield f"dtype_{label}_{'x'.join(map(str, shape)) or 'scalar'}", model
    model = base()
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"\xff\xfe"]))
    model.graph.initializer.append(helper.make_tensor("s2", TensorProto.STRING, [], ["ä".encode()]))
    yield "dtype_string", model


def type_models() -> Iterator[tuple[str, ModelProto]]:
    def tensor(dtype: int = 1, shape: tuple[int, ...] | None = (2, 3)) -> TypeProto:
        return helper.make_tensor_type_proto(dtype, shape)

    keyed = TypeProto()
    keyed.map_type.key_type = TensorProto.INT64
    keyed.map_type.value_type.CopyFrom(tensor())
    opaque = TypeProto()
    opaque.opaque_type.domain = "d"
    opaque.opaque_type.name = "n"
    denoted = tensor()
    denoted.denotation = "TENSOR"
    denoted.tensor_type.shape.dim[0].denotation = "BATCH"
    empty = TypeProto()
    kinds = {
        "sequence": helper.make_sequence_type_proto(tensor()),
        "sequence_of_sequence": helper.make_sequence_type_proto(helper.make_sequence_type_proto(tensor())),
        "sequence_of_map": helper.make_sequence_type_proto(keyed),
        "optional": helper.make_optional_type_proto(tensor()),
        "optional_of_sequence": helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor())),
        "map": keyed,
        "opaque": opaque,
        "sparse": helper.make_sparse_tensor_type_proto(1, [2, 3]),
        "denotation": denoted,
        "no_shape": tensor(shape=None),
        "scalar": tensor(shape=()),
        "empty": empty,
    }
    for name, kind in kinds.items():
        model = base()
        model.graph.input.append(helper.make_value_info("i", kind))
        model.graph.node.append(helper.make_node("Identity", ["i"], ["v"]))
        model.graph.node.append(helper.make_node("Identity", ["v"], ["o"]))
        model.graph.value_info.append(helper.make_value_info("v", kind))
        model.graph.output.append(helper.make_value_info("o", kind))
        yield f"type_{name}", model
    model = base()
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims.add()
    dims.add().dim_param = ""
    dims.add().dim_value = 0
    dims.add().dim_value = -1
    yield "type_odd_dimensions", model
