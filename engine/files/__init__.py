"""Containers: one file each, path -> Checkpoint. `open_checkpoint` asks each by the file's first bytes, not by its suffix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...quant.tensor import QTensor
from ..config import Config


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a file says about text: a byte-level BPE.

    tokens: by id, spelled in GPT-2's byte alphabet ("Ġthe"); merges: "left right", best first;
    types: ggml's token types by id (1 normal, 3 control, 4 user-defined, 5 unused, 6 byte);
    model, pre: ggml's names of the algorithm ("gpt2") and of the pre-tokenizer ("qwen2");
    eos_ids: every id that ends an answer. tokenizer_json: Hugging Face's own file, where the model has one; then it rules.
    """

    tokens: list[str]
    merges: list[str]
    types: list[int]
    model: str
    pre: str
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    add_bos: bool
    chat_template: str | None
    tokenizer_json: str | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened model file or folder.

    tensors: by the names that the file uses, in file order, memory-mapped; metadata: the file's own key/value pairs, for
    `engine inspect` and `engine convert`; vocabulary: reads the tokenizer when called, None if the file has none.
    """

    path: Path
    container: str
    config: Config
    tensors: dict[str, QTensor]
    metadata: Mapping[str, Any]
    vocabulary: Callable[[], Vocabulary | None]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a model of any known container. Raises BadInput that names the file and what is wrong with it."""
    from . import gguf

    return gguf.open_gguf(Path(path))
