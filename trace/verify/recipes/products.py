"""A matrix product under a recipe: its value in float64 from the operands that the engine used, and how far the order
of summation can move it.

Adding K terms in float32 in an order nobody told: each addition rounds a partial sum s by at most u |s|, on average
(uniform in the last place) by u |s| / sqrt(3). Terms t_k of mixed sign make s a random walk of size sqrt(sum t_k^2) to
the sum y: the error's standard deviation is about sigma = u sqrt(K/3) sqrt(y^2 + sum t_k^2) for a walk of ordinary
size. It is a normal number times the size of a walk, so SIGMAS must cover both tails: 13 is passed with a chance of
1e-9 per element (docs/budgets.md). Sums of one sign cannot wander, and SIGMAS_ONE_SIGN is the normal number's alone.
Higham (Accuracy and Stability, 2nd ed.) has the worst case gamma_K sum |t_k| in section 3.1, the sqrt(K) of independent
roundings in 2.8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ....engine.weights import Adapter
from ....quant import q16
from ....quant.tensor import dequantize, format_of, take, transposed
from ..parallel import each
from ..span import BFLOAT16, FLOAT16, FLOAT32, Array, Float, Span, hull, plus, times
from . import cuda_blocks
from .loaded import loaded
from .matrix import FileMatrix, group_sums
from .recipe import FLOAT32_RECIPE, Recipe
from .scaled import KINDS, held

SIGMAS, SIGMAS_ONE_SIGN = 13.0, 6.5


def summation(K: float | Array, size: Array, squares: Array, sigmas: float = SIGMAS, kept: Float = FLOAT32) -> Array:
    """How far a sum of K terms may be off, whose square is `size` and whose terms' squares sum to `squares`, if partial
    sums are kept in a format."""
    return sigmas * kept.u * np.sqrt(K / 3) * np.sqrt(size + squares)


@dataclass(frozen=True)
class Beside:
    """The product in float64, unrounded, of these rows of the same activations, by weights that are decoded anyway.

    parts: of each matrix, [rows, O] (filled as it goes); of none whose weights the recipe rounds.
    """

    rows: Sequence[int] | slice
    parts: list[Array] = field(default_factory=list)


def product(
    r: Recipe, x: Span, w: FileMatrix, rows: Sequence[int] | slice = slice(None), beside: Beside | None = None
) -> Span:
    """x W^T, [T, O], for x [T, I], before the result is rounded; or some rows of it. With what its adapters add."""
    y = plain_product(r, x, w, rows, None if w.adapters else beside)
    return adapted(r, y, of_product(x.shaped(lambda v: v[rows])), w.adapters) if w.adapters else y


Halves = Callable[[Recipe, Adapter], Span]


def of_product(x: Span) -> Halves:
    """up (down x), each step rounded."""

    def halves(r: Recipe, a: Adapter) -> Span:
        first = plain_product(r, x, FileMatrix(a.down)).map(r.result.round)
        y = plain_product(r, first, FileMatrix(a.up))
        if a.bias is not None:  # the sum may begin at it: each of its additions rounds a sum that is larger by as much
            more = summation(a.up.shape[1], 2 * np.square(a.bias), np.zeros(1))
            y = plus(Span(y.mid, y.lo - more, y.hi + more), Span.point(a.bias))
        return y.map(r.result.round)

    return halves


def of_rows(tokens: NDArray[np.integer]) -> Halves:
    """Rows of up [V, r] times down: an embedding's, whose halves PEFT rounds once."""

    def halves(r: Recipe, a: Adapter) -> Span:
        rows = Span.point(dequantize(take(a.up, tokens)))
        return plain_product(r, rows, FileMatrix(transposed(a.down))).map(r.result.round)

    return halves


def adapted(r: Recipe, y: Span, halves: Halves, adapters: Sequence[Adapter], looked_up: bool = False) -> Span:
    """What a matrix alone gives, and what adapters add to it. looked_up: the matrix is an embedding."""
    for i, a in enumerate(adapters):
        stored = y.map(r.result.round)
        # PEFT stores the plain product, and the sum when all adapters are in it; others each time.
        y = _with(r, hull(y, stored) if i else stored, halves, a, looked_up)
    return y


def _with(r: Recipe, y: Span, halves: Halves, a: Adapter, looked_up: bool) -> Span:
    """y + scale * up (down x), each step rounded: to float32, in which PEFT computes adapters whatever the model is of,
    or as an engine of 16 bits computes everything else."""
    sums = _sum(FLOAT32_RECIPE, y, halves, a, looked_up)
    if r.result is FLOAT32 and r.weights is None:
        return sums
    return hull(sums, _sum(replace(r, quantiser=None, requantised=None), y, halves, a, looked_up))


def _sum(r: Recipe, y: Span, halves: Halves, a: Adapter, looked_up: bool) -> Span:
    more = halves(r, a)
    if a.dora is None:
        return plus(y, more.map(lambda v: r.result.round(v * a.scale)))
    gain, less = (x if r.weights is None else x.map(r.weights.round) for x in _gain(a))
    more = times(more, gain).map(r.result.round).map(lambda v: r.result.round(v * a.scale))
    if looked_up:
        return plus(times(y, gain).map(r.result.round), more)
    return plus(y, plus(times(y, less).map(r.result.round), more).map(r.result.round))


def _gain(a: Adapter) -> tuple[Span, Span]:
    """DoRA's gain [1, O] as float32 may have it (docs/budgets.md), and that less 1."""
    own, both, added = a.dora.squares
    gain_O, rank = a.dora.gain(a.scale), a.down.shape[0]
    sums = SIGMAS_ONE_SIGN * np.sqrt(2 * max(a.down.shape[1], a.up.shape[0]) / 3) / 2
    longer = np.abs(a.scale) * np.sqrt(added / (own + a.scale * (2 * both + a.scale * added)))
    relative = FLOAT32.u * (6 + sums + longer * (3 + SIGMAS * rank / 3))
    gain = Span.around(gain_O[None], (gain_O * relative)[None])
    return gain, gain.map(lambda v: FLOAT32.round(v - 1))


def plain_product(
    r: Recipe, x: Span, w: FileMatrix, rows: Sequence[int] | slice = slice(None), beside: Beside | None = None
) -> Span:
    """The product with the matrix alone.

    Formats whose groups have minima are a difference, w = c - m. Kernels that never form w add up c x and m x apart,
    and the two sums may cancel to a small y; what each can be off counts then. (c x)^2 <= 2 (w x)^2 + 2 (m x)^2.
    """
    made = loaded(r.requantised, w)
    as_it_is = r.weights is None or r.operand(w.format) in KINDS
    beside_TI = x.mid[beside.rows] if beside is not None and as_it_is and made is None else x.mid[:0]
    if made is not None and made.both is not None:
        x = x.map(made.both.round)
    elif r.weights is not None and r.operand(w.format) == "F32":
        x = x.map(r.weights.round)  # a product has one format for both of its sides
    unsure_TB = None
    if r.operand(w.format) in KINDS:
        x = held(r.operand(w.format))(x)
        x_TI, extra_TB, radius_TI = x.mid, None, None if x.exact else x.radius
    elif r.quantiser in cuda_blocks.KINDS and r.operand(w.format).startswith("cuda"):
        held_TI, sums = cuda_blocks.of(r.quantiser, w.format, x)
        x_TI, radius_TI = held_TI.mid, held_TI.radius
        extra_TB, unsure_TB = (None, None) if sums is None else (sums.mid, sums.radius[rows])
    else:
        x_TI, extra_TB = operand(r, x.mid, w.format)
        radius_TI = None if x.exact else _moved(r, x, x_TI, w.format)
    x_TI = x_TI[rows]
    extra_TB, radius_TI = (None if v is None else v[rows] for v in (extra_TB, radius_TI))
    again = None if made is None else made.rows(w)
    square_TI = np.square(x_TI)
    rough_TI = square_TI.astype(np.float32)  # a bound needs no more; should it overflow, it allows nothing
    sums_TB, square_sums_TB = x_TI[:, :0], x_TI[:, :0]
    if w.facts.minimum is not None or extra_TB is not None:
        sums_TB, square_sums_TB = (group_sums(v, w.facts.group) for v in (x_TI, square_TI))

    def part(cut: tuple[int, int]) -> tuple[Array, Array, Array]:
        start, stop = cut
        unsure_OI = None
        if again is not None:
            held_OI = again(start, stop)
            w_OI, unsure_OI = held_OI.mid, None if held_OI.exact else held_OI.radius
            slab = w_OI.astype(np.float32)
        else:
            slab = w.rows(start, stop)
            w_OI = slab.astype(np.float64) if as_it_is or r.weights is None else r.weights.round(slab)
        y_TO = x_TI @ w_OI.T
        square_OI = np.square(slab)
        squares_TO, size_TO = (rough_TI @ square_OI.T).astype(np.float64), np.square(y_TO)
        m_OB = w.minima(start, stop) if made is None else None
        if m_OB is None and extra_TB is not None:  # an offset, which is the same in each group but for its scale
            m_OB = w.constants(start, stop)[:, :: w.facts.group].astype(np.float64)
        if m_OB is not None:
            apart_TO = sums_TB @ m_OB.T
            size_TO = np.square(y_TO - apart_TO) + np.square(apart_TO)
            squares_TO = 2 * squares_TO + 3 * (square_sums_TB @ np.square(m_OB).T)
            if extra_TB is not None:
                y_TO += extra_TB @ m_OB.T
        radius_TO = summation(w.shape[1], size_TO, squares_TO, kept=r.sums)
        if unsure_TB is not None and m_OB is not None:
            radius_TO += unsure_TB @ np.abs(m_OB).T
        if radius_TI is not None:
            radius_TO += 3 * np.sqrt(np.square(radius_TI) @ square_OI.T)
        if unsure_OI is not None:
            radius_TO += np.abs(x_TI) @ unsure_OI.T
        return y_TO, radius_TO, beside_TI @ w_OI.T

    y, radius, plain = (np.concatenate(parts, 1) for parts in zip(*each(part, w.cuts(len(x_TI))), strict=True))
    if beside is not None and len(beside_TI):
        beside.parts.append(plain)
    span = Span(y, y - radius, np.add(y, radius, out=radius))
    return span if made is None or made.both is None else span.map(made.both.round)


def in_float64(x_TI: Array, w: FileMatrix) -> Array:
    """x W^T, [T, O], with the file's weights in float64: `plain_product`'s middle where nothing is rounded first."""
    return np.concatenate(each(lambda cut: x_TI @ w.rows(*cut).astype(np.float64).T, w.cuts(len(x_TI))), 1)


def operand(r: Recipe, x_TI: Array, weight_format: str) -> tuple[Array, Array | None]:
    """The activations as the product uses them; for Q8_1 also what its separately rounded block sums add, per block."""
    kind = r.operand(weight_format)
    if kind in ("F16", "BF16"):
        return (FLOAT16 if kind == "F16" else BFLOAT16).round(x_TI), None
    if kind == "F32":
        return x_TI, None
    if kind in KINDS:
        return KINDS[kind].of(x_TI).mid, None
    if kind.startswith("cuda"):
        held, apart = cuda_blocks.of(str(r.quantiser), weight_format, Span.point(x_TI))
        return held.mid, None if apart is None else apart.mid
    T, I = x_TI.shape
    if kind in q16.BLOCKS:
        return q16.rounded(_in_blocks(x_TI, q16.BLOCKS[kind])).reshape(T, -1)[:, :I], None
    f = format_of(kind)
    x = _in_blocks(x_TI, f.block)
    assert f.encode is not None
    blocks = f.encode(x)
    b = blocks.view(f.struct)[:, 0]
    if kind != "Q8_K" and r.quantiser not in ("reference", "sumless"):
        requantise(b, x, r.quantiser == "x86")
    values = f.decode(blocks).astype(np.float64).reshape(T, -1)[:, :I]
    if kind != "Q8_1":
        return values, None
    sums = b["s"].astype(np.float64) - b["d"].astype(np.float64) * b["qs"].sum(axis=1, dtype=np.int64)
    return values, sums.reshape(T, -1)


def _in_blocks(x_TI: Array, block: int) -> NDArray[np.float32]:
    """[T * blocks, block]: each row padded with zeros to whole blocks, as APR pads those of weights."""
    x = np.pad(x_TI, ((0, 0), (0, -x_TI.shape[1] % block)))
    return np.ascontiguousarray(x, np.float32).reshape(-1, block)


def requantise(b: NDArray[np.void], v: NDArray[np.float32], x86: bool) -> None:
    """ggml's vector routines (arch/x86/quants.c, arch/arm/quants.c) where they part from its reference: see Recipe.

    v: the activations [blocks, values of one].
    """
    amax = np.abs(v).max(axis=1)
    d = amax / np.float32(127)
    top, bottom = (np.float32(127), amax) if x86 else (np.float32(1), d)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        factor = np.where(bottom > 0, top / bottom, np.float32(0))
        b["qs"] = np.clip(np.rint(v * factor[:, None]), -127, 127)
    if "s" in (b.dtype.names or ()):
        b["s"] = d * b["qs"].sum(axis=1, dtype=np.int64).astype(np.float32)


def _moved(r: Recipe, x: Span, x_TI: Array, weight_format: str) -> Array:
    """How far the operand moves if x moves within its span; a quantiser's code jumps by a whole step."""
    ends = (operand(r, end, weight_format)[0] for end in (x.lo, x.hi))
    return np.maximum.reduce([np.abs(end - x_TI) for end in ends])
