"""Types and shapes over scopes, declarations and edits: what holds, what must stay unknown, what is reported."""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx import TensorProto, helper, parser

from graphopt.analysis import Facts, ShapeValues, Types
from graphopt.graph import Model, Rewriter, Variable, read_model
from inferred_shapes import HEAD, read, shapes
from shape_agreement import check_run, read_text

# ------------------------------------------------------------------------------------------------------------- scopes

IF = """g (float[b, 4] x, bool c) => (float y) <int64[1] axis = {0}, int64[2] flat = {-1, 4}> {
    y, z = If (c) <
        then_branch = then () => (ty, tz) { ty = Neg (x)  tz = Unsqueeze (x, axis) },
        else_branch = other () => (ey, ez) { ey = Relu (x)  ez = Identity (x) }
    >
}"""


def test_if_joins_its_branches() -> None:
    found = shapes(read(IF))
    assert found["ty"] == "[b, 4]"
    assert found["tz"] == "[1, b, 4]"
    assert found["y"] == "[b, 4]"
    assert found["z"] == "?"


def test_if_with_a_known_condition_takes_that_branch() -> None:
    body = IF.replace(", bool c) =>", ") =>").replace("<int64[1] axis", "<bool c = {1}, int64[1] axis")
    assert shapes(read(body))["z"] == "[1, b, 4]"


def test_loop_with_constant_shapes_and_a_known_trip_count() -> None:
    found = shapes(
        read(
            """g (float[b, 4] x) => (float y) <int64 n = {7}, bool go = {1}> {
                y, stack = Loop (n, go, x) <
                    body = step (int64 i, bool c, float[?, ?] state) => (c2, next, out) {
                        c2 = Identity (c)
                        next = Relu (state)
                        out = ReduceSum <keepdims = 0> (next)
                    }>
            }"""
        )
    )
    assert found["next"] == "[b, 4]"
    assert found["y"] == "[b, 4]"
    assert found["stack"] == "[7]"


def test_loop_whose_state_grows_does_not_claim_its_first_size() -> None:
    model = read(
        """g (float[1, 4] x, int64 n, bool go) => (float[?, ?] y) {
            y, stack = Loop (n, go, x) <
                body = step (int64 i, bool c, float[?, ?] state) => (c2, next, out) {
                    c2 = Identity (c)
                    next = Concat <axis = 0> (state, x)
                    out = Shape (state)
                }>
        }"""
    )
    found = shapes(model)
    assert found["next"] == "[?y/body:state.0 + 1, 4]"
    assert found["y"] == "[?y.0, 4]"
    assert found["stack"] == "[?stack.0, 2]"


def test_names_of_one_iteration_do_not_leave_the_loop() -> None:
    found = shapes(
        read(
            """g (float[b, 4] x, int64 n, bool go) => (float[?, ?] y) {
                y, stack = Loop (n, go, x) <
                    body = step (int64 i, bool c, float[?, ?] state) => (c2, next, out) {
                        c2 = Identity (c)
                        where = NonZero (state)
                        next = Cast <to = 1> (where)
                        out = Transpose (where)
                    }>
                z = Relu (y)
            }"""
        )
    )
    assert found["where"].startswith("[2, ?y/body:where.1")
    assert found["y"] == found["z"] == "[?y.0, ?y.1]"
    assert found["stack"] == "[?stack.0, ?stack.1, 2]"


def test_scan_slices_its_inputs_and_stacks_its_outputs() -> None:
    found = shapes(
        read(
            """g (float[b] x, float[s, b, 3] seq) => (float y) {
                y, stack = Scan <num_scan_inputs = 1, scan_output_axes = [1],
                    body = step (float[?] state, float[?, ?] slice) => (next, out) {
                        sum = ReduceSum <keepdims = 0> (slice)
                        next = Add (state, sum)
                        out = Identity (slice)
                    }> (x, seq)
            }"""
        )
    )
    assert found["next"] == found["y"] == "[b]"
    assert found["stack"] == "[b, s, 3]"


def function_model() -> Model:
    text = """<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
    g (float[b, 4] x, float[7] z) => (float y) {
        y = own.twice <width = 3> (x)
        u = own.twice <width = 3> (z)
        w = own.once (x)
        v = own.once (x)
    }
    <domain: "own", opset_import: ["" : 17]>
    twice <width> (a) => (r) { c = Concat <axis = 0> (a, a)  r = Relu (c)  k = Constant <value_int: int = @width> () }
    <domain: "own", opset_import: ["" : 17]>
    once (a) => (r) { n = NonZero (a)  r = Transpose (n) }
    <domain: "own", opset_import: ["" : 17]>
    never (a) => (r) { r = Shape (a) }
    """
    return read_text(text)


def test_functions_are_followed_call_by_call_and_their_bodies_hold_for_all() -> None:
    model = function_model()
    types = Facts(model).get(Types)
    main = {t.name: types.shape(t) for node in model.graph.nodes for t in node.outputs}
    assert str(main["y"]) == "(Expr(2*b), 4)"
    assert main["u"] == (14,)
    twice, once, never = model.functions
    inside = {t.name: types.shape(t) for node in twice.nodes for t in node.outputs}
    assert inside["c"] is None
    assert inside["k"] == ()
    inside = {t.name: types.shape(t) for node in once.nodes for t in node.outputs}
    assert inside["n"] is not None
    assert inside["n"][0] == 2
    assert types.shape(never.nodes[0].outputs[0]) is not None
    assert types.failures == ()


def test_two_calls_with_equal_inputs_do_not_share_an_unknown_size() -> None:
    model = function_model()
    types = Facts(model).get(Types)
    w, v = (types.shape(node.outputs[0]) for node in list(model.graph.nodes)[2:])
    assert w is not None
    assert v is not None
    assert w[1] == v[1] == 2
    assert w[0] is not v[0]


def test_a_function_that_calls_itself_is_reported() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
    g (float[b] x) => (float y) { y = own.f (x) }
    <domain: "own", opset_import: ["" : 17, "own" : 1]>
    f (a) => (r) { r = own.f (a) }
    """
    model = read_text(text)
    reasons = [failure.reason for failure in Facts(model).get(Types).failures]
    assert reasons == ["function f calls itself"]


def test_calls_that_unfold_exponentially_end_with_a_reason() -> None:
    depth = 40
    functions = [
        f'<domain: "own", opset_import: ["" : 17, "own" : 1]>\n'
        f"f{level} (a) => (r) {{ b = own.f{level + 1} (a)  c = Concat <axis = 0> (b, b)  r = own.f{level + 1} (c) }}"
        for level in range(depth)
    ]
    last = f'<domain: "own", opset_import: ["" : 17]>\nf{depth} (a) => (r) {{ r = Concat <axis = 0> (a, a) }}'
    text = '<ir_version: 9, opset_import: ["" : 17, "own" : 1]>\ng (float[b] x) => (float y) { y = own.f0 (x) }\n'
    model = read_text(text + "\n".join([*functions, last]))
    types = Facts(model).get(Types)
    assert any("unfold to more than" in failure.reason for failure in types.failures)
    assert types.shape(model.graph.outputs[0]) is None


def test_nested_loops_are_swept_in_bounded_time() -> None:
    inner = "next = Concat <axis = 0> (s12, x)"
    for level in range(12, 0, -1):
        inner = (
            f"n{level}, t{level} = Loop (n, go, s{level - 1}) <body = b{level} (int64 i{level}, bool c{level}, "
            f"float[?] s{level}) => (d{level}, r{level}, o{level}) {{ d{level} = Identity (c{level})\n"
            f"{inner}\nr{level} = Concat <axis = 0> (s{level}, x)\no{level} = Identity (s{level}) }}>"
        )
    model = read(f"g (float[k] x, float[m] s0, int64 n, bool go) => (float y) {{ {inner}\n y = Relu (n1) }}")
    assert Facts(model).get(Types).failures == ()


# ------------------------------------------------------------------------------------------ declarations and failures


def test_declared_sizes_refine_what_is_unknown() -> None:
    model = read("g (float[b, 4] x, int64[2] target) => (float[b, 6] y) { t = Reshape (x, target)\n y = Relu (t) }")
    assert shapes(model)["y"] == "[b, 6]"


def test_a_declared_number_does_not_fix_what_the_inputs_decide() -> None:
    model = read("g (float[batch, 4] x) => (float[1, 4] y) { y = Relu (x) }")
    types = Facts(model).get(Types)
    assert shapes(model)["y"] == "[batch, 4]"
    assert [(c.declared, c.inferred) for c in types.conflicts] == [("shape [1, 4]", "shape [batch, 4]")]


def test_a_declared_number_holds_where_nothing_is_inferred() -> None:
    model = read("g (float[b, 4] x, int64[2] target) => (float[6, 2] y) { t = Reshape (x, target)\n y = Relu (t) }")
    assert shapes(model)["y"] == "[6, 2]"
    assert Facts(model).get(Types).conflicts == ()


def test_a_declared_name_that_no_input_has_means_nothing() -> None:
    model = read("g (float[b] x) => (int64[2, other] n, int64[2, other] m) { n = NonZero (x)\n m = NonZero (x) }")
    found = shapes(model)
    assert found["n"] != found["m"]


def test_a_wrong_declaration_is_reported_and_does_not_hold() -> None:
    model = read("g (float[b, 4] x) => (float[b, 5] y, int64[b] z) { y = Relu (x)\n z = ReduceSum <keepdims = 0> (x) }")
    types = Facts(model).get(Types)
    assert shapes(model)["y"] == "[b, 4]"
    assert [(c.tensor.name, c.declared, c.inferred) for c in types.conflicts] == [
        ("y", "shape [b, 5]", "shape [b, 4]"),
        ("z", "shape [b]", "shape []"),
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Add (x, z)", "sizes 4 and 3 do not broadcast"),
        ("y = MatMul (x, x)", "sizes 4 and 2 must be equal"),
        ("y = Transpose <perm = [0, 0]> (x)", r"\[0, 0\] is not a permutation of 2 axes"),
        ("y = Concat <axis = 0> (x, z)", "ranks .* differ"),
        ("y = Softmax <axis = 0> (x)\n u = Flatten <axis = 5> (x)", "axis 5 is outside rank 2"),
        ("y = Nonsense (x)", "operator Nonsense of domain '' version 17 has no schema"),
        ("y = Conv <strides = [0, 0]> (x, x)", "Conv|weight|rank|strides"),
        ("y = Cast <to = 1> (x)\n u = Gather <axis = 2> (x, x)", "axis 2 is outside rank 2"),
    ],
)
def test_a_node_that_cannot_run_is_recorded_and_leaves_its_outputs_unknown(body: str, reason: str) -> None:
    types = Facts(read(f"g (float[2, 4] x, float[3] z) => (float y) {{ {body} }}")).get(Types)
    assert len(types.failures) == 1
    assert re.search(reason, types.failures[0].reason)
    failed = types.failures[0].node
    assert types.shape(failed.outputs[0]) is None


def test_an_unsorted_graph_is_inferred_in_order_and_left_as_it_is() -> None:
    model = read("g (float[b, 4] x) => (float y) { a = Relu (x)\n c = Neg (a)\n y = Identity (c) }")
    model.graph.nodes.replace_all(list(reversed(list(model.graph.nodes))))
    assert shapes(model)["y"] == "[b, 4]"
    assert [node.op for node in model.graph.nodes] == ["Identity", "Neg", "Relu"]


def test_an_overridable_initializer_has_a_type_but_no_value() -> None:
    text = "g (float[b, 4] x, int64[2] target) => (float y) <int64[2] target = {2, -1}> { y = Reshape (x, target) }"
    proto = parser.parse_model(HEAD.format(17) + text)
    if "target" not in [info.name for info in proto.graph.input]:
        proto.graph.input.append(helper.make_tensor_value_info("target", TensorProto.INT64, [2]))
    assert shapes(read_model(proto))["y"] == "[?y.0, ?y.1]"


def test_a_tensor_added_later_is_inferred_when_it_is_asked_for() -> None:
    model = read("g (float[b, 4] x) => (float y) { y = Relu (x) }")
    types, values = Facts(model).get(Types), ShapeValues.compute(model, Facts(model))
    node = model.graph.nodes[0]
    with Rewriter(model) as rw:
        flat = rw.op("Reshape", [node.inputs[0], rw.constant(np.array([-1], np.int64), near=node)], near=node)
        size = rw.op("Shape", [rw.op("Concat", [flat, flat], attrs={"axis": 0}, near=node)], near=node)
    (batch, _) = types.shape(model.graph.inputs[0]) or ()
    assert types.shape(flat) == (4 * batch,)
    assert types.dtype(size) == TensorProto.INT64
    assert values.value(size) == (8 * batch,)
    assert types.knows(size)


def test_a_tensor_without_a_producer_is_what_it_declares() -> None:
    model = read("g (float[b, 4] x) => (float y) { y = Relu (x) }")
    types = Facts(model).get(Types)
    assert types.shape(Variable("new", np.dtype(np.float32), [2, 3])) == (2, 3)
    assert types.rank(Variable("other", np.dtype(np.float32), ["b", 3])) == 2
    assert types.dtype(Variable("third", np.dtype(np.float32))) == TensorProto.FLOAT


def test_a_constant_whose_value_was_replaced_is_read_again() -> None:
    model = read("g (float[8] x) => (float y) <int64[2] target = {2, 4}> { y = Reshape (x, target) }")
    facts = Facts(model)
    values = facts.get(ShapeValues)
    target = model.graph.nodes[0].inputs[1]
    assert values.constant(target) == (2, 4)
    with Rewriter(model) as rw:
        rw.set_weight(target, np.array([4, 2], np.int64))
    assert values.constant(target) == (4, 2)


def test_sequences_have_no_shape_but_their_elements_do() -> None:
    model = read(
        """g (float[b, 4] x) => (float y) <int64 zero = {0}> {
            seq = SequenceConstruct (x, x)
            y = SequenceAt (seq, zero)
        }"""
    )
    assert shapes(model)["seq"] == "?"
    assert shapes(model)["y"] == "[b, 4]"
    assert Facts(model).get(Types).failures == ()


def test_the_types_of_a_loop_agree_with_a_run() -> None:
    model = read(
        """g (float[b, 4] x, int64 n) => (float[b, 4] y, float[?, b, 4] z) <bool go = {1}> {
            y, z = Loop (n, go, x) <
                body = step (int64 i, bool c, float[?, ?] state) => (bool c2, float[?, ?] next, float[?, ?] out) {
                    c2 = Identity (c)
                    next = Relu (state)
                    out = Neg (next)
                }>
        }"""
    )
    for batch, count in ((2, 3), (5, 1)):
        feed = {"x": np.ones((batch, 4), np.float32), "n": np.array(count, np.int64)}
        assert check_run(model, feed).unknown_rank == 0
