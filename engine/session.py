"""What a conversation keeps from answer to answer: keys and values of the ids that were fed."""

from __future__ import annotations

from collections.abc import Sequence

from .config import Config
from .kernels import Backend, Cache

STEP = 2048  # positions that a cache grows by: one that is full is made anew, and the prompt fed again


class Session:
    """ids: those whose keys and values the cache holds. A prompt that begins with them is fed from there on.

    Only on a backend where a token's results have the same bits alone and among others (Backend.ALIKE): elsewhere an
    answer would depend on what was said before it in which pieces.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._cache: Cache | None = None

    def begin(self, ids: Sequence[int], room: int, c: Config, ops: Backend, precision: str) -> tuple[Cache, int]:
        """A cache with room for so many positions, and how many of a prompt's ids it holds: not the last one, whose
        logits are wanted. Until the caller says what was fed, nothing was.
        """
        kept = next((n for n, pair in enumerate(zip(self.ids, ids, strict=False)) if pair[0] != pair[1]), None)
        kept = min(len(self.ids) if kept is None else kept, len(ids) - 1)
        if self._cache is None or self._cache.capacity < room or not ops.ALIKE:
            self._cache, kept = ops.new_cache(c, max(room, min(-(-room // STEP) * STEP, c.context)), precision), 0
        self._cache.length, self.ids = kept, []
        return self._cache, kept
