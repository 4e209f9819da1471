"""The values of a model that is being made: what each tensor holds, for every feed, is known from the start.

Every node is run by ONNX Runtime as it is added. So each model runs, and what would make the comparison of two right
models fail can be kept out: numbers that are not finite, divisions by almost nothing, rounding at a tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

if TYPE_CHECKING:
    from collections.abc import Sequence

Arrays = tuple[np.ndarray, ...]

LARGEST = 200.0
"""Elements beyond this are kept out: they amplify rounding."""

MOST_ELEMENTS = 6000
FLOATS = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16))


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor.

    Attributes:
        name: Its name.
        arrays: What it holds, per feed.
        exact: Whether no rounding is in it, so that it is the same bits in every right model.
        constant: Whether it is a constant of the model.
    """

    name: str
    arrays: Arrays
    exact: bool = True
    constant: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.arrays[0].dtype

    @property
    def rank(self) -> int:
        return self.arrays[0].ndim

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Return the sizes that are the same in every feed; None for the others."""
        shapes = [array.shape for array in self.arrays]
        return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def is_static(self) -> bool:
        return None not in self.shape


def runs(
    op: str, inputs: Sequence[Value | None], outputs: int, opset: int, attributes: dict[str, Any], domain: str = ""
) -> list[Arrays] | None:
    """Run a node for every feed; None where ONNX Runtime does not."""
    if not domain and (not is_defined(op, opset) or _is_misread_empty(op, inputs)):
        return None
    if op == "Slice" and opset == 10:
        return None  # ONNX infers the symbol of the input for every result, and ONNX Runtime trusts it in its buffers
    kinds = tuple(None if value is None else (value.dtype.str, value.rank) for value in inputs)
    node = helper.make_node(
        op,
        ["" if value is None else f"i{n}" for n, value in enumerate(inputs)],
        [f"o{n}" for n in range(outputs)],
        domain=domain,
        **attributes,
    )
    session = _session(node.SerializeToString(deterministic=True), kinds, opset)
    return None if session is None else run_session(session, inputs, outputs)


def run_session(session: Any, inputs: Sequence[Value | None], outputs: int) -> list[Arrays] | None:
    """Run a session whose inputs are i0, i1, ... and whose outputs are o0, o1, ... for every feed."""
    count = next((len(value.arrays) for value in inputs if value is not None), 0)
    found = []
    for index in range(count):
        feed = {f"i{n}": value.arrays[index] for n, value in enumerate(inputs) if value is not None}
        try:
            found.append(session.run([f"o{n}" for n in range(outputs)], feed))
        except Exception:
            return None
    if any(not isinstance(array, np.ndarray) for arrays in found for array in arrays):
        return None
    results = [tuple(arrays) for arrays in zip(*found, strict=True)]
    if any(len({array.ndim for array in arrays}) > 1 for arrays in results):
        return None  # the generator reckons with one rank
    return results


@cache
def is_defined(op: str, opset: int) -> bool:
    """Tell whether an operator is in an opset of ONNX; ONNX Runtime takes some in others too."""
    return bool(onnx.defs.has(op, opset, ""))


@lru_cache(maxsize=4000)
def _session(data: bytes, kinds: tuple[tuple[str, int] | None, ...], opset: int) -> Any:
    node = onnx.NodeProto.FromString(data)
    inputs = [
        helper.make_tensor_value_info(f"i{n}", helper.np_dtype_to_tensor_dtype(np.dtype(kind[0])), [None] * kind[1])
        for n, kind in enumerate(kinds)
        if kind is not None
    ]
    return open_graph([node], inputs, list(node.output), opset)


def open_graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    opset: int,
    functions: Sequence[onnx.FunctionProto] = (),
) -> Any:
    """Return a session of a few nodes, or None where ONNX Runtime does not load them."""
    graph = helper.make_graph(list(nodes), "g", list(inputs), [onnx.ValueInfoProto(name=name) for name in outputs])
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(each.domain, 1) for each in functions[:1])]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return None


# --------------------------------------------------------------------------------------------------------- conditioning

_EXACT = frozenset((
    *("Identity", "Relu", "Neg", "Abs", "Max", "Min", "Clip", "Reshape", "Flatten", "Squeeze", "Unsqueeze"),
    *("Transpose", "Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"),
    *("Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "Where", "MaxPool", "GlobalMaxPool", "ReduceMax"),
    *("ReduceMin", "Floor", "Ceil", "Round", "Sign", "Dropout", "Trilu", "ReverseSequence", "TopK", "Compress"),
    *("Cast", "CastLike", "ConstantOfShape", "Range", "OneHot", "EyeLike", "Hardmax", "QuantizeLinear", "Constant"),
    "Upsample",
))  # fmt: skip
"""Operators whose float results carry no rounding of their own."""

_STEPS = frozenset(("Floor", "Ceil", "Round", "Cast", "CastLike", "Mod", "QuantizeLinear", "DynamicQuantizeLinear"))
_TIES = frozenset(("ArgMax", "ArgMin", "TopK", "Hardmax"))
_COMPARED = frozenset(("Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"))
_NORMALIZED = frozenset((
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization"),
    *("LpNormalization", "RMSNormalization"),
))  # fmt: skip

FRAGILE = frozenset((
    *("LRN", "Scan", "Loop", "LSTM", "GRU", "RNN", "MaxPool", "AveragePool", "LpPool", "Resize", "Upsample", "Einsum"),
    *("DynamicQuantizeLinear", "LpNormalization", "MeanVarianceNormalization", "InstanceNormalization"),
    *("ReduceMin", "ReduceMax", "ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
    *("ReduceLogSumExp", "ArgMin", "ArgMax", "GlobalAveragePool", "GlobalMaxPool"),
))  # fmt: skip
"""Operators whose kernels in ONNX Runtime end the process on empty tensors, or give them another shape than ONNX."""


def is_exact(op: str, inputs: Sequence[Value], output: np.ndarray) -> bool:
    """Tell whether a result is the same bits in every right model."""
    if output.dtype not in FLOATS:
        return True  # what rounding could flip is kept out
    return op in _EXACT and all(value.exact for value in inputs)


def is_tame(op: str, inputs: Sequence[Value], attributes: dict[str, Any], results: Sequence[Arrays]) -> bool:
    """Tell whether a node is well-conditioned on every feed: right models agree on it up to their rounding."""
    for arrays in results:
        for array in arrays:
            if array.size > MOST_ELEMENTS:
                return False
            if array.dtype in FLOATS and not np.all(np.abs(array) < LARGEST):
                return False
    if op == "Concat" and not _fit_together(inputs, attributes["axis"]):
        return False
    floats = [value for value in inputs if value.is_float]
    if not floats:
        return True
    inexact = any(not value.exact for value in floats)
    return all(
        _is_tame_on([value.arrays[k] for value in inputs], op, attributes, [r[k] for r in results], inexact=inexact)
        for k in range(len(floats[0].arrays))
    )


def _is_misread_empty(op: str, inputs: Sequence[Value | None]) -> bool:
    """Tell whether ONNX Runtime is no witness because a tensor is empty.

    Some kernels end the process, others leave in their result whatever was in memory; see `is_unwritten`.
    """
    given = [value for value in inputs if value is not None]
    empty = any(array.size == 0 for value in given for array in value.arrays)
    return empty and (op in FRAGILE or (op in UNWRITTEN and any(is_unwritten(op, a) for a in given[0].arrays)))


UNWRITTEN = frozenset(("MatMul", "Conv"))
"""Operators whose kernels in ONNX Runtime do not write a sum of no terms, which is 0 by definition."""


def is_unwritten(op: str, first: np.ndarray) -> bool:
    """Tell whether an operator of `UNWRITTEN` sums no terms.

    ONNX Runtime then returns uninitialised memory: MatMul wherever it broadcasts or meets a vector, Conv always. It is
    no witness there, of the original as little as of the result, and two runs of one model differ.

    Args:
        op: The operator.
        first: Its first input.
    """
    return bool(first.shape[-1 if op == "MatMul" else 1] == 0)


def _fit_together(inputs: Sequence[Value], axis: int) -> bool:
    """Tell whether the sizes beside the axis agree; ONNX Runtime overlooks that in empty tensors."""
    for arrays in zip(*(value.arrays for value in inputs), strict=True):
        rests = set()
        for array in arrays:
            sizes = list(array.shape)
            sizes.pop(axis)
            rests.add(tuple(sizes))
        if len(rests) > 1:
            return False
    return True


def _is_tame_on(
    given: list[np.ndarray], op: str, attributes: dict[str, Any], results: list[np.ndarray], *, inexact: bool
) -> bool:
    x = given[0].astype(np.float64) if given[0].dtype != np.bool_ else given[0]
    margin = 0.02 if any(array.dtype == np.float16 for array in given) else 1e-3
    if not x.size:
        return True
    if op == "PRelu":
        return results[0].shape == given[0].shape
    if op in {"Div", "Mod"}:
        return _away(given[1], 0.1) and (op == "Div" or not inexact)
    if op in {"Reciprocal", "Log", "Sqrt"}:
        return _away(given[0], 0.1)
    if op == "Pow":
        return bool(np.all(x > 0.1)) or bool(np.all(np.isin(given[1], (1, 2, 3))))
    if op in {"ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "LpPool", "ReduceL1"}:
        return _away(results[0], 0.1)
    if op in _NORMALIZED:
        return all(float(np.abs(row).max(initial=0.0)) < 8 for row in results) and _divisor(op, x, attributes) > 0.1
    if op == "BatchNormalization" or not inexact:
        return True
    if op in _COMPARED:
        return _away(
            np.subtract(*np.broadcast_arrays(given[0].astype(np.float64), given[1].astype(np.float64))), margin
        )
    if op == "Sign" or (op in {"Cast", "CastLike"} and results[0].dtype == np.bool_):
        return _away(x, margin)
    if op in {"Cast", "CastLike"} and results[0].dtype in FLOATS:
        return True
    if op in _STEPS:
        scale = given[1].astype(np.float64) if op == "QuantizeLinear" else 1.0
        whole = x / scale
        return _away(whole - np.round(whole), margin) and _away(np.abs(whole - np.floor(whole)) - 0.5, margin)
    if op in _TIES:
        ordered = np.sort(x, axis=attributes.get("axis", -1 if op != "ArgMax" else 0))
        return _away(np.diff(ordered, axis=attributes.get("axis", -1 if op != "ArgMax" else 0)), margin)
    if op in {"ThresholdedRelu", "Shrink", "NonZero", "Unique", "Compress", "HardSwish"}:
        return op == "HardSwish"
    if op in {"Sub", "Add", "Sum", "Mean"} and results[0].dtype in FLOATS:
        largest = max(float(np.abs(array).max(initial=0.0)) for array in given)
        return float(np.abs(results[0]).max(initial=0.0)) >= 0.02 * largest
    return True


def _away(array: np.ndarray, margin: float) -> bool:
    """Tell whether no element is within a margin of zero."""
    return bool(np.all(np.abs(array.astype(np.float64)) > margin))


def _divisor(op: str, x: np.ndarray, attributes: dict[str, Any]) -> float:
    """Return the least number by which a normalization divides, over all groups that are normalized together.

    Where a group has one element or equal ones, x - mean(x) is nothing but the rounding of the mean, and dividing by
    sqrt(epsilon) makes it 300 times as large. No shaking of inputs shows that: the difference stays 0. So such groups
    are generated with a large epsilon only, where all right models agree.

    The square of the mean taken from the mean of the squares, as onnx.reference has the variance of
    MeanVarianceNormalization, loses what lies far from 0: there the number is relative to the largest element.
    """
    axis = attributes.get("axis", -1)
    if op == "LpNormalization":
        return float(np.linalg.norm(x, attributes.get("p", 2), axis).min())
    axes = {
        "LayerNormalization": range(axis % x.ndim, x.ndim),
        "RMSNormalization": range(axis % x.ndim, x.ndim),
        "InstanceNormalization": range(2, x.ndim),
        "GroupNormalization": range(1, x.ndim),  # of one group
        "MeanVarianceNormalization": attributes.get("axes", (0, 2, 3)),
    }[op]
    if op == "MeanVarianceNormalization":
        return float(x.std(tuple(axes)).min()) / max(1.0, float(np.abs(x).max(initial=0.0)))
    epsilon = attributes.get("epsilon", 1e-5)
    power = np.square(x).mean(tuple(axes)) if op == "RMSNormalization" else x.var(tuple(axes))
    return float(np.sqrt(power + epsilon).min())
