"""Logits of every position of a text, a block at a time: what `generate` does not need, and `evaluate` lives on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunks import chunks
from .forward import EVERY, forward
from .kernels import Backend, Kernels
from .tap import SILENT
from .weights import Weights

BLOCK = 64  # positions whose logits are in memory at once: 39 MB of a vocabulary of 151,936


def all_logits(
    ids: Sequence[int], w: Weights, ops: Backend, precision: str, first: int = 0
) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """(position, logits [n, V] of it and the next n - 1) of the positions from `first` on, in order.

    The same bits as prefill gives for each position's own prefix; the array's memory may be used anew at the next.
    """
    cache, body = ops.new_cache(w.config, len(ids), precision), replace(w, lm_head=None)

    def hidden(tokens_T: NDArray[np.int32], ops: Kernels) -> Any:
        return forward(tokens_T, body, cache, ops, SILENT, EVERY)

    def logits(x_TD: Any, ops: Kernels) -> Any:
        return ops.linear(x_TD, w.lm_head)

    for positions, tokens_T in chunks(ids, ops.CHUNK, causal=w.config.causal):
        x_TD = ops.batch(partial(hidden, tokens_T))
        for at in range(max(first, positions.start), positions.stop, BLOCK):
            rows = slice(at - positions.start, min(at + BLOCK, positions.stop) - positions.start)
            yield at, ops.to_host(ops.batch(partial(logits, x_TD[rows])))
