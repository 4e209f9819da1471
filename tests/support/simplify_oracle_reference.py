"""onnx.reference as a witness, with its known faults repaired where that can be done, so that more is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx.reference.ops import op_loop

from graphopt.verify import reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx


class Loop(op_loop.Loop):  # type: ignore[misc]
    """A Loop whose scan outputs have a new first axis, and that runs without a condition.

    onnx.reference puts the iterations behind each other with np.vstack: 3 iterations of [1, 1] become [3, 1], which is
    [3, 1, 1] by definition, and 3 numbers become [3, 1]. A Loop that was unrolled, rightly, would differ from that, and
    one with a wrong shape might not. Here what an iteration gives has its new axis before it is put behind the others.
    A condition that is left out is true, not None, which is false.
    """

    op_domain = ""

    def __init__(self, onnx_node: onnx.NodeProto, run_params: dict[str, Any]) -> None:
        super().__init__(onnx_node, run_params)
        self._whole_body: Any = vars(self)["_run_body"]
        self._run_body: Any = self._one_iteration
        self._shapes: list[tuple[int, ...]] = []

    def _one_iteration(self, *args: Any, **kwargs: Any) -> Any:
        outputs = list(self._whole_body(*args, **kwargs))
        scanned = outputs[len(outputs) - self.K :]
        self._shapes = [np.shape(each) for each in scanned]
        return [*outputs[: len(outputs) - self.K], *(np.asarray(each)[None] for each in scanned)]

    def _run(self, trips: Any, condition: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = list(super()._run(trips, np.True_ if condition is None else condition, *args, **kwargs))
        for index, shape in enumerate(self._shapes, self.N):
            if not shape:  # np.vstack makes vectors of numbers rows
                outputs[index] = outputs[index].reshape(-1)
        return tuple(outputs)


def interpret(model: bytes, feeds: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run a model in the repaired onnx.reference; see `graphopt.verify.reference.interpret`."""
    return reference.interpret(model, feeds, operators=[Loop])
