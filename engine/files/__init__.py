"""Containers: one file each, path -> Checkpoint. `open_checkpoint` goes by a file's first bytes, not by its suffix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from os.path import samestat
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...errors import BadInput
from ...quant.tensor import QTensor, dequantize, row_slabs
from ..config import Config
from .foreign import file_kind, folder_kind, model_inside
from .mapped import read_head
from .vocabulary import Vocabulary as Vocabulary


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened model file or folder.

    path: what was opened; files: all that it consists of; container: name and version ("GGUF v3");
    tensors: by the names that the file uses, in file order, memory-mapped;
    metadata: the file's own key/value pairs, for `engine inspect` and `engine convert`;
    vocabulary: reads the tokenizer when called, None if the file has none;
    notes: a line each on what is odd about the file but does no harm; commands print them on stderr.
    adapters: what was added to it, for a manifest (lora.py).
    """

    path: Path
    container: str
    config: Config
    tensors: dict[str, QTensor]
    metadata: Mapping[str, Any]
    vocabulary: Callable[[], Vocabulary | None]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    adapters: tuple[Mapping[str, Any], ...] = ()
    _stamps: tuple[os.stat_result, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_stamps", tuple(p.stat() for p in self.files))

    def check_unchanged(self) -> None:
        """Raises BadInput if a file was written to since it was opened: what was read of it may be of no model.

        Replacing or deleting it does no harm: what is mapped is what was opened.
        """
        for path, then in zip(self.files, self._stamps, strict=True):
            with suppress(FileNotFoundError):
                now = path.stat()
                if samestat(now, then) and (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
                    raise BadInput(f"{path}: was changed while it was being read; nothing of the result is kept")


MAX_TENSORS = 1 << 16  # in a file; bounds what a hostile header costs; the largest Qwen2 has 963

# The files beside this one that know a container. Each has recognises(path, head) -> bool, where head is the beginning
# of the file (nothing for a folder), and open(path) -> Checkpoint. The first that recognises the path opens it.
CONTAINERS = ("gguf", "apr", "safetensors")


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a model of any known container. Raises BadInput that names the file and what is wrong with it."""
    path = Path(path)
    if path.is_dir():
        path = model_inside(path)
    folder = path.is_dir()
    head = b"" if folder else read_head(path, 64)
    for name in CONTAINERS:
        container = import_module(f".{name}", __package__)
        if container.recognises(path, head):
            return cast(Checkpoint, container.open(path))
    known = f"it must be one of {', '.join(CONTAINERS)}"
    if folder:
        raise BadInput(f"{path}: a folder with no model in it that can be opened ({folder_kind(path) or known})")
    if not head:
        raise BadInput(f"{path}: the file is empty; is the download complete?")
    raise BadInput(f"{path}: {file_kind(path, head) or f'no known model file; {known}'} (it begins with {head[:8]!r})")


def same_values(a: QTensor, b: QTensor) -> bool:
    """Whether two matrices hold the same values, in whatever formats."""
    if a.shape != b.shape or len(a.shape) != 2:
        return False
    if 0 in a.shape or (a.format == b.format and np.array_equal(a.data, b.data)):
        return True
    return all(np.array_equal(dequantize(a, *rows), dequantize(b, *rows)) for rows in row_slabs(a, 1 << 20))
