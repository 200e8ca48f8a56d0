"""Quantised weights that are packed otherwise than they are read; a tile of a product that has another scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ....quant.codes import rounded, scales_of, unpack
from ..formulas import PRODUCTS, flat, input_of
from ..recipes import operations
from ..recipes.matrix import FileMatrix
from ..site import Site
from ..span import FLOAT32, Array, Span
from .attention import Indices
from .hypothesis import Hypothesis, Several, entering
from .masks import dumped
from .products import MOST, through

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

Slab = NDArray[np.float32]
Parts = tuple[Slab, Slab, Slab]  # of some rows: codes, what a step of each is worth, the code that stands for 0
AWQ = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # the order of eight numbers in a word of AWQ
ORDERS: tuple[tuple[str, Indices], ...] = (
    ("in AWQ's order, which is not undone", AWQ),
    ("in AWQ's order, and are in none", np.argsort(AWQ)),
    ("from the other end of a word", np.arange(8)[::-1]),
    ("as the halves of eight, and stand one by one", np.arange(8).reshape(2, 4).T.ravel()),
)
SIDES = (16, 32, 64)  # codes of which two halves share bytes
TILES = (8, 16, 32, 64, 128, 256)
TELL = 4  # positions from which each output may have a factor of its own


def parts(m: FileMatrix, start: int, stop: int) -> Parts:
    """Rows of a matrix by what they are made of, as its file has them or as they follow from what decodes."""
    if whole_zeros(m):
        f, (_, bits, _, scales) = m.facts, m.format.split("/")
        b = m.rebuilt(lambda b: b, start, stop).tensor.data.view(f.struct).reshape(stop - start, -1)
        groups: list[Slab] = [scales_of(b["scale"], scales), b["zero"].astype(np.float32)]
        step, zero = (np.repeat(v, f.block, 1)[:, : m.shape[1]] for v in groups)
        code: Slab = unpack(b["qs"].reshape(stop - start, -1), int(bits)).astype(np.float32)
        return code[:, : m.shape[1]], step, zero
    step_OI, least = m.steps(start, stop), m.constants(start, stop)
    assert step_OI is not None
    there = step_OI != 0
    code, zero = (
        np.divide(v, step_OI, out=np.zeros_like(v), where=there) for v in (m.rows(start, stop) - least, least)
    )
    return code, step_OI, -zero


def whole_zeros(m: FileMatrix) -> bool:
    """Whether groups have whole zero points; a weight is then rounded to the type of its scale (quant/int.py)."""
    minimum = m.facts.minimum
    return minimum is not None and m.facts.struct[minimum].kind == "i"


def remade(m: FileMatrix, make: Callable[[Parts], Parts]) -> FileMatrix:
    """The matrix of other parts. Eight rows that begin at a multiple of 8 are always made together."""

    def change(start: int, w: Slab) -> Slab:
        first, last = start // 8 * 8, min(-(-(start + len(w)) // 8) * 8, m.shape[0])
        code, step, zero = (v[start - first :][: len(w)] for v in make(parts(m, first, last)))
        made = np.asarray((code - zero) * step, np.float32)
        return rounded(made, m.format.rpartition("/")[2]) if whole_zeros(m) else made

    return replace(m, change=change)


def by_eights(order: Indices, axis: int, x: Slab) -> Slab:
    """Each eight rows or columns in another order."""
    if x.shape[axis] % 8:
        return x
    return np.take(x, (np.arange(x.shape[axis]).reshape(-1, 8)[:, order]).ravel(), axis)


def repacked(m: FileMatrix) -> Iterator[tuple[str, FileMatrix]]:
    O, I = m.shape
    for words, order in ORDERS:
        rows, columns = partial(by_eights, order, 0), partial(by_eights, order, 1)
        if O % 8 == 0:
            yield f"zero points of eight outputs are read {words}", remade(m, partial(changed, 2, rows))
            yield f"codes of eight outputs are read {words}", remade(m, partial(changed, 0, rows))
            yield f"scales of eight outputs are read {words}", remade(m, partial(changed, 1, rows))
        if I % 8 == 0:
            yield f"codes of eight inputs are read {words}", remade(m, partial(changed, 0, columns))
    for size in SIDES:
        if I % size == 0:
            order = np.arange(size).reshape(2, -1).T.ravel()
            for words, which in (
                ("as halves, and stand one by one", np.argsort(order)),
                ("one by one, and stand as halves", order),
            ):
                at = (np.arange(I).reshape(-1, size)[:, which]).ravel()
                yield (
                    f"codes of {size} inputs are read {words}",
                    remade(m, partial(changed, 0, partial(columns_at, at))),
                )
    group = m.facts.group
    for ranks in (2, 4, 8):
        if I % (ranks * group) == 0:
            own = np.arange(I) % (I // ranks)  # each rank's inputs, of the groups that it takes for its own
            there = partial(columns_at, own)
            yield (
                f"each of {ranks} ranks counts the groups of its inputs from the first",
                remade(m, lambda p, there=there: changed(1, there, changed(2, there, p))),  # type: ignore[misc]
            )


def changed(which: int, change: Callable[[Slab], Slab], p: Parts) -> Parts:
    """The parts with one of them changed."""
    code, step, zero = (change(v) if i == which else v for i, v in enumerate(p))
    return code, step, zero


def columns_at(at: Indices, x: Slab) -> Slab:
    return x[:, at]


@hypothesis("packing", "the quantised weights are packed otherwise than they are read: {}", *PRODUCTS)
def packing(s: Site) -> Several:
    matrices = s.matrices()
    ways: dict[str, list[FileMatrix]] = {}
    for i, m in enumerate(matrices):
        if m.shape[0] * m.shape[1] > MOST:
            return
        if m.facts.block > 1 and m.steps(0, 1) is not None:
            for name, wrong in repacked(m):
                ways.setdefault(name, list(matrices))[i] = wrong
    for name, wrong_matrices in ways.items():
        yield name, through(s, matrices=wrong_matrices)


@hypothesis("product-tile", "inputs {}", *PRODUCTS)
def product_tile(s: Site) -> Several:
    """A tile of the inputs counts a multiple: its scale is another, or is not applied. The factor that fits is one of
    the tile, or, where there are positions enough, one of each output."""
    got, matrices = dumped(s), s.matrices()
    size = sum(m.shape[0] * m.shape[1] for m in matrices)
    if got is None or size > MOST or not np.isfinite(got).all() or any(m.adapters for m in matrices):
        return
    span, x_TI = s.compute(), flat(input_of(s)).mid
    if got.shape != span.mid.shape or span.mid.ndim != 2 or len(got) != len(x_TI):
        return
    w_OI = operations.weight(s.recipe, np.concatenate([m.rows(0, m.shape[0]) for m in matrices]).astype(np.float64))
    error_TO, I = got - span.mid, w_OI.shape[1]
    noise = float(np.square(span.radius).mean()) + (s.recipe.result.u * float(np.abs(got).mean())) ** 2
    best: tuple[float, int, int, Array] | None = None
    for tile in TILES:
        for start in range(0, I, tile) if tile < I else ():
            part = x_TI[:, start : start + tile] @ w_OI[:, start : start + tile].T
            square_O = np.square(part).sum(0)
            cross_O = (error_TO * part).sum(0)
            one = cross_O.sum() / max(float(square_O.sum()), np.finfo(float).tiny)
            each = np.divide(cross_O, square_O, out=np.zeros_like(cross_O), where=square_O > 0)
            for more_O in (np.full(len(each), one), each)[: 1 + (len(got) >= TELL)]:
                left = float(np.square(error_TO - more_O * part).sum())
                if best is None or left < 0.9 * best[0]:
                    best = left, start, tile, more_O
    if best is None:
        return
    _, start, tile, more_O = best
    part = x_TI[:, start : start + tile] @ w_OI[:, start : start + tile].T
    sure_O = 4 * np.sqrt(noise / np.maximum(np.square(part).sum(0), np.finfo(float).tiny))
    sizes = np.abs(x_TI[:, start : start + tile]) @ np.abs(w_OI[:, start : start + tile]).T
    if 2 * np.count_nonzero(np.abs(more_O) > sure_O) <= len(more_O):
        return  # a few outputs have places of their own (locate.py)
    moved = more_O * part
    slack = np.minimum(sure_O, 1) * np.abs(part) + 8 * operations.U * (1 + np.abs(more_O)) * sizes
    if s.recipe.result is not FLOAT32:
        slack = slack + s.recipe.result.u * np.abs(span.mid + moved)
    if np.abs(more_O).max() > 1e-3:
        low, high = f"{1 + more_O.min():.3g}", f"{1 + more_O.max():.3g}"
        said = f"{low} times" if low == high else f"{low} to {high} times, by output"
        yield (
            f"{start} to {min(start + tile, I) - 1} count {said}",
            Span(span.mid + moved, span.lo + moved - slack, span.hi + moved + slack),
        )
