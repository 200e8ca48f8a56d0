"""Sampling: cuts and draws, against probabilities worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenref.engine.sample import Sampling, sample
from qwenref.quant.errors import BadInput

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def draws(s: Sampling, count: int = 4000) -> np.ndarray:
    generator = np.random.default_rng(s.seed)
    return np.bincount([sample(LOGITS, s, generator) for _ in range(count)], minlength=4) / count


def test_temperature_zero_is_the_first_maximum() -> None:
    tied = np.array([0.0, 2.0, 2.0], np.float32)
    assert sample(tied, Sampling(), np.random.default_rng(0)) == 1


def test_temperature_one_draws_the_softmax() -> None:
    assert draws(Sampling(temperature=1.0)) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.03)  # 4 sigma of 4000 draws


def test_low_temperature_sharpens() -> None:
    squared = np.array([0.1, 0.4, 0.2, 0.3]) ** 2
    assert draws(Sampling(temperature=0.5)) == pytest.approx(squared / squared.sum(), abs=0.03)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert draws(Sampling(temperature=1.0, top_k=2)) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.03)


def test_top_p_keeps_the_token_that_crosses_the_mass() -> None:
    assert draws(Sampling(temperature=1.0, top_p=0.5)) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.03)
    assert draws(Sampling(temperature=1.0, top_p=0.39)) == pytest.approx([0, 1, 0, 0], abs=0.0)


@given(st.integers(0, 2**32), st.floats(0.01, 10), st.integers(0, 5), st.floats(0.01, 1))
def test_same_seed_same_tokens(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    s = Sampling(temperature, top_k, top_p, seed)
    a, b = (np.random.default_rng(seed) for _ in range(2))
    assert [sample(LOGITS, s, a) for _ in range(5)] == [sample(LOGITS, s, b) for _ in range(5)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": -1},
    ],
)
def test_senseless_values_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        Sampling(**wrong)  # type: ignore[arg-type]
