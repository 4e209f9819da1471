"""Models that ONNX Runtime's own tool quantized, for tests of what reads other tools' results."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from onnxruntime import quantization

from graphopt.graph import Model, read_model

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FORMS = ("qdq", "qdq per channel", "qoperator", "qoperator per channel", "dynamic")


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterable[Any]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self._feeds, None)


def quantized_by_peer(path: Path, form: str, feeds: Iterable[Any], folder: Path, **options: Any) -> Model:
    """Return a float model as ONNX Runtime's tool quantizes it, in one of `FORMS`."""
    out = folder / f"{path.stem}_{form.replace(' ', '_')}.onnx"
    logging.disable(logging.WARNING)
    try:
        if form == "dynamic":
            quantization.quantize_dynamic(path, out, **options)
        else:
            qdq = form.startswith("qdq")
            given: dict[str, Any] = {"activation_type": quantization.QuantType.QUInt8, **options}
            quantization.quantize_static(
                path,
                out,
                _Reader(feeds),
                quant_format=quantization.QuantFormat.QDQ if qdq else quantization.QuantFormat.QOperator,
                per_channel="channel" in form,
                weight_type=quantization.QuantType.QInt8,
                **given,
            )
    finally:
        logging.disable(logging.NOTSET)
    return read_model(out)
