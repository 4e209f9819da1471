"""Graph optimization alone: read, rewrite, write. The model is never run; `graphopt.compile` also measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.graph import Model, collector_paused, read_model
from graphopt.rewrite import Outcome, PassManager, load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
        options: Changes to the recipe, ``{"pass-name.option": value}``.
        verify: ``off``, ``fast`` or ``full``.
        seed: Seeds whatever is random.
        force: Whether an existing output may be replaced.

    Returns:
        The result with the account of what was done.

    Raises:
        GraphoptError: The model cannot be read, a pass failed, or the output cannot be written.
    """
    from graphopt.pipeline import refuse_existing_file

    if output is not None:
        refuse_existing_file(Path(output), force=force)
    with collector_paused():
        model = source.copy() if isinstance(source, Model) else read_model(source)
        plan = load_recipe("default").without(skip)
        for name, value in (options or {}).items():
            plan = plan.set(name, value)
        outcome = PassManager(plan.create(), verify=verify, seed=seed).run(model)
        if output is not None:
            model.save(output, force=force)
    return Simplified(model, outcome)
