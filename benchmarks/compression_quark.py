"""Quark as a peer: 8-bit quantization by one of its named configurations, with AdaRound as an option."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOW: frozenset[str] = frozenset()


def ways(point: dict[str, Any], transformer: bool) -> Sequence[str]:
    """Return the names of its ways to a point; none where it has none."""
    if point["sparsity"] or point["channels"]:
        return ()
    return ("U8S8_AAWS",) if point["levels"] == 256 and point["activations"] == 8 else ()


def prepare() -> None:
    """Import what a run needs, which is not part of its time."""
    import quark.onnx  # noqa: F401


def run(request: dict[str, Any], feeds: list[dict[str, Any]]) -> list[str]:
    """Compress a model one way; return what there is to say about it."""
    from onnxruntime.quantization import CalibrationDataReader
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

        def rewind(self) -> None:
            self._left = iter(feeds)

    settings = get_default_config(request["way"])
    settings.nodes_to_exclude = list(request["keep"])
    tool = ModelQuantizer(Config(global_quant_config=settings))
    tool.quantize_model(request["model"], request["output"], Reader())
    return []
