"""ggml's products on CUDA, emulated from its sources: 8-bit blocks of 32 whatever the weights, with the sum of the
unrounded values as a half. No device runs here."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

from qwenref.engine.weights import Weights
from qwenref.quant.tensor import QTensor, dequantize
from qwenref.trace.verify.finding import EXACT, REPRODUCED
from qwenref.trace.verify.report.text import engine_words
from qwenref.trace.verify.verify import verify

from ...engines import dump_of, engine, f32, ggml_rope, to_float16
from ...scored import Score, healthy
from ...tiny import tiny_weights

A = np.ndarray
SUMS = {"rows": ("Q4_0", "Q5_0", "Q4_1", "Q5_1", "Q4_K", "Q5_K"), "tiles": ("Q4_1", "Q5_1", "Q4_K", "Q5_K")}


@cache
def weights(kind: str) -> Weights:
    return tiny_weights(layers=2, hidden=256, head_dim=32, heads=8, mlp=256, formats=kind)


def constants(q: QTensor) -> A:
    """What each block of 32 decodes to where its codes are 0: minus its minimum or offset. [rows, blocks]."""
    record = {"Q4_K": 144, "Q5_0": 22}[q.format]
    b = q.data.reshape(len(dequantize(q)), -1, record).copy()
    b[..., 16 if q.format == "Q4_K" else 2 :] = 0
    return dequantize(replace(q, data=b.reshape(q.data.shape)))[:, ::32]


def linear(way: str, x: A, w: Any) -> A:
    return np.concatenate([product(way, x.reshape(len(x), -1), q) for q in w.parts], 1)


def product(way: str, x: A, q: QTensor) -> A:
    w, v = dequantize(q), x.reshape(len(x), -1, 32)
    top = np.abs(v).max(-1, keepdims=True)
    scale = (top / f32(127)).astype(f32)
    codes = v / scale if way == "rows" else v * (f32(127) / top)
    codes = np.copysign(np.floor(np.abs(codes) + f32(0.5)), codes)
    summed = q.format in SUMS[way]
    held = codes * (to_float16(scale) if way == "rows" or summed else scale)
    y = held.reshape(len(x), -1).astype(f32) @ w.T
    if summed:
        y = y + (to_float16(v.sum(-1)) - held.sum(-1)).astype(f32) @ constants(q).T
    return y.astype(f32)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_0", "Q6_K"])
@pytest.mark.parametrize("way", ["rows", "tiles"])
def test_healthy_and_one_mistake(way: str, kind: str, score: Score) -> None:
    made = engine(linear=partial(linear, way), rope=ggml_rope, cached=to_float16)
    tokens = np.random.default_rng(3).integers(0, 259, 9).tolist()
    v = verify(dump_of(weights(kind), made, tokens), weights(kind))
    healthy(v, "ggml on CUDA", f"{way}, {kind}", score)
    assert "as ggml on CUDA" in engine_words(v)

    def wrong(run: Any, x: A) -> A:
        y = x.copy()
        y[:, 7] *= f32(1.02)
        return y

    v = verify(dump_of(weights(kind), made, tokens, mistakes={("ffn_gate", 1): wrong}), weights(kind))
    assert {(f.layer, f.stage) for f in v.findings if f.verdict not in (EXACT, REPRODUCED)} == {(1, "ffn_gate")}
