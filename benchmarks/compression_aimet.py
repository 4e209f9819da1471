"""AIMET as a peer: simulated quantization with chosen ranges, sequential MSE or AdaRound, exported with Q and DQ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOW = frozenset(("adaround",))
STEPS = 200
"""Of AdaRound for each layer: its own 10 000 would take hours on this processor."""
CALIBRATION_FEEDS = 8
"""Feeds that AdaRound and sequential MSE work on: their memory and time grow with them."""


def ways(point: dict[str, Any], transformer: bool) -> Sequence[str]:
    """Return the names of its ways to a point; none where it has none."""
    if point["sparsity"] or point["channels"]:
        return ()
    if point["levels"] == 256:
        return ("ranges",)
    if point["levels"] == 16:
        return ("ranges", "seq-mse") if transformer else ("ranges", "seq-mse", "adaround")
    return ("seq-mse",) if point["levels"] in {8, 3} else ()


def prepare() -> None:
    """Import what a run needs, which is not part of its time."""
    import aimet_onnx  # noqa: F401


def run(request: dict[str, Any], feeds: list[dict[str, Any]]) -> list[str]:
    """Compress a model one way; return what there is to say about it."""
    import aimet_onnx
    import onnx
    from aimet_onnx.common.defs import QuantScheme

    way, point = request["way"], request["point"]
    bits = (point["levels"] - 1).bit_length()
    scheme = QuantScheme.min_max if way == "seq-mse" else QuantScheme.post_training_tf_enhanced
    simulation = aimet_onnx.QuantizationSimModel(
        onnx.load(request["model"]),
        param_type=aimet_onnx.qtype.int(bits),
        activation_type=aimet_onnx.qtype.int(point["activations"] or 16),
        quant_scheme=scheme,
    )
    some = feeds[:CALIBRATION_FEEDS]
    if request["keep"]:
        kept = [node for node in simulation.model.model.graph.node if node.name in request["keep"]]
        simulation.remove_quantizers([name for node in kept for name in node.input])
    if way == "seq-mse":
        aimet_onnx.apply_seq_mse(simulation, some)
    if way == "adaround":
        aimet_onnx.apply_adaround(simulation, some, num_iterations=STEPS)
    simulation.compute_encodings(feeds)
    onnx.save(simulation.to_onnx_qdq(prequantize_constants=True), request["output"])
    return [] if point["activations"] else ["activations of 16 bits"]
