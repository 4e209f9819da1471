"""From what was seen of a tensor to the range of its grid: plain functions on histograms and matrices.

Ranges of activations: `percentile`, `least_divergence` (entropy) and `least_error` (mean squared
error). Scales of weights: `weight_scales`, by the error of what a layer computes.
"""

from graphopt.solve.calibrators.distribution import Distribution, Span
from graphopt.solve.calibrators.entropy import least_divergence
from graphopt.solve.calibrators.error import least_error, power, rounding_noise
from graphopt.solve.calibrators.percentile import percentile
from graphopt.solve.calibrators.weights import weight_scales

__all__ = [
    "Distribution",
    "Span",
    "least_divergence",
    "least_error",
    "percentile",
    "power",
    "rounding_noise",
    "weight_scales",
]
