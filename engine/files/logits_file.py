"""The file in which llama-perplexity keeps all logits of a text (`--save-all-logits`, `--kl-divergence-base`).

Little-endian: `_logits_`, then int32 context, vocabulary and number of windows, the windows' ids, and for each position
that is scored (the second half of a window, without its last) a row of 16-bit numbers: two float32 in the first four,
scale and least log-probability, then a code for each token, log p = least + scale x code. What is 16 or more below the
likeliest has code 0. (llama.cpp, tools/perplexity/perplexity.cpp.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput

MAGIC = b"_logits_"
HEAD = struct.Struct("<8siii")
DEPTH = 16  # below the likeliest's logit; what is further down is not told apart
MAX_VOCABULARY, MAX_IDS = 1 << 22, 1 << 28


def scored(context: int) -> range:
    """The positions of a window whose next token is scored: those of its second half."""
    return range(context // 2, context - 1)


def width(vocabulary: int) -> int:
    """16-bit numbers of a row: the codes, an even number of them, behind the two floats."""
    return 2 * ((vocabulary + 1) // 2) + 4


@dataclass(frozen=True, slots=True)
class LogitsFile:
    """An opened file. ids: of all windows; rows: [windows, scored positions, numbers], mapped."""

    path: Path
    context: int
    vocabulary: int
    ids: tuple[int, ...]
    rows: NDArray[np.uint16]

    def log_probabilities(self, window: int, first: int, count: int) -> NDArray[np.float64]:
        """[count, V] of the scored positions from `first` on, counted within the window."""
        rows = np.ascontiguousarray(self.rows[window, first : first + count])
        scale, least = rows[:, :4].copy().view("<f4").astype(np.float64).T
        codes = rows[:, 4 : 4 + self.vocabulary].astype(np.float64)
        return least[:, None] + scale[:, None] * codes


def open_logits(path: Path) -> LogitsFile:
    """Raises BadInput for what is no such file, or is cut."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD.size)
            if not head.startswith(MAGIC):
                raise BadInput(
                    f"{path}: no file of logits as llama-perplexity saves them (it begins with {head[:8]!r})"
                )
            if len(head) < HEAD.size:
                raise BadInput(f"{path}: ends in its header")
            _, context, vocabulary, windows = HEAD.unpack(head)
            if not (4 <= context <= MAX_IDS and 0 < vocabulary <= MAX_VOCABULARY and 0 < windows * context <= MAX_IDS):
                raise BadInput(f"{path}: claims {windows} windows of {context} ids out of {vocabulary}")
            ids = np.frombuffer(file.read(4 * context * windows), "<i4")
        shape = (windows, len(scored(context)), width(vocabulary))
        start = HEAD.size + 4 * context * windows
        takes = start + 2 * shape[0] * shape[1] * shape[2]
        if len(ids) < context * windows or path.stat().st_size != takes:
            raise BadInput(f"{path}: holds {path.stat().st_size:,} bytes, where {windows} windows take {takes:,}")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise BadInput(f"{path}: token id {ids.min() if ids.min() < 0 else ids.max()} is outside its vocabulary")
    return LogitsFile(path, context, vocabulary, tuple(ids.tolist()), np.memmap(path, "<u2", "r", start, shape))


def write_head(file: IO[bytes], context: int, vocabulary: int, ids: Sequence[int]) -> None:
    """ids: of all windows, one behind the other."""
    file.write(HEAD.pack(MAGIC, context, vocabulary, len(ids) // context))
    file.write(np.array(ids, "<i4").tobytes())


def write_rows(file: IO[bytes], logits_TV: NDArray[np.floating]) -> None:
    """The rows of some positions, in float32 as llama-perplexity computes them."""
    x = logits_TV.astype(np.float32)
    top = x.max(1, keepdims=True)
    least = np.maximum(x.min(1, keepdims=True), top - np.float32(DEPTH))
    total = np.log(np.exp(x - top, dtype=np.float32).sum(1, dtype=np.float64, keepdims=True)).astype(np.float32)
    scale = (top - least) / np.float32(65535)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint((x - least) * (np.float32(1) / scale))
    rows = np.zeros((len(x), width(x.shape[1])), "<u2")
    rows[:, :4] = np.concatenate([scale, least - top - total], 1).astype("<f4").view("<u2")
    rows[:, 4 : 4 + x.shape[1]] = np.where((scale > 0) & (x > least), codes, 0)
    file.write(rows.tobytes())
