"""Packed matrices: the file's own bytes, 32 rows interleaved, in the format's own width.

A format's form is a file of ../formats/ (form.py says what it declares). Formats without one are decoded and packed as
F32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from .....quant.codes import SCALES
from .....quant.tensor import Assembled, QTensor, by_column, dequantize, forget
from ..machine.codegen import LANES
from ..machine.kernel import Kernel, at
from ..machine.memory import aligned
from ..machine.simd import get_i32, get_u16, set_i32, set_u16
from ..machine.team import run_now
from .form import Form

FORMATS = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS", "MXFP4"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "NVFP4"),
    *("F16", "BF16", "F32"),
    *(f"INT/{bits}/128/{scales}" for bits in (4, 8, 3, 2) for scales in SCALES),
    *(f"MLX/{bits}/128/{scales}" for bits in (4, 8, 6, 5, 3, 2) for scales in SCALES),
    *(f"INT_ACT/{bits}/{scales}" for bits in (4, 8, 3, 2) for scales in SCALES),
    *(f"{file}/64/{dtype}" for file in ("NF4", "FP4") for dtype in SCALES),
    *(f"{file}/128/{scales}" for file in ("F8_E4M3", "F8_E5M2") for scales in SCALES),
    "LLM_INT8/128",
)  # of groups of any size one: all sizes have the same kernels
FILES = frozenset(name.partition("/")[0] for name in FORMATS)
SLAB = 1 << 24  # bytes of file (or of decoded values) at a time


@dataclass(frozen=True, slots=True)
class Packed:
    """One matrix [rows, K]: `data` holds ceil(rows / 32) row blocks of `size` bytes."""

    form: Form
    rows: int
    K: int
    size: int
    data: NDArray[np.uint8]


def _interleave(
    first: int,
    last: int,
    source: int,
    rows: int,
    out: int,
    blocks: int,
    block_bytes: int,
    half_at: int,
    words_at: int,
    words: int,
    extra: int,
) -> None:
    """Row blocks first..last; rows past the last are zeros, and so are the extra words behind a block's own."""
    halves = LANES * 2 if half_at >= 0 else 0
    size = halves + (words + extra) * LANES * 4
    for r in range(first, last):
        for lane in range(LANES):
            row = r * LANES + lane
            to = out + r * blocks * size
            at = source + row * blocks * block_bytes
            for _ in range(blocks):
                if row >= rows:
                    if half_at >= 0:
                        set_u16(to + 2 * lane, 0)
                    for i in range(words):
                        set_i32(to + halves + (i * LANES + lane) * 4, 0)
                else:
                    if half_at >= 0:
                        set_u16(to + 2 * lane, get_u16(at + half_at))
                    for i in range(words):
                        set_i32(to + halves + (i * LANES + lane) * 4, get_i32(at + words_at + 4 * i))
                for i in range(words, words + extra):
                    set_i32(to + halves + (i * LANES + lane) * 4, 0)
                to += size
                at += block_bytes


interleave = Kernel(_interleave)


def form_of(w: QTensor) -> Form:
    """The packed form that a matrix gets: its format's own, or F32, to which it is decoded.

    Decoded are formats without a file here, groups of sizes that its file does not take, and rows that are no whole
    number of blocks (which APR's files pad).
    """
    columns = by_column(w)
    for name in (columns.name, w.format) if columns else (w.format,):
        if name.partition("/")[0] in FILES:
            form = form_named(name)
            if w.shape[1] % form.format.block == 0 and form is not form_named("F32"):
                return form
    return form_named("F32")


@cache
def form_named(name: str) -> Form:
    """One of FORMATS, or the same of groups of another size; F32's where groups of that size are not packed."""
    file, *sizes = name.split("/")
    declared = import_module(f"...formats.{file.lower()}", __name__).FORM
    form: Form | None = declared(*sizes) if sizes else declared
    return form or form_named("F32")


def _behind(front: NDArray[np.uint8] | None, count: int) -> NDArray[np.uint8]:
    """Memory for so many bytes, and what stands in front of it, whole cache lines."""
    if front is None:
        return aligned(count)
    memory = aligned(front.size + count)
    memory[: front.size] = front
    return memory[front.size :]


def pack(w: QTensor) -> Packed:
    """A matrix of any format, packed by all threads."""
    rows, K = w.shape
    form = form_of(w)
    columns = form.columns(w) if form.columns else None
    if (form.columns and not columns) or (form.takes and not form.takes(w.data.view(form.format.struct))):
        form = form_named("F32")  # its kernels are compiled now: such scales are no model's
    decoded = form is form_named("F32")
    file = columns.rows.reshape(-1) if columns else w.data
    row_bytes = file.size // rows
    blocks, block_bytes = (1, row_bytes) if columns else (K // form.format.block, form.format.bytes)
    half = form.half_at >= 0
    words = -(-(block_bytes - 2 * half) // 4)
    of_row = 2 * half + 4 * (words + form.extra)  # of a block's bytes in the file, and of MXFP4's one twice
    size = blocks * LANES * of_row
    packed = Packed(form, rows, K, size, _behind(columns.front if columns else None, -(-rows // LANES) * size))
    slab = max(LANES, SLAB // (4 * K if decoded else row_bytes) // LANES * LANES)
    for start in range(0, rows, slab):
        stop = min(start + slab, rows)
        raw = file[start * row_bytes : stop * row_bytes]
        data = np.ascontiguousarray(dequantize(w, start, stop)) if decoded else raw
        out = packed.data[start // LANES * size :].ctypes.data
        items = -(-(stop - start) // LANES)
        places = (form.half_at, form.words_at, words, form.extra)
        run_now(interleave.job(items, 1, at(data), stop - start, out, blocks, block_bytes, *places))
        forget(raw)
    if isinstance(w, Assembled):
        w.forget()
    if form.rearrange:
        run_now(form.rearrange.job(len(packed.data) // (of_row * LANES), 64, packed.data.ctypes.data))
    return packed
