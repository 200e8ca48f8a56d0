"""A backend that runs the CUDA backend and checks each call against float64 on that call's own inputs.

The bounds are worst cases: a sum of n terms in float32, in any order, is off by at most about n u times the sum of
their sizes (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), u = 2^-24.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from qwenref.engine.config import ALL, Config
from qwenref.engine.kernels import Cache, backend
from qwenref.engine.weights import Layer, Weights, parts
from qwenref.quant.tensor import QTensor, dequantize
from qwenref.tools.dev.gpu_sections import rounded_as_ggml

U = 2.0**-24
CUDA: Any = backend("cuda")
REFERENCE: Any = backend("reference")


def within(stage: str, got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> float:
    """The largest error in units of its bound."""
    assert got.shape == want.shape, f"{stage}: {got.shape}, not {want.shape}"
    assert got.dtype == np.float32
    ratios = np.abs(got - want) / (bound + 2.0**-126)
    ratio = float(np.max(ratios))
    assert ratio <= 1, f"{stage}: {ratio:.3g} of the bound at {np.unravel_index(np.argmax(ratios), got.shape)}"
    return ratio


def minima(w: QTensor) -> np.ndarray:
    """The sizes of what a format takes off each value: [O, I]."""
    if w.format != "Q4_K":
        return np.zeros(w.shape)
    blocks = w.data.reshape(-1, 144).copy()
    blocks[:, 16:] = 0
    return np.abs(dequantize(replace(w, data=blocks.reshape(-1)))).astype(np.float64)


class Pair:
    """A matrix or vector on the card, and the file's tensors."""

    def __init__(self, card: Any, *tensors: QTensor) -> None:
        self.card, self.tensors = card, tensors


class Judge:
    """The page's functions: CUDA's results, each judged. `worst` is the nearest to a bound that any came."""

    PRECISIONS = CUDA.PRECISIONS

    def __init__(self) -> None:
        self.worst: dict[str, float] = {}
        self.precision = "f32"

    def prepare(self, w: Weights, precision: str) -> Weights:
        self.precision, card = precision, CUDA.prepare(w, precision)

        def paired(here: Layer, there: Layer) -> Layer:
            of = {f.name: (getattr(there, f.name), *parts(getattr(here, f.name))) for f in fields(Layer)}
            return Layer(**{name: Pair(*both) for name, both in of.items() if both[0] is not None})

        layers = tuple(map(paired, w.layers, card.layers))
        return replace(
            card,
            embed=Pair(card.embed, w.embed),
            layers=layers,
            final_norm_D=Pair(card.final_norm_D, w.final_norm_D),
            lm_head=Pair(card.lm_head, w.lm_head),
        )

    def new_cache(self, c: Config, capacity: int, precision: str) -> Cache:
        return CUDA.new_cache(c, capacity, precision)

    def positions(self, cache: Any, count: int, causal: bool = True) -> Any:
        return CUDA.positions(cache, count, causal)

    def append(self, cache: Any, layer: int, k_TKH: Any, v_TKH: Any) -> Any:
        return CUDA.append(cache, layer, k_TKH, v_TKH)

    def advance(self, cache: Any, count: int) -> None:
        CUDA.advance(cache, count)

    def see(self, stage: str, got: Any, want: np.ndarray, bound: Any) -> Any:
        ratio = within(stage, CUDA.to_host(got), want, np.broadcast_to(bound, want.shape))
        self.worst[stage] = max(self.worst.get(stage, 0.0), ratio)
        return got

    def embed(self, tokens_T: Any, w: Pair) -> Any:
        got = CUDA.embed(tokens_T, w.card)
        want = np.concatenate([dequantize(w.tensors[0], i, i + 1) for i in np.asarray(tokens_T).tolist()])
        assert np.array_equal(CUDA.to_host(got).view(np.uint32), want.view(np.uint32)), "embed is not bit for bit"
        return got

    def rms_norm(self, x_TD: Any, gain: Pair, eps: float) -> Any:
        x, g = wide(x_TD), dequantize(gain.tensors[0]).astype(np.float64)
        want = REFERENCE.rms_norm(x, g, eps)
        return self.see("rms_norm", CUDA.rms_norm(x_TD, gain.card, eps), want, (x.shape[-1] / 2 + 6) * U * np.abs(want))

    def linear(self, x_TI: Any, w: Pair) -> Any:
        x, want, bound = CUDA.to_host(x_TI), [], []
        for t in w.tensors:
            w_OI, a_TI = dequantize(t).astype(np.float64), rounded_as_ggml(x, t, self.precision)
            sizes_OI = np.abs(w_OI) + 2 * minima(t)  # |s q| + |m|, which the kernel sums apart, for w = s q - m
            want.append(a_TI @ w_OI.T)
            bound.append((x.shape[1] + 8) * U * (np.abs(a_TI) @ sizes_OI.T))
        return self.see("linear", CUDA.linear(x_TI, w.card), np.concatenate(want, 1), np.concatenate(bound, 1))

    def add(self, x: Any, y: Any) -> Any:
        b = np.concatenate([dequantize(t) for t in y.tensors]) if isinstance(y, Pair) else CUDA.to_host(y)
        a, b = wide(x), b.astype(np.float64)
        return self.see("add", CUDA.add(x, y.card if isinstance(y, Pair) else y), a + b, U * np.abs(a + b))

    def mul(self, x: Any, y: Any) -> Any:
        want = wide(x) * wide(y)
        return self.see("mul", CUDA.mul(x, y), want, U * np.abs(want))

    def silu(self, x: Any) -> Any:
        want = REFERENCE.silu(wide(x))
        return self.see("silu", CUDA.silu(x), want, (5 + np.abs(wide(x))) * U * np.abs(want))

    def rope(self, x: Any, pos: Any, inv_freq_h: Any, magnitude: float = 1.0) -> Any:
        a, p = wide(x), np.arange(pos.T, dtype=np.int32) + int(pos.start.copy_to_host()[0])
        want = REFERENCE.rope(a, p, inv_freq_h.copy_to_host(), magnitude)
        first, last = np.split(magnitude * np.abs(a), 2, axis=-1)
        rounded = 3 if magnitude == 1 else 5  # the magnitude's own, and that of the product
        bound = rounded * U * np.concatenate([first + last] * 2, -1)
        return self.see("rope", CUDA.rope(x, pos, inv_freq_h, magnitude), want, bound)

    def attn_scores(self, q: Any, k: Any, pos: Any) -> Any:
        a, b, p = wide(q), side(k, pos), positions(pos)
        want, sizes = REFERENCE.attn_scores(a, b, p), REFERENCE.attn_scores(np.abs(a), np.abs(b), p)
        got = CUDA.attn_scores(q, k, pos)
        assert not np.any(CUDA.to_host(got)[:, REFERENCE._after(p, pos.S)])
        return self.see("attn_scores", got, want, (a.shape[2] + 3) * U * sizes)

    def softmax(self, scores: Any, pos: Any, window: int = ALL) -> Any:
        x, p = wide(scores), positions(pos)
        want = REFERENCE.softmax(x, p, window)
        below = np.where(want > 0, np.abs(x - np.where(want > 0, x, -np.inf).max(-1, keepdims=True)), 0)
        return self.see(
            "softmax", CUDA.softmax(scores, pos, window), want, (below + below.max() + pos.S + 8) * U * want
        )

    def attn_mix(self, probs: Any, v: Any, pos: Any) -> Any:
        a, b, p = wide(probs), side(v, pos), positions(pos)
        want, sizes = REFERENCE.attn_mix(a, b, p), REFERENCE.attn_mix(a, np.abs(b), p)
        return self.see("attn_mix", CUDA.attn_mix(probs, v, pos), want, (pos.S + 3) * U * sizes)

    def to_host(self, x: Any) -> Any:
        return CUDA.to_host(x)


def wide(x: Any) -> np.ndarray:
    return CUDA.to_host(x).astype(np.float64)


def positions(pos: Any) -> np.ndarray:
    return np.arange(pos.T, dtype=np.int32) + int(pos.start.copy_to_host()[0])


def side(x: Any, pos: Any) -> np.ndarray:
    """The S positions so far, [S, K, H]."""
    flat = x.data[x.at : x.at + pos.S * x.K * x.H].copy_to_host()
    return flat.reshape(pos.S, x.K, x.H).astype(np.float64)
