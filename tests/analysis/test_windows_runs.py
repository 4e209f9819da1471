"""How many windows fit: convolutions, pooling and their inverse against ONNX Runtime over random attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.graph import read_model
from shape_agreement import agreement, observe

_axis = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2))
_paddings = st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])


def _attributes(axes: list[tuple[int, int, int, int, int]], automatic: str) -> dict[str, Any]:
    kernels, strides, dilations, before, after = (list(column) for column in zip(*axes, strict=True))
    attrs: dict[str, Any] = {"kernel_shape": kernels, "strides": strides, "dilations": dilations}
    if automatic == "NOTSET":
        # A pad may not reach the window's size, so that every window holds data.
        limits = [(kernel - 1) * dilation for kernel, dilation in zip(kernels, dilations, strict=True)]
        attrs["pads"] = [min(pair) for pair in zip(before, limits, strict=True)]
        attrs["pads"] += [min(pair) for pair in zip(after, limits, strict=True)]
    else:
        attrs["auto_pad"] = automatic
    if automatic.startswith("SAME"):
        # ONNX Runtime refuses dilations here, and strides beyond the window: they would need a negative pad.
        attrs["dilations"] = [1] * len(axes)
        attrs["strides"] = [min(pair) for pair in zip(strides, kernels, strict=True)]
    return attrs


def _model(op: str, attrs: dict[str, Any], weight: list[int] | None) -> onnx.ModelProto:
    rank = len(attrs["kernel_shape"])
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 2, *[f"s{i}" for i in range(rank)]])]
    if weight is not None:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, weight))
    node = helper.make_node(op, [info.name for info in inputs], ["y"], **attrs)
    graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info("y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def _check(op: str, attrs: dict[str, Any], weight: list[int] | None, sizes: list[int]) -> None:
    proto = _model(op, attrs, weight)
    model = read_model(proto)
    feed = {"x": np.zeros((2, 2, *sizes), np.float32)}
    if weight is not None:
        feed["w"] = np.zeros(weight, np.float32)
    reach = [size - (k - 1) * d for size, k, d in zip(sizes, attrs["kernel_shape"], attrs["dilations"], strict=True)]
    if op != "ConvTranspose" and min(reach) < 1:
        return  # a window that does not fit: runtimes disagree
    found = agreement(model, observe(proto, feed))
    assert found.wrong == []
    assert found.unresolved == 0


@settings(max_examples=80, deadline=None)
@given(st.lists(_axis, min_size=1, max_size=2), _paddings, st.lists(st.integers(1, 14), min_size=2, max_size=2))
def test_convolutions(axes: list[tuple[int, int, int, int, int]], automatic: str, sizes: list[int]) -> None:
    attrs = _attributes(axes, automatic)
    _check("Conv", attrs, [3, 2, *attrs["kernel_shape"]], sizes[: len(axes)])


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["MaxPool", "AveragePool"]),
    st.lists(_axis, min_size=1, max_size=2),
    _paddings,
    st.booleans(),
    st.lists(st.integers(1, 14), min_size=2, max_size=2),
)
def test_pooling(
    op: str, axes: list[tuple[int, int, int, int, int]], automatic: str, ceil: bool, sizes: list[int]
) -> None:
    attrs = _attributes(axes, automatic)
    if automatic == "NOTSET":
        rank = len(axes)
        attrs["pads"] = [min(pad, attrs["kernel_shape"][i % rank] - 1) for i, pad in enumerate(attrs["pads"])]
    _check(op, {**attrs, "ceil_mode": int(ceil)}, None, sizes[: len(axes)])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(_axis, min_size=1, max_size=2),
    st.sampled_from(["NOTSET", "VALID"]),
    st.integers(0, 1),
    st.lists(st.integers(3, 9), min_size=2, max_size=2),
)
def test_transposed_convolutions(
    axes: list[tuple[int, int, int, int, int]], automatic: str, extra: int, sizes: list[int]
) -> None:
    attrs = _attributes(axes, automatic)
    attrs["output_padding"] = [min(extra, stride - 1) for stride in attrs["strides"]]
    _check("ConvTranspose", attrs, [2, 3, *attrs["kernel_shape"]], sizes[: len(axes)])
