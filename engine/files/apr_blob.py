"""Compressed APR v2: behind the plain header, one zstd frame or one LZ4 block holds the rest of the file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput

HEADER, ZSTD = 64, 0x0002
MAX_RATIO = 64  # weights do not shrink that far; a small file that grows into a disk full of zeros does


def decompress(
    raw: NDArray[np.uint8], flag: int, metadata_at: int, metadata_size: int, path: Path
) -> NDArray[np.uint8]:
    """The file as its header's offsets mean it. zstd goes through a temporary file, which is mapped; LZ4 in memory.

    aprender's own writer sets the LZ4 flag and compresses nothing: such a file is returned as it is. Raises BadInput
    for a damaged blob, one that grows beyond reason, or a missing library.
    """
    body = raw[metadata_at : metadata_at + metadata_size]
    if body.size == metadata_size > 1 and bytes(body[[0, -1]]) == b"{}":
        return raw
    library = "zstandard" if flag == ZSTD else "lz4"
    limit = MAX_RATIO * raw.size + (1 << 20)
    try:
        blob = raw[HEADER:].data
        return _zstd(raw, blob, limit, path) if flag == ZSTD else _lz4(raw, blob, limit, path)
    except ImportError:
        raise BadInput(f"{path}: is compressed; to read it: pip install 'qwenref[apr]' ({library})") from None


def _zstd(raw: NDArray[np.uint8], blob: memoryview, limit: int, path: Path) -> NDArray[np.uint8]:
    import zstandard

    with tempfile.TemporaryFile() as file:
        file.write(raw[:HEADER].tobytes())
        try:
            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(blob) as reader:
                while chunk := reader.read(1 << 22):
                    file.write(chunk)
                    if file.tell() > limit:
                        raise BadInput(f"{path}: the compressed part grows beyond {MAX_RATIO} times its size")
        except zstandard.ZstdError as error:
            raise BadInput(f"{path}: the zstd frame at offset {HEADER} is damaged: {error}") from None
        file.flush()
        return np.memmap(file, np.uint8, "r")


def _lz4(raw: NDArray[np.uint8], blob: memoryview, limit: int, path: Path) -> NDArray[np.uint8]:
    import lz4.block

    size = int.from_bytes(blob[:4], "little")
    if size > limit:
        raise BadInput(f"{path}: the compressed part says it grows to {size} bytes, beyond {MAX_RATIO} times its size")
    try:
        plain = lz4.block.decompress(blob[4:], uncompressed_size=size)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise BadInput(f"{path}: the LZ4 block at offset {HEADER} is damaged: {error}") from None
    return np.concatenate([raw[:HEADER], np.frombuffer(plain, np.uint8)])
