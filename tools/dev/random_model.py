"""Models of real shapes with random weights, as GGUF files: what a computer without a network can measure with."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import numpy as np

from ...engine.config import Config
from ...engine.config_keys import GGUF_KEYS
from ...quant.ggml import NUMBERS
from ...quant.tensor import QTensor, format_of, quantize, row_bytes

# Qwen2.5's: layers, hidden size, heads, kv heads, head size, mlp, vocabulary, tied head.
SHAPES = {"0.5B": (24, 896, 14, 2, 64, 4864, 151936, True), "7B": (28, 3584, 28, 4, 128, 18944, 152064, False)}


def random_tensor(name: str, fmt: str, shape: tuple[int, ...], std: float, seed: int) -> QTensor:
    """Random codes under scales that give values of that standard deviation."""
    rng = np.random.default_rng(seed)
    if fmt in ("F32", "F16", "BF16"):
        values = (std * rng.standard_normal(1 << 20)).astype(np.float32)
        whole = quantize(values, fmt).data
    else:
        f = format_of(fmt)
        whole = rng.integers(0, 256, (1 << 16, f.bytes), np.uint8)
        b = whole.view(f.struct)[:, 0]
        b[f.scale] = 1
        if f.minimum is not None:
            b[f.minimum] = 7.5  # the mean code: values average to nothing
        factor = std / float(np.std(f.decode(whole[:4096]))) * rng.uniform(0.5, 1.5, len(b))
        b[f.scale] = factor
        if f.minimum is not None:
            b[f.minimum] = 7.5 * factor
        whole = whole.reshape(-1)
    size = prod(shape[:-1]) * row_bytes(fmt, shape[-1])
    return QTensor(fmt, shape, np.resize(whole, size), name)


def formats_of(name: str, layer: int, layers: int) -> dict[str, str]:
    """As llama.cpp's Q4_K_M has them (models.md of the real files): more bits for v and down in half of the layers."""
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    wide = "Q6_K" if more else "Q4_K"
    most = dict.fromkeys(("q", "k", "attn_out", "ffn_gate", "ffn_up"), "Q4_K" if name == "7B" else "Q5_0")
    return most | {"v": wide if name == "7B" else "Q8_0", "ffn_down": wide}


def write_model(path: Path, name: str, layers: int | None) -> None:
    """A GGUF file (version 3) of a shape of SHAPES with random weights and no tokenizer."""
    L, D, N, K, H, F, V, tied = SHAPES[name]
    L = layers or L
    c = Config("qwen2", D, L, N, K, H, F, V, 32768, 1e6, float(np.float32(1e-6)), tied)
    a = c.architecture
    size = {t.role: t.shape(c.sizes) for t, _ in a.tensors_of(L)}
    outer = {"embed": "Q8_0" if tied else "Q4_K", "lm_head": "Q6_K"}
    plan = []
    for t, i in a.tensors_of(L):
        of = outer if i is None else formats_of(name, i, L)
        if not (tied and t.role == "lm_head"):
            plan.append((t.role, t.ggml.format(i), of[t.role] if len(size[t.role]) > 1 else "F32"))

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    head = struct.pack("<4sIQQ", b"GGUF", 3, len(plan), 1 + len(GGUF_KEYS))
    head += string("general.architecture") + struct.pack("<I", 8) + string(a.gguf)
    for field, (key, kind) in GGUF_KEYS.items():
        typed = ("<II", 4) if kind is int else ("<If", 6)
        head += string(f"{a.gguf}.{key}") + struct.pack(*typed, getattr(c, field))
    offset, offsets = 0, []
    for role, ggml, fmt in plan:
        shape = size[role]
        head += string(ggml) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", NUMBERS[fmt], offset)
        offsets.append(offset)
        offset += -(-prod(shape[:-1]) * row_bytes(fmt, shape[-1]) // 32) * 32
    start = -(-len(head) // 32) * 32
    with path.open("wb") as file:
        file.write(head)
        for seed, ((role, ggml, fmt), at) in enumerate(zip(plan, offsets, strict=True)):
            shape = size[role]
            std = 0.5 if role.endswith("bias") else 1.0 if role == "embed" else shape[-1] ** -0.5
            w = random_tensor(ggml, fmt, shape, 0.1 if role.endswith("norm") else std, seed)
            data = w.data
            if role.endswith("norm"):
                data = (1 + w.data.view("<f4")).astype("<f4").view(np.uint8)
            file.seek(start + at)
            file.write(data.tobytes())
        file.truncate(max(file.tell(), start + offset))
