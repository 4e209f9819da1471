"""The base of all passes."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from graphopt.errors import PassError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from graphopt.analysis import Analysis, Facts
    from graphopt.graph import Model, Node
    from graphopt.rewrite.patch import Patch, Skip
    from graphopt.verify.contract import Contract

SECTIONS = ("Matches", "Produces", "Requires", "Preserves", "Source")
Steps: TypeAlias = "Generator[Patch | Skip, frozenset[Node], None]"
"""What ``Pass.run`` returns: ``touched = yield patch`` gives the nodes that the patch created or rewired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass(ABC):
    """A rewrite of the model: a frozen dataclass whose fields are its options.

    A pass never edits: it yields `Patch` or `Skip`, and the manager applies, verifies and counts. Between two yields
    the model may be read freely. Calls to ``super()`` need their arguments (``super(Child, self)``), because a
    dataclass with slots is a new class.

    Class attributes:
        name: Verb and object, ``"fold-constants"``; the file is ``fold_constants.py``, the class ``FoldConstants``.
        contract: The numeric promise; it selects the oracle in full verification.
        requires: Analyses that are computed before the pass starts.
        preserves: Analyses that stay valid although the pass changed what they depend on. A false claim fails in full
            verification.
        guard: How the accuracy guard may weaken the pass: ``"none"``, ``"strength"`` (it has `with_strength`) or
            ``"layers"`` (it has the option ``keep``, names of nodes left as they are).
        uses_data: Whether the calibration feeds decide anything; a pass that never looks at them may be judged on all.
        lowers: Whether it emits custom operators; the model before the first such pass is the bundle's fallback.
    """

    name: ClassVar[str]
    contract: ClassVar[Contract]
    requires: ClassVar[tuple[type[Analysis], ...]] = ()
    preserves: ClassVar[tuple[type[Analysis], ...]] = ()
    guard: ClassVar[str] = "none"
    lowers: ClassVar[bool] = False
    uses_data: ClassVar[bool] = True

    @abstractmethod
    def run(self, model: Model, facts: Facts) -> Steps:
        """Yield patches and skips; ``touched = yield patch`` resumes after the patch was applied."""

    def with_strength(self, fraction: float) -> Self:
        """Return the pass at a share of its configured strength.

        Args:
            fraction: Above 0, at most 1 (1 is the pass as configured).

        Raises:
            PassError: The pass has no strength (``guard`` is not ``"strength"``).
        """
        raise PassError(
            f"strength {fraction} was asked of a pass whose guard is {self.guard!r}",
            where=self.name,
            must="with_strength is defined by every pass whose guard is 'strength'",
            do="Define it, or declare another guard",
        )

    def keeping(self, names: Sequence[str]) -> Self:
        """Return the pass with more nodes that it leaves as they are.

        Args:
            names: Names of nodes.

        Raises:
            PassError: The pass cannot leave out layers (``guard`` is not ``"layers"``).
        """
        if self.guard != "layers":
            raise PassError(
                f"layers were kept from a pass whose guard is {self.guard!r}",
                where=self.name,
                must="A pass whose guard is 'layers' has the option keep",
            )
        changed: dict[str, Any] = {"keep": (*self.options()["keep"], *names)}
        return replace(self, **changed)

    def options(self) -> dict[str, Any]:
        """Return the options by name, with defaults filled in."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def sections(cls: type[Pass]) -> dict[str, str]:
    """Return the documentation of a pass: its one-line summary under ``""``, then its five sections by name.

    Args:
        cls: The pass class.

    Raises:
        PassError: A section is missing, empty or out of order.
    """
    text = inspect.cleandoc(cls.__doc__ or "")
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", text, flags=re.MULTILINE)
    found = tuple(parts[1::2])
    if found != SECTIONS or not parts[0].strip() or not all(part.strip() for part in parts[2::2]):
        raise PassError(
            f"the docstring has the sections {', '.join(found) or 'none'}",
            where=cls.name,
            must=f"The docstring is a summary, then {', '.join(SECTIONS)} in this order, none empty",
            do="Write the missing sections",
        )
    contents = {name: _one_line(body) for name, body in zip(found, parts[2::2], strict=True)}
    return {"": parts[0].strip().splitlines()[0], **contents}


def _one_line(body: str) -> str:
    return " ".join(body.split())
