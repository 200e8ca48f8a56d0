"""The judge on models whose RoPE is scaled: healthy engines of every type are explained by their own table and
magnitude, without any mistake, also at positions past the training's length and in steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qwenref.trace.verify.verify import EXACT, REPRODUCED, verify

from ...engines import dump_of
from ...tiny import scaled, tiny_weights

TYPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0 + j for j in range(8)],
        "long_factor": [2.0 + j for j in range(8)],
        "original_max_position_embeddings": 16, "attention_factor": 1.2,
    },
}  # fmt: skip
TOKENS = np.random.default_rng(3).integers(0, 259, 41).tolist()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("engine", ["HF float32", "HF bfloat16", "cpu f32", "cpu int8", "reference f64"])
@pytest.mark.parametrize("count", [7, 41])
def test_healthy(kind: str, engine: str, count: int) -> None:
    w = scaled(tiny_weights(), **TYPES[kind])
    found = verify(dump_of(w, engine, TOKENS[:count], steps=[5, 9]), w)
    assert {f.verdict for f in found.findings} <= {EXACT, REPRODUCED}
    assert found.status == 0


@pytest.mark.parametrize("engine", ["HF float32", "HF bfloat16", "cpu f32", "cpu int8", "reference f64"])
def test_healthy_with_windows(engine: str) -> None:
    w = tiny_weights(layers=3)
    w = replace(w, config=replace(w.config, windows=(0, 6, 6)))
    found = verify(dump_of(w, engine, TOKENS, steps=[5, 9]), w)
    assert {f.verdict for f in found.findings} <= {EXACT, REPRODUCED}


def test_the_long_factors_for_the_short_are_named() -> None:
    w = scaled(tiny_weights(), **TYPES["longrope"])
    other = scaled(tiny_weights(), **(TYPES["longrope"] | {"short_factor": TYPES["longrope"]["long_factor"]}))
    found = verify(dump_of(other, "HF float32", TOKENS[:7]), w)
    bad = [f for f in found.findings if f.verdict not in (EXACT, REPRODUCED)]
    assert {f.stage for f in bad} == {"q_post_rope", "k_post_rope"}
    for f in bad:
        assert "RoPE is scaled by the long factors" in [h.sentence for h in f.hypotheses]
