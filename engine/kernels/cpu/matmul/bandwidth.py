"""How fast this machine reads the packed weights of a model now: the limit of generation, which reads them once a
token.
"""

from __future__ import annotations

import numpy as np

from ....weights import Weights
from ..machine.kernel import Kernel, at
from ..machine.simd import load_i32, splat_i32, store_i32
from ..machine.team import run_now
from .linear import Stack

PIECE, VECTOR = 1 << 16, 128


def _read(first: int, last: int, data: int, size: int, out: int) -> None:
    """Pieces first..last of `size` bytes: every whole vector once, in four streams."""
    for i in range(first, last):
        a = splat_i32(0)
        b, c, d = a, a, a
        p, end = data + i * PIECE, data + min((i + 1) * PIECE, size)
        while p + 4 * VECTOR <= end:
            a, b = a + load_i32(p), b + load_i32(p + VECTOR)
            c, d = c + load_i32(p + 2 * VECTOR), d + load_i32(p + 3 * VECTOR)
            p += 4 * VECTOR
        while p + VECTOR <= end:
            a = a + load_i32(p)
            p += VECTOR
        store_i32(out + i * VECTOR, a + b + c + d)


read = Kernel(_read)


def read_weights(w: Weights) -> int:
    """Reads what one token's forward pass reads of prepared weights; the bytes of it."""
    parts = [p.data for _, s in w.matrices() if isinstance(s, Stack) for p in s.parts]
    out = np.empty((max(-(-len(p) // PIECE) for p in parts), 32), np.int32)
    run_now(*(read.job(-(-len(p) // PIECE), 4, at(p), len(p), at(out), barrier=p is parts[-1]) for p in parts))
    return sum(map(len, parts))
