"""write-matmul-nbits: packed weights stand for the same numbers, and the runtime computes what it fuses itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import RecipeError
from graphopt.graph import Model, constant_value, read_model
from graphopt.passes.quantize.write_matmul_nbits import WriteMatmulNbits, pack_bits
from graphopt.rewrite.registry import create
from graphopt.runtime import run, session
from graphopt.target import audit
from pass_oracle import run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

KINDS = {
    "int4": (TensorProto.INT4, -8, 7, 21),
    "uint4": (TensorProto.UINT4, 0, 15, 21),
    "int8": (TensorProto.INT8, -128, 127, 21),
    "uint8": (TensorProto.UINT8, 0, 255, 21),
    "int2": (TensorProto.INT2, -2, 1, 25),
    "two of int8": (TensorProto.INT8, -2, 1, 21),
}


def blocked(kind: str, *, inputs: int = 64, block: int = 32, zeros: bool = False, axis: int = 0) -> Model:
    """Return a MatMul by a matrix of 24 outputs behind a DequantizeLinear with blocks."""
    element, low, high, opset = KINDS[kind]
    rng = np.random.default_rng(0)
    codes = rng.integers(low, high + 1, (inputs, 24))
    codes[0, :2] = low, high
    shape = (-(-inputs // block), 24) if axis == 0 else (inputs, -(-24 // block))
    constants = [
        helper.make_tensor("w", element, codes.shape, codes.ravel().tolist()),
        numpy_helper.from_array(rng.uniform(0.01, 0.02, shape).astype(np.float32), "s"),
    ]
    names = ["w", "s"]
    if zeros:
        offsets = rng.integers(low, high + 1, shape)
        constants.append(helper.make_tensor("z", element, shape, offsets.ravel().tolist()))
        names.append("z")
    nodes = [
        helper.make_node("DequantizeLinear", names, ["d"], axis=axis, block_size=block),
        helper.make_node("MatMul", ["x", "d"], ["y"], name="product"),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 24]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    return read_model(model)


def rows(inputs: int = 64) -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((5, inputs)).astype(np.float32)}


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_stand_for_the_same_numbers(kind: str, zeros: bool) -> None:
    model = blocked(kind, zeros=zeros)
    done = run_pass(WriteMatmulNbits(accuracy_level=1), model)
    assert done.ops == ["MatMulNBits"]
    expected = run(session(model, optimize="off"), rows())["y"]
    np.testing.assert_allclose(run(session(done.model), rows())["y"], expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "int2"])
def test_runtime_computes_what_it_fuses_itself(kind: str) -> None:
    model = blocked(kind, zeros=kind == "uint4")
    done = run_pass(WriteMatmulNbits(), model)
    assert audit(model, compare=False).integer == audit(done.model, compare=False).integer == {"MatMulNBits": 1}
    np.testing.assert_array_equal(run(session(done.model), rows())["y"], run(session(model), rows())["y"])


def test_last_block_may_be_shorter() -> None:
    model = blocked("int4", inputs=44)
    done = run_pass(WriteMatmulNbits(accuracy_level=1), model)
    expected = run(session(model, optimize="off"), rows(44))["y"]
    np.testing.assert_allclose(run(session(done.model), rows(44))["y"], expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("level", [1, 4])
def test_accuracy_level_is_always_written(level: Literal[1, 4]) -> None:
    done = run_pass(WriteMatmulNbits(accuracy_level=level), blocked("int2"))
    node = done.model.graph.nodes[0]
    assert (node.attrs["accuracy_level"], node.attrs["bits"]) == (level, 2)
    assert node.domain == "com.microsoft"


def test_there_is_no_way_to_leave_the_accuracy_level_open() -> None:
    with pytest.raises(RecipeError):
        create("write-matmul-nbits", {"accuracy_level": 0})


def test_two_bits_are_packed_below_the_opset_that_has_them() -> None:
    done = run_pass(WriteMatmulNbits(), blocked("two of int8"))
    packed = constant_value(done.model.graph.nodes[0].inputs[1])
    assert packed is not None
    assert (packed.dtype, packed.shape) == (np.uint8, (24, 2, 8))


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"block": 8}, "blocks of 8"), ({"axis": 1, "block": 16}, "along the outputs")],
)
def test_other_blocks_are_skipped(options: dict[str, int], reason: str) -> None:
    done = run_pass(WriteMatmulNbits(), blocked("int4", **options))  # type: ignore[arg-type]
    assert reason in done.skips["product"]


def test_nodes_are_kept_as_asked() -> None:
    done = run_pass(WriteMatmulNbits(keep=("product",)), blocked("int4"))
    assert done.skips == {"product": "kept as asked"}


def test_matrix_in_four_bits(golden: Callable[[str], None]) -> None:
    golden(run_pass(WriteMatmulNbits(), blocked("int4")).text)


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """Return packed integers one by one, the direct way."""
    found = [(int(byte) >> shift) & ((1 << bits) - 1) for byte in packed for shift in range(0, 8, bits)]
    return np.asarray(found[:count])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 4, 8]), hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 3)))
def test_packing_is_undone_by_unpacking(bits: int, values: NDArray[np.int64]) -> None:
    np.testing.assert_array_equal(unpack(pack_bits(values, bits), bits, values.size), values)
