"""How fast this machine reads the packed weights of a model now: the limit of generation, which reads them once a
token.
"""

from __future__ import annotations

import numpy as np

from ...weights import Weights
from .matmul import Stack
from .simd import load_i32, splat_i32, store_i32
from .team import Kernel, at, run_now

PIECE = 1 << 16


def _read(first, last, data, out):
    """Pieces first..last: every byte once, in four streams."""
    for i in range(first, last):
        a = splat_i32(0)
        b, c, d = a, a, a
        for p in range(data + i * PIECE, data + (i + 1) * PIECE, 512):
            a, b = a + load_i32(p), b + load_i32(p + 128)
            c, d = c + load_i32(p + 256), d + load_i32(p + 384)
        store_i32(out + i * 128, a + b + c + d)


read = Kernel(_read)


def read_weights(w: Weights) -> int:
    """Reads what one token's forward pass reads of prepared weights; the bytes read (what fills no piece is left
    out).
    """
    stacks = [s for _, s in w.matrices()]
    parts = [p.data for s in stacks if isinstance(s, Stack) for p in s.parts if len(p.data) >= PIECE]
    out = np.empty((max(len(p) for p in parts) // PIECE, 32), np.int32)
    run_now(
        *(read.job(len(p) // PIECE, 4, at(p), at(out), barrier=False) for p in parts[:-1]),
        read.job(len(parts[-1]) // PIECE, 4, at(parts[-1]), at(out)),
    )
    return sum(len(p) // PIECE * PIECE for p in parts)
