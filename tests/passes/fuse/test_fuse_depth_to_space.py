"""fuse-depth-to-space: three nodes become the operator they define, and nothing that only looks like it does."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import pytest

from graphopt.passes.fuse.fuse_depth_to_space import FuseDepthToSpace
from pass_oracle import check_pass, run_pass

CASES = {
    "DCR": ([8, 2, 3], [0, 2, 2, 2, 2, 3], [0, 3, 4, 1, 5, 2], [0, 2, 4, 6], "DepthToSpace"),
    "CRD": ([8, 2, 3], [0, 2, 2, 2, 2, 3], [0, 1, 4, 2, 5, 3], [0, 2, 4, 6], "DepthToSpace"),
    "blocks of 3": ([9, 2, 2], [0, 1, 3, 3, 2, 2], [0, 1, 4, 2, 5, 3], [0, 1, 6, 6], "DepthToSpace"),
    "back": ([2, 4, 6], [0, 2, 2, 2, 3, 2], [0, 3, 5, 1, 2, 4], [0, 8, 2, 3], "SpaceToDepth"),
}


def text(
    given: list[int], middle: list[int], perm: list[int], target: list[int], *, opset: int = 17, element: str = "float"
) -> str:
    sizes = ", ".join(map(str, given))
    constants = f"int64[6] a = {{{str(middle)[1:-1]}}}, int64[4] b = {{{str(target)[1:-1]}}}"
    body = f"m = Reshape(x, a) t = Transpose<perm = {perm}>(m) y = Reshape(t, b)"
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    return f"{head} g ({element}[n, {sizes}] x) => ({element}[n, c, h, w] y) <{constants}> {{ {body} }}"


@pytest.mark.parametrize(("given", "middle", "perm", "target", "op"), CASES.values(), ids=CASES)
def test_becomes_one_node(given: list[int], middle: list[int], perm: list[int], target: list[int], op: str) -> None:
    done = check_pass(FuseDepthToSpace(), text(given, middle, perm, target))
    assert done.ops == [op]


def test_open_sizes() -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 8, h, w] x) => (float[p, q, r, s] y)'
    sizes = "s = Shape(x) k = Slice(s, one, three) h = Gather(s, i2) w = Gather(s, i3) n = Gather(s, i0)"
    targets = "a = Concat<axis = 0>(n, two, two, two, h, w) hh = Mul(h, two) ww = Mul(w, two) b = Concat<axis = 0>(n, two, hh, ww)"
    constants = ", ".join(
        f"int64[1] {name} = {{{v}}}" for name, v in {"one": 1, "two": 2, "three": 3, "i0": 0, "i2": 2, "i3": 3}.items()
    )
    body = f"{sizes} {targets} m = Reshape(x, a) t = Transpose<perm = [0, 1, 4, 2, 5, 3]>(m) y = Reshape(t, b)"
    done = check_pass(FuseDepthToSpace(), f"{head} <{constants}> {{ {body} }}")
    assert done.ops[-1] == "DepthToSpace"


def test_modes_are_new_in_opset_11() -> None:
    crd, dcr = CASES["CRD"][:4], CASES["DCR"][:4]
    assert run_pass(FuseDepthToSpace(), text(*crd, opset=10)).ops == ["Reshape", "Transpose", "Reshape"]
    assert check_pass(FuseDepthToSpace(), text(*dcr, opset=10)).ops == ["DepthToSpace"]


KEPT = {
    "another order": ([8, 2, 3], [0, 2, 2, 2, 2, 3], [0, 1, 4, 3, 5, 2], [0, 2, 4, 6]),
    "back, channels first": ([2, 4, 6], [0, 2, 2, 2, 3, 2], [0, 1, 3, 5, 2, 4], [0, 8, 2, 3]),
    "blocks that are not square": ([8, 2, 3], [0, 1, 4, 2, 2, 3], [0, 1, 4, 2, 5, 3], [0, 1, 8, 6]),
    "other rows": ([8, 2, 3], [0, 2, 2, 2, 3, 2], [0, 1, 4, 2, 5, 3], [0, 2, 6, 4]),
    "other result": ([8, 2, 3], [0, 2, 2, 2, 2, 3], [0, 1, 4, 2, 5, 3], [0, 2, 6, 4]),
}


@pytest.mark.parametrize(("given", "middle", "perm", "target"), KEPT.values(), ids=KEPT)
def test_what_only_looks_like_it_stays(given: list[int], middle: list[int], perm: list[int], target: list[int]) -> None:
    assert run_pass(FuseDepthToSpace(), text(given, middle, perm, target)).record.patches == 0


def test_types_without_a_kernel_stay() -> None:
    assert run_pass(FuseDepthToSpace(), text(*CASES["CRD"][:4], element="int32")).record.patches == 0


def test_another_reader_keeps_the_nodes() -> None:
    model = text(*CASES["CRD"][:4]).replace("[n, c, h, w] y)", "[n, c, h, w] y, float[o, p, q, r, s, t] m)")
    assert run_pass(FuseDepthToSpace(), model).record.patches == 0
