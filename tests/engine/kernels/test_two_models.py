"""Two models in one process, by turns, one within the other's pass, and from two threads: the bits of each alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from qwenref.engine.forward import forward
from qwenref.engine.kernels import backend
from qwenref.engine.tap import SILENT, At

from ...tiny import tiny_weights

# Of one width, so that memory and tables of the one would fit the other; with rotary frequencies of their own.
SIZES: list[dict[str, Any]] = [
    {"layers": 20, "formats": "Q8_0", "hidden": 96, "vocab": 77},
    {"layers": 12, "formats": {"q": "Q5_0", "ffn_down": "F16"}, "hidden": 96, "vocab": 211, "seed": 2},
]
PROMPT, STEPS = 130, 24  # more jobs than are put off at once; results that are large enough to be lent again


class Model:
    """A model with a backend of its own."""

    def __init__(self, which: int, precision: str) -> None:
        self.k, w = backend("cpu"), tiny_weights(**SIZES[which])
        self.w = self.k.prepare(w, precision)
        self.cache: Any = self.k.new_cache(w.config, PROMPT + STEPS, precision)
        self.prompt = np.arange(PROMPT, dtype=np.int32) * 7 % w.config.vocab_size

    def passes(self, tap: Any = SILENT) -> Any:
        """Logits of a batched prompt, then of greedy steps, replayed; the last one by itself."""
        logits = np.array(self.k.batch(lambda k: forward(self.prompt, self.w, self.cache, k, tap)))
        yield logits
        step = self.k.record(lambda k, token_T: forward(token_T, self.w, self.cache, k, SILENT), self.cache)
        for n in range(STEPS):
            token_T = np.array([np.argmax(logits)], np.int32)
            last = n == STEPS - 1
            logits = np.array(forward(token_T, self.w, self.cache, self.k, SILENT) if last else step(token_T))
            yield logits


class Asking:
    """A tap that looks at nothing, and asks for something else in every layer."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self.ask = ask

    def layer(self, index: int) -> At:
        self.ask()
        return SILENT.layer(index)

    def whole(self, stage: str, value: Any) -> Any:
        return value


def alone(which: int, precision: str) -> list[bytes]:
    return [x.tobytes() for x in Model(which, precision).passes()]


@pytest.fixture(scope="module", params=["f32", "int8"])
def expected(request: pytest.FixtureRequest) -> tuple[str, list[list[bytes]]]:
    return request.param, [alone(which, request.param) for which in (0, 1)]


def test_by_turns(expected: tuple[str, list[list[bytes]]]) -> None:
    precision, want = expected
    both = [Model(which, precision).passes() for which in (0, 1)]
    turns = list(zip_longest(*both))
    assert [[pair[which].tobytes() for pair in turns] for which in (0, 1)] == want


def test_one_in_the_middle_of_the_other_s_pass(expected: tuple[str, list[list[bytes]]]) -> None:
    """It answers at once, though the other's jobs are put off, and each with its own memory."""
    precision, want = expected
    outer, found = Model(0, precision), []

    def ask() -> None:
        inner = Model(1, precision)
        found.append(np.array(forward(inner.prompt, inner.w, inner.cache, inner.k, SILENT)).tobytes())

    got = [x.tobytes() for x in outer.passes(Asking(ask))]
    assert got == want[0]
    assert len(found) == 1 + SIZES[0]["layers"] and set(found) == {want[1][0]}  # the embedding is layer 0's, too


def test_from_two_threads(expected: tuple[str, list[list[bytes]]]) -> None:
    precision, want = expected
    models, start = [Model(which, precision) for which in (0, 1)], Barrier(2)

    def work(model: Model) -> list[bytes]:
        start.wait()
        return [x.tobytes() for x in model.passes()]

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(work, models)) == want
