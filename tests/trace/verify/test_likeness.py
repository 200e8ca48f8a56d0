"""What logits by themselves are taken for: random ones for nothing, those of other positions for theirs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qwenref.trace.verify.likeness import CHANCE, apart, likeness, near, within
from qwenref.trace.verify.span import BFLOAT16

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
DRAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "heavy tails": lambda rng, shape: rng.standard_t(2, shape),
    "above 0": lambda rng, shape: rng.uniform(0, 5, shape),
    "below 0": lambda rng, shape: -rng.exponential(4, shape),
    "whole numbers": lambda rng, shape: rng.integers(-3, 4, shape).astype(float),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("positions", [1, 60])
@pytest.mark.parametrize("size", [16, 64, 259, 4096])
def test_random_data_is_like_nothing(size: int, positions: int, draw: str) -> None:
    """Against logits of its own distribution, which have half of their variance in common."""
    rng = np.random.default_rng(size + positions)
    for _ in range(3 if size > 1000 else 30):
        own, common = (DRAWS[draw](rng, shape) for shape in ((positions, size), (1, size)))
        got = DRAWS[draw](rng, (size,))
        said = likeness(got, (own + common) / np.sqrt(2))
        assert said is not None and "no position's" in said
        assert not near(got, own[-1])


def test_the_chance_of_a_false_likeness_is_bounded() -> None:
    """By the share of a sphere's cap, in few dimensions, where it can be counted: angles to one direction."""
    rng = np.random.default_rng(3)
    for size in (2, 3, 5):
        x = rng.standard_normal((50_000, size))
        sine = np.linalg.norm(x[:, 1:], axis=1) / np.linalg.norm(x, axis=1)
        for d in (0.1, 0.25, 0.5):
            share = np.mean((sine <= d) & (x[:, 0] > 0))
            assert share <= d ** (size - 1) / 2 + 5 * np.sqrt(share / len(x))
    for size, positions in ((8, 1), (16, 60), (64, 400)):
        assert positions * within(1.0, size, positions) ** (size - 1) / 2 <= CHANCE * (1 + 1e-9)
    assert within(0.25, 64, 400) == 0.25


def test_a_position_that_is_not_far_from_the_last_is_told_from_it() -> None:
    """0.22 apart, as near as two positions of the 0.5B were; roundings are a tenth of that."""
    rng = np.random.default_rng(4)
    last = rng.standard_normal(4096)
    before = last + 0.22 * rng.standard_normal(4096)
    exact = np.stack([rng.standard_normal(4096), before, last])
    noise = 0.02 * rng.standard_normal(4096)
    assert apart(before, last) < 0.25
    assert likeness(before + noise, exact) == "these are the logits of position 1, not of 2"
    assert likeness(last + noise, exact) is None
    assert near(last + noise, last) and not near(before + noise, last)


def test_probabilities_of_16_bits_are_still_probabilities() -> None:
    """Two that bfloat16 rounds the same way: their sum is off by more than a thousandth."""
    exact = np.log(np.array([[0.7012, 0.2988, 1e-9, 1e-9]]))
    p = BFLOAT16.round(np.exp(exact[0]))
    assert abs(p.sum() - 1) > 1e-3
    assert likeness(p, exact) == "these are probabilities, the soft-max of logits: their sum is 1"


def test_an_order_of_float32_is_seen() -> None:
    rng = np.random.default_rng(5)
    exact = rng.standard_normal((3, 50_000))
    got = rng.permutation(exact[-1].astype(np.float32))
    assert likeness(got, exact) == "these are the right values in another order of the vocabulary"
