"""Where pairs go on targets that are not installed: each rule of their tables on a small network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from graphopt.errors import UsageError
from graphopt.graph import Model, constant_value, producer, read_model, uses
from graphopt.runtime import run, session
from graphopt.target import audit, find_target, validate
from graphopt.target.reading import is_conversion, restored
from placed_models import ATTENTION, CONCAT, NETWORKS, RESIDUAL, float_model, placed, sqnr_db

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Tensor
    from graphopt.target.reading import Restored

TARGETS = ("ort-cpu", "ort-cpu-avx2", "ort-cpu-arm64", "tensorrt", "openvino", "qnn")


def node(model: Model, name: str) -> Node:
    found: Node = next(each for each in model.graph.nodes if each.name == name)
    return found


def value(tensor: Tensor) -> NDArray[np.generic]:
    """Return the values of a constant."""
    found = constant_value(tensor)
    assert found is not None
    return found


def grid_of(tensor: Tensor) -> Restored:
    """Return how a tensor is restored."""
    found = restored(tensor)
    assert found is not None
    return found


def restored_inputs(model: Model, name: str) -> list[bool]:
    return [restored(tensor) is not None for tensor in node(model, name).inputs]


def restorers(model: Model) -> list[Node]:
    """Return the DequantizeLinear nodes that restore activations."""
    found = [each for each in model.graph.nodes if is_conversion(each, "DequantizeLinear")]
    return [each for each in found if not (made := restored(each.outputs[0])) or not made.is_constant]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_rule_of_the_target_is_broken_and_values_stay(target: str, name: str) -> None:
    model, result, data, _ = placed(NETWORKS[name], target)
    assert validate(result, find_target(target)) == ()
    assert sqnr_db(model, result, data) > 20
    assert [tensor.name for tensor in result.graph.outputs] == [tensor.name for tensor in model.graph.outputs]


# -------------------------------------------------------------------------------------------------------- tensorrt


def test_tensorrt_quantizes_inputs_symmetrically_and_leaves_weights_and_biases_float() -> None:
    _, result, _, _ = placed(RESIDUAL, "tensorrt")
    conv = node(result, "Conv0")
    data, weight = restored(conv.inputs[0]), restored(conv.inputs[1])
    assert data is not None
    assert weight is not None
    assert (data.number, weight.number) == ("int8", "int8")
    for each in (data, weight):
        assert each.zero is not None
        assert not each.zero.any()
    assert weight.rounding is not None
    assert value(weight.rounding.inputs[0]).dtype == np.float32
    assert weight.axis == 0
    assert weight.scale is not None
    assert weight.scale.size == 16
    assert value(conv.inputs[2]).dtype == np.float32


def test_tensorrt_rounds_the_skip_branch_of_a_residual_add_alone() -> None:
    _, result, _, _ = placed(RESIDUAL, "tensorrt")
    assert restored_inputs(result, "Add3") == [False, True]
    assert not any(is_conversion(use.node) for use in uses(node(result, "Conv2").outputs[0]))


def test_tensorrt_takes_the_shorter_branch_for_the_skip_where_both_end_in_convolutions() -> None:
    graph = (
        "g (float[n, 16, 8, 8] x, float[16, 16, 1, 1] w0, float[16, 16, 1, 1] w1, float[16, 16, 1, 1] w2, "
        "float[16, 16, 1, 1] w3) => (float[n, 16, 8, 8] y) "
        "{ short = Conv(x, w0) a = Conv(x, w1) r = Relu(a) long = Conv(r, w2) s = Add(short, long) y = Conv(s, w3) }"
    )
    _, result, _, _ = placed(graph, "tensorrt")
    assert restored_inputs(result, "Add4") == [True, False]


def test_tensorrt_has_no_pair_before_activations_or_copies() -> None:
    _, result, _, _ = placed(RESIDUAL, "tensorrt")
    for each in result.graph.nodes:
        if each.op in {"Relu", "Flatten"}:
            assert not any(restored(tensor) for tensor in each.inputs)


def test_tensorrt_gives_one_scale_to_matrices_and_to_what_reaches_a_concat() -> None:
    _, result, _, _ = placed(RESIDUAL, "tensorrt")
    weight = restored(node(result, "Gemm10").inputs[1])
    assert weight is not None
    assert weight.scale is not None
    assert weight.scale.size == 1
    _, result, _, _ = placed(CONCAT, "tensorrt")
    grids = {found.grid() for tensor in node(result, "Concat4").inputs if (found := restored(tensor))}
    assert len(grids) == 1
    assert restored_inputs(result, "Concat4") == [True, True]


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("g (float[n, 5, 8, 8] x, float[6, 5, 3, 3] w0) => (float[n, 6, h, w] y) { y = Conv(x, w0) }", "channels"),
        (
            "g (float[n, 8, 8, 8] x, float[8, 1, 1, 1] w0) => (float[n, 8, h, w] y) { y = Conv<group = 8>(x, w0) }",
            "groups",
        ),
        ("g (float[n, 8] x, float[8, 64] w0) => (float[n, 64] y) { y = MatMul(x, w0) }", "tensor cores"),
        ("g (float[1, 64] x, float[64, 64] w0) => (float[1, 64] y) { y = MatMul(x, w0) }", "one row"),
    ],
)
def test_tensorrt_leaves_layers_that_tensor_cores_do_not_take(graph: str, reason: str) -> None:
    _, result, _, record = placed(graph, "tensorrt")
    assert reason in record.skips[0][1]
    assert not any(is_conversion(each) for each in result.graph.nodes)


def test_tensorrt_quantizes_the_first_layer_although_it_has_three_channels() -> None:
    graph = "g (float[n, 3, 8, 8] x, float[16, 3, 3, 3] w0) => (float[n, 16, h, w] y) { y = Conv(x, w0) }"
    _, result, _, _ = placed(graph, "tensorrt")
    assert restored_inputs(result, "Conv0")[:2] == [True, True]


def test_tensorrt_takes_eight_bit_floats() -> None:
    model, result, data, record = placed(RESIDUAL, "tensorrt", opset=19, activations="fp8")
    found = {made.number for each in result.graph.nodes for tensor in each.inputs if (made := restored(tensor))}
    assert found == {"float8_e4m3fn"}
    assert all("fp8 weights" in layer.what for layer in record.layers)
    assert validate(result, find_target("tensorrt")) == ()
    assert sqnr_db(model, result, data) > 20


# -------------------------------------------------------------------------------------------------------- openvino


def test_openvino_rounds_all_inputs_of_what_computes() -> None:
    _, result, _, _ = placed(RESIDUAL, "openvino")
    for name in ("Add3", "GlobalAveragePool8"):
        assert all(restored_inputs(result, name)), name
    for name in ("Conv0", "Conv2", "Conv6", "Gemm10"):
        assert restored_inputs(result, name)[:2] == [True, True], name
    weight = restored(node(result, "Conv0").inputs[1])
    assert weight is not None
    assert weight.rounding is None
    assert (weight.number, weight.axis) == ("int8", 0)


def test_openvino_rounds_behind_relu_and_before_data_movement() -> None:
    _, result, _, _ = placed(RESIDUAL, "openvino")
    before = restored(node(result, "MaxPool5").inputs[0])
    assert before is not None
    assert before.rounding is not None
    assert producer(before.rounding.inputs[0]) is node(result, "Relu4")
    assert before.zero is not None
    assert not before.zero.any()  # nothing is negative behind Relu
    behind = restored(node(result, "Conv6").inputs[0])
    assert behind is not None
    assert behind.grid() == before.grid()


def test_openvino_gives_one_scale_to_what_reaches_a_concat() -> None:
    _, result, _, _ = placed(CONCAT, "openvino")
    assert len({found.grid() for tensor in node(result, "Concat4").inputs if (found := restored(tensor))}) == 1
    behind = restored(node(result, "Conv5").inputs[0])
    assert behind is not None
    assert behind.grid() == grid_of(node(result, "Concat4").inputs[0]).grid()


def test_openvino_leaves_attention_and_normalization_float() -> None:
    _, result, _, record = placed(ATTENTION, "openvino")
    for name in ("MatMul4", "Softmax5", "MatMul6", "LayerNormalization10"):
        assert not any(restored_inputs(result, name)), name
    assert [layer.name for layer in record.layers] == ["MatMul0", "MatMul1", "MatMul7"]


def test_openvino_can_be_symmetric() -> None:
    _, result, _, _ = placed(CONCAT, "openvino", symmetric=True)
    zeros = {
        int(found.zero) for each in restorers(result) if (found := restored(each.outputs[0])) if found.zero is not None
    }
    assert zeros <= {0, 128}


# ------------------------------------------------------------------------------------------------------------- qnn


@pytest.mark.parametrize("name", NETWORKS)
def test_qnn_quantizes_every_float_tensor(name: str) -> None:
    _, result, _, _ = placed(NETWORKS[name], "qnn")
    assert [each for each in validate(result, find_target("qnn")) if each.rule == "covered"] == []
    for tensor in result.graph.outputs:
        assert restored(tensor) is not None


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w0) y = Relu(a) z = Tanh(a)",
        "y = Conv(x, w0) z = Relu(y)",
        "a = Conv(x, w0) y = Relu(a) z = Transpose<perm = [0, 1, 3, 2]>(y)",
        "a = Conv(x, w0) r = Relu(a) y, z = Split<axis = 2, num_outputs = 2>(r)",
        "y = Conv(x, w0) z = Identity(x)",
    ],
)
def test_qnn_outputs_that_are_read_as_well_are_restored_twice(body: str) -> None:
    graph = f"g (float[n, 8, 4, 4] x, float[8, 8, 1, 1] w0) => (float[n, 8, p, q] y, float[n, 8, r, s] z) {{ {body} }}"
    model, result, data, _ = placed(graph, "qnn", opset=18)
    assert [tensor.name for tensor in result.graph.outputs] == ["y", "z"]
    assert validate(result, find_target("qnn")) == ()
    assert sqnr_db(model, result, data) > 30


def test_qnn_takes_out_activations_that_the_grid_makes_redundant() -> None:
    _, result, _, _ = placed(RESIDUAL, "qnn")
    assert "Relu" not in {each.op for each in result.graph.nodes}
    found = restored(node(result, "MaxPool5").inputs[0])
    assert found is not None
    assert found.zero is not None
    assert int(found.zero) == 0


def test_qnn_gives_data_movement_equal_grids() -> None:
    _, result, _, _ = placed(RESIDUAL, "qnn")
    pool = node(result, "MaxPool5")
    before = restored(pool.inputs[0])
    behind = uses(uses(uses(pool.outputs[0])[0].node.outputs[0])[0].node.outputs[0])
    after = restored(node(result, "Conv6").inputs[0])
    assert behind
    assert before is not None
    assert after is not None
    assert before.grid() == after.grid()


def test_qnn_gives_matrices_one_unsigned_scale_and_convolutions_one_per_channel() -> None:
    _, result, _, _ = placed(RESIDUAL, "qnn")
    conv, gemm = restored(node(result, "Conv0").inputs[1]), restored(node(result, "Gemm10").inputs[1])
    assert conv is not None
    assert conv.scale is not None
    assert gemm is not None
    assert gemm.scale is not None
    assert (conv.number, conv.scale.size) == ("int8", 16)
    assert (gemm.number, gemm.scale.size) == ("uint8", 1)


def test_qnn_gives_each_reader_of_a_shared_bias_one_of_its_own() -> None:
    graph = (
        "g (float[n, 8, 4, 4] x, float[8, 8, 1, 1] w0, float[8, 8, 1, 1] w1, float[8] b0) => (float[n, 8, 4, 4] y) "
        "{ a = Conv(x, w0, b0) r = Relu(a) y = Conv(r, w1, b0) }"
    )
    _, result, _, _ = placed(graph, "qnn")
    first, second = (grid_of(node(result, name).inputs[2]) for name in ("Conv0", "Conv2"))
    assert first.integers is not second.integers
    assert first.scale is not None
    assert second.scale is not None
    assert not np.array_equal(first.scale, second.scale)
    assert [each for each in validate(result, find_target("qnn")) if each.rule == "bias-scale"] == []


def test_qnn_raises_the_scale_of_a_channel_whose_bias_does_not_fit() -> None:
    graph = (
        "g (float[n, 8, 4, 4] x, float[8, 8, 1, 1] w0, float[8] b0) => (float[n, 8, 4, 4] y) { y = Conv(x, w0, b0) }"
    )
    model = float_model(graph)
    weight, bias = model.graph.nodes[0].inputs[1:]
    scaled, large = value(weight).copy(), value(bias).copy()
    scaled[0] *= 1e-12
    large[0] = 3.0
    weight.set(scaled)
    bias.set(large)
    _, result, data, _ = placed(model, "qnn")
    found = run(session(result, optimize="off"), data.first())["y"]
    np.testing.assert_allclose(found[:, 0], 3.0, atol=0.05)
    restored_bias = grid_of(node(result, "Conv0").inputs[2])
    assert restored_bias.values is not None
    assert np.abs(restored_bias.values.astype(np.int64)).max() < 2**31 - 1


@pytest.mark.parametrize(
    ("op", "number", "scale", "zero"),
    [
        ("Sigmoid", "uint16", 1 / 65536, 0),
        ("Sigmoid", "int16", 1 / 32768, 0),
        ("Tanh", "uint16", 1 / 32768, 32768),
        ("Tanh", "int16", 1 / 32768, 0),
        ("Sigmoid", "uint8", 1 / 255, 0),
    ],
)
def test_qnn_fixes_the_grids_of_sigmoid_and_tanh(op: str, number: str, scale: float, zero: int) -> None:
    graph = (
        "g (float[n, 8, 4, 4] x, float[8, 8, 1, 1] w0, float[8, 8, 1, 1] w1) => (float[n, 8, 4, 4] y) "
        f"{{ a = Conv(x, w0) r = {op}(a) y = Conv(r, w1) }}"
    )
    _, result, _, _ = placed(graph, "qnn", opset=21, activations=number)
    found = restored(node(result, "Conv2").inputs[0])
    assert found is not None
    assert found.scale is not None
    assert found.zero is not None
    assert (found.number, int(found.zero)) == (number, zero)
    np.testing.assert_allclose(float(found.scale), scale, rtol=1e-6)


@pytest.mark.parametrize(("opset", "domain"), [(21, None), (17, "com.microsoft")])
def test_sixteen_bits_take_the_operators_of_the_runtime_below_opset_21(opset: int, domain: str | None) -> None:
    model, result, data, _ = placed(CONCAT, "qnn", opset=opset, activations="uint16")
    domains = {each.domain for each in restorers(result)}
    assert domains == {domain}
    assert sqnr_db(model, result, data) > 35


def test_qnn_takes_sixteen_bits_for_models_that_normalize() -> None:
    _, result, _, _ = placed(ATTENTION, "qnn", opset=21)
    assert {found.number for each in restorers(result) if (found := restored(each.outputs[0]))} == {"uint16"}


def test_qnn_masks_of_attention_leave_the_other_scores_their_grid() -> None:
    graph = (
        "g (float[n, 4, 16] x, float[16, 16] w0, float[16, 16] w1) => (float[n, 4, 4] y) "
        "<float[1, 4, 4] mask = {0, -1e9, -1e9, -1e9, 0, 0, -1e9, -1e9, 0, 0, 0, -1e9, 0, 0, 0, 0}> "
        "{ q = MatMul(x, w0) k0 = MatMul(x, w1) k = Transpose<perm = [0, 2, 1]>(k0) s = MatMul(q, k) m = Add(s, mask) "
        "y = Softmax<axis = -1>(m) }"
    )
    model, result, data, _ = placed(graph, "qnn", activations="uint16", opset=21)
    assert sqnr_db(model, result, data) > 35


# ------------------------------------------------------------------------------------------------- onnx runtime


def test_arm64_has_signed_activations_whose_zero_point_ends_the_grid_behind_relu() -> None:
    model, result, data, _ = placed(RESIDUAL, "ort-cpu-arm64")
    numbers = {found.number for each in restorers(result) if (found := restored(each.outputs[0]))}
    assert numbers == {"int8"}
    behind_relu = uses(node(result, "Relu1").outputs[0])[0].node
    assert int(value(behind_relu.inputs[2])) == -128
    ran = audit(result, "ort-cpu-arm64", feeds=data)
    assert ran.integer["QLinearConv"] == 3
    assert ran.floating_count == 0
    assert ran.stayed_float == ()
    assert ran.broken == ()
    assert sqnr_db(model, result, data) > 25


def test_avx2_weights_use_half_the_range() -> None:
    product = "g (float[n, 64] x, float[64, 32] w0) => (float[n, 32] y) { y = MatMul(x, w0) }"
    for graph, activations in ((RESIDUAL, "uint8"), (product, "dynamic")):
        _, result, _, _ = placed(graph, "ort-cpu-avx2", activations=activations)
        found = [constant_value(tensor) for each in result.graph.nodes for tensor in each.inputs]
        weights = [each for each in found if each is not None and each.dtype == np.int8]
        tops = [int(np.abs(each.astype(int)).max(initial=0)) for each in weights]
        assert max(tops) == 64
    _, result, _, _ = placed(RESIDUAL, "ort-cpu-avx2")
    assert validate(result, find_target("ort-cpu-avx2")) == ()
    _, whole, _, _ = placed(RESIDUAL, "ort-cpu")
    assert {each.rule for each in validate(whole, find_target("ort-cpu-avx2"))} == {"weight-limit"}


@pytest.mark.parametrize(
    ("target", "activations", "choices"),
    [("ort-cpu", "int16", "uint8"), ("openvino", "fp8", "uint8, int8"), ("tensorrt", "dynamic", "int8, fp8")],
)
def test_types_without_kernels_are_refused(target: str, activations: str, choices: str) -> None:
    with pytest.raises(UsageError, match=choices):
        placed(CONCAT, target, activations=activations)


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "qnn"])
def test_nodes_are_kept_float_as_asked(target: str) -> None:
    _, result, _, record = placed(RESIDUAL, target, keep=("Conv2",))
    assert ("Conv2", "kept float as asked") in [
        (str(getattr(where, "name", where)), why) for where, why in record.skips
    ]
    assert value(node(result, "Conv2").inputs[1]).dtype == np.float32


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "qnn"])
def test_a_second_run_changes_nothing(target: str) -> None:
    _, result, data, _ = placed(RESIDUAL, target)
    before = result.to_bytes()
    _, again, _, record = placed(result, target)
    assert again.to_bytes() == before
    assert "quantized already" in record.skips[0][1]
    assert len(data) == 8


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "qnn"])
def test_the_same_seed_gives_the_same_bytes(target: str) -> None:
    first, second = (placed(float_model(RESIDUAL), target)[1].to_bytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "openvino"])
def test_weight_with_scales_along_its_inputs_is_refused(target: str) -> None:
    """The sum over the inputs cannot be scaled afterwards: where both sizes are equal nothing would notice."""
    graph = "g (float[n, 32] x, float[32, 32] w0) => (float[n, 32] y) { y = MatMul(x, w0) }"
    source = float_model(graph).to_bytes()
    proto = onnx.load_from_string(source)
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    scales = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    codes = np.rint(weight / scales[:, None]).astype(np.int8)
    del proto.graph.initializer[:]
    for name, values in {"w": codes, "s": scales, "z": np.zeros(32, np.int8)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    proto.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["w", "s", "z"], ["w0"], axis=0))
    _, result, _, record = placed(read_model(proto), target, activations=("uint8" if target == "ort-cpu" else "auto"))
    assert "another axis" in {str(getattr(k, "name", k)): why for k, why in record.skips}["MatMul0"]
    assert "QuantizeLinear" not in {each.op for each in result.graph.nodes}
