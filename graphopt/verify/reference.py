"""Runs models for verification: ONNX Runtime without its own optimizations, and onnx.reference as a second voice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import onnx.reference

from graphopt.errors import UnsupportedError
from graphopt.runtime import random_feeds, run, session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnxruntime

    from graphopt.graph import Model
    from graphopt.runtime import Feeds

KERNEL_DOMAIN = "ai.graphopt"

PLANNED_NODES = 1000
"""Models with more nodes run without a plan of shared memory, which would take longer than the runs."""


def evaluate(model: Model | Path | str | bytes, feeds: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run a model in ONNX Runtime with graph optimizations off, on one thread.

    Args:
        model: The model; a model in memory that uses the kernels' operators gets this installation's library.
        feeds: Complete feeds.

    Returns:
        Outputs by name, one dictionary per feed.

    Raises:
        UnsupportedError: ONNX Runtime refuses the model.
        DataError: A feed does not fit.
        RunError: The model failed inside.
    """
    running = open_unoptimized(model)
    return [run(running, feed) for feed in feeds]


def sample_feeds(model: Model | Path | str | bytes, count: int, seed: int = 0) -> Feeds:
    """Return random feeds on which a model runs.

    Args:
        model: The model, as for `evaluate`.
        count: Number of samples.
        seed: The same seed gives the same values.

    Raises:
        UnsupportedError: ONNX Runtime refuses the model, or an input is no tensor.
    """
    return random_feeds(open_unoptimized(model), count=count, seed=seed)


def open_unoptimized(model: Model | Path | str | bytes) -> onnxruntime.InferenceSession:
    """Return a session that computes every node as the model states it: the same nodes give the same bits.

    Args:
        model: The model, as for `evaluate`.
    """
    with_kernels = KERNEL_DOMAIN in getattr(model, "opset_imports", {})
    # a weight that became an initializer is prepacked for another matrix kernel, which adds up in another order
    plain = {"session.disable_prepacking": "1"}
    many = not isinstance(model, Path | str | bytes) and sum(1 for _ in model.walk()) > PLANNED_NODES
    kernels: bool | Literal["auto"] = True if with_kernels else "auto"
    return session(model, optimize=False, kernels=kernels, reuse_memory=not many, config=plain)


def interpret(
    model: bytes, feeds: Iterable[Mapping[str, Any]], *, operators: Sequence[type[Any]] = ()
) -> list[dict[str, Any]]:
    """Run a model in onnx.reference, which shares no code with ONNX Runtime. Slow: for small models.

    Args:
        model: The serialized model.
        feeds: Complete feeds.
        operators: Implementations that take the place of those of onnx.reference.

    Returns:
        Outputs by name, one dictionary per feed.

    Raises:
        UnsupportedError: onnx.reference does not implement something in the model.
    """
    try:
        evaluator = onnx.reference.ReferenceEvaluator(onnx.load_from_string(model), new_ops=list(operators))
        names = evaluator.output_names
        found = [evaluator.run(None, dict(feed)) for feed in feeds]
    except (NotImplementedError, onnx.reference.op_run.RuntimeImplementationError, RuntimeError, TypeError) as error:
        raise UnsupportedError(
            f"onnx.reference cannot run it: {type(error).__name__}: {error}",
            must="Every operator has a reference implementation",
        ) from error
    return [dict(zip(names, map(_array, outputs), strict=True)) for outputs in found]


def _array(value: Any) -> Any:
    return value if isinstance(value, list | dict) or value is None else np.asarray(value)
