"""What the weight layers of a model read: found, sampled and summed up."""

from graphopt.analysis.layer_statistics.bias import Bias, find_bias
from graphopt.analysis.layer_statistics.ends import end_layers
from graphopt.analysis.layer_statistics.layers import Layer, Refusal, find_layers
from graphopt.analysis.layer_statistics.moments import Reading, Sums, collect, producers
from graphopt.analysis.layer_statistics.rows import Form, form_of
from graphopt.analysis.layer_statistics.segments import Segments

__all__ = [
    "Bias",
    "Form",
    "Layer",
    "Reading",
    "Refusal",
    "Segments",
    "Sums",
    "collect",
    "end_layers",
    "find_bias",
    "find_layers",
    "form_of",
    "producers",
]
