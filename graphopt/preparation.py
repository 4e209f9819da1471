"""What a user may ask of a model before it is optimized: a part of it, other input shapes, tensors that must stay."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from graphopt.analysis import Facts
from graphopt.analysis.types import Types
from graphopt.errors import UsageError
from graphopt.graph import Model, Variable, is_graph_output, is_sorted, producer
from graphopt.graph.dtypes import numpy_dtype
from graphopt.graph.order import eliminate_unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphopt.graph import Tensor


def in_order(model: Model) -> Model:
    """Return the model, or a sorted copy where nodes stand before what they read: exporters write such files."""
    if all(is_sorted(root, nested=True) for root in model.roots()):
        return model
    model = model.copy()
    model.sort()
    return model


def extract(model: Model, inputs: Sequence[str], outputs: Sequence[str]) -> Model:
    """Return the part of a model between tensors, as a model of its own.

    Args:
        model: The model; it is not changed.
        inputs: Names of tensors of the main graph that become the inputs, in this order. Empty keeps the inputs of the
            model that the part reads.
        outputs: Names of tensors that become the outputs, in this order. Empty keeps those of the model.

    Raises:
        UsageError: A name is unknown, has no known element type, or the part reads an input that is not among them.
    """
    part = model.copy()
    named = _tensors(part)
    types = Facts(part).get(Types)
    last = [_declared(_find(named, name, "--extract"), types) for name in outputs]
    starts = [_declared(_find(named, name, "--extract"), types) for name in inputs]
    for tensor in starts:
        maker = producer(tensor)
        if maker is not None:
            position = maker.outputs.index(tensor)
            maker.outputs[position] = Variable(part.names.fresh(tensor.name, "cut"), tensor.dtype, tensor.shape)
    graph = part.graph
    if last:
        graph.outputs[:] = last
    kept_inputs = list(graph.inputs)
    graph.inputs[:] = [*starts, *[tensor for tensor in kept_inputs if tensor not in starts]]
    eliminate_unreachable(graph)
    read = [tensor for tensor in graph.inputs if tensor.outputs or is_graph_output(tensor)]
    if inputs:
        missing = [tensor.name for tensor in read if tensor not in starts]
        if missing:
            raise UsageError(
                f"the part also reads the input {missing[0]!r}",
                where="--extract",
                must="Every input that the part reads is among those given",
                do=f"Add {', '.join(missing)} to them",
            )
    graph.inputs[:] = starts or read
    part.versions.structure += 1
    return part


def with_input_shapes(model: Model, shapes: Mapping[str, Sequence[int | str]]) -> Model:
    """Return the model with other shapes of its inputs; a symbol that gets a size gets it everywhere.

    Args:
        model: The model; it is not changed.
        shapes: By name of the input: one size per axis, a number or a symbol.

    Raises:
        UsageError: A name is no input, the rank differs, or a size contradicts a fixed one or another input's.
    """
    changed = model.copy()
    public = {str(tensor.name): tensor for tensor in changed.graph.inputs}
    sizes: dict[str, int | str] = {}
    for name, wanted in shapes.items():
        tensor = _find(public, name, "--input-shape", "input")
        declared = tensor.shape
        if declared is not None and len(declared) != len(wanted):
            raise UsageError(
                f"{len(wanted)} sizes for {name!r}", where="--input-shape", must=f"It has the shape {list(declared)}"
            )
        for before, after in zip(declared or [], wanted, strict=False):
            if isinstance(before, int) and before >= 0 and before != after:
                raise UsageError(
                    f"{after} for an axis of {before} in {name!r}",
                    where="--input-shape",
                    must=f"Sizes that the model fixes stay; its shape is {list(declared or [])}",
                )
            if isinstance(before, str) and before and sizes.setdefault(before, after) != after:
                raise UsageError(
                    f"the symbol {before!r} becomes {sizes[before]} and {after}",
                    where="--input-shape",
                    must="A symbol stands for one size",
                )
        assert isinstance(tensor, Variable)
        tensor.shape = list(wanted)
    for tensor in _tensors(changed).values():
        if isinstance(tensor, Variable) and tensor.shape is not None:
            renamed = [sizes.get(size, size) if isinstance(size, str) else size for size in tensor.shape]
            if renamed != list(tensor.shape):
                tensor.shape = renamed
    changed.versions.types += 1
    return changed


def frozen(model: Model) -> Model:
    """Return the model without the inputs that only let a caller replace a weight; the weights become constant.

    Exporters list every weight as an input as well when they are told to, or are old. Whoever runs such a model may
    feed other weights, so nothing may be computed from them in advance.

    Args:
        model: The model; it is not changed. Before IR version 4 nothing can be overridden, and nothing is done.
    """
    changed = model.copy()
    graph = changed.graph
    for constant in [c for c in graph.initializer_inputs if graph.is_overridable(c)]:
        del graph.initializer_inputs[constant]
    changed.versions.structure += 1
    return changed


def keep(model: Model, names: Iterable[str]) -> list[str]:
    """Let tensors, or the outputs of nodes, count as outputs of a model, so that no pass removes or renames them.

    Args:
        model: The model, which is changed; `release` undoes it.
        names: Names of tensors or of nodes of the main graph.

    Returns:
        The names of the outputs that were added.

    Raises:
        UsageError: A name is unknown, or the element type of such a tensor is.
    """
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return []
    named = _tensors(model)
    nodes = {str(node.name): node for node in model.graph.nodes if node.name}
    types = Facts(model).get(Types)
    kept: dict[Tensor, None] = {}
    for name in wanted:
        if name in nodes and name not in named:
            found = [tensor for tensor in nodes[name].outputs if tensor.name]
        else:
            found = [_find(named, name, "--keep", "tensor or node", also=nodes)]
        kept.update((_declared(tensor, types), None) for tensor in found if not is_graph_output(tensor))
    model.graph.outputs.extend(kept)
    model.versions.structure += 1
    return [str(tensor.name) for tensor in kept]


def release(model: Model, kept: Iterable[str]) -> None:
    """Take tensors that `keep` made outputs off the outputs; they stay in the model under their names.

    Args:
        model: The model.
        kept: What `keep` returned.
    """
    gone = set(kept)
    if gone:
        model.graph.outputs[:] = [tensor for tensor in model.graph.outputs if tensor.name not in gone]
        model.versions.structure += 1


def ends(model: Model, text: str) -> tuple[list[str], list[str]]:
    """Return the names in ``IN[,IN...]:OUT[,OUT...]``; either side may be empty, and names may hold colons.

    Args:
        model: The model whose tensors are named.
        text: What the user wrote.

    Raises:
        UsageError: There is no colon that divides it into names of tensors.
    """
    named = _tensors(model)
    colons = [index for index, character in enumerate(text) if character == ":"]
    divided = [(_names(text[:index]), _names(text[index + 1 :])) for index in colons]
    for inputs, outputs in divided:
        if (inputs or outputs) and all(name in named for name in (*inputs, *outputs)):
            return inputs, outputs
    if divided:
        for name in (*divided[0][0], *divided[0][1]):
            _find(named, name, "--extract")
    raise UsageError(f"{text!r} divides into no names", where="--extract", must="It is IN[,IN...]:OUT[,OUT...]")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _tensors(model: Model) -> dict[str, Tensor]:
    graph = model.graph
    made = [tensor for node in graph.nodes for tensor in node.outputs if tensor.name]
    return {str(tensor.name): tensor for tensor in (*graph.inputs, *made)}


def _find(known: Mapping[str, Tensor], name: str, where: str, what: str = "tensor", also: Iterable[str] = ()) -> Tensor:
    found = known.get(name)
    if found is not None:
        return found
    close = difflib.get_close_matches(name, [*known, *also], n=1, cutoff=0.5)
    raise UsageError(
        f"the main graph has no {what} {name!r}",
        where=where,
        must="What is named there exists",
        do=f"Did you mean {close[0]!r}?" if close else "`graphopt inspect` lists what there is",
    )


def _declared(tensor: Tensor, types: Types) -> Tensor:
    """Return a tensor that states its type, as inputs and outputs of a model must."""
    element = types.dtype(tensor)
    if not element:
        raise UsageError(
            f"the element type of {tensor.name!r} is not known", must="Inputs and outputs of a model have one"
        )
    if isinstance(tensor, Variable) and (tensor.dtype is None or tensor.shape is None):
        shape = types.shape(tensor)
        tensor.dtype = numpy_dtype(element) or element
        if shape is not None and tensor.shape is None:
            tensor.shape = [size if isinstance(size, int) else None for size in shape]
    return tensor
