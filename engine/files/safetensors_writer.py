"""Writes a folder as Hugging Face's save_pretrained leaves it; the weights streaming, where the library wants every
tensor in memory. The rules are in safetensors.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from ...errors import BadInput
from ..models import Architecture
from . import Checkpoint
from .carried import held
from .end_of_generation import stops
from .fields import Fields
from .safetensors import BYTES
from .sentence_transformers import write_pooling
from .tokenizer_json import spell
from .vocabulary import Vocabulary
from .writing import Planned, Progress, most_common_format, padding, shortest, write_tensors

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
HOLDS = frozenset(DTYPES)


def write(
    folder: Path, source: Checkpoint, v: Vocabulary | None, tensors: list[Planned], recoded: str | None, show: Progress
) -> None:
    """config.json, generation_config.json, tokenizer.json, tokenizer_config.json, model.safetensors."""
    c, a = held(source, "safetensors"), source.config.architecture
    config = dict(source.metadata["config"]) if source.container == "safetensors" else {}
    for said_anew in (
        "torch_dtype",
        "rope_scaling",
        "partial_rotary_factor",
        "layer_types",
        "sliding_window",
        "original_max_position_embeddings",
    ):
        config.pop(said_anew, None)
    config |= {"architectures": [f"{a.title}{c.head.kind}"], "dtype": DTYPES[most_common_format(tensors)]}
    config |= c.spelled() | {"rms_norm_eps": shortest(c.rms_norm_eps), "rope_theta": shortest(c.rope_theta)}
    config |= {"rope_parameters": {"rope_theta": shortest(c.rope_theta)} | c.rope_scaling.spelled()}
    config |= _asked(a, tensors)
    for own in ("windows", "dual_chunk", "causal", "head"):
        config.pop(own, None)
    config |= {"hidden_act": "silu", **a.hf_full, **c.sliding}
    if v is not None:
        eos = stops(v)
        ids = {"bos_token_id": v.bos_id, "eos_token_id": eos[0] if eos else None, "pad_token_id": v.pad_id}
        config |= ids
        generation = dict(source.metadata["generation_config"]) if source.container == "safetensors" else {}
        if not Fields(generation, "generation_config.json").ids("eos_token_id"):
            generation.pop("eos_token_id", None)
        _save(folder / "generation_config.json", ids | {"eos_token_id": eos} | generation)
        (folder / "tokenizer.json").write_text(spell(v), encoding="utf-8")

        def spelled(i: int | None) -> str | None:
            return None if i is None or i >= len(v.tokens) else v.tokens[i]

        settings = {
            "tokenizer_class": a.tokenizer_class,
            "add_bos_token": bool(v.prefix),
            "add_eos_token": bool(v.suffix),
            "add_prefix_space": None if v.spaces else False,
            "bos_token": spelled(v.bos_id) if v.prefix else None,
            "eos_token": spelled(eos[0]) if eos else None,
            "pad_token": spelled(v.pad_id),
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "model_max_length": c.context,
            "split_special_tokens": False,
        }
        if v.chat_template is not None:
            settings["chat_template"] = v.chat_template
        _save(folder / "tokenizer_config.json", settings)
    if not c.causal:
        config["is_causal"] = False
    if c.head.labels:
        config.pop("num_labels", None)
        config |= {"id2label": dict(enumerate(c.head.labels)), "pad_token_id": c.head.pad}
        config["label2id"] = {name: i for i, name in enumerate(c.head.labels)}
    if c.head.pooling:
        write_pooling(folder, c.head.pooling, c.hidden_size)
    _save(folder / "config.json", config)
    with (folder / "model.safetensors").open("xb") as file:
        write_safetensors(file, {"format": "pt"}, tensors, show)


def _asked(a: Architecture, tensors: Sequence[Planned]) -> dict[str, bool]:
    """The fields that say which optional pieces there are. Raises BadInput for some of those that one field is of."""
    found = a.found(t.name for t in tensors)
    for field, pieces in a.optional.items():
        there = [found[piece][0] for piece in pieces if piece in found]
        lacking = [t.hf.format(0) for piece, stacked in pieces.items() if piece not in found for t in stacked]
        if there and lacking:
            raise BadInput(
                f"{there[0]} is there, and {lacking[0]} is not: config.json's {field} is of both; keep the model as "
                "GGUF or APR"
            )
    return {field: any(piece in found for piece in pieces) for field, pieces in a.optional.items()}


def write_safetensors(file: IO[bytes], about: Mapping[str, str], tensors: Sequence[Planned], show: Progress) -> None:
    """about: __metadata__. Wider elements come first and spaces pad the header, so that every tensor is aligned."""
    tensors = sorted(tensors, key=lambda t: -BYTES[t.format])
    ends = list(accumulate(t.size for t in tensors))
    header: dict[str, object] = {"__metadata__": dict(about)}
    for t, end in zip(tensors, ends, strict=True):
        header[t.name] = {"dtype": t.format, "shape": list(t.shape), "data_offsets": [end - t.size, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * padding(len(text), 8)
    file.write(len(text).to_bytes(8, "little") + text)
    write_tensors(file, tensors, 1, show)


def _save(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
