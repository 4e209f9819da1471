"""Graph optimization alone: read, rewrite, write. The model is never run; `graphopt.compile` also measures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import preparation
from graphopt.graph import Model, collector_paused, read_model
from graphopt.rewrite import Outcome, PassManager, Recipe, Step, load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx

    from graphopt.rewrite.verification import Level


@dataclass(frozen=True, slots=True)
class Simplified:
    """What came of simplifying a model.

    Attributes:
        model: The result.
        outcome: The account of the passes: patches, refusals, nodes before and after.
    """

    model: Model
    outcome: Outcome


def simplify(
    source: str | Path | bytes | onnx.ModelProto | Model,
    output: str | Path | None = None,
    *,
    skip: Iterable[str] = (),
    keep: Iterable[str] = (),
    opset: int | None = None,
    precision: str | None = None,
    attention: bool = False,
    inline: bool = False,
    freeze_weights: bool = False,
    input_shapes: Mapping[str, Sequence[int | str]] | None = None,
    extract: tuple[Sequence[str], Sequence[str]] | None = None,
    options: Mapping[str, Any] | None = None,
    verify: Level = "fast",
    seed: int = 0,
    force: bool = False,
) -> Simplified:
    """Optimize the graph of a model with the preset ``default``.

    Args:
        source: The model, or its file, bytes or message. It is not changed.
        output: The file to write; None writes nothing.
        skip: Names of passes to leave out.
        keep: Names of tensors or nodes whose values stay in the model under their names.
        opset: Raise the model to this version of the ONNX operators first, so that more of it has an operator.
        precision: Compute in ``float16`` or ``bfloat16``, float32 where that would overflow; see the pass
            convert-precision.
        attention: Make Attention operators (opset 23), which no longer take an empty batch; see fuse-attention.
        inline: Put the nodes of the model's own functions where they are called.
        freeze_weights: Take weights that are inputs as well for constants; those inputs go.
        input_shapes: Other shapes of inputs, by name: numbers, or symbols that stay dynamic.
        extract: Names of the tensors that become the inputs and the outputs: the part between them is optimized.
        options: Changes to the recipe, ``{"pass-name.option": value}``.
        verify: ``off``, ``fast`` or ``full``.
        seed: Seeds whatever is random.
        force: Whether an existing output may be replaced.

    Returns:
        The result with the account of what was done.

    Raises:
        GraphoptError: The model cannot be read, a pass failed, or the output cannot be written.
    """
    from graphopt.result import refuse_existing_file

    if output is not None:
        refuse_existing_file(Path(output), force=force)
    with collector_paused():
        model = source.copy() if isinstance(source, Model) else read_model(source)
        if extract is not None:
            model = preparation.extract(model, *extract)
        if freeze_weights:
            model = preparation.frozen(model)
        if input_shapes:
            model = preparation.with_input_shapes(model, input_shapes)
        plan = recipe(opset, precision, attention=attention, inline=inline).without(skip)
        for name, value in (options or {}).items():
            plan = plan.set(name, value)
        model.sort()
        kept = preparation.keep(model, keep)
        outcome = PassManager(plan.create(), verify=verify, seed=seed).run(model)
        preparation.release(model, kept)
        if output is not None:
            model.save(output, force=force)
    return Simplified(model, outcome)


def recipe(
    opset: int | None = None, precision: str | None = None, *, attention: bool = False, inline: bool = False
) -> Recipe:
    """Return the recipe of graph optimization.

    Args:
        opset: Version of the ONNX operators to raise the model to first; None leaves it.
        precision: ``float16`` or ``bfloat16`` to compute in; None leaves float32.
        attention: Whether Attention operators are made, which need opset 23: it is raised to that where it is lower.
        inline: Whether calls of the model's own functions become their nodes first.
    """
    plan = load_recipe("default")
    if attention:
        opset = max(opset or 0, _ATTENTION_OPSET)
        plan = replace(plan, passes=(*plan.passes, Step("fuse-attention"), *plan.passes))
    first = () if opset is None else (Step("raise-opset", {"to": opset}),)
    if inline:
        first = (Step("inline-functions"), *first)
    # the Casts of a conversion meet others, and nodes that differed in their type only become equal
    last = () if precision is None else (Step("convert-precision", {"to": precision}), *plan.passes)
    return replace(plan, passes=(*first, *plan.passes, *last))


_ATTENTION_OPSET = 23
