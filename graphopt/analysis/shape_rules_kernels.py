"""Shape rules of the convolution kernels of domain ai.graphopt and of the layout that they pass to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from graphopt.analysis.dims import product
from graphopt.analysis.shape_rules import rule
from graphopt.analysis.shape_rules_linear import windows
from graphopt.analysis.site import Known
from graphopt.solve.pack_sparse_conv import padded_plane

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.site import PartialShape, Site

_DOMAIN = "ai.graphopt"
_SPATIAL_FROM = 2


@rule("SparseConv", domain=_DOMAIN)
def sparse_conv(site: Site) -> list[Known]:
    """A convolution with a packed weight of ``out_channels``; X and Y are [N, C, spatial...] or padded [N, C, P]."""
    shape, kernel = site.shape(0), site.attr_ints("kernel_shape") or []
    padded_in = site.attr_text("layout_in", "nchw") == "padded"
    expected = _SPATIAL_FROM + 1 if padded_in else _SPATIAL_FROM + len(kernel)
    if shape is None or len(shape) != expected:
        return [Known(site.dtype(0))]
    data: PartialShape = tuple(site.attr_ints("spatial") or ()) if padded_in else shape[_SPATIAL_FROM:]
    spatial = windows(site, data, tuple(kernel))
    channels = site.attr_int("out_channels", 0) or None
    if site.attr_text("layout_out", "nchw") == "padded":
        spatial = (_plane(spatial),)
    return [Known(site.dtype(0), (shape[0], channels, *spatial))]


@rule("ToPadded", domain=_DOMAIN)
def to_padded(site: Site) -> list[Known]:
    """[N, C, spatial...] -> [N, C, P]."""
    shape = site.shape(0)
    if shape is None or len(shape) <= _SPATIAL_FROM:
        return [Known(site.dtype(0))]
    return [Known(site.dtype(0), (*shape[:_SPATIAL_FROM], _plane(shape[_SPATIAL_FROM:])))]


@rule("FromPadded", domain=_DOMAIN)
def from_padded(site: Site) -> list[Known]:
    """[N, C, P] -> [N, C, spatial...]."""
    shape, spatial = site.shape(0), site.attr_ints("spatial")
    if shape is None or not spatial:
        return [Known(site.dtype(0))]
    return [Known(site.dtype(0), (*shape[:_SPATIAL_FROM], *spatial))]


def _plane(spatial: PartialShape) -> Dim | None:
    known = [size for size in spatial if size is not None]
    positions = product(known) if len(known) == len(spatial) else None
    return padded_plane(positions) if isinstance(positions, int) else None


@rule("SparseInt8Conv", domain=_DOMAIN)
def sparse_int8_conv(site: Site) -> list[Known]:
    """A convolution with a packed integer weight of ``N`` outputs; floats or bytes as ``output`` says."""
    dtype = TensorProto.UINT8 if site.attr_text("output", "float") == "uint8" else TensorProto.FLOAT
    x = site.shape(0)
    if x is None:
        return [Known(dtype)]
    kernel = tuple(site.attr_ints("kernel_shape") or (1,) * (len(x) - 2))
    return [Known(dtype, (x[0], site.attr_int("N", 0) or None, *windows(site, x[2:], kernel)))]
