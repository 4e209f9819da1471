"""A model: the main graph, the functions, and what counts edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import onnx

from graphopt.graph.copying import copy_roots
from graphopt.graph.names import NameAllocator
from graphopt.graph.order import sort_graph
from graphopt.graph.scopes import nested_graphs, walk_graphs
from graphopt.graph.unknown import properties

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from graphopt.graph.graphs import Function, Graph
    from graphopt.graph.nodes import Node
    from graphopt.graph.scopes import Order


@dataclass(slots=True)
class Versions:
    """Counters of edits; an analysis is valid as long as those it depends on stand still.

    Attributes:
        structure: Nodes, edges, operators, attributes.
        types: Element types and shapes.
        weights: Values of constants.
    """

    structure: int = 0
    types: int = 0
    weights: int = 0


class Model:
    """An ONNX model that can be edited.

    Attributes:
        graph: The main graph.
        functions: Model-local functions.
        path: The file it was read from, or None.
        versions: Counters of edits.
        names: Gives out names that are new in every scope.
        carried: The ModelProto it was read from, or None.
        metadata: The ``metadata_props``; may be changed.
    """

    def __init__(
        self,
        graph: Graph,
        functions: list[Function] | None = None,
        *,
        carried: onnx.ModelProto | None = None,
        path: Path | None = None,
    ) -> None:
        self.graph = graph
        if functions is not None and functions is not graph.functions:
            graph.__dict__["_functions"] = functions
        self.path = path
        self.versions = Versions()
        self.names = NameAllocator()
        self.carried = carried
        self.metadata = {} if carried is None else properties(carried.metadata_props)
        self.names.bind(_Roots(self))

    @property
    def functions(self) -> list[Function]:
        """Model-local functions."""
        return self.graph._functions  # type: ignore[no-any-return]

    @property
    def opset_imports(self) -> dict[str, int]:
        """Opset version by domain, of the main graph; functions have their own in ``function.imports``."""
        return self.graph.imports

    @property
    def opset(self) -> int:
        """Opset version of the default domain; 0 if the model imports none."""
        return self.graph.opset

    @opset.setter
    def opset(self, version: int) -> None:
        self.graph.opset = version

    @property
    def ir_version(self) -> int:
        """IR version; that of the installed onnx for a model that states none."""
        return self.graph.ir_version or int(onnx.IR_VERSION)

    @ir_version.setter
    def ir_version(self, version: int) -> None:
        for root in self.roots():
            for graph in nested_graphs(root):
                graph.ir_version = version

    def roots(self) -> list[Graph]:
        """Return the main graph and the bodies of the functions."""
        return [self.graph, *self.functions]

    def graphs(self) -> Iterator[Graph]:
        """Yield every graph: the main one, bodies in it outer before inner, then functions and theirs."""
        for root in self.roots():
            yield from nested_graphs(root)

    def walk(self, order: Order = "pre", functions: bool = True) -> Iterator[tuple[Graph, Node]]:
        """Yield (graph, node) for every node of every scope.

        Args:
            order: "pre" gives a node before those in its bodies, "post" after them.
            functions: Walk the functions too.
        """
        return walk_graphs(self.roots() if functions else [self.graph], order)

    def sort(self) -> None:
        """Bring every graph into topological order, stably.

        Raises:
            GraphError: There is a cycle.
        """
        for root in self.roots():
            sort_graph(root)

    def copy(self) -> Model:
        """Return an independent model that shares the values of constants until one side changes them."""
        graph, *functions = copy_roots(self.roots())
        twin = Model(graph, functions, carried=self.carried, path=self.path)
        twin.metadata = dict(self.metadata)
        twin.versions = Versions(self.versions.structure, self.versions.types, self.versions.weights)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        return self.copy()

    def to_proto(self, *, inline: bool = True) -> onnx.ModelProto:
        """Return the model as a new ModelProto.

        Args:
            inline: Put external data into the message; otherwise it keeps referring to the files it was read from.

        Raises:
            ModelTooLargeError: It does not fit 2 GiB.
        """
        from graphopt.graph.write import model_proto

        return model_proto(self, inline=inline)

    def to_bytes(self, *, inline: bool = True) -> bytes:
        """Return the serialised model, the same bytes in every run.

        Raises:
            ModelTooLargeError: It does not fit 2 GiB.
        """
        from graphopt.graph.write import model_bytes

        return model_bytes(self, inline=inline)

    def save(self, path: str | Path, *, external: str | Literal["auto"] | None = "auto", force: bool = True) -> None:
        """Write the model to a file, atomically; see graphopt.graph.write.write_model."""
        from graphopt.graph.write import write_model

        write_model(self, path, external=external, force=force)

    def __repr__(self) -> str:
        return f"Model({self.graph}, {len(self.functions)} functions, opset {self.opset})"


class _Roots:
    """The roots of a model as they are when they are iterated."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __iter__(self) -> Iterator[Graph]:
        return iter(self._model.roots())
