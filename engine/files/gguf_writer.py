"""Writes GGUF v3, streaming; gguf-py's writer wants each tensor whole in memory."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate
from reprlib import repr as brief
from typing import IO, Any

import numpy as np

from ...errors import BadInput
from ...quant.ggml import NUMBERS as TYPES
from .gguf_header import KINDS, MAX_NAME, NUMBERS
from .writing import Planned, Told, padding, write_tensors

ALIGNMENT = 32

Pair = tuple[str, str, Any]  # key, kind as Metadata.kind spells it ("u32", "str", "[str]"), value


def write_gguf(file: IO[bytes], pairs: Iterable[Pair], tensors: Sequence[Planned], told: Told) -> None:
    """Keys and tensors in their order. Raises BadInput for what GGUF does not hold: a value, a tensor's name."""
    pairs = list(pairs)
    file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs)))
    for key, kind, value in pairs:
        try:
            file.write(_text(key) + _value(kind, value))
        except (struct.error, OverflowError, TypeError, ValueError):
            raise BadInput(f"key {key:.80} is {brief(value)}, which is no {kind} as GGUF holds it") from None
    sizes = [t.size + padding(t.size, ALIGNMENT) for t in tensors]
    for t, offset in zip(tensors, accumulate(sizes, initial=0), strict=False):
        if len(t.name.encode()) > MAX_NAME:
            raise BadInput(f"tensor {t.name!r:.80}: GGUF holds names of {MAX_NAME} bytes")
        shape = struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *t.shape[::-1])
        file.write(_text(t.name) + shape + struct.pack("<IQ", TYPES[t.format], offset))
    file.write(bytes(padding(file.tell(), ALIGNMENT)))
    write_tensors(file, tensors, ALIGNMENT, told)


def _value(kind: str, value: Any) -> bytes:
    """A value with its type before it."""
    if not kind.startswith("["):
        number = KINDS.index(kind)
        return struct.pack("<I", number) + (_text(value) if kind == "str" else NUMBERS[number].pack(value))
    inner = KINDS.index(kind[1:-1])
    head = struct.pack("<IIQ", KINDS.index("array"), inner, len(value))
    if kind == "[str]":
        return head + b"".join(map(_text, value))
    code = NUMBERS[inner].format
    return head + np.asarray(value, code if kind != "[bool]" else np.uint8).tobytes()


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
