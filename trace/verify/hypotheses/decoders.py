"""Weights that are decoded wrongly: codes, scales and minima of a block taken from other bits, or counted otherwise.

Codes that are read by another order of bits (bits.py) are put back where the right decoder looks for them: what that
decodes is what the engine has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ....engine.weights import plain
from ....quant.format import Format
from ....quant.q4_k import pack_scales, unpack_scales
from ....quant.tensor import format_of, take
from ..formulas import PRODUCTS, flat, input_of
from ..recipes import operations
from ..recipes.matrix import Blocks, FileMatrix, cleared
from ..site import Site
from ..span import Span
from .bits import Bits, code_bits, codes_of, moved, orders, put_codes
from .hypothesis import Hypothesis, Several, entering
from .products import COLUMNS, MOST, NOTHING, glimpsed, through

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

Way = tuple[str, Callable[[FileMatrix], FileMatrix]]  # what is wrong, in words, and a matrix as it is decoded then

SHIFTED = (-4, -2, -1, 1, 2)  # bytes that codes are looked for too far
COUNTED = {0.125: "an eighth", 0.25: "a quarter", 0.5: "half", 2.0: "twice"}  # of what the upper bits are worth


# -- a block, decoded otherwise ---------------------------------------------------------------------------------------


def of_blocks(change: Callable[[Blocks], Blocks]) -> Callable[[FileMatrix], FileMatrix]:
    return lambda m: m.rebuilt(change)


def constant_times(m: FileMatrix, factor: float) -> FileMatrix:
    """The matrix whose groups' constants count `factor` times."""
    more = np.float32(factor - 1)
    return replace(m, change=lambda start, w: w + more * m.constants(start, start + len(w)))


def zero_points_off(m: FileMatrix, n: int) -> FileMatrix:
    """The zero point counts n steps more."""
    minimum = m.facts.minimum
    if minimum is not None and m.facts.struct[minimum].kind == "i":  # and the weight is rounded with it (quant/int.py)
        return m.rebuilt(partial(moved_by, minimum, -n))

    def change(start: int, w: NDArray[np.float32]) -> NDArray[np.float32]:
        step = m.steps(start, start + len(w))
        assert step is not None
        return w + np.float32(n) * step

    return replace(m, change=change)


def moved_by(field: str, n: int, b: Blocks) -> Blocks:
    b[field] += n
    return b


def upper_times(m: FileMatrix, factor: float) -> FileMatrix:
    """The matrix whose codes' upper bits count `factor` times what they are worth."""

    def change(start: int, w: NDArray[np.float32]) -> NDArray[np.float32]:
        high = m.facts.high
        assert high is not None
        low = m.rebuilt(lambda b: cleared(b, high), start, start + len(w)).rows(0, len(w))
        return low + np.float32(factor) * (w - low)

    return replace(m, change=change)


def swapped_nibbles(b: Blocks, field: str) -> Blocks:
    b[field] = b[field] >> 4 | b[field] << 4
    return b


def swapped_fields(b: Blocks, one: str, other: str) -> Blocks:
    b[one], b[other] = b[other].copy(), b[one].copy()
    return b


def top_bits(f: Format, right: Bits, b: Blocks) -> Blocks:
    """Blocks with the highest bit of each code inverted."""
    codes = codes_of(f, b)
    mask = np.zeros(8 * codes.shape[-1], np.uint8)
    mask[right[:, -1]] = 1
    return put_codes(f, b, codes ^ np.packbits(mask, bitorder="little"))


def codes_from(f: Format, n: int, b: Blocks) -> Blocks:
    """Blocks whose codes are looked for n bytes too far in the matrix: beyond a block is the next one."""
    raw = np.roll(b.copy().view(np.uint8).reshape(-1), -n)
    shifted = raw.view(f.struct).reshape(b.shape)
    return put_codes(f, b, codes_of(f, shifted))


def unsigned(m: FileMatrix, field: str) -> FileMatrix:
    """The matrix whose signed bytes of a field, codes or scales of groups, are read as unsigned ones."""

    def change(start: int, w: NDArray[np.float32]) -> NDArray[np.float32]:
        f, stop = m.facts, start + len(w)
        raw = m.rebuilt(lambda b: b, start, stop).tensor.data.view(f.struct)[field].reshape(len(w), -1)
        each = -(-w.shape[1] // f.block) * f.block // raw.shape[1]  # a row's last block may be cut
        negative = np.repeat(raw < 0, each, axis=1)[:, : w.shape[1]]
        one = m.rebuilt(lambda b: filled(b, field, 1), start, stop).rows(0, len(w))
        return w + np.float32(256) * one * negative

    return replace(m, change=change)


def filled(b: Blocks, field: str, value: int) -> Blocks:
    b[field] = value
    return b


# -- the matrix, read otherwise ---------------------------------------------------------------------------------------


def by_fields(f: Format) -> list[str]:
    """A block's fields as engines put them that store all blocks' codes first, then their scales."""
    names = list(f.struct.names or ())
    last = [n for n in names if n in (f.scale, f.minimum)]
    return [*f.codes, *(n for n in names if n not in f.codes and n not in last), *last]


def rearranged(f: Format, b: Blocks) -> Blocks:
    """What is found where each block should lie, if the matrix was rearranged: a field of all blocks after another. The
    scale and minimum of a block stay neighbours."""
    flat = b.reshape(-1)
    order = by_fields(f)
    ends = [n for n in order if n in (f.scale, f.minimum)]
    parts = [np.ascontiguousarray(flat[n]).view(np.uint8).reshape(-1) for n in order if n not in ends]
    parts.append(np.concatenate([flat[n].reshape(-1, 1).copy().view(np.uint8) for n in ends], 1).reshape(-1))
    return np.concatenate(parts).view(f.struct).reshape(b.shape)


def arranged(f: Format, b: Blocks) -> Blocks:
    """What a reader of rearranged matrices makes of one that was not."""
    raw, new, at = b.copy().view(np.uint8).reshape(-1), b.copy().reshape(-1), 0
    order = by_fields(f)
    ends = [n for n in order if n in (f.scale, f.minimum)]
    for n in order:
        if n not in ends:
            kind = f.struct[n]
            new[n] = raw[at : at + new.size * kind.itemsize].view(kind.base).reshape(new.size, *kind.shape)
            at += new.size * kind.itemsize
    rest = raw[at:].reshape(new.size, -1)
    for n in ends:
        size = f.struct[n].itemsize
        new[n], rest = np.ascontiguousarray(rest[:, :size]).view(f.struct[n])[:, 0], rest[:, size:]
    return new.reshape(b.shape)


def apart(f: Format, stride: int, b: Blocks) -> Blocks:
    """Rows that begin so many bytes apart. What lies beyond the end is zeros."""
    raw, size = b.copy().view(np.uint8).reshape(-1), b.shape[1] * f.bytes
    whole = np.concatenate([raw, np.zeros(max(0, stride * len(b) + size - raw.size), np.uint8)])
    rows = np.lib.stride_tricks.sliding_window_view(whole, size)[:: max(1, stride)][: len(b)]
    return np.ascontiguousarray(rows).view(f.struct).reshape(b.shape)


STRIDES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K")


def strides(m: FileMatrix) -> Iterator[tuple[str, int]]:
    """Bytes from row to row that a wrong formula gives."""
    f, blocks = m.facts, m.shape[1] // m.facts.block
    own, told = blocks * f.bytes, set[int]()
    for name in STRIDES:
        other = format_of(name)
        if other.block == f.block and other.bytes != f.bytes:
            yield f"as in {name}", blocks * other.bytes
            told.add(blocks * other.bytes)
    code_bytes = sum(f.struct[c].itemsize for c in f.codes)
    for words, n in (("as if there were no scales", blocks * code_bytes), ("a block too few", own - f.bytes),
                     ("a block too many", own + f.bytes)):  # fmt: skip
        if n > 0 and n not in told:
            told.add(n)
            yield words, n
    for more in (1, 2, 4, 8, 16, 32, 64):
        yield from ((f"{more} too {few}", n) for few, n in (("few", own - more), ("many", own + more)) if n not in told)


# -- all of them ------------------------------------------------------------------------------------------------------


def local(f: Format) -> Iterator[Way]:
    """Each way to decode a block of a format wrongly that is known."""
    right = code_bits(f.name)
    if f.nibbles is not None:
        field, run = f.nibbles
        yield "the nibbles of a byte are swapped", of_blocks(lambda b: swapped_nibbles(b, field))
        if run > 2:
            yield "the two nibbles of a byte are taken for neighbours", partial(neighbours, run)
    for words, order in orders(f):
        assert right is not None
        yield words, of_blocks(partial(moved, f, right, order))
    if f.constants:
        yield "each group's constant (offset or minimum) is left out", lambda m: constant_times(m, 0)
        yield "each group's constant (offset or minimum) has the wrong sign", lambda m: constant_times(m, -1)
    if right is not None and right.shape[1] < 8 and (f.offset or f.high):
        words = "codes are taken for two's complement" if f.offset else "the highest bit of each code is inverted"
        yield words, of_blocks(partial(top_bits, f, right))
    if f.high is not None:
        high = f.high
        yield "the high bits are left out", of_blocks(lambda b: cleared(b, high))
        for factor, words in COUNTED.items():
            yield f"the upper bits of codes count {words} of what they are worth", partial(upper_times, factor=factor)
    for name in f.struct.names or ():
        if f.struct[name].base == np.int8:
            what = "codes" if name in f.codes else "scales of groups"
            yield f"signed {what} are read as unsigned", partial(unsigned, field=name)
    if f.six_bits is not None:
        yield from six_bits(f, f.six_bits)
    if f.scales is not None:
        field, unpack, pack = f.scales
        for words, n in (("are taken for whole scales", 24), ("are all that is read", 0)):
            yield f"the lower four bits of scales {words}", of_blocks(partial(four_bits, field, unpack, pack, n))


def neighbours(run: int, m: FileMatrix) -> FileMatrix:
    """Values whose order in a run is that of the nibbles."""
    if m.shape[1] % run:
        return m
    order = np.arange(run).reshape(2, -1).T.reshape(-1)
    return replace(m, change=lambda start, w: w.reshape(len(w), -1, run)[..., order].reshape(w.shape))


def four_bits(
    field: str,
    unpack: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    pack: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    more: int,
    b: Blocks,
) -> Blocks:
    packed = b[field]
    scales = unpack(packed.reshape(-1, packed.shape[-1])) & np.uint8(15)
    b[field] = pack(scales + np.uint8(more)).reshape(packed.shape)
    return b


def six_bits(f: Format, field: str) -> Iterator[Way]:
    """Of scales and minima that a field packs as Q4_K does, under the halves of scale and minimum."""
    scale, minimum = f.scale, f.minimum
    assert scale is not None and minimum is not None
    yield f"{scale} and {minimum} are swapped", of_blocks(lambda b: swapped_fields(b, scale, minimum))

    def low_bits(b: Blocks) -> Blocks:
        b[field][..., :8] &= 63
        return b

    def swapped(b: Blocks) -> Blocks:
        packed = b[field]
        scales, minima = unpack_scales(packed.reshape(-1, packed.shape[-1]))
        b[field] = pack_scales(minima, scales).reshape(packed.shape)
        return b

    yield "the upper two bits of the scales and minima of groups 4 to 7 are left out", of_blocks(low_bits)
    yield "the 6-bit scales and minima are swapped", of_blocks(swapped)


def across(m: FileMatrix) -> Iterator[Way]:
    """Each way to find a block, or its codes, elsewhere in the matrix."""
    f = m.facts
    yield "blocks are read one too far", of_blocks(lambda b: np.roll(b, -1))
    yield "blocks are read one too early", of_blocks(lambda b: np.roll(b, 1))
    if f.codes and f.scale is not None:
        for n in SHIFTED:
            far = "early" if n < 0 else "far"
            size = f"{abs(n)} byte{'s' * (abs(n) > 1)}"
            yield f"codes are read {size} too {far} in the block", of_blocks(partial(codes_from, f, n))
        yield (
            "the matrix was rearranged, all codes before all scales, and is read as the file has it",
            of_blocks(partial(rearranged, f)),
        )
        yield (
            "the matrix is read as if it had been rearranged, all codes before all scales, and it was not",
            of_blocks(partial(arranged, f)),
        )
    for words, stride in strides(m):
        own = m.shape[1] // f.block * f.bytes
        yield f"rows lie {stride} bytes apart for it, not {own}: {words}", of_blocks(partial(apart, f, stride))


def wrong_decoders(m: FileMatrix) -> Iterator[tuple[str, Callable[[], FileMatrix], bool]]:
    """Each known way to decode a matrix wrongly: name; the matrix, when it is asked for; whether rows are decoded each
    by itself, so that a few show what all would be."""
    if m.facts.block > 1:
        for words, way in local(m.facts):
            yield words, partial(way, m), True
        for n in (-1, 1) if m.steps(0, 1) is not None else ():
            words = f"zero points (or minima) are off by one step, values are {n:+d} step"
            yield words, partial(zero_points_off, m, n), True
        if m.shape[1] % m.facts.block == 0:
            for words, way in across(m):
                yield words, partial(way, m), False


@hypothesis("decoder", "the {}", *PRODUCTS)
def decoder(s: Site) -> Several:
    matrices = s.matrices()
    ways: dict[str, dict[int, Callable[[], FileMatrix]]] = {}
    for i, m in enumerate(matrices):
        if m.shape[0] * m.shape[1] > MOST:
            return
        for name, wrong, _ in wrong_decoders(m):
            ways.setdefault(f"{m.format} decoder is wrong: {name}", {})[i] = wrong
    # A whole matrix is read anew only where its first rows, where they are enough, may be the dump's.
    first, x = matrices[0].head(COLUMNS), flat(input_of(s))
    few = {f"{first.format} decoder is wrong: {name}": made for name, made, alone in wrong_decoders(first) if alone}
    for name, wrong_at in ways.items():
        if 0 in wrong_at and name in few and glimpsed(s, x, few[name]()) is False:
            yield name, NOTHING
        else:
            yield name, through(s, x, [wrong_at[i]() if i in wrong_at else m for i, m in enumerate(matrices)])


@hypothesis("decoder-look-up", "the {}", "embedding")
def decoder_look_up(s: Site) -> Several:
    """Of the rows that a look-up takes: in the look-up alone, or wherever the format is read."""
    tokens, m = s.evidence.tokens, FileMatrix(plain(s.evidence.weights.embed))
    if tokens is None or m.shape[0] * m.shape[1] > MOST or max(s.pos) >= len(tokens):
        return
    ids = np.array([tokens[p] for p in s.pos])
    if not ((ids >= 0) & (ids < m.shape[0])).all():
        return
    few = replace(m, tensor=take(m.tensor, ids))
    for name, wrong, alone in wrong_decoders(m):
        with np.errstate(all="ignore"):
            if alone:
                rows = next(w for n, w, _ in wrong_decoders(few) if n == name)().rows(0, len(ids))
            else:
                made = wrong()
                rows = np.concatenate([made.rows(i, i + 1) for i in ids.tolist()])
        yield f"{m.format} decoder is wrong: {name}", operations.rounded(s.recipe, Span.point(rows))
