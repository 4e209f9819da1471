"""Rules written as two Python functions: what to find, and what to put in its place.

    def gated(op, x):
        return op.Mul(x, op.Sigmoid(x))

    def swish(op, x):
        return op.Swish(x)

    count = replace(model, Rewrite(gated, swish))

Both functions get a builder first and then tensors, matched by the names of their parameters. In the first function the
builder describes: `op.Conv(x, w, group=1)` is a node whose attribute `group` is 1 (or fulfils a predicate), and
`op.constant`, `op.maybe`, `op.either`, `op.rest` describe operands. In the second it makes nodes: `op.Conv(x, w)` adds
one and returns its output, `op.constant(array)` adds an initializer. A parameter of the second function that is called
``match`` gets the `Match`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.errors import PassError
from graphopt.graph import Variable, is_graph_output
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Contract, Patch, Skip, node_label
from graphopt.rewrite.pattern import Const, Either, Match, Maybe, Op, Operand, Rest, Wild

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_OPTIONS = ("_name", "_output", "_shared", "_domain", "_where", "_commutative")


class Finder:
    """The builder of the function that says what to find; any operator is a method."""

    def __getattr__(self, op: str) -> Callable[..., Op]:
        """Return what describes nodes of one operator; several operators are divided by ``_or_``: ``Relu_or_Clip``.

        Keywords are attributes: a value, or a function of the value. These are options of `Op` instead: ``_name``,
        ``_output``, ``_shared``, ``_domain``, ``_where``, ``_commutative``.
        """
        if op.startswith("_"):
            raise AttributeError(op)

        def describe(*inputs: Operand, **keywords: Any) -> Op:
            options = {key.removeprefix("_"): keywords.pop(key) for key in _OPTIONS if key in keywords}
            unknown = next((key for key in keywords if key.startswith("_")), None)
            if unknown is not None:
                raise PassError(
                    f"{unknown!r} is no option", where=f"pattern {op}", must=f"Options are {', '.join(_OPTIONS)}"
                )
            return Op(op.replace("_or_", "|"), *inputs, attrs=keywords, **options)

        return describe

    def constant(self, name: str = "", where: Callable[[np.ndarray], bool] | None = None) -> Const:
        """Return an operand that is a tensor of known value; see `Const`."""
        return Const(name, where)

    def tensor(self, name: str = "", where: Callable[[Tensor], bool] | None = None) -> Wild:
        """Return an operand that is any tensor; see `Wild`."""
        return Wild(name, where)

    def maybe(self, operand: Operand) -> Maybe:
        """Return an operand that may be absent."""
        return Maybe(operand)

    def either(self, *alternatives: Operand) -> Either:
        """Return an operand that is the first of these that fits."""
        return Either(*alternatives)

    def rest(self, name: str = "") -> Rest:
        """Return the operand for all further inputs."""
        return Rest(name)


class Maker:
    """The builder of the function that says what to put there; any operator is a method.

    Args:
        rewriter: The rewriter of the patch.
        match: What was found.
        match: What was found.
    """

    def __init__(self, rewriter: Rewriter, match: Match) -> None:
        self._rewriter = rewriter
        self._match = match

    def __getattr__(self, op: str) -> Callable[..., Any]:
        """Return what makes nodes of one operator; keywords are attributes, ``_domain`` and ``_outputs`` options.

        Inputs are tensors, None for one that is omitted, or arrays and numbers, which become initializers. It returns
        the output, or a tuple where ``_outputs`` is not 1.
        """
        if op.startswith("_"):
            raise AttributeError(op)

        def make(*inputs: Any, _domain: str | None = None, _outputs: int = 1, **attrs: Any) -> Any:
            tensors = [self._tensor(value) for value in inputs]
            return self._rewriter.op(
                op,
                tensors,
                attrs=attrs,
                domain=_domain,
                outputs=_outputs,
                near=self._match.root,
                origin=self._match.nodes,
            )

        return make

    def constant(self, array: Any) -> Tensor:
        """Return an initializer.

        Args:
            array: Its values; the element type is that of the array.
        """
        made: Tensor = self._rewriter.constant(np.asarray(array), near=self._match.root)
        return made

    def _tensor(self, value: Any) -> Tensor | None:
        if value is None or hasattr(value, "onnx_dtype"):
            return value  # type: ignore[no-any-return]
        return self.constant(value)


@dataclass(frozen=True, slots=True, eq=False)
class Rewrite:
    """A rule as two functions.

    Attributes:
        pattern: Called with a `Finder` and one operand per parameter; returns the root of the pattern.
        replacement: Called with a `Maker` and the tensors bound to its parameters' names; returns the tensor that takes
            the place of the first output of the root, or one tensor per output.
        where: Called with the match; True rewrites, a text is the reason for a refusal in the report, False refuses.
        says: What the rewrite does, for the report.
    """

    pattern: Callable[..., Op]
    replacement: Callable[..., Any]
    where: Callable[[Match], bool | str] | None = None
    says: str = ""
    described: Op = field(init=False)

    def __post_init__(self) -> None:
        names = list(inspect.signature(self.pattern).parameters)[1:]
        described = self.pattern(Finder(), *[Wild(name) for name in names])
        if not isinstance(described, Op):
            raise PassError(
                f"the pattern returned {described!r}", where=_called(self.pattern), must="It returns op.Something(...)"
            )
        object.__setattr__(self, "described", described)

    def rule(self, model: Model) -> Rule:
        """Return the rule for one model.

        Args:
            model: The model that is searched.
        """
        return Rule.of(self.described, self.propose, model)

    def explain(self, node: Node, model: Model) -> str:
        """Return why the pattern does not match at a node, or why the match is refused; empty where it applies.

        Args:
            node: The candidate for the root.
            model: The model that the node is part of.
        """
        found = self.described.match(node, model)
        if found is None:
            return self.described.explain(node, model)
        proposal = self.propose(found)
        return "" if isinstance(proposal, Patch) else proposal.reason

    def propose(self, match: Match) -> Patch | Skip:
        """Return the patch for a match, or the refusal with its reason."""
        verdict = True if self.where is None else self.where(match)
        if verdict is not True:
            return Skip(
                match.root, verdict if isinstance(verdict, str) and verdict else f"{_called(self.where)} is False"
            )
        return Patch(
            self.says or f"{_called(self.pattern)} becomes {_called(self.replacement)}", match.nodes, self._apply(match)
        )

    def _apply(self, match: Match) -> Callable[[Rewriter], None]:
        def apply(rewriter: Rewriter) -> None:
            made = self.replacement(Maker(rewriter, match), *self._arguments(match))
            results = list(made) if isinstance(made, tuple | list) else [made]
            read = [tensor for tensor in match.root.outputs if tensor.outputs or is_graph_output(tensor)]
            if len(results) < len(read):
                raise PassError(
                    f"it gives {len(results)} tensors for {len(read)} outputs of {node_label(match.root)!r}",
                    where=_called(self.replacement),
                    must="It returns one tensor per output of the root that is read",
                )
            for old, new in zip(read, results, strict=False):
                if isinstance(new, Variable) and new.dtype is None:
                    rewriter.set_type(new, old.dtype, old.shape)
                rewriter.replace_tensor(old, new)
            rewriter.erase(match.nodes)

        return apply

    def _arguments(self, match: Match) -> list[Any]:
        found: list[Any] = []
        for name in list(inspect.signature(self.replacement).parameters)[1:]:
            if name == "match":
                found.append(match)
            elif name in match:
                found.append(match.bound[name])
            else:
                raise PassError(
                    f"its parameter {name!r} is bound by nothing in the pattern",
                    where=_called(self.replacement),
                    must=f"The pattern binds {', '.join(sorted(match.bound))}",
                )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrites(RulePass):
    """Apply rules that are written as functions.

    Matches:   What the pattern of each rule describes and its condition allows.
    Produces:  What its replacement builds.
    Requires:  What the author of the rules proved; nothing else is checked.
    Preserves: Names, types and shapes of public tensors.
    Source:    The user.
    """

    name: ClassVar[str] = "rewrites"
    contract: ClassVar[Contract] = Contract.ROUNDING

    given: tuple[Rewrite, ...] = ()

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return one rule per pair of functions."""
        return [rewrite.rule(model) for rewrite in self.given]


def replace(model: Model, *rewrites: Rewrite, verify: str = "fast") -> int:
    """Apply rules to a model in place until none matches.

    Args:
        model: The model.
        rewrites: The rules, in the order in which they are tried at a node.
        verify: ``off``, ``fast`` or ``full``; ``full`` runs the model before and after.

    Returns:
        How many times they applied.

    Raises:
        PassError: A function raised, or the rules do not reach a fixed point.
        VerificationError: The model is not legal afterwards, or computes something else.
    """
    from graphopt.rewrite.manager import PassManager

    return PassManager([Rewrites(given=rewrites)], verify=verify).run(model).patches  # type: ignore[arg-type]


def _called(function: Callable[..., Any] | None) -> str:
    return str(getattr(function, "__name__", function))
