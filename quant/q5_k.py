"""Q5_K: 8 groups of 32 values of 5 bits, each group with a scale and a minimum of 6 bits.

C struct block_q5_K, 176 bytes: half d; half dmin; uint8 scales[12]; uint8 qh[32]; uint8 qs[128]. scales and the lower
four bits in qs lie as in Q4_K; bit g of qh[l] is the fifth of value 32 g + l. value = (d * scale) * q - dmin * min.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fit import affine_groups
from .format import Format
from .q4_k import pack_scales, unpack_scales

STRUCT = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
BLOCK = 256
BITS = np.arange(8, dtype=np.uint8)[:, None]


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    scale, minimum = unpack_scales(b["scales"])
    qs = b["qs"].reshape(-1, 4, 32)
    q = np.stack((qs & 15, qs >> 4), axis=2).reshape(-1, 8, 32)
    q |= (b["qh"][:, None] >> BITS & 1) << 4
    y = q.astype(np.float32)
    y *= (b["d"].astype(np.float32)[:, None] * scale)[..., None]
    y -= (b["dmin"].astype(np.float32)[:, None] * minimum)[..., None]
    return y.reshape(-1, BLOCK)


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    b = np.empty(len(values), STRUCT)
    b["d"], b["dmin"], scale, minimum, q = affine_groups(values, 31)
    b["scales"] = pack_scales(scale, minimum)
    b["qh"] = np.bitwise_or.reduce(q >> 4 << BITS, axis=1)
    low = q.reshape(-1, 4, 2, 32) & np.uint8(15)
    b["qs"] = (low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128)
    return b.view(np.uint8).reshape(-1, STRUCT.itemsize)


FORMAT = Format(
    "Q5_K",
    BLOCK,
    STRUCT,
    decode,
    encode,
    group=32,
    scale="d",
    minimum="dmin",
    six_bits="scales",
    codes=("qh", "qs"),
    levels=32,
    nibbles=("qs", 64),
    high="qh",
    activations="Q8_K",
    activations_int16="Q16_K",
)
