"""The range of values that each activation takes on real data, streamed: memory does not grow with the data."""

from graphopt.analysis.activation_ranges.choice import CALIBRATORS, choose
from graphopt.analysis.activation_ranges.collect import CALIBRATION_SAMPLES, activations, collect_ranges
from graphopt.analysis.activation_ranges.ranges import Ranges
from graphopt.analysis.activation_ranges.tensor import BINS, TensorRange

__all__ = [
    "BINS",
    "CALIBRATION_SAMPLES",
    "CALIBRATORS",
    "Ranges",
    "TensorRange",
    "activations",
    "choose",
    "collect_ranges",
]
