"""Writes model.safetensors, streaming (the library wants every tensor in memory). The rules are in safetensors.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import IO

from .safetensors import BYTES
from .writing import Planned, Told, padding, write_tensors


def write_safetensors(file: IO[bytes], about: Mapping[str, str], tensors: Sequence[Planned], told: Told) -> None:
    """about: __metadata__. Wider elements come first and spaces pad the header, so that every tensor is aligned."""
    tensors = sorted(tensors, key=lambda t: -BYTES[t.format])
    ends = list(accumulate(t.size for t in tensors))
    header: dict[str, object] = {"__metadata__": dict(about)}
    for t, end in zip(tensors, ends, strict=True):
        header[t.name] = {"dtype": t.format, "shape": list(t.shape), "data_offsets": [end - t.size, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * padding(len(text), 8)
    file.write(len(text).to_bytes(8, "little") + text)
    write_tensors(file, tensors, 1, told)
