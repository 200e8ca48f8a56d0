"""Foreign engines in NumPy, and their dumps: the page run with other arithmetic, and with mistakes planted by its tap.

Each engine is written from what the real one does (Hugging Face's modeling_qwen2, ggml's CPU kernels), in float32 and in
the formats that it rounds to; nothing here knows the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from qwenref.engine.config import Config
from qwenref.engine.forward import forward
from qwenref.engine.kernels import reference
from qwenref.engine.weights import Weights
from qwenref.quant import q8_0, q8_1, q8_k
from qwenref.quant.tensor import QTensor, dequantize
from qwenref.trace.dump import Dump, Entry
from qwenref.trace.stages import execution_order, stage

f32 = np.float32


@dataclass(frozen=True, slots=True)
class Held(Entry):
    """An entry in memory."""

    array: Any = None

    def values(self) -> np.ndarray:
        return self.array


def sizes(c: Config) -> dict[str, int]:
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    return {"D": c.hidden_size, "N": N, "K": K, "H": H, "E": (N + 2 * K) * H, "F": c.intermediate_size, "V": c.vocab_size}


# -- arithmetic -------------------------------------------------------------------------------------------------------


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Nearest, ties to even, by integer arithmetic on the bits."""
    bits = np.asarray(x, f32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(f32)


def to_float16(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, f32).astype(np.float16).astype(f32)


def transformers(rounded: Callable[[np.ndarray], np.ndarray]) -> SimpleNamespace:
    """Hugging Face's eager Qwen2 in a 16-bit type: every module's result is rounded; norm and soft-max work in float32."""
    base = reference

    def linear(x: np.ndarray, w: Any) -> np.ndarray:
        return rounded(np.concatenate([x @ rounded(slab).T for slab in w.slabs()], 1))

    def rms_norm(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
        scale = f32(1) / np.sqrt(np.mean(np.square(x), -1, keepdims=True, dtype=f32) + f32(eps))
        return rounded(rounded(gain) * rounded(x * scale))

    def rope(x: np.ndarray, pos: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
        angle = pos.astype(f32)[:, None] * inv_freq
        cos, sin = (rounded(f(np.concatenate([angle, angle], 1)))[:, None] for f in (np.cos, np.sin))
        a, b = np.split(x, 2, -1)
        return rounded(rounded(x * cos) + rounded(np.concatenate([-b, a], -1) * sin))

    def attn_scores(q: np.ndarray, k: np.ndarray, pos: np.ndarray) -> np.ndarray:
        H = f32(np.sqrt(q.shape[-1]))
        raw = rounded(base.attn_scores(q, k, pos) * H)
        return rounded(raw / H)

    return SimpleNamespace(
        embed=lambda t, w: rounded(base.embed(t, w)),
        rms_norm=rms_norm,
        linear=linear,
        add=lambda x, y: rounded(x + rounded(y)),
        mul=lambda x, y: rounded(x * y),
        silu=lambda x: rounded(base.silu(x)),
        rope=rope,
        attn_scores=attn_scores,
        softmax=lambda s, pos: rounded(base.softmax(s, pos)),
        attn_mix=lambda p, v, pos: rounded(base.attn_mix(p, v, pos)),
        prepare=base.prepare,
        new_cache=base.new_cache,
        to_host=base.to_host,
    )


OPERAND = {"Q4_0": q8_0, "Q5_0": q8_0, "Q8_0": q8_0, "Q4_1": q8_1, "Q4_K": q8_k, "Q5_K": q8_k, "Q6_K": q8_k, "Q3_K": q8_k}


def ggml(halves: bool) -> SimpleNamespace:
    """llama.cpp's CPU path: 8-bit activations block by block, float32 sums; keys, values and their partners as halves or not;
    RoPE's angle by repeated multiplication."""
    base = reference
    cached = to_float16 if halves else (lambda x: x)

    def part(x: np.ndarray, q: QTensor) -> np.ndarray:
        f = OPERAND.get(q.format)
        w = dequantize(q)
        if f is None:
            return x @ w.T
        blocks = f.encode(x.reshape(-1, f.BLOCK))
        x8 = f.decode(blocks).reshape(len(x), -1, f.BLOCK)
        y = np.zeros((len(x), len(w)), f32)
        for b in range(x8.shape[1]):  # one block after the other, as ggml_vec_dot does
            y = y + x8[:, b] @ w[:, b * f.BLOCK : (b + 1) * f.BLOCK].T
        if f is q8_1:
            s = blocks.view(q8_1.STRUCT)[:, 0]
            sums = (s["s"].astype(f32) - s["d"].astype(f32) * s["qs"].sum(1, dtype=f32)).reshape(len(x), -1)
            m = q.data.reshape(len(w), -1, 20)[..., 2:4].copy().view("<f2")[..., 0].astype(f32)
            y = y + sums @ m.T
        return y

    def rope(x: np.ndarray, pos: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
        h = len(inv_freq)
        theta_scale, theta, columns = inv_freq[1], pos.astype(f32), []
        for _ in range(h):
            columns.append(theta)
            theta = theta * theta_scale
        angle = np.stack(columns, 1)[:, None]
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)

    def rms_norm(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
        mean = np.mean(np.square(x), -1, keepdims=True, dtype=np.float64).astype(f32)
        return x * (f32(1) / np.sqrt(mean + f32(eps))) * gain

    return SimpleNamespace(
        embed=base.embed,
        rms_norm=rms_norm,
        linear=lambda x, w: np.concatenate([part(x, q) for q in w.parts], 1),
        add=base.add,
        mul=base.mul,
        silu=base.silu,
        rope=rope,
        attn_scores=lambda q, k, pos: base.attn_scores(cached(q), cached(k), pos),
        softmax=base.softmax,
        attn_mix=lambda p, v, pos: base.attn_mix(cached(p), cached(v), pos),
        prepare=base.prepare,
        new_cache=base.new_cache,
        to_host=base.to_host,
    )


ENGINES: dict[str, Any] = {
    "float32": reference,
    "HF float32": transformers(lambda x: np.asarray(x, f32)),
    "HF float16": transformers(to_float16),
    "HF bfloat16": transformers(to_bfloat16),
    "ggml, 16-bit KV": ggml(True),
    "ggml, 32-bit KV": ggml(False),
}


# -- dumps ------------------------------------------------------------------------------------------------------------

Mistake = Callable[["Run", np.ndarray], np.ndarray]


@dataclass
class Run:
    """A forward pass that is being dumped, as a tap: what its layer holds so far is there for a mistake to use.

    mistakes: (stage, layer) -> a function of the run and the right value that returns the wrong one; the pass goes on with it.
    """

    weights: Weights
    kernels: Any
    mistakes: Mapping[tuple[str, int | None], Mistake] = field(default_factory=dict)
    entries: list[Held] = field(default_factory=list)
    phase: int = 0
    pos: tuple[int, ...] = ()
    at: int | None = 0

    @property
    def config(self) -> Config:
        return self.weights.config

    @property
    def pos_T(self) -> np.ndarray:
        return np.array(self.pos, np.int32)

    def layer(self, index: int) -> Callable[[str, Any], Any]:
        return lambda name, value: self.put(name, index, value)

    def whole(self, name: str, value: Any) -> Any:
        return self.put(name, None, value)

    def put(self, name: str, layer: int | None, value: Any) -> Any:
        self.at = layer
        mistake = self.mistakes.get((name, layer))
        value = np.asarray(value if mistake is None else mistake(self, value), f32)
        pos = self.pos if "T" in stage(name).letters else self.pos[-1:]
        self.entries.append(Held(Path(name), stage(name), layer, self.phase, value.shape, pos, array=value.copy()))
        return value

    def get(self, name: str, layer: int | None = -1, phase: int | None = None) -> np.ndarray:
        """A stage's value so far."""
        key = (self.phase if phase is None else phase, self.at if layer == -1 else layer, name)
        return next(e.array for e in reversed(self.entries) if e.key == key)

    def all_so_far(self, name: str) -> np.ndarray:
        """Rows of every position so far, of this layer."""
        return np.concatenate([e.array for e in self.entries if e.layer == self.at and e.stage.name == name])

    def before(self) -> np.ndarray:
        return self.get("embedding", 0) if self.at == 0 else self.get("post_ffn_residual", self.at - 1)


def dump_of(
    weights: Weights,
    engine: Any,
    tokens: Sequence[int],
    *,
    steps: Sequence[int] = (),
    mistakes: Mapping[tuple[str, int | None], Mistake] | None = None,
    manifest: bool = True,
) -> Dump:
    """What an engine dumps for a prompt and further tokens, one step each."""
    k = ENGINES[engine] if isinstance(engine, str) else engine
    prepared = k.prepare(weights, "f32")
    cache = k.new_cache(weights.config, len(tokens) + len(steps), "f32")
    run = Run(prepared, k, mistakes or {})
    for phase, ids in enumerate([list(tokens), *([t] for t in steps)]):
        run.phase, run.pos = phase, tuple(range(cache.length, cache.length + len(ids)))
        forward(np.array(ids, np.int32), prepared, cache, k, run)
    told = {"tokens": [*tokens, *steps]} if manifest else {}
    entries = run.entries if manifest else [replace(e, positions=None) for e in run.entries]
    return Dump(Path("dump"), told, sizes(weights.config), ordered(entries))


def ordered(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda e: (e.phase, execution_order(e.stage, e.layer))))


def changed(dump: Dump, keep: Callable[[Entry], Entry | None]) -> Dump:
    """The dump with entries changed or left out."""
    return Dump(dump.path, dump.run, dump.sizes, tuple(e for e in map(keep, dump.entries) if e is not None))


def with_values(e: Entry, array: np.ndarray) -> Held:
    return Held(e.path, e.stage, e.layer, e.phase, array.shape, e.positions, e.capture, array=np.asarray(array, f32))
