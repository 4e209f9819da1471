"""onnxsim as a peer: the ways it has for each point of the comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOW = frozenset(("sparsegpt+finetune", "wanda+finetune"))
"""Ways that are run on the first draw only."""
FINETUNE_STEPS = 100
ROUNDING_STEPS = 1000


def ways(point: dict[str, Any], transformer: bool) -> Sequence[str]:
    """Return the names of its ways to a point; none where it has none."""
    if point["rows"]:
        return ()
    if point["channels"]:
        return ("wanda", "l2") if transformer else ("wanda", "l2", "wanda+finetune")
    if point["sparsity"] and point["levels"]:
        return ("sparsegpt>int4",)
    if point["sparsity"]:
        return ("sparsegpt", "wanda", "magnitude") + (() if point["group"] or transformer else ("sparsegpt+finetune",))
    if point["activations"] == 8:
        return ("static",) if point["levels"] == 256 else ("int4>static", "gptq>static")
    if point["activations"]:
        return ()
    if point["levels"] == 16:
        return ("int4", "gptq", "adaround", "autoround", "quantease", "qronos", "int4+bias")
    return {3: ("ternary",), 2: ("billm",)}.get(point["levels"], ())


def prepare() -> None:
    """Import what a run needs, which is not part of its time."""
    import onnxruntime  # noqa: F401
    import onnxsim  # noqa: F401


def run(request: dict[str, Any], feeds: list[dict[str, Any]]) -> list[str]:
    """Compress a model one way; return what there is to say about it."""
    import onnx

    model = onnx.load(request["model"])
    way, point = request["way"], request["point"]
    if point["channels"]:
        found = _channels(model, way, point["channels"], feeds)
    elif point["sparsity"]:
        found = _pruned(model, way, point, feeds)
    else:
        found = _rounded(model, way, feeds)
    notes = _restore(model, found, request["keep"])
    onnx.save(found, request["output"])
    return notes


def _pruned(model: Any, way: str, point: dict[str, Any], feeds: list[dict[str, Any]]) -> Any:
    import onnxsim

    how = {"n": point["kept"], "m": point["group"]} if point["group"] else {"sparsity": point["sparsity"]}
    if way == "magnitude":
        return onnxsim.apply_magnitude_pruning(model, **how)
    if way == "wanda":
        return onnxsim.apply_wanda_pruning(model, calibration_data=feeds, **how)
    found = onnxsim.apply_sparsegpt_pruning(model, calibration_data=feeds, **how)
    if way == "sparsegpt>int4":
        return onnxsim.quantize_weight_only_int4(_raised(found))
    return _tuned(model, found, feeds, zeros=True) if way == "sparsegpt+finetune" else found


def _channels(model: Any, way: str, share: float, feeds: list[dict[str, Any]]) -> Any:
    import onnxsim

    if way == "l2":
        return onnxsim.apply_structured_pruning(model, sparsity=share)
    found = onnxsim.apply_structured_wanda_pruning(model, calibration_data=feeds, sparsity=share)
    return _tuned(model, found, feeds, zeros=False) if way == "wanda+finetune" else found


def _tuned(model: Any, pruned: Any, feeds: list[dict[str, Any]], *, zeros: bool) -> Any:
    """Return its blockwise distillation, without labels as well."""
    import onnxsim

    found, _ = onnxsim.apply_block_finetune_all_blocks(
        model, pruned, calibration_data=feeds[:8], num_iterations=FINETUNE_STEPS, preserve_sparsity=zeros
    )
    return found


def _rounded(model: Any, way: str, feeds: list[dict[str, Any]]) -> Any:
    import onnxsim

    if way == "static":
        return onnxsim.quantize_static(model, feeds, method="auto", full_graph=True)
    raised = _raised(model)
    if way == "ternary":
        return onnxsim.apply_gguf_ternary_quantization(raised, include_conv=True)
    if way == "billm":
        return onnxsim.quantize_weight_only_billm(raised, calibration_data=feeds)
    first, _, second = way.partition(">")
    found = onnxsim.quantize_weight_only_int4(raised)
    if first == "int4+bias":
        found = onnxsim.correct_bias(raised, found, calibration_data=feeds)
    elif first != "int4":
        more = {"num_iterations": ROUNDING_STEPS} if first in {"adaround", "autoround"} else {}
        found = getattr(onnxsim, f"apply_{first}")(raised, found, calibration_data=feeds, **more)
    return onnxsim.quantize_static(found, feeds, full_graph=True) if second else found


def _raised(model: Any) -> Any:
    """Return the model in opset 21, the first with 4-bit weights in blocks."""
    from onnx import version_converter

    now = next(each.version for each in model.opset_import if each.domain in {"", "ai.onnx"})
    return model if now >= 21 else version_converter.convert_version(model, 21)


def _restore(model: Any, found: Any, keep: list[str]) -> list[str]:
    """Put back the layers that are to be kept: it cannot leave out a layer by itself."""
    original = {tensor.name: tensor for tensor in model.graph.initializer}
    notes = []
    for node in [node for node in model.graph.node if node.name in keep]:
        wanted = [original[name] for name in node.input if name in original]
        here = next((other for other in found.graph.node if other.output == node.output), None)
        if here is None:
            notes.append(f"{node.name} cannot be put back")
            continue
        here.CopyFrom(node)
        for tensor in wanted:
            for old in [each for each in found.graph.initializer if each.name == tensor.name]:
                found.graph.initializer.remove(old)
            found.graph.initializer.append(tensor)
        notes.append(f"{node.name} put back")
    return notes
