"""Q8_0: 32 values as signed bytes times one half. Also what ggml makes of the activations that meet weights in blocks
of 32.

C struct block_q8_0, 34 bytes: half d; int8 qs[32]. value[j] = d * qs[j].

ggml has two rules for writing it. In both the values are scaled by the float32 step, which is rounded to half only
then: quantize_row_q8_0_ref (ggml-quants.c) writes files, quantize_row_q8_0 (ggml-cpu, on x86) activations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fit import ratio, round_half_away
from .format import Format

STRUCT = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
BLOCK = 32


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    y = b["qs"].astype(np.float32)
    y *= b["d"].astype(np.float32)[:, None]
    return y


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The rule for files."""
    return _pack(*round_as_files(values))


def encode_activations(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The rule for activations: near a tie a byte may differ by one from the other's (3 in a million values)."""
    return _pack(*round_as_activations(values))


def round_as_files(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[n, 32] -> step [n] and whole numbers [n, 32]: times 1 / step, ties away from zero."""
    d = np.abs(values).max(axis=1) / 127
    return d, round_half_away(values * ratio(1, d)[:, None])


def round_as_activations(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[n, 32] -> step [n] and whole numbers [n, 32]: times 127 / extreme, ties to even."""
    extreme = np.abs(values).max(axis=1)
    return extreme / 127, np.rint(values * ratio(127, extreme)[:, None])


def _pack(d: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.uint8]:
    b = np.empty(len(d), STRUCT)
    b["d"], b["qs"] = d, q
    return b.view(np.uint8).reshape(-1, STRUCT.itemsize)


FORMAT = Format(
    "Q8_0",
    BLOCK,
    STRUCT,
    decode,
    encode,
    scale="d",
    codes=("qs",),
    levels=255,
    activations="Q8_0",
    activations_int16="Q16_0",
)
