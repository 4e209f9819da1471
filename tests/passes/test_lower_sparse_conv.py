from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.analysis.cost_table import CostTable, KernelGrid
from graphopt.errors import RecipeError
from graphopt.passes.lower.lower_sparse_conv import LowerSparseConv
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, run, session
from graphopt.solve.pack_sparse_conv import read_sizes, unpack_sparse_conv
from pass_oracle import Done, check_pass, parse, run_pass

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

C, M = 6, 8
KERNELS = ("sparse-conv", "sparse-conv-1x1")


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Every size is faster from 60 % zeros on, and blocks of the same sparsity twice as fast."""
    levels = (0.5, 0.6, 1.0)
    single = KernelGrid((1,), (1,), levels, {"avx512": np.array([[[0.9, 1.1, 3.0]]])})
    block = KernelGrid((1,), (1,), levels, {"avx512": np.array([[[1.0, 2.2, 6.0]]])})
    kernels = dict.fromkeys(KERNELS, single) | {f"{name}-4x1": block for name in KERNELS}
    path = tmp_path / "table.json"
    path.write_text(CostTable(kernels, 0.1, "a test").to_json(), encoding="utf-8")
    return str(path)


@pytest.fixture
def lower(table: str) -> LowerSparseConv:
    return LowerSparseConv(cost_table=table)


def weight(*shape: int, sparsity: float = 0.75, block: int = 1) -> np.ndarray:
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape).astype(np.float32)
    rows = np.zeros((-(-shape[0] // block), *shape[1:]), bool)
    rows.reshape(-1)[rng.permutation(rows.size)[round(rows.size * sparsity) :]] = True
    w[~np.repeat(rows, block, axis=0)[: shape[0]]] = 0
    return w


def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"{op.lower()}_{output}", **attributes)


def model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    x: tuple[Any, ...] = ("N", C, 9, 7),
    *,
    opset: int = 20,
    outputs: tuple[str, ...] = ("y",),
    extra_inputs: dict[str, tuple[Any, ...]] | None = None,
) -> onnx.ModelProto:
    inputs = {"x": x, **(extra_inputs or {})}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def conv(w: np.ndarray | None = None, *, bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    stored = weight(M, C, 3, 3) if w is None else w
    constants = {"w": stored} | ({"b": np.linspace(-1, 1, stored.shape[0], dtype=np.float32)} if bias else {})
    x = ("N", stored.shape[1] * attributes.get("group", 1), 9, 7)[: stored.ndim]
    return model([node("Conv", ["x", *constants], "y", **attributes)], constants, x)


def only(done: Done) -> Any:
    (found,) = [each for _, each in done.model.walk() if each.op == "SparseConv"]
    return found


@pytest.mark.parametrize(
    ("shape", "attributes", "kept"),
    [
        ((M, C, 3, 3), {"pads": [1, 1, 1, 1]}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ((M, C, 1, 1), {}, {"kernel_shape": [1, 1]}),
        ((M, C, 3), {"pads": [0, 2], "strides": [2]}, {"kernel_shape": [3], "pads": [0, 2], "strides": [2]}),
        ((M, C, 2, 3), {"dilations": [2, 1]}, {"kernel_shape": [2, 3], "dilations": [2, 1]}),
        ((M, C, 3, 3), {"strides": [1, 1], "dilations": [1, 1]}, {"kernel_shape": [3, 3]}),
        ((M, 2, 3, 3), {"group": 4}, {"kernel_shape": [3, 3], "group": 4}),
        ((M, C, 3, 3), {"auto_pad": "SAME_UPPER"}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ((M, C, 2, 2), {"auto_pad": "SAME_UPPER"}, {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
        ((M, C, 2, 2), {"auto_pad": "SAME_LOWER"}, {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}),
        ((M, C, 3, 3), {"auto_pad": "VALID"}, {"kernel_shape": [3, 3]}),
        (
            (M, C, 3, 3),
            {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
            {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 3]},
        ),
    ],
)
def test_lower_every_geometry_keeps_its_attributes(
    lower: LowerSparseConv, shape: tuple[int, ...], attributes: dict[str, Any], kept: dict[str, Any]
) -> None:
    done = check_pass(lower, conv(weight(*shape), **attributes))
    assert done.ops == ["SparseConv"]
    assert dict(only(done).attrs) == {"out_channels": M, **kept}
    assert [t.name for t in done.model.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    ("block", "stored"), [(1, 1), (4, 4), (8, 8)], ids=["single entries", "blocks of 4", "blocks of 8"]
)
def test_lower_stores_the_form_that_is_faster(lower: LowerSparseConv, block: int, stored: int) -> None:
    w = weight(16, C, 3, 3, sparsity=0.75, block=block)
    done = check_pass(lower, conv(w))
    packed = only(done).inputs[1].array()
    assert read_sizes(packed).block == stored
    assert np.array_equal(unpack_sparse_conv(packed), w)


@pytest.mark.parametrize(
    ("behind", "attributes"),
    [
        ([node("Relu", ["c"], "y")], {"activation": "relu"}),
        ([node("Clip", ["c", "zero", "six"], "y")], {"activation": "relu6"}),
        ([node("Clip", ["c", "", "six"], "y")], {"activation": "clip", "low": -np.inf, "high": 6.0}),
        ([node("Gelu", ["c"], "y")], {"activation": "gelu"}),
        ([node("Gelu", ["c"], "y", approximate="tanh")], {"activation": "gelu_tanh"}),
        ([node("Sigmoid", ["c"], "s"), node("Mul", ["c", "s"], "y")], {"activation": "silu"}),
        ([node("Add", ["c", "r"], "y")], {}),
        ([node("Add", ["r", "c"], "a"), node("Relu", ["a"], "y")], {"activation": "relu"}),
    ],
)
def test_lower_what_follows_goes_into_the_node(
    lower: LowerSparseConv, behind: list[onnx.NodeProto], attributes: dict[str, Any]
) -> None:
    read = {name for each in behind for name in each.input}
    bounds = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    constants = {"w": weight(M, C, 1, 1)} | {name: value for name, value in bounds.items() if name in read}
    extra = {"r": ("N", M, 9, 7)} if "r" in read else None
    done = check_pass(lower, model([node("Conv", ["x", "w"], "c"), *behind], constants, extra_inputs=extra))
    assert done.ops == ["SparseConv"]
    assert [t.name for t in only(done).inputs[2:]] == (["conv_c_bias", "r"] if extra else [])
    assert dict(only(done).attrs) == {"kernel_shape": [1, 1], "out_channels": M, **attributes}


def test_lower_two_convolutions_that_are_added_make_two_nodes(lower: LowerSparseConv) -> None:
    nodes = [
        node("Conv", ["x", "v"], "a"),
        node("Conv", ["x", "w"], "c"),
        node("Add", ["a", "c"], "d"),
        node("Relu", ["d"], "y"),
    ]
    done = check_pass(lower, model(nodes, {"v": weight(M, C, 1, 1), "w": weight(M, C, 1, 1, sparsity=0.8)}))
    assert done.ops == ["SparseConv", "SparseConv"]


@pytest.mark.parametrize(
    "other", [("N", M, 1, 1), (1, M, 9, 7), ("K", M, 9, 7)], ids=["per channel", "one image", "another batch"]
)
def test_lower_addition_that_broadcasts_stays(lower: LowerSparseConv, other: tuple[Any, ...]) -> None:
    made = model(
        [node("Conv", ["x", "w"], "c"), node("Add", ["c", "r"], "y")],
        {"w": weight(M, C, 1, 1)},
        extra_inputs={"r": other},
    )
    assert run_pass(lower, made).ops == ["SparseConv", "Add"]


def test_lower_result_that_others_read_keeps_what_follows(lower: LowerSparseConv) -> None:
    made = model(
        [node("Conv", ["x", "w"], "c"), node("Relu", ["c"], "y")], {"w": weight(M, C, 1, 1)}, outputs=("y", "c")
    )
    assert check_pass(lower, made).ops == ["SparseConv", "Relu"]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (conv(weight(M, C, 3, 3, sparsity=0.5)), "its weight has 50.0% zeros"),
        (conv(weight(M, 1, 3, 3), group=M), "it is depthwise"),
        (conv(weight(M, C, 3, 3, 3)), "one and two spatial axes"),
        (conv(weight(M, C, 3, 3), pads=[-1, 0, 0, 0]), "pads that the kernel does not take"),
        (
            model([node("Conv", ["x", "w"], "y")], {}, extra_inputs={"w": (M, C, 3, 3)}),
            "its second input 'w' is not constant but fed from outside",
        ),
        (
            model(
                [node("Conv", ["x", "w"], "y"), node("ReduceSum", ["w"], "z")],
                {"w": weight(M, C, 3, 3)},
                outputs=("y", "z"),
            ),
            "is also read by",
        ),
        (
            model([node("Conv", ["x", "w"], "y")], {"w": weight(M, C, 3, 3)}, outputs=("y", "w")),
            "is an output of the graph",
        ),
        (
            model([node("Conv", ["x", "w"], "y", auto_pad="SAME_UPPER")], {"w": weight(M, C, 3, 3)}, ("N", C, "H", 7)),
            "its pads follow from sizes that are not known",
        ),
    ],
)
def test_lower_other_convolutions_stay_with_a_reason(
    lower: LowerSparseConv, made: onnx.ModelProto, reason: str
) -> None:
    done = run_pass(lower, made)
    assert "SparseConv" not in done.ops
    (given,) = done.skips.values()
    assert reason in given


def test_lower_shared_weight_is_packed_once(lower: LowerSparseConv) -> None:
    nodes = [node("Conv", ["x", "w"], "a"), node("Conv", ["a", "w"], "y", pads=[1, 1, 1, 1])]
    done = check_pass(lower, model(nodes, {"w": weight(C, C, 3, 3)}))
    assert done.ops == ["SparseConv", "SparseConv"]
    assert [t.name for t in done.model.graph.initializers] == ["w_packed"]


def test_lower_symbolic_sizes_keep_their_names(lower: LowerSparseConv) -> None:
    done = check_pass(lower, model([node("Conv", ["x", "w"], "y")], {"w": weight(M, C, 1, 1)}, ("N", C, "H", "W")))
    made = session(done.model, kernels=True)
    assert made.get_outputs()[0].shape == ["N", M, "H", "W"]


def test_lower_positions_come_from_data_or_option(tmp_path: Path) -> None:
    levels, fast = (0.5, 1.0), [[[0.5, 0.6]], [[2.0, 3.0]]]
    grid = KernelGrid((1, 1000), (1,), levels, {"avx512": np.array(fast)})
    path = tmp_path / "t.json"
    path.write_text(CostTable({"sparse-conv": grid}, 0.1, "a test").to_json(), encoding="utf-8")
    made = model([node("Conv", ["x", "w"], "y")], {"w": weight(M, C, 3, 3)}, ("N", C, "H", "W"))
    step = LowerSparseConv(cost_table=str(path))
    assert run_pass(step, made).ops == ["Conv"]
    data = Feeds.open({"x": np.zeros((1, 2, C, 30, 30), np.float32)}, session(parse(made)))
    assert run_pass(step, made, data).ops == ["SparseConv"]
    assert run_pass(LowerSparseConv(cost_table=str(path), rows=2000), made).ops == ["SparseConv"]


def test_lower_options_out_of_range_are_refused(table: str) -> None:
    with pytest.raises(ValueError, match="rows is -1"):
        LowerSparseConv(rows=-1)
    with pytest.raises(RecipeError, match="no instruction set 'mmx'"):
        run_pass(LowerSparseConv(cost_table=table, isa="mmx"), conv())


def test_lower_file_never_grows(lower: LowerSparseConv) -> None:
    w = weight(256, 64, 3, 3, sparsity=0.8)
    done = run_pass(lower, conv(w))
    assert done.ops == ["SparseConv"]
    assert len(done.model.to_bytes()) < 0.4 * len(done.before.to_bytes())


def test_lower_runs_with_the_optimizations_of_the_runtime(lower: LowerSparseConv) -> None:
    nodes = [
        node("Conv", ["x", "w"], "c", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], "d"),
        node("Conv", ["d", "v"], "y", strides=[2, 2]),
    ]
    made = model(nodes, {"w": weight(16, C, 3, 3), "v": np.ones((4, 16, 1, 1), np.float32)})
    done = check_pass(lower, made)
    assert done.ops == ["SparseConv", "Conv"]
    x = np.random.default_rng(0).standard_normal((2, C, 9, 7)).astype(np.float32)
    before, after = run(session(done.before), {"x": x}), run(session(done.model, kernels=True), {"x": x})
    assert np.allclose(before["y"], after["y"], rtol=1e-4, atol=1e-4)


def test_lower_same_model_same_bytes(lower: LowerSparseConv) -> None:
    first, second = (run_pass(lower, conv()).model.to_bytes() for _ in range(2))
    assert first == second


def test_lower_reports_what_it_did(lower: LowerSparseConv) -> None:
    done = run_pass(lower, conv(weight(16, C, 3, 3, block=8)))
    (layer,) = done.record.layers
    assert layer.what == "SparseConv, 75.0% zeros in blocks of 8 channels"
    assert layer.reason.startswith("at least ")
    assert PassManager([lower]).run(done.model).patches == 0
