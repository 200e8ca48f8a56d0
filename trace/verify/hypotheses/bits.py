"""Where the bits of a format's codes are, and where other engines look for them.

What a format's codes are made of is not written down again here. Each bit of a block's codes is flipped, and the one
value that changes is the bit's (`code_bits`). An order of other engines is another such table.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ....quant.format import Format
from ....quant.tensor import format_of
from ..recipes.matrix import Blocks

Bits = NDArray[np.intp]  # [values of a block, bits of a code, least first]: bit 8 b + i is bit i of the codes' byte b

RUNS = (2, 32, 64, 128, 256)  # values whose codes lie in the two nibbles of a run of bytes


@cache
def code_bits(name: str) -> Bits | None:
    """Where the bits of each code of a format are; None where they are no whole number of bits of a value each."""
    f = format_of(name)
    if not f.codes or f.scale is None:
        return None
    one = np.zeros(1, f.struct)
    one.view(np.uint8)[:] = 0x11  # scales of which none is 0
    for field in (f.scale, f.minimum):
        if field is not None:
            one[field] = 1 if f.struct[field].base.kind == "f" else 0x80
    size = sum(f.struct[field].itemsize for field in f.codes)
    owner = np.full(8 * size, -1)
    for base in (0x00, 0x11):  # a sign alone does not change a zero
        put_codes(f, one[None], np.full((1, 1, size), base, np.uint8))
        blocks = np.repeat(one[None], 8 * size + 1, 1)
        flipped = codes_of(f, blocks)
        at = np.arange(8 * size)
        flipped[0, at, at // 8] ^= (1 << (at % 8)).astype(np.uint8)
        put_codes(f, blocks, flipped)
        with np.errstate(all="ignore"):
            values = f.decode(blocks.view(np.uint8).reshape(-1, f.bytes))
        changed = values[:-1] != values[-1]
        found = changed.sum(1) == 1
        owner[found] = changed.argmax(1)[found]
    if (owner < 0).any() or 8 * size % f.block or (np.bincount(owner, minlength=f.block) != 8 * size // f.block).any():
        return None
    start = np.cumsum([0, *(8 * f.struct[field].itemsize for field in f.codes)])
    high = np.concatenate([np.full(b - a, c == f.high) for a, b, c in zip(start, start[1:], f.codes, strict=False)])
    bit = np.lexsort((np.arange(8 * size) % 8, high, owner))  # of each value, its lower bits first
    return bit.reshape(f.block, -1)


def codes_of(f: Format, b: Blocks) -> NDArray[np.uint8]:
    """[rows, blocks, bytes]: the codes' fields, one behind the other."""
    return np.concatenate([np.ascontiguousarray(b[c]).view(np.uint8).reshape(*b.shape, -1) for c in f.codes], -1)


def put_codes(f: Format, b: Blocks, codes: NDArray[np.uint8]) -> Blocks:
    start = 0
    for c in f.codes:
        kind = f.struct[c]
        part = np.ascontiguousarray(codes[..., start : start + kind.itemsize])
        b[c] = part.view(kind.base).reshape(*b.shape, *kind.shape)
        start += kind.itemsize
    return b


def moved(f: Format, right: Bits, wrong: Bits, b: Blocks) -> Blocks:
    """Blocks whose codes, read rightly, are those that another order of the bits finds in the given ones."""
    bits = np.unpackbits(codes_of(f, b), axis=-1, bitorder="little")
    new = np.empty_like(bits)
    new[..., right.reshape(-1)] = bits[..., wrong.reshape(-1)]
    return put_codes(f, b, np.packbits(new, axis=-1, bitorder="little"))


def in_order(n: int, values: int) -> Bits:
    """n bits after n bits."""
    return np.arange(values * n).reshape(values, n)


def in_runs(run: int, values: int) -> Bits:
    """Of codes of four bits: the low nibbles of a run are its first half, the high ones its second."""
    value = np.arange(values)
    byte = value // run * (run // 2) + value % (run // 2)
    return (8 * byte + 4 * (value % run // (run // 2)))[:, None] + np.arange(4)


def orders(f: Format) -> Iterator[tuple[str, Bits]]:
    """Other orders of the bits of codes, and what they are called."""
    right = code_bits(f.name)
    if right is None or right.shape[1] == 8:
        return
    values = len(right)
    sizes = [8 * f.struct[c].itemsize for c in f.codes]
    own = {c: np.flatnonzero((right[0] >= sum(sizes[:i])) & (right[0] < sum(sizes[: i + 1])))
           for i, c in enumerate(f.codes)}  # fmt: skip
    told: list[Bits] = [right]

    def new(order: Bits) -> bool:
        known = any(np.array_equal(order, o) for o in told)
        told.append(order)
        return not known

    low = f.nibbles[0] if f.nibbles else next((c for c in f.codes if c != f.high), f.codes[0])
    ordered = right.copy()
    for i, c in enumerate(f.codes):
        if len(own[c]):
            ordered[:, own[c]] = sum(sizes[:i]) + in_order(len(own[c]), values)
    if new(ordered):
        yield "codes are read in order, one behind the other", ordered
    if f.high is not None:
        for c, words in ((low, "low"), (f.high, "upper")):
            part = right.copy()
            part[:, own[c]] = ordered[:, own[c]]
            if new(part):
                yield f"the {words} bits are read in order, one code's behind the other's", part
    if f.nibbles is not None and len(own[low]) == 4:
        start = sum(sizes[: f.codes.index(low)])
        for run in RUNS[1:]:
            for upper, more in ((right, ""), (ordered, ", the upper bits in order")):
                part = upper.copy()
                if values % run == 0:
                    part[:, own[low]] = start + in_runs(run, values)
                    if new(part):
                        yield f"the nibbles are taken in runs of {run} values, not of {f.nibbles[1]}{more}", part
