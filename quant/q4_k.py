"""Q4_K: 8 groups of 32 values of 4 bits, each group with a scale and a minimum of 6 bits.

C struct block_q4_K, 144 bytes: half d; half dmin; uint8 scales[12]; uint8 qs[128]. Each 32 bytes of qs hold 64 values:
the low nibbles the first 32, the high ones the next. value = (d * scale) * q - dmin * min.

scales packs 8 scales and 8 minima. Bytes 0 to 3 have scales 0 to 3 in their lower six bits, bytes 4 to 7 the minima 0
to 3; bytes 8 to 11 have the lower four bits of scales 4 to 7 below those of minima 4 to 7, whose upper two bits are the
upper two of bytes 0 to 3 (scales) and 4 to 7 (minima).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fit import affine_groups
from .format import Format

STRUCT = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
BLOCK = 256


def unpack_scales(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """[n, 12] bytes -> scales and minima, [n, 8] each, of 0 to 63."""
    s, m, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate((s & 63, s >> 6 << 4 | low & 15), axis=1)
    minimum = np.concatenate((m & 63, m >> 6 << 4 | low >> 4), axis=1)
    return scale, minimum


def pack_scales(scale: NDArray[np.uint8], minimum: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of unpack_scales."""
    s, m = scale[:, 4:], minimum[:, 4:]
    return np.concatenate((scale[:, :4] | s >> 4 << 6, minimum[:, :4] | m >> 4 << 6, s & 15 | m << 4), axis=1)


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    scale, minimum = unpack_scales(b["scales"])
    qs = b["qs"].reshape(-1, 4, 32)
    y = np.stack((qs & 15, qs >> 4), axis=2).astype(np.float32).reshape(-1, 8, 32)
    y *= (b["d"].astype(np.float32)[:, None] * scale)[..., None]
    y -= (b["dmin"].astype(np.float32)[:, None] * minimum)[..., None]
    return y.reshape(-1, BLOCK)


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    b = np.empty(len(values), STRUCT)
    b["d"], b["dmin"], scale, minimum, q = affine_groups(values, 15)
    b["scales"] = pack_scales(scale, minimum)
    q = q.reshape(-1, 4, 2, 32)
    b["qs"] = (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)
    return b.view(np.uint8).reshape(-1, STRUCT.itemsize)


FORMAT = Format(
    "Q4_K",
    BLOCK,
    STRUCT,
    decode,
    encode,
    group=32,
    scale="d",
    minimum="dmin",
    six_bits="scales",
    codes=("qs",),
    levels=16,
    nibbles=("qs", 64),
    activations="Q8_K",
    activations_int16="Q16_K",
)
