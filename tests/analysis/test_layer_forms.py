"""Layers as y = W x: rows times weights are what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.analysis.layer_statistics import Form, form_of, inputs_of
from graphopt.graph import read_model

EVERYTHING = 10**6


def form_and_output(node: Any, weight: np.ndarray, x: np.ndarray, **more: np.ndarray) -> tuple[Form, list[np.ndarray]]:
    """Return the form of a node whose weight is the input w and whose data is the input x, and what it computes."""
    value = helper.make_tensor_value_info
    constants = [numpy_helper.from_array(array, name) for name, array in {"w": weight, **more}.items()]
    outputs = [value(name, 1, None) for name in node.output if name]
    graph = helper.make_graph([node], "g", [value("x", 1, list(x.shape))], outputs, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (only,) = read_model(proto).graph.nodes
    form = form_of(only, list(node.input).index("w"), weight)
    assert isinstance(form, Form)
    assert form.columns(weight.shape) == form.matrices(weight)[0].shape[1]
    np.testing.assert_array_equal(form.weight(form.matrices(weight), weight), weight)
    return form, [np.asarray(found) for found in session.run(None, {"x": x})]


def products(form: Form, weight: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    """Return rows times weights of every group."""
    (sampled,) = form.sample([x], EVERYTHING, np.random.default_rng(1))
    return [rows @ matrix.T for rows, matrix in zip(sampled, form.matrices(weight), strict=True)]


def check_window(node: Any, weight: np.ndarray, x: np.ndarray) -> None:
    form, (y,) = form_and_output(node, weight, x)
    found = np.concatenate(products(form, weight, x), axis=1)
    wanted = np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])
    assert len(found) == len(wanted)
    order = np.random.default_rng(1).permutation(len(wanted))
    np.testing.assert_allclose(found, wanted[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 0, 2, 1]},
        {"strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 0, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
        {"auto_pad": "VALID"},
        {"group": 2, "pads": [1, 1, 1, 1]},
        {"group": 4},
    ],
    ids=str,
)
def test_convolution_rows_times_weights_are_its_outputs(attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    groups = attributes.get("group", 1)
    weight = rng.standard_normal((8, 4 // groups, 3, 2)).astype(np.float32)
    x = rng.standard_normal((2, 4, 7, 6)).astype(np.float32)
    check_window(helper.make_node("Conv", ["x", "w"], ["y"], **attributes), weight, x)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3], "pads": [1, 0, 1, 1]},
        {"strides": [2, 2], "dilations": [2, 1], "output_padding": [1, 0]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
        {"strides": [2, 2], "output_shape": [8, 10]},
        {"strides": [3, 2], "output_shape": [11, 8], "auto_pad": "SAME_UPPER"},
        {"group": 2, "strides": [2, 1]},
    ],
    ids=str,
)
def test_transposed_convolution_rows_times_weights_are_its_outputs(attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 2)).astype(np.float32)
    x = rng.standard_normal((2, 4, 4, 5)).astype(np.float32)
    check_window(helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes), weight, x)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), axes=st.integers(1, 3), transposed=st.booleans(), groups=st.integers(1, 3))
def test_convolutions_of_any_rank(data: st.DataObject, axes: int, transposed: bool, groups: int) -> None:
    def each(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes))

    kernel, strides, dilations, pads = each(1, 3), each(1, 3), each(1, 2), each(0, 1) + each(0, 1)
    spatial = [d * (k - 1) + 1 + more for k, d, more in zip(kernel, dilations, each(0, 3), strict=True)]
    rng = np.random.default_rng(0)
    inputs = 2 * groups
    shape = (inputs, 2, *kernel) if transposed else (3 * groups, 2, *kernel)
    weight = rng.standard_normal(shape).astype(np.float32)
    if transposed:  # nothing may be cut off that is not there
        pads = [min(pad, (d * (k - 1)) // 2) for pad, k, d in zip(pads, kernel * 2, dilations * 2, strict=True)]
    x = rng.standard_normal((2, inputs, *spatial)).astype(np.float32)
    op = "ConvTranspose" if transposed else "Conv"
    given_attributes = {"strides": strides, "dilations": dilations, "pads": pads, "group": groups}
    check_window(helper.make_node(op, ["x", "w"], ["y"], **given_attributes), weight, x)


@pytest.mark.parametrize(
    ("node", "shape", "x_shape"),
    [
        (helper.make_node("Gemm", ["x", "w"], ["y"]), (3, 5), (4, 3)),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (5, 3), (4, 3)),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), (3, 5), (3, 4)),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (3, 5), (2, 4, 3)),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (3, 5), (3,)),
        (helper.make_node("MatMul", ["w", "x"], ["y"]), (5, 3), (2, 3, 4)),
    ],
    ids=["gemm", "gemm-b", "gemm-a", "matmul", "matmul-vector", "matmul-left"],
)
def test_matrix_rows_times_weights_are_its_outputs(node: Any, shape: tuple[int, ...], x_shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(x_shape).astype(np.float32)
    form, (y,) = form_and_output(node, weight, x)
    (found,) = products(form, weight, x)
    wanted = (np.moveaxis(y, -2, -1) if node.input[0] == "w" else y).reshape(-1, 5)
    order = np.random.default_rng(1).permutation(len(wanted))
    np.testing.assert_allclose(found, wanted[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("stack", "batch"),
    [((2,), (2,)), ((2,), ()), ((3, 2), (3, 2)), ((3, 2), (1, 2)), ((3, 1), (3, 4)), ((2,), (5, 2)), ((1,), (4,))],
    ids=str,
)
def test_stacked_matrices_are_groups(stack: tuple[int, ...], batch: tuple[int, ...], *, left: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((*stack, 5, 3) if left else (*stack, 3, 5)).astype(np.float32)
    x = rng.standard_normal((*batch, 3, 4) if left else (*batch, 4, 3)).astype(np.float32)
    node = helper.make_node("MatMul", ["w", "x"] if left else ["x", "w"], ["y"])
    form, (y,) = form_and_output(node, weight, x)
    assert form.groups == int(np.prod(stack))
    y = np.moveaxis(y, -2, -1) if left else y
    for index, found in enumerate(products(form, weight, x)):
        place = np.unravel_index(index, stack)
        chosen = y[(..., *(slice(at, at + 1) if s > 1 else slice(None) for at, s in zip(place, stack, strict=True)),
                    slice(None), slice(None))].reshape(-1, 5)  # fmt: skip
        order = np.random.default_rng(1).permutation(len(chosen))
        np.testing.assert_allclose(found, chosen[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_input_and_state_times_recurrent_weights_are_the_next_state(direction: str) -> None:
    rng = np.random.default_rng(0)
    count = 2 if direction == "bidirectional" else 1
    w, r = (rng.standard_normal((count, 4, columns)).astype(np.float32) for columns in (3, 4))
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    linear = {"activations": ["Affine"] * count, "activation_alpha": [1.0] * count, "activation_beta": [0.0] * count}
    node = helper.make_node("RNN", ["x", "w", "r"], ["y"], hidden_size=4, direction=direction, **linear)
    inputs, (y,) = form_and_output(node, w, x, r=r)
    (only,) = read_model(_recurrent(node, {"w": w, "r": r})).graph.nodes
    states = form_of(only, 2, r)
    assert isinstance(states, Form)
    read = inputs_of(only, 2, states)
    assert isinstance(read, list)
    assert [tensor.name for tensor, _ in read] == ["y"]
    for place in range(count):
        back = direction == "reverse" or place == 1
        order = np.random.default_rng(1).permutation(8)
        products_of_states = np.empty((8, 4))
        products_of_states[order] = products(states, r, y)[place]
        products_of_inputs = np.empty((10, 4))
        products_of_inputs[np.random.default_rng(1).permutation(10)] = products(inputs, w, x)[place]
        steps = products_of_inputs.reshape(5, 2, 4)
        following = (steps[:-1] if back else steps[1:]) + products_of_states.reshape(4, 2, 4)
        np.testing.assert_allclose(following, y[:-1, place] if back else y[1:, place], rtol=1e-3, atol=1e-3)


def _recurrent(node: Any, constants: dict[str, np.ndarray]) -> Any:
    value = helper.make_tensor_value_info
    arrays = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    fed = [value(name, 1, None) for name in node.input if name and name not in constants]
    graph = helper.make_graph([node], "g", fed, [value(name, 1, None) for name in node.output if name], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "attributes", "reason"),
    [
        ("GRU", ["x", "w", "r"], ["y"], {}, "a GRU multiplies part of its recurrent weights with a state it has reset"),
        ("LSTM", ["x", "w", "r"], ["", "h"], {}, "no output shows them"),
        ("LSTM", ["x", "w", "r", "", "lengths"], ["y"], {}, "its sequences may end early"),
    ],
)
def test_states_that_cannot_be_seen(
    op: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any], reason: str
) -> None:
    node = helper.make_node(op, inputs, outputs, hidden_size=2, **attributes)
    weights = {"w": np.ones((1, 8, 3), np.float32), "r": np.ones((1, 8, 2), np.float32)}
    (only,) = read_model(_recurrent(node, weights)).graph.nodes
    form = form_of(only, 2, weights["r"])
    assert isinstance(form, Form)
    found = inputs_of(only, 2, form)
    assert isinstance(found, str)
    assert reason in found


def test_the_initial_state_is_read_too() -> None:
    node = helper.make_node("LSTM", ["x", "w", "r", "", "", "h0", "c0"], ["y"], hidden_size=2)
    weights = {"w": np.ones((1, 8, 3), np.float32), "r": np.ones((1, 8, 2), np.float32)}
    (only,) = read_model(_recurrent(node, weights)).graph.nodes
    form = form_of(only, 2, weights["r"])
    assert isinstance(form, Form)
    read = inputs_of(only, 2, form)
    assert isinstance(read, list)
    assert [tensor.name for tensor, _ in read] == ["y", "h0"]
    start = np.arange(12, dtype=np.float32).reshape(1, 6, 2)
    ((rows,),) = read[1][1].sample([start], EVERYTHING, np.random.default_rng(0))
    assert sorted(map(tuple, rows)) == sorted(map(tuple, start[0]))
