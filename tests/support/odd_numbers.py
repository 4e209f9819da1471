"""Numbers that rewrites of arithmetic get wrong: zeros of both signs, infinities, NaN, subnormal and largest numbers.

Feeds refuse NaN, so a pass is checked on random feeds first and on these afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from graphopt.verify.reference import evaluate
from pass_oracle import Done, assert_equal, check_pass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.rewrite.pass_ import Pass


def odd(dtype: Any) -> np.ndarray[Any, Any]:
    """Return the odd numbers of a type, in one dimension."""
    kind = np.dtype(dtype)
    if kind == np.bool_:
        return np.array([False, True])
    if kind.kind in "iu":
        info = np.iinfo(kind)
        return np.array([info.min, info.max, 0, 1, info.max - 1, info.max // 2, info.max // 3], kind)
    tiny, top = np.finfo(kind).smallest_subnormal, np.finfo(kind).max
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, tiny, -tiny, top, -top, 1.0, -1.0, 1 / 3, -2.5, 6.0, 2049.0]
    return np.array(values, kind)


def check_on_odd(step: Pass, source: str | onnx.ModelProto, free: int = 17, **options: Any) -> Done:
    """Check a pass on random feeds, then in ONNX Runtime on odd numbers.

    Args:
        step: The pass.
        source: ONNX text or a message.
        free: Size of every free axis.
        options: For `check_pass`.
    """
    model = onnx.parser.parse_model(source) if isinstance(source, str) else source
    done = check_pass(step, model, **options)
    feeds = [odd_feed(model, free)]
    assert_equal(done.before, step.contract, feeds, evaluate(done.before, feeds), evaluate(done.model, feeds))
    return done


def odd_feed(model: onnx.ModelProto, free: int) -> Mapping[str, np.ndarray[Any, Any]]:
    """Return odd numbers for every input of a model; inputs start at different ones.

    Args:
        model: The model.
        free: Size of every free axis.
    """
    feed = {}
    for index, value in enumerate(model.graph.input):
        kind = value.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else free for dim in kind.shape.dim]
        numbers = np.roll(odd(helper.tensor_dtype_to_np_dtype(kind.elem_type)), index)
        feed[value.name] = np.resize(numbers, shape)
    return feed
