"""Weight matrices on the card: rows of groups of 32 values, in planes that kernels load in whole words.

Codes keep their file's width (a Q4_K scale and minimum take a byte each, 148 bytes for 144). Formats without a module
here are decoded to F32. Rows of floats are padded with zeros to whole groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from types import ModuleType
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from .....quant.tensor import QTensor, blocks_of, dequantize, format_of, vector_of
from ..formats import bf16, f16, f32, q4_0, q4_k, q5_0, q6_k, q8_0
from ..machine.memory import Queue

# The modules by format, and what they make of a group: elements of each plane, in eighths (K-quants share halves).
FORMS: dict[str, tuple[ModuleType, dict[str, int]]] = {
    "Q4_0": (q4_0, {"codes": 32, "halves": 8}),
    "Q5_0": (q5_0, {"codes": 32, "extra": 8, "halves": 8}),
    "Q8_0": (q8_0, {"codes": 64, "halves": 8}),
    "Q4_K": (q4_k, {"codes": 32, "scales": 8, "halves": 2}),
    "Q6_K": (q6_k, {"codes": 32, "extra": 16, "scales": 8, "halves": 1}),
    "F16": (f16, {"codes": 128}),
    "BF16": (bf16, {"codes": 128}),
    "F32": (f32, {"codes": 256}),
}
KINDS = {"codes": np.uint32, "extra": np.uint32, "scales": np.uint16, "halves": np.uint16}
SLAB = 1 << 24  # values packed at a time


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [O, I] in G groups a row; planes: (codes, extra, scales, halves), one element where there is none."""

    form: ModuleType
    planes: tuple[Any, Any, Any, Any]
    O: int
    I: int
    G: int


def form_of(w: QTensor) -> tuple[ModuleType, dict[str, int]]:
    """What a matrix is packed as: its format's own form, or F32, to which it is decoded.

    Decoded are formats without a module here, and rows that the file pads to whole blocks (APR alone has them).
    """
    own = w.format in FORMS and w.shape[1] % format_of(w.format).block == 0
    return FORMS[w.format if own else "F32"]


def packed_bytes(w: QTensor) -> int:
    """What the matrix will take on the card."""
    O, I = w.shape
    _, planes = form_of(w)
    return sum(O * -(-I // 32) * count * np.dtype(KINDS[plane]).itemsize for plane, count in planes.items()) // 8


def stack(queue: Queue, parts: Sequence[QTensor]) -> tuple[Packed, ...]:
    """Matrices whose rows follow one another, on the card; neighbours of one form are one matrix there, one launch."""
    return tuple(pack(queue, *neighbours) for _, neighbours in groupby(parts, lambda w: form_of(w)[0]))


def pack(queue: Queue, *parts: QTensor) -> Packed:
    """Matrices of one form, one below the other, a slab of rows at a time. Raises BadInput for one of another size."""
    form, sizes = form_of(parts[0])
    O, I = sum(w.shape[0] for w in parts), parts[0].shape[1]
    G = -(-I // 32)
    planes = {
        plane: queue.allocate(O * G * sizes[plane] // 8 if plane in sizes else 1, kind) for plane, kind in KINDS.items()
    }
    step, first = max(1, SLAB // I), 0
    for w in parts:
        for start in range(0, w.shape[0], step):
            stop = min(start + step, w.shape[0])
            for plane, values in form.pack(_blocks(w, form, start, stop)).items():
                per = G * sizes[plane]
                there = planes[plane][(first + start) * per // 8 : (first + stop) * per // 8]
                there.copy_to_device(np.ascontiguousarray(values))
        first += w.shape[0]
    return Packed(form, (planes["codes"], planes["extra"], planes["scales"], planes["halves"]), O, I, G)


def _blocks(w: QTensor, form: ModuleType, start: int, stop: int) -> NDArray[np.uint8]:
    """Rows start..stop as the form's pack takes them: blocks of bytes, floats padded to whole groups."""
    if form is f32:
        values: NDArray[Any] = dequantize(w, start, stop)
    else:
        blocks = blocks_of(w)
        per_row = len(blocks) // w.shape[0]
        rows = blocks[start * per_row : stop * per_row]
        if form.FORMAT.block > 1:
            return rows
        values = np.ascontiguousarray(rows).view(np.uint16).reshape(-1, w.shape[1])
    padded = np.zeros((len(values), -(-w.shape[1] // 32) * 32), values.dtype)
    padded[:, : w.shape[1]] = values
    return padded.view(np.uint8)


def vector(*parts: QTensor) -> Any:
    """Decoded values on the card, one part after the other."""
    return cuda.to_device(vector_of(*parts).astype(np.float32, copy=False))
