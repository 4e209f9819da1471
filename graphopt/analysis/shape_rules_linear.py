"""Shape rules of products, convolutions, pooling and recurrent layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from graphopt.analysis.dim_extremes import minimum
from graphopt.analysis.dims import Expr, ceildiv, exact_div, floordiv, product
from graphopt.analysis.shape_rules import rule
from graphopt.analysis.site import Known, ShapeClashError, broadcast, unify_dim

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.site import PartialShape, Site


def matmul_shape(a: PartialShape | None, b: PartialShape | None) -> PartialShape | None:
    """Return the shape of ``a @ b`` by the rules of numpy.

    Raises:
        ShapeClashError: An operand is a scalar, or the inner sizes differ.
    """
    if a is None or b is None:
        return None
    if not a or not b:
        msg = "a scalar has no matrix product"
        raise ShapeClashError(msg)
    unify_dim(a[-1], b[0] if len(b) == 1 else b[-2])
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    stacked = broadcast(a[:-2], b[:-2])
    return None if stacked is None else (*stacked, *rows, *columns)


@rule("MatMul")
def matmul(site: Site) -> list[Known]:
    """The product of two stacks of matrices."""
    return [Known(site.dtype(0), matmul_shape(site.shape(0), site.shape(1)))]


@rule("MatMulInteger")
def matmul_integer(site: Site) -> list[Known]:
    """A product that accumulates in int32."""
    return [Known(TensorProto.INT32, matmul_shape(site.shape(0), site.shape(1)))]


@rule("QLinearMatMul")
def qlinear_matmul(site: Site) -> list[Known]:
    """A quantized product: (a, scale, zero point, b, scale, zero point, y scale, y zero point)."""
    return [Known(site.dtype(7), matmul_shape(site.shape(0), site.shape(3)))]


@rule("Gemm")
def gemm(site: Site) -> list[Known]:
    """A matrix product with optional transposition of each operand."""
    a, b = site.shape(0), site.shape(1)
    for operand in (a, b):
        if operand is not None and len(operand) != 2:
            msg = f"Gemm takes matrices, not rank {len(operand)}"
            raise ShapeClashError(msg)
    left = (None, None) if a is None else a[::-1] if site.attr_int("transA", 0) else a
    right = (None, None) if b is None else b[::-1] if site.attr_int("transB", 0) else b
    unify_dim(left[1], right[0])
    return [Known(site.dtype(0), (left[0], right[1]))]


@rule("SparseMatMul", "LowBitMatMul", domain="ai.graphopt")
def sparse_matmul(site: Site) -> list[Known]:
    """A product with a packed weight of ``N`` columns."""
    shape = site.shape(0)
    if shape is None:
        return [Known(site.dtype(0))]
    return [Known(site.dtype(0), (*shape[:-1], site.attr_int("N", 0) or None))]


@rule("SparseInt8MatMul", domain="ai.graphopt")
def sparse_int8_matmul(site: Site) -> list[Known]:
    """A product with a packed integer weight of ``N`` columns; floats or bytes as ``output`` says."""
    dtype = TensorProto.UINT8 if site.attr_text("output", "float") == "uint8" else TensorProto.FLOAT
    shape = site.shape(0)
    if shape is None:
        return [Known(dtype)]
    return [Known(dtype, (*shape[:-1], site.attr_int("N", 0) or None))]


@rule("Attention")
def attention(site: Site) -> list[Known]:
    """Attention over (batch, heads, length, size) or (batch, length, heads * size); with past keys and values.

    Outputs: the result, present keys and values as (batch, heads, past + length, size), and the product of queries and
    keys as (batch, heads, length, past + length).
    """
    q, k, v, past = site.shape(0), site.shape(1), site.shape(2), site.shape(4)
    dtype = site.dtype(0)
    if q is None or k is None or v is None or len({len(q), len(k), len(v)}) > 1 or len(q) not in {3, 4}:
        return [Known(dtype)]
    q_heads: Dim | None = site.attr_int("q_num_heads", 0) or None
    kv_heads: Dim | None = site.attr_int("kv_num_heads", 0) or None
    if len(q) == 4:
        q_heads, kv_heads, size, value_size = q[1], k[1], k[3], v[3]
    else:
        size, value_size = _share(k[2], kv_heads), _share(v[2], kv_heads)
    length, given = q[-2], k[-2]
    earlier = None if past is None else past[2]
    total = given if not site.has(4) else None if given is None or earlier is None else given + earlier
    if len(q) == 4:
        result: PartialShape = (q[0], q_heads, length, value_size)
    else:
        result = (q[0], length, None if q_heads is None or value_size is None else q_heads * value_size)
    return [
        Known(dtype, result),
        Known(site.dtype(1), (q[0], kv_heads, total, size)),
        Known(site.dtype(2), (q[0], kv_heads, total, value_size)),
        Known(dtype, (q[0], q_heads, length, total)),
    ]


def _share(hidden: Dim | None, heads: Dim | None) -> Dim | None:
    return None if hidden is None or heads is None else floordiv(hidden, heads)


# -------------------------------------------------------------------------------------------------------- convolutions


@rule("Conv")
def conv(site: Site) -> list[Known]:
    """Sliding windows over the axes after batch and channel; the weight is (out, in / group, kernel...)."""
    return [Known(site.dtype(0), _conv_shape(site, site.shape(0), site.shape(1)))]


@rule("ConvInteger")
def conv_integer(site: Site) -> list[Known]:
    """A convolution that accumulates in int32."""
    return [Known(TensorProto.INT32, _conv_shape(site, site.shape(0), site.shape(1)))]


@rule("QLinearConv")
def qlinear_conv(site: Site) -> list[Known]:
    """A quantized convolution: (x, scale, zero point, w, scale, zero point, y scale, y zero point, bias)."""
    return [Known(site.dtype(7), _conv_shape(site, site.shape(0), site.shape(3)))]


def _conv_shape(site: Site, x: PartialShape | None, w: PartialShape | None) -> PartialShape | None:
    rank = len(x) if x is not None else len(w) if w is not None else None
    if rank is None:
        return None
    if x is not None and w is not None:
        if len(x) != len(w):
            msg = f"an input of rank {len(x)} and a weight of rank {len(w)}"
            raise ShapeClashError(msg)
        group = site.attr_int("group", 1)
        inputs = w[1]
        unify_dim(x[1], None if inputs is None else inputs * group)
    kernel: PartialShape = w[2:] if w is not None else (None,) * (rank - 2)
    kernel = tuple(site.attr_ints("kernel_shape") or kernel)
    data = x[2:] if x is not None else (None,) * (rank - 2)
    spatial = windows(site, data, kernel)
    return (x[0] if x is not None else None, w[0] if w is not None else None, *spatial)


def windows(site: Site, data: PartialShape, kernel: PartialShape, *, ceil: bool = False) -> PartialShape:
    """Return how many windows fit along each spatial axis."""
    count = len(data)
    strides = site.attr_ints("strides") or [1] * count
    dilations = site.attr_ints("dilations") or [1] * count
    pads = site.attr_ints("pads") or [0] * (2 * count)
    automatic = site.attr_text("auto_pad", "NOTSET")
    if len(strides) != count or len(dilations) != count or len(pads) != 2 * count or len(kernel) != count:
        msg = f"strides, dilations, pads or kernel do not fit {count} spatial axes"
        raise ShapeClashError(msg)
    result: list[Dim | None] = []
    for axis, size in enumerate(data):
        window = kernel[axis]
        if size is None:
            result.append(None)
        elif automatic in {"SAME_UPPER", "SAME_LOWER"}:
            result.append(ceildiv(size, strides[axis]))
        elif window is None:
            result.append(None)
        else:
            padding = 0 if automatic == "VALID" else pads[axis] + pads[axis + count]
            result.append(_window_count(size, window, strides[axis], dilations[axis], padding, pads[axis], ceil=ceil))
    return tuple(result)


def _window_count(
    size: Dim, window: Dim, stride: int, dilation: int, padding: int, front: int, *, ceil: bool
) -> Dim | None:
    reach = size + padding - (window - 1) * dilation - 1
    if isinstance(reach, int) and reach < 0:
        # The window does not fit. Runtimes disagree on what that gives: an error, no window, or one.
        return None
    if not ceil:
        return floordiv(reach, stride) + 1
    # A last window that would start in the padding behind the data is left out.
    return minimum(ceildiv(reach, stride) + 1, ceildiv(size + front, stride))


@rule("ConvTranspose")
def conv_transpose(site: Site) -> list[Known]:
    """The inverse of a convolution's shape; the weight is (in, out / group, kernel...)."""
    x, w = site.shape(0), site.shape(1)
    if x is None or w is None:
        return [Known(site.dtype(0), None if x is None else (x[0], *[None] * (len(x) - 1)))]
    count = len(x) - 2
    channels = None if w[1] is None else w[1] * site.attr_int("group", 1)
    explicit = site.attr_ints("output_shape")
    if explicit is not None:
        return [Known(site.dtype(0), (x[0], channels, *explicit[-count:]))]
    kernel: PartialShape = tuple(site.attr_ints("kernel_shape") or w[2:])
    strides = site.attr_ints("strides") or [1] * count
    dilations = site.attr_ints("dilations") or [1] * count
    pads = site.attr_ints("pads") or [0] * (2 * count)
    extra = site.attr_ints("output_padding") or [0] * count
    automatic = site.attr_text("auto_pad", "NOTSET")
    spatial: list[Dim | None] = []
    for axis, size in enumerate(x[2:]):
        window = kernel[axis]
        if size is None or window is None:
            spatial.append(None)
        elif automatic in {"SAME_UPPER", "SAME_LOWER"}:
            # below the stride the padding would be negative, and runtimes do not agree about the size
            reach = extra[axis] + (window - 1) * dilations[axis] + 1 if isinstance(window, int) else 0
            spatial.append(size * strides[axis] if reach >= strides[axis] else None)
        else:
            padding = 0 if automatic == "VALID" else pads[axis] + pads[axis + count]
            spatial.append((size - 1) * strides[axis] + extra[axis] + (window - 1) * dilations[axis] + 1 - padding)
    return [Known(site.dtype(0), (x[0], channels, *spatial))]


# ------------------------------------------------------------------------------------------------------------- pooling


@rule("AveragePool", "LpPool", "MaxPool")
def pool(site: Site) -> list[Known]:
    """Windows over the axes after batch and channel; the indices of MaxPool are int64."""
    x = site.shape(0)
    kernel = site.attr_ints("kernel_shape")
    if x is None or kernel is None:
        return [Known(site.dtype(0)), Known(TensorProto.INT64)]
    spatial = windows(site, x[2:], tuple(kernel), ceil=site.attr_int("ceil_mode", 0) != 0)
    shape = (*x[:2], *spatial)
    return [Known(site.dtype(0), shape), Known(TensorProto.INT64, shape)]


@rule("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
def global_pool(site: Site) -> list[Known]:
    """Every spatial axis shrinks to 1."""
    x = site.shape(0)
    return [Known(site.dtype(0), None if x is None else (*x[:2], *[1] * (len(x) - 2)))]


# ----------------------------------------------------------------------------------------------------------- recurrent


@rule("GRU", "LSTM", "RNN")
def recurrent(site: Site) -> list[Known]:
    """Outputs (sequence, directions, batch, hidden), last hidden state, and for LSTM the last cell state."""
    x, recurrence = site.shape(0), site.shape(2)
    hidden: Dim | None = site.attr_int("hidden_size", 0) or (recurrence[2] if recurrence is not None else None)
    directions = 2 if site.attr_text("direction", "forward") == "bidirectional" else 1
    length, batch = (x[0], x[1]) if x is not None else (None, None)
    dtype = site.dtype(0)
    if site.attr_int("layout", 0):
        length, batch = batch, length
        state: PartialShape = (batch, directions, hidden)
        return [Known(dtype, (batch, length, directions, hidden)), Known(dtype, state), Known(dtype, state)]
    state = (directions, batch, hidden)
    return [Known(dtype, (length, directions, batch, hidden)), Known(dtype, state), Known(dtype, state)]


@rule("STFT")
def short_time_fourier(site: Site) -> list[Known]:
    """Frames of a signal (batch, length, 1 or 2), transformed: (batch, frames, bins, 2)."""
    signal, window, step = site.shape(0), site.shape(2), site.ints(1)
    dtype = site.dtype(0)
    if signal is None or len(signal) != 3:
        return [Known(dtype, (None, None, None, 2))]
    lengths = site.dims(3) if site.has(3) else window
    length = lengths[0] if lengths else None
    if not isinstance(length, int | Expr):
        return [Known(dtype, (signal[0], None, None, 2))]
    bins = floordiv(length, 2) + 1 if site.attr_int("onesided", 1) else length
    frames = None if signal[1] is None or not step else floordiv(signal[1] - length, step[0]) + 1
    return [Known(dtype, (signal[0], frames, bins, 2))]


# ---------------------------------------------------------------------------------------------------- depth and space


@rule("DepthToSpace")
def depth_to_space(site: Site) -> list[Known]:
    """Channels move into blocks of pixels."""
    x, block = site.shape(0), site.attr_int("blocksize", 1)
    if x is None:
        return [Known(site.dtype(0))]
    channels = None if x[1] is None else exact_div(x[1], block * block)
    return [Known(site.dtype(0), (x[0], channels, *[None if dim is None else dim * block for dim in x[2:]]))]


@rule("SpaceToDepth")
def space_to_depth(site: Site) -> list[Known]:
    """Blocks of pixels move into channels."""
    x, block = site.shape(0), site.attr_int("blocksize", 1)
    if x is None:
        return [Known(site.dtype(0))]
    channels = None if x[1] is None else product((x[1], block * block))
    spatial = [None if dim is None else floordiv(dim, block) for dim in x[2:]]
    return [Known(site.dtype(0), (x[0], channels, *spatial))]
