"""A home-made engine of quantised GGUF files, as a stranger writes one: its own reader, its own decoders of ggml's
blocks (by ggml's C structs, none of this package's code), NumPy, activations and cache as ggml has them or in float32.

What an engine gets wrong is a method of a subclass (cases_quantised.py). It dumps an .npz, the stages by name.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

A = np.ndarray
f32 = np.float32
NUMBERS = {"F32": 0, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13,
           "Q6_K": 14, "MXFP4": 39}  # fmt: skip
SIZES = {"F32": (1, 4), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q8_0": (32, 34), "Q2_K": (256, 84),
         "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "MXFP4": (32, 17)}  # fmt: skip
SCALES = {"Q4_0": 0, "Q4_1": 0, "Q5_0": 0, "Q8_0": 0, "Q2_K": 80, "Q3_K": 108, "Q4_K": 0, "Q5_K": 0, "Q6_K": 208}
MIDDLE = {"Q4_1": -7.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}  # minimum over scale, of blocks whose mean is 0
LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], f32)
WEIGHTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def half(b: A) -> A:
    return np.ascontiguousarray(b).view(np.float16).astype(f32)


def six_bits(b: A) -> tuple[A, A]:
    """Scales and minima of Q4_K and Q5_K, from their 12 bytes."""
    low, high, last = b[:, :4], b[:, 4:8], b[:, 8:12]
    scales = np.concatenate([low & 63, (last & 15) | (low >> 6) << 4], 1)
    return scales, np.concatenate([high & 63, last >> 4 | (high >> 6) << 4], 1)


def four_bits(b: A, fmt: str) -> A:
    """Codes of Q4_K, and the lower bits of those of Q5_K."""
    q = b[:, -128:].reshape(-1, 4, 32)
    return np.stack([q & 15, q >> 4], 2).reshape(-1, 256)


def decode(fmt: str, b: A, **other: Any) -> A:
    """[blocks, bytes] -> [blocks, values]. other: what a wrong decoder has instead: codes, scales."""
    n = len(b)
    if fmt == "F32":
        return b.reshape(-1).view(f32).reshape(-1, 1).copy()
    if fmt == "Q8_0":
        return half(b[:, :2]) * other.get("codes", b[:, 2:].view(np.int8)).astype(f32)
    if fmt in ("Q4_0", "Q4_1", "Q5_0", "MXFP4"):
        q = b[:, -16:]
        codes = other.get("codes", np.concatenate([q & 15, q >> 4], 1)).astype(np.int32)
        if fmt == "MXFP4":
            return LEVELS[codes] * np.ldexp(f32(1), b[:, :1].astype(np.int32) - 128).astype(f32)
        if fmt == "Q4_1":
            return half(b[:, :2]) * codes.astype(f32) + half(b[:, 2:4])
        if fmt == "Q5_0":
            bits = other.get("bits", np.unpackbits(b[:, 2:6], axis=1, bitorder="little")).astype(np.int32)
            return half(b[:, :2]) * ((codes | bits << 4) - 16).astype(f32)
        return half(b[:, :2]) * (codes - other.get("zero", 8)).astype(f32)
    if fmt == "Q6_K":
        ql = b[:, :128].astype(np.int32).reshape(n, 2, 64)
        low = np.stack([ql & 15, ql >> 4], 2).reshape(n, 2, 4, 32)
        high = b[:, 128:192].astype(np.int32).reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6])[:, None] & 3
        codes = (low + other.get("weight", 16) * high).reshape(n, 256) - 32
        return half(b[:, 208:]) * np.repeat(b[:, 192:208].view(np.int8).astype(f32), 16, 1) * codes.astype(f32)
    if fmt in ("Q4_K", "Q5_K"):
        scale, least = other.get("scales", six_bits)(b[:, 4:16])
        codes = other["codes"] if "codes" in other else four_bits(b, fmt).astype(np.int32)
        if fmt == "Q5_K" and "codes" not in other:
            codes |= (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1).reshape(n, 256).astype(
                np.int32
            ) << 4
        d, dmin = half(b[:, :2]), half(b[:, 2:4])
        return np.repeat(d * scale, 32, 1) * codes.astype(f32) - np.repeat(dmin * least, 32, 1)
    codes = (b[:, -68:-4] if fmt == "Q2_K" else b[:, 32:96]).reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[
        :, None
    ]
    codes = (codes & 3).astype(np.int32).reshape(n, 256)
    if fmt == "Q2_K":
        codes, s = other.get("codes", codes), b[:, :16]
        d, dmin = half(b[:, 80:82]), half(b[:, 82:84])
        return np.repeat(d * (s & 15), 16, 1) * codes.astype(f32) - np.repeat(dmin * (s >> 4), 16, 1)
    s = b[:, 96:108].astype(np.int32)
    low, high = (
        np.concatenate([s[:, :8] & 15, s[:, :8] >> 4], 1),
        np.concatenate([s[:, 8:] >> 2 * j & 3 for j in range(4)], 1),
    )
    scale = (low | high << 4) - 32 if "scales" not in other else other["scales"](low)
    third = (b[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1).reshape(n, 256).astype(np.int32)
    return np.repeat(half(b[:, 108:]) * scale.astype(f32), 16, 1) * (codes - 4 + 4 * third).astype(f32)


# -- a file -----------------------------------------------------------------------------------------------------------


def random_blocks(fmt: str, values: int, std: float, rng: np.random.Generator) -> bytes:
    """Random codes under scales that give values of that standard deviation, and a mean of 0."""
    block, size = SIZES[fmt]
    if fmt == "F32":
        return (std * rng.standard_normal(values)).astype(f32).tobytes()
    b = rng.integers(0, 256, (values // block, size), np.uint8)
    if fmt == "MXFP4":
        b[:, 0] = 128 + round(np.log2(std / 5.2)) + rng.integers(-1, 2, len(b))
        return b.tobytes()
    at, spread = SCALES[fmt], rng.uniform(0.6, 1.5, (len(b), 1))
    if fmt == "Q2_K":
        b[:, :16] = (b[:, :16] & 15) * 17
    elif fmt in ("Q4_K", "Q5_K"):
        b[:, 8:12], b[:, 12:16] = b[:, 4:8], (b[:, 12:16] & 15) * 17
    size_of = 1.0
    for _ in range(2):  # the second time by what the first has shown
        b[:, at : at + 2] = (spread * size_of).astype(np.float16).view(np.uint8)
        if fmt in MIDDLE:
            b[:, at + 2 : at + 4] = (spread * size_of * MIDDLE[fmt]).astype(np.float16).view(np.uint8)
        size_of = std / float(decode(fmt, b).std())
    return b.tobytes()


def text(s: str) -> bytes:
    return struct.pack("<Q", len(s)) + s.encode()


def write_model(path: Path, formats: dict[str, str], seed: int = 0, **sizes: int) -> None:
    """A GGUF file of a small Qwen2 with random weights. formats: of WEIGHTS, `token_embd` and `output`."""
    c = {"D": 256, "N": 4, "K": 2, "H": 64, "F": 512, "V": 403, "L": 2} | sizes
    D, N, K, H, F, V, L = (c[k] for k in "DNKHFVL")
    rng = np.random.default_rng(seed)
    shape = dict(zip(WEIGHTS, ((N * H, D), (K * H, D), (K * H, D), (D, N * H), (F, D), (F, D), (D, F)), strict=True))
    tensors = [("token_embd.weight", (V, D), formats["token_embd"], 0.3), ("output_norm.weight", (D,), "F32", 0.0),
               ("output.weight", (V, D), formats["output"], D**-0.5)]  # fmt: skip
    for i in range(L):
        tensors += [(f"blk.{i}.{n}.weight", (D,), "F32", 0.0) for n in ("attn_norm", "ffn_norm")]
        tensors += [(f"blk.{i}.{n}.weight", shape[n], formats[n], shape[n][1] ** -0.5) for n in WEIGHTS]
        tensors += [
            (f"blk.{i}.{n}.bias", shape[n][:1], "F32", std) for n, std in zip(WEIGHTS, (0.5, 2.0, 0.1), strict=False)
        ]
    keys = {"block_count": L, "context_length": 4096, "embedding_length": D, "feed_forward_length": F,
            "attention.head_count": N, "attention.head_count_kv": K, "rope.freq_base": 1e6,
            "attention.layer_norm_rms_epsilon": 1e-6}  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys) + 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("qwen2")
    for k, v in keys.items():
        head += text(f"qwen2.{k}") + (struct.pack("<II", 4, v) if isinstance(v, int) else struct.pack("<If", 6, v))
    body = b""
    for name, dims, fmt, std in tensors:
        head += text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *reversed(dims))
        head += struct.pack("<IQ", NUMBERS[fmt], len(body))
        values = int(np.prod(dims))
        gains = (1 + 0.2 * rng.standard_normal(values)).astype(f32).tobytes()
        body += random_blocks(fmt, values, std, rng) if std else gains
        body += bytes(-len(body) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...], A]]]:
    """Keys; and of each tensor its format, its shape, outermost first, and its blocks."""
    m, at = np.fromfile(path, np.uint8), 8

    def take(form: str) -> Any:
        nonlocal at
        (v,) = struct.unpack_from("<" + form, m, at)
        at += struct.calcsize("<" + form)
        return v

    def string() -> str:
        nonlocal at
        n = take("Q")
        at += n
        return bytes(m[at - n : at]).decode()

    n_tensors, n_keys = take("Q"), take("Q")
    keys = {string().removeprefix("qwen2."): {8: string, 4: lambda: take("I"), 6: lambda: take("f")}[take("I")]()
            for _ in range(n_keys)}  # fmt: skip
    told = []
    for _ in range(n_tensors):
        name = string()
        dims = tuple(take("Q") for _ in range(take("I")))[::-1]
        told.append((name, dims, take("I"), take("Q")))
    start, names, tensors = at + -at % 32, {v: k for k, v in NUMBERS.items()}, {}
    for name, dims, number, offset in told:
        block, size = SIZES[names[number]]
        raw = m[start + offset :][: int(np.prod(dims)) // block * size]
        tensors[name] = names[number], dims, raw.reshape(-1, size)
    return keys, tensors


# -- the engine -------------------------------------------------------------------------------------------------------


def in_blocks(x: A, size: int) -> A:
    return x.reshape(-1, size)


def q8_0(x: A) -> A:
    """What Q8_0 keeps of x: ggml's reference routine."""
    b = in_blocks(x, 32)
    d = (np.abs(b).max(1, keepdims=True) / f32(127)).astype(f32)
    v = b * np.divide(f32(1), d, out=np.zeros_like(d), where=d > 0)
    codes = np.sign(v) * np.floor(np.abs(v) + f32(0.5))
    return (codes * d.astype(np.float16).astype(f32)).astype(f32).reshape(x.shape)


def q8_k(x: A) -> A:
    b = in_blocks(x, 256)
    top = b[np.arange(len(b)), np.abs(b).argmax(1)][:, None]
    i = np.divide(f32(-127), top, out=np.zeros_like(top), where=top != 0)
    codes = np.minimum(127, np.rint(i * b))
    return (codes * np.divide(f32(1), i, out=np.zeros_like(i), where=i != 0)).astype(f32).reshape(x.shape)


def to_half(x: A) -> A:
    return x.astype(np.float16).astype(f32)


class Engine:
    """A right one. Subclasses get something wrong, or do it in another right way.

    eight: activations in 8 bits, as ggml, and 16-bit operands of attention. phase, layer, name: where it is.
    """

    eight = False

    def __init__(self, path: Path) -> None:
        keys, self.tensors = read_model(path)
        self.L, self.N, self.K = (keys[k] for k in ("block_count", "attention.head_count", "attention.head_count_kv"))
        self.H = self.tensors["blk.0.attn_k.weight"][1][0] // self.K
        self.theta, self.eps = keys["rope.freq_base"], f32(keys["attention.layer_norm_rms_epsilon"])
        self.cache: list[list[A]] = [[] for _ in range(self.L)]
        self.held: dict[str, A] = {}
        self.dump: dict[str, A] = {}
        self.phase, self.layer, self.name, self.past = 0, 0, "", 0

    # What there is to get wrong.

    def decoded(self, fmt: str, shape: tuple[int, ...], blocks: A) -> A:
        return decode(fmt, blocks)

    def operand(self, x: A, fmt: str) -> A:
        if not self.eight or fmt == "F32":
            return x
        return q8_k(x) if fmt.endswith("_K") else q8_0(x)

    def product(self, x: A, w: A, fmt: str) -> A:
        return (x.astype(np.float64) @ w.T.astype(np.float64)).astype(f32)

    def norm(self, x: A, gain: A) -> A:
        return x * (f32(1) / np.sqrt(self.mean_square(x) + self.eps)) * gain

    def mean_square(self, x: A) -> A:
        return (x * x).sum(1, keepdims=True) / f32(x.shape[1])

    def second_norm(self, x: A, before: A, added: A, gain: A) -> A:
        return self.norm(x, gain)

    def table(self, pos: A) -> tuple[A, A]:
        """Cosines and sines [T, H / 2]."""
        angle = pos[:, None] * self.theta ** (-np.arange(self.H // 2) * 2.0 / self.H)
        return np.cos(angle).astype(f32), np.sin(angle).astype(f32)

    def turned(self, x: A, pos: A) -> A:
        (c, s), h = (t[:, None] for t in self.table(pos)), self.H // 2
        a, b = x[..., :h], x[..., h:]
        return np.concatenate([a * c - b * s, b * c + a * s], -1).astype(f32)

    def queries(self, q: A) -> A:
        return q

    def stored(self, x: A) -> A:
        return to_half(x) if self.eight else x

    def heads(self, q: A, k: A, v: A) -> tuple[A, A, A]:
        return q, k, v

    def kept(self, x: A) -> A:
        """The cache as attention reads it."""
        return x

    def scores(self, q: A, k: A) -> A:
        return np.einsum("tnh,snh->nts", q, k) * f32(self.H**-0.5)

    def soft_max(self, s: A) -> A:
        e = np.exp(s - s.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def add(self, x: A, y: A) -> A:
        return x + y

    def gated(self, gate: A, up: A) -> A:
        return gate / (f32(1) + np.exp(-gate)) * up

    def mlp(self, x: A, residual: A, added: A) -> tuple[A, A]:
        return self.linear(x, "ffn_gate"), self.linear(x, "ffn_up")

    # What there is.

    def weight(self, name: str) -> A:
        if name not in self.held:
            fmt, shape, blocks = self.tensors[name]
            with np.errstate(all="ignore"):
                self.held[name] = self.decoded(fmt, shape, blocks).reshape(shape)
        return self.held[name]

    def linear(self, x: A, name: str) -> A:
        self.name = name
        full = f"blk.{self.layer}.{name}.weight" if name != "output" else "output.weight"
        fmt = self.tensors[full][0]
        return self.product(self.operand(x, fmt), self.weight(full), fmt)

    def vector(self, name: str) -> A:
        return self.weight(f"blk.{self.layer}.{name}").ravel()

    def put(self, name: str, x: A, layer: int | None = None) -> A:
        place = f"phase-{self.phase}/" * bool(self.phase) + ("" if layer is None else f"layer-{layer}/")
        self.dump[place + name] = np.array(x)
        return x

    def attend(self, q: A, k: A, v: A) -> A:
        self.cache[self.layer].append(np.stack([self.stored(k), self.stored(v)]))
        k, v = (np.repeat(self.kept(x), self.N // self.K, 1) for x in np.concatenate(self.cache[self.layer], 1))
        if self.eight:
            q = to_half(q)
        T, S = len(q), len(k)
        seen = np.arange(S) <= np.arange(S - T, S)[:, None]
        p = self.soft_max(np.where(seen, self.scores(q, k), f32(-np.inf)))
        return np.einsum("nts,snh->tnh", to_half(p) if self.eight else p, v).astype(f32)

    def run(self, ids: list[int], pos: A | None = None) -> int:
        """A pass; the token that follows."""
        T = len(ids)
        pos = np.arange(self.past, self.past + T) if pos is None else pos
        self.put("tokens", np.array(ids, np.int32)), self.put("positions", pos.astype(np.int32))
        x = self.put("embedding", self.weight("token_embd.weight")[ids])
        for i in range(self.L):
            self.layer = i
            y = self.put("attn_norm", self.norm(x, self.vector("attn_norm.weight")), i)
            qkv = [self.linear(y, n) + self.vector(f"{n}.bias") for n in WEIGHTS[:3]]
            self.put("qkv_bias", np.concatenate(qkv, 1), i)
            q, k, v = (part.reshape(T, -1, self.H) for part in qkv)
            q, k = self.queries(self.turned(q, pos)), self.turned(k, pos)
            self.put("q_post_rope", q, i), self.put("k_post_rope", k, i)
            y = self.put("attention", self.attend(*self.heads(q, k, v)), i)
            added, before = self.put("attn_out", self.linear(y.reshape(T, -1), "attn_output"), i), x
            x = self.put("post_attn_residual", self.add(x, added), i)
            y = self.put("ffn_norm", self.second_norm(x, before, added, self.vector("ffn_norm.weight")), i)
            y = self.put("ffn_swigl", self.gated(*self.mlp(y, x, added)), i)
            y = self.put("ffn_out", self.linear(y, "ffn_down"), i)
            x = self.put("post_ffn_residual", x + y, i)
        y = self.put("final_norm", self.norm(x, self.weight("output_norm.weight").ravel()))
        logits = self.put("lm_head", self.linear(y[-1:], "output"))
        self.past, self.phase = self.past + T, self.phase + 1
        return int(np.nan_to_num(logits[0]).argmax())
