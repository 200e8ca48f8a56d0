"""Q8_1: Q8_0 with the sum of its block. ggml makes it of the activations that meet Q4_1 and Q5_1; no file holds it.

C struct block_q8_1, 36 bytes: half d; half s; int8 qs[32]. value[j] = d * qs[j]; s = d * (qs[0] + ... + qs[31]), with d
before its rounding to half. The two rules are Q8_0's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format
from .q8_0 import round_as_activations, round_as_files

STRUCT = np.dtype([("d", "<f2"), ("s", "<f2"), ("qs", "i1", 32)])
BLOCK = 32


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    y = b["qs"].astype(np.float32)
    y *= b["d"].astype(np.float32)[:, None]
    return y


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The rule of ggml's quantize_row_q8_1_ref."""
    return _pack(*round_as_files(values))


def encode_activations(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The rule of ggml's quantize_row_q8_1 on x86."""
    return _pack(*round_as_activations(values))


def _pack(d: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.uint8]:
    b = np.empty(len(d), STRUCT)
    b["d"], b["s"], b["qs"] = d, q.sum(axis=1) * d, q
    return b.view(np.uint8).reshape(-1, STRUCT.itemsize)


FORMAT = Format("Q8_1", BLOCK, STRUCT, decode, encode, scale="d", codes=("qs",), levels=255)
