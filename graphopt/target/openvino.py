"""OpenVINO on CPUs: low-precision transformations run an operator on integers where all its inputs are rounded.

* Activations are uint8 with any zero point, one scale per tensor; weights int8, symmetric, one scale per output.
* Pairs stand before all inputs of operators that are to compute on integers; an operator with one float input among
  them computes in float. Its output needs none.
* Data movement between such operators has a pair before and one behind it, on one grid: it carries integers whichever
  way OpenVINO moves them. Relu is no data movement: what it makes is rounded behind it, without negative values.
* What reaches a Concat has one scale.
* The products of attention behind a Softmax, the gates of squeeze-and-excitation blocks, SiLU and LayerNormalization
  stay float.

Source: OpenVINO documentation, "Low Precision Transformations"; the hardware tables of NNCF 3.4 for CPUs.
"""

from __future__ import annotations

from typing import Any

from graphopt.target import checks
from graphopt.target.numbers import INT8, UINT8
from graphopt.target.refusals import (
    refuse_average_pool,
    refuse_conv,
    refuse_conv_transpose,
    refuse_gemm,
    refuse_matmul,
    refuse_max_pool,
)
from graphopt.target.rules import BiasForm, OpRule, Pairs, Role, Target, WeightForm, WeightKind


def _weighted(op: str, bias: int | None, **options: Any) -> OpRule:
    return OpRule(
        op=op, role=Role.WEIGHTED, kernel=f"int8 {op}", weight=1, bias=bias, needs_output_grid=False, **options
    )


def _join(op: str, **options: Any) -> OpRule:
    return OpRule(op=op, role=Role.JOIN, kernel=f"int8 {op}", needs_output_grid=False, **options)


def _move(op: str, **options: Any) -> OpRule:
    return OpRule(op=op, role=Role.MOVE, kernel=f"{op} of uint8", **options)


RULES = (
    # operator, what it needs
    _weighted("Conv", 2, refuse=refuse_conv),
    _weighted("ConvTranspose", 2, refuse=refuse_conv_transpose),
    _weighted("Gemm", 2, refuse=refuse_gemm),
    _weighted("MatMul", None, refuse=refuse_matmul),
    _join("Add", data=(0, 1)),
    _join("Sub", data=(0, 1)),
    _join("Mul", data=(0, 1)),
    _join("AveragePool", refuse=refuse_average_pool),
    _join("GlobalAveragePool"),
    OpRule(op="Concat", role=Role.MOVE, kernel="Concat of uint8", data=None, one_grid=True),
    _move("MaxPool", refuse=refuse_max_pool),
    *(_move(op) for op in ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Tile", "Slice")),
    *(_move(op) for op in ("Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "Expand")),
    *(_move(op) for op in ("Pad", "Identity", "ReduceMax")),
    OpRule(op="Relu", role=Role.ABSORBED, kernel="the operator before it", needs_output_grid=False),
    OpRule(op="Clip", role=Role.ABSORBED, kernel="the operator before it", needs_output_grid=False),
)

OPENVINO = Target(
    name="openvino",
    runtime="OpenVINO",
    rules={rule.op: rule for rule in RULES},
    float_reason={
        "Softmax": "OpenVINO computes it in float",
        "Sigmoid": "OpenVINO computes it in float, or fuses it into the operator before it",
        "LayerNormalization": "OpenVINO normalizes in float",
        "HardSwish": "OpenVINO fuses it into the operator before it",
    },
    activations=(UINT8, INT8),
    weights=WeightKind(),
    pairs=Pairs.INPUTS,
    weight_form=WeightForm.INTEGERS,
    bias_form=BiasForm.FLOAT,
    integer_tables=True,
    checks=(
        checks.OPERATORS,
        checks.TYPES,
        checks.ONE_SCALE,
        checks.ALL_INPUTS,
        checks.WEIGHT_AXIS,
        checks.WEIGHT_ROUNDED,
        checks.CONCAT_GRID,
    ),
)
