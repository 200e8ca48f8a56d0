"""Prefill and decode on a synthetic model: stopping, limits, chunks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qwenref.engine import generate as generation
from qwenref.engine.forward import forward
from qwenref.engine.kernels import backend
from qwenref.engine.weights import Weights
from qwenref.quant.errors import BadInput
from qwenref.trace.tap import SILENT

from .tiny import tiny_weights

K = backend("reference")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return K.prepare(tiny_weights(), "f64")


def greedy_without_cache(ids: list[int], w: Weights, count: int) -> list[int]:
    """The definition: the whole sequence anew for each token."""
    made: list[int] = []
    for _ in range(count):
        seen = np.array(ids + made, np.int32)
        logits_V = forward(seen, w, K.new_cache(w.config, len(seen), "f64"), K, SILENT)
        made.append(int(np.argmax(logits_V)))
    return made


def test_greedy_equals_the_definition(weights: Weights) -> None:
    ids = [5, 17, 200, 3]
    assert list(generation.generate(ids, weights, K, "f64", 12)) == greedy_without_cache(ids, weights, 12)


def test_chunks_give_what_one_pass_gives(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(range(40))
    whole = list(generation.generate(ids, weights, K, "f64", 8))
    monkeypatch.setattr(generation, "CHUNK", 7)
    seen: list[int] = []
    assert list(generation.generate(ids, weights, K, "f64", 8, progress=seen.append)) == whole
    assert seen == [7, 14, 21, 28, 35, 40]


def test_a_stop_id_is_the_last(weights: Weights) -> None:
    ids = [5, 17, 200, 3]
    made = list(generation.generate(ids, weights, K, "f64", 12))
    stop = made[4]
    assert list(generation.generate(ids, weights, K, "f64", 12, stop=[stop])) == made[: made.index(stop) + 1]


@pytest.mark.parametrize(
    ("ids", "count", "says"),
    [
        ([], 1, "empty"),
        ([259], 1, "259"),
        ([-1], 1, "-1"),
        (list(range(9)), 1, "9 tokens"),
        (list(range(8)), 1, "shorten the prompt"),
        ([1], 8, "at most 7"),
    ],
)
def test_what_does_not_fit_is_refused(weights: Weights, ids: list[int], count: int, says: str) -> None:
    small = replace(weights, config=replace(weights.config, max_position_embeddings=8))
    with pytest.raises(BadInput, match=says):
        list(generation.generate(ids, small, K, "f64", count))


def test_a_full_context_is_used(weights: Weights) -> None:
    small = replace(weights, config=replace(weights.config, max_position_embeddings=8))
    assert len(list(generation.generate([1, 2, 3], small, K, "f64", 5))) == 5
