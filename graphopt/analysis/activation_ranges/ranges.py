"""The analysis `Ranges`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from graphopt.analysis.activation_ranges.collect import activations, remembered_ranges
from graphopt.analysis.base import Analysis
from graphopt.analysis.types import Types
from graphopt.errors import DataError

if TYPE_CHECKING:
    from graphopt.analysis.activation_ranges.tensor import TensorRange
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model

FLOAT32 = 1


@dataclass(slots=True, eq=False)
class Ranges(Analysis):
    """Ranges of the float32 activations of the main graph, by tensor name.

    Attributes:
        tensors: Name to what was seen. Tensors that no run produced, or that were NaN or infinite, are missing.
        samples: Samples that ran.
    """

    depends: ClassVar[frozenset[str]] = frozenset({"structure", "weights"})

    tensors: dict[str, TensorRange]
    samples: int

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        """Run the calibration data of ``facts`` through the model.

        Raises:
            DataError: There is no data, or it does not fit.
        """
        return cls.observe(model, facts)

    @classmethod
    def observe(cls, model: Model, facts: Facts, *, histograms: bool = True) -> Self:
        """Run the calibration data of ``facts`` through a model.

        Args:
            model: The model of ``facts``, or one with the same tensors and other weights.
            facts: Its types and the data.
            histograms: Count values too; without them only minimum and maximum can be asked for.

        Raises:
            DataError: There is no data, or it does not fit.
        """
        if facts.feeds is None:
            raise DataError(
                "there is no calibration data",
                where="activation ranges",
                must="Static quantization of activations needs samples of real inputs",
                do="Give --data, or quantize with --activations dynamic",
            )
        types = facts.get(Types)
        names = [tensor.name for tensor in activations(facts.model) if types.dtype(tensor) == FLOAT32]
        return cls(*remembered_ranges(model, names, facts.feeds, histograms=histograms))

    def same_as(self, other: Self) -> bool:
        """Return whether the same data gave the same ranges."""
        return (self.samples, self.tensors) == (other.samples, other.tensors)

    def sizes(self) -> dict[str, float]:
        """Return the values that each tensor has in one sample, on average."""
        return {name: seen.values / max(self.samples, 1) for name, seen in self.tensors.items()}

    def get(self, name: str) -> TensorRange | None:
        """Return what was seen of a tensor, or None where it has no range."""
        return self.tensors.get(name)
