"""The table of shape rules, and the rules of operators that work element by element or along an axis.

A rule takes a :class:`Site` and returns the facts of the node's outputs, in order; fewer than the node has leaves the
rest unknown. It raises :class:`ShapeClashError` where the node cannot run. It never takes two unknown sizes for equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from onnx import TensorProto

from graphopt.analysis.site import Known, ShapeClashError, broadcast, normalized

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.analysis.site import PartialShape, Site

Rule: TypeAlias = "Callable[[Site], list[Known]]"

RULES: dict[tuple[str, str], Rule] = {}
"""The rule of each operator, by domain and operator type; the default domain is the empty string."""


def rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators."""

    def register(function: Rule) -> Rule:
        for op in ops:
            RULES[domain, op] = function
        return function

    return register


@rule(
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Clip", "Cos", "Cosh"),
    *("CumProd", "CumSum", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "Identity"),
    *("InstanceNormalization", "GroupNormalization", "LRN", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization"),
    *("MeanVarianceNormalization", "Mish", "Neg", "Not", "PRelu", "Reciprocal", "Relu", "ReverseSequence", "Round"),
    *("Scatter", "ScatterElements", "ScatterND", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax"),
    *("Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "TensorScatter", "ThresholdedRelu", "Trilu"),
)
def same_as_first(site: Site) -> list[Known]:
    """The output has the type and shape of the first input."""
    first = site.input(0)
    return [Known(first.dtype, first.shape, None, first.proto)]


@rule("Add", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Mod", "Mul", "Pow", "Sub")
def binary(site: Site) -> list[Known]:
    """The output has the element type of the first input; the shapes broadcast."""
    return [Known(site.dtype(0), _paired(site))]


@rule("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Or", "Xor")
def comparison(site: Site) -> list[Known]:
    """The output is boolean; the shapes broadcast."""
    return [Known(TensorProto.BOOL, _paired(site))]


def _paired(site: Site) -> PartialShape | None:
    if site.opset < 7:
        # Until opset 6 the second input is stretched to the first, where the attribute asks for it.
        return site.shape(0)
    return broadcast(site.shape(0), site.shape(1))


@rule("Max", "Mean", "Min", "Sum")
def variadic(site: Site) -> list[Known]:
    """All inputs broadcast together."""
    shapes = [site.shape(index) for index in range(len(site.known))]
    return [Known(site.dtype(0), broadcast(*shapes) if shapes else None)]


@rule("IsInf", "IsNaN")
def predicate(site: Site) -> list[Known]:
    """The output is boolean and has the shape of the input."""
    return [Known(TensorProto.BOOL, site.shape(0))]


@rule("Where")
def where(site: Site) -> list[Known]:
    """Condition and both choices broadcast together."""
    return [Known(site.dtype(1) or site.dtype(2), broadcast(site.shape(0), site.shape(1), site.shape(2)))]


@rule("Cast")
def cast(site: Site) -> list[Known]:
    """The element type is the attribute ``to``."""
    return [Known(site.attr_int("to", 0), site.shape(0))]


@rule("CastLike")
def cast_like(site: Site) -> list[Known]:
    """The element type is that of the second input."""
    return [Known(site.dtype(1), site.shape(0))]


@rule("Dropout")
def dropout(site: Site) -> list[Known]:
    """The mask is boolean from opset 10 on, before it has the type of the data."""
    mask = TensorProto.BOOL if site.opset >= 10 else site.dtype(0)
    return [Known(site.dtype(0), site.shape(0)), Known(mask, site.shape(0))]


@rule("QuantizeLinear")
def quantize_linear(site: Site) -> list[Known]:
    """The element type is that of the zero point, else the attribute, else uint8."""
    dtype = site.dtype(2) if site.has(2) else site.attr_int("output_dtype", 0) or TensorProto.UINT8
    return [Known(dtype, site.shape(0))]


@rule("DequantizeLinear")
def dequantize_linear(site: Site) -> list[Known]:
    """The element type is that of the scale, unless the attribute of opset 23 names another."""
    return [Known(site.attr_int("output_dtype", 0) or site.dtype(1), site.shape(0))]


@rule("DynamicQuantizeLinear")
def dynamic_quantize_linear(site: Site) -> list[Known]:
    """Values as uint8, a float scale and a zero point, both scalar."""
    return [Known(TensorProto.UINT8, site.shape(0)), Known(TensorProto.FLOAT, ()), Known(TensorProto.UINT8, ())]


@rule("BatchNormalization")
def batch_normalization(site: Site) -> list[Known]:
    """The first output is as the input; statistics that training writes have the shape of the mean."""
    first = Known(site.dtype(0), site.shape(0))
    return [first, *[Known(site.dtype(3), site.shape(3)) for _ in range(site.outputs - 1)]]


@rule("LayerNormalization")
def layer_normalization(site: Site) -> list[Known]:
    """Mean and inverse deviation keep the axes before ``axis`` and have size 1 after it."""
    shape = site.shape(0)
    statistics = None
    if shape is not None:
        axis = normalized(site.attr_int("axis", -1), len(shape))
        statistics = (*shape[:axis], *[1] * (len(shape) - axis))
    kind = site.attr_int("stash_type", TensorProto.FLOAT)
    return [Known(site.dtype(0), shape), Known(kind, statistics), Known(kind, statistics)]


@rule("RMSNormalization")
def rms_normalization(site: Site) -> list[Known]:
    """The output has the shape of the input and the element type of the scale."""
    return [Known(site.dtype(1) or site.dtype(0), site.shape(0))]


@rule("EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli")
def like(site: Site) -> list[Known]:
    """The shape of the input; the element type of the attribute, else of the input."""
    return [Known(site.attr_int("dtype", 0) or site.dtype(0), site.shape(0))]


@rule("RandomNormal", "RandomUniform")
def random_tensor(site: Site) -> list[Known]:
    """Shape and element type are attributes."""
    shape = site.attr_ints("shape")
    return [Known(site.attr_int("dtype", TensorProto.FLOAT), None if shape is None else tuple(shape))]


@rule(
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),
)
def reduce_axes(site: Site) -> list[Known]:
    """The named axes, or all, shrink to 1 or disappear."""
    shape = site.shape(0)
    if shape is None:
        return [Known(site.dtype(0))]
    keep = site.attr_int("keepdims", 1) != 0
    axes = site.axes(1)
    if axes is None and site.has(1):
        return [Known(site.dtype(0), _reduced_somewhere(site, shape, keep=keep))]
    if not axes:
        if site.attr_int("noop_with_empty_axes", 0):
            return [Known(site.dtype(0), shape)]
        axes = list(range(len(shape)))
    reduced = {normalized(axis, len(shape)) for axis in axes}
    if keep:
        result = tuple(1 if axis in reduced else dim for axis, dim in enumerate(shape))
    else:
        result = tuple(dim for axis, dim in enumerate(shape) if axis not in reduced)
    return [Known(site.dtype(0), result)]


def _reduced_somewhere(site: Site, shape: PartialShape, *, keep: bool) -> PartialShape | None:
    """Return what is known where the axes are computed at run time: the rank, if axes are kept or counted."""
    if keep:
        return (None,) * len(shape)
    count = site.shape(1)
    if count is None or len(count) != 1 or not isinstance(count[0], int) or count[0] == 0:
        return None
    return (None,) * (len(shape) - count[0])


@rule("ArgMax", "ArgMin")
def arg_reduce(site: Site) -> list[Known]:
    """One axis shrinks to 1 or disappears; the output is int64."""
    shape = site.shape(0)
    if shape is None:
        return [Known(TensorProto.INT64)]
    axis = normalized(site.attr_int("axis", 0), len(shape))
    kept = (1,) if site.attr_int("keepdims", 1) else ()
    return [Known(TensorProto.INT64, (*shape[:axis], *kept, *shape[axis + 1 :]))]


@rule("TopK")
def top_k(site: Site) -> list[Known]:
    """The axis has size k; k is an attribute before opset 10, an input since."""
    shape = site.shape(0)
    if shape is None:
        return [Known(site.dtype(0)), Known(TensorProto.INT64)]
    axis = normalized(site.attr_int("axis", -1), len(shape))
    counts = [site.attr_int("k", 0)] if site.opset < 10 else site.dims(1)
    k = counts[0] if counts else None
    result = (*shape[:axis], k if not isinstance(k, bool | float) else None, *shape[axis + 1 :])
    return [Known(site.dtype(0), result), Known(TensorProto.INT64, result)]


@rule("Det")
def determinant(site: Site) -> list[Known]:
    """The last two axes, a square matrix, disappear."""
    shape = site.shape(0)
    if shape is not None and len(shape) < 2:
        msg = f"rank {len(shape)} where at least 2 is needed"
        raise ShapeClashError(msg)
    return [Known(site.dtype(0), None if shape is None else shape[:-2])]
