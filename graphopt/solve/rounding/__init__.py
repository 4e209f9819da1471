"""Rounds the weights of a layer to few levels so that its outputs change least.

All solvers minimise E(Q) = sum over rows r of (q_r - w_r) H (q_r - w_r)', where w is the target [G, R, C] and H
[G, C, C] the positive definite second moment of the layer's inputs, one per group (a convolution without groups has
G = 1; a depthwise one has as many groups as channels and R = 1). ``asymmetric_target`` makes both out of the moments
of the dense and of the compressed inputs.
"""

from graphopt.solve.rounding.adaround import adaround
from graphopt.solve.rounding.codebook import Codebook, alternate_codebook, lloyd
from graphopt.solve.rounding.coordinate_descent import alternate, descend, descend_from, refit_scales
from graphopt.solve.rounding.gptq import gptq
from graphopt.solve.rounding.grids import Granularity, Grid, layer_error, min_max, nearest_grid, row_errors, search
from graphopt.solve.rounding.levels import BINARY, TERNARY, Levels, integer_levels
from graphopt.solve.rounding.method import Method, round_layer
from graphopt.solve.rounding.problem import Problem, asymmetric_target

__all__ = [
    "BINARY",
    "TERNARY",
    "Codebook",
    "Granularity",
    "Grid",
    "Levels",
    "Method",
    "Problem",
    "adaround",
    "alternate",
    "alternate_codebook",
    "asymmetric_target",
    "descend",
    "descend_from",
    "gptq",
    "integer_levels",
    "layer_error",
    "lloyd",
    "min_max",
    "nearest_grid",
    "refit_scales",
    "round_layer",
    "row_errors",
    "search",
]
