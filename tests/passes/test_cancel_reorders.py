from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.passes.lower.cancel_reorders import CancelReorders
from graphopt.rewrite import PassManager
from graphopt.runtime import session
from graphopt.solve.pack_sparse_conv import pack_sparse_conv
from pass_oracle import Done, check_pass, parse

DOMAIN = "ai.graphopt"
SIDE = 7
"""49 positions: planes of no whole number of vectors."""


class Net:
    """Builds a graph of sparse convolutions from x [N, 6, side, side]."""

    def __init__(self, side: int = SIDE, batch: Any = "N") -> None:
        self.side, self.batch = side, batch
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def conv(self, x: str, m: int, c: int, kernel: int = 1, *, add: str = "", **attributes: Any) -> str:
        name = f"c{len(self.nodes)}"
        rng = np.random.default_rng(len(self.nodes))
        w = rng.standard_normal((m, c, kernel, kernel)).astype(np.float32)
        w[rng.random(w.shape) < 0.6] = 0
        self.constants[f"{name}_w"] = pack_sparse_conv(w)
        self.constants[f"{name}_b"] = rng.standard_normal(m).astype(np.float32)
        inputs = [x, f"{name}_w", f"{name}_b", *([add] if add else [])]
        given = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "out_channels": m, "activation": "relu"}
        return self.op("SparseConv", inputs, domain=DOMAIN, **given, **attributes)

    def op(self, op: str, inputs: list[str], *, domain: str = "", **attributes: Any) -> str:
        name = f"c{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def to_padded(self, x: str) -> str:
        return self.op("ToPadded", [x], domain=DOMAIN)

    def from_padded(self, x: str, spatial: tuple[int, int] = (SIDE, SIDE)) -> str:
        return self.op("FromPadded", [x], domain=DOMAIN, spatial=spatial)

    def model(self, *outputs: str) -> Any:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [self.batch, 6, self.side, self.side])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def layouts(done: Done) -> list[str]:
    """Operator and layouts of each node: n for nchw, p for padded."""
    found = []
    for _, node in done.model.walk():
        ends = "".join(node.attrs.get(name, "nchw")[0] for name in ("layout_in", "layout_out"))
        found.append(f"{node.op} {ends}" if node.op == "SparseConv" else str(node.op))
    return found


def test_cancel_chain_of_one_tap_convolutions_passes_padded_planes() -> None:
    net = Net()
    y = net.conv(net.conv(net.conv("x", 8, 6), 9, 8), 5, 9)
    done = check_pass(CancelReorders(), net.model(y))
    assert layouts(done) == ["SparseConv np", "SparseConv pp", "SparseConv pn"]
    assert session(done.model, kernels=True).get_outputs()[0].shape == ["N", 5, SIDE, SIDE]


def test_cancel_windows_read_padded_planes_only_where_one_tap_convolutions_do() -> None:
    net = Net()
    y = net.conv(net.conv(net.conv("x", 8, 6), 8, 8, 3), 5, 8)
    done = check_pass(CancelReorders(), net.model(y))
    assert layouts(done) == ["SparseConv nn", "SparseConv np", "SparseConv pn"]


def test_cancel_residuals_keep_the_layout() -> None:
    net = Net()
    a = net.conv("x", 8, 6)
    b = net.conv(net.conv(a, 4, 8), 8, 4, add=a)
    c = net.conv(net.conv(b, 4, 8), 8, 4, add=b)
    done = check_pass(CancelReorders(), net.model(net.op("GlobalAveragePool", [c])))
    assert layouts(done) == [
        *("SparseConv np", "SparseConv pp", "SparseConv pp", "SparseConv pp", "SparseConv pp"),
        *("FromPadded", "GlobalAveragePool"),
    ]


def test_cancel_residual_from_elsewhere_is_reordered_where_that_pays() -> None:
    net = Net()
    r = net.op("Relu", [net.op("Concat", ["x", "x"], axis=1)])
    a = net.conv("x", 12, 6, add=r)
    b = net.conv(a, 4, 12)
    c = net.conv(a, 4, 12)
    done = check_pass(CancelReorders(), net.model(b, c))
    assert "ToPadded" in layouts(done)
    assert layouts(done)[-3:] == ["SparseConv np", "SparseConv pn", "SparseConv pn"]


def test_cancel_reorders_that_cost_more_than_they_save_are_not_made() -> None:
    net = Net()
    a = net.conv("x", 8, 6)
    y = net.conv(a, 4, 8)
    done = check_pass(CancelReorders(), net.model(y, net.op("Sigmoid", [a])))
    assert layouts(done) == ["SparseConv nn", "SparseConv nn", "Sigmoid"]


@pytest.mark.parametrize("side", [4, 8, 12, 28])
def test_cancel_planes_of_whole_vectors_stay(side: int) -> None:
    net = Net(side)
    y = net.conv(net.conv("x", 8, 6), 5, 8)
    assert check_pass(CancelReorders(), net.model(y)).record.patches == 0


@pytest.mark.parametrize("side", [16, 32])
def test_cancel_planes_that_collide_are_padded(side: int) -> None:
    net = Net(side)
    y = net.conv(net.conv("x", 8, 6), 5, 8)
    assert layouts(check_pass(CancelReorders(), net.model(y))) == ["SparseConv np", "SparseConv pn"]


def test_cancel_result_that_is_given_out_stays() -> None:
    net = Net()
    a = net.conv("x", 8, 6)
    b = net.conv(a, 4, 8)
    assert check_pass(CancelReorders(), net.model(b, a)).record.patches == 0


def test_cancel_pairs_that_undo_each_other_go() -> None:
    net = Net()
    y = net.op("Relu", [net.from_padded(net.to_padded(net.op("Sigmoid", ["x"])))])
    assert layouts(check_pass(CancelReorders(), net.model(y))) == ["Sigmoid", "Relu"]
    net = Net()
    p = net.op("Neg", [net.to_padded("x")])
    y = net.from_padded(net.op("Abs", [net.to_padded(net.from_padded(p))]))
    assert layouts(check_pass(CancelReorders(), net.model(y))) == ["ToPadded", "Neg", "Abs", "FromPadded"]


def test_cancel_pair_that_changes_the_sizes_stays() -> None:
    net = Net(4)
    y = net.op("Relu", [net.from_padded(net.to_padded("x"), (2, 8))])
    assert check_pass(CancelReorders(), net.model(y)).record.patches == 0


def test_cancel_convolutions_take_over_reorders_beside_them() -> None:
    net = Net()
    a = net.to_padded(net.conv("x", 8, 6))
    y = net.conv(net.from_padded(net.op("Abs", [a])), 5, 8)
    done = check_pass(CancelReorders(), net.model(y))
    assert layouts(done) == ["SparseConv np", "Abs", "SparseConv pn"]


def test_cancel_one_axis() -> None:
    net = Net()
    flat = net.op("Reshape", ["x", "s"])
    net.constants["s"] = np.array([0, 6, 49], np.int64)
    w = np.eye(6, dtype=np.float32).reshape(6, 6, 1)
    net.constants["w"] = pack_sparse_conv(w)
    attributes: dict[str, Any] = {"domain": DOMAIN, "kernel_shape": [1], "out_channels": 6}
    y = net.op("SparseConv", [net.op("SparseConv", [flat, "w"], **attributes), "w"], **attributes)
    done = check_pass(CancelReorders(), net.model(y))
    assert layouts(done) == ["Reshape", "SparseConv np", "SparseConv pn"]


def test_cancel_unknown_sizes_stay() -> None:
    net = Net("H")  # type: ignore[arg-type]
    y = net.conv(net.conv("x", 8, 6), 5, 8)
    model = parse(net.model(y))
    assert PassManager([CancelReorders()]).run(model).patches == 0
