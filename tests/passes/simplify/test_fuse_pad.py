"""fuse-pad: what takes over a Pad, and every condition it refuses."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt.passes.simplify.fuse_pad import FusePad
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = {"float32": "float", "uint8": "uint8", "int8": "int8", "float16": "float16"}


def model(
    nodes: str,
    x: tuple[Any, ...] = (1, 2, 6),
    *,
    opset: int = 17,
    dtype: str = "float32",
    more: str = "",
    **constants: Any,
) -> onnx.ModelProto:
    """Return a model; lists become int64 constants, numbers scalars of the type, tuples random weights of that shape."""
    rank = len(x)
    kind = NAMES[dtype]
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({kind}[{", ".join(map(str, x))}] x{more}) => ({kind}[{", ".join(f"d{i}" for i in range(rank))}] y) {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, value in constants.items():
        if isinstance(value, list):
            array = np.array(value, np.int64)
        elif isinstance(value, tuple):
            array = rng.normal(size=value).astype(dtype)
        else:
            array = np.array(value, dtype)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


P = [0, 0, 1, 0, 0, 2]
MIN = float("-inf")
FUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Conv": ({"nodes": "h = Pad(x, p) y = Conv(h, w)", "p": P, "w": (3, 2, 2)}, ["Conv"]),
    "Conv with a padding of its own": ({"nodes": "h = Pad(x, p, z) y = Conv<pads = [1, 0], strides = [2]>(h, w)", "p": P, "z": 0.0, "w": (3, 2, 3)}, ["Conv"]),
    "Conv without padding": ({"nodes": 'h = Pad<mode = "constant">(x, p) y = Conv<auto_pad = "VALID">(h, w)', "p": P, "w": (3, 2, 2)}, ["Conv"]),
    "Conv, more padding than kernel": ({"nodes": "h = Pad(x, p) y = Conv(h, w)", "p": [0, 0, 5, 0, 0, 3], "w": (3, 2, 2)}, ["Conv"]),
    "Conv of unknown size": ({"nodes": "h = Pad(x, p) y = Conv(h, w)", "x": ("n", 2, "l"), "p": P, "w": (3, 2, 2)}, ["Conv"]),
    "grouped Conv with two axes": ({"nodes": "h = Pad(x, p) y = Conv<group = 2>(h, w)", "x": ("n", 2, 4, 3), "p": [0, 0, 1, 2, 0, 0, 0, 1], "w": (4, 1, 2, 2)}, ["Conv"]),
    "two Conv": ({"nodes": "h = Pad(x, p) a = Conv(h, w) b = Conv(h, v) y = Add(a, b)", "p": P, "w": (3, 2, 2), "v": (3, 2, 2)}, ["Conv", "Conv", "Add"]),
    "two Pads": ({"nodes": "a = Pad(x, p) h = Pad(a, p) y = Conv(h, w)", "p": P, "w": (3, 2, 2)}, ["Conv"]),
    "axes": ({"nodes": "h = Pad(x, p, z, a) y = Conv(h, w)", "p": [1, 2], "a": [-1], "z": 0.0, "w": (3, 2, 2), "opset": 18}, ["Conv"]),
    "axes in another order": ({"nodes": "h = Pad(x, p, , a) y = Conv(h, w)", "x": (1, 2, 4, 5), "p": [1, 2, 3, 0], "a": [3, 2], "w": (3, 2, 2, 2), "opset": 18}, ["Conv"]),
    "attributes": ({"nodes": "h = Pad<pads = [0, 0, 1, 0, 0, 2], value = 0.0>(x) y = Conv(h, w)", "w": (3, 2, 2), "opset": 9}, ["Conv"]),
    "AveragePool": ({"nodes": "h = Pad(x, p) y = AveragePool<kernel_shape = [3]>(h)", "p": P}, ["AveragePool"]),
    "AveragePool that counts": ({"nodes": "h = Pad(x, p) y = AveragePool<kernel_shape = [4], pads = [1, 1], count_include_pad = 1>(h)", "p": P}, ["AveragePool"]),
    "MaxPool of minus infinity": ({"nodes": "h = Pad(x, p, z) y = MaxPool<kernel_shape = [3], strides = [2]>(h)", "p": P, "z": MIN}, ["MaxPool"]),
    "MaxPool of minus infinity and padding": ({"nodes": "h = Pad(x, p, z) y = MaxPool<kernel_shape = [4], pads = [1, 1]>(h)", "p": P, "z": MIN}, ["MaxPool"]),
    "MaxPool behind Relu": ({"nodes": "r = Relu(x) h = Pad(r, p) y = MaxPool<kernel_shape = [3]>(h)", "p": P}, ["Relu", "MaxPool"]),
    "MaxPool behind Sigmoid, negative value": ({"nodes": "r = Sigmoid(x) h = Pad(r, p, z) y = MaxPool<kernel_shape = [3]>(h)", "p": P, "z": -1.0}, ["Sigmoid", "MaxPool"]),
    "MaxPool of bytes": ({"nodes": "h = Pad(x, p) y = MaxPool<kernel_shape = [3]>(h)", "p": P, "dtype": "uint8"}, ["MaxPool"]),
    "MaxPool of signed bytes": ({"nodes": "h = Pad(x, p, z) y = MaxPool<kernel_shape = [3]>(h)", "p": P, "z": -128, "dtype": "int8"}, ["MaxPool"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FUSED)
def test_pad_is_taken_over(case: str) -> None:
    options, ops = FUSED[case]
    # onnx.reference ends a padded MaxPool elsewhere
    done = check_pass(
        FusePad(), model(**options), samples=3, interpreted="MaxPool" not in ops and "AveragePool" not in ops
    )
    assert done.ops == ops
    assert not done.skips


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(FusePad(), model("h = Pad(x, p) y = Conv<pads = [1, 0]>(h, w)", p=P, w=(1, 2, 1))).text)


KEPT: dict[str, tuple[dict[str, Any], str]] = {
    "another value": ({"nodes": "h = Pad(x, p, z) y = Conv(h, w)", "p": P, "z": 1.0, "w": (3, 2, 2)}, "the Pad with 1.0"),
    "cut": ({"nodes": "h = Pad(x, p) y = Conv(h, w)", "p": [0, 0, -1, 0, 0, 2], "w": (3, 2, 2)}, "cuts off"),
    "channels": ({"nodes": "h = Pad(x, p) y = Conv(h, w)", "p": [0, 1, 1, 0, 0, 2], "w": (3, 3, 2)}, "batch or the channels"),
    "batch": ({"nodes": "h = Pad(x, p) y = Conv(h, w)", "p": [0, 0, 1, 1, 0, 2], "w": (3, 2, 2)}, "batch or the channels"),
    "reflection": ({"nodes": 'h = Pad<mode = "reflect">(x, p) y = Conv(h, w)', "p": P, "w": (3, 2, 2)}, "the mode"),
    "size of the output given": ({"nodes": 'h = Pad(x, p) y = Conv<auto_pad = "SAME_UPPER">(h, w)', "p": P, "w": (3, 2, 2)}, "SAME_UPPER"),
    "sizes that are fed": ({"nodes": "h = Pad(x, q) y = Conv(h, w)", "more": ", int64[6] q", "w": (3, 2, 2)}, "sizes are not constant"),
    "value that is fed": ({"nodes": "h = Pad(x, p, q) y = Conv(h, w)", "more": ", float q", "p": P, "w": (3, 2, 2)}, "a constant that is known"),
    "AveragePool of another value": ({"nodes": "h = Pad(x, p, z) y = AveragePool<kernel_shape = [3]>(h)", "p": P, "z": 1.0}, "the Pad with 1.0"),
    "AveragePool that does not count": ({"nodes": "h = Pad(x, p) y = AveragePool<kernel_shape = [4], pads = [1, 1]>(h)", "p": P}, "does not count"),
    "AveragePool that rounds up": ({"nodes": "h = Pad(x, p) y = AveragePool<kernel_shape = [3], strides = [2], ceil_mode = 1>(h)", "p": P}, "ceil_mode"),
    "more padding than kernel": ({"nodes": "h = Pad(x, p) y = AveragePool<kernel_shape = [2]>(h)", "p": P}, "smaller than the kernel"),
    "zeros before a MaxPool": ({"nodes": "h = Pad(x, p) y = MaxPool<kernel_shape = [3]>(h)", "p": P}, "leaves its padding out"),
    "ones before a MaxPool behind Relu": ({"nodes": "r = Relu(x) h = Pad(r, p, z) y = MaxPool<kernel_shape = [3]>(h)", "p": P, "z": 0.5}, "leaves its padding out"),
    "least finite number": ({"nodes": "h = Pad(x, p, z) y = MaxPool<kernel_shape = [3]>(h)", "p": P, "z": -3.4028234663852886e38}, "leaves its padding out"),
    "zeros before a MaxPool of signed bytes": ({"nodes": "h = Pad(x, p) y = MaxPool<kernel_shape = [3]>(h)", "p": P, "dtype": "int8"}, "leaves its padding out"),
    "indices": ({"nodes": "h = Pad(x, p, z) y, i = MaxPool<kernel_shape = [3]>(h) j = Cast<to = 1>(i) k = Neg(j)", "p": P, "z": MIN}, "indices are read"),
    "image that may be empty": ({"nodes": "h = Pad(x, p, z) y = MaxPool<kernel_shape = [3]>(h)", "x": (1, 2, "l"), "p": P, "z": MIN}, "may be empty"),
    "dilations": ({"nodes": "h = Pad(x, p, z) y = MaxPool<kernel_shape = [3], dilations = [2]>(h)", "p": P, "z": MIN}, "dilations"),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_pad_that_cannot_be_taken_over_stays_with_the_reason(case: str) -> None:
    options, words = KEPT[case]
    done = run_pass(FusePad(), model(**options), verify="fast")
    assert done.record.patches == 0
    assert any(words in reason for reason in done.skips.values()), done.skips


def test_pad_that_others_read_stays() -> None:
    done = check_pass(
        FusePad(), model("h = Pad(x, p) a = Conv(h, w) b = Relu(h) y = Concat<axis = 2>(a, b)", p=P, w=(2, 2, 2))
    )
    assert done.ops == ["Pad", "Conv", "Relu", "Concat"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_generated_pads_hold_the_rounding_bound(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 2))
    pads = [data.draw(st.integers(0, 2)) for _ in range(2 * rank)]
    full = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
    own = [data.draw(st.integers(0, 1)) for _ in range(2 * rank)]
    kernel = [data.draw(st.integers(2, 4)) for _ in range(rank)]
    strides = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    op = data.draw(st.sampled_from(["Conv", "AveragePool", "MaxPool"]))
    value = data.draw(st.sampled_from([0.0, MIN, -1.0])) if op == "MaxPool" else 0.0
    before = data.draw(st.sampled_from(["Relu", "Tanh", "Sigmoid"]))
    counts = f", count_include_pad = {data.draw(st.integers(0, 1))}" if op == "AveragePool" else ""
    ceil = f", ceil_mode = {data.draw(st.integers(0, 1))}" if op != "Conv" else ""
    if op != "Conv":
        own = [min(pad, size - 1) for pad, size in zip(own, kernel * 2, strict=True)]
    nodes = f"r = {before}(x) h = Pad(r, p, z) y = {op}<kernel_shape = {kernel}, strides = {strides}, pads = {own}{counts}{ceil}>(h{', w' if op == 'Conv' else ''})"
    x = (1, 2, *[data.draw(st.integers(4, 6)) for _ in range(rank)])
    check_pass(FusePad(), model(nodes, x, p=full, z=value, w=(2, 2, *kernel)), samples=1, interpreted=op == "Conv")
