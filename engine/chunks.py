"""A long prompt goes through the page some positions at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

CHUNK = 512  # positions at once: bounds the N T S scores of a long prompt


def chunks(ids: Sequence[int]) -> Iterator[tuple[range, NDArray[np.int32]]]:
    """(positions, tokens [T]) of each pass over these ids, in order."""
    for start in range(0, len(ids), CHUNK):
        tokens_T = np.array(ids[start : start + CHUNK], np.int32)
        yield range(start, start + len(tokens_T)), tokens_T
