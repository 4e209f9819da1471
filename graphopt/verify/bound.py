"""How far rounding alone may move the outputs of a model: the bound that ROUNDING passes are held to.

Floating-point evaluation of an inner product of k terms gives the exact result of slightly changed operands: each
factor is off by a relative error of at most gamma_k, which for rounding errors that behave like independent random
variables is lambda * u * sqrt(k) with a probability of failure below 2 exp(-lambda^2 / 2) (Higham and Mary, "A new
approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), 2019, theorem 2.4). A rewrite that
only reorders or refactors the arithmetic therefore moves an output no further than such a change of every weight and
every input does. So the bound is measured on the model itself:

    tau   = lambda * (u_store + u_sum * sqrt(k + 1))
    bound = tau * max|y| + 2 * max over trials of |y(weights * (1 +- tau), inputs * (1 +- tau)) - y|

with k the longest accumulation in the model, u_store the unit roundoff of its coarsest float type and u_sum that of
its accumulators. How much the layers behind amplify an error is in the trials, not guessed. Outputs that are no floats
may differ in as many elements as twice the trials change: none, in nearly every model.

The signs are random but for weights of one element, of which a chain of operators may have few: those all move alike in
one trial, and in the others by the binary digits of their position, so that a trial moves any two of them apart.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis import Facts, Types
from graphopt.graph import Constant
from graphopt.graph.dtypes import numpy_dtype
from graphopt.verify.equality import Tolerance, is_float
from graphopt.verify.reference import evaluate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from graphopt.graph import Model, Node

LAMBDA = 8.0
"""Probability of failure per inner product below 2 exp(-32), about 1e-14."""

TRIALS = 4

_REDUCTIONS = (
    "Reduce",
    "Softmax",
    "LogSoftmax",
    "LayerNormalization",
    "InstanceNormalization",
    "GlobalAveragePool",
    "CumSum",
    "LpNormalization",
    "MeanVarianceNormalization",
)
_ARITHMETIC = frozenset(
    (
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Gather", "PRelu"),
        *("Add", "Sub", "Mul", "Div", "Sum", "BatchNormalization", "InstanceNormalization", "LayerNormalization"),
        *("GroupNormalization", "RMSNormalization", "SparseMatMul", "SparseConv"),
    )
)


def relative_error(model: Model) -> float:
    """Return tau, the relative error that rounding may give a result of the model's longest accumulation.

    Args:
        model: The model.
    """
    unit = max((_unit_roundoff(dtype) for dtype in float_types(model)), default=2.0**-24)
    accumulator = min(unit, 2.0**-24)
    longest = max((accumulation(node) for _, node in model.walk()), default=1)
    return LAMBDA * (unit + accumulator * sqrt(longest + 1))


def accumulation(node: Node) -> int:
    """Return how many terms a node adds up for one element of its output, as far as its shapes are known; at least 1.

    Args:
        node: The node.
    """
    shapes = [_known(tensor.shape) for tensor in node.inputs]
    if node.op in {"Conv", "ConvTranspose", "ConvInteger"} and len(shapes) > 1 and shapes[1]:
        return max(1, prod(shapes[1][1:]))
    if node.op == "QLinearConv" and len(shapes) > 3 and shapes[3]:
        return max(1, prod(shapes[3][1:]))
    if node.op in {"MatMul", "Gemm", "MatMulInteger", "Einsum"}:
        return max((max(shape[-2:]) for shape in shapes[:2] if shape), default=1)
    if node.op in {"LSTM", "GRU", "RNN"}:
        return max((shape[-1] for shape in shapes[1:3] if shape), default=1)
    if str(node.op).startswith(_REDUCTIONS) or node.op == "Attention":
        return max(1, prod(shapes[0])) if shapes and shapes[0] else 1
    return 1


def rounding_tolerances(
    model: Model,
    feeds: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
) -> list[dict[str, Tolerance]]:
    """Return the rounding bound of every output, per feed.

    Args:
        model: The model that is right; it is not changed.
        feeds: Complete feeds.
        outputs: Its outputs on each feed.
        seed: Seed of the trials' signs.
    """
    tau = relative_error(model)
    generator = np.random.default_rng(seed)
    moved: list[dict[str, Tolerance]] = [{} for _ in feeds]
    for number in range(TRIALS):
        trial = model.copy()
        for place, constant in enumerate(_weights(trial)):
            single = 1 - 2 * ((2 * place) >> number & 1)  # all alike in trial 0, then digit by digit
            constant.set(_shaken(constant.array(), tau, generator, single), constant.onnx_dtype)
        shaken = [{name: _shaken(value, tau, generator) for name, value in feed.items()} for feed in feeds]
        for known, right, other in zip(moved, outputs, evaluate(trial, shaken), strict=True):
            for name in right:
                known[name] = _larger(known.get(name, Tolerance()), _distance(right[name], other[name]))
    return [
        {
            name: Tolerance(tau * _magnitude(right[name]) + 2 * far.absolute, 2 * far.flips)
            for name, far in known.items()
        }
        for known, right in zip(moved, outputs, strict=True)
    ]


def float_types(model: Model) -> Iterator[np.dtype[Any]]:
    """Yield the float types of more than 8 bits that nodes read and give, declared or inferred.

    Args:
        model: The model.
    """
    types = Facts(model).get(Types)
    for _, node in model.walk():
        for tensor in (*node.inputs, *node.outputs):
            dtype = numpy_dtype(types.dtype(tensor)) if tensor.name else None
            if dtype is not None and is_float(dtype) and dtype.itemsize > 1:
                yield dtype


def _unit_roundoff(dtype: np.dtype[Any]) -> float:
    if dtype.name == "bfloat16":
        return 2.0**-8
    return float(np.finfo(dtype).eps) / 2


def _weights(model: Model) -> Iterator[Constant]:
    """Yield the float initializers and values of Constant nodes that only arithmetic reads.

    Not those that state a size, an exponent, a limit or a quantization grid: they define the function.
    """
    for graph in model.graphs():
        for constant in graph.initializers:
            if _is_wide(constant) and all(user.op in _ARITHMETIC for user in constant.outputs):
                yield constant
    for _, node in model.walk():
        value = node.attrs.get("value") if node.op == "Constant" and node.domain in {None, "", "ai.onnx"} else None
        if not isinstance(value, Constant) or not _is_wide(value):
            continue
        if all(user.op in _ARITHMETIC for user in node.outputs[0].outputs):
            yield value


def _is_wide(constant: Constant) -> bool:
    return is_float(constant.dtype) and constant.dtype.itemsize > 1


def _shaken(value: Any, tau: float, generator: np.random.Generator, single: int = 0) -> Any:
    """Return a value with every element moved up or down; ``single`` says how one of one element moves."""
    if isinstance(value, list):
        return [_shaken(each, tau, generator) for each in value]
    if not isinstance(value, np.ndarray) or not is_float(value.dtype) or value.dtype.itemsize == 1:
        return value
    drawn = generator.integers(0, 2, value.shape, dtype=np.int8) * np.int8(2) - np.int8(1)
    signs = np.int8(single) if single and value.size == 1 else drawn
    if value.dtype.kind == "c":
        return value * (1 + tau * signs).astype(value.real.dtype)
    with np.errstate(over="ignore"):
        return (value.astype(np.float64) * (1 + tau * signs)).astype(value.dtype)


def _distance(right: Any, other: Any) -> Tolerance:
    if isinstance(right, list) and isinstance(other, list) and len(right) == len(other):
        return _maximum(_distance(x, y) for x, y in zip(right, other, strict=True))
    if not isinstance(right, np.ndarray) or not isinstance(other, np.ndarray) or right.shape != other.shape:
        return Tolerance()
    if right.dtype.kind in "OUS" or not is_float(right.dtype):
        return Tolerance(flips=int(np.count_nonzero(right != other)))
    x, y = _complex(right), _complex(other)
    finite = np.isfinite(x) & np.isfinite(y)
    unsettled = int(np.count_nonzero(np.isfinite(x) != np.isfinite(y)))
    return Tolerance(float(np.abs(x[finite] - y[finite]).max(initial=0.0)), unsettled)


def _magnitude(value: Any) -> float:
    if isinstance(value, list):
        return max(map(_magnitude, value), default=0.0)
    if not isinstance(value, np.ndarray) or not is_float(value.dtype):
        return 0.0
    wide = _complex(value)
    return float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))


def _complex(value: np.ndarray) -> np.ndarray:
    return value if value.dtype.kind == "c" else value.astype(np.float64)


def _larger(first: Tolerance, second: Tolerance) -> Tolerance:
    return Tolerance(max(first.absolute, second.absolute), max(first.flips, second.flips))


def _maximum(found: Iterable[Tolerance]) -> Tolerance:
    result = Tolerance()
    for each in found:
        result = _larger(result, each)
    return result


def _known(shape: Any) -> list[int]:
    """Return the numbers of a shape; unknown dimensions count as 1."""
    return [] if shape is None else [size if isinstance(size, int) else 1 for size in shape]
