"""Attention that nobody looks at goes some queries at a time: the bits of the separate kernels, in little memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qwenref.engine.config import ALL
from qwenref.engine.kernels import Kernels, cpu

from ...tiny import tiny_config

# queries, positions before them, query heads, kv heads, head size, window, bytes of a block of scores
ATTENTION = (
    (1, 0, 1, 1, 8, ALL, 1), (1, 63, 14, 2, 64, ALL, 4096), (5, 27, 4, 2, 16, ALL, 1), (8, 120, 7, 1, 64, 33, 1 << 14),
    (33, 0, 6, 3, 40, ALL, 1 << 13), (40, 31, 12, 2, 32, 17, 1), (64, 64, 5, 1, 128, 1, 1 << 16),
    (130, 257, 3, 3, 24, 100, 1 << 15), (31, 1, 2, 1, 34, 2, 1 << 30),
)  # fmt: skip


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention_block_by_block_has_the_bits_of_the_separate_kernels(
    case: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put off, as where no tap looks, with blocks from one query to all of them; then again over what it left."""
    T, before, N, K, H, window, block = case
    monkeypatch.setattr(cpu, "BLOCK", block)
    rng, S = np.random.default_rng(T), before + T
    q_TNH, k_SKH, v_SKH = (rng.standard_normal(s, np.float32) for s in ((T, N, H), (S, K, H), (S, K, H)))
    c = replace(tiny_config(heads=N, kv_heads=K, head_dim=H, layers=1), max_position_embeddings=S)
    kernels = cpu.Cpu()
    cache = kernels.new_cache(c, S, "f32")
    kernels.append(cache, 0, k_SKH, v_SKH)
    cache.length = before
    (pos_T, _), k, v = kernels.positions(cache, T), cache.k[0], (cache.v[0], H)

    def attention(kernels: Kernels) -> Any:
        return kernels.attn_mix(kernels.softmax(kernels.attn_scores(q_TNH, k, pos_T), pos_T, window), v, pos_T)

    want = attention(kernels)
    for _ in range(2):
        assert kernels.batch(attention).tobytes() == want.tobytes()


def test_a_prompt_whose_stages_nobody_looks_at_holds_no_scores_of_it() -> None:
    """Of 600 queries of 8 heads at 6,000 positions the scores are 115 MB, the probabilities as many."""
    T, S, N = 600, 6000, 8
    c = replace(tiny_config(heads=N, kv_heads=1, head_dim=16, layers=1), max_position_embeddings=S)
    kernels = cpu.Cpu()
    cache = kernels.new_cache(c, S, "f32")
    cache.length = S - T
    (pos_T, _), q_TNH = kernels.positions(cache, T), np.ones((T, N, 16), np.float32)

    def attention(kernels: Kernels) -> Any:
        scores = kernels.attn_scores(q_TNH, cache.k[0], pos_T)
        return kernels.attn_mix(kernels.softmax(scores, pos_T), (cache.v[0], 16), pos_T)

    tracemalloc.start()
    kernels.batch(attention)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6
