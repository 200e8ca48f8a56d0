"""Where in a tensor the unexplained elements sit: positions, heads, channels; and for a matrix product, which block
of which row of the weights would explain them.

A wrong block b of row o changes y[t, o] by sum_i dw_i x[t, i] over the block. If one number of the block is wrong (a
scale, a minimum, a single weight), that is a multiple of what this number contributes, the same at every position: a
few positions decide. If dw has no known direction, the errors of the row have covariance proportional to X_b X_b^T, X_b
being the block's columns of x: each block's marginal likelihood (dw ~ N(0, s^2), s fitted) says how well it explains
them, and it takes some tens of positions to decide. One position decides nothing: then only the row can be named.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..stages import by_name
from .finding import Axis, Picture, Where, WrongNumber, WrongRow
from .fit import outside
from .formulas import PRODUCTS, flat, input_of
from .recipes.matrix import FileMatrix
from .recipes.products import operand
from .samples import sampled
from .site import Site
from .span import Array, Span

PIXELS = (48, 112)
MOST = 8  # rows, channels or heads named
DECIDE = 4  # positions that tell one of thousands of weights from the others
AXES = {"T": "positions", "N": "heads", "K": "kv heads", "H": "channels", "D": "channels", "F": "channels",
        "E": "channels", "V": "tokens", "S": "keys"}  # fmt: skip


def locate(site: Site, got: NDArray[np.float32], span: Span) -> Where:
    """Which indices of each axis hold unexplained elements; of a matrix product that is wrong in few rows also which
    weights would explain them.
    """
    bad = outside(got, span)
    letters = by_name(site.stage).letters
    axes: dict[str, Axis] = {}
    for axis, letter in enumerate(letters):
        others = tuple(i for i in range(bad.ndim) if i != axis)
        hit = np.flatnonzero(bad.any(others))
        first = hit[:MOST].tolist()
        which = [site.pos[i] for i in first] if letter == "T" and len(site.pos) == bad.shape[axis] else first
        axes[AXES[letter]] = Axis(len(hit), bad.shape[axis], tuple(which))
    with np.errstate(invalid="ignore"):
        error = np.nan_to_num(np.abs(np.asarray(got, np.float64) - span.mid), nan=np.inf)
    worst = np.unravel_index(int(error.argmax()), error.shape)
    return Where(
        outside=int(bad.sum()),
        of=int(bad.size),
        axes=axes,
        worst={AXES[n].rstrip("s"): int(i) for n, i in zip(letters, worst, strict=True)},
        picture=picture(error, span, bad, letters),
        rows=wrong_rows(site, got, span, bad) if site.stage in PRODUCTS and bad.any() else None,
        samples=sampled(got, span, error, letters),
    )


def picture(error: Array, span: Span, bad: NDArray[np.bool_], letters: tuple[str, ...]) -> Picture:
    """The error over what is allowed, as powers of ten, in at most PIXELS cells: positions down, all else across.

    Of the elements that share a cell, the worst. Inside its span an element counts 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(bad, np.log10(np.maximum(error / np.maximum(span.radius, 1e-300), 10)), 0)
    ratio = np.clip(np.nan_to_num(ratio, posinf=12), 0, 12)
    if letters == ("N", "T", "S"):
        ratio, letters = ratio.swapaxes(0, 1), ("T", "N", "S")
    flat_TC = ratio.reshape(len(ratio), -1) if len(letters) > 1 else ratio[None]
    cells = np.maximum.reduceat(flat_TC, cuts(flat_TC.shape[0], PIXELS[0]), axis=0)
    cells = np.maximum.reduceat(cells, cuts(flat_TC.shape[1], PIXELS[1]), axis=1)
    return Picture(letters, ratio.shape, tuple(tuple(row) for row in cells.round(1).tolist()))


def cuts(n: int, most: int) -> NDArray[np.intp]:
    """Where to begin each of at most `most` runs of n indices."""
    return np.unique(np.arange(min(n, most)) * n // min(n, most))


def wrong_rows(site: Site, got: NDArray[np.float32], span: Span, bad: NDArray[np.bool_]) -> tuple[WrongRow, ...]:
    """The likeliest block of each wrong row, if few rows are wrong."""
    rows = np.flatnonzero(np.atleast_2d(bad).any(0))
    if len(rows) > MOST:
        return ()
    error_TO = np.atleast_2d(np.asarray(got, np.float64) - span.mid)
    if not np.isfinite(error_TO).all():
        return ()
    named, first = [], 0
    x = flat(input_of(site)).mid
    for m in site.matrices():
        mine = rows[(rows >= first) & (rows < first + m.shape[0])]
        if len(mine):
            x_TI, _ = operand(site.recipe, x, m.format)
            for o in mine.tolist():
                error_T, allowed_T = error_TO[:, o], np.atleast_2d(span.radius)[:, o]
                named.append(located(error_T, x_TI, m, o - first, allowed_T))
        first += m.shape[0]
    return tuple(named)


def located(error_T: Array, x_TI: Array, m: FileMatrix, row: int, allowed_T: Array) -> WrongRow:
    """What of a row is wrong: one number of one block, or else the likeliest block."""
    size = max(32, m.facts.block)
    number = one_number(error_T, x_TI, m, row, size, allowed_T)
    if number is None:
        block, confidence, likely = likeliest(error_T, x_TI, size)
    else:
        block, confidence = number.columns[0] // size, 1.0
        likely = tuple(float(b == block) for b in range(x_TI.shape[1] // size))
    return WrongRow(row, m.tensor.name, m.format, size, block, confidence, likely, number)


def one_number(error_T: Array, x_TI: Array, m: FileMatrix, row: int, size: int, allowed_T: Array) -> WrongNumber | None:
    """The one number of the row (a block's scale, a group's, a minimum, a weight) that makes the error of each position
    if it is wrong; None for none or several."""
    T = len(error_T)
    if T == 1 or x_TI.shape[1] % size:
        return None
    # A block's scales are halves: a scale that is wrong by a factor rounds that factor by 2^-11.
    room_T = np.maximum(allowed_T, 2.0**-11 * np.abs(error_T).max() if T > 2 else 0)
    for what, width, share_TP in shares(x_TI, m, row, size):
        if what == "weight" and T < DECIDE:
            break
        times_P = (error_T @ share_TP) / np.maximum(np.square(share_TP).sum(0), 1e-300)
        good = np.flatnonzero((np.abs(error_T[:, None] - share_TP * times_P) <= room_T[:, None]).all(0))
        if len(good) == 1:
            start, times = int(good[0]) * width, float(times_P[good[0]])
            columns = start, start + width - 1
            factor, change = (None, times) if what == "weight" else (1 + times, None)
            return WrongNumber(what, columns, factor, change)
    return None


def shares(x_TI: Array, m: FileMatrix, row: int, size: int) -> Iterator[tuple[str, int, Array]]:
    """(what, columns of each, [T, P]): what each part of a row adds to its sum, by the number that it hangs on; the
    fewest numbers first."""

    def parts(w_I: Array, width: int) -> Array:
        return (x_TI * w_I).reshape(len(x_TI), -1, width).sum(-1)

    w_I = m.rows(row, row + 1)[0].astype(np.float64)
    yield "block", size, parts(w_I, size)
    if m.facts.constants:
        constants_I = m.constants(row, row + 1)[0].astype(np.float64)
        group, minima = m.facts.group, m.facts.minimum is not None
        if minima:
            yield "scale", size, parts(w_I - constants_I, size)
            yield "minimum", size, parts(constants_I, size)
        if group < size:
            yield "group", group, parts(w_I, group)
        if group < size and minima:
            yield "group's scale", group, parts(w_I - constants_I, group)
            yield "group's minimum", group, parts(constants_I, group)
    yield "weight", 1, x_TI


def likeliest(error_T: Array, x_TI: Array, size: int) -> tuple[int | None, float, tuple[float, ...]]:
    """The block of `size` inputs that explains the errors of one row best (None: one position cannot say), its share of
    the likelihood, and each one's.
    """
    T, I = x_TI.shape
    starts = range(0, I, size)
    if T == 1 and len(starts) > 1:
        return None, 0.0, (1 / len(starts),) * len(starts)
    score = np.array([likelihood(error_T, x_TI[:, start : start + size]) for start in starts])
    share = np.exp(score - score.max())
    share /= share.sum()
    best = int(share.argmax())
    return best, float(share[best]), tuple(share.round(3).tolist())


def likelihood(error_T: Array, x_Tb: Array) -> float:
    """log of the density of the errors if dw ~ N(0, s^2), at the s that fits best."""
    size_T = np.sqrt(np.square(x_Tb).sum(1)) + 1e-300
    gram = x_Tb @ x_Tb.T / np.outer(size_T, size_T) + 1e-9 * np.eye(len(x_Tb))
    unit_T = error_T / size_T
    _, logdet = np.linalg.slogdet(gram)
    fit = float(unit_T @ np.linalg.solve(gram, unit_T)) / len(unit_T)
    return float(-0.5 * len(unit_T) * np.log(max(fit, 1e-300)) - 0.5 * logdet - np.log(size_T).sum())
