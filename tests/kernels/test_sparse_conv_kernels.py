"""Every implementation of SparseConv against its definition, through the C interface."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from conv_calls import ConvLibrary, Extras, Steps, conv_bound, dense_conv
from graphopt.solve.pack_sparse_conv import BLOCKS, pack_sparse_conv
from kernel_calls import ACTIVATIONS, Library, runs_here

SAME = Steps(pads=(1, 1, 1, 1))
BOTH = (True, True)

# x [N, C, H, W], w [M, C / group, kH, kW], group, steps
CASES = {
    "one": ((1, 1, 1, 1), (1, 1, 1, 1), 1, Steps()),
    "one position, all taps but one in the padding": ((1, 2, 1, 1), (3, 2, 3, 3), 1, SAME),
    "1x1": ((2, 5, 8, 8), (9, 5, 1, 1), 1, Steps()),
    "1x1 of planes that collide": ((1, 3, 16, 16), (5, 3, 1, 1), 1, Steps()),
    "1x1 with stride": ((1, 4, 14, 13), (5, 4, 1, 1), 1, Steps((2, 2))),
    "1x1 with pads": ((1, 4, 6, 7), (5, 4, 1, 1), 1, Steps(pads=(1, 2, 0, 3))),
    "3x3 of 7": ((2, 5, 7, 7), (9, 5, 3, 3), 1, SAME),
    "3x3 of 14, three groups": ((1, 6, 14, 14), (12, 2, 3, 3), 3, SAME),
    "3x3 of 23": ((1, 3, 23, 23), (17, 3, 3, 3), 1, SAME),
    "3x3 without pads": ((1, 4, 9, 11), (5, 4, 3, 3), 1, Steps()),
    "3x3 with stride": ((1, 4, 15, 13), (5, 4, 3, 3), 1, Steps((2, 2), pads=(1, 1, 1, 1))),
    "7x7 with stride": ((1, 3, 23, 22), (8, 3, 7, 7), 1, Steps((2, 2), pads=(3, 3, 3, 3))),
    "stride larger than the kernel": ((1, 2, 17, 19), (6, 2, 2, 2), 1, Steps((3, 5), pads=(1, 0, 1, 1))),
    "output wider than input": ((1, 2, 5, 6), (4, 2, 2, 2), 1, Steps(pads=(2, 3, 1, 2))),
    "dilated": ((1, 4, 9, 11), (5, 4, 3, 2), 1, Steps((3, 1), (2, 3), (4, 5, 3, 2))),
    "dilated beyond the image": ((1, 2, 4, 4), (3, 2, 3, 3), 1, Steps((1, 1), (5, 4), (5, 4, 5, 4))),
    "one stride": ((1, 4, 9, 11), (5, 4, 3, 2), 1, Steps((1, 3), (2, 3), (0, 5, 0, 2))),
    "rows only": ((3, 4, 1, 37), (6, 2, 1, 5), 2, Steps(pads=(0, 2, 0, 2))),
    "columns only": ((1, 3, 41, 1), (7, 3, 4, 1), 1, Steps((2, 1), pads=(1, 0, 2, 0))),
    "no image": ((0, 4, 5, 5), (5, 4, 3, 3), 1, SAME),
}


@pytest.fixture
def conv(library: Library) -> ConvLibrary:
    return ConvLibrary(library.dll)


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def weight(*shape: int, density: float = 0.4, block: int = 1) -> np.ndarray:
    made, rng = values(*shape, seed=1), np.random.default_rng(2)
    kept = rng.random((-(-shape[0] // block), *shape[1:])) < density
    made[~np.repeat(kept, block, axis=0)[: shape[0]]] = 0
    return made


def check(y: np.ndarray, x: np.ndarray, w: np.ndarray, steps: Steps, group: int, extras: Extras) -> None:
    exact, bound = conv_bound(x, w, steps, group, extras)
    if extras.activation == "relu":
        exact = np.maximum(exact, 0)
    excess = np.abs(y - exact) - bound
    assert excess.size == 0 or excess.max() <= 0, f"{excess.max()} beyond the bound"


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", CASES)
def test_kernel_any_geometry_is_within_the_rounding_bound(conv: ConvLibrary, isa: str, name: str, block: int) -> None:
    x_shape, w_shape, group, steps = CASES[name]
    x, w = values(*x_shape), weight(*w_shape, block=block)
    sizes = steps.output(x_shape[2:], w_shape[2:])
    extras = Extras(values(w_shape[0]), values(x_shape[0], w_shape[0], *sizes, seed=3), "relu")
    packed = pack_sparse_conv(w, group=group, block=block)
    plain = conv.run(packed, x, isa, w_shape, steps)
    check(plain, x, w, steps, group, Extras())
    for padded in ((False, False), (True, False), (False, True), BOTH):
        y = conv.run(packed, x, isa, w_shape, steps, extras, padded)
        check(y, x, w, steps, group, extras)
        assert np.array_equal(conv.run(packed, x, isa, w_shape, steps, padded=padded), plain), "layouts give one result"
        in_place = conv.run(packed, x, isa, w_shape, steps, extras, padded, in_place=True)
        assert np.array_equal(in_place, y), "y may lie where the residual does"


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("k_block", "panel_rows"), [(1, 1), (7, 3), (65536, 65535), (20, 8)])
def test_kernel_any_blocking_is_within_the_rounding_bound(
    conv: ConvLibrary, isa: str, block: int, k_block: int, panel_rows: int
) -> None:
    x, w = values(2, 10, 9, 13), weight(38, 5, 3, 3, block=block)
    extras = Extras(values(38), values(2, 38, 9, 13, seed=3), "relu")
    packed = pack_sparse_conv(w, group=2, block=block, k_block=k_block, panel_rows=panel_rows)
    check(conv.run(packed, x, isa, w.shape, SAME, extras), x, w, SAME, 2, extras)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 16, 17, 28])
def test_kernel_any_width_of_a_tile_is_within_the_rounding_bound(
    conv: ConvLibrary, isa: str, side: int, block: int
) -> None:
    x, w = values(1, 7, side, side), weight(19, 7, 3, 3, density=0.2, block=block)
    check(conv.run(pack_sparse_conv(w, block=block), x, isa, w.shape, SAME), x, w, SAME, 1, Extras())


def test_reference_agrees_with_the_definition(conv: ConvLibrary) -> None:
    for x_shape, w_shape, group, steps in CASES.values():
        x, w = values(*x_shape), weight(*w_shape)
        extras = Extras(values(w_shape[0]))
        y = conv.run(pack_sparse_conv(w, group=group), x, "reference", w_shape, steps, extras)
        exact = dense_conv(x.astype(np.float64), w.astype(np.float64), steps, group) + values(w_shape[0])[:, None, None]
        assert np.allclose(y, exact, rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("side", "strides", "group", "panel_rows"),
    [
        (7, (1, 1), 1, 3),
        (7, (1, 1), 2, 5),
        (12, (1, 1), 1, 8),
        (13, (2, 2), 1, 3),
        (20, (2, 3), 1, 7),
        (1, (1, 1), 3, 2),
    ],
)
def test_kernel_tiles_that_several_tasks_sweep_are_left_to_the_next(
    conv: ConvLibrary, isa: str, side: int, strides: tuple[int, int], group: int, panel_rows: int
) -> None:
    x, w = values(1, 6 * group, side, side), weight(24 * group, 6, 3, 3)
    steps = Steps(strides, pads=(1, 1, 1, 1))
    packed = pack_sparse_conv(w, group=group, k_block=20, panel_rows=panel_rows)
    if isa.startswith("avx512") and side < 20:
        assert "shared" in conv.choice(packed, isa, (1, side, side), steps, BOTH)
    out = steps.output((side, side), (3, 3))
    extras = Extras(values(24 * group), values(1, 24 * group, *out, seed=3), "relu")
    for given in (x, -x):  # nothing is left from one call to the next
        check(conv.run(packed, given, isa, w.shape, steps, extras, BOTH), given, w, steps, group, extras)


@pytest.mark.parametrize("kernel", [1, 3])
def test_kernel_outputs_asked_for_ahead_are_the_same(conv: ConvLibrary, isa: str, kernel: int) -> None:
    x, w = values(1, 3, 64, 61), weight(70, 3, kernel, kernel)
    steps = SAME if kernel == 3 else Steps()
    packed = pack_sparse_conv(w)
    assert conv.choice(packed, isa, (1, 64, 61), steps, (False, False)).endswith(" ahead")
    extras = Extras(values(70), values(1, 70, 64, 61, seed=3), "relu")
    for in_place in (False, True):
        y = conv.run(packed, x, isa, w.shape, steps, extras, in_place=in_place)
        check(y, x, w, steps, 1, extras)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernel_activations_agree_with_the_reference(conv: ConvLibrary, isa: str, activation: str) -> None:
    x, w = 4 * values(1, 6, 5, 7), weight(9, 6, 3, 3)
    extras = Extras(values(9), values(1, 9, 5, 7, seed=3), activation, -0.5, 1.5)
    packed = pack_sparse_conv(w)
    for padded in ((False, False), BOTH):
        wanted = conv.run(packed, x, "reference", w.shape, SAME, extras, padded)
        y = conv.run(packed, x, isa, w.shape, SAME, extras, padded)
        _, bound = conv_bound(x, w, SAME, 1, extras)
        assert np.all(np.abs(y - wanted) <= 2 * bound + 1e-6 * np.abs(wanted) + 1e-6)


@pytest.mark.parametrize("block", BLOCKS)
def test_kernel_without_entries_gives_the_bias(conv: ConvLibrary, isa: str, block: int) -> None:
    empty, x, bias = np.zeros((11, 6, 3, 3), np.float32), values(1, 6, 5, 7), values(11)
    packed = pack_sparse_conv(empty, block=block, k_block=20)
    assert not conv.run(packed, x, isa, empty.shape, SAME).any()
    y = conv.run(packed, x, isa, empty.shape, SAME, Extras(bias))
    assert np.array_equal(y, np.broadcast_to(bias[:, None, None], y.shape))


def test_kernel_empty_rows_columns_and_parts(conv: ConvLibrary, isa: str) -> None:
    w = weight(40, 12, 3, 3, density=0.5)
    w[::3], w[:, 2::5], w[:20, :6] = 0, 0, 0
    x = values(1, 12, 10, 10)
    for block in BLOCKS:
        packed = pack_sparse_conv(w, block=block, k_block=18, panel_rows=5)
        check(conv.run(packed, x, isa, w.shape, SAME), x, w, SAME, 1, Extras())


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_kernel_infinity_and_nan_reach_the_outputs_that_meet_them_and_no_others(
    conv: ConvLibrary, isa: str, value: float
) -> None:
    w = np.zeros((5, 3, 3, 3), np.float32)
    w[1, 2, 0, 1], w[3, 0, 1, 1] = 2, 3
    x = values(1, 3, 6, 6)
    x[0, 2, 3, 3] = value
    y = conv.run(pack_sparse_conv(w), x, isa, w.shape, SAME, Extras(activation="relu"))
    wanted = np.zeros(y.shape, bool)
    wanted[0, 1, 4, 3] = value != -np.inf
    assert np.array_equal(~np.isfinite(y), wanted)


def test_kernel_border_never_multiplies_by_an_infinite_weight(conv: ConvLibrary, isa: str) -> None:
    """A tap in the padding adds nothing, as reading no input does; 0 * infinity would be NaN."""
    w = np.zeros((8, 1, 3, 3), np.float32)
    w[:, 0, 1, 1] = 1
    x = np.full((1, 1, 4, 4), 3e38, np.float32)
    for block in BLOCKS:
        y = conv.run(pack_sparse_conv(w, block=block), x, isa, w.shape, SAME)
        assert np.array_equal(y, np.broadcast_to(x, y.shape))


def test_kernel_subnormal_and_largest_values(conv: ConvLibrary, isa: str) -> None:
    x = np.array([1e-42, -1e-42, 3e38, -3e38, 1.0, 0.0], np.float32).reshape(1, 6, 1, 1).repeat(5, 3)
    w = np.eye(6, dtype=np.float32).reshape(6, 6, 1, 1)
    assert np.array_equal(conv.run(pack_sparse_conv(w), x, isa, w.shape), x)


@pytest.mark.parametrize("offset", [1, 3, 6, 63])
def test_kernel_unaligned_bytes_and_inputs(conv: ConvLibrary, isa: str, offset: int) -> None:
    w, x = weight(20, 9, 3, 3), values(1, 9, 11, 9)
    for block in BLOCKS:
        packed = pack_sparse_conv(w, block=block)
        moved = np.zeros(packed.size + 64, np.uint8)[offset : offset + packed.size]
        moved[:] = packed
        room = np.zeros(x.size + 16, np.float32)[offset % 16 : offset % 16 + x.size].reshape(x.shape)
        room[:] = x
        assert np.array_equal(conv.run(moved, room, isa, w.shape, SAME), conv.run(packed, x, isa, w.shape, SAME))


def test_kernel_results_do_not_depend_on_the_instruction_set_where_products_are_fused(
    conv: ConvLibrary, isa: str
) -> None:
    if isa == "scalar":
        pytest.skip("sums of products are not fused")
    fused = runs_here({"avx2": "avx512", "neon-dotprod": "neon"}.get(isa, isa))
    x, w = values(1, 10, 13, 13), weight(24, 10, 3, 3)
    for block in BLOCKS:
        packed = pack_sparse_conv(w, block=block)
        y = conv.run(packed, x, isa, w.shape, SAME)
        assert np.array_equal(y, conv.run(packed, x, fused, w.shape, SAME))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_kernel_random_geometry_is_within_the_rounding_bound(conv: ConvLibrary, isa: str, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def pick(low: int, high: int, count: int = 2) -> tuple[int, ...]:
        return tuple(int(v) for v in rng.integers(low, high + 1, count))

    group, inputs, outputs = (int(v) for v in rng.integers(1, 12, 3))
    group = 1 + group % 3
    kernel, dilations, strides, pads = pick(1, 4), pick(1, 3), pick(1, 3), pick(0, 4, 4)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    sizes = tuple(max(1, int(rng.integers(1, 33)), reach[i] - pads[i] - pads[i + 2]) for i in range(2))
    steps = Steps(strides, dilations, pads)  # type: ignore[arg-type]
    block = int(rng.choice(BLOCKS))
    x, w = values(2, group * inputs, *sizes), weight(group * outputs, inputs, *kernel, density=float(rng.random()))
    out = steps.output(sizes, kernel)  # type: ignore[arg-type]
    extras = Extras(values(group * outputs), values(2, group * outputs, *out, seed=4), "relu")
    packed = pack_sparse_conv(w, group=group, block=block, k_block=int(rng.integers(0, 50)))
    padded = (bool(rng.random() < 0.5), bool(rng.random() < 0.5))
    check(conv.run(packed, x, isa, w.shape, steps, extras, padded), x, w, steps, group, extras)


@pytest.mark.skipif(platform.machine().lower() not in {"x86_64", "amd64"}, reason="instruction sets of x86-64")
@pytest.mark.parametrize(
    ("isa", "block", "side", "kernel", "steps", "padded", "wanted"),
    [
        ("avx512", 1, 56, 1, Steps(), (False, False), "avx512 direct 64 25 ahead"),
        ("avx512", 1, 14, 1, Steps(), (False, False), "avx512 gather 64 4"),
        ("avx512", 1, 14, 1, Steps(), BOTH, "avx512 direct 64 8"),
        ("avx512", 1, 32, 1, Steps(), (False, False), "avx512 gather 64 16"),
        ("avx512", 1, 32, 1, Steps(), BOTH, "avx512 direct 64 16 ahead"),
        ("avx512", 1, 14, 3, SAME, (False, False), "avx512 gather 64 4"),
        ("avx512", 1, 7, 3, SAME, (False, False), "avx512 shared 64 2"),
        ("avx512", 4, 7, 3, SAME, (False, False), "avx512 spaced 64 2"),
        ("avx512", 8, 7, 3, SAME, (False, False), "avx512 spaced 32 4"),
        ("avx512", 4, 7, 1, Steps(), (False, False), "avx512 masked 64 2"),
        ("avx512", 4, 7, 1, Steps(), BOTH, "avx512 direct 64 2"),
        ("avx512", 1, 15, 1, Steps((2, 2)), (False, False), "avx512 direct 64 2"),
        ("avx512vnni", 1, 7, 3, SAME, (False, False), "avx512 shared 64 2"),
        ("avx2", 1, 28, 3, SAME, (False, False), "avx2 gather 32 25"),
        ("avx2", 4, 28, 3, SAME, (False, False), "avx2 masked 16 25"),
        ("avx2", 8, 28, 3, SAME, (False, False), "avx2 masked 8 25"),
        ("scalar", 4, 28, 3, SAME, (False, False), "scalar gather 8 25"),
    ],
)
def test_choice_is_a_function_of_shape_format_and_instruction_set(
    conv: ConvLibrary,
    isa: str,
    block: int,
    side: int,
    kernel: int,
    steps: Steps,
    padded: tuple[bool, bool],
    wanted: str,
) -> None:
    packed = pack_sparse_conv(weight(256, 8, kernel, kernel), block=block)
    assert conv.choice(packed, isa, (1, side, side), steps, padded) == wanted
