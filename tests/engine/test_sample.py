"""Sampling: cuts and draws, against probabilities worked out by hand."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal, localcontext
from itertools import accumulate, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenref.engine.sample import Sampling, sample
from qwenref.errors import BadInput

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


class Told:
    """A generator that draws the likeliest, and keeps the probabilities that it was to draw by."""

    p: np.ndarray

    def choice(self, count: int, p: np.ndarray) -> int:
        assert count == len(p)
        self.p = p
        return 0


def by_hand(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[Decimal]:
    """The definition in 60 decimal digits: softmax, the top k, the shortest beginning of at least top_p, normalised."""
    with localcontext(prec=60, Emin=-(10**17), Emax=10**17, traps=[]):
        x = sorted((Decimal(v) for v in logits), reverse=True)[: top_k or None]
        p = [((v - x[0]) / Decimal(temperature)).exp() for v in x]
        total = sum(p)
        reached = list(accumulate(v / total for v in p))
        kept = next((i for i, mass in enumerate(reached) if mass >= Decimal(top_p)), len(p) - 1) + 1
        if top_p == 1:
            kept = len(p)
        return [v / sum(p[:kept]) for v in p[:kept]]


LARGE = float(np.finfo(np.float32).max)
SMALLEST = 5e-324  # the smallest float64 above 0


@pytest.mark.parametrize("top_p", [SMALLEST, 0.25, 0.75, 1 - 2**-53, 1.0])
@pytest.mark.parametrize(
    "logits",
    [[1.5] * 4, [0.0, -0.0, 0.0], [LARGE, LARGE / 2, 0.0, -LARGE], [-LARGE] * 2, [1e38, 1e38, -1e38], [3.0],
     [2.0, 1.0, 0.5, -40.0, -700.0, -800.0], [1e-45, 0.0, -1e-45]],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_probabilities_at_every_edge(logits: list[float], top_p: float) -> None:
    x = np.array(logits, np.float32)
    for temperature, top_k in product([SMALLEST, 1e-320, 1e-300, 1e-30, 0.7, 1.0, 1e30, 1.7e308], [0, 1, 3, 2**70]):
        told = Told()
        assert sample(x, Sampling(temperature, top_k, top_p), told) == int(np.argmax(x))  # type: ignore[arg-type]
        want = by_hand(x.tolist(), temperature, top_k, top_p)
        assert len(told.p) == len(want), (temperature, top_k)
        assert told.p == pytest.approx([float(v) for v in want], rel=1e-13, abs=1e-300), (temperature, top_k)


def test_equal_logits_are_drawn_alike() -> None:
    """A nucleus of three in ten of ten equal tokens is three tokens; the first ones, as equal ones stay in order."""
    generator = np.random.default_rng(0)
    found = Counter(sample(np.zeros(10, np.float32), Sampling(0.5, 0, 0.3), generator) for _ in range(3000))
    assert found.keys() == {0, 1, 2} and min(found.values()) > 900
