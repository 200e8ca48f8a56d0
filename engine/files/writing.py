"""What the writers of all containers share: a tensor yet to be written, and its bytes on their way into a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Told = Callable[[int], None]  # is told how many bytes more are written


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


def write_tensors(file: Sink, tensors: Sequence[Planned], alignment: int, told: Told) -> None:
    """All tensors in their order, each followed by zeros up to a multiple of the alignment."""
    for t in tensors:
        written = 0
        for chunk in t.chunks():
            file.write(chunk.data)
            written += chunk.size
            told(chunk.size)
        if written != t.size:
            raise AssertionError(f"tensor {t.name}: {written} bytes were made, {t.size} were planned")
        file.write(bytes(padding(t.size, alignment)))
