"""onnx-neural-compressor as a peer: weight-only rounding, and static quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOW: frozenset[str] = frozenset()
GROUP = 32


def ways(point: dict[str, Any], transformer: bool) -> Sequence[str]:
    """Return the names of its ways to a point; none where it has none."""
    if point["sparsity"] or point["channels"]:
        return ()
    if point["activations"]:
        return ("static",) if point["levels"] == 256 else ()
    if not transformer or point["levels"] not in {16, 8}:
        return ()
    return ("rtn", "gptq", "awq")


def prepare() -> None:
    """Import what a run needs, which is not part of its time."""
    import onnx_neural_compressor.quantization.config  # noqa: F401


def run(request: dict[str, Any], feeds: list[dict[str, Any]]) -> list[str]:
    """Compress a model one way; return what there is to say about it."""
    import onnx
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import CalibrationMethod, QuantFormat, QuantType, config, quantize

    class Reader(data_reader.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

        def rewind(self) -> None:
            self._left = iter(feeds)

    way, point, keep = request["way"], request["point"], request["keep"]
    if way == "static":
        settings = config.StaticQuantConfig(
            calibration_data_reader=Reader(),
            calibrate_method=CalibrationMethod.MinMax,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=keep,
        )
        quantize(request["model"], request["output"], settings)
        return []
    from onnx_neural_compressor.quantization import algorithm_entry

    bits = (point["levels"] - 1).bit_length()
    kind = {"rtn": config.RTNConfig, "gptq": config.GPTQConfig, "awq": config.AWQConfig}[way]
    settings = kind(weight_bits=bits, weight_group_size=GROUP, weight_sym=False)
    for name in keep:
        settings.set_local(name, kind(weight_dtype="fp32"))
    if way == "rtn":
        found = algorithm_entry.rtn_quantize_entry(request["model"], settings)
    else:
        found = getattr(algorithm_entry, f"{way}_quantize_entry")(request["model"], settings, Reader())
    onnx.save(found, request["output"])
    return []
