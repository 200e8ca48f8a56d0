"""GGUF, llama.cpp's container (ggml/docs/gguf.md): versions 2 and 3, little-endian, in one file or split into parts."""

from __future__ import annotations

from pathlib import Path

from . import Checkpoint


def recognises(path: Path, head: bytes) -> bool:
    return head.startswith(b"GGUF")


def open(path: Path) -> Checkpoint:
    raise NotImplementedError
