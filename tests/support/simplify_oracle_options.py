"""What a user may ask of `graphopt.simplify`, at random, and the model that the result must then equal."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ValueInfoProto

import graphopt
from graphopt.rewrite import load_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.rewrite import Outcome

NEWEST = 26
"""The newest opset to which models are raised."""

UNSETTLED = frozenset(("NonZero", "Compress", "Unique", "If", "Loop", "Scan", "TopK", "ArgMax", "ArgMin", "Hardmax"))
"""Operators whose result, or its size, may change altogether when a number moves by the rounding of 16 bits."""


@dataclass(frozen=True)
class Options:
    """Arguments of `graphopt.simplify`, and what they say about the result.

    Attributes:
        arguments: The arguments.
        pinned: New sizes of dimensions of inputs, by input and axis.
        kept: Tensors that stay, with their element types.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    pinned: dict[tuple[str, int], int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())

    @property
    def precision(self) -> str | None:
        """Return the 16-bit type to compute in, or None."""
        found: str | None = self.arguments.get("precision")
        return found

    def simplified(self, data: bytes) -> tuple[bytes, Outcome]:
        """Run `graphopt.simplify` and return the model's bytes and the account."""
        done = graphopt.simplify(data, **self.arguments)
        return done.model.to_bytes(), done.outcome

    def asked_for(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a model as its user declares it with these options; it computes the same.

        Args:
            model: The original.
        """
        asked = onnx.ModelProto()
        asked.CopyFrom(model)
        sizes: dict[str, int] = {}
        for value in asked.graph.input:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                size = self.pinned.get((value.name, axis))
                if size is not None and dim.dim_param:
                    sizes[dim.dim_param] = size
                if size is not None:
                    dim.dim_value = size
        for value in (*asked.graph.input, *asked.graph.output, *asked.graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in sizes:
                    dim.dim_value = sizes[dim.dim_param]
        if self.arguments.get("freeze_weights"):
            weights = {tensor.name for tensor in asked.graph.initializer}
            inputs = [value for value in asked.graph.input if value.name not in weights]
            if asked.ir_version >= 4:
                del asked.graph.input[:]
                asked.graph.input.extend(inputs)
        return asked

    def with_kept(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a model with the tensors that stay as outputs, so that they are compared."""
        if not self.kept:
            return model
        seen = onnx.ModelProto()
        seen.CopyFrom(model)
        for name, element in self.kept.items():
            value = ValueInfoProto(name=name)
            value.type.tensor_type.elem_type = element
            seen.graph.output.append(value)
        return seen

    def feeds(self, asked: onnx.ModelProto, feeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the feeds that fit what the user declares, of a model that `asked_for` returned."""
        declared = {value.name: value.type.tensor_type.shape.dim for value in asked.graph.input}
        return [
            {name: feed[name] for name in feed if name in declared}
            for feed in feeds
            if feed.keys() <= declared.keys()
            and all(
                not dim.HasField("dim_value") or dim.dim_value == size
                for name, array in feed.items()
                for dim, size in zip(declared[name], np.shape(array), strict=True)
            )
            and not (self.arguments.get("attention") and any(np.size(array) == 0 for array in feed.values()))
        ]


def random_options(seed: int, model: onnx.ModelProto, feeds: Sequence[Mapping[str, Any]]) -> Options:
    """Return options for a model.

    Args:
        seed: Everything follows from it and the model.
        model: The model.
        feeds: Its feeds; sizes that are pinned are those of one of them.
    """
    source = random.Random(f"options {seed}")
    arguments: dict[str, Any] = {}
    pinned: dict[tuple[str, int], int] = {}
    kept: dict[str, int] = {}
    opset = next(each.version for each in model.opset_import if not each.domain)
    if source.random() < 0.5 and opset < NEWEST:
        arguments["opset"] = source.choice((23, 24, source.randint(opset, NEWEST)))
    if source.random() < 0.6 and max(opset, arguments.get("opset", 0)) <= 24:
        arguments["attention"] = True
    if source.random() < (0.7 if model.functions else 0.1):
        arguments["inline"] = True
    if source.random() < 0.35:
        arguments["skip"] = sorted(source.sample(_pass_names(), source.choice((1, 2, 5, 15))))
    if source.random() < 0.35:
        pinned = _pinned(source, model, source.choice(list(feeds)))
        arguments["input_shapes"] = _shapes(source, model, pinned)
    if source.random() < 0.25:
        kept = _kept(source, model)
        arguments["keep"] = list(kept)
    if source.random() < 0.5 and len(model.graph.input) > 1:
        arguments["freeze_weights"] = True
    if source.random() < 0.15:
        arguments["precision"] = source.choice(("float16", "float16", "bfloat16"))
    return Options({name: value for name, value in arguments.items() if value}, pinned, kept)


def _pass_names() -> list[str]:
    return list(dict.fromkeys(getattr(step, "name", str(step)) for step in load_recipe("default").passes))


def _pinned(source: random.Random, model: onnx.ModelProto, feed: Mapping[str, Any]) -> dict[tuple[str, int], int]:
    """Choose symbols and nameless dimensions of inputs that get the sizes that they have in a feed."""
    found: dict[tuple[str, int], int] = {}
    chosen: dict[str, bool] = {}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if value.name not in feed or dim.HasField("dim_value"):
                continue
            here = source.random() < 0.6
            if chosen.setdefault(dim.dim_param, here) if dim.dim_param else here:
                found[value.name, axis] = np.shape(feed[value.name])[axis]
    return found


def _shapes(
    source: random.Random, model: onnx.ModelProto, pinned: dict[tuple[str, int], int]
) -> dict[str, list[int | str]]:
    """Return whole shapes of the inputs of which something is pinned, or of enough of them to say it."""
    dims = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    shapes: dict[str, list[int | str]] = {
        name: [
            pinned.get((name, axis), dim.dim_value if dim.HasField("dim_value") else dim.dim_param)
            for axis, dim in enumerate(dims[name])
        ]
        for name in dict.fromkeys(name for name, _ in pinned)
    }
    for name in list(shapes):
        said = {dims[other][axis].dim_param for other, axis in pinned if other != name and other in shapes}
        if source.random() < 0.4 and {dims[name][axis].dim_param for other, axis in pinned if other == name} <= said - {
            ""
        }:
            del shapes[name]
    return shapes


def _kept(source: random.Random, model: onnx.ModelProto) -> dict[str, int]:
    """Choose inner tensors of the main graph whose element types are known."""
    inferred = onnx.shape_inference.infer_shapes(model)
    public = {value.name for value in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in inferred.graph.value_info
        if value.type.tensor_type.elem_type and value.name in made - public
    }
    names = source.sample(list(types), min(len(types), source.randint(1, 2)))
    return {name: types[name] for name in names}
