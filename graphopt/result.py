"""What came of a compilation, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime

from graphopt.emit import Bundle, write_bundle
from graphopt.errors import BudgetError, OutputExistsError
from graphopt.report import Report, render_html

if TYPE_CHECKING:
    from graphopt.graph import Model
    from graphopt.rewrite import Recipe


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a compilation.

    Attributes:
        model: The result.
        fallback: The same on standard operators only, where the result uses custom operators; else None.
        report: Everything that was measured, done and left alone.
        recipe: What ran, complete: running it again without a guard gives the same model.
        met: False when the result loses more than the budget, or ``unmet`` says more.
        unmet: Sentences on budgets of time and bytes that the result exceeds.
    """

    model: Model
    fallback: Model | None
    report: Report
    recipe: Recipe
    met: bool
    unmet: tuple[str, ...] = ()

    def save(self, directory: str | Path, *, force: bool = False, keep: bool = False) -> None:
        """Write the bundle folder, whole or not at all.

        Args:
            directory: The folder to write.
            force: Replace an earlier bundle.
            keep: Write it although the budget was not met.

        Raises:
            BudgetError: The budget was not met and ``keep`` is not set.
            OutputExistsError: The folder exists.
            WriteError: It cannot be written.
        """
        self._refuse_unmet(keep)
        bundle = Bundle(
            model=self.model,
            fallback=self.fallback,
            recipe=self.recipe.to_yaml(),
            report_json=self.report.to_json(),
            report_html=render_html(self.report),
            version=self.report.tool.version,
            runtime_version=onnxruntime.__version__,
        )
        write_bundle(Path(directory), bundle, force=force)

    def save_model(self, path: str | Path, *, force: bool = False, keep: bool = False) -> None:
        """Write the model alone, as one ONNX file (with external data where it is large).

        Raises:
            BudgetError: The budget was not met and ``keep`` is not set.
            OutputExistsError: The file exists and ``force`` is not set.
            WriteError: It cannot be written.
        """
        self._refuse_unmet(keep)
        refuse_existing_file(Path(path), force=force)
        self.model.save(path)

    def _refuse_unmet(self, keep: bool) -> None:
        if self.met or keep:
            return
        if self.unmet:
            raise BudgetError(
                " ".join(self.unmet),
                must="A budget has to be met before anything is written",
                do="Allow more, or write it all the same with --keep",
            )
        quality = self.report.quality
        assert quality is not None
        raise BudgetError(
            f"the result loses {quality.drop:.3g} where {quality.budget:.3g} are allowed",
            must="The budget has to be met before anything is written",
            do="Allow more with --max-drop, choose a gentler recipe, or write it all the same with --keep",
        )


def refuse_existing_file(path: Path, *, force: bool) -> None:
    """Raise OutputExistsError when a file would be overwritten without ``force``, or a folder at all."""
    if path.is_dir():
        raise OutputExistsError("the output is a folder", where=str(path), must="This verb writes one ONNX file")
    if path.exists() and not force:
        raise OutputExistsError(
            "the output exists already",
            where=str(path),
            must="An existing output is kept",
            do="Choose another name with -o, or give --force to replace it",
        )
