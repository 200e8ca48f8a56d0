"""engine diff --weights: what a difference is. Each guess is a way to read A; it is said only once B was compared with
it, value by value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from ...quant.rms import ratio
from ...quant.tensor import DECODED, QTensor, dequantize, row_slabs, take
from ..config import Config

Array = NDArray[np.float32]
Reader = Callable[[int, int], Array]  # rows start..stop of what B is compared with

WHOLE = 1 << 26  # values of a transpose held at a time
NOISE = 0.3  # the largest relative RMS that can be two formats of the same values
BETTER = 4  # times nearer than A as it is, or the guess explains nothing
ALIKE = 0.9  # correlation above which two tensors are the same, but for noise
SAMPLE = 8, 512  # rows and columns by which other tensors are looked for


@dataclass(frozen=True, slots=True)
class Distance:
    """B from what it is compared with, A, in float64; a2, b2, ab: the sums of a^2, b^2 and a b of each row [O].

    unlike: values that differ; incomparable: of those, NaN or infinite ones. alike: rows without a difference.
    """

    largest: float
    square: float
    unlike: int
    incomparable: int
    alike: int
    a2: NDArray[np.float64]
    b2: NDArray[np.float64]
    ab: NDArray[np.float64]

    @property
    def relative(self) -> float:
        return sqrt(ratio(self.square, float(self.a2.sum())))

    @property
    def correlation(self) -> float:
        size = sqrt(float(self.a2.sum()) * float(self.b2.sum()))
        return float(self.ab.sum()) / size if size else 0.0

    def left(self, by_row: bool) -> float:
        """Relative RMS that the best factor would leave, of all values or of each row; as good as cancellation lets."""
        a2, b2, ab = ((s if by_row else s.sum(keepdims=True)) for s in (self.a2, self.b2, self.ab))
        rest = b2 - np.square(ab) / np.maximum(a2, 1e-300)
        return sqrt(max(float(rest.sum()), 0.0) / max(float(self.b2.sum()), 1e-300))


@dataclass(frozen=True, slots=True)
class Cause:
    """What B holds, in words. other: the tensor of A that it is, if it is another one's. slab: values to read at a
    time."""

    sentence: str
    read: Reader
    other: str | None = None
    slab: int = DECODED


def rows_of(w: QTensor) -> Reader:
    return lambda start, stop: dequantize(w, start, stop)


def distance(read: Reader, y: QTensor, slab: int = DECODED) -> Distance:
    """Compares B, a slab of rows at a time, with what `read` gives."""
    O = y.shape[0]
    a2, b2, ab = np.zeros((3, O))
    largest = square = 0.0
    unlike = incomparable = alike = 0
    for start, stop in row_slabs(y, slab):
        u, v = (x.reshape(stop - start, -1) for x in (read(start, stop), dequantize(y, start, stop)))
        other = ~((u == v) | (np.isnan(u) & np.isnan(v)))
        p, q = (np.where(np.isfinite(x), x, 0).astype(np.float64) for x in (u, v))
        a2[start:stop], b2[start:stop], ab[start:stop] = (p * p).sum(1), (q * q).sum(1), (p * q).sum(1)
        alike += int(np.count_nonzero(~other.any(1)))
        if other.any():
            unlike += int(np.count_nonzero(other))
            finite = np.isfinite(u) & np.isfinite(v)
            incomparable += int(np.count_nonzero(other & ~finite))
            gap = np.abs(p - q)[other & finite]
            largest = max(largest, float(gap.max(initial=0)))
            square += float(np.sum(np.square(gap)))
    return Distance(largest, square, unlike, incomparable, alike, a2, b2, ab)


def cause_of(name: str, x: QTensor, y: QTensor, raw: Distance, c: Config, all_a: Others) -> tuple[Cause, float] | None:
    """The first guess that B is exactly, else the nearest that B is but for noise; with the relative RMS that is left.

    raw: B's distance from A as it is.
    """
    best: tuple[Cause, float] | None = None
    if raw.incomparable:
        return None
    for cause in guesses(name, x, y, raw, c, all_a):
        found = distance(cause.read, y, cause.slab)
        left = found.relative if not found.incomparable else inf
        if not found.unlike:
            return cause, 0.0
        if left <= NOISE and left * BETTER <= raw.relative and (best is None or left < best[1]):
            best = cause, left
    return best


def guesses(name: str, x: QTensor, y: QTensor, raw: Distance, c: Config, all_a: Others) -> Iterator[Cause]:
    """What B may be, the likeliest first. Those that cost a pass only where the figures leave room for them."""
    yield from scaled(x, raw)
    apart = raw.correlation < ALIKE or len(x.shape) == 1  # all norms are near 1, and cheap
    if apart:
        yield from interleaved(name, x, c)
    if apart and len(x.shape) == 2 and x.shape[0] == x.shape[1]:
        yield Cause("the transpose of A's", transposed(x), slab=WHOLE)
    if apart or raw.alike:
        yield from permuted(x, y, c.head_dim)
    if apart:
        yield from all_a.like(name, y)


def scaled(x: QTensor, raw: Distance) -> Iterator[Cause]:
    """One factor for all values, or one for each row."""
    read = rows_of(x)
    if raw.left(by_row=False) * BETTER <= raw.relative:
        factor = float(raw.ab.sum() / max(float(raw.a2.sum()), 1e-300))
        said = "A's negated" if abs(factor + 1) < 1e-6 else f"A's times {factor:.9g}"
        one = np.float64(-1 if abs(factor + 1) < 1e-6 else factor)
        yield Cause(said, lambda start, stop: (read(start, stop) * one).astype(np.float32))
    elif raw.left(by_row=True) * BETTER <= raw.relative:
        factor_O = raw.ab / np.maximum(raw.a2, 1e-300)
        shape = (-1,) + (1,) * (len(x.shape) - 1)
        span = f"{factor_O.min():.6g} to {factor_O.max():.6g}"
        if len(x.shape) > 1:
            yield Cause(
                f"A's with each row times a factor of its own, {span}",
                lambda start, stop: (read(start, stop) * factor_O[start:stop].reshape(shape)).astype(np.float32),
            )


def interleaved(name: str, x: QTensor, c: Config) -> Iterator[Cause]:
    """Rows of Q and K as RoPE of adjacent pairs wants them (Llama's own and its GGUF files), and back."""
    of = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
    heads = next((n for part, n in of.items() if part in name), 0)
    if not heads or x.shape[0] != heads * c.head_dim:
        return
    row_O = np.arange(x.shape[0])
    pairs, halves = ((heads, *split) for split in ((2, c.head_dim // 2), (c.head_dim // 2, 2)))
    yield Cause("A's with the halves of each head interleaved, as Llama's RoPE has them",
                gathered(x, row_O.reshape(pairs).swapaxes(1, 2).reshape(-1)))  # fmt: skip
    yield Cause("A's with the pairs of each head taken apart: A is interleaved, as Llama's RoPE has it",
                gathered(x, row_O.reshape(halves).swapaxes(1, 2).reshape(-1)))  # fmt: skip


def gathered(x: QTensor, row_O: NDArray[np.intp]) -> Reader:
    """A's rows in another order."""
    if len(x.shape) == 1:
        whole = dequantize(x)
        return lambda start, stop: whole[row_O[start:stop]]
    return lambda start, stop: dequantize(take(x, row_O[start:stop]))


def transposed(x: QTensor) -> Reader:
    """A's columns as rows; A is decoded once for each call."""

    def read(start: int, stop: int) -> Array:
        columns = np.empty((stop - start, x.shape[0]), np.float32)
        for first, last in row_slabs(x):
            columns[:, first:last] = dequantize(x, first, last)[:, start:stop].T
        return columns

    return read


# -- rows and columns in another order --------------------------------------------------------------------------------


def permuted(x: QTensor, y: QTensor, head: int) -> Iterator[Cause]:
    """Rows, or columns, that are A's in another order, found by a hash of each."""
    (rows_a, columns_a), (rows_b, columns_b) = hashes(x), hashes(y)
    row_O = order_of(rows_a, rows_b)
    if row_O is not None:
        yield Cause(f"A's with {spelled_order(row_O, head, 'row')}", gathered(x, row_O))
    column_I = None if len(x.shape) == 1 else order_of(columns_a, columns_b)
    if column_I is not None:
        read = rows_of(x)
        said = spelled_order(column_I, head, "column")
        yield Cause(f"A's with {said}", lambda start, stop: read(start, stop)[:, column_I])


def hashes(w: QTensor) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """A hash of the values of each row and each column: sums of bits times random odd numbers, modulo 2^64."""
    O, I = w.shape[0], prod(w.shape[1:])
    of_row, of_column = (np.random.default_rng(n).integers(0, 1 << 63, n, np.uint64) * 2 + 1 for n in (O, I))
    row_O, column_I = np.empty(O, np.uint64), np.zeros(I, np.uint64)
    for start, stop in row_slabs(w, DECODED // 4):
        values = dequantize(w, start, stop).reshape(-1, I) + np.float32(0)  # -0 is 0
        bits = values.view(np.uint32).astype(np.uint64)
        row_O[start:stop] = (bits * of_column).sum(1, dtype=np.uint64)
        column_I += (bits * of_row[start:stop, None]).sum(0, dtype=np.uint64)
    return row_O, column_I


def order_of(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.intp] | None:
    """Which of a each of b is; None if the two are not the same in another order, or in the same."""
    by_a, by_b = np.argsort(a, kind="stable"), np.argsort(b, kind="stable")
    if not np.array_equal(a[by_a], b[by_b]) or np.array_equal(a, b):
        return None
    order = np.empty(len(a), np.intp)
    order[by_b] = by_a
    return order


def spelled_order(order: NDArray[np.intp], head: int, what: str) -> str:
    """`rows 3 and 7 exchanged`, `the heads in the order 1 0`, `its rows in another order (500 of 896 moved)`."""
    moved = np.flatnonzero(order != np.arange(len(order)))
    if len(moved) == 2:
        return f"{what}s {moved[0]} and {moved[1]} exchanged"
    if np.array_equal(order, np.arange(len(order))[::-1]):
        return f"its {what}s in reverse"
    half = len(order) // 2
    if len(order) % 2 == 0 and np.array_equal(order, np.roll(np.arange(len(order)), half)):
        return f"the two halves of its {what}s exchanged"
    if len(order) % head == 0 and head > 1:
        first = order[::head]
        if np.array_equal(order, np.repeat(first, head) + np.tile(np.arange(head), len(first))) and not np.any(
            first % head
        ):
            shown = " ".join(map(str, (first // head)[:32].tolist())) + " ..." * (len(first) > 32)
            return f"its heads of {head} {what}s in the order {shown}"
    return f"its {what}s in another order ({len(moved)} of {len(order)} moved)"


# -- another tensor of the same file ----------------------------------------------------------------------------------


class Others:
    """A's tensors, to be found by a sample of their values."""

    def __init__(self, tensors: Mapping[str, QTensor]) -> None:
        self.tensors = tensors
        self.samples: dict[tuple[int, ...], dict[str, NDArray[np.float64]]] = {}

    def like(self, name: str, y: QTensor) -> Iterator[Cause]:
        """Those of y's shape whose sample correlates with y's, the best first."""
        mine = sample(y)
        if not mine.any():  # one value throughout, or not finite
            return
        if y.shape not in self.samples:
            self.samples[y.shape] = {n: sample(w) for n, w in self.tensors.items() if w.shape == y.shape}
        found = {n: float(mine @ other) for n, other in self.samples[y.shape].items() if n != name}
        for other in sorted((n for n in found if found[n] > ALIKE), key=lambda n: -found[n])[:3]:
            yield Cause(f"A's {other}", rows_of(self.tensors[other]), other)


def sample(w: QTensor) -> NDArray[np.float64]:
    """Some values from all over, less their mean and of length 1; zeros where that says nothing."""
    rows, columns = SAMPLE
    which = np.unique(np.linspace(0, w.shape[0] - 1, rows if len(w.shape) > 1 else rows * columns).astype(np.int64))
    if len(w.shape) > 1:
        parts = [dequantize(w, int(r), int(r) + 1).reshape(-1)[:columns] for r in which]
        x = np.concatenate(parts).astype(np.float64)
    else:
        x = dequantize(w)[which].astype(np.float64)
    x -= x.mean()
    size = float(np.linalg.norm(x))
    return x / size if size and isfinite(size) else np.zeros_like(x)
