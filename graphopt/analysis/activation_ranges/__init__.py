"""The range of values that each activation takes on real data, streamed: memory does not grow with the data."""

from graphopt.analysis.activation_ranges.collect import CALIBRATION_SAMPLES, activations, collect_ranges
from graphopt.analysis.activation_ranges.ranges import Ranges
from graphopt.analysis.activation_ranges.tensor import BINS, TensorRange

__all__ = ["BINS", "CALIBRATION_SAMPLES", "Ranges", "TensorRange", "activations", "collect_ranges"]
