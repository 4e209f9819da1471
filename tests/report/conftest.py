from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from graphopt.report import (
    Environment,
    Latency,
    LayerEntry,
    ModelInfo,
    ModelPair,
    PassEntry,
    Quality,
    Report,
    SkipEntry,
    Tool,
    WeightEntry,
)

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Environment(
    onnxruntime="1.31.1",
    onnx="1.23.2",
    numpy="2.4.6",
    python="3.11.7",
    cpu="Some Processor 9000",
    isa="avx512",
    cores=2,
    system="Linux x86_64",
)


def model_of(path: str, nodes: int, size: int, operators: dict[str, int]) -> ModelInfo:
    return ModelInfo(path=path, sha256="ab" * 32, nodes=nodes, bytes=size, parameters=size // 4, operators=operators)


@pytest.fixture
def tiny() -> Report:
    """One layer, nothing measured but size."""
    return Report(
        tool=Tool(version="0.1.0"),
        model=ModelPair(
            before=model_of("tiny.onnx", 2, 412, {"Gemm": 1, "Identity": 1}),
            after=model_of("out/model.onnx", 1, 380, {"Gemm": 1}),
        ),
        passes=(PassEntry(name="eliminate-identity", patches=1, seconds=0.0004, nodes_before=2, nodes_after=1),),
        environment=HERE,
        target="ort-cpu",
        recipe="default",
    )


@pytest.fixture
def make_big() -> Callable[[int], Report]:
    """Return a function that makes the report of a quantized and pruned network with that many layers."""

    def make(layers: int) -> Report:
        names = [
            f"/encoder/layer.{index // 6}/{('query', 'key', 'value', 'out', 'up', 'down')[index % 6]}/MatMul"
            for index in range(layers)
        ]
        sizes = [4 * 384 * (384 if index % 6 < 4 else 1536) for index in range(layers)]
        weights = tuple(
            WeightEntry(
                name=name,
                op="MatMul",
                parameters=size // 4,
                bytes_before=size,
                bytes_after=size if index % 17 == 5 else size // 4,
                type_before="float",
                type_after="float" if index % 17 == 5 else "int8",
                zeros_before=0.0,
                zeros_after=0.0 if index % 11 == 3 else 0.5 + 0.4 * (index % 7) / 7,
            )
            for index, (name, size) in enumerate(zip(names, sizes, strict=True))
        )
        done = [
            LayerEntry(
                name=name,
                op="MatMul",
                what="80 % zeros",
                kept=index % 11 != 3,
                reverted=False,
                reason="" if index % 11 != 3 else "too few weights to prune",
                pass_name="prune-magnitude",
            )
            for index, name in enumerate(names)
        ] + [
            LayerEntry(
                name=name,
                op="MatMul",
                what="int8 per channel",
                kept=index % 17 != 5,
                reverted=index % 17 == 5,
                reason="cost 2.1 dB at the output, the guard took it back" if index % 17 == 5 else "",
                pass_name="insert-qdq",
            )
            for index, name in enumerate(names)
        ]
        skips = tuple(
            SkipEntry(node=f"{name}_add", reason=f"input '{name}_x' is not constant") for name in names[: layers // 2]
        )
        reads = tuple(
            SkipEntry(node=f"/Gather_{index}", reason="indices are not known before the run") for index in range(40)
        )
        return Report(
            tool=Tool(version="0.1.0"),
            model=ModelPair(
                before=model_of(
                    "models/encoder_legacy_op17.onnx",
                    layers * 7,
                    sum(sizes) + 40_000,
                    {
                        "MatMul": layers,
                        "Add": layers * 2,
                        "Reshape": layers,
                        "Transpose": layers // 2,
                        "Constant": layers * 2,
                        **{f"Op{index}": 20 - index for index in range(19)},
                    },
                ),
                after=model_of(
                    "out/model.onnx",
                    layers * 5,
                    sum(sizes) // 3,
                    {
                        "MatMul": layers,
                        "Add": layers,
                        "QuantizeLinear": layers,
                        "DequantizeLinear": layers * 2,
                        "ai.graphopt::SparseMatMul": 4,
                    },
                ),
            ),
            quality=Quality(
                samples=1017,
                agreement=0.9921,
                sqnr_db=31.4,
                standard_error=0.0028,
                metric="agreement",
                drop=0.79,
                budget=1.0,
                met=True,
            ),
            latency_ms=Latency(before=18.42, after=9.61, threads=1, runs=60, fallback=10.3),
            passes=(
                PassEntry(
                    name="fold-constants",
                    options={"growth": 1.0},
                    patches=212,
                    skips=reads,
                    seconds=0.81,
                    nodes_before=layers * 7,
                    nodes_after=layers * 6,
                ),
                PassEntry(name="fuse-batch-norm", seconds=0.02, nodes_before=layers * 6, nodes_after=layers * 6),
                PassEntry(
                    name="prune-magnitude",
                    options={"sparsity": 0.8, "method": "lamp", "keep": []},
                    patches=layers,
                    skips=skips,
                    seconds=3.2,
                    nodes_before=layers * 6,
                    nodes_after=layers * 6,
                ),
                PassEntry(
                    name="insert-qdq",
                    options={"percentile": 99.99},
                    patches=1,
                    skips=skips[:7],
                    seconds=11.9,
                    nodes_before=layers * 6,
                    nodes_after=layers * 5,
                ),
            ),
            layers=tuple(done),
            weights=weights,
            environment=HERE,
            target="ort-cpu",
            recipe="smallest",
            notes=(
                "int4 weights were written as int8: the opset is 17.",
                "Sparsity was lowered from 80 % to 72 % to meet the budget.",
            ),
        )

    return make


@pytest.fixture
def hostile(tiny: Report) -> Report:
    """Every text that can come from a model is an attack on the page or the terminal."""
    attack = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>\x1b[31m\u202e[bold]&amp;</style></title>"
    before = tiny.model.before.model_copy(update={"path": attack, "operators": {attack: 3, f"evil::{attack}": 1}})
    return tiny.model_copy(
        update={
            "model": ModelPair(before=before, after=before),
            "quality": Quality(samples=1, metric=attack, before=0.5, after=0.4, budget=0.01, drop=0.1, met=False),
            "passes": (
                PassEntry(name=attack, options={attack: attack}, skips=(SkipEntry(node=attack, reason=attack),) * 2),
            ),
            "layers": (LayerEntry(name=attack, op=attack, what=attack, kept=True, reverted=False, reason=attack),),
            "weights": (
                WeightEntry(
                    name=attack,
                    op=attack,
                    parameters=1,
                    bytes_before=4,
                    bytes_after=4,
                    type_before=attack,
                    type_after="x" + attack,
                    zeros_before=0,
                    zeros_after=0,
                ),
            )
            * 2,
            "notes": (attack,),
            "recipe": attack,
            "target": attack,
            "environment": HERE.model_copy(update={"cpu": attack}),
            "tool": Tool(name=attack, version=attack),
        }
    )
