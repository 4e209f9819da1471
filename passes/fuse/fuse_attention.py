"""The pass ``fuse-attention``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output
from graphopt.passes.fuse.heads import (
    HEADS_FIRST,
    HEADS_LAST_TURNED,
    LAST_TWO,
    Scaled,
    flat,
    is_last_axis,
    scaled,
    split_heads,
    turned,
    unrepeated,
)
from graphopt.passes.fuse.intervals import interval
from graphopt.passes.fuse.masks import Length, Masks
from graphopt.passes.fuse.matching import FLOAT, above, are_private, below
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

OPSET = 23
"""The first opset with Attention."""

_LOWEST_SUMMAND = -3e38


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseAttention(RulePass):
    """Make one Attention of two MatMuls with a Softmax between them.

    Matches:   softmax(q k^T * scale + mask) v over the last axis, with four axes (batch, heads, length, size): the
               scale as Mul or Div behind the product, on q or on k; a summand as mask or none; keys and values whose
               heads are repeated (Gather of heads, or Unsqueeze, Expand and Reshape), which Attention does itself.
    Produces:  One Attention. Where q, k and v are three Reshapes with Transposes of tensors (batch, length, heads *
               size), perhaps with RotaryEmbedding behind them, and the result is turned and reshaped back, it reads
               and gives those: 11 to 13 nodes and all copies of q, k, v and the result go. Else the product, scale,
               mask and softmax go, 3 to 5 nodes. A mask of fewer rows is expanded once for all layers, as ONNX Runtime
               wants it (at most 4 nodes and the bytes of one mask). Measured with ONNX Runtime 1.31 on one thread at 16
               to 512 positions: 0.60 to 0.91 of the time with three axes, 0.62 to 0.99 with four.
    Requires:  Opset 23; float32; batch, heads and sizes proved; option masked-rows or a mask that is proved to be
               greater than the lowest float: Attention gives zeros for rows without any key, where the softmax of
               the lowest float is uniform and that of minus infinity NaN. ONNX Runtime refuses to run Attention of an
               empty batch or length, which the single nodes do run: so this pass is in no preset.
    Preserves: Names, types and shapes; values up to rounding.
    Source:    Vaswani et al. 2017, arXiv:1706.03762; ONNX Attention-23.
    """

    masked_rows: bool = False

    name: ClassVar[str] = "fuse-attention"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return one rule, rooted at the Softmax."""
        types = facts.get(Types)
        masks = Masks(types)
        return (Rule(("Softmax",), lambda node: self._fused(node, types, masks), depth=10, below=4),)

    def _fused(self, softmax: Node, types: Types, masks: Masks) -> Patch | Skip | None:
        assert softmax.graph is not None
        if softmax.graph.opset < OPSET or not is_last_axis(softmax, types):
            return None
        second = below(softmax.outputs[0], "MatMul")
        scores = _scores(softmax.inputs[0], types)
        if second is None or scores is None or second.inputs[0] is not softmax.outputs[0]:
            return None
        if types.dtype(softmax.outputs[0]) != FLOAT or second.inputs[1] is softmax.outputs[0]:
            return None
        core = (*scores.nodes, softmax, second)
        found = _with_four_axes(scores, second, core, types)
        if found is None or not are_private(core, second):
            return None
        if scores.mask is not None and not self.masked_rows and interval(scores.mask, types)[0] < _LOWEST_SUMMAND:
            return Skip(second, f"the mask '{scores.mask.name}' may be the lowest float for all keys of a row")
        found = _with_three_axes(found, types) or found
        extra = 0 if scores.mask is None else masks.nodes_for(scores.mask, found.rows, found.columns)
        if len(found.core) <= 1 + extra + len(found.turns):
            return None
        return found.patch(masks)


# ---------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True, slots=True)
class _Scores:
    """The input of the softmax: product * factor + mask."""

    product: Node
    factor: float
    mask: Tensor | None
    nodes: tuple[Node, ...]


def _scores(tensor: Tensor, types: Types) -> _Scores | None:
    added = above(tensor, "Add")
    if added is None:
        return _product(tensor)
    for index in (0, 1):
        found = _product(added.inputs[index])
        if found is None:
            continue
        mask, shape = added.inputs[1 - index], types.shape(tensor)
        if shape is None or shape != types.shape(added.inputs[index]) or types.rank(mask) not in range(5):
            return None
        return replace(found, mask=mask, nodes=(*found.nodes, added))
    return None


def _product(tensor: Tensor) -> _Scores | None:
    multiple = scaled(tensor)
    product = above(multiple.tensor, "MatMul")
    return None if product is None else _Scores(product, multiple.factor, None, (product, *multiple.nodes))


# -------------------------------------------------------------------------------------------------------- operands


@dataclass(frozen=True, slots=True)
class _Operand:
    """What Attention reads.

    Attributes:
        tensor: The tensor, before `turn` and `rotary`.
        nodes: Nodes that only prepare it; they go if nothing else reads them.
        turn: The permutation it needs, if any.
        rotary: A RotaryEmbedding of four axes that is applied to it, then with three.
        heads: Its number of heads.
    """

    tensor: Tensor
    nodes: tuple[Node, ...]
    heads: int
    turn: list[int] | None = None
    rotary: Node | None = None

    def made(self, rw: Rewriter, near: Node) -> Tensor:
        """Return the tensor as Attention reads it."""
        if self.turn is not None:
            turned_tensor: Tensor = rw.op("Transpose", [self.tensor], attrs={"perm": self.turn}, near=near)
            return turned_tensor
        if self.rotary is not None:
            inputs = [self.tensor, *self.rotary.inputs[1:]]
            attrs = {**self.rotary.attrs, "num_heads": self.heads}
            embedded: Tensor = rw.op("RotaryEmbedding", inputs, attrs=attrs, near=near, origin=[self.rotary])
            return embedded
        return self.tensor


@dataclass(frozen=True, slots=True)
class _Found:
    """An attention.

    Attributes:
        core: Nodes that go, the last one gives the result.
        query: The queries.
        key: The keys.
        value: The values.
        factor: What the product is multiplied by.
        mask: What is added.
        rows: Number of queries.
        columns: Number of keys.
        value_size: Size of a head of the values.
        is_flat: Whether the operands have three axes.
    """

    core: tuple[Node, ...]
    query: _Operand
    key: _Operand
    value: _Operand
    factor: float
    mask: Tensor | None
    rows: Dim
    columns: Dim
    value_size: int
    is_flat: bool = False

    @property
    def turns(self) -> list[_Operand]:
        """The operands that need a new Transpose although the old one may stay."""
        return [each for each in (self.query, self.key, self.value) if each.turn is not None]

    def patch(self, masks: Masks) -> Patch:
        """Return the patch."""
        root = self.core[-1]
        attrs: dict[str, Any] = {"scale": self.factor}
        if self.is_flat:
            attrs |= {"q_num_heads": self.query.heads, "kv_num_heads": self.key.heads}

        def apply(rw: Rewriter) -> None:
            inputs = [operand.made(rw, root) for operand in (self.query, self.key, self.value)]
            if self.mask is not None:
                axis = 1 if self.is_flat else 2
                rows, columns = Length(self.rows, inputs[0], axis), Length(self.columns, inputs[1], axis)
                inputs.append(masks.full(rw, self.mask, rows, columns, root))
            output = root.outputs[0]
            new = rw.op("Attention", inputs, attrs=attrs, like=output, near=root, origin=self.core)
            rw.replace_tensor(output, new)
            rw.erase(reversed(self.core))
            for operand in (self.query, self.key, self.value):
                for node in operand.nodes:
                    _erase_unread(rw, node)

        form = "three" if self.is_flat else "four"
        reason = f"{len(self.core)} nodes that give '{root.outputs[0].name}' are an Attention of {form} axes"
        return Patch(reason, self.core, apply)


def _erase_unread(rw: Rewriter, node: Node) -> None:
    if not any(tensor.outputs or is_graph_output(tensor) for tensor in node.outputs if tensor.name):
        rw.erase(node)


def _with_four_axes(scores: _Scores, second: Node, core: tuple[Node, ...], types: Types) -> _Found | None:
    product = scores.product
    query, turned_key = scaled(product.inputs[0]), scaled(product.inputs[1])
    factor = scores.factor * query.factor * turned_key.factor
    above_product = [*query.nodes, *turned_key.nodes]
    if not are_private(above_product, product):
        query, turned_key = Scaled(product.inputs[0]), Scaled(product.inputs[1])
        factor, above_product = scores.factor, []
    value = second.inputs[1]
    shapes = [types.shape(each) for each in (query.tensor, turned_key.tensor, value)]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    (batch, heads, rows, size), (_, _, depth, columns), (_, _, length, value_size) = (
        s for s in shapes if s is not None
    )
    same = all(shape is not None and shape[:2] == (batch, heads) for shape in shapes)
    if not same or size != depth or columns != length or 0 in (batch, heads, rows, columns):
        return None
    if not isinstance(heads, int) or not isinstance(size, int) or not isinstance(value_size, int) or not size:
        return None
    key_node, key = turned(turned_key.tensor, LAST_TWO), _Operand(turned_key.tensor, (), heads, LAST_TWO)
    values = _Operand(value, (), heads)
    if key_node is not None:
        multiple = scaled(key_node.inputs[0])
        if multiple.nodes and are_private([key_node, *multiple.nodes], product):
            factor *= multiple.factor
            above_product += [key_node, *multiple.nodes]
        else:
            multiple = Scaled(key_node.inputs[0])
        key = _Operand(multiple.tensor, (key_node,), heads)
        few_keys, key_nodes = unrepeated(multiple.tensor, types)
        few_values, value_nodes = unrepeated(value, types)
        counts = [(types.shape(each) or ())[1] for each in (few_keys, few_values)]
        if key_nodes and value_nodes and counts[0] == counts[1] and isinstance(counts[0], int):
            key = _Operand(few_keys, (key_node, *key_nodes), counts[0])
            values = _Operand(few_values, tuple(value_nodes), counts[0])
    else:
        whole = turned(turned_key.tensor, HEADS_LAST_TURNED)
        if whole is not None:
            key = _Operand(whole.inputs[0], (whole,), heads, HEADS_FIRST)
    core = (*dict.fromkeys((*above_product, *core)),)
    return _Found(core, _Operand(query.tensor, (), heads), key, values, factor, scores.mask, rows, columns, value_size)


def _with_three_axes(found: _Found, types: Types) -> _Found | None:
    second = found.core[-1]
    back = below(second.outputs[0], "Transpose")
    merged = None if back is None else below(back.outputs[0], "Reshape")
    if back is None or merged is None or list(back.attrs.get("perm", ())) != HEADS_FIRST:
        return None
    shape = types.shape(second.outputs[0])
    if shape is None or types.shape(merged.outputs[0]) != (shape[0], shape[2], found.query.heads * found.value_size):
        return None
    operands = [_flattened(each, types) for each in (found.query, found.key, found.value)]
    if any(each is None for each in operands):
        return None
    query, key, value = (each for each in operands if each is not None)
    core = (*found.core, back, merged)
    return replace(found, core=core, query=query, key=key, value=value, is_flat=True)


def _flattened(operand: _Operand, types: Types) -> _Operand | None:
    """Return an operand of four axes as one of three: (batch, length, heads * size)."""
    if operand.turn is not None:
        split = split_heads(operand.tensor, types) if operand.turn == HEADS_FIRST else None
        return None if split is None else _Operand(split[0], (*operand.nodes, *split[1]), operand.heads)
    found = flat(operand.tensor, types)
    if found is not None:
        return _Operand(found[0], (*operand.nodes, *found[1]), operand.heads)
    rotary = above(operand.tensor, "RotaryEmbedding")
    inner = None if rotary is None else flat(rotary.inputs[0], types)
    if rotary is None or inner is None:
        return None
    return _Operand(inner[0], (*operand.nodes, rotary, *inner[1]), operand.heads, rotary=rotary)
