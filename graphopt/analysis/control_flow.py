"""Types through If, Loop, Scan and calls of functions.

What a loop carries is found as a fixed point: a size that changes from one iteration to the next becomes unknown, so
that the facts of the body hold in every iteration. What a function's body holds is what holds in all calls of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from graphopt.analysis.dim_extremes import maximum
from graphopt.analysis.dims import Expr
from graphopt.analysis.merging import join, outside, same
from graphopt.analysis.site import NOTHING, Known, ShapeClashError, as_value, normalized, unify_dim
from graphopt.graph.objects import Graph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.site import Site

    RunBody = Callable[[str, Sequence[Known]], list[Known]]
    """Sweeps the body held by an attribute with these inputs; returns its outputs as the body sees them."""

_FIXED_POINT_STEPS = 8


def infer_if(site: Site, run: RunBody, prefix: str) -> list[Known]:
    """Return what holds after either branch; after one of them where the condition is known."""
    then, otherwise = run("then_branch", ()), run("else_branch", ())
    condition = site.value(0)
    if condition is not None and condition.size == 1 and isinstance(condition.ravel()[0], bool):
        return [outside(known, prefix) for known in (then if condition.ravel()[0] else otherwise)]
    return [outside(join(a, b), prefix) for a, b in zip(then, otherwise, strict=False)]


def infer_loop(site: Site, run: RunBody, prefix: str, *, exhausted: Callable[[], bool]) -> list[Known]:
    """Return the facts of a Loop's outputs: final carried values, then one stack per scan output.

    Args:
        site: The node: inputs are the trip count, the condition and the initial carried values.
        run: Sweeps the body.
        prefix: What names of the body's symbols begin with.
        exhausted: Whether too much was swept again already, so that carried values count as unknown at once.
    """
    always = Known(TensorProto.BOOL, (), as_value([True], ()))
    start = [site.input(1) if site.has(1) else always, *[site.input(index) for index in range(2, len(site.known))]]
    if site.value(1) is not None:
        start[0] = Known(TensorProto.BOOL, start[0].shape, site.value(1))
    state, found = _fixed_point(lambda now: run("body", [Known(TensorProto.INT64, ()), *now]), start, prefix, exhausted)
    carried = len(start)
    length = _trip_count(site, state[0])
    stacks = [outside(known, prefix) for known in found[carried:]]
    return [
        *[Known(known.dtype, known.shape, known.value, known.proto) for known in state[1:]],
        *[Known(known.dtype, None if known.shape is None else (length, *known.shape)) for known in stacks],
    ]


def _trip_count(site: Site, condition: Known) -> Dim | None:
    """Return how many iterations run: the limit, where the condition is proved never to stop the loop."""
    limit = site.value(0)
    if limit is None or limit.size != 1 or condition.value is None or condition.value.ravel().tolist() != [True]:
        return None
    count = limit.ravel()[0]
    return maximum(count, 0) if isinstance(count, int | Expr) else None


def _fixed_point(
    run: Callable[[Sequence[Known]], list[Known]],
    start: list[Known],
    prefix: str,
    exhausted: Callable[[], bool],
) -> tuple[list[Known], list[Known]]:
    """Sweep a body until what it is given holds for what it gives back; return both."""
    state = start
    if not exhausted():
        for _ in range(_FIXED_POINT_STEPS):
            found = run(state)
            back = [outside(known, prefix) for known in found[: len(state)]]
            back += [NOTHING] * (len(state) - len(back))
            merged = [join(now, after) for now, after in zip(state, back, strict=True)]
            if all(same(now, after) for now, after in zip(state, merged, strict=True)):
                return state, found
            state = merged
    state = [Known(known.dtype) for known in start]
    found = run(state)
    kept = [now if now.dtype == after.dtype else Known() for now, after in zip(state, found, strict=False)]
    if [known.dtype for known in kept] != [known.dtype for known in state]:
        state = [Known() for _ in start]
        found = run(state)
    return state, found


def infer_scan(site: Site, run: RunBody, prefix: str, *, exhausted: Callable[[], bool]) -> list[Known]:
    """Return the facts of a Scan's outputs: final states, then one stack per scan output.

    Raises:
        ShapeClashError: The operator is the one of opset 8, or the scanned axes differ in length.
    """
    if site.opset < 9:
        msg = "Scan of opset 8 has batched states, which are not followed"
        raise ShapeClashError(msg)
    scanned = site.attr_int("num_scan_inputs", 0)
    states = len(site.known) - scanned
    if not 0 <= scanned <= len(site.known):
        msg = f"num_scan_inputs is {scanned} of {len(site.known)} inputs"
        raise ShapeClashError(msg)
    axes = site.attr_ints("scan_input_axes") or [0] * scanned
    length: Dim | None = None
    slices = []
    for index in range(scanned):
        known = site.input(states + index)
        if known.shape is None:
            slices.append(Known(known.dtype))
            continue
        axis = normalized(axes[index], len(known.shape))
        length = unify_dim(length, known.shape[axis])
        slices.append(Known(known.dtype, (*known.shape[:axis], *known.shape[axis + 1 :])))
    start = [site.input(index) for index in range(states)]
    state, found = _fixed_point(lambda now: run("body", [*now, *slices]), start, prefix, exhausted)
    results = [Known(known.dtype, known.shape, known.value, known.proto) for known in state]
    out_axes = site.attr_ints("scan_output_axes") or [0] * (len(found) - states)
    for known, axis in zip([outside(known, prefix) for known in found[states:]], out_axes, strict=False):
        if known.shape is None:
            results.append(Known(known.dtype))
        else:
            place = normalized(axis, len(known.shape) + 1)
            results.append(Known(known.dtype, (*known.shape[:place], length, *known.shape[place:])))
    return results


def infer_opaque_bodies(site: Site, run: RunBody) -> list[Known]:
    """Sweep the bodies of an operator whose way of calling them is not followed; nothing is known of its outputs."""
    for name, value in site.attrs.items():
        if isinstance(value, Graph):
            run(name, [Known()] * len(value.inputs))
    return []
