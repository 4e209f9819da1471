"""Models that each hold one feature which a reader or a writer can lose; made with protobuf alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from crafted_values import attribute_models, base, branch, dtype_models, type_models
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FEATURES: list[tuple[str, Callable[[ModelProto], None]]] = []


def feature(function: Callable[[ModelProto], None]) -> Callable[[ModelProto], None]:
    _FEATURES.append((function.__name__, function))
    return function


def crafted_models() -> Iterator[tuple[str, ModelProto]]:
    """Yield (name, model) of every feature."""
    for name, change in _FEATURES:
        model = base()
        change(model)
        yield name, model
    yield from attribute_models()
    yield from dtype_models()
    yield from type_models()


def _props(target: object, **entries: str) -> None:
    for key, value in entries.items():
        target.metadata_props.add(key=key, value=value)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------ documentation and metadata


@feature
def metadata_everywhere(m: ModelProto) -> None:
    _props(m, license="none", source="test")
    _props(m.graph, scope="g")
    for node in m.graph.node:
        _props(node, **{"pkg.torch.onnx.stack_trace": "File 'a.py', line 1", "namespace": "a/b"})
    for info in (*m.graph.input, *m.graph.output, *m.graph.value_info):
        _props(info, info=info.name)
    _props(m.graph.initializer[0], weight="w")


@feature
def doc_strings_everywhere(m: ModelProto) -> None:
    m.doc_string = "model"
    m.graph.doc_string = "graph"
    m.graph.initializer[0].doc_string = "w"
    for item in (*m.graph.node, *m.graph.input, *m.graph.output, *m.graph.value_info):
        item.doc_string = f"doc of {item.name}"
    attribute = helper.make_attribute("axis", 1)
    attribute.doc_string = "attribute"
    m.graph.node.append(helper.make_node("Softmax", ["h"], ["s"]))
    m.graph.node[-1].attribute.append(attribute)


@feature
def model_domain_and_version(m: ModelProto) -> None:
    m.domain = "org.example"
    m.model_version = 42
    m.producer_version = "1.2.3"


@feature
def empty_strings_are_set(m: ModelProto) -> None:
    m.domain = ""
    m.doc_string = ""
    m.graph.doc_string = ""
    m.graph.name = ""
    m.producer_version = ""
    for node in m.graph.node:
        node.domain = ""
        node.name = ""
        node.doc_string = ""


@feature
def nothing_optional_is_set(m: ModelProto) -> None:
    m.ClearField("producer_name")
    m.graph.ClearField("name")
    for node in m.graph.node:
        node.ClearField("name")


@feature
def quantization_annotation(m: ModelProto) -> None:
    m.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "scale"))
    annotation = m.graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")


@feature
def training_info(m: ModelProto) -> None:
    info = m.training_info.add()
    info.algorithm.name = "step"
    info.algorithm.node.append(helper.make_node("Mul", ["w", "w"], ["w_new"]))
    info.initialization.name = "init"
    info.update_binding.add(key="w", value="w_new")


@feature
def device_configuration(m: ModelProto) -> None:
    if "configuration" not in ModelProto.DESCRIPTOR.fields_by_name:
        return
    m.configuration.add(name="two", num_devices=2)
    configuration = m.graph.node[1].device_configurations.add(configuration_id="two", pipeline_stage=1)
    spec = configuration.sharding_spec.add(tensor_name="w")
    spec.device.extend([0, 1])
    spec.sharded_dim.add(axis=0).simple_sharding.add(num_shards=2)


@feature
def unknown_fields_everywhere(m: ModelProto) -> None:
    """Fields 1000 and 1001 are unknown to every message: what a newer ONNX would add."""

    def mark(message: object, number: int) -> None:
        tag = (number << 3) | 0
        varint = bytes([tag & 0x7F | 0x80, tag >> 7]) + b"\x07"
        message.MergeFromString(varint)  # type: ignore[attr-defined]

    softmax = helper.make_node("Softmax", ["h"], ["s"], axis=1)
    mark(softmax.attribute[0], 1000)
    m.graph.node.append(softmax)
    for number, message in enumerate(
        (m, m.graph, *m.graph.node, *m.graph.input, *m.graph.value_info, *m.graph.initializer, m.opset_import[0])
    ):
        mark(message, 1000 + number % 2)


# ------------------------------------------------------------------------------------------------------- functions


def _function(m: ModelProto, name: str = "Twice", overload: str = "") -> onnx.FunctionProto:
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    function = helper.make_function("local", name, ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    if overload:
        function.overload = overload
    m.functions.append(function)
    if not any(entry.domain == "local" for entry in m.opset_import):
        m.opset_import.append(helper.make_opsetid("local", 1))
    m.ir_version = 10
    return m.functions[-1]


@feature
def function_called(m: ModelProto) -> None:
    _function(m)
    m.graph.node.append(helper.make_node("Twice", ["h"], ["t"], domain="local"))


@feature
def function_overloads(m: ModelProto) -> None:
    _function(m, overload="one")
    _function(m, overload="two")
    node = helper.make_node("Twice", ["h"], ["t"], domain="local")
    node.overload = "two"
    m.graph.node.append(node)


@feature
def function_metadata_and_value_info(m: ModelProto) -> None:
    function = _function(m)
    _props(function, origin="test")
    function.doc_string = "doc"
    function.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 4]))
    function.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))


@feature
def function_reference_attributes(m: ModelProto) -> None:
    function = _function(m)
    function.attribute.extend(["alpha", "perm", "shape", "tensor"])
    function.attribute_proto.append(helper.make_attribute("beta", 2.0))
    function.attribute_proto.append(helper.make_attribute("names", ["a", "b"]))
    kinds = {"alpha": 1, "perm": 7, "tensor": 4}
    for name, kind in kinds.items():
        node = function.node.add(op_type="Op", domain="local", input=["a"], output=[f"out_{name}"])
        node.attribute.add(name=name, ref_attr_name=name, type=kind)
    function.node[1].attribute[0].doc_string = "documented reference"


@feature
def function_own_opset_and_nested(m: ModelProto) -> None:
    function = _function(m)
    function.opset_import[0].version = 15
    other = _function(m, name="FourTimes")
    del other.node[:]
    other.node.append(helper.make_node("Twice", ["a"], ["c"], domain="local"))
    other.node.append(helper.make_node("Twice", ["c"], ["b"], domain="local"))
    other.opset_import.append(helper.make_opsetid("local", 1))


# --------------------------------------------------------------------------------------------------- graphs and names


@feature
def optional_inputs_omitted(m: ModelProto) -> None:
    m.graph.node.append(helper.make_node("Clip", ["h", "", "w0"], ["c"]))
    m.graph.node.append(helper.make_node("Clip", ["h", ""], ["c2"]))
    m.graph.node.append(helper.make_node("Clip", ["h", "w0", ""], ["c3", ""]))
    m.graph.initializer.append(numpy_helper.from_array(np.float32(1), "w0"))


@feature
def input_is_output(m: ModelProto) -> None:
    info = m.graph.output.add()
    info.CopyFrom(m.graph.input[0])
    info.doc_string = "the same tensor"


@feature
def initializer_is_output(m: ModelProto) -> None:
    m.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))


@feature
def output_twice(m: ModelProto) -> None:
    m.graph.output.append(m.graph.output[0])
    m.graph.output[-1].doc_string = "again"


@feature
def output_without_type(m: ModelProto) -> None:
    m.graph.output[0].ClearField("type")


@feature
def output_also_in_value_info(m: ModelProto) -> None:
    for info in (m.graph.output[0], m.graph.input[0]):
        m.graph.value_info.append(info)
        m.graph.value_info[-1].doc_string = "again"


@feature
def overridable_initializer(m: ModelProto) -> None:
    m.graph.input.insert(0, helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))


@feature
def initializers_are_inputs_in_ir_3(m: ModelProto) -> None:
    m.ir_version = 3
    m.opset_import[0].version = 8
    m.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))


@feature
def unused_initializer_and_input(m: ModelProto) -> None:
    m.graph.initializer.insert(0, numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    m.graph.input.append(helper.make_tensor_value_info("unused_input", TensorProto.FLOAT, None))


@feature
def value_info_of_initializer_and_of_nothing(m: ModelProto) -> None:
    m.graph.value_info.insert(0, helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    m.graph.value_info.append(helper.make_tensor_value_info("nowhere", TensorProto.FLOAT, [4]))


@feature
def value_info_twice(m: ModelProto) -> None:
    m.graph.value_info.append(m.graph.value_info[0])


@feature
def value_info_shape_without_type(m: ModelProto) -> None:
    info = m.graph.value_info[0]
    info.type.tensor_type.ClearField("elem_type")


@feature
def sparse_initializer(m: ModelProto) -> None:
    values = helper.make_tensor("sw", TensorProto.FLOAT, [2], [5.0, 6.0])
    for indices in ([1, 3], [[0, 1], [1, 1]]):
        array = np.array(indices, np.int64)
        sparse = m.graph.sparse_initializer.add()
        sparse.values.CopyFrom(values)
        sparse.values.name = f"sw{array.ndim}"
        sparse.indices.CopyFrom(numpy_helper.from_array(array))
        sparse.dims.extend([2, 2])
        m.graph.node.append(helper.make_node("MatMul", ["h", sparse.values.name], [f"m{array.ndim}"]))


@feature
def unsorted(m: ModelProto) -> None:
    nodes = list(m.graph.node)[::-1]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del m.graph.node[:]
    m.graph.node.extend(copies)


@feature
def names_of_nodes_twice_and_missing(m: ModelProto) -> None:
    for name in ("relu", "", ""):
        m.graph.node.append(helper.make_node("Relu", ["h"], [f"r{len(m.graph.node)}"], name=name))


@feature
def domain_spelled_out(m: ModelProto) -> None:
    m.graph.node[0].domain = "ai.onnx"


@feature
def opset_imports_odd(m: ModelProto) -> None:
    m.opset_import.append(helper.make_opsetid("unused", 3))
    m.opset_import.append(helper.make_opsetid("ai.onnx", 17))
    m.opset_import[0].ClearField("domain")


def _with_if(m: ModelProto, then: GraphProto, other: GraphProto) -> None:
    m.graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
    m.graph.node.append(helper.make_node("If", ["cond"], ["z"], name="if", then_branch=then, else_branch=other))


@feature
def initializer_captured_by_both_branches(m: ModelProto) -> None:
    _with_if(m, branch("then", "Add", ["h", "w"]), branch("else", "Sub", ["h", "w"]))


@feature
def twin_nodes_in_branches(m: ModelProto) -> None:
    _with_if(m, branch("same", "Add", ["h", "w"]), branch("same", "Add", ["h", "w"]))


@feature
def body_with_everything(m: ModelProto) -> None:
    then = branch("then", "Add", ["h", "iw"])
    then.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "iw"))
    then.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "idle"))
    then.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 4]))
    then.doc_string = "doc"
    _props(then, scope="then")
    inner = branch("inner", "Mul", ["h", "w"])
    other = branch("else", "Sub", ["h", "w"])
    other.node.append(helper.make_node("If", ["cond"], ["deep"], then_branch=inner, else_branch=inner))
    _with_if(m, then, other)
    m.graph.node[-1].attribute[0].doc_string = "attribute with a graph"


@feature
def body_gives_out_outer_tensor(m: ModelProto) -> None:
    then = branch("then", "Add", ["h", "w"])
    then.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 4]))
    other = branch("else", "Sub", ["h", "w"])
    other.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    _with_if(m, then, other)
    m.graph.node[-1].output.append("z2")


@feature
def shadowed_name(m: ModelProto) -> None:
    then = branch("then", "Add", ["h2", "w"])
    then.node.insert(0, helper.make_node("Neg", ["x"], ["h2"]))
    then.node.append(helper.make_node("Neg", ["x"], ["h"]))
    _with_if(m, then, branch("else", "Sub", ["h", "w"]))


@feature
def loop_with_captures(m: ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["acc", "w"], ["acc2"]), helper.make_node("Identity", ["c"], ["c2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("acc", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("acc2", TensorProto.FLOAT, None),
        ],
    )
    m.graph.initializer.append(numpy_helper.from_array(np.array(3, np.int64), "trips"))
    m.graph.node.append(helper.make_node("Loop", ["trips", "", "h"], ["l"], name="loop", body=body))
