"""raise-opset: bit for bit the same outputs under the newer opset, or the model as it was with the reason."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

from graphopt.errors import GraphoptError
from graphopt.graph import read_model
from graphopt.passes.convert.kernels import COMPOSED, MISSING, WITH_KERNEL
from graphopt.passes.convert.raise_opset import CHANGES, LOWEST, NEWEST, RaiseOpset
from graphopt.passes.convert.unchanged import UNCHANGED
from graphopt.verify.reference import open_unoptimized
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

RAISED: dict[str, tuple[int, str]] = {
    "Unsqueeze": (9, "g (float[2, 3] x) => (float[2, 1, 3] y) { y = Unsqueeze<axes = [1]>(x) }"),
    "Squeeze": (11, "g (float[2, 1, 3] x) => (float[2, 3] y) { y = Squeeze<axes = [1]>(x) }"),
    "Squeeze of all": (11, "g (float[2, 1, 3] x) => (float[2, 3] y) { y = Squeeze(x) }"),
    "ReduceSum": (11, "g (float[2, 3] x) => (float[2] y) { y = ReduceSum<axes = [1], keepdims = 0>(x) }"),
    "ReduceSum of all": (11, "g (float[2, 3] x) => (float[1, 1] y) { y = ReduceSum(x) }"),
    "ReduceMean keeps its attribute": (11, "g (float[2, 3] x) => (float[2, 1] y) { y = ReduceMean<axes = [1]>(x) }"),
    "Split": (11, "g (float[2, 6] x) => (float[2, 2] y, float[2, 4] z) { y, z = Split<axis = 1, split = [2, 4]>(x) }"),
    "Split evenly": (11, "g (float[2, 6] x) => (float[2, 3] y, float[2, 3] z) { y, z = Split<axis = 1>(x) }"),
    "Clip": (9, "g (float[2, 3] x) => (float[2, 3] y) { y = Clip<min = -0.5, max = 0.5>(x) }"),
    "Clip above": (9, "g (float[2, 3] x) => (float[2, 3] y) { y = Clip<max = 0.5>(x) }"),
    "Pad": (9, "g (float[2, 3] x) => (float[4, 3] y) { y = Pad<pads = [1, 0, 1, 0], value = 0.25>(x) }"),
    "Pad by reflection": (9, 'g (float[3, 3] x) => (float[5, 3] y) { y = Pad<mode = "reflect", pads = [1, 0, 1, 0]>(x) }'),
    "Slice": (9, "g (float[4, 5] x) => (float[2, 3] y) { y = Slice<axes = [1, 0], starts = [1, 2], ends = [4, 4]>(x) }"),
    "Slice of the first axes": (9, "g (float[4, 5] x) => (float[2, 5] y) { y = Slice<starts = [2], ends = [9]>(x) }"),
    "Softmax over the last axis": (11, "g (float[2, 3] x) => (float[2, 3] y) { y = Softmax(x) }"),
    "Softmax by number": (11, "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax<axis = 2>(x) }"),
    "LogSoftmax": (9, "g (float[2, 3] x) => (float[2, 3] y) { y = LogSoftmax<axis = 1>(x) }"),
    "chain": (9, "g (float[2, 3] x) => (float[1, 2, 3] y) { a = Relu(x) b = Clip<max = 1.0>(a) c = Add(b, x) y = Unsqueeze<axes = [0]>(c) }"),
    "MaxPool": (8, "g (float[1, 2, 6, 6] x) => (float[1, 2, 3, 3] y) { y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) }"),
}  # fmt: skip

NEWER: dict[str, tuple[int, int, str]] = {
    "Softmax over several axes": (11, 13, "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax<axis = 1>(x) }"),
    "Softmax of all": (9, 13, "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax<axis = 0>(x) }"),
    "Softmax of one open axis": (9, 13, "g (float[N, 3, 4] x) => (float[N, 3, 4] y) { y = Softmax<axis = 1>(x) }"),
    "Softmax of open axes": (9, 14, "g (float[N, M, 4] x) => (float[N, M, 4] y) { y = Softmax(x) }"),
    "Softmax beside axes of size 1": (9, 13, "g (float[N, 3, 1, 1] x) => (float[N, 3, 1, 1] y) { y = Softmax(x) }"),
    "Softmax of a vector": (9, 13, "g (float[5] x) => (float[5] y) { y = Softmax<axis = 0>(x) }"),
    "LogSoftmax over several axes": (11, 13, "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = LogSoftmax<axis = -2>(x) }"),
    "Hardmax over several axes": (11, 13, "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Hardmax(x) }"),
    "Dropout": (11, 13, "g (float[2, 3] x) => (float[2, 3] y) { y = Dropout<ratio = 0.3>(x) }"),
    "Dropout of opset 7": (7, 13, "g (float[2, 3] x) => (float[2, 3] y) { y, m = Dropout(x) }"),
    "Clip of halves": (9, 13, "g (float16[2, 3] x) => (float16[2, 3] y) { y = Clip<min = -0.5, max = 0.5>(x) }"),
    "Pad of doubles": (9, 13, "g (double[2, 3] x) => (double[4, 3] y) { y = Pad<pads = [1, 0, 1, 0], value = 0.25>(x) }"),
    "Clip with the widest bounds": (9, 13, "g (float[2, 3] x) => (float[2, 3] y) { y = Clip<min = 0.0, max = 3.4028234e38>(x) }"),
    "ReduceMean": (13, 18, "g (float[2, 3] x) => (float[2, 1] y) { y = ReduceMean<axes = [1]>(x) }"),
    "ReduceMax of all": (9, 20, "g (float[2, 3] x) => (float y) { y = ReduceMax<keepdims = 0>(x) }"),
    "ReduceL2 from the end": (11, 22, "g (float[2, 3] x) => (float[2, 1] y) { y = ReduceL2<axes = [-1]>(x) }"),
    "Split evenly": (13, 18, "g (float[2, 6] x) => (float[2, 3] y, float[2, 3] z) { y, z = Split<axis = 1>(x) }"),
    "Split from opset 7": (7, 18, "g (float[6, 2] x) => (float[3, 2] y, float[3, 2] z) { y, z = Split(x) }"),
    "TopK": (9, 13, "g (float[2, 6] x) => (float[2, 2] y, int64[2, 2] z) { y, z = TopK<axis = 1, k = 2>(x) }"),
    "Upsample, nearest": (7, 13, 'g (float[1, 1, 2, 3] x) => (float[1, 1, 6, 6] y) { y = Upsample<mode = "nearest", scales = [1.0, 1.0, 3.0, 2.0]>(x) }'),
    "Upsample, linear": (7, 19, 'g (float[1, 1, 2, 3] x) => (float[1, 1, 6, 6] y) { y = Upsample<mode = "linear", scales = [1.0, 1.0, 3.0, 2.0]>(x) }'),
    "Upsample by an input": (9, 13, "g (float[1, 1, 2, 3] x) => (float[1, 1, 5, 7] y) <float[4] s = {1, 1, 2.5, 2.5}> { y = Upsample(x, s) }"),
    "Upsample to opset 10": (9, 10, "g (float[1, 1, 2, 3] x) => (float[1, 1, 4, 6] y) <float[4] s = {1, 1, 2, 2}> { y = Upsample(x, s) }"),
    "Upsample to opset 11": (9, 11, "g (float[1, 1, 2, 3] x) => (float[1, 1, 4, 6] y) <float[4] s = {1, 1, 2, 2}> { y = Upsample(x, s) }"),
    "Resize": (10, 13, "g (float[1, 1, 2, 2] x) => (float[1, 1, 6, 4] y) <float[4] s = {1, 1, 3, 2}> { y = Resize(x, s) }"),
    "Resize, smaller": (10, 13, "g (float[1, 1, 7, 9] x) => (float[1, 1, 3, 3] y) <float[4] s = {1, 1, 0.5, 0.4}> { y = Resize(x, s) }"),
    "Resize, linear": (10, 18, 'g (float[1, 1, 7, 9] x) => (float[1, 1, 3, 18] y) <float[4] s = {1, 1, 0.5, 2}> { y = Resize<mode = "linear">(x, s) }'),
    "Resize by sizes": (11, 19, "g (float[1, 1, 2, 2] x) => (float[1, 1, 5, 4] y) <float[0] e = {}, int64[4] s = {1, 1, 5, 4}> { y = Resize(x, e, e, s) }"),
    "BatchNormalization": (8, 15, "g (float[2, 3, 4] x, float[3] s, float[3] b) => (float[2, 3, 4] y) <float[3] m = {1, 2, 3}, float[3] v = {1, 2, 3}> { y = BatchNormalization<spatial = 1>(x, s, b, m, v) }"),
    "RoiAlign": (10, 16, "g (float[1, 2, 6, 6] x) => (float[2, 2, 2, 2] y) <float[2, 4] r = {0, 0, 4, 4, 1, 1, 5, 3}, int64[2] i = {0, 0}> { y = RoiAlign<output_height = 2, output_width = 2, sampling_ratio = 2>(x, r, i) }"),
    "GridSample": (16, 22, 'g (float[1, 1, 3, 3] x, float[1, 2, 2, 2] g) => (float[1, 1, 2, 2] y) { y = GridSample<mode = "bicubic">(x, g) }'),
    "GroupNormalization": (18, 21, "g (float[2, 4, 3] x) => (float[2, 4, 3] y) <float[2] s = {1, 2}, float[2] b = {3, 4}> { y = GroupNormalization<num_groups = 2>(x, s, b) }"),
    "GroupNormalization of fed scales": (18, 21, "g (float[2, 4, 3] x, float[2] s, float[2] b) => (float[2, 4, 3] y) { y = GroupNormalization<num_groups = 2>(x, s, b) }"),
    "DFT": (17, 20, "g (float[1, 8, 3, 1] x) => (float[1, 8, 3, 2] y) { y = DFT(x) }"),
    "DFT over an axis": (17, 20, "g (float[1, 8, 3, 1] x) => (float[1, 8, 3, 2] y) { y = DFT<axis = 2>(x) }"),
    "Scatter": (9, 18, "g (float[3, 3] x, float[1, 2] u) => (float[3, 3] y) <int64[1, 2] i = {0, 2}> { y = Scatter(x, i, u) }"),
    "AveragePool": (9, 22, "g (float[1, 1, 6, 6] x) => (float[1, 1, 3, 3] y) { y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 0], count_include_pad = 1>(x) }"),
    "LSTM": (7, 22, "g (float[3, 1, 2] x, float[1, 8, 2] w, float[1, 8, 2] r) => (float[3, 1, 1, 2] y) { y = LSTM<hidden_size = 2>(x, w, r) }"),
    "Reshape": (9, 23, "g (float[2, 3] x) => (float[2, 3, 1] y) <int64[3] s = {0, -1, 1}> { y = Reshape(x, s) }"),
    "Dequantize": (10, 21, "g (uint8[2, 3] x) => (float[2, 3] y) <float s = {0.5}, uint8 z = {3}> { y = DequantizeLinear(x, s, z) }"),
}  # fmt: skip

REFUSED: dict[str, tuple[int, int, str, str]] = {
    "Softmax of open axes": (11, 13, "g (float[N, M, 4] x) => (float[N, M, 4] y) { y = Softmax<axis = 1>(x) }", "only from opset 14"),
    "Softmax of unknown rank": (11, 14, "g (float[2, 3, 4] x, int64[K] s) => (float z) { r = Reshape(x, s) y = Softmax<axis = 1>(r) z = ReduceSum<keepdims = 0>(y) }", "rank of the input is unknown"),
    "mask of Dropout": (11, 13, "g (float[2, 3] x) => (float[2, 3] y, bool[2, 3] m) { y, m = Dropout(x) }", "mask is read"),
    "Resize both ways": (10, 13, "g (float[1, 1, 4, 4] x) => (float[1, 1, 2, 8] y) <float[4] s = {1, 1, 0.5, 2}> { y = Resize(x, s) }", "nearest sample"),
    "Resize by computed scales": (10, 13, "g (float[1, 1, 4, 4] x, float[4] s) => (float[A, B, C, D] y) { y = Resize(x, s) }", "nearest sample"),
    "tf_half_pixel_for_nn": (11, 13, 'g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[0] e = {}, float[4] s = {1, 1, 2, 2}> { y = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn">(x, e, s) }', "opset 13 removed"),
    "Clip of halves": (9, 13, "g (float16[2, 3] x) => (float16[2, 3] y) { y = Clip<min = -0.1>(x) }", "does not hold"),
    "BatchNormalization of each element": (8, 13, "g (float[2, 3] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[2, 3] y) { y = BatchNormalization<spatial = 0>(x, s, b, m, v) }", "each element"),
    "ConvTranspose by shape": (9, 13, "g (float[1, 1, 3, 3] x, float[1, 1, 3, 3] w) => (float[1, 1, 6, 6] y) { y = ConvTranspose<output_shape = [6, 6], strides = [2, 2]>(x, w) }", "places otherwise"),
    "AveragePool that rounds up": (11, 19, "g (float[1, 1, 6] x) => (float[1, 1, 3] y) { y = AveragePool<kernel_shape = [3], strides = [2], ceil_mode = 1>(x) }", "rounds its output size up"),
    "GroupNormalization of open channels": (18, 21, "g (float[2, C, 3] x, float[2] s, float[2] b) => (float[2, C, 3] y) { y = GroupNormalization<num_groups = 2>(x, s, b) }", "number of channels"),
    "no kernel": (16, 22, "g (float[1, 2, 6, 6] x) => (float[1, 2, 1, 1] y) { y = GlobalLpPool(x) }", "no kernel for GlobalLpPool"),
    "no kernel for double": (18, 19, "g (double[2, 3] x) => (double[2, 3] y) { y = Elu(x) }", "no kernel for Elu of double"),
    "no kernel for a slope of double": (16, 22, "g (double[2, 3] x) => (double[2, 3] y) { y = LeakyRelu(x) }", "opset 18 only"),
    "no kernel for integers": (18, 23, "g (int64[2, 3] x) => (int64[2, 3] y) { y = Relu(x) }", "no kernel for Relu of int64"),
    "below opset 7": (6, 13, "g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }", "below opset 7"),
    "beyond the newest": (17, NEWEST + 1, "g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }", f"up to opset {NEWEST}"),
    "no operator": (9, 13, "g (float[2, 3] x) => (float[2, 3] y) { y = Gelu(x) }", "no operator of opset 9"),
}  # fmt: skip


def text(opset: int, graph: str) -> str:
    return f'<ir_version: 6, opset_import: ["" : {opset}]> {graph}'


@pytest.mark.parametrize("op", COMPOSED)
def test_composed_operators_run_of_some_types_only(op: str) -> None:
    """ONNX Runtime runs them in any opset where they have a kernel, and of double only where it composes them."""
    slope = ", x" if op == "PRelu" else ""
    for element, newest in (("float", NEWEST), ("double", NEWEST if TensorProto.DOUBLE in WITH_KERNEL[op] else 18)):
        for opset in (18, 19, NEWEST):
            model = onnx.parser.parse_model(
                text(opset, f"g ({element}[2, 3] x) => ({element}[A, B] y) {{ y = {op}(x{slope}) }}")
            )
            assert is_run(model.SerializeToString()) == (opset <= newest)


def is_run(data: bytes) -> bool:
    try:
        open_unoptimized(data)
    except GraphoptError:
        return False
    return True


@pytest.mark.parametrize("name", RAISED)
def test_operator_computes_the_same(name: str) -> None:
    opset, graph = RAISED[name]
    done = check_pass(RaiseOpset(), text(opset, graph))
    assert done.model.opset == LOWEST
    assert done.record.patches == 1
    onnx.checker.check_model(done.model.to_proto(), full_check=True)


@pytest.mark.parametrize("name", NEWER)
def test_operator_computes_the_same_in_a_newer_opset(name: str) -> None:
    opset, to, graph = NEWER[name]
    done = check_pass(
        RaiseOpset(to=to), text(opset, graph), interpreted=opset >= 13
    )  # onnx.reference knows no older meanings
    assert done.model.opset == to
    onnx.checker.check_model(done.model.to_proto(), full_check=True)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_model_stays_as_it_was(name: str) -> None:
    opset, to, graph, reason = REFUSED[name]
    done = run_pass(RaiseOpset(to=to), text(opset, graph), verify="fast")
    assert done.model.to_bytes() == done.before.to_bytes()
    assert reason in done.record.skips[0][1]


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(RaiseOpset(), text(*RAISED["chain"])).text)


def test_model_of_a_later_opset_is_not_touched() -> None:
    done = run_pass(RaiseOpset(), text(17, "g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }"))
    assert (done.record.patches, done.record.skips, done.model.opset) == (0, [], 17)


def test_bodies_are_raised_too() -> None:
    graph = (
        "g (float[2, 3] x, bool c) => (float[2, 1, 3] y) { y = If(c) <"
        "then_branch = a () => (float[2, 1, 3] p) { p = Unsqueeze<axes = [1]>(x) }, "
        "else_branch = e () => (float[2, 1, 3] q) { n = Neg(x) q = Unsqueeze<axes = [1]>(n) }> }"
    )
    done = check_pass(RaiseOpset(), text(11, graph))
    assert all(len(node.inputs) == 2 for _, node in done.model.walk() if node.op == "Unsqueeze")


def test_initializers_of_an_old_file_stay_fixed() -> None:
    """Below IR version 4 initializers are listed as inputs without being open to callers, and must stay so."""
    proto = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 8]> g (float[3] x, float[3] w) => (float[3] y) { y = Add(x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    done = check_pass(RaiseOpset(), read_model(proto))
    assert done.model.ir_version == 3


def test_bodies_of_functions_are_raised() -> None:
    model = """<ir_version: 8, opset_import: ["" : 12, "local" : 1]>
        g (float[2, 3] x) => (float[2, 1, 3] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 11]> f (a) => (b) { b = Unsqueeze<axes = [1]>(a) }"""
    done = check_pass(RaiseOpset(to=18), model)
    assert done.model.opset == done.model.functions[0].opset == 18


def test_attribute_of_a_function_that_would_become_an_input() -> None:
    model = """<ir_version: 8, opset_import: ["" : 11, "local" : 1]>
        g (float[2, 3] x) => (float[2, 1, 3] y) { y = local.f<axes = [1]>(x) }
        <domain: "local", opset_import: ["" : 11]> f <axes> (a) => (b) { b = Unsqueeze<axes: ints = @axes>(a) }"""
    done = run_pass(RaiseOpset(), model)
    assert "call of the function" in done.record.skips[0][1]
    assert done.model.opset == 11


def test_every_change_of_an_operator_is_known() -> None:
    """A change that no table names would be taken for none."""
    versions = {
        (schema.name, schema.since_version)
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain == "" and schema.since_version <= NEWEST
    }
    first = {name: min(version for other, version in versions if other == name) for name, _ in versions}
    changed = {(name, version) for name, version in versions if version > max(first[name], 7)}
    assert changed == set(CHANGES)


@pytest.mark.parametrize(("op", "opset"), sorted(UNCHANGED))
def test_unchanged_operator_accepts_what_it_accepted(op: str, opset: int) -> None:
    """Attributes, their defaults, inputs and element types of the older form are legal in the newer one."""
    older, newer = onnx.defs.get_schema(op, opset - 1, ""), onnx.defs.get_schema(op, opset, "")
    assert older.since_version < newer.since_version
    for name, attribute in older.attributes.items():
        assert newer.attributes[name].default_value == attribute.default_value
        assert newer.attributes[name].type == attribute.type
    for before, after in zip(older.inputs, newer.inputs, strict=False):
        assert set(before.types) <= set(after.types)
    assert newer.min_input <= older.min_input
    assert newer.max_input >= older.max_input


def test_newest_is_the_last_that_onnx_runtime_loads() -> None:
    done = check_pass(RaiseOpset(to=NEWEST), text(9, "g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }"))
    assert done.model.opset == NEWEST


def test_operators_without_a_newer_kernel_are_those_of_onnx_runtime() -> None:
    """A kernel without an upper version runs the version of the operator it was written for and no newer one."""
    kernels: dict[str, list[tuple[int, int]]] = {}
    for kernel in get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider" and kernel.domain in {"", "ai.onnx"}:
            kernels.setdefault(kernel.op_name, []).append(kernel.version_range)
    missing = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        version, composed = schema.since_version, schema.has_function or schema.has_context_dependent_function
        if schema.domain or schema.deprecated or composed or version > NEWEST or schema.name not in kernels:
            continue
        ranges = kernels[schema.name]
        if any(first == version or first <= version <= last < 2**31 - 1 for first, last in ranges):
            continue
        if version > min(first for first, _ in ranges):
            missing[schema.name] = version
    assert missing == {op: opset for op, opset in MISSING.items() if op not in {"Swish", "Bernoulli"}}
