"""From objects to protobuf: what did not change is written verbatim, the rest on top of the message it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import onnx
from google.protobuf.message import EncodeError

from graphopt.errors import ModelTooLargeError
from graphopt.graph.builder import Builder, copy_rest, is_written, write_imports
from graphopt.graph.graphs import Graph, node_subgraphs
from graphopt.graph.messages import stays_outside, tensor_as_is, tensor_inline
from graphopt.graph.read import LIMIT_BYTES
from graphopt.graph.scopes import enclosing, walk_graphs
from graphopt.graph.tensors import Constant
from graphopt.graph.unknown import properties, set_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from graphopt.graph.model import Model

_MODEL_FIELDS = frozenset(["graph", "opset_import", "functions", "ir_version"])


def model_proto(model: Model, *, inline: bool = True) -> onnx.ModelProto:
    """Return the model as a new ModelProto; see Model.to_proto."""
    size = sum(c.nbytes for g in model.graphs() for c in g.initializers if inline or not stays_outside(c))
    if size > LIMIT_BYTES:
        raise too_large(size)
    return build(model, tensor_inline if inline else tensor_as_is)


def model_bytes(model: Model, *, inline: bool = True) -> bytes:
    """Return the serialised model; see Model.to_bytes."""
    return serialise(model_proto(model, inline=inline))


def serialise(proto: onnx.ModelProto) -> bytes:
    """Return the bytes of a message, the same in every run.

    Raises:
        ModelTooLargeError: It is larger than 2 GiB.
    """
    try:
        data = proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise too_large(None) from error
    if len(data) > LIMIT_BYTES:
        raise too_large(len(data))
    return bytes(data)


def too_large(size: int | None) -> ModelTooLargeError:
    """Return the error for a message that is too large."""
    return ModelTooLargeError(
        f"the model takes {size} bytes" if size else "the model is too large",
        must="One protobuf message holds at most 2 GiB",
        do="Save it to a path with external data.",
    )


def write_model(
    model: Model, path: str | Path, *, external: str | Literal["auto"] | None = "auto", force: bool = True
) -> None:
    """Write a model to a file, atomically: temporary files, fsync, rename; nothing is left behind on failure.

    Args:
        model: The model.
        path: The .onnx file.
        external: Name of the data file beside it; None keeps all weights in the file; "auto" puts them outside if they
            were outside before or take more than 1.5 GB together.
        force: Replace an existing file.

    Raises:
        OutputExistsError: The file exists and ``force`` is off.
        WriteError: The file system refuses.
        ModelTooLargeError: ``external`` is None and the model does not fit 2 GiB.
    """
    from graphopt.graph.files import save

    save(model, path, external=external, force=force)


def _drop_stale_training(model: Model, proto: onnx.ModelProto) -> None:
    """Drop training information that binds initializers which are gone: it would train other weights."""
    if not len(proto.training_info):
        return
    kept = {c.name for c in model.graph.initializers if is_written(model.graph, c)}
    kept.update(tensor.name for info in proto.training_info for tensor in info.algorithm.initializer)
    valid = []
    for info in proto.training_info:
        bound = [entry.key for entry in (*info.initialization_binding, *info.update_binding)]
        if all(name in kept for name in bound):
            valid.append(info)
    if len(valid) != len(proto.training_info):
        copies = [onnx.TrainingInfoProto.FromString(info.SerializeToString()) for info in valid]
        proto.ClearField("training_info")
        proto.training_info.extend(copies)


def adopt_constants(model: Model) -> None:
    """Give every new constant a graph that owns it: the innermost one around all its users."""
    for root in model.roots():
        for graph, node in walk_graphs([root]):
            for _, body in node_subgraphs(node):
                body.__dict__.update(parent=graph, parent_node=node)
                for tensor in body.outputs:
                    if isinstance(tensor, Constant) and tensor.home is None:
                        _adopt(tensor, body)
            for tensor in node.inputs:
                if isinstance(tensor, Constant) and (tensor.home is None or tensor not in tensor.home.initializers):
                    _adopt(tensor, graph)
        for tensor in (*root.outputs, *root.inputs):
            if isinstance(tensor, Constant) and tensor.home is None:
                _adopt(tensor, root)


def _adopt(constant: Constant, graph: Graph) -> None:
    common = list(enclosing(graph))
    for node in constant.outputs:
        if getattr(node, "graph", None) is not None:
            around = set(enclosing(node.graph))
            common = [g for g in common if g in around]
    home = common[0] if common else graph
    constant.home = home
    home.initializers[constant] = None


def build(model: Model, tensor: Callable[[Constant], Any]) -> onnx.ModelProto:
    """Return the ModelProto, with the messages of initializers made by ``tensor``."""
    adopt_constants(model)
    proto = onnx.ModelProto()
    carried = model.carried
    if carried is not None:
        copy_rest(carried, proto, _MODEL_FIELDS)
    for field in ("producer_name", "producer_version"):
        if getattr(proto, field) != getattr(model.graph, field):
            set_text(proto, field, getattr(model.graph, field))
    if model.metadata != properties(proto.metadata_props):
        proto.ClearField("metadata_props")
        for key, value in model.metadata.items():
            proto.metadata_props.add(key=key, value=value)
    _drop_stale_training(model, proto)
    if model.graph.ir_version is not None or carried is None:
        proto.ir_version = model.ir_version
    builder = Builder(tensor)
    builder.graph(model.graph, proto.graph, 0)
    write_imports(model.opset_imports, carried, proto)
    for function in model.functions:
        builder.function(function, proto.functions.add())
    return proto
