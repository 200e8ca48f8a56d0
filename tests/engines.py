"""Foreign engines in NumPy, and their dumps: the page run with other arithmetic, and with mistakes planted by its tap.

Each engine is written from what the real one does (Hugging Face's modeling_qwen2, ggml's CPU kernels), in float32 and
in the formats that it rounds to; nothing here knows the judge. tests/oracle compares the judge with the real ones.
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
from qwenref.engine.kernels import backend, reference
from qwenref.engine.kernels.adapted import adapting
from qwenref.engine.weights import Weights
from qwenref.quant import q8_0, q8_1, q8_k
from qwenref.quant.tensor import QTensor, dequantize, format_of
from qwenref.trace.dump import Dump, Entry, ordered
from qwenref.trace.stages import by_name

f32 = np.float32


# -- arithmetic -------------------------------------------------------------------------------------------------------


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Nearest, ties to even, by integer arithmetic on the bits."""
    bits = np.asarray(x, f32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(f32)


def to_float16(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, f32).astype(np.float16).astype(f32)


def dot(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x W^T in float32, as BLAS adds."""
    return np.asarray(x, f32) @ np.asarray(w, f32).swapaxes(-1, -2)


def one_by_one(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x W^T as the plainest C loop adds: one float32 product after the other."""
    y = np.zeros((*x.shape[:-1], w.shape[-2]), f32)
    for k in range(x.shape[-1]):
        y += np.asarray(x[..., k, None], f32) * np.asarray(w[..., None, :, k], f32)
    return y


def engine(
    *,
    rounded: Callable[[np.ndarray], np.ndarray] = lambda x: np.asarray(x, f32),
    product: Callable[[np.ndarray, np.ndarray], np.ndarray] = dot,
    linear: Callable[[np.ndarray, Any], np.ndarray] | None = None,
    cached: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    rope: Callable[..., np.ndarray] | None = None,
) -> SimpleNamespace:
    """Hugging Face's eager Qwen2: norm and soft-max in float32, every module's result `rounded`.

    product: how a dot product is added. cached: what the operands of the two attention products are rounded to.
    """

    def hf_linear(x: np.ndarray, w: Any) -> np.ndarray:
        return rounded(np.concatenate([product(x, rounded(slab)) for slab in w.slabs()], 1))

    def rms_norm(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
        scale = f32(1) / np.sqrt(np.mean(np.square(x), -1, keepdims=True, dtype=f32) + f32(eps))
        return rounded(rounded(gain) * rounded(x * scale))

    def hf_rope(x: np.ndarray, pos: np.ndarray, inv_freq: np.ndarray, magnitude: float = 1.0) -> np.ndarray:
        angle = pos.astype(f32)[:, None] * inv_freq
        both = np.concatenate([angle, angle], 1)
        cos, sin = (rounded(f(both) * f32(magnitude))[:, None] for f in (np.cos, np.sin))
        a, b = np.split(x, 2, -1)
        return rounded(rounded(x * cos) + rounded(np.concatenate([-b, a], -1) * sin))

    def attn_scores(q: np.ndarray, k: np.ndarray, pos: np.ndarray) -> np.ndarray:
        q, k = cached(q).swapaxes(0, 1), cached(np.repeat(k, q.shape[1] // k.shape[1], 1)).swapaxes(0, 1)
        scores = rounded(rounded(product(q, k)) * f32(1 / np.sqrt(q.shape[-1])))
        return np.where(np.arange(k.shape[1]) > pos[:, None], f32(0), scores)

    def softmax(scores: np.ndarray, pos: np.ndarray, window: int = 1 << 30) -> np.ndarray:
        after, distance = -1, pos[:, None] - np.arange(scores.shape[2])
        x = np.where((distance <= after) | (distance >= window), f32(-np.inf), scores)
        e = np.exp(x - x.max(-1, keepdims=True))
        return rounded(e / e.sum(-1, keepdims=True, dtype=f32))

    def attn_mix(p: np.ndarray, v: np.ndarray, pos: np.ndarray) -> np.ndarray:
        v = cached(np.repeat(v, len(p) // v.shape[1], 1))
        return np.ascontiguousarray(rounded(product(cached(p), v.transpose(1, 2, 0))).swapaxes(0, 1))

    return SimpleNamespace(
        embed=lambda t, w: rounded(reference.embed(t, w)),
        rms_norm=rms_norm,
        linear=linear or hf_linear,
        add=lambda x, y: rounded(x + rounded(y)),
        mul=lambda x, y: rounded(x * y),
        scaled=lambda x, factor: rounded(x * f32(factor)),
        positions=reference.positions,
        append=reference.append,
        advance=reference.advance,
        silu=lambda x: rounded(x / (f32(1) + np.exp(-x))),
        rope=rope or hf_rope,
        attn_scores=attn_scores,
        softmax=softmax,
        attn_mix=attn_mix,
        prepare=reference.prepare,
        new_cache=reference.new_cache,
        to_host=reference.to_host,
    )


OPERAND = {
    "Q4_0": q8_0,
    "Q5_0": q8_0,
    "Q8_0": q8_0,
    "Q4_1": q8_1,
    "Q5_1": q8_1,
    "Q2_K": q8_k,
    "Q4_K": q8_k,
    "Q5_K": q8_k,
    "Q6_K": q8_k,
    "Q3_K": q8_k,
}


def ggml_linear(x: np.ndarray, w: Any) -> np.ndarray:
    """8-bit activations, block by block, float32 sums (ggml_vec_dot_*)."""
    return np.concatenate([_ggml_product(x, q) for q in w.parts], 1)


def _ggml_product(x: np.ndarray, q: QTensor) -> np.ndarray:
    f, w = OPERAND.get(q.format), dequantize(q)
    if f is None:
        return dot(x, w)
    blocks = f.encode(x.reshape(-1, f.BLOCK))
    x8 = f.decode(blocks).reshape(len(x), -1, f.BLOCK)
    y = np.zeros((len(x), len(w)), f32)
    for b in range(x8.shape[1]):
        y = y + dot(x8[:, b], w[:, b * f.BLOCK : (b + 1) * f.BLOCK])
    if f is q8_1:  # the minimum of a weight block meets the activation block's own sum, a half
        s, weights = blocks.view(q8_1.STRUCT)[:, 0], q.data.view(format_of(q.format).struct)
        sums = (s["s"].astype(f32) - s["d"].astype(f32) * s["qs"].sum(1, dtype=f32)).reshape(len(x), -1)
        y = y + dot(sums, weights["m"].astype(f32).reshape(len(w), -1))
    return y


def int16_linear(x: np.ndarray, w: Any) -> np.ndarray:
    """16-bit activations as docs/budgets.md has them."""
    y = []
    for q in w.parts:
        f, x16 = OPERAND.get(q.format), x
        if f is not None:
            blocks = x.reshape(-1, f.BLOCK)
            amax = np.abs(blocks).max(1, keepdims=True)
            x16 = (amax / f32(32639) * np.rint(blocks * (f32(32639) / amax))).reshape(x.shape)
        y.append(dot(x16, dequantize(q)))
    return np.concatenate(y, 1)


def ggml_rope(x: np.ndarray, pos: np.ndarray, inv_freq: np.ndarray, magnitude: float = 1.0) -> np.ndarray:
    """The angle by repeated multiplication (ggml_rope_cache_init), of frequencies that are not scaled."""
    assert magnitude == 1
    theta, columns = pos.astype(f32), []
    for _ in inv_freq:
        columns.append(theta)
        theta = theta * inv_freq[1]
    angle = np.stack(columns, 1)[:, None]
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)


class Cpu:
    """This package's CPU backend, in one precision.

    twin: an engine in NumPy of the same arithmetic, in which mistakes are made: a planted value is written with
    reference.Matrix, which the backend does not take, and the backend goes on with it.
    """

    def __init__(self, precision: str, twin: Any) -> None:
        self.precision, self.twin = precision, twin

    def __getattr__(self, name: str) -> Any:
        return getattr(backend("cpu"), name)

    def prepare(self, w: Weights, precision: str) -> Weights:
        self.compile_kernels(w, self.precision, lambda done, total: None)
        return backend("cpu").prepare(w, self.precision)

    def new_cache(self, c: Config, capacity: int, precision: str) -> Any:
        return backend("cpu").new_cache(c, capacity, self.precision)


class Wide:
    """The reference backend in float64, of which a dump keeps float32."""

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)

    def prepare(self, w: Weights, precision: str) -> Weights:
        return reference.prepare(w, "f64")

    def new_cache(self, c: Config, capacity: int, precision: str) -> Any:
        return reference.new_cache(c, capacity, "f64")


ENGINES: dict[str, Any] = {
    "cpu f32": Cpu("f32", reference),
    "cpu int8": Cpu("int8", SimpleNamespace(**{**vars(reference), "linear": ggml_linear})),
    "cpu int16": Cpu("int16", SimpleNamespace(**{**vars(reference), "linear": int16_linear})),
    "reference f32": reference,
    "reference f64": Wide(),
    "plain float32": engine(product=one_by_one),
    "HF float32": engine(),
    "HF float16": engine(rounded=to_float16),
    "HF bfloat16": engine(rounded=to_bfloat16),
    "ggml, 16-bit KV": engine(linear=ggml_linear, rope=ggml_rope, cached=to_float16),
    "ggml, 32-bit KV": engine(linear=ggml_linear, rope=ggml_rope),
}


# -- dumps ------------------------------------------------------------------------------------------------------------

Mistake = Callable[["Run", np.ndarray], np.ndarray]


@dataclass
class Run:
    """A forward pass that is being dumped, as a tap: what its layer holds so far is there for a mistake to use.

    mistakes: (stage, layer) -> a function of the run and the right value that returns the wrong one; the pass goes on
    with it.
    """

    weights: Weights
    kernels: Any
    mistakes: Mapping[tuple[str, int | None], Mistake] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    phase: int = 0
    pos: tuple[int, ...] = ()
    at: int | None = 0

    @property
    def config(self) -> Config:
        return self.weights.config

    @property
    def pos_T(self) -> np.ndarray:  # noqa: N802
        return np.array(self.pos, np.int32)

    def layer(self, index: int) -> Callable[[str, Any], Any]:
        return lambda name, value: self.put(name, index, value)

    def whole(self, name: str, value: Any) -> Any:
        return self.put(name, None, value)

    def put(self, name: str, layer: int | None, value: Any) -> Any:
        self.at = layer
        mistake = self.mistakes.get((name, layer))
        value = np.ascontiguousarray(value if mistake is None else mistake(self, value), f32)
        pos = self.pos if "T" in by_name(name).letters else self.pos[-1:]
        self.entries.append(Entry(Path(name), by_name(name), layer, self.phase, value.shape, pos, array=value.copy()))
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
    k = adapting(k) if weights.adapted else k
    twin = getattr(k, "twin", k)
    prepared = k.prepare(weights, "f32")
    cache = k.new_cache(weights.config, len(tokens) + len(steps), "f32")
    run = Run(prepared if twin is k else twin.prepare(weights, "f32"), twin, mistakes or {})
    for phase, ids in enumerate([list(tokens), *([t] for t in steps)]):
        run.phase, run.pos = phase, tuple(range(cache.length, cache.length + len(ids)))
        forward(np.array(ids, np.int32), prepared, cache, k, run)
    told = {"tokens": [*tokens, *steps]} if manifest else {}
    entries = run.entries if manifest else [replace(e, positions=None) for e in run.entries]
    return Dump(Path("dump"), told, weights.config.sizes, ordered(entries))


def changed(dump: Dump, keep: Callable[[Entry], Entry | None]) -> Dump:
    """The dump with entries changed or left out."""
    return Dump(dump.path, dump.run, dump.sizes, tuple(e for e in map(keep, dump.entries) if e is not None))


def with_values(e: Entry, array: np.ndarray) -> Entry:
    return Entry(e.path, e.stage, e.layer, e.phase, array.shape, e.positions, e.capture, array=np.asarray(array, f32))
