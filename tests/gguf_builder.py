"""GGUF files of a few kilobytes, byte by byte: good ones, and ones that lie. The reader has no part in making them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
D, F, V, LAYERS, HEADS, KV, H = 16, 24, 8, 1, 4, 2, 4


def text(s: str | bytes, length: int | None = None) -> bytes:
    """A string with its length before it, or with another one."""
    raw = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def array(kind: int, values: Sequence[Any], count: int | None = None) -> bytes:
    """The bytes of an array value; `count` may say more or fewer elements than there are."""
    head = struct.pack("<IQ", kind, len(values) if count is None else count)
    if kind == STR:
        return head + b"".join(map(text, values))
    return head + struct.pack(f"<{len(values)}{CODES[kind]}", *values)


def value(kind: int, v: Any) -> bytes:
    """The bytes of a value; bytes stand for themselves."""
    if isinstance(v, bytes):
        return v
    return text(v) if kind == STR else struct.pack("<" + CODES[kind], v)


@dataclass(frozen=True)
class Tensor:
    """dims: innermost first. data: of the right size unless given; offset: where the writer is unless given."""

    name: str | bytes
    dims: tuple[int, ...]
    type: int = 0
    data: bytes = b""
    offset: int | None = None
    rank: int | None = None


def f32(name: str, *shape: int) -> Tensor:
    """Small seeded values of a shape, outermost first."""
    values = np.random.default_rng(len(name)).standard_normal(shape).astype("<f4")
    return Tensor(name, shape[::-1], 0, values.tobytes())


TOKENS = ["a", "b", "c", "ab", "Ġ", "<|endoftext|>", "<|im_end|>", "[PAD7]"]
KEYS: dict[str, tuple[int, Any]] = {
    "general.architecture": (STR, "qwen2"),
    "qwen2.block_count": (U32, LAYERS),
    "qwen2.context_length": (U32, 64),
    "qwen2.embedding_length": (U32, D),
    "qwen2.feed_forward_length": (U32, F),
    "qwen2.attention.head_count": (U32, HEADS),
    "qwen2.attention.head_count_kv": (U32, KV),
    "qwen2.rope.freq_base": (F32, 1e6),
    "qwen2.attention.layer_norm_rms_epsilon": (F32, 1e-6),
    "tokenizer.ggml.model": (STR, "gpt2"),
    "tokenizer.ggml.pre": (STR, "qwen2"),
    "tokenizer.ggml.tokens": (ARR, array(STR, TOKENS)),
    "tokenizer.ggml.token_type": (ARR, array(I32, [1, 1, 1, 1, 1, 3, 3, 5])),
    "tokenizer.ggml.merges": (ARR, array(STR, ["a b"])),
    "tokenizer.ggml.eos_token_id": (U32, 6),
    "tokenizer.ggml.bos_token_id": (U32, 5),
    "tokenizer.ggml.padding_token_id": (U32, 5),
    "tokenizer.ggml.add_bos_token": (BOOL, 0),
    "tokenizer.chat_template": (STR, "{{ messages }}"),
}
TENSORS = (
    f32("output.weight", V, D),
    f32("token_embd.weight", V, D),
    f32("blk.0.attn_norm.weight", D),
    f32("blk.0.ffn_down.weight", D, F),
    f32("blk.0.ffn_gate.weight", F, D),
    f32("blk.0.ffn_up.weight", F, D),
    f32("blk.0.ffn_norm.weight", D),
    f32("blk.0.attn_k.bias", KV * H),
    f32("blk.0.attn_k.weight", KV * H, D),
    f32("blk.0.attn_output.weight", D, HEADS * H),
    f32("blk.0.attn_q.bias", HEADS * H),
    f32("blk.0.attn_q.weight", HEADS * H, D),
    f32("blk.0.attn_v.bias", KV * H),
    f32("blk.0.attn_v.weight", KV * H, D),
    f32("output_norm.weight", D),
)


@dataclass(frozen=True)
class Gguf:
    """A file to be: a whole tiny Qwen2 with a tokenizer unless told otherwise."""

    keys: Sequence[tuple[str | bytes, int, Any]] = field(default_factory=lambda: [(k, *v) for k, v in KEYS.items()])
    tensors: Sequence[Tensor] = TENSORS
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    key_count: int | None = None
    alignment: int = 32
    tail: bytes = b""

    def put(self, key: str, kind: int, v: Any) -> Gguf:
        """With a key changed in its place, or added at the end."""
        keys = [(k, kind, v) if k == key else (k, t, old) for k, t, old in self.keys]
        return replace(self, keys=keys if key in [k for k, *_ in keys] else [*keys, (key, kind, v)])

    def drop(self, *names: str) -> Gguf:
        """Without those keys and tensors."""
        return replace(
            self,
            keys=[k for k in self.keys if k[0] not in names],
            tensors=[t for t in self.tensors if t.name not in names],
        )

    def tensor(self, name: str, **changes: Any) -> Gguf:
        """With something else about a tensor."""
        return replace(self, tensors=[replace(t, **changes) if t.name == name else t for t in self.tensors])

    def header(self) -> bytes:
        counts = [len(self.tensors), len(self.keys)]
        said = [
            n if told is None else told for n, told in zip(counts, (self.tensor_count, self.key_count), strict=True)
        ]
        out = self.magic + struct.pack("<IQQ", self.version, *said)
        for key, kind, v in self.keys:
            out += text(key) + struct.pack("<I", kind) + value(kind, v)
        at = 0
        for t in self.tensors:
            rank = len(t.dims) if t.rank is None else t.rank
            out += text(t.name) + struct.pack(f"<I{len(t.dims)}Q", rank, *t.dims)
            out += struct.pack("<IQ", t.type, at if t.offset is None else t.offset)
            at += len(t.data) + -len(t.data) % self.alignment
        return out

    def build(self) -> bytes:
        """The whole file. The last tensor is not padded, so that its end is the file's."""
        out = self.header()
        for t in self.tensors:
            out += bytes(-len(out) % self.alignment) + t.data
        return out + self.tail
