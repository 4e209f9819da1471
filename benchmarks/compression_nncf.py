"""NNCF as a peer: post-training quantization and weight compression on its ONNX backend."""

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
        return ("quantize",) if point["levels"] == 256 else ()
    modes = {16: "int4", 8: "int3", 3: "int2"}
    if point["levels"] not in modes:
        return ()
    mode = modes[point["levels"]]
    return (mode, f"{mode}+scales", f"{mode}+awq") if transformer else (mode,)


def prepare() -> None:
    """Import what a run needs, which is not part of its time."""
    import nncf  # noqa: F401


def run(request: dict[str, Any], feeds: list[dict[str, Any]]) -> list[str]:
    """Compress a model one way; return what there is to say about it."""
    import nncf
    import onnx
    from nncf.quantization.advanced_parameters import GroupSizeFallbackMode
    from onnx import version_converter

    model = onnx.load(request["model"])
    way, point = request["way"], request["point"]
    opset = 21 if way.startswith("int") else 13
    now = next(each.version for each in model.opset_import if each.domain in {"", "ai.onnx"})
    if now < opset:
        model = version_converter.convert_version(model, opset)
    ignored = nncf.IgnoredScope(names=request["keep"]) if request["keep"] else None
    data = nncf.Dataset(feeds)
    if way == "quantize":
        kind = nncf.ModelType.TRANSFORMER if request["transformer"] else None
        preset = nncf.QuantizationPreset.MIXED
        found = nncf.quantize(
            model, data, preset=preset, subset_size=len(feeds), model_type=kind, ignored_scope=ignored
        )
    else:
        mode, _, more = way.partition("+")
        blocks = bool(point["block"]) or request["transformer"]
        found = nncf.compress_weights(
            model,
            mode=getattr(nncf.CompressWeightsMode, f"{mode.upper()}_SYM"),
            ratio=1.0,
            group_size=GROUP if blocks else -1,
            ignored_scope=ignored,
            dataset=data if more else None,
            subset_size=len(feeds),
            awq=True if more == "awq" else None,
            scale_estimation=True if more == "scales" else None,
            advanced_parameters=nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=GroupSizeFallbackMode.ADJUST
            ),
        )
    onnx.save(found, request["output"])
    return [f"opset {opset}"] if now < opset else []
