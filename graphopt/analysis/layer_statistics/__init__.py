"""What the weight layers of a model read: found, sampled and summed up."""

from graphopt.analysis.layer_statistics.batches import Batches
from graphopt.analysis.layer_statistics.bias import Bias, find_bias
from graphopt.analysis.layer_statistics.collected import CollectedStatistics
from graphopt.analysis.layer_statistics.ends import end_layers
from graphopt.analysis.layer_statistics.form import form_of, inputs_of
from graphopt.analysis.layer_statistics.layers import Layer, Refusal, find_layers, weight_indices
from graphopt.analysis.layer_statistics.moments import Reading, Sums, collect, producers
from graphopt.analysis.layer_statistics.observed import Observed
from graphopt.analysis.layer_statistics.reading import column_norms
from graphopt.analysis.layer_statistics.rows import Form
from graphopt.analysis.layer_statistics.segments import Segments, stream
from graphopt.analysis.layer_statistics.spread import Histogram, Spread
from graphopt.analysis.layer_statistics.statistics import LayerStatistics, fingerprint_of

__all__ = [
    "Batches",
    "Bias",
    "CollectedStatistics",
    "Form",
    "Histogram",
    "Layer",
    "LayerStatistics",
    "Observed",
    "Reading",
    "Refusal",
    "Segments",
    "Spread",
    "Sums",
    "collect",
    "column_norms",
    "end_layers",
    "find_bias",
    "find_layers",
    "fingerprint_of",
    "form_of",
    "inputs_of",
    "producers",
    "stream",
    "weight_indices",
]
