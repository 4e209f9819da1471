"""ONNX Runtime's own quantizers as a peer: static QDQ, and weights in blocks for MatMul."""

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
    if point["activations"] == 8:
        return ("static", "dynamic") if transformer and point["levels"] == 256 else ("static",)
    if point["activations"] or point["levels"] != 16:
        return ()
    return ("rtn", "hqq", "k-quant", "gptq") if transformer else ("rtn",)


def prepare() -> None:
    """Import what a run needs, which is not part of its time."""
    import onnxruntime.quantization.matmul_nbits_quantizer  # noqa: F401


def run(request: dict[str, Any], feeds: list[dict[str, Any]]) -> list[str]:
    """Compress a model one way; return what there is to say about it."""
    from onnxruntime import quantization

    way, point, keep = request["way"], request["point"], request["keep"]
    if way == "dynamic":
        quantization.quantize_dynamic(request["model"], request["output"], per_channel=True, nodes_to_exclude=keep)
        return []
    if way == "static":
        source = request["output"] + ".source.onnx"
        notes = _raised(request["model"], source, 21 if point["levels"] == 16 else 13)
        small = point["levels"] == 16
        quantization.quantize_static(
            source,
            request["output"],
            _reader(feeds),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt4 if small else quantization.QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=keep,
        )
        return notes
    _in_blocks(request, feeds)
    return []


def _in_blocks(request: dict[str, Any], feeds: list[dict[str, Any]]) -> None:
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as quantizer

    configurations = {
        "rtn": lambda: quantizer.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False),
        "hqq": lambda: quantizer.HQQWeightOnlyQuantConfig(block_size=BLOCK),
        "k-quant": quantizer.KQuantWeightOnlyQuantConfig,
        "gptq": lambda: quantizer.GPTQWeightOnlyQuantConfig(_reader(feeds), block_size=BLOCK, actorder=True),
    }
    tool = quantizer.MatMulNBitsQuantizer(
        onnx.load(request["model"]),
        block_size=BLOCK,
        nodes_to_exclude=request["keep"],
        algo_config=configurations[request["way"]](),
    )
    tool.process()
    tool.model.save_model_to_file(request["output"])


def _raised(model: str, output: str, opset: int) -> list[str]:
    """Write a model in an opset that has what the quantizer needs."""
    import onnx
    from onnx import version_converter

    loaded = onnx.load(model)
    now = next(each.version for each in loaded.opset_import if each.domain in {"", "ai.onnx"})
    onnx.save(loaded if now >= opset else version_converter.convert_version(loaded, opset), output)
    return [] if now >= opset else [f"opset {opset}"]


def _reader(feeds: list[dict[str, Any]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

        def rewind(self) -> None:
            self._left = iter(feeds)

    return Reader()
