"""Writes GGUF v3, streaming; gguf-py's writer wants each tensor whole in memory. Keys are as llama.cpp's converter
spells them."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from reprlib import repr as brief
from typing import IO, Any

import numpy as np

from ...errors import BadInput
from ...quant.ggml import NUMBERS as TYPES
from ..config import GGUF_POOLINGS
from ..config_keys import GGUF_KEYS
from ..rope import UNSCALED
from . import Checkpoint, sentencepiece
from .carried import held, rope_in_gguf
from .end_of_generation import told
from .gguf_header import KINDS, MAX_NAME, NUMBERS
from .vocabulary import Vocabulary
from .writing import Planned, Progress, about, most_common_format, padded, padding, write_tensors

ALIGNMENT = 32
HOLDS = frozenset(TYPES)
# llama.cpp's llama_ftype by the format that most weights have; for readers' eyes only.
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18,
    "BF16": 32,
}  # fmt: skip

Pair = tuple[str, str, Any]  # key, kind as Metadata.kind spells it ("u32", "str", "[str]"), value


def write(
    place: Path, source: Checkpoint, v: Vocabulary | None, tensors: list[Planned], recoded: str | None, show: Progress
) -> None:
    """The model as one file. recoded: the format that its matrices were asked to become."""
    divisors = [
        Planned(name, "F32", x.shape, x.nbytes, partial(iter, [x.view(np.uint8)]))
        for name, x in rope_in_gguf(source.config).tensors.items()
    ]
    with place.open("wb") as file:
        write_gguf(file, pairs_of(source, v, tensors, recoded), [*divisors, *tensors], show)


def write_gguf(file: IO[bytes], pairs: Iterable[Pair], tensors: Sequence[Planned], show: Progress) -> None:
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
    write_tensors(file, tensors, ALIGNMENT, show)


def pairs_of(source: Checkpoint, v: Vocabulary | None, tensors: list[Planned], recoded: str | None) -> list[Pair]:
    """The keys of a GGUF file. From GGUF they are the source's own; else as llama.cpp's converter spells them."""
    file_type: Pair = ("general.file_type", "u32", FILE_TYPES.get(most_common_format(tensors), 1))
    own = source.container.startswith("GGUF")
    c, name = source.config, source.metadata["general.architecture"] if own else source.config.architecture.gguf
    scaled: list[Pair] = [(f"{name}.{key}", kind, value) for key, kind, value in rope_in_gguf(c).keys]
    if own:
        m: Any = source.metadata
        dropped = ("split.", "general.alignment") + (("general.file_type",) if recoded else ())
        if c.rope_scaling != UNSCALED:  # said anew, since some say one thing in two ways
            dropped += (f"{name}.rope.scaling.", f"{name}.rope.scale_linear")
        pairs = [(key, m.kind(key), m[key]) for key in m if not key.startswith(dropped)] + scaled
        return [*pairs, file_type] if recoded else pairs
    pairs = [("general.architecture", "str", name), ("general.type", "str", "model")]
    pairs += [(k, _kind_of(x), x) for k, x in about(source).items() if k != "general.type"]
    c = held(source, "gguf")
    pairs += [(f"{name}.{key}", "u32" if t is int else "f32", getattr(c, f)) for f, (key, t) in GGUF_KEYS.items()]
    pairs += scaled
    if c.windows:
        slides = [w > 0 for w in c.windows]
        pairs.append((f"{name}.attention.sliding_window", "u32", max(c.windows)))
        pairs.append((f"{name}.attention.sliding_window_pattern", "[bool]", slides))
    if not c.causal:
        pairs.append((f"{name}.attention.causal", "bool", False))
    if c.head.pooling:
        pairs.append((f"{name}.pooling_type", "u32", next(n for n, p in GGUF_POOLINGS.items() if p == c.head.pooling)))
    if c.head_dim * c.num_attention_heads != c.hidden_size:
        pairs += [(f"{name}.attention.{key}_length", "u32", c.head_dim) for key in ("key", "value")]
    pairs += [file_type, ("general.quantization_version", "u32", 2)]
    if v is None:
        return pairs
    v = padded(v, c.vocab_size)
    order: list[Pair] = [("tokenizer.ggml.merges", "[str]", v.merges)]
    if v.model == sentencepiece.MODEL:
        order = [
            ("tokenizer.ggml.scores", "[f32]", sentencepiece.scores_of(v.tokens, v.merges, v.types)),
            ("tokenizer.ggml.add_space_prefix", "bool", v.spaces == "prepend"),
        ]
    pairs += [
        ("tokenizer.ggml.model", "str", v.model),
        ("tokenizer.ggml.pre", "str", v.pre),
        ("tokenizer.ggml.tokens", "[str]", v.tokens),
        ("tokenizer.ggml.token_type", "[i32]", v.types),
        *order,
        ("tokenizer.ggml.add_bos_token", "bool", bool(v.prefix)),
        ("tokenizer.ggml.add_eos_token", "bool", bool(v.suffix)),
    ]
    ids = {"bos": v.bos_id, "padding": v.pad_id} | dict(zip(("eos", "eot", "eom"), told(v), strict=False))
    pairs += [(f"tokenizer.ggml.{name}_token_id", "u32", i) for name, i in ids.items() if i is not None]
    if v.chat_template is not None:
        pairs.append(("tokenizer.chat_template", "str", v.chat_template))
    if v.tokenizer_json is not None:
        pairs.append(("tokenizer.huggingface.json", "str", v.tokenizer_json))
    return pairs


def _kind_of(value: Any) -> str:
    """The type that a key of GGUF has for a value of JSON."""
    if isinstance(value, int) and not isinstance(value, bool):
        return next((kind for kind, most in (("u32", 32), ("u64", 64)) if 0 <= value < 1 << most), "i64")
    if isinstance(value, float):  # f32 is what llama.cpp reads, and what GGUF's own came from
        return "f32" if ctypes.c_float(value).value == value else "f64"
    return {bool: "bool", str: "str", list: "[str]"}[type(value)]


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
