"""What a pass yields: a proposed edit, or a refusal with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.graph.labels import node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.graph import Node, Rewriter

__all__ = ["Contract", "LayerRecord", "Patch", "Skip", "node_label"]


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """What a lossy patch did to one layer; a row of the report's per-layer table.

    Attributes:
        name: Name of the layer's node.
        op: Its operator type.
        what: What was done, with figures: ``"int8 per channel"``, ``"80.2 % zeros"``.
        kept: Whether the change is in the model.
        reverted: Whether it was made and taken back, because of the budget.
        reason: Why it was kept, refused or reverted.
    """

    name: str
    op: str
    what: str
    kept: bool = True
    reverted: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Patch:
    """One proposed edit. The manager applies it inside a ``Rewriter`` before it asks the pass for the next.

    A patch is atomic in purpose: the model is legal after each one, so that ``--stop-after`` can stop at any of them.

    Attributes:
        reason: What it does and where, for people: ``"fold BatchNormalization 'bn1' into Conv 'conv1'"``.
        nodes: The nodes it works on. New nodes that name no origin of their own are recorded as coming from these.
        apply: Makes the edit. It is called once, and must not be called by the pass itself.
        layers: Rows for the per-layer table.
    """

    reason: str
    nodes: tuple[Node, ...]
    apply: Callable[[Rewriter], None]
    layers: tuple[LayerRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """One refusal. Skips reach the report, so the reason is written for the owner of the model.

    Attributes:
        node: The node that was left alone, or its name.
        reason: Which condition did not hold, with the offending value.
    """

    node: Node | str
    reason: str
