"""Small networks of every shape that channels take, and the comparison of a model cut down with it masked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from graphopt.analysis import Facts
from graphopt.analysis.channel_groups import ChannelGroups, Role
from graphopt.graph import Model, Rewriter, constant_value, read_model
from graphopt.passes.prune.channels.slicing import slice_units
from graphopt.runtime import run, session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Units = NDArray[np.int64]


def network(text: str, weights: Mapping[str, Any], *, opset: int = 17, seed: int = 0) -> Model:
    """Return a model of a graph in text form.

    Args:
        text: The graph as `onnx.parser` reads it.
        weights: Initializers by name: a shape for random floats, a list for int64 values, an array as it is.
        opset: Version of the standard operators.
        seed: Decides the random values.
    """
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    draw = np.random.default_rng(seed)
    for name, value in weights.items():
        if isinstance(value, tuple):
            array = (draw.standard_normal(value) / 2).astype(np.float32)
        else:
            array = np.array(value, np.int64) if isinstance(value, list) else np.asarray(value)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto, full_check=True)
    return read_model(proto)


def groups_of(model: Model) -> ChannelGroups:
    """Return the analysis."""
    return Facts(model).get(ChannelGroups)


def free_units(channels: ChannelGroups, draw: np.random.Generator, *, only: Sequence[int] | None = None) -> Units:
    """Return a random choice of units, some of each group that may lose any, never all of one."""
    chosen = []
    for place, group in enumerate(channels.groups):
        if not group.reason and len(group) > 1 and (only is None or place in only):
            chosen.append(draw.permutation(group.units)[: draw.integers(1, len(group))])
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def masked(model: Model, removed: Units) -> Model:
    """Return a copy whose layers read nothing of the removed units: zeros in the columns of their weights."""
    copy = model.copy()
    channels = groups_of(copy)
    with Rewriter(copy) as rewriter:
        for cut in channels.cuts:
            value = constant_value(cut.node.inputs[cut.index])
            if cut.role is Role.CONSUME and value is not None:
                shape = [-1 if axis == cut.axis else 1 for axis in range(value.ndim)]
                stays = channels.stays(cut.labels, removed).reshape(shape)
                zeroed = np.where(stays, value, np.zeros((), value.dtype))
                rewriter.set_input(cut.node, cut.index, rewriter.constant(zeroed, near=cut.node))
    return copy


def sliced(model: Model, removed: Units) -> Model:
    """Return a copy without the removed units."""
    copy = model.copy()
    channels = groups_of(copy)
    with Rewriter(copy) as rewriter:
        slice_units(rewriter, channels, removed)
    return copy


def outputs_of(model: Model, feed: Mapping[str, Any]) -> list[NDArray[Any]]:
    """Return what a model computes."""
    names = [tensor.name for tensor in model.graph.outputs]
    found = run(session(model), dict(feed), names)
    return [np.asarray(found[name]) for name in names]


def difference(one: Model, other: Model, feed: Mapping[str, Any]) -> float:
    """Return the largest difference of the outputs relative to the largest value of each."""
    pairs = zip(outputs_of(one, feed), outputs_of(other, feed), strict=True)
    worst = 0.0
    for a, b in pairs:
        assert a.shape == b.shape
        if a.size:
            scale = 1.0 + float(np.abs(a).max())
            worst = max(worst, float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) / scale)
    return worst


NETWORKS: dict[str, Any] = {
    "residual": lambda: network(
        """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
            a = Conv<pads=[1,1,1,1]>(x, w0, b0)
            h = Conv<pads=[1,1,1,1]>(a, w1, b1)
            n = BatchNormalization(h, s, t, m, v)
            p = PRelu(n, slope)
            r = Conv<pads=[1,1,1,1]>(p, w2)
            c = Add(r, a)
            y = Conv(c, w3, b3)
        }""",
        {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (12, 8, 3, 3), "b1": (12,), "s": (12,), "t": (12,), "m": (12,)}
        | {"v": np.linspace(0.5, 2, 12, dtype=np.float32), "slope": (12, 1, 1), "w2": (8, 12, 3, 3)}
        | {"w3": (4, 8, 1, 1), "b3": (4,)},
    ),
    "padded shortcut": lambda: network(
        """g (float[N,3,6,6] x) => (float[N,4] y) {
            a = Conv<pads=[1,1,1,1]>(x, w0, b0)
            s = Slice(a, starts, ends, axes, steps)
            p = Pad(s, pads)
            r = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w1, b1)
            c = Add(p, r)
            q = Relu(c)
            m = GlobalAveragePool(q)
            f = Flatten(m)
            y = Gemm<transB=1>(f, w2, b2)
        }""",
        {"w0": (4, 3, 3, 3), "b0": (4,), "starts": [0, 0], "ends": [99, 99], "axes": [2, 3], "steps": [2, 2]}
        | {"pads": [0, 2, 0, 0, 0, 3, 0, 0], "w1": (9, 4, 3, 3), "b1": (9,), "w2": (4, 9), "b2": (4,)},
    ),
    "concat and split": lambda: network(
        """g (float[N,3,5,5] x) => (float[N,2,5,5] y, float[N,2,5,5] z) {
            a = Conv(x, wa, ba)
            b = Conv(x, wb)
            c = Concat<axis=1>(a, b)
            r = Relu(c)
            u, v = Split<axis=1>(r, sizes)
            y = Conv(u, wy)
            z = Conv(v, wz)
        }""",
        {"wa": (7, 3, 1, 1), "ba": (7,), "wb": (5, 3, 1, 1), "sizes": [4, 8], "wy": (2, 4, 1, 1), "wz": (2, 8, 1, 1)},
    ),
    "even split": lambda: network(
        """g (float[N,3,5,5] x) => (float[N,2,5,5] y) {
            a = Conv(x, wa)
            u, v = Split<axis=1, num_outputs=2>(a)
            p = Conv(u, wp)
            q = Conv(v, wq)
            y = Add(p, q)
        }""",
        {"wa": (8, 3, 1, 1), "wp": (2, 4, 1, 1), "wq": (2, 4, 1, 1)},
        opset=18,
    ),
    "gate": lambda: network(
        """g (float[N,S,6] x) => (float[N,S,6] y) {
            a = MatMul(x, wa)
            b = MatMul(x, wb)
            c = Sigmoid(a)
            d = Mul(c, b)
            e = Add(d, bias)
            f = MatMul(e, wc)
            y = Add(f, x)
        }""",
        {"wa": (6, 10), "wb": (6, 10), "bias": (10,), "wc": (10, 6)},
    ),
    "slice": lambda: network(
        """g (float[N,3,5,5] x) => (float[N,2,5,5] y) {
            a = Conv(x, wa)
            u = Slice(a, starts, ends, axes)
            v = Slice(a, zero, three, axes)
            p = Conv(u, wp)
            q = Conv(v, wq)
            y = Add(p, q)
        }""",
        {"wa": (8, 3, 1, 1), "starts": [-5], "ends": [1 << 62], "axes": [1], "zero": [0], "three": [3]}
        | {"wp": (2, 5, 1, 1), "wq": (2, 3, 1, 1)},
    ),
    "depthwise": lambda: network(
        """g (float[N,3,6,6] x) => (float[N,4] y) {
            a = Conv(x, w0, b0)
            c = Clip(a, low, high)
            d = Conv<group=8, pads=[1,1,1,1]>(c, w1, b1)
            e = Conv(d, w2, b2)
            p = AveragePool<kernel_shape=[6,6]>(e)
            r = Reshape(p, shape)
            y = Gemm(r, w3, b3)
        }""",
        {"w0": (8, 3, 1, 1), "b0": (8,), "low": np.float32(0), "high": np.float32(6), "w1": (16, 1, 3, 3), "b1": (16,)}
        | {"w2": (6, 16, 1, 1), "b2": (6,), "shape": [-1, 6], "w3": (6, 4), "b3": (4,)},
    ),
    "many groups": lambda: network(
        """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
            a = Conv(x, w0, b0)
            d = Conv<group=4, pads=[1,1,1,1]>(a, w1, b1)
            y = Conv(d, w2)
        }""",
        {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (12, 2, 3, 3), "b1": (12,), "w2": (4, 12, 1, 1)},
    ),
    "few groups and shuffle": lambda: network(
        """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
            a = Conv(x, w0, b0)
            d = Conv<group=2, pads=[1,1,1,1]>(a, w1, b1)
            r = Reshape(d, apart)
            t = Transpose<perm=[0,2,1,3,4]>(r)
            s = Reshape(t, together)
            y = Conv(s, w2)
        }""",
        {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (12, 4, 3, 3), "b1": (12,), "w2": (4, 12, 1, 1)}
        | {"apart": [0, 2, 6, 6, 6], "together": [0, 12, 6, 6]},
    ),
    "flatten": lambda: network(
        """g (float[N,1,6,6] x) => (float[N,4] y) {
            a = Conv(x, w0, b0)
            n = InstanceNormalization(a, s, t)
            p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(n)
            f = Flatten(p)
            h = Gemm<transB=1>(f, w1, b1)
            k = Tanh(h)
            y = MatMul(k, w2)
        }""",
        {"w0": (6, 1, 3, 3), "b0": (6,), "s": (6,), "t": (6,), "w1": (10, 24), "b1": (10,), "w2": (10, 4)},
    ),
    "transposed": lambda: network(
        """g (float[N,3,4,4] x) => (float[N,2,8,8] y) {
            a = Conv(x, w0, b0)
            u = ConvTranspose<strides=[2,2]>(a, w1, b1)
            r = Resize(u, , scales)
            q = Resize(r, , , sizes)
            y = Conv(q, w2)
        }""",
        {"w0": (6, 3, 1, 1), "b0": (6,), "w1": (6, 5, 2, 2), "b1": (5,), "w2": (2, 5, 1, 1), "sizes": [1, 5, 8, 8]}
        | {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "depth to space": lambda: network(
        """g (float[N,3,4,4] x) => (float[N,2,4,4] y) {
            a = Conv(x, w0, b0)
            d = DepthToSpace<blocksize=2, mode="CRD">(a)
            c = Conv(d, w1)
            e = Relu(c)
            s = SpaceToDepth<blocksize=2>(e)
            y = Conv(s, w2)
        }""",
        {"w0": (12, 3, 1, 1), "b0": (12,), "w1": (4, 3, 1, 1), "w2": (2, 16, 1, 1)},
    ),
    "group normalization": lambda: network(
        """g (float[N,3,4,4] x) => (float[N,2,4,4] y) {
            a = Conv(x, w0, b0)
            n = GroupNormalization<num_groups=3>(a, s, t)
            y = Conv(n, w1)
        }""",
        {"w0": (12, 3, 1, 1), "b0": (12,), "s": (12,), "t": (12,), "w1": (2, 12, 1, 1)},
        opset=21,
    ),
    "attention": lambda: network(
        """g (float[N,S,12] x) => (float[N,S,12] y) {
            p = MatMul(x, w)
            b = Add(p, bias)
            r = Reshape(b, apart)
            t = Transpose<perm=[0,2,1,3]>(r)
            q, k, v = Split<axis=1>(t, sizes)
            kt = Transpose<perm=[0,1,3,2]>(k)
            s = MatMul(q, kt)
            a = Softmax<axis=-1>(s)
            c = MatMul(a, v)
            u = Transpose<perm=[0,2,1,3]>(c)
            m = Reshape(u, together)
            o = MatMul(m, wo)
            z = Add(o, x)
            y = LayerNormalization(z, g0, g1)
        }""",
        {
            "w": (12, 36),
            "bias": (36,),
            "apart": [0, 0, 12, 3],
            "sizes": [4, 4, 4],
            "together": [0, 0, 12],
            "wo": (12, 12),
        }
        | {"g0": (12,), "g1": (12,)},
    ),
    "packed attention": lambda: network(
        """g (float[N,5,12] x) => (float[N,5,12] y) {
            p = MatMul(x, w)
            r = Reshape(p, apart)
            t = Transpose<perm=[2,0,3,1,4]>(r)
            q = Gather<axis=0>(t, zero)
            k = Gather<axis=0>(t, one)
            v = Gather<axis=0>(t, two)
            kt = Transpose<perm=[0,1,3,2]>(k)
            s = MatMul(q, kt)
            a = Softmax<axis=-1>(s)
            c = MatMul(a, v)
            u = Transpose<perm=[0,2,1,3]>(c)
            m = Reshape(u, together)
            y = MatMul(m, wo)
        }""",
        {"w": (12, 36), "apart": [0, 5, 3, 4, 3], "zero": np.array(0), "one": np.array(1), "two": np.array(2)}
        | {"together": [0, 5, -1], "wo": (12, 12)},
    ),
    "shared keys": lambda: network(
        """g (float[N,S,12] x) => (float[N,S,12] y) {
            q0 = MatMul(x, wq)
            k0 = MatMul(x, wk)
            v0 = MatMul(x, wv)
            q1 = Reshape(q0, four)
            k1 = Reshape(k0, two)
            v1 = Reshape(v0, two)
            q = Transpose<perm=[0,2,1,3]>(q1)
            k2 = Transpose<perm=[0,2,3,1]>(k1)
            v2 = Transpose<perm=[0,2,1,3]>(v1)
            k = Gather<axis=1>(k2, repeat)
            v3 = Unsqueeze(v2, axis)
            n = Shape<start=0, end=1>(v3)
            l = Shape<start=3, end=4>(v3)
            wide = Concat<axis=0>(n, heads, twice, l, width)
            v4 = Expand(v3, wide)
            v = Reshape(v4, flat)
            s = MatMul(q, k)
            a = Softmax<axis=-1>(s)
            c = MatMul(a, v)
            u = Transpose<perm=[0,2,1,3]>(c)
            m = Reshape(u, together)
            y = MatMul(m, wo)
        }""",
        {"wq": (12, 12), "wk": (12, 6), "wv": (12, 6), "wo": (12, 12), "four": [0, 0, 4, 3], "two": [0, 0, 2, 3]}
        | {"repeat": [0, 0, 1, 1], "axis": [2], "heads": [2], "twice": [2], "width": [3], "together": [0, 0, 12]}
        | {"flat": [0, 4, -1, 3]},
    ),
    "embedding": lambda: network(
        """g (int64[N,S] i) => (float[N,S,4] y) {
            e = Gather(table, i)
            p = Add(e, place)
            y = MatMul(p, w)
        }""",
        {"table": (9, 8), "place": (8,), "w": (8, 4)},
    ),
    "squeeze and excite": lambda: network(
        """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
            a = Conv(x, w0, b0)
            m = ReduceMean<axes=[2,3]>(a)
            c = Conv(m, w1)
            r = Relu(c)
            d = Conv(r, w2, b2)
            s = HardSigmoid(d)
            e = Mul(a, s)
            y = Conv(e, w3)
        }""",
        {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (6, 8, 1, 1), "w2": (8, 6, 1, 1), "b2": (8,), "w3": (4, 8, 1, 1)},
    ),
}
"""Networks that can lose channels, by what is special in them."""

FEEDS: dict[str, Any] = {
    name: np.random.default_rng(5).standard_normal((2, 5, 12) if "attention" in name or "keys" in name else shape)
    for name, shape in {
        **dict.fromkeys(NETWORKS, (2, 3, 6, 6)),
        **dict.fromkeys(("concat and split", "even split", "slice"), (2, 3, 5, 5)),
        **dict.fromkeys(("transposed", "depth to space", "group normalization"), (1, 3, 4, 4)),
        "flatten": (2, 1, 6, 6),
        "gate": (2, 4, 6),
    }.items()
}
"""One input per network."""


def feed_of(name: str) -> dict[str, Any]:
    """Return a feed for one of the networks."""
    if name == "embedding":
        return {"i": np.arange(6).reshape(2, 3)}
    return {"x": FEEDS[name].astype(np.float32)}
