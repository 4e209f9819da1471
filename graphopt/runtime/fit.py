"""Whether arrays fit the inputs of a model: names, element types, ranks, sizes and values, each refusal explained."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Protocol

import ml_dtypes
import numpy as np

from graphopt.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphopt.runtime.inputs import InputSpec

Array = np.ndarray[Any, Any]


class Shaped(Protocol):
    """What is known of an array before it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size per axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""


def check_names(names: Iterable[str], specs: Sequence[InputSpec], where: str) -> list[str]:
    """Return the arrays that are no inputs; raise where an input has no array.

    Raises:
        DataError: A required input is missing; the message names the nearest array.
    """
    given = list(names)
    known = [spec.name for spec in specs]
    missing = [spec.name for spec in specs if spec.required and spec.name not in given]
    extra = [name for name in given if name not in known]
    if missing:
        near = difflib.get_close_matches(missing[0], extra, 1, 0.4) or (extra if len(extra) == 1 else [])
        hint = f"Rename the array '{near[0]}' to '{missing[0]}'." if near else f"Add an array named '{missing[0]}'."
        raise DataError(
            f"no array for the input{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}; "
            f"the arrays are {', '.join(map(repr, given)) or 'none'}",
            where=where,
            must=f"The model takes {'; '.join(map(str, specs))}.",
            do=hint,
        )
    return extra


def cast_refusal(have: np.dtype[Any], want: np.dtype[Any]) -> str:
    """Return why values of one type cannot become the other; empty where they can.

    Widening, integers whose values fit, and double precision given to a lower float precision are taken.
    """
    if have == want or np.can_cast(have, want, "safe") or (have.kind in "OSU" and want.kind == "O"):
        return ""
    if have.kind in "iub" and want.kind in "iu" and have.kind != "b":
        return ""  # the values decide, see cast
    if is_float(have) and is_float(want):
        return ""
    if have.kind in "iu" and is_float(want):
        return f"{have} values may not be exact in {want}"
    return f"{have} values cannot become {want} without changing"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether the type is a real floating-point type, those of ml_dtypes included."""
    return dtype.kind == "f" or dtype == np.dtype(ml_dtypes.bfloat16) or dtype.name.startswith("float")


def cast(array: Array, spec: InputSpec, where: str, *, allow_nan: bool) -> Array:
    """Return the values in the input's element type, contiguous.

    Raises:
        DataError: An integer lies outside the input's type, or a value is not a number.
    """
    want = spec.dtype
    if want is None or want.kind == "O":
        return np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype != want and array.dtype.kind in "iu" and want.kind in "iu" and array.size:
        low, high, limits = array.min(), array.max(), np.iinfo(want)
        if int(low) < limits.min or int(high) > limits.max:
            raise DataError(
                f"values from {low} to {high} do not fit {want}", where=f"{where}, input '{spec.name}'",
                must=f"The input takes {limits.min} to {limits.max}.",
            )  # fmt: skip
    values = np.ascontiguousarray(array, dtype=want).reshape(array.shape)
    if not allow_nan and is_float(want) and bool(np.isnan(values).any()):
        index = tuple(int(i) for i in np.argwhere(np.isnan(values))[0])
        raise DataError(
            f"the value at {list(index)} is not a number", where=f"{where}, input '{spec.name}'",
            must="Statistics taken on NaN are worthless.", do="Clean the data.",
        )  # fmt: skip
    return values


def feed_shapes(shapes: Mapping[str, tuple[int, ...]], specs: Sequence[InputSpec], where: str) -> None:
    """Check the shapes of one complete feed: exact sizes, and one size per symbolic name.

    Raises:
        DataError: A size differs from the declared one, or one symbolic dimension has two sizes.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.shape is None or spec.name not in shapes:
            continue
        shape = shapes[spec.name]
        if len(shape) != len(spec.shape):
            raise rank_error(spec, shape, where)
        for axis, (have, want) in enumerate(zip(shape, spec.shape, strict=True)):
            if isinstance(want, int) and have != want:
                raise DataError(
                    f"axis {axis} of input '{spec.name}' has {have} elements in a feed of shape {list(shape)}",
                    where=where,
                    must=f"The model takes {spec}, so the axis must have {want}.",
                )
            if isinstance(want, str):
                known, other = sizes.setdefault(want, (have, spec.name))
                if known != have:
                    raise DataError(
                        f"the dimension '{want}' is {known} in input '{other}' and {have} in input '{spec.name}'",
                        where=where,
                        must="One symbolic dimension has one size in a feed.",
                    )


def rank_error(spec: InputSpec, shape: tuple[int, ...], where: str) -> DataError:
    """Return the error for an array whose rank is neither the input's nor one more."""
    rank = 0 if spec.shape is None else len(spec.shape)
    return DataError(
        f"the array for input '{spec.name}' has {len(shape)} axes, shape {list(shape)}",
        where=where,
        must=f"The input is {spec}: give {rank + 1} axes, the first counting complete feeds, "
        f"or {rank} axes, the first being the batch.",
    )
