"""fuse-instance-norm: a normalization over all axes but the first two becomes one InstanceNormalization."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt.graph import Model, read_model
from graphopt.passes.fuse.fuse_instance_norm import FuseInstanceNorm
from graphopt.passes.fuse.fuse_layer_norm import FuseLayerNorm
from graphopt.rewrite.manager import PassManager
from pass_oracle import check_pass, parse, run_pass

STEPS = "e = Constant<value_floats = [0.00001]>() two = Constant<value_float = 2.0>() m = ReduceMean<axes = [2, 3]>(x) c = Sub(x, m) q = Pow(c, two) v = ReduceMean<axes = [-1, -2]>(q) a = Add(v, e) s = Sqrt(a) n = Div(c, s)"


def model_of(
    body: str, opset: int = 13, shape: str = "N, 3, 4, 5", weights: dict[str, tuple[int, ...]] | None = None
) -> Model:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, size in (weights or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(random.standard_normal(size).astype(np.float32), name))
    return read_model(proto)


FUSED: dict[str, tuple[str, dict[str, tuple[int, ...]], list[str]]] = {
    "steps": ("y = Identity(n)", {}, ["InstanceNormalization", "Identity"]),
    "per channel": ("t = Mul(n, w) y = Add(b, t)", {"w": (3, 1, 1), "b": (1, 3, 1, 1)}, ["InstanceNormalization"]),
    "one number": ("t = Mul(w, n) y = Add(t, b)", {"w": (), "b": (1,)}, ["InstanceNormalization"]),
    "bias then scale": ("t = Add(n, b) y = Mul(t, w)", {"w": (3, 1, 1), "b": (3, 1, 1)}, ["InstanceNormalization"]),
    "per element": ("t = Mul(n, w) y = Add(t, b)", {"w": (4, 5), "b": (4, 5)}, ["InstanceNormalization", "Mul", "Add"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_steps_become_one_node(name: str) -> None:
    body, weights, expected = FUSED[name]
    done = check_pass(FuseInstanceNorm(), model_of(f"{STEPS} {body}", weights=weights))
    assert [op for op in done.ops if op != "Constant"] == expected


def test_three_axes() -> None:
    body = STEPS.replace("[2, 3]", "[2]").replace("[-1, -2]", "[2]") + " y = Neg(n)"
    done = check_pass(FuseInstanceNorm(), model_of(body, shape="N, 3, 9"))
    assert "InstanceNormalization" in done.ops


def test_layer_norm_of_the_last_axis_is_left_to_the_runtime() -> None:
    body = STEPS.replace("[2, 3]", "[2]").replace("[-1, -2]", "[2]") + " y = Mul(n, w)"
    assert run_pass(FuseInstanceNorm(), model_of(body, shape="N, 3, 9", weights={"w": (9,)})).record.patches == 0


def test_newer_opset_is_left_to_fuse_layer_norm() -> None:
    model = model_of(f"{STEPS} y = Mul(n, w)", opset=17, weights={"w": (4, 5)})
    assert run_pass(FuseInstanceNorm(), model).record.patches == 0
    assert "LayerNormalization" in check_pass(FuseLayerNorm(), model).ops


def test_scale_per_channel_is_taken_in_a_newer_opset() -> None:
    model = model_of(f"{STEPS} y = Mul(n, w)", opset=17, weights={"w": (3, 1, 1)})
    PassManager([FuseInstanceNorm(), FuseLayerNorm()]).run(model)
    assert [node.op for _, node in model.walk() if node.op != "Constant"] == ["InstanceNormalization"]


APART = {
    "all axes": STEPS.replace("[2, 3]", "[1, 2, 3]").replace("[-1, -2]", "[1, 2, 3]") + " y = Neg(n)",
    "last axis of four": STEPS.replace("[2, 3]", "[3]").replace("[-1, -2]", "[3]") + " y = Neg(n)",
    "other axes": STEPS.replace("[-1, -2]", "[3]") + " y = Neg(n)",
}


@pytest.mark.parametrize("name", APART)
def test_other_axes_stay(name: str) -> None:
    assert run_pass(FuseInstanceNorm(), model_of(APART[name])).record.patches == 0


def test_open_channels_are_refused() -> None:
    done = run_pass(FuseInstanceNorm(), model_of(f"{STEPS} y = Neg(n)", shape="N, C, 4, 5"))
    assert "number of channels" in next(iter(done.skips.values()))


def test_empty_batch() -> None:
    feeds = [{"x": np.zeros((0, 3, 4, 5), np.float32)}]
    check_pass(FuseInstanceNorm(), parse(model_of(f"{STEPS} y = Neg(n)")), feeds, interpreted=False)  # type: ignore[arg-type]
