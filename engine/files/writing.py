"""What the writers of all containers share: a tensor yet to be written, its bytes on their way into a file, and what a
model says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import Checkpoint
from .vocabulary import UNUSED, Vocabulary

Progress = Callable[[int], None]  # is told how many bytes more are written


class Sink(Protocol):
    """What bytes can be written to: a binary file, or what counts or sums up on the way to one."""

    def write(self, data: Any, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written.

    name: as the container has it; format, shape, size (bytes): as in QTensor; chunks: its bytes, uint8 1-D, piece by
    piece, so that a tensor is never whole in memory.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    size: int
    chunks: Callable[[], Iterator[NDArray[np.uint8]]]


def padding(size: int, alignment: int) -> int:
    return -size % alignment


def write_tensors(file: Sink, tensors: Sequence[Planned], alignment: int, show: Progress) -> None:
    """All tensors in their order, each followed by zeros up to a multiple of the alignment."""
    for t in tensors:
        written = 0
        for chunk in t.chunks():
            file.write(chunk.data)
            written += chunk.size
            show(chunk.size)
        if written != t.size:
            raise AssertionError(f"tensor {t.name}: {written} bytes were made, {t.size} were planned")
        file.write(bytes(padding(t.size, alignment)))


def padded(v: Vocabulary, rows: int) -> Vocabulary:
    """A token for every row of the embedding; llama.cpp names those that mean nothing [PAD<id>]."""
    more = range(len(v.tokens), rows)
    return replace(v, tokens=v.tokens + [f"[PAD{i}]" for i in more], types=list(v.types) + [UNUSED] * len(more))


def most_common_format(tensors: list[Planned]) -> str:
    values: Counter[str] = Counter()
    for t in tensors:
        values[t.format] += prod(t.shape)
    return values.most_common(1)[0][0]


def about(source: Checkpoint) -> dict[str, Any]:
    """What the source says of itself (general.name, general.license, ...), from GGUF or by way of APR."""
    kept = source.metadata.get("source_metadata") if source.container == "APR v2" else source.metadata
    plain = (str, int, float, bool)
    return {
        key: value
        for key, value in (kept.items() if isinstance(kept, Mapping) else ())
        if key.startswith("general.")
        and key
        not in ("general.architecture", "general.alignment", "general.file_type", "general.quantization_version")
        and (isinstance(value, plain) or (isinstance(value, list) and all(isinstance(x, str) for x in value)))
    }


def shortest(x: float) -> float:
    """The shortest decimal that is this float32, as Rust's serde writes one."""
    return float(str(np.float32(x)))
