"""A long prompt goes through the page some positions at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

SCORES = 1 << 22  # of a layer, where they are in memory at once: 16 MB of float32
BLOCK = 32  # positions at least, and whole blocks of them: the keys that a vector holds


def chunks(
    ids: Sequence[int], most: int, heads: int = 0, causal: bool = True
) -> Iterator[tuple[range, NDArray[np.int32]]]:
    """(positions, tokens [T]) of each pass over these ids, in order.

    most: positions at once (Backend.CHUNK). heads: N, where a tap looks and no bit depends on the cut (Backend.ALIKE):
    a pass is then as short as SCORES has it. causal: where it is not, all of them go at once, since each sees all.
    """
    start = 0
    while start < len(ids):
        count = most if causal else len(ids)
        if heads and causal:
            count = min(most, max(BLOCK, SCORES // (heads * (start + most)) // BLOCK * BLOCK))
        tokens_T = np.array(ids[start : start + count], np.int32)
        yield range(start, start + len(tokens_T)), tokens_T
        start += count
