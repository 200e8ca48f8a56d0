"""Writes APR v2 as aprender's own writer does: sorted index, row-major flag, header checksum, CRC-32 footer."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from ...errors import BadInput
from ...quant.ggml import NUMBERS
from ..config_keys import APR_ROPE_TYPE
from . import Checkpoint
from .apr import HEADER, ROW_MAJOR
from .carried import held
from .vocabulary import Vocabulary
from .writing import Planned, Progress, Sink, about, padded, padding, shortest, write_tensors

ALIGNMENT = 64
CODES = {"F32": 0, "F16": 1, "Q4_K": 12, "Q6_K": 14, "BF16": 30, "APRQ4": 128, "APRQ8": 129}
HOLDS = frozenset(CODES)
# aprender has no code for these; realizar reads ggml's own, told apart from aprender's meaning by the byte count.
RAW_GGML = {name: NUMBERS[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q5_K")}


def write(
    place: Path, source: Checkpoint, v: Vocabulary | None, tensors: list[Planned], recoded: str | None, show: Progress
) -> None:
    """The model as one file."""
    with place.open("wb") as file:
        write_apr(file, metadata_of(source, v, tensors), tensors, show)


class Checked:
    """A file that keeps the CRC-32 of what was written."""

    def __init__(self, file: Sink) -> None:
        self.file, self.crc = file, 0

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self.file.write(data)


def write_apr(file: Sink, metadata: Mapping[str, Any], tensors: Sequence[Planned], show: Progress) -> None:
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
    write_tensors(out, tensors, ALIGNMENT, show)
    file.write(struct.pack("<I", out.crc))


def metadata_of(source: Checkpoint, v: Vocabulary | None, tensors: list[Planned]) -> dict[str, Any]:
    """The JSON of an APR file, keys in the order of aprender's struct, then the flat ones; only canonical spellings."""
    c, a = held(source, "apr"), source.config.architecture
    said_of_itself = about(source)
    said: dict[str, Any] = {
        "model_type": a.model_type,
        "name": said_of_itself.get("general.name"),
        "license": said_of_itself.get("general.license"),
        "data_source": None,
        "data_license": None,
        "original_format": source.container.split()[0].lower(),
        "total_size": sum(t.size for t in tensors),
        "param_count": sum(prod(t.shape) for t in tensors),
        "chat_template": v.chat_template if v else None,
        "architecture": a.model_type,
        "hf_architecture": a.hf_class,
        "hf_model_type": a.model_type,
        "hidden_size": c.hidden_size,
        "num_layers": c.num_hidden_layers,
        "num_heads": c.num_attention_heads,
        "num_kv_heads": c.num_key_value_heads,
        "vocab_size": c.vocab_size,
        "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_position_embeddings,
        "rope_theta": shortest(c.rope_theta),
        "rope_type": APR_ROPE_TYPE,
        "rope_scaling": c.spelled().get("rope_scaling"),
        **c.sliding,
        "rms_norm_eps": shortest(c.rms_norm_eps),
        "head_dim": c.head_dim,
        "tied_embeddings": c.tie_word_embeddings,
        "source_metadata": said_of_itself or None,
    }
    if v is not None:
        v = padded(v, c.vocab_size)
        said |= {
            "tokenizer.model": v.model,
            "tokenizer.pre_type": v.pre,
            "tokenizer.vocabulary": v.tokens,
            "tokenizer.vocab_size": len(v.tokens),
            "tokenizer.merges": v.merges,
            "tokenizer.token_type": v.types,
            "tokenizer.bos_token_id": v.bos_id,
            "tokenizer.eos_token_id": v.eos_ids[0] if v.eos_ids else None,
            "tokenizer.eos_token_ids": list(v.eos_ids),
            "tokenizer.padding_token_id": v.pad_id,
            "tokenizer.add_bos_token": bool(v.prefix),
            "tokenizer.add_eos_token": bool(v.suffix),
        }
    explicit = ("license", "data_source", "data_license")  # aprender wants to see these, be they null
    return {key: value for key, value in said.items() if value is not None or key in explicit}
