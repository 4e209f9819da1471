"""The pass ``fuse-attention``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output
from graphopt.passes.fuse.attention.heads import (
    HEADS_FIRST,
    HEADS_LAST_TURNED,
    LAST_TWO,
    Scaled,
    View,
    is_last_axis,
    scaled,
    turned,
    views,
)
from graphopt.passes.fuse.attention.intervals import interval, is_open_or_closed
from graphopt.passes.fuse.attention.lengths import Length
from graphopt.passes.fuse.attention.masks import Mask, Masks
from graphopt.passes.fuse.attention.reading import Operand, shared_heads, with_four_axes, with_three_axes
from graphopt.passes.fuse.matching import (
    FLOAT,
    above,
    are_private,
    below,
    only_first_output,
    refers_to_function,
    scalar,
)
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

OPSETS = (23, 24)
"""The opsets with an Attention that ONNX Runtime has a kernel for; that of opset 25 it takes apart again."""

_LOWEST_SUMMAND = -3e38
_FAR_BELOW_SCORES = -1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseAttention(RulePass):
    """Make one Attention of two MatMuls with a Softmax between them.

    Matches:   softmax(q k^T * scale + mask) v over the last axis, with four axes (batch, heads, length, size): the
               scale as Mul or Div behind the product, on q or on k; as mask a summand, a Where with a constant, or
               none; keys and values whose heads are repeated (Gather of heads, or Unsqueeze, Expand and Reshape), which
               Attention does itself.
    Produces:  One Attention. Where q, k and v are three Reshapes with Transposes of tensors (batch, length, heads *
               size), perhaps with RotaryEmbedding behind them, and the result is turned and reshaped back, it reads
               and gives those: 11 to 13 nodes and all copies of q, k, v and the result go. Else the product, scale,
               mask and softmax go, 3 to 5 nodes. A mask of fewer rows is expanded once for all layers, as ONNX Runtime
               wants it (at most 4 nodes and the bytes of one mask). Measured with ONNX Runtime 1.31 on one thread at 16
               to 512 positions: 0.60 to 0.91 of the time with three axes, 0.62 to 0.99 with four.
    Requires:  Opset 23 or 24; float32; batch, heads and sizes proved; a summand that is proved to be greater than the
               lowest float: Attention gives zeros for rows without any key, where the softmax of the lowest float is
               uniform and that of minus infinity NaN. A mask of zeros and minus infinities is right where NaN is
               replaced by 0 behind the Softmax, as long as no score is NaN itself. The option ordinary-masks takes for
               granted that every row has an open key and that scores are far smaller than what closes a key; only with
               it Where with a constant of at most -1e4 counts as a mask. ONNX Runtime refuses to run Attention of an
               empty batch or length, which the single nodes do run: so this pass is in no preset.
    Preserves: Names, types and shapes; values up to rounding.
    Source:    Vaswani et al. 2017, arXiv:1706.03762; ONNX Attention-23.
    """

    ordinary_masks: bool = False

    name: ClassVar[str] = "fuse-attention"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return one rule, rooted at the Softmax."""
        types = facts.get(Types)
        masks = Masks(types)
        return (
            Rule(("Softmax",), lambda node: self._fused(node, types, masks), depth=10, below=4),
            Rule(("Attention",), lambda node: _improved(node, types, masks), depth=7, below=2),
        )

    def _fused(self, softmax: Node, types: Types, masks: Masks) -> Patch | Skip | None:
        assert softmax.graph is not None
        if softmax.graph.opset not in OPSETS or not is_last_axis(softmax, types):
            return None
        guard = _guard(softmax)
        probabilities = softmax.outputs[0] if guard is None else guard[-1].outputs[0]
        second = below(probabilities, "MatMul")
        scores = _scores(softmax.inputs[0], types)
        if second is None or scores is None or second.inputs[0] is not probabilities:
            return None
        if types.dtype(softmax.outputs[0]) != FLOAT or second.inputs[1] is probabilities:
            return None
        core = (*scores.nodes, softmax, *(guard or ()), second)
        found = _with_four_axes(scores, second, core, types)
        if found is None or not are_private(core, second):
            return None
        if scores.mask is not None and not self.ordinary_masks and not _is_harmless(scores.mask, guard, types):
            return Skip(second, f"the mask '{scores.mask.parts[-1].name}' may close all keys of a row")
        found = _with_three_axes(found, types) or found
        extra = 0 if scores.mask is None else masks.nodes_for(scores.mask, found.rows, found.columns)
        saved = len(found.core) - 1 - sum(bool(operand.turn) for operand in found.operands)
        layers = 1 if scores.mask is None else min(len(part.outputs) for part in scores.mask.parts)
        return found.patch(masks) if saved * layers > extra else None


def _improved(node: Node, types: Types, masks: Masks) -> Patch | None:
    """Return the patch that makes an Attention read tensors of three axes, or fewer heads."""
    assert node.graph is not None
    found = _again(node, types) if node.graph.opset in OPSETS and not refers_to_function(node) else None
    return None if found is None else found.patch(masks)


def _is_harmless(mask: Mask, guard: tuple[Node, Node] | None, types: Types) -> bool:
    """Whether rows without any key give the same with and without Attention."""
    if mask.closed is not None or mask.summand is None:
        return False
    if interval(mask.summand, types)[0] >= _LOWEST_SUMMAND:
        return True
    return guard is not None and is_open_or_closed(mask.summand, types)


def _guard(softmax: Node) -> tuple[Node, Node] | None:
    """Return IsNaN and Where behind a Softmax that give rows without any key zeros instead of NaN."""
    output = softmax.outputs[0]
    readers = list(dict.fromkeys(output.outputs))
    if len(readers) != 2 or is_graph_output(output):
        return None
    test = next((node for node in readers if node.op == "IsNaN"), None)
    chosen = None if test is None else below(test.outputs[0], "Where")
    if test is None or chosen is None or chosen not in readers or chosen.inputs[2] is not output:
        return None
    return (test, chosen) if scalar(chosen.inputs[1]) == 0 else None


# ---------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True, slots=True)
class _Scores:
    """The input of the softmax: product * factor, then masked."""

    product: Node
    factor: float
    mask: Mask | None
    nodes: tuple[Node, ...]


def _scores(tensor: Tensor, types: Types) -> _Scores | None:
    """Read the scores upwards: a summand, a Where with a constant, in this order or the other, then the product."""
    node = above(tensor, "Add", "Where")
    if node is None:
        return _product(tensor)
    for index in (0, 1) if node.op == "Add" else (2, 1):
        rest = node.inputs[index]
        found = _product(rest) or (_scores(rest, types) if above(rest, "Add", "Where") is not None else None)
        if found is None:
            continue
        before = found.mask or Mask()
        mask = _added(before, node.inputs[1 - index]) if node.op == "Add" else _closed(before, node, index)
        shape = types.shape(tensor)
        if mask is None or shape is None or shape != types.shape(rest):
            return None
        if any(types.rank(part) not in range(5) for part in mask.parts):
            return None
        return replace(found, mask=mask, nodes=(*found.nodes, node))
    return None


def _added(mask: Mask, summand: Tensor) -> Mask | None:
    return None if mask.summand is not None else replace(mask, summand=summand)


def _closed(mask: Mask, node: Node, index: int) -> Mask | None:
    """Return a mask with a Where that replaces scores by a constant that is far below them."""
    constant = scalar(node.inputs[3 - index])
    if mask.closed is not None or constant is None or not constant <= _FAR_BELOW_SCORES:
        return None
    return replace(mask, closed=node.inputs[0], value=node.inputs[3 - index], is_inverted=index == 1)


def _product(tensor: Tensor) -> _Scores | None:
    multiple = scaled(tensor)
    product = above(multiple.tensor, "MatMul")
    return None if product is None else _Scores(product, multiple.factor, None, (product, *multiple.nodes))


# ----------------------------------------------------------------------------------------------------- the attention


@dataclass(frozen=True, slots=True)
class _Found:
    """An attention.

    Attributes:
        core: Nodes that go, the last one gives the result.
        options: What queries, keys and values are made of.
        operands: What Attention reads of them.
        attrs: Attributes of the Attention, without numbers of heads.
        mask: What is added.
        rows: Number of queries.
        columns: Number of keys.
        value_size: Size of a head of the values.
        is_flat: Whether the operands have three axes.
        further: Inputs behind the values that stay as they are.
    """

    core: tuple[Node, ...]
    options: tuple[list[View], list[View], list[View]]
    operands: tuple[Operand, ...]
    attrs: dict[str, Any]
    mask: Mask | None
    rows: Dim
    columns: Dim
    value_size: int
    is_flat: bool = False
    further: tuple[Tensor, ...] = ()

    def patch(self, masks: Masks) -> Patch:
        """Return the patch."""
        root = self.core[-1]
        attrs = dict(self.attrs)
        if self.is_flat:
            attrs |= {"q_num_heads": self.operands[0].heads, "kv_num_heads": self.operands[1].heads}

        def apply(rw: Rewriter) -> None:
            steps: dict[Node, tuple[Tensor, ...]] = {}
            inputs = [*(operand.made(rw, root, steps) for operand in self.operands), *self.further]
            if self.mask is not None:
                axis = 1 if self.is_flat else 2
                rows, columns = Length(self.rows, inputs[0], axis), Length(self.columns, inputs[1], axis)
                inputs.append(masks.full(rw, self.mask, rows, columns, root))
            output = root.outputs[0]
            new = rw.op("Attention", inputs, attrs=attrs, like=output, near=root, origin=self.core)
            rw.replace_tensor(output, new)
            rw.erase(reversed(self.core))
            for operand in self.operands:
                for node in operand.nodes:
                    _erase_unread(rw, node)

        form = "three" if self.is_flat else "four"
        reason = f"{len(self.core)} nodes that give '{root.outputs[0].name}' are an Attention of {form} axes"
        return Patch(reason, self.core, apply)


def _erase_unread(rw: Rewriter, node: Node) -> None:
    if node.graph is not None and not any(t.outputs or is_graph_output(t) for t in node.outputs if t.name):
        rw.erase(node)


def _with_four_axes(scores: _Scores, second: Node, core: tuple[Node, ...], types: Types) -> _Found | None:
    product = scores.product
    query, turned_key = scaled(product.inputs[0]), scaled(product.inputs[1])
    if not are_private([*query.nodes, *turned_key.nodes], product):
        query, turned_key = Scaled(product.inputs[0]), Scaled(product.inputs[1])
    value = second.inputs[1]
    known = [shape for each in (query.tensor, turned_key.tensor, value) if (shape := types.shape(each)) is not None]
    if len(known) < 3 or any(len(shape) != 4 for shape in known):
        return None
    (batch, heads, rows, size), (_, _, depth, columns), (_, _, length, value_size) = known
    same = all(shape[:2] == (batch, heads) for shape in known)
    if not same or size != depth or columns != length or 0 in (batch, heads, rows, columns):
        return None
    if not isinstance(heads, int) or not isinstance(size, int) or not isinstance(value_size, int) or not size:
        return None
    keys, key_scale = _keys(turned_key.tensor, heads, product, types)
    options = (views(query.tensor, heads, types), keys, views(value, heads, types))
    if keys:
        shared = shared_heads(keys, options[2])
        counts = (heads, shared, shared)
        operands = [with_four_axes(each, count) for each, count in zip(options, counts, strict=True)]
    else:
        turn = Operand(heads, (), turned_key.tensor, tuple(LAST_TWO))
        operands = [Operand(heads, (), query.tensor), turn, Operand(heads, (), value)]
    factor = scores.factor * query.factor * turned_key.factor * key_scale.factor
    nodes = (*dict.fromkeys((*query.nodes, *turned_key.nodes, *key_scale.nodes, *core)),)
    return _Found(nodes, options, (*operands,), {"scale": factor}, scores.mask, rows, columns, value_size)


def _keys(tensor: Tensor, heads: int, product: Node, types: Types) -> tuple[list[View], Scaled]:
    """Return what keys (batch, heads, size, length) are made of, nothing where they are not turned, and their scale."""
    node = turned(tensor, LAST_TWO)
    if node is None:
        whole = turned(tensor, HEADS_LAST_TURNED)
        found = [] if whole is None else views(whole.inputs[0], heads, types, is_turned=True)
        return [replace(view, nodes=(whole, *view.nodes)) for view in found if whole is not None], Scaled(tensor)
    multiple = scaled(node.inputs[0])
    if not multiple.nodes or not are_private([node, *multiple.nodes], product):
        multiple = Scaled(node.inputs[0])
    found = views(multiple.tensor, heads, types)
    nodes = () if multiple.nodes else (node,)
    scale = replace(multiple, nodes=(*multiple.nodes, node)) if multiple.nodes else multiple
    return [replace(view, nodes=(*nodes, *view.nodes)) for view in found], scale


def _with_three_axes(found: _Found, types: Types) -> _Found | None:
    """Return the attention with three axes, where its result is turned and merged and its operands allow it."""
    result = found.core[-1].outputs[0]
    back = below(result, "Transpose")
    merged = None if back is None else below(back.outputs[0], "Reshape")
    if back is None or merged is None or list(back.attrs.get("perm", ())) != HEADS_FIRST or not found.options[1]:
        return None
    shape, heads = types.shape(result), found.options[0][0].heads
    if shape is None or types.shape(merged.outputs[0]) != (shape[0], shape[2], heads * found.value_size):
        return None
    shared = shared_heads(*found.options[1:])
    counts = (heads, shared, shared)
    operands = [with_three_axes(each, count, types) for each, count in zip(found.options, counts, strict=True)]
    whole = tuple(each for each in operands if each is not None)
    if len(whole) < 3:
        return None
    return replace(found, core=(*found.core, back, merged), operands=whole, is_flat=True)


def _again(node: Node, types: Types) -> _Found | None:
    """Return an Attention of four axes with three, or with fewer heads that are repeated."""
    if "q_num_heads" in node.attrs or len(node.inputs) not in (3, 4) or not only_first_output(node):
        return None
    shapes = [types.shape(tensor) for tensor in node.inputs[:3]]
    known = [shape for shape in shapes if shape is not None and len(shape) == 4]
    if len(known) < 3 or not all(isinstance(shape[1], int) and isinstance(shape[3], int) for shape in known):
        return None
    (_, heads, rows, _), (_, groups, columns, _), (_, _, _, value_size) = known
    if not isinstance(heads, int) or not isinstance(groups, int) or not isinstance(value_size, int):
        return None
    query, key, value = node.inputs[:3]
    options = (views(query, heads, types), views(key, groups, types), views(value, groups, types))
    found = _Found((node,), options, (), dict(node.attrs), None, rows, columns, value_size)
    found = replace(found, further=tuple(node.inputs[3:]))
    flat = _with_three_axes(found, types)
    if flat is not None:
        return flat
    shared = shared_heads(*options[1:])
    if shared == groups:
        return None
    counts = (heads, shared, shared)
    operands = tuple(with_four_axes(each, count) for each, count in zip(options, counts, strict=True))
    return None if any(operand.turn for operand in operands) else replace(found, operands=operands)
