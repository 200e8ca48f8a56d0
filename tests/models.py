"""Whole small models in memory, as if they had been opened from a file, for the tests of containers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qwenref.engine.bind import bind
from qwenref.engine.files import Checkpoint, Vocabulary
from qwenref.engine.forward import forward
from qwenref.engine.kernels import reference
from qwenref.engine.models.architecture import Spelling
from qwenref.engine.tap import SILENT
from qwenref.engine.weights import Weights, parts
from qwenref.quant.tensor import QTensor

from .tiny import tiny_weights

PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))  # openai/gpt-2, encoder.py: bytes_to_unicode
BYTES = [chr(b) for b in PRINTABLE] + [chr(0x100 + n) for n in range(256 - len(PRINTABLE))]
MERGES = ["l o", "lo w", "Ġ t", "Ġt h", "\u0120 \u0120"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def vocabulary(rows: int, **changes: Any) -> Vocabulary:
    """All bytes, five merges, three control tokens, a user-defined one; the other rows of the embedding are padding."""
    tokens = [*BYTES, *(m.replace(" ", "") for m in MERGES), *SPECIAL, "<tool_call>"]
    types = [1] * (len(tokens) - 4) + [3, 3, 3, 4]
    end = tokens.index("<|endoftext|>")
    pads = range(len(tokens), rows)
    whole = Vocabulary(
        tokens=tokens + [f"[PAD{i}]" for i in pads],
        merges=MERGES,
        types=types + [5] * len(pads),
        model="gpt2",
        pre="qwen2",
        bos_id=end,
        eos_ids=(end + 2, end),
        pad_id=end,
        chat_template=TEMPLATE,
    )
    return replace(whole, **changes)


def leaves(w: Weights) -> Iterator[tuple[str, QTensor]]:
    """Every tensor of a model with its ggml name, each once."""
    a = w.config.architecture
    yield a.whole["embed"].ggml, w.embed
    for i, layer in enumerate(w.layers):
        for field in (f for f in a.pieces if f in w.pieces):
            for t, tensor in zip(a.pieces[field], parts(getattr(layer, field)), strict=True):
                yield t.ggml.format(i), tensor
    yield a.whole["final_norm_D"].ggml, w.final_norm_D
    if not w.config.tie_word_embeddings:
        yield a.whole["lm_head"].ggml, w.lm_head


def model(formats: str | Mapping[str, str] = "F32", *, spell: Spelling = "ggml", **sizes: Any) -> Checkpoint:
    """A Checkpoint of tiny_weights(formats=..., **sizes), its tensors named as `spell` says."""
    w = tiny_weights(formats=formats, **{"vocab": 272} | sizes)
    tensors = {}
    for name, t in leaves(w):
        spelled = w.config.architecture.renamed(name, spell)
        assert spelled is not None
        tensors[spelled] = QTensor(t.format, t.shape, t.data, spelled)
    return Checkpoint(
        path=Path(__file__),
        files=(),
        container="memory",
        config=w.config,
        tensors=tensors,
        metadata={},
        vocabulary=lambda: vocabulary(w.config.vocab_size),
    )


def logits(m: Checkpoint, ids: tuple[int, ...] = (3, 200, 17, 9)) -> np.ndarray:
    """Of the last of the ids, by the reference backend in f32."""
    w = reference.prepare(bind(m.config, m.tensors), "f32")
    return forward(np.array(ids, np.int32), w, reference.new_cache(m.config, 16, "f32"), reference, SILENT)
