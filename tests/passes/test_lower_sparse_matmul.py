from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.analysis.cost_table import CostTable, KernelGrid
from graphopt.errors import RecipeError
from graphopt.graph import Constant, Model
from graphopt.passes.lower.lower_sparse_matmul import LowerSparseMatmul
from graphopt.rewrite import PassManager
from graphopt.rewrite.registry import create
from graphopt.runtime import Feeds, run, session
from graphopt.solve.pack_sparse import packed_form, unpack_sparse
from pass_oracle import Done, check_pass, parse, run_pass

if TYPE_CHECKING:
    from pathlib import Path

K, N = 12, 8


def cost_table(grid: KernelGrid) -> CostTable:
    return CostTable({"sparse-matmul": grid}, 0.1, "a test")


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A cost table by which every size is faster from 60 % zeros on."""
    made = cost_table(KernelGrid((1,), (1,), (0.5, 0.6, 1.0), {"avx512": np.array([[[0.9, 1.1, 3.0]]])}))
    path = tmp_path / "table.json"
    path.write_text(made.to_json(), encoding="utf-8")
    return str(path)


@pytest.fixture
def lower(table: str) -> LowerSparseMatmul:
    return LowerSparseMatmul(cost_table=table)


def numbers(values: np.ndarray) -> str:
    return "{" + ", ".join(repr(float(v)) for v in values.reshape(-1)) + "}"


def weight(k: int = K, n: int = N, sparsity: float = 0.75, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((k, n)).astype(np.float32)
    w.reshape(-1)[rng.permutation(k * n)[: round(k * n * sparsity)]] = 0
    return w


def text(
    body: str, *, x: str = "float[B, 12]", y: str = "float[B, 8]", extra: str = "", w: np.ndarray | None = None
) -> str:
    stored = weight() if w is None else w
    shape = ", ".join(map(str, stored.shape))
    return f"""<ir_version: 8, opset_import: ["" : 17]>
        g ({x} x) => ({y} y) <float[{shape}] w = {numbers(stored)}{extra}> {{ {body} }}"""


BIAS = f", float[{N}] b = {numbers(np.linspace(-1, 1, N))}"


def sparse_nodes(done: Done) -> list[tuple[list[str], dict[str, object]]]:
    return [
        ([t.name for t in node.inputs], dict(node.attrs)) for _, node in done.model.walk() if node.op == "SparseMatMul"
    ]


def only(done: Done) -> dict[str, object]:
    (_, attributes), *more = sparse_nodes(done)
    assert not more
    return attributes


@pytest.mark.parametrize(
    ("body", "extra", "relu", "inputs"),
    [
        ("y = MatMul(x, w)", "", False, 2),
        ("a = MatMul(x, w)  y = Relu(a)", "", True, 2),
        ("a = MatMul(x, w)  y = Add(a, b)", BIAS, False, 3),
        ("a = MatMul(x, w)  y = Add(b, a)", BIAS, False, 3),
        ("a = MatMul(x, w)  c = Add(a, b)  y = Relu(c)", BIAS, True, 3),
        ("y = Gemm(x, w, b)", BIAS, False, 3),
        ("y = Gemm(x, w)", "", False, 2),
        ("a = Gemm(x, w)  y = Add(a, b)", BIAS, False, 3),
        ("a = Gemm(x, w, b)  y = Relu(a)", BIAS, True, 3),
        ("y = Gemm(x, w, s)", ", float s = {0.5}", False, 3),
        ("y = Gemm(x, w, r)", f", float[1, {N}] r = {numbers(np.arange(N))}", False, 3),
    ],
)
def test_lower_product_with_what_follows_it_becomes_one_node(
    lower: LowerSparseMatmul, body: str, extra: str, relu: bool, inputs: int
) -> None:
    done = check_pass(lower, text(body, extra=extra))
    assert done.ops == ["SparseMatMul"]
    ((names, attributes),) = sparse_nodes(done)
    assert len(names) == inputs
    assert attributes == {"K": K, "N": N, **({"activation": "relu"} if relu else {})}
    assert done.model.opset_imports == {"": 17, "ai.graphopt": 1}
    assert [t.name for t in done.model.graph.outputs] == ["y"]


def test_lower_gemm_with_transposed_weight(lower: LowerSparseMatmul) -> None:
    w = weight()
    done = check_pass(lower, text("y = Gemm <transB = 1> (x, w, b)", extra=BIAS, w=np.ascontiguousarray(w.T)))
    assert only(done) == {"K": K, "N": N}
    packed = next(node for _, node in done.model.walk()).inputs[1]
    assert isinstance(packed, Constant)
    assert np.array_equal(unpack_sparse(packed.array()), w)


@pytest.mark.parametrize(
    ("x", "y"),
    [("float[12]", "float[8]"), ("float[2, 3, 12]", "float[2, 3, 8]"), ("float[A, B, C, 12]", "float[A, B, C, 8]")],
)
def test_lower_activations_of_any_rank(lower: LowerSparseMatmul, x: str, y: str) -> None:
    assert check_pass(lower, text("y = MatMul(x, w)", x=x, y=y)).ops == ["SparseMatMul"]


def test_lower_dense_weight_disappears_and_the_file_shrinks(lower: LowerSparseMatmul) -> None:
    done = check_pass(lower, text("y = MatMul(x, w)", w=weight(200, 300, 0.9), x="float[4, 200]", y="float[4, 300]"))
    assert "w" not in {t.name for t in done.model.graph.initializers}
    assert len(done.model.to_bytes()) < 0.2 * len(done.before.to_bytes())


def test_lower_intermediate_read_elsewhere_stays(lower: LowerSparseMatmul) -> None:
    done = check_pass(lower, text("a = MatMul(x, w)  c = Relu(a)  y = Add(a, c)"))
    assert done.ops == ["SparseMatMul", "Relu", "Add"]


@pytest.mark.parametrize(
    ("body", "extra", "attributes"),
    [
        ("c = Sigmoid(a)  y = Mul(a, c)", "", {"activation": "silu"}),
        ("c = Sigmoid(a)  y = Mul(c, a)", "", {"activation": "silu"}),
        ("y = Clip(a, l, h)", ", float l = {-1}, float h = {2}", {"activation": "clip", "low": -1.0, "high": 2.0}),
        ("y = Clip(a, l, h)", ", float l = {0}, float h = {6}", {"activation": "relu6"}),
        ("y = Clip(a, l)", ", float l = {-1}", {"activation": "clip", "low": -1.0, "high": float("inf")}),
        (
            "c = Div(a, q)  d = Erf(c)  e = Add(d, i)  f = Mul(a, e)  y = Mul(f, s)",
            ", float q = {1.4142135}, float i = {1}, float s = {0.5}",
            {"activation": "gelu"},
        ),
    ],
)
def test_lower_activation_goes_into_the_node(
    lower: LowerSparseMatmul, body: str, extra: str, attributes: dict[str, object]
) -> None:
    done = check_pass(lower, text(f"a = MatMul(x, w)  {body}", extra=extra))
    assert done.ops == ["SparseMatMul"]
    assert only(done) == {"K": K, "N": N, **attributes}


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("a = MatMul(x, w)  y = Add(a, r)", ["SparseMatMul"]),
        ("a = MatMul(x, w)  c = Add(a, b)  d = Add(r, c)  y = Relu(d)", ["SparseMatMul"]),
        ("a = MatMul(x, w)  c = Add(a, r)  d = Add(c, b)  y = Relu(d)", ["SparseMatMul", "Add", "Relu"]),
        ("a = MatMul(x, w)  c = Relu(a)  y = Add(c, r)", ["SparseMatMul", "Add"]),
        ("a = MatMul(x, w)  y = Add(a, a)", ["SparseMatMul", "Add"]),
    ],
)
def test_lower_residual_goes_into_the_node_where_the_order_allows(
    lower: LowerSparseMatmul, body: str, ops: list[str]
) -> None:
    source = text(body, extra=BIAS).replace("(float[B, 12] x)", "(float[B, 12] x, float[B, 8] r)")
    assert check_pass(lower, source).ops == ops


def test_lower_residual_that_is_stretched_stays(lower: LowerSparseMatmul) -> None:
    source = text("a = MatMul(x, w)  y = Add(a, r)").replace("(float[B, 12] x)", "(float[B, 12] x, float[1, 8] r)")
    assert check_pass(lower, source).ops == ["SparseMatMul", "Add"]


def test_lower_two_products_that_are_added_share_no_node(lower: LowerSparseMatmul) -> None:
    done = check_pass(lower, text("a = MatMul(x, w)  c = Neg(x)  d = MatMul(c, w)  e = Add(a, d)  y = Relu(e)"))
    assert sorted(done.ops) == ["Neg", "SparseMatMul", "SparseMatMul"]
    assert sorted(len(names) for names, _ in sparse_nodes(done)) == [2, 4]


def block_weight(block_rows: int, sparsity: float = 0.75) -> np.ndarray:
    rng = np.random.default_rng(block_rows)
    kept = rng.random((64, 64 // block_rows)) >= sparsity
    w: np.ndarray = rng.standard_normal((64, 64)).astype(np.float32) * np.repeat(kept, block_rows, axis=1)
    return w


@pytest.mark.parametrize(
    ("pattern", "speedups", "chosen"),
    [
        (4, {"sparse-matmul": 2.0, "sparse-matmul-4x1": 3.0}, 4),
        (8, {"sparse-matmul": 2.0, "sparse-matmul-4x1": 3.0, "sparse-matmul-8x1": 4.0}, 8),
        (8, {"sparse-matmul": 2.0, "sparse-matmul-4x1": 5.0, "sparse-matmul-8x1": 4.0}, 4),
        (16, {"sparse-matmul": 2.0}, 1),
        (16, {"sparse-matmul-16x1": 2.0}, 16),
        (1, {"sparse-matmul": 2.0, "sparse-matmul-4x1": 9.0}, 1),
    ],
)
def test_lower_form_is_the_fastest_by_the_cost_table(
    tmp_path: Path, pattern: int, speedups: dict[str, float], chosen: int
) -> None:
    grids = {
        name: KernelGrid((1,), (1,), (0.6, 1.0), {"avx512": np.full((1, 1, 2), speedup)})
        for name, speedup in speedups.items()
    }
    path = tmp_path / "table.json"
    path.write_text(CostTable(grids, 0.1, "a test").to_json(), encoding="utf-8")
    source = text("y = MatMul(x, w)", w=block_weight(pattern), x="float[4, 64]", y="float[4, 64]")
    done = check_pass(LowerSparseMatmul(cost_table=str(path)), source)
    packed = next(node for _, node in done.model.walk()).inputs[1]
    assert isinstance(packed, Constant)
    assert packed_form(np.asarray(packed.array())).block_rows == chosen
    (row,) = done.record.layers
    assert ("in blocks of" in row.what) == (chosen > 1)


def test_lower_graph_output_in_between_keeps_its_name(lower: LowerSparseMatmul) -> None:
    source = text("a = MatMul(x, w)  y = Relu(a)").replace("(float[B, 8] y)", "(float[B, 8] a, float[B, 8] y)")
    done = check_pass(lower, source)
    assert done.ops == ["SparseMatMul", "Relu"]
    assert [t.name for t in done.model.graph.outputs] == ["a", "y"]


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (f", float[2, {N}] c = {numbers(np.ones(2 * N))}", "a number per row too"),
        (f", float[1, 1, {N}] c = {numbers(np.ones(N))}", "it makes the rank larger"),
    ],
)
def test_lower_add_that_is_no_bias_stays(lower: LowerSparseMatmul, extra: str, why: str) -> None:
    shape = "float[1, 2, 8]" if "1, 1," in extra else "float[2, 8]"
    done = check_pass(lower, text("a = MatMul(x, w)  y = Add(a, c)", x="float[2, 12]", y=shape, extra=extra))
    assert done.ops == ["SparseMatMul", "Add"], why


def test_lower_add_of_an_old_opset_that_broadcasts_along_an_attribute_stays(lower: LowerSparseMatmul) -> None:
    source = text(
        "a = MatMul(x, w)  y = Add<broadcast = 1, axis = 1>(a, c)",
        x="float[2, 8, 12]",
        y="float[2, 8, 8]",
        extra=f", float[{N}] c = {numbers(np.ones(N))}",
    ).replace('"" : 17', '"" : 6')
    done = run_pass(lower, source, verify="fast")
    assert done.ops == ["SparseMatMul", "Add"]


def test_lower_shared_weight_is_packed_once(lower: LowerSparseMatmul) -> None:
    done = check_pass(lower, text("a = MatMul(x, w)  c = Neg(x)  d = MatMul(c, w)  y = Add(a, d)"))
    first, second = sparse_nodes(done)
    assert first[0][1] == second[0][1]
    assert [t.dtype.name for t in done.model.graph.initializers].count("uint8") == 1


@pytest.mark.parametrize(
    ("source", "node", "reason"),
    [
        (text("y = MatMul(x, w)", w=weight(sparsity=0.5)), "", "has 50.0% zeros"),
        (text("y = MatMul(x, w)", w=weight(sparsity=0.5)), "", "the sparse kernel is faster from 60.0% on"),
        (text("y = MatMul(x, w)", w=weight(sparsity=0.5)), "", "an unknown number of rows"),
        (text("y = MatMul(x, w)", w=weight(sparsity=0.5), x="float[3, 12]", y="float[3, 8]"), "", "for 3 rows"),
        (text("y = Gemm <alpha = 0.5> (x, w)"), "", "alpha = 0.5"),
        (text("y = Gemm <beta = 2.0> (x, w, b)", extra=BIAS), "", "beta = 2"),
        (text("y = Gemm <transA = 1> (x, w)", x="float[12, B]"), "", "transA = 1"),
        (
            text(
                "y = Gemm(x, w, c)", x="float[2, 12]", y="float[2, 8]", extra=f", float[2, 1] c = {numbers(np.ones(2))}"
            ),
            "",
            "its input C 'c' is not a constant that adds one number per column",
        ),
        (
            text("v = Neg(w)  y = MatMul(x, v)"),
            "",
            "is not constant but computed by Neg",
        ),
        (
            text("t = Transpose <perm = [1, 0]> (x)  y = MatMul(w, t)", y="float[12, B]", x="float[B, 8]"),
            "",
            "its weight is the first input",
        ),
        (text("a = MatMul(x, w)  s = ReduceSum(w)  y = Add(a, s)"), "", "its weight 'w' is also read by"),
        (
            text("y = MatMul(x, w)").replace("(float[B, 12] x)", "(float[B, 12] x, float[12, 8] w)"),
            "",
            "a caller may replace it",
        ),
        (
            text("y = MatMul(x, w)", w=weight().reshape(1, K, N), x="float[1, 2, 12]", y="float[1, 2, 8]"),
            "",
            "not [K, N]",
        ),
    ],
)
def test_lower_other_nodes_are_left_alone_with_a_reason(
    lower: LowerSparseMatmul, source: str, node: str, reason: str
) -> None:
    done = check_pass(lower, source)
    assert done.record.patches == 0
    assert any(reason in said for said in done.skips.values()), done.skips


def test_lower_other_types_are_left_alone(lower: LowerSparseMatmul) -> None:
    source = text("y = MatMul(x, w)").replace("float", "double")
    done = check_pass(lower, source)
    assert "float32 only" in next(iter(done.skips.values()))


def test_lower_function_body_is_left_alone(lower: LowerSparseMatmul) -> None:
    source = f"""<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[B, 12] x) => (float[B, 8] y) {{ y = f.product(x) }}
        <domain: "f", opset_import: ["" : 17]>
        product (x) => (y) {{ w = Constant <value = float[12, 8] {numbers(weight())}> ()  y = MatMul(x, w) }}"""
    done = check_pass(lower, source)
    assert "in the body of a function" in next(iter(done.skips.values()))


@pytest.mark.parametrize("outer", [False, True], ids=["own weight", "weight of the outer graph"])
def test_lower_inside_if_and_loop(lower: LowerSparseMatmul, outer: bool) -> None:
    inside = f"<float[12, 8] w = {numbers(weight())}>"
    own, above = ("", inside[1:-1]) if outer else (inside, "float unused = {0}")
    source = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[B, 12] x, bool c) => (float[B, 8] y) <{above}> {{
          y = If (c) <
            then_branch = t () => (float[B, 8] a) {own} {{ a = MatMul(x, w) }},
            else_branch = e () => (float[B, 8] d) <float[12, 8] v = {numbers(weight(seed=1))}> {{ d = MatMul(x, v) }}
          > }}"""
    done = check_pass(lower, source, samples=4)
    assert done.ops.count("SparseMatMul") == 2
    assert "MatMul" not in done.ops

    constants = f"int64 n = {{3}}, bool go = {{1}}, float[12, 12] w = {numbers(weight(12, 12))}"
    loop = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[B, 12] x) => (float[B, 12] y) <{constants}> {{
          y = Loop (n, go, x) <
            body = b (int64 i, bool ok, float[B, 12] h) => (bool still, float[B, 12] next) {{
              still = Identity(ok)  next = MatMul(h, w)
            }}> }}"""
    assert check_pass(lower, loop).ops.count("SparseMatMul") == 1


def test_lower_weight_shared_between_scopes_is_left_alone(lower: LowerSparseMatmul) -> None:
    source = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[B, 12] x, bool c) => (float[B, 8] y) <float[12, 8] w = {numbers(weight())}> {{
          a = MatMul(x, w)
          d = If (c) <
            then_branch = t () => (float[B, 8] e) {{ e = MatMul(x, w) }},
            else_branch = f () => (float[B, 8] h) {{ h = Identity(a) }}>
          y = Add(a, d) }}"""
    done = check_pass(lower, source)
    assert done.record.patches == 0
    assert all("is also read by" in reason for reason in done.skips.values())


def test_lower_rows_come_from_the_data_where_the_model_leaves_them_open(tmp_path: Path) -> None:
    grid = np.array([[[0.5, 0.9]], [[1.5, 3.0]]])
    path = tmp_path / "table.json"
    path.write_text(cost_table(KernelGrid((1, 16), (1,), (0.5, 1.0), {"avx2": grid})).to_json(), encoding="utf-8")
    lower = LowerSparseMatmul(cost_table=str(path), isa="avx2")
    source = text("y = MatMul(x, w)", x="float[B, T, 12]", y="float[B, T, 8]")
    assert check_pass(lower, source).record.patches == 0

    made = session(parse(source))
    for tokens, patches in ((16, 1), (3, 0)):
        data = Feeds.open({"x": np.ones((4, 1, tokens, K), np.float32)}, made)
        assert run_pass(lower, source, data).record.patches == patches, tokens
    for rows, patches in ((16, 1), (3, 0)):
        assumed = LowerSparseMatmul(cost_table=str(path), isa="avx2", rows=rows)
        assert check_pass(assumed, source).record.patches == patches, rows
        assert run_pass(assumed, source, Feeds.open({"x": np.ones((1, 16, K), np.float32)}, made)).record.patches == 1


def test_lower_negative_rows_are_refused() -> None:
    with pytest.raises(RecipeError, match="rows is -1"):
        create("lower-sparse-matmul", {"rows": -1})


def test_lower_default_table_lowers_a_large_sparse_layer_and_no_small_one() -> None:
    large = text("y = MatMul(x, w)", w=weight(256, 256, 0.95), x="float[64, 256]", y="float[64, 256]")
    assert check_pass(LowerSparseMatmul(), large).ops == ["SparseMatMul"]
    done = check_pass(LowerSparseMatmul(), text("y = MatMul(x, w)", w=weight(sparsity=0.95)))
    assert "not known to be faster at any sparsity" in next(iter(done.skips.values()))


def test_lower_same_input_same_bytes(lower: LowerSparseMatmul) -> None:
    source = text("a = MatMul(x, w)  c = Add(a, b)  y = Relu(c)", extra=BIAS)
    assert run_pass(lower, source).model.to_bytes() == run_pass(lower, source).model.to_bytes()


def test_lower_report_rows_name_layer_and_sparsity(lower: LowerSparseMatmul) -> None:
    done = run_pass(lower, text("y = MatMul(x, w)"))
    (row,) = done.record.layers
    assert (row.op, row.what, row.kept) == ("MatMul", "SparseMatMul, 75.0% zeros", True)


def test_lower_never_lets_the_file_grow_whatever_the_table_says(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    always = cost_table(KernelGrid((1,), (1,), (0.0, 1.0), {"avx2": np.array([[[2.0, 3.0]]])}))
    path.write_text(always.to_json(), encoding="utf-8")
    dense = text("y = MatMul(x, w)", w=weight(100, 100, 0.1), x="float[4, 100]", y="float[4, 100]")
    done = check_pass(LowerSparseMatmul(cost_table=str(path)), dense)
    assert done.record.patches == 0
    assert "so that the file would grow" in next(iter(done.skips.values()))


def test_lower_unknown_instruction_set_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"no instruction set 'sse'.*It must be one of any, avx"):
        run_pass(LowerSparseMatmul(isa="sse"), text("y = MatMul(x, w)"))


def test_lower_missing_table_is_an_error() -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        run_pass(LowerSparseMatmul(cost_table="/nowhere/table.json"), text("y = MatMul(x, w)"))


def test_lower_runs_in_the_runtime_with_its_optimizations(lower: LowerSparseMatmul) -> None:
    source = text("a = MatMul(x, w)  c = Add(a, b)  d = Relu(c)  e = Identity(d)  y = Softmax(e)", extra=BIAS)
    before = parse(source)
    after: Model = before.copy()
    PassManager([lower]).run(after)
    feed = {"x": np.random.default_rng(0).standard_normal((5, K)).astype(np.float32)}
    wanted, found = run(session(before), feed)["y"], run(session(after, kernels=True), feed)["y"]
    assert np.allclose(wanted, found, atol=1e-5)
