"""Trap models of what a caller sees and of scopes: interface, names, control flow, functions, types, growth."""

# ruff: noqa: E501 - one model per line

from __future__ import annotations

from functools import partial

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trap_models import Trap, built, check_trap, trap

F = np.float32
FLOAT, STRING, INT64 = TensorProto.FLOAT, TensorProto.STRING, TensorProto.INT64
node = helper.make_node


def small_type(name: str) -> onnx.ModelProto:
    """A constant of a small type, cast to float."""
    values = np.arange(6).reshape(2, 3).astype(np.dtype(getattr(ml_dtypes, name)))
    nodes = [
        node("Cast", ["w"], ["c"], to=FLOAT),
        node("Transpose", ["w"], ["t"]),
        node("Cast", ["t"], ["d"], to=FLOAT),
        node("Add", ["x", "c"], ["y"]),
        node("MatMul", ["y", "d"], ["z"]),
    ]
    outputs = [("y", FLOAT, [2, 3]), ("z", FLOAT, [2, 2])]
    return built(nodes, [("x", FLOAT, [2, 3])], outputs, [numpy_helper.from_array(values, "w")], 23, 11)


def sparse_initializer() -> onnx.ModelProto:
    """A weight that is stored sparse."""
    values = helper.make_tensor("w", FLOAT, [2], [1.5, -2.0])
    indices = helper.make_tensor("w_indices", INT64, [2], [0, 3])
    nodes = [node("Identity", ["w"], ["i"]), node("Add", ["x", "i"], ["a"]), node("Mul", ["a", "w"], ["y"])]
    sparse = [helper.make_sparse_tensor(values, indices, [4])]
    return built(nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], sparse_initializer=sparse)


def constant_forms() -> onnx.ModelProto:
    """Constant nodes of every form."""
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("v", FLOAT, [1], [1.5]), helper.make_tensor("i", INT64, [1], [1]), [2]
    )
    nodes = [
        node("Constant", [], ["f"], value_float=0.5),
        node("Constant", [], ["fs"], value_floats=[1.0, 2.0]),
        node("Constant", [], ["i"], value_int=1),
        node("Constant", [], ["is"], value_ints=[2]),
        node("Constant", [], ["sp"], sparse_value=sparse),
        node("Constant", [], ["s"], value_string="a"),
        node("Constant", [], ["ss"], value_strings=["b", "c"]),
        node("Mul", ["x", "f"], ["a"]),
        node("Add", ["a", "fs"], ["b"]),
        node("Gather", ["b", "i"], ["g"], axis=0),
        node("Reshape", ["g", "is"], ["r"]),
        node("Add", ["r", "sp"], ["y"]),
        node("Reshape", ["s", "one"], ["s1"]),
        node("Constant", [], ["one"], value_ints=[1]),
        node("Concat", ["s1", "ss"], ["z"], axis=0),
    ]
    nodes.insert(12, nodes.pop(13))
    return built(nodes, [("x", FLOAT, ["n", 2])], [("y", FLOAT, [2]), ("z", STRING, [3])])


def overridable() -> onnx.ModelProto:
    """An initializer that is an input too: its value is only a default."""
    nodes = [node("Sqrt", ["w"], ["r"]), node("Mul", ["x", "r"], ["a"]), node("Mul", ["a", "v"], ["y"])]
    tensors = [numpy_helper.from_array(np.array([4, 9], F), "w"), numpy_helper.from_array(np.ones(2, F), "v")]
    return built(
        nodes, [("x", FLOAT, ["n", 2]), ("w", FLOAT, [2]), ("v", FLOAT, [2])], [("y", FLOAT, ["n", 2])], tensors
    )


def unread_overridable() -> onnx.ModelProto:
    """An overridable initializer and an input that nobody reads are public all the same."""
    tensors = [numpy_helper.from_array(np.ones(2, F), "v"), numpy_helper.from_array(np.ones(2, F), "gone")]
    inputs = [("u", INT64, ["k"]), ("x", FLOAT, ["n"]), ("v", FLOAT, [2])]
    return built([node("Neg", ["x"], ["y"])], inputs, [("y", FLOAT, ["n"])], tensors)


def old_ir() -> onnx.ModelProto:
    """Before IR 4 every initializer is an input as well, also those that appear and go."""
    nodes = [node("Sqrt", ["w"], ["r"]), node("Mul", ["x", "r"], ["a"]), node("Identity", ["a"], ["y"])]
    tensors = [numpy_helper.from_array(np.array([4, 9], F), "w")]
    return built(nodes, [("x", FLOAT, ["n", 2]), ("w", FLOAT, [2])], [("y", FLOAT, ["n", 2])], tensors, 8, 3)


def old_ir_from_constants() -> onnx.ModelProto:
    """Before IR 4, weights that are computed from Constant nodes."""
    nodes = [
        node("Constant", [], ["s"], value=numpy_helper.from_array(np.array([2, 2]))),
        node("ConstantOfShape", ["s"], ["o"], value=numpy_helper.from_array(np.array([0.5], F))),
        node("MatMul", ["x", "o"], ["y"]),
    ]
    return built(nodes, [("x", FLOAT, ["n", 2])], [("y", FLOAT, ["n", 2])], (), 9, 3)


def unsorted() -> onnx.ModelProto:
    """Nodes that are not in topological order: the checker refuses them, simplifiers should not crash."""
    nodes = [node("Relu", ["a"], ["b"]), node("Neg", ["x"], ["a"]), node("Identity", ["b"], ["y"])]
    return built(nodes, [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])])


def shadowed() -> onnx.ModelProto:
    """The inner graphs use names that nodes of the outer graph define after the If."""
    then = helper.make_graph([node("Neg", ["x"], ["t"]), node("Relu", ["t"], ["p"])], "t", [], [_value("p")])
    other = helper.make_graph([node("Abs", ["x"], ["u"]), node("Sqrt", ["u"], ["p2"])], "e", [], [_value("p2")])
    nodes = [
        node("If", ["c"], ["i"], then_branch=then, else_branch=other),
        node("Exp", ["x"], ["t_outer"]),
        node("Add", ["i", "t_outer"], ["s"]),
        node("Identity", ["s"], ["y"]),
    ]
    return built(nodes, [("c", TensorProto.BOOL, []), ("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])])


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, None)


def metadata() -> onnx.ModelProto:
    """Documentation and properties of the model, the graph and its values."""
    model = built(
        [node("Identity", ["x"], ["a"]), node("Neg", ["a"], ["y"])], [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])]
    )
    model.doc_string, model.producer_name, model.domain, model.model_version = "doc", "p", "d", 7
    model.graph.doc_string = "graph"
    model.graph.input[0].doc_string = "in"
    model.metadata_props.add(key="k", value="v")
    model.graph.metadata_props.add(key="k", value="v")
    return model


def many_halves() -> onnx.ModelProto:
    """Folds of which each is small enough and all together are not: a second run must not go on."""
    nodes, tensors = [], []
    for index in range(6):
        tensors.append(numpy_helper.from_array(np.array([5000 + index]), f"s{index}"))
        value = numpy_helper.from_array(np.array([0.5 + index], F))
        nodes += [
            node("ConstantOfShape", [f"s{index}"], [f"c{index}"], value=value),
            node("Add", ["x", f"c{index}"], [f"y{index}"]),
        ]
    inputs = [(f"y{index}", FLOAT, [5000 + index]) for index in range(6)]
    return built(nodes, [("x", FLOAT, [1])], inputs, tensors)


TRAPS = [
    # ---------------------------------------------------------------------------------------------------- random numbers
    trap("random-normal-like-twice", "two draws are two values", "g (float[n] x) => (float[n] y, float[n] z) { y = RandomNormalLike(x) z = RandomNormalLike(x) }", random=True, keeps={"RandomNormalLike": 2}),
    trap("random-with-equal-seed", "even with a seed the draws are of the runtime", "g (float[n] x) => (float[3] y, float[3] z) { y = RandomUniform<shape = [3], seed = 1.0>() z = RandomUniform<shape = [3], seed = 1.0>() }", random=True, keeps={"RandomUniform": 2}),
    trap("bernoulli-twice", "two draws of a coin", "g (float[n] x) => (float[n] y, float[n] z) <float h = {0.5}> { p = Sigmoid(x) y = Bernoulli(p) z = Bernoulli(p) }", random=True, runs=False, keeps={"Bernoulli": 2}),
    trap("bernoulli-of-constant", "its input is constant, its value is not", "g (float[4] x) => (float[4] y) <float[4] h = {0.5, 0.5, 0.5, 0.5}> { b = Bernoulli(h) y = Add(x, b) }", random=True, runs=False, keeps={"Bernoulli": 1}),
    trap("multinomial-twice", "two draws", "g (float[n, 3] x) => (int32[n, 2] y, int32[n, 2] z) { y = Multinomial<sample_size = 2>(x) z = Multinomial<sample_size = 2>(x) }", random=True, keeps={"Multinomial": 2}),
    trap("random-times-zero-size", "a random constant is no constant", "g (float[3] x) => (float[3] y) { r = RandomNormal<shape = [3]>() y = Add(x, r) }", random=True, keeps={"RandomNormal": 1}),
    trap("random-in-body", "every iteration draws anew: nothing to hoist", "g (float[2] x) => (float[2] y, float[k, 2] z) <int64 m = {3}, bool c = {1}> { y, z = Loop(m, c, x) <body = b (int64 i, bool ci, float[2] s) => (bool co, float[2] so, float[2] zo) { co = Identity(ci) zo = RandomNormalLike(x) so = Add(s, zo) }> }", random=True, keeps={"RandomNormalLike": 1}),
    trap("random-in-function", "called twice, drawn twice", "g (float[n] x) => (float[n] y, float[n] z) { y = f.noisy(x) z = f.noisy(x) }\n<domain: \"f\", opset_import: [\"\" : 21]>\nnoisy (a) => (b) { r = RandomNormalLike(a) b = Add(a, r) }", domains='"f" : 1', random=True),
    # --------------------------------------------------------------------------------------------------------- interface
    trap("input-is-output", "an input that is an output directly", "g (float[n] x, float[n] u) => (float[n] x, float[n] y) { a = Identity(x) y = Neg(a) }", runs=False),
    trap("identity-between-input-and-output", "the only node cannot go", "g (float[n] x) => (float[n] y) { y = Identity(x) }", keeps={"Identity": 1}),
    trap("one-value-two-outputs", "both names are public", "g (float[n] x) => (float[n] y, float[n] z) { a = Neg(x) b = Identity(a) y = Identity(b) z = Identity(b) }"),
    trap("equal-nodes-two-outputs", "equal values under two public names", "g (float[n] x) => (float[n] y, float[n] z) { y = Neg(x) z = Neg(x) }"),
    trap("output-of-other-size-name", "the Identity renames a dimension in public", "g (float[n] x) => (float[m] y, float[n] z) { a = Neg(x) y = Identity(a) z = Identity(a) }"),
    trap("output-less-known-than-inferred", "the declared output knows less than inference does", "g (float[2, 3] x) => (float[a, b] y) { y = Neg(x) }"),
    trap("output-declared-without-shape", "an output of unknown rank stays of unknown rank", "g (float[2, 3] x) => (float[] y) { a = Identity(x) y = Neg(a) }"),
    trap("constant-output", "an output that is constant needs a node or is an initializer", "g (float[n] x) => (float[2] y, float[n] z) <float[2] a = {1, 2}, float[2] b = {3, 4}> { y = Add(a, b) z = Neg(x) }"),
    trap("initializer-is-output", "an initializer that is an output directly", "g (float[2] x) => (float[2] w, float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"),
    trap("inputs-unread", "inputs that nobody reads stay, in their places", "g (float[m] u, float[n] x, int64 q) => (float[n] y) { y = Neg(x) }"),
    trap("input-read-by-dead-nodes-only", "the dead nodes go, the input stays", "g (float[n] x, float[m] u) => (float[n] y) { d = Exp(u) e = Neg(d) y = Relu(x) }"),
    trap("overridable-initializers", "whoever runs the model may give other values", overridable, keeps={"Sqrt": 1}),
    trap("overridable-unread", "public although unread", unread_overridable),
    trap("ir-3", "every initializer must be an input too", old_ir),
    trap("ir-3-constants", "new initializers would have to be inputs", old_ir_from_constants),
    trap("unsorted", "a reader before its producer", unsorted, runs=False),
    trap("metadata", "documentation and properties", metadata),
    trap("names-like-generated", "names that a name generator would make", "g (float[n] x) => (float[n] y, float[n] x_1) <float a = {2}, float a_1 = {3}> { x_0 = Mul(x, a) y_0 = Mul(x_0, a_1) x_1 = Identity(y_0) y = Relu(x_0) }"),
    trap("odd-names", "names with slashes, colons and spaces", lambda: built([node("Mul", ["a/b:0", "w w"], ["Ä"], name="n/1"), node("Neg", ["Ä"], ["out:0"], name="n /1")], [("a/b:0", FLOAT, ["n"])], [("out:0", FLOAT, ["n"])], [numpy_helper.from_array(np.array([1], F), "w w")])),
    trap("shadowed-names", "inner graphs and later nodes", shadowed),
    # ------------------------------------------------------------------------------------------------------ control flow
    trap("if-constant-condition", "the branch that remains reads outer tensors", "g (float[n] x) => (float[n] y) <bool c = {0}> { a = Exp(x) y = If (c) <then_branch = t () => (float[n] p) { p = Neg(a) }, else_branch = e () => (float[n] q) { q = Abs(a) }> }"),
    trap("if-other-shapes", "the branches give tensors of other rank", "g (bool c, float[2, 3] x) => (float[] y) { y = If (c) <then_branch = t () => (float[3] p) { p = ReduceSum<keepdims = 0>(x, ax) }, else_branch = e () => (float[2, 3] q) { q = Identity(x) }> }", weights={"ax": np.array([0])}),
    trap("if-equal-branches", "both do the same", "g (bool c, float[n] x) => (float[n] y) { y = If (c) <then_branch = t () => (float[n] p) { p = Neg(x) }, else_branch = e () => (float[n] q) { q = Neg(x) }> }"),
    trap("if-branch-is-outer-tensor", "a branch gives an outer tensor by Identity", "g (bool c, float[n] x) => (float[n] y) { a = Relu(x) y = If (c) <then_branch = t () => (float[n] p) { p = Identity(a) }, else_branch = e () => (float[n] q) { q = Identity(x) }> }"),
    trap("if-same-local-names", "the branches use the same names for other values", "g (bool c, float[n] x) => (float[n] y) { y = If (c) <then_branch = t () => (float[n] p) { l = Neg(x) p = Exp(l) }, else_branch = e () => (float[n] p) { l = Abs(x) p = Sqrt(l) }> }", runs=False),
    trap("if-side-branch-division", "a branch that is not taken must not be computed for both: 1 / 0", "g (bool c, int64[n] x, int64 d) => (int64[n] y) { y = If (c) <then_branch = t () => (int64[n] p) { p = Identity(x) }, else_branch = e () => (int64[n] q) { q = Neg(x) }> }"),
    trap("if-in-if", "a constant inside an unknown condition", "g (bool c, float[n] x) => (float[n] y) <bool k = {1}> { y = If (c) <then_branch = t () => (float[n] p) { p = If (k) <then_branch = tt () => (float[n] r) { r = Neg(x) }, else_branch = te () => (float[n] s) { s = Exp(x) }> }, else_branch = e () => (float[n] q) { q = Abs(x) }> }"),
    trap("if-two-outputs-one-unread", "an output of If that nobody reads", "g (bool c, float[n] x) => (float[n] y) { y, z = If (c) <then_branch = t () => (float[n] p, float[n] r) { p = Neg(x) r = Exp(x) }, else_branch = e () => (float[n] q, float[n] s) { q = Abs(x) s = Log(x) }> }"),
    trap("loop-zero-trips", "the body never runs: the state is the initial one, the scan output empty", "g (float[2] x) => (float[2] y, float[k, 2] z) <int64 m = {0}, bool c = {1}> { y, z = Loop(m, c, x) <body = b (int64 i, bool ci, float[2] s) => (bool co, float[2] so, float[2] zo) { co = Identity(ci) so = Add(s, x) zo = Neg(s) }> }"),
    trap("loop-three-trips", "a constant count without exit", "g (float[2] x) => (float[2] y, float[k, 2] z) <int64 m = {3}, bool c = {1}> { y, z = Loop(m, c, x) <body = b (int64 i, bool ci, float[2] s) => (bool co, float[2] so, float[2] zo) { co = Identity(ci) f = Cast<to = 1>(i) t = Add(s, x) so = Mul(t, f) zo = Neg(s) }> }"),
    trap("loop-early-exit", "the count is a constant, the condition ends it before", "g (float[2] x) => (float[2] y, float[k, 2] z) <int64 m = {5}, bool c = {1}, int64 two = {2}> { y, z = Loop(m, c, x) <body = b (int64 i, bool ci, float[2] s) => (bool co, float[2] so, float[2] zo) { co = Less(i, two) so = Add(s, x) zo = Neg(s) }> }"),
    trap("loop-never-starts", "the first condition is false", "g (float[2] x, int64 m) => (float[2] y) <bool c = {0}> { y = Loop(m, c, x) <body = b (int64 i, bool ci, float[2] s) => (bool co, float[2] so) { co = Identity(ci) so = Add(s, x) }> }"),
    trap("loop-count-unknown", "neither count nor condition is known", "g (float[2] x, int64 m, bool c) => (float[2] y) { y = Loop(m, c, x) <body = b (int64 i, bool ci, float[2] s) => (bool co, float[2] so) { co = Identity(ci) so = Add(s, x) }> }"),
    trap("loop-without-limits", "count and condition are left out: the body ends it", "g (float[2] x) => (float[2] y, int64 n) <int64 zero = {0}, int64 one = {1}, int64 four = {4}> { y, n = Loop(, , x, zero) <body = b (int64 i, bool ci, float[2] s, int64 k) => (bool co, float[2] so, int64 ko) { ko = Add(k, one) co = Less(ko, four) so = Add(s, x) }> }"),
    trap("loop-state-changes-shape", "the state grows in every iteration", "g (float[n] x) => (float[k] y) <int64 m = {3}, bool c = {1}> { y = Loop(m, c, x) <body = b (int64 i, bool ci, float[q] s) => (bool co, float[r] so) { co = Identity(ci) so = Concat<axis = 0>(s, x) }> }"),
    trap("loop-state-swaps", "two states change places: each is the other's old value", "g (float[2] x, float[2] w) => (float[2] y, float[2] z) <int64 m = {3}, bool c = {1}> { y, z = Loop(m, c, x, w) <body = b (int64 i, bool ci, float[2] s, float[2] t) => (bool co, float[2] so, float[2] to) { co = Identity(ci) so = Identity(t) to = Identity(s) }> }"),
    trap("loop-invariant-in-body", "a constant and an invariant inside", "g (float[2] x, int64 m) => (float[2] y) <bool c = {1}, float[2] a = {4, 9}> { y = Loop(m, c, x) <body = b (int64 i, bool ci, float[2] s) => (bool co, float[2] so) { co = Identity(ci) r = Sqrt(a) e = Exp(x) t = Mul(r, e) so = Add(s, t) }> }"),
    trap("loop-invariant-that-fails", "a division that zero trips never make", "g (int64[2] x, int64 m, int64[2] d) => (int64[2] y) <bool c = {1}> { y = Loop(m, c, x) <body = b (int64 i, bool ci, int64[2] s) => (bool co, int64[2] so) { co = Identity(ci) one = Max(d, x) so = Add(s, one) }> }"),
    trap("loop-output-unread", "the final state is read, the scan output not", "g (float[2] x, int64 m) => (float[2] y) <bool c = {1}> { y, z = Loop(m, c, x) <body = b (int64 i, bool ci, float[2] s) => (bool co, float[2] so, float[2] zo) { co = Identity(ci) so = Add(s, x) zo = Neg(s) }> }"),
    trap("loop-scan-of-index", "the scan output is the iteration number", "g (float[2] x) => (int64[k] z) <int64 m = {4}, bool c = {1}> { z = Loop(m, c) <body = b (int64 i, bool ci) => (bool co, int64 zo) { co = Identity(ci) zo = Mul(i, i) }> }"),
    trap("scan-backwards", "directions and axes", "g (float[3, n] x, float[3] s) => (float[3] y, float[3, n] z) { y, z = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1], scan_output_axes = [1], scan_output_directions = [1], body = b (float[3] si, float[3] xi) => (float[3] so, float[3] zo) { so = Add(si, xi) zo = Identity(so) }>(s, x) }"),
    trap("scan-captures-folded", "the body reads what folding replaces", "g (float[3, 2] x, float[2] s) => (float[2] y, float[3, 2] z) <float[2] a = {4, 9}> { q = Sqrt(a) y, z = Scan<num_scan_inputs = 1, body = b (float[2] si, float[2] xi) => (float[2] so, float[2] zo) { r = Sqrt(q) so = Add(si, r) zo = Mul(xi, q) }>(s, x) }"),
    trap("sequence-of-split", "statically resolvable", "g (float[4] x) => (float[2] y) <int64 two = {2}, int64 one = {1}> { s = SplitToSequence<axis = 0>(x, two) y = SequenceAt(s, one) }"),
    trap("sequence-negative-position", "position -1", "g (float[n] x, float[n] w) => (float[n] y) <int64 p = {-1}> { s = SequenceConstruct(x, w) y = SequenceAt(s, p) }"),
    trap("sequence-insert-erase", "positions shift", "g (float[2] x, float[2] w) => (float[2] y, int64 l) <int64 z = {0}, int64 o = {1}> { s = SequenceConstruct(x, w) n = Neg(x) t = SequenceInsert(s, n, z) u = SequenceErase(t, o) y = SequenceAt(u, o) l = SequenceLength(u) }"),
    trap("sequence-split-without-keepdims", "keepdims = 0 drops the axis", "g (float[3, 2] x) => (float[2] y) <int64 one = {1}> { s = SplitToSequence<axis = 0, keepdims = 0>(x) y = SequenceAt(s, one) }"),
    trap("sequence-concat", "ConcatFromSequence with a new axis", "g (float[n] x, float[n] w) => (float[2, n] y, float[k] z) { s = SequenceConstruct(x, w) y = ConcatFromSequence<axis = 0, new_axis = 1>(s) z = ConcatFromSequence<axis = 0>(s) }"),
    trap("sequence-in-loop", "a sequence as state", "g (float[n] x) => (float[k] y) <int64 m = {3}, bool c = {1}> { e = SequenceEmpty() s = Loop(m, c, e) <body = b (int64 i, bool ci, seq(float[n]) si) => (bool co, seq(float[n]) so) { co = Identity(ci) so = SequenceInsert(si, x) }> y = ConcatFromSequence<axis = 0>(s) }"),
    trap("optional", "an element and its absence", "g (float[2] x) => (float[2] y, bool h) { o = Optional(x) e = OptionalGetElement(o) y = Neg(e) h = OptionalHasElement(o) }"),
    # -------------------------------------------------------------------------------------------------- functions, domains
    trap("function-of-attribute", "the body refers to an attribute of the call", "g (float[n] x) => (float[n] y, float[n] z) { y = f.act<alpha = 0.5>(x) z = f.act<alpha = 2.0>(x) }\n<domain: \"f\", opset_import: [\"\" : 21]>\nact <alpha> (a) => (b) { i = Identity(a) b = Elu<alpha: float = @alpha>(i) }", domains='"f" : 1'),
    trap("function-with-constants", "constants inside a function cannot become initializers", "g (float[n] x) => (float[n] y) { y = f.scaled(x) }\n<domain: \"f\", opset_import: [\"\" : 21]>\nscaled (a) => (b) { two = Constant<value = float {2}>() three = Constant<value = float {3}>() six = Mul(two, three) b = Mul(a, six) }", domains='"f" : 1'),
    trap("function-of-other-opset", "the body is opset 11: Squeeze has an attribute there", "g (float[1, n] x) => (float[n] y) { y = f.flat(x) }\n<domain: \"f\", opset_import: [\"\" : 11]>\nflat (a) => (b) { i = Identity(a) b = Squeeze<axes = [0]>(i) }", domains='"f" : 1', runs=False),
    trap("function-default-attribute", "a default of the function's attribute", "g (float[n] x) => (float[n] y) { y = f.act(x) }\n<domain: \"f\", opset_import: [\"\" : 21]>\nact <alpha: float = 0.25> (a) => (b) { b = LeakyRelu<alpha: float = @alpha>(a) }", domains='"f" : 1'),
    trap("function-unused", "a function that nobody calls", "g (float[n] x) => (float[n] y) { y = Neg(x) }\n<domain: \"f\", opset_import: [\"\" : 21]>\nact (a) => (b) { b = Relu(a) }", domains='"f" : 1'),
    trap("function-calls-function", "nested calls, an output that nobody reads", "g (float[n] x) => (float[n] y) { y, z = f.outer(x) }\n<domain: \"f\", opset_import: [\"\" : 21, \"f\" : 1]>\nouter (a) => (b, c) { b = f.inner(a) c = Neg(a) }\n<domain: \"f\", opset_import: [\"\" : 21]>\ninner (a) => (b) { i = Identity(a) b = Relu(i) }", domains='"f" : 1'),
    trap("custom-domain", "nothing is known about the operator: it may be random", "g (float[n] x) => (float[n] y, float[n] z) { y = c.Thing(x) z = c.Thing(x) }", domains='"c" : 1', runs=False, keeps={"Thing": 2}),
    trap("custom-domain-of-constants", "constants do not make it constant", "g (float[n] x) => (float[n] y) <float[2] a = {1, 2}> { b = c.Relu(a) d = c.Identity(b) y = Add(x, d) }", domains='"c" : 1', runs=False, keeps={"Identity": 1}),
    trap("preview-domain", "operators of ai.onnx.preview.training", "g (float r, int64 t, float[n] x, float[n] d, float[n] h) => (float[n] y, float[n] z) { y, z = ai.onnx.preview.training.Adagrad<decay_factor = 0.1, epsilon = 0.00001, norm_coefficient = 0.0>(r, t, x, d, h) }", domains='"ai.onnx.preview.training" : 1', runs=False),
    trap("ml-domain", "operators of ai.onnx.ml", "g (float[n, 3] x) => (float[n, 3] y) { a = ai.onnx.ml.Scaler<offset = [1.0, 0.0, 0.0], scale = [1.0, 2.0, 1.0]>(x) y = Identity(a) }", domains='"ai.onnx.ml" : 3'),
    trap("domain-by-long-name", "the domain ai.onnx is the default one", "g (float[n] x) => (float[n] y) { a = ai.onnx.Identity(x) y = ai.onnx.Neg(a) }", runs=False),
    # ------------------------------------------------------------------------------------------------------------- types
    *(trap(f"type-{name}", "values that numpy does not know", partial(small_type, name), runs=False) for name in ("int4", "uint4", "float8_e4m3fn", "float8_e5m2", "bfloat16", "float4_e2m1fn")),
    trap("sparse-initializer", "a sparse weight is no dense one", sparse_initializer),
    trap("constant-forms", "Constant nodes of every form", constant_forms),
    trap("strings", "strings are equal or not, and are not numbers", "g (string[n] x) => (string[n] y, bool[n] z) <string[1] a = {\"b\"}> { i = Identity(x) y = Identity(i) z = Equal(i, a) }", runs=False),
    trap("half-precision", "float16 constants, limits and casts", "g (float16[n] x) => (float16[n] y) { a = Mul(x, c) b = Add(a, d) y = Relu(b) }", weights={"c": np.array(0.1, np.float16), "d": np.array(60000, np.float16)}, odd=True),
    trap("half-precision-chain", "0.1 * 0.1 in float16", "g (float16[n] x) => (float16[n] y) { a = Mul(x, c) y = Mul(a, c) }", weights={"c": np.array(0.1, np.float16)}),
    trap("bfloat16-through", "bfloat16 casts round", lambda: built([node("Cast", ["x"], ["a"], to=TensorProto.BFLOAT16), node("Cast", ["a"], ["y"], to=FLOAT)], [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])])),
    trap("complex-numbers", "complex constants", lambda: built([node("Identity", ["x"], ["a"]), node("Identity", ["a"], ["y"])], [("x", TensorProto.COMPLEX64, ["n"])], [("y", TensorProto.COMPLEX64, ["n"])]), runs=False),
    trap("dequantized-weight", "the weight is stored in 8 bits on purpose", "g (float[n, 4] x) => (float[n, 3] y) <float s = {0.1}, int8 z = {0}> { f = DequantizeLinear(w, s, z) y = MatMul(x, f) }", weights={"w": np.arange(12, dtype=np.int8).reshape(4, 3)}, keeps={"DequantizeLinear": 1}),
    trap("quantized-and-back", "rounding to the grid is the meaning", "g (float[n, 4] x) => (float[n, 4] y) <float s = {0.1}, uint8 z = {128}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }", keeps={"QuantizeLinear": 1, "DequantizeLinear": 1}, odd=True),
    trap("dequantize-transposed-weight", "views on the quantized side of a per-channel scale", "g (float[n, 4] x) => (float[n, 3] y) <int8[3] z = {0, 0, 0}> { f = DequantizeLinear<axis = 0>(w, s, z) t = Transpose(f) y = MatMul(x, t) }", weights={"w": np.arange(12, dtype=np.int8).reshape(3, 4), "s": np.array([0.1, 0.2, 0.4], F)}, keeps={"DequantizeLinear": 1}),
    trap("blocked-dequantize", "a scale per block of 2", "g (float[n, 4] x) => (float[n, 3] y) { f = DequantizeLinear<axis = 0, block_size = 2>(w, s) y = MatMul(x, f) }", weights={"w": np.arange(12, dtype=np.int8).reshape(4, 3), "s": np.arange(1, 7, dtype=F).reshape(2, 3)}, keeps={"DequantizeLinear": 1}),
    trap("cumsum-exclusive-reverse", "attributes of CumSum", "g (float[n, 4] x) => (float[n, 4] y) <int64 a = {-1}, float[4] c = {1, 2, 3, 4}> { k = CumSum<exclusive = 1, reverse = 1>(c, z) s = CumSum<reverse = 1>(x, a) y = Add(s, k) }", weights={"z": np.array(0)}),
    trap("einsum-unknown-rank", "an ellipsis", "g (float[n, m, 4] x) => (float[n, m, 3] y) { y = Einsum<equation = \"...i, ij -> ...j\">(x, w) }", weights={"w": (4, 3)}),
    trap("one-hot-values", "off and on values, depth from a tensor", "g (int64[n] x) => (float[n, 5] y) <int64 d = {5}, float[2] v = {0, 1}> { y = OneHot(x, d, v) }"),
    trap("non-zero-of-constant", "a shape that depends on values", "g (float[n] x) => (int64[1, k] y, float[n] z) <float[4] c = {0, 1, 0, 2}> { y = NonZero(c) z = Neg(x) }"),
    trap("unique-and-compress", "shapes that depend on values", "g (float[n] x, bool[n] c) => (float[k] y, float[q] z) { y = Unique(x) z = Compress(x, c) }"),
    trap("gru-optional-inputs", "optional inputs that are left out in the middle", "g (float[n, 1, 2] x, float[1, 1, 3] h) => (float[1, 1, 3] y) { a, y = GRU<hidden_size = 3>(x, w, r, , , h) }", weights={"w": (1, 9, 2), "r": (1, 9, 3)}),
    # ------------------------------------------------------------------------------------------------------------ growth
    trap("constant-of-shape-large", "1.6 GB of one value", "g (float[n] x) => (float[n] y) <int64[2] s = {20000, 20000}, int64[2] ax = {0, 1}> { c = ConstantOfShape<value = float[1] {1}>(s) m = ReduceMax<keepdims = 0>(c, ax) y = Add(x, m) }", runs=False, sizes=()),
    trap("range-large", "30 million numbers", "g (int64 x) => (int64 y) <int64 a = {0}, int64 b = {30000000}, int64 d = {1}> { r = Range(a, b, d) s = ReduceMax<keepdims = 0>(r) y = Add(x, s) }", runs=False, sizes=()),
    trap("tile-large", "4 kB become 80 MB", "g (float x) => (float[k] y) <int64[1] r = {20000}> { t = Tile(w, r) y = Add(t, x) }", weights={"w": (1000,)}, runs=False, sizes=()),
    trap("expand-large", "134 bytes become 128 MB", "g (float x) => (float[a, b] y) <int64[2] s = {8000, 4000}> { t = Expand(w, s) y = Add(t, x) }", weights={"w": (1,)}, runs=False, sizes=()),
    trap("cast-doubles-a-weight", "a weight stored in half precision on purpose", "g (float[n, 256] x) => (float[n, 256] y) { f = Cast<to = 1>(w) y = MatMul(x, f) }", weights={"w": np.random.default_rng(0).standard_normal((256, 256)).astype(np.float16)}),
    trap("transpose-shared-weight", "one weight, read as it is and transposed", "g (float[n, 200] x) => (float[n, 200] y, float[n, 200] z) { t = Transpose(w) y = MatMul(x, w) z = MatMul(x, t) }", weights={"w": (200, 200)}),
    trap("outer-product-of-constants", "two small factors of a large product", "g (float[n, 300] x) => (float[n, 300] y) { p = MatMul(a, b) y = MatMul(x, p) }", weights={"a": (300, 1), "b": (1, 300)}),
    trap("many-small-folds", "each is small, their sum is not, and a second run would go on", many_halves),
    trap("gather-of-large-table", "two rows of an embedding", "g (float[n, 8] x) => (float[n, 8] y) <int64[2] i = {1, 7}, int64[1] ax = {0}> { r = Gather(w, i) s = ReduceSum(r, ax) y = Add(x, s) }", weights={"w": (500, 8)}),
    # ------------------------------------------------------------------------------------- found by random models
    trap("constants-of-several-outputs", "one part of a constant Split is folded, the other read", "g (float[n] x) => (float[n] y, int64 z, float[1] w) <float[4] c = {1, 2, 3, 4}, int64[2] s = {1, 3}, int64 z0 = {0}> { r = Sqrt(c) a, b = Split<axis = 0>(r, s) z = ArgMin<axis = 0, keepdims = 0>(b) y = Mul(x, a) w = Identity(a) }"),
    trap("loop-of-opset-9", "before opset 11 a Loop carries at least one value, read or not", "g (float x) => (float[k] z) <int64 m = {3}, bool c = {1}> { y, z = Loop(m, c, x) <body = b (int64 i, bool ci, float s) => (bool co, float so, float zo) { co = Identity(ci) so = Tanh(x) zo = Neg(x) }> }", opset=9, ir=4),
    trap("type-known-late", "what a resolved sequence holds has a type, and so has all behind it", "g (float[n, 4] x, float[m, k] w) => (float[a, b] y) <int64 zero = {0}, float three = {3}, float low = {0}, float six = {6}> { q = SequenceConstruct(x, w) t = SequenceAt(q, zero) s = Add(three, t) c = Clip(s, low, six) p = Mul(t, c) y = Div(p, six) }", opset=26),
    trap("size-known-late", "folding in the graph tells a function's argument its size", "g (float[n] x) => (float[1] y, float[k] z) <int64 a = {0}, int64 b = {1}, int64 one = {1}> { r = Range(a, b, one) u = Unsqueeze(r, ax) f = Cast<to = 1>(u) y = f.flat(f) z = Add(x, y) }\n<domain: \"f\", opset_import: [\"\" : 21]>\nflat (p) => (q) { s = Constant<value = int64[2] {1, 1}>() t = Constant<value = int64[1] {1}>() u = Reshape(p, s) v = Reshape(u, t) q = Relu(v) }", domains='"f" : 1', weights={"ax": np.array([0])}),
    trap("branches-that-agree-late", "an inner If becomes constant only when the outer one is gone", "g (bool c, float[n] x) => (float[n] y) <bool t = {1}> { y = If (t) <then_branch = a () => (float[n] p) { u = Not(t) p = If (u) <then_branch = aa () => (float[n] r) { r = Neg(x) }, else_branch = ab () => (float[n] s) { s = If (c) <then_branch = ba () => (float[n] v) { v = Exp(x) }, else_branch = bb () => (float[n] w) { w = Exp(x) }> }> }, else_branch = e () => (float[n] q) { q = Abs(x) }> }"),
    trap("empty-parts", "a Split of nothing, joined again", "g (float[n, 0] x) => (float[n, 0] y) <int64[2] s = {0, 0}> { a, b = Split<axis = 1>(x, s) r = Relu(a) y = Concat<axis = 1>(r, b) }"),
]  # fmt: skip


@pytest.mark.parametrize("each", TRAPS, ids=str)
def test_trap_is_simplified_without_a_fault(each: Trap) -> None:
    check_trap(each)
