"""bitsandbytes' 4-bit products on a CPU with AVX512-BF16, emulated: level and size rounded apart, activations and
result rounded, too. tests/oracle/test_dump_hf.py runs the real ones."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from qwenref.engine.weights import Weights, parts
from qwenref.quant import nf4
from qwenref.quant.tensor import QTensor, dequantize
from qwenref.trace.verify.finding import EXACT, REPRODUCED
from qwenref.trace.verify.recipes.facts.requantised import FACT
from qwenref.trace.verify.recipes.loaded import LEVELS
from qwenref.trace.verify.recipes.loaded import ROWS as LOADED
from qwenref.trace.verify.recipes.matrix import FileMatrix, matrix_of
from qwenref.trace.verify.recipes.products import plain_product
from qwenref.trace.verify.recipes.recipe import Recipe
from qwenref.trace.verify.report.text import engine_words
from qwenref.trace.verify.span import FLOAT32, Span
from qwenref.trace.verify.verify import verify

from ...engines import Run, dot, dump_of, engine, f32, to_bfloat16
from ...scored import Score, healthy
from ...tiny import tiny_weights

A = np.ndarray
GROUP = 64
BLOCK = np.dtype([("absmax", "<f4"), ("qs", "u1", GROUP // 2)])
TOKENS = np.random.default_rng(3).integers(0, 259, 11).tolist()


def quantised(q: QTensor) -> QTensor:
    """The nearest level of each weight, times its group's largest size."""
    w = dequantize(q).reshape(-1, GROUP)
    b = np.zeros(len(w), BLOCK)
    b["absmax"] = np.abs(w).max(1)
    codes = np.abs(w[..., None] / b["absmax"][:, None, None] - nf4.LEVELS).argmin(-1).astype(np.uint8)
    b["qs"] = codes[:, 0::2] << 4 | codes[:, 1::2]
    return QTensor(f"NF4/{GROUP}/F32", q.shape, b.view(np.uint8).reshape(-1), q.name)


@cache
def weights() -> Weights:
    w = tiny_weights(layers=2, hidden=256, head_dim=32, heads=8, mlp=384, formats="F16")
    names = ("attn_out", "gate_up", "ffn_down")

    def of(parts: Any) -> Any:
        return tuple(map(quantised, parts)) if isinstance(parts, tuple) else quantised(parts)

    layers = (replace(l, qkv=of(l.qkv), **{name: of(getattr(l, name)) for name in names}) for l in w.layers)
    return replace(w, layers=tuple(layers))


def product(rounded: Any, x: A, q: QTensor) -> A:
    if not q.format.startswith("NF4"):
        return rounded(dot(x, rounded(dequantize(q))))
    b = q.data.view(BLOCK)
    levels = to_bfloat16(nf4.LEVELS)[np.stack((b["qs"] >> 4, b["qs"] & 15), -1).reshape(len(b), GROUP)]
    w = (levels * to_bfloat16(b["absmax"])[:, None]).reshape(q.shape)
    return to_bfloat16(dot(to_bfloat16(x), w))


@pytest.mark.parametrize(("name", "rounded"), [("bfloat16", to_bfloat16), ("float32", lambda x: np.asarray(x, f32))])
def test_healthy_and_one_mistake(name: str, rounded: Any, score: Score) -> None:
    kernels = engine(
        rounded=rounded,
        linear=lambda x, w: np.concatenate([product(rounded, x.reshape(len(x), -1), q) for q in w.parts], 1),
    )
    v = verify(dump_of(weights(), kernels, TOKENS, steps=[5]), weights())
    healthy(v, "bitsandbytes on a CPU", name, score)
    assert "4-bit levels and sizes in bfloat16" in engine_words(v)

    def wrong(run: Run, y: A) -> A:
        """One level of the sixteen is its neighbour."""
        q = run.weights.layers[1].ffn_down.parts[0]
        b = q.data.view(BLOCK).copy()
        b["qs"] = np.where(b["qs"] & 15 == 9, b["qs"] + 1, b["qs"])
        changed = replace(q, data=b.view(np.uint8).reshape(-1))
        return product(rounded, run.get("ffn_swigl"), changed)

    v = verify(dump_of(weights(), kernels, TOKENS, mistakes={("ffn_out", 1): wrong}), weights())
    assert {(f.layer, f.stage) for f in v.findings if f.verdict not in (EXACT, REPRODUCED)} == {(1, "ffn_out")}


@pytest.mark.parametrize("kind", LOADED)
def test_what_is_made_of_a_matrix_is_a_row_like_the_others(kind: str) -> None:
    """Its words are there; rows come by number, the same in whatever pieces."""
    w = FileMatrix(quantised(*parts(tiny_weights(layers=1, mlp=128).layers[0].ffn_down)))
    rows = LOADED[kind].rows(w)
    whole, pieces = rows(0, 64), [rows(0, 5), rows(5, 64)]
    for end in ("mid", "lo", "hi"):
        assert np.array_equal(getattr(whole, end), np.concatenate([getattr(part, end) for part in pieces]))
    assert "bfloat16" in FACT.words(kind, FLOAT32) or "matrices in" in FACT.words(kind, FLOAT32)


def test_a_format_without_levels_is_left_as_it_is() -> None:
    """Also the minima of its groups, whose sums may be added apart, are its own."""
    w = matrix_of(*parts(tiny_weights(layers=1, formats="Q4_1").layers[0].ffn_down))
    x = Span.point(np.random.default_rng(5).standard_normal((3, w.shape[1])))
    plain, bnb = (plain_product(r, x, w) for r in (Recipe(), Recipe(requantised=LEVELS)))
    assert np.array_equal(plain.mid, bnb.mid)
    assert np.array_equal(plain.radius, bnb.radius)
