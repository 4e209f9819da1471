"""Types and shapes of the outputs of single operators, with symbolic sizes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from graphopt.analysis import Facts, Types
from inferred_shapes import read, shapes
from shape_agreement import check_run

CASES = {
    "broadcast": (
        "g (float[b, 1, 4] x, float[s, 1] z) => (float y) { y = Add (x, z) }",
        {"y": "[b, s, 4]"},
    ),
    "two unknown sizes are not equal": (
        "g (float[b] x, float[s] z) => (float y) { y = Add (x, z) }",
        {"y": "[?y.0]"},
    ),
    "unnamed input sizes are not equal": (
        "g (float[?, ?] x) => (float y) { t = Transpose (x)\n y = Add (x, t) }",
        {"t": "[?x.1, ?x.0]", "y": "[?y.0, ?y.1]"},
    ),
    "a size beside its capped self is that size": (
        """g (float[b, 8] x, float[64, 8] table) => (float y)
        <int64[1] zero = {0}, int64[1] axis = {0}, int64 first = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            rows = Slice (table, zero, n, axis)
            y = Add (x, rows)
        }""",
        {"rows": "[min(64, b), 8]", "y": "[b, 8]"},
    ),
    "matmul of stacks": (
        "g (float[b, 1, s, 8] x, float[h, 8, 5] w) => (float y) { y = MatMul (x, w) }",
        {"y": "[b, h, s, 5]"},
    ),
    "matmul of vectors": (
        "g (float[8] x, float[8] z, float[b, 8] m) => (float y) { y = MatMul (x, z)\n u = MatMul (m, x) }",
        {"y": "[]", "u": "[b]"},
    ),
    "gemm": (
        "g (float[8, b] x, float[5, 8] w) => (float y) { y = Gemm <transA = 1, transB = 1> (x, w) }",
        {"y": "[b, 5]"},
    ),
    "convolution with strides, pads and dilations": (
        """g (float[b, 6, h, 9] x, float[4, 3, 3, 3] w) => (float y) {
            y = Conv <group = 2, strides = [2, 1], pads = [1, 0, 1, 0], dilations = [1, 2]> (x, w)
            z = Conv <auto_pad = "SAME_UPPER", strides = [2, 2], group = 2> (x, w)
            v = Conv <auto_pad = "VALID", group = 2> (x, w)
        }""",
        {"y": "[b, 4, floordiv(h + 1, 2), 5]", "z": "[b, 4, floordiv(h + 1, 2), 5]", "v": "[b, 4, h - 2, 7]"},
    ),
    "transposed convolution": (
        """g (float[1, 2, h, 4] x, float[2, 3, 3, 3] w) => (float y) {
            y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 0]> (x, w)
        }""",
        {"y": "[1, 3, 2*h, 7]"},
    ),
    "pooling rounds down or up": (
        """g (float[1, 2, 7, 7] x) => (float y) {
            y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
            z = AveragePool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)
            a = GlobalAveragePool (x)
        }""",
        {"y": "[1, 2, 3, 3]", "z": "[1, 2, 4, 4]", "a": "[1, 2, 1, 1]"},
    ),
    "reshape by a computed target": (
        """g (float[b, s, 768] x) => (float y)
        <int64 i0 = {0}, int64 i1 = {1}, int64[1] axis = {0}, int64[1] heads = {12}, int64[1] rest = {-1}> {
            shape = Shape (x)
            batch = Gather (shape, i0)
            length = Gather (shape, i1)
            batch1 = Unsqueeze (batch, axis)
            length1 = Unsqueeze (length, axis)
            target = Concat <axis = 0> (batch1, length1, heads, rest)
            y = Reshape (x, target)
            t = Transpose <perm = [0, 2, 1, 3]> (y)
        }""",
        {"y": "[b, s, 12, 64]", "t": "[b, 12, s, 64]"},
    ),
    "reshape with zeros and a rest": (
        """g (float[b, s, 6] x) => (float y)
        <int64[3] a = {0, 0, -1}, int64[2] c = {-1, 6}, int64[2] d = {0, -1}, int64[4] e = {0, 2, -1, 3}> {
            y = Reshape (x, a)
            z = Reshape (x, c)
            u = Reshape (x, d)
            v = Reshape (x, e)
        }""",
        {"y": "[b, s, 6]", "z": "[b*s, 6]", "u": "[b, 6*s]", "v": "[b, 2, s, 3]"},
    ),
    "reshape by an unknown target keeps the rank": (
        "g (float[b, 6] x, int64[3] target) => (float y) { y = Reshape (x, target) }",
        {"y": "[?y.0, ?y.1, ?y.2]"},
    ),
    "slices": (
        """g (float[s, 10] x) => (float y)
        <int64[1] n1 = {1}, int64[1] n3 = {3}, int64[1] m2 = {-2}, int64[1] all = {9223372036854775807},
         int64[1] a0 = {0}, int64[1] a1 = {1}, int64[1] back = {-1}, int64[1] low = {-9223372036854775807}> {
            tail = Slice (x, n1, all, a0)
            last = Slice (x, m2, all, a0)
            front = Slice (x, a0, n3, a0)
            cut = Slice (x, a0, m2, a0)
            fixed = Slice (x, n1, all, a1, n3)
            flipped = Slice (x, back, low, a0, back)
            y = Slice (x, n3, n1, a0)
        }""",
        {
            "tail": "[max(0, s - 1), 10]",
            "last": "[min(2, s), 10]",
            "front": "[min(3, s), 10]",
            "cut": "[max(0, s - 2), 10]",
            "fixed": "[s, 3]",
            "flipped": "[s, 10]",
        },
    ),
    "concat and split": (
        """g (float[b, 3] x, float[b, 5] z) => (float y) <int64[2] parts = {2, 6}> {
            y = Concat <axis = -1> (x, z)
            p, q = Split <axis = 1> (y, parts)
            r, t = Split <axis = 1> (y)
        }""",
        {"y": "[b, 8]", "p": "[b, 2]", "q": "[b, 6]", "r": "[b, 4]", "t": "[b, 4]"},
    ),
    "concat of symbolic sizes": (
        "g (float[p, 4] past, float[s, 4] x) => (float y) { y = Concat <axis = 0> (past, x) }",
        {"y": "[p + s, 4]"},
    ),
    "gather and friends": (
        """g (float[v, 8] table, int64[b, s] ids, float[b, 8] x) => (float y) <int64[1, 2] where = {0, 1}> {
            y = Gather (table, ids)
            e = GatherElements (x, ids)
            n = GatherND (x, where)
            f = Flatten <axis = 1> (y)
        }""",
        {"y": "[b, s, 8]", "e": "[b, s]", "n": "[1]", "f": "[b, 8*s]"},
    ),
    "expand, tile, pad": (
        """g (float[b, 1] x) => (float y)
        <int64[2] to = {1, 5}, int64[2] twice = {2, 3}, int64[4] pads = {1, 0, 2, -1}, float zero = {0}> {
            y = Expand (x, to)
            t = Tile (x, twice)
            p = Pad (y, pads, zero)
        }""",
        {"y": "[b, 5]", "t": "[2*b, 3]", "p": "[b + 3, 4]"},
    ),
    "resize by scales and by sizes": (
        """g (float[1, 2, h, 5] x) => (float y)
        <float[4] twice = {1, 1, 2, 1.5}, float[4] half = {1, 1, 0.5, 0.5}, int64[4] to = {1, 2, 7, 8}> {
            y = Resize (x, , twice)
            z = Resize (x, , half)
            u = Resize (x, , , to)
        }""",
        {"y": "[1, 2, 2*h, 7]", "z": "[1, 2, floordiv(h, 2), 2]", "u": "[1, 2, 7, 8]"},
    ),
    "reductions": (
        """g (float[b, s, 8] x) => (float y) <int64[1] axis = {-1}, int64[2] axes = {0, 2}> {
            y = ReduceSum <keepdims = 0> (x, axes)
            k = ReduceSum (x, axis)
            m = ReduceMean <axes = [1], keepdims = 0> (x)
            all = ReduceMax <keepdims = 0> (x)
            i = ArgMax <axis = 1, keepdims = 0> (x)
        }""",
        {"y": "[s]", "k": "[b, s, 1]", "m": "[b, 8]", "all": "[]", "i": "[b, 8]"},
    ),
    "tensors from shapes": (
        """g (float[s, 4] x) => (float y) <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}> {
            shape = Shape (x)
            n = Gather (shape, zero)
            r = Range (zero, n, one)
            n1 = Gather (shape, first)
            c = ConstantOfShape (n1)
            y = ConstantOfShape (shape)
            size = Size (x)
        }""",
        {"r": "[s]", "c": "[s]", "y": "[s, 4]", "size": "[]"},
    ),
    "quantization": (
        """g (float[b, 8] x, float scale, int8 zero) => (float y) {
            q = QuantizeLinear (x, scale, zero)
            y = DequantizeLinear (q, scale, zero)
            dq, ds, dz = DynamicQuantizeLinear (x)
        }""",
        {"q": "[b, 8]", "y": "[b, 8]", "dq": "[b, 8]", "ds": "[]", "dz": "[]"},
    ),
    "recurrent layers": (
        """g (float[s, b, 4] x, float[2, 24, 4] w, float[2, 24, 6] r) => (float y) {
            y, h, c = LSTM <hidden_size = 6, direction = "bidirectional"> (x, w, r)
        }""",
        {"y": "[s, 2, b, 6]", "h": "[2, b, 6]", "c": "[2, b, 6]"},
    ),
    "how many elements are found is not known": (
        "g (float[b, 4] x) => (int64 y) { n = NonZero (x)\n m = NonZero (x)\n y = Concat <axis = 1> (n, m) }",
        {"n": "[2, ?n.1]", "m": "[2, ?m.1]", "y": "[2, ?m.1 + ?n.1]"},
    ),
    "an operator without a rule": (
        """g (float[b, 2, 8, 8] x, float[n, 4] rois, int64[n] at) => (float y) {
            y = RoiAlign <output_height = 3, output_width = 2> (x, rois, at)
        }""",
        {"y": "[n, 2, 3, 2]"},
    ),
    "einsum": (
        'g (float[b, s, 8] x, float[8, 5] w) => (float y) { y = Einsum <equation = "bsi,io->bso"> (x, w) }',
        {"y": "[b, s, 5]"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_of_the_outputs(name: str) -> None:
    body, expected = CASES[name]
    model = read(body)
    found = shapes(model)
    assert {name: found[name] for name in expected} == expected
    assert Facts(model).get(Types).failures == ()


def test_element_types() -> None:
    model = read(
        """g (float[b, 4] x, float16[4] h, float scale, int8 zero) => (float y) {
            shape = Shape (x)
            cast = Cast <to = 7> (h)
            less = Less (x, x)
            q = QuantizeLinear (x, scale, zero)
            u = QuantizeLinear (x, scale)
            i = MatMulInteger (q, q)
            vals, at = TopK (x, shape)
            y = Dropout (x)
        }""",
        opset=13,
    )
    types = Facts(model).get(Types)
    found = {t.name: types.dtype(t) for node in model.graph.nodes for t in node.outputs}
    assert found["shape"] == found["cast"] == found["at"] == TensorProto.INT64
    assert found["less"] == TensorProto.BOOL
    assert found["q"] == TensorProto.INT8
    assert found["u"] == TensorProto.UINT8
    assert found["i"] == TensorProto.INT32
    assert found["vals"] == found["y"] == TensorProto.FLOAT


def test_old_opsets_have_attributes_where_new_ones_have_inputs() -> None:
    model = read(
        """g (float[2, 6] x) => (float y) {
            s = Slice <starts = [1], ends = [5], axes = [1]> (x)
            q = Unsqueeze <axes = [0]> (s)
            p = Pad <pads = [0, 1, 0, 0, 0, 2]> (q)
            z = Squeeze <axes = [0]> (p)
            u, v = Split <axis = 1, split = [2, 3]> (z)
            t, i = TopK <k = 1> (z)
            r = Upsample <scales = [2.0, 1.0]> (z)
            y = Identity (r)
        }""",
        opset=8,
    )
    found = shapes(model)
    assert (found["s"], found["p"], found["z"]) == ("[2, 4]", "[1, 3, 6]", "[3, 6]")
    assert (found["u"], found["v"], found["t"]) == ("[3, 2]", "[3, 3]", "[3, 1]")


def test_a_transposed_convolution_whose_kernel_is_below_its_stride_agrees_with_a_run() -> None:
    """Its padding would be negative: ONNX Runtime gives 9 columns and not 10."""
    model = read(
        """g (float[1, 2, 2, 5] x, float[2, 1, 1, 1] w, float[2, 1, 1, 2] v) => (float y, float z) {
            y = ConvTranspose <auto_pad = "SAME_UPPER", strides = [1, 2]> (x, w)
            z = ConvTranspose <auto_pad = "SAME_UPPER", strides = [1, 2]> (x, v)
        }"""
    )
    feed = {name: np.ones(shape, np.float32) for name, shape in (("x", (1, 2, 2, 5)), ("w", (2, 1, 1, 1)))}
    assert check_run(model, feed | {"v": np.ones((2, 1, 1, 2), np.float32)}).unknown_rank == 0
    assert shapes(model)["z"] == "[1, 1, 2, 10]"


@pytest.mark.parametrize("name", CASES)
def test_onnx_finds_no_fault_in_the_cases(name: str) -> None:
    """The cases themselves are right: onnx infers them strictly, which raises where a declared shape is wrong."""
    inferred = onnx.shape_inference.infer_shapes(read(CASES[name][0]).to_proto(), strict_mode=True, data_prop=True)
    assert all(each.type.WhichOneof("value") for each in inferred.graph.output)
