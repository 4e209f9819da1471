"""ModelOpt as a peer: int8 with maxima or entropy, and 4-bit weights in blocks with AWQ or plain rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOW: frozenset[str] = frozenset()
BLOCK = 32


def ways(point: dict[str, Any], transformer: bool) -> Sequence[str]:
    """Return the names of its ways to a point; none where it has none."""
    if point["sparsity"] or point["channels"]:
        return ()
    if point["activations"]:
        return ("max",) if point["levels"] == 256 else ()
    return ("awq_lite", "rtn_dq") if transformer and point["levels"] == 16 else ()


def prepare() -> None:
    """Import what a run needs, which is not part of its time."""
    import modelopt.onnx.quantization  # noqa: F401


def run(request: dict[str, Any], feeds: list[dict[str, Any]]) -> list[str]:
    """Compress a model one way; return what there is to say about it."""
    import onnx
    from modelopt.onnx import quantization
    from modelopt.onnx.quantization import int4
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

        def get_first(self) -> dict[str, Any]:
            return feeds[0]

        def rewind(self) -> None:
            self._left = iter(feeds)

    if request["way"] == "max":
        quantization.quantize(
            request["model"],
            quantize_mode="int8",
            calibration_method="max",
            calibration_data_reader=Reader(),
            calibration_eps=["cpu"],
            nodes_to_exclude=request["keep"] or None,
            output_path=request["output"],
            high_precision_dtype="fp32",
        )
        return []
    found = int4.quantize(
        request["model"],
        calibration_method=request["way"],
        calibration_data_reader=Reader(),
        calibration_eps=["cpu"],
        use_external_data_format=False,
        block_size=BLOCK,
        nodes_to_exclude=request["keep"] or ["/never-a-node"],
    )
    onnx.save(found, request["output"])
    return []
