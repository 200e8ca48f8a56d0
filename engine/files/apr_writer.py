"""Writes APR v2 as aprender's own writer does: sorted index, row-major flag, header checksum, CRC-32 footer."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import BadInput
from ...quant.ggml import NUMBERS
from .apr import HEADER, ROW_MAJOR
from .writing import Planned, Sink, Told, padding, write_tensors

ALIGNMENT = 64
CODES = {"F32": 0, "F16": 1, "Q4_K": 12, "Q6_K": 14, "BF16": 30, "APRQ4": 128, "APRQ8": 129}
# aprender has no code for these; realizar reads ggml's own, told apart from aprender's meaning by the byte count.
RAW_GGML = {name: NUMBERS[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q5_K")}


class Checked:
    """A file that keeps the CRC-32 of what was written."""

    def __init__(self, file: Sink) -> None:
        self.file, self.crc = file, 0

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self.file.write(data)


def write_apr(file: Sink, metadata: Mapping[str, Any], tensors: Sequence[Planned], told: Told) -> None:
    """metadata: JSON as it is to stand in the file, in its order. Raises BadInput for a name that is too long."""
    tensors = sorted(tensors, key=lambda t: t.name.encode())
    text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode()
    index, offset = b"", 0
    for t in tensors:
        name = t.name.encode()
        if len(name) > 256:
            raise BadInput(f"tensor {t.name!r:.80}: {len(name)} bytes of name; APR holds 256")
        code = CODES[t.format] if t.format in CODES else RAW_GGML[t.format]
        index += struct.pack(f"<H{len(name)}sBB", len(name), name, code, len(t.shape))
        index += struct.pack(f"<{len(t.shape)}QQQ", *t.shape, offset, t.size)
        offset += t.size + padding(t.size, ALIGNMENT)
    text_padded = text + bytes(padding(len(text), ALIGNMENT))
    index_padded = index + bytes(padding(len(index), ALIGNMENT))
    index_at = HEADER.size + len(text_padded)
    data_at = index_at + len(index_padded)

    def header(checksum: int) -> bytes:
        return HEADER.pack(
            b"APR\0", 2, 0, ROW_MAJOR, len(tensors), HEADER.size, len(text), index_at, data_at, checksum, bytes(20)
        )

    plain = header(0)
    out = Checked(file)
    out.write(header(zlib.crc32(plain[:40] + plain[44:])))
    out.write(text_padded)
    out.write(index_padded)
    write_tensors(out, tensors, ALIGNMENT, told)
    file.write(struct.pack("<I", out.crc))
