"""What the first integer operators of a model need to be fast: whole groups of channels, and little to round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import is_graph_output, producer, uses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor, Variable

MERGED = 4
"""Columns of an image that become channels of one: three channels each make twelve, three groups of four."""


IMAGE_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class MergedColumns:
    """How a convolution with a stride reads an image whose columns are merged by four, as its layout has them already.

    The layout is channels last, so that merging costs nothing, and each merged column makes the channels of several
    outputs beside each other, so that taking them apart costs nothing either.

    Attributes:
        stride: Of the columns, before.
        offset: Columns of zeros on the left, before.
        columns: Columns of the kernel, merged.
        left: Merged columns of zeros on the left.
        right: Merged columns of zeros on the right.
        rows: Stride of the rows, which stays.
        height: Rows of the image.
        width: Columns of the image, before.
        above: Rows of zeros above.
        below: Rows of zeros below.
        out_height: Rows of the result.
        out_width: Columns of the result, taken apart.
        out_channels: Channels of the result, taken apart.
    """

    stride: int
    offset: int
    columns: int
    left: int
    right: int
    rows: int
    height: int
    width: int
    above: int
    below: int
    out_height: int
    out_width: int
    out_channels: int

    @property
    def outputs(self) -> int:
        """Outputs beside each other that one merged column makes."""
        return MERGED // self.stride

    def weight(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return the weight [O, C, h, w] for merged columns, [outputs O, 4 C, h, columns]; most of it is zeros."""
        count, channels, height, width = codes.shape
        merged = np.zeros((self.outputs, count, MERGED, channels, height, self.columns), codes.dtype)
        for beside in range(self.outputs):
            for column in range(width):
                group, place = divmod(self.stride * beside - self.offset + column, MERGED)
                merged[beside, :, place, :, :, group + self.left] = codes[:, :, :, column]
        return merged.reshape(self.outputs * count, MERGED * channels, height, self.columns)


def merged_columns(node: Node, weight: Sequence[int], image: Sequence[int] | None) -> MergedColumns | None:
    """Return how a convolution reads an image with merged columns, or None where that is not possible or not faster.

    Args:
        node: The Conv.
        weight: Shape of its weight.
        image: Shape of what it reads, channels first; the batch may be anything.
    """
    if image is None or len(weight) != 4 or len(image) != 4 or image[3] % MERGED:
        return None
    if any(each != 1 for each in node.attrs.get("dilations", [])) or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    rows, stride = (int(each) for each in node.attrs.get("strides", [1, 1]))
    above, offset, below, end = (int(each) for each in node.attrs.get("pads", [0, 0, 0, 0]))
    if stride not in {2, MERGED}:
        return None  # with stride 1 four times the products outweigh what gathering patches takes
    height, width = image[2], image[3]
    out_height = (height + above + below - weight[2]) // rows + 1
    out_width = (width + offset + end - weight[3]) // stride + 1
    outputs = MERGED // stride
    first = -offset // MERGED
    last = (stride * (outputs - 1) - offset + weight[3] - 1) // MERGED
    columns, left = last - first + 1, -first
    right = out_width // outputs + columns - 1 - width // MERGED - left
    if out_width % outputs or right < 0 or out_height < 1 or out_width < 1:
        return None
    size = (above, below, out_height, out_width, int(weight[0]))
    return MergedColumns(stride, offset, columns, left, right, rows, height, width, *size)


def merge(rw: Rewriter, node: Node, image: Tensor, columns: MergedColumns) -> Variable:
    """Return an image, channels last, with merged columns, channels first.

    Args:
        rw: The rewriter.
        node: The Conv.
        image: Integers [batch, rows, columns, channels].
        columns: How they are merged.
    """
    shape = np.array([0, columns.height, columns.width // MERGED, MERGED * IMAGE_CHANNELS], np.int64)
    made = rw.op("Reshape", [image, rw.constant(shape, name="merged_columns", near=node)], near=node)
    first: Variable = rw.op("Transpose", [made], attrs={"perm": [0, 3, 1, 2]}, near=node)
    return first


def take_apart(rw: Rewriter, node: Node, merged: Tensor, columns: MergedColumns) -> Variable:
    """Return the integers that a convolution of merged columns makes, channels first, in the shape they had.

    Args:
        rw: The rewriter.
        node: The Conv.
        merged: Integers [batch, outputs channels, rows, columns / outputs].
        columns: How the image was merged.
    """
    shape = np.array([0, columns.out_height, columns.out_width, columns.out_channels], np.int64)
    last = rw.op("Transpose", [merged], attrs={"perm": [0, 2, 3, 1]}, near=node)
    apart = rw.op("Reshape", [last, rw.constant(shape, name="columns", near=node)], near=node)
    made: Variable = rw.op("Transpose", [apart], attrs={"perm": [0, 3, 1, 2]}, near=node)
    return made


def pool_first(rw: Rewriter, tensor: Tensor) -> Tensor:
    """Let a float MaxPool that is to be rounded pool before the Relu that stands before it; return what to round.

    Both orders are equal. The runtime moves rounding in front of a MaxPool, to four times the values or more, but not
    in front of a Relu, which then disappears into the rounding.
    """
    pool = producer(tensor)
    before = producer(pool.inputs[0]) if pool is not None and pool.op == "MaxPool" and len(pool.outputs) == 1 else None
    if pool is None or before is None or before.op != "Relu" or len(uses(before.outputs[0])) != 1:
        return tensor
    if len(uses(tensor)) != 1 or is_graph_output(tensor) or is_graph_output(before.outputs[0]):
        return tensor
    rw.set_input(pool, 0, before.inputs[0])
    rw.erase([before])
    made: Tensor = rw.op("Relu", [tensor], like=tensor, near=uses(tensor)[0].node)
    return made


def has_image_channels(node: Node, shape: tuple[int, ...]) -> bool:
    """Tell whether a convolution reads three channels and its integer form is faster on four.

    The direct integer kernel takes input channels in fours; without it patches are gathered byte by byte. Padding with
    zeros is exact.
    """
    return shape[1] == IMAGE_CHANNELS and int(node.attrs.get("group", 1)) == 1 and shape[0] >= 16 and shape[0] % 4 == 0
