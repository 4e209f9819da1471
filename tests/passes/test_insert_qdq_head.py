"""insert-qdq: the first convolution of an image that was given channels last, on merged columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt.graph import Model, read_model
from graphopt.passes.quantize import static
from graphopt.passes.quantize.head import MERGED, merged_columns
from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, random_feeds, run, session
from graphopt.target import audit

RNG = np.random.default_rng(0)


def parsed(text: str, weights: dict[str, np.ndarray[Any, Any]], opset: int = 17) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> {text}')
    for name, values in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return read_model(proto)


def convolve(image: np.ndarray[Any, Any], weight: np.ndarray[Any, Any], **attrs: Any) -> np.ndarray[Any, Any]:
    """Return what ONNX Runtime's float convolution makes of an image, channels first."""
    written = ", ".join(f"{name} = {list(value)}" for name, value in attrs.items())
    sizes = ", ".join(map(str, image.shape))
    model = parsed(f"g (float[{sizes}] x) => (float[a, b, c, d] y) {{ y = Conv<{written}>(x, w) }}", {"w": weight})
    return np.asarray(run(session(model, optimize="off"), {"x": image})["y"])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.sampled_from([2, 4]),
    st.tuples(*[st.integers(0, 3)] * 4),
    st.sampled_from([8, 16, 20]),
    st.integers(0, 99),
)
def test_merged_columns_convolve_as_columns_do(
    width: int, height: int, stride: int, pads: tuple[int, int, int, int], columns: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(-9, 10, (1, 3, 6, columns)).astype(np.float32)
    weight = rng.integers(-9, 10, (4, 3, height, width)).astype(np.float32)
    attrs = {"strides": [1, stride], "pads": list(pads)}
    node = parsed(
        f"g (float[1, 3, 6, {columns}] x, float[4, 3, {height}, {width}] w) => (float[a, b, c, d] y) "
        f"{{ y = Conv<strides = [1, {stride}], pads = {list(pads)}>(x, w) }}",
        {},
    ).graph.nodes[0]
    found = merged_columns(node, weight.shape, image.shape)
    assume(found is not None)
    assert found is not None
    plain = convolve(image, weight, **attrs)
    assert plain.shape[2:] == (found.out_height, found.out_width)
    merged = image.transpose(0, 2, 3, 1).reshape(1, 6, columns // MERGED, -1).transpose(0, 3, 1, 2)
    made = convolve(
        np.ascontiguousarray(merged),
        found.weight(weight.astype(np.int8)).astype(np.float32),
        strides=[1, 1],
        pads=[found.above, found.left, found.below, found.right],
    )
    apart = made.transpose(0, 2, 3, 1).reshape(1, found.out_height, found.out_width, 4).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(apart, plain)


def image_model(strides: int = 2, pads: str = "[0, 0, 1, 1]", size: int = 32) -> Model:
    weights: dict[str, np.ndarray[Any, Any]] = {
        "w0": RNG.standard_normal((16, 3, 3, 3)).astype(np.float32) / 5,
        "b0": RNG.standard_normal(16).astype(np.float32),
        "w1": RNG.standard_normal((32, 16, 1, 1)).astype(np.float32) / 4,
        "w2": RNG.standard_normal((16, 32, 1, 1)).astype(np.float32) / 6,
        "lo": np.zeros((), np.float32),
        "hi": np.full((), 6, np.float32),
    }
    return parsed(
        f"g (float[n, {size}, {size}, 3] x) => (float[n, 16, h, v] y) {{ t = Transpose<perm = [0, 3, 1, 2]>(x) "
        f"a = Conv<strides = [{strides}, {strides}], pads = {pads}>(t, w0, b0) c = Clip(a, lo, hi) "
        "d = Conv(c, w1) r = Relu(d) y = Conv(r, w2) }",
        weights,
    )


def quantized(model: Model) -> Model:
    result = model.copy()
    feeds = Feeds.open(list(random_feeds(model, count=8, seed=0, sizes={"n": 1})), model)
    PassManager([InsertQdq()], verify="full").run(result, feeds)
    result.sort()
    return result


def first_weight(model: Model) -> tuple[int, ...]:
    node = next(each for each in model.graph.nodes if each.op == "Conv")
    return tuple(node.inputs[1].inputs[0].inputs[0].shape or ())


@pytest.mark.parametrize("batch", [1, 3])
def test_result_is_the_same_to_the_bit(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model()
    merged = quantized(model)
    assert first_weight(merged) == (32, 12, 3, 2)
    monkeypatch.setattr(static, "merged_columns", lambda *_: None)
    plain = quantized(model)
    assert first_weight(plain) == (16, 3, 3, 3)
    feed = {"x": np.random.default_rng(1).standard_normal((batch, 32, 32, 3)).astype(np.float32)}
    np.testing.assert_array_equal(*(run(session(each), feed)["y"] for each in (merged, plain)))
    assert audit(merged, compare=False).integer == audit(plain, compare=False).integer
    transposes = audit(merged, compare=False).moving.get("Transpose", 0)
    assert transposes <= audit(plain, compare=False).moving.get("Transpose", 0) + 3


@pytest.mark.parametrize(
    ("strides", "pads", "size"), [(1, "[1, 1, 1, 1]", 32), (2, "[0, 0, 1, 1]", 30), (2, "[0, 0, 0, 0]", 32)]
)
def test_what_columns_are_not_merged_for(strides: int, pads: str, size: int) -> None:
    """A stride of 1 makes four times the products; the others end in the middle of a merged column."""
    assert first_weight(quantized(image_model(strides, pads, size)))[1:3] == (3, 3)
