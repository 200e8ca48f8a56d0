"""llama.cpp's flash attention on a CPU and its quantised caches: every stage of what it computes is explained, what it
holds keys and values in is said, and a mistake in it is found."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (README: make oracle)")

from qwenref.engine.weights import Weights
from qwenref.tools.load import open_weights
from qwenref.trace.dump import Dump
from qwenref.trace.verify.finding import EXACT, REPRODUCED
from qwenref.trace.verify.report.text import engine_words
from qwenref.trace.verify.verify import verify

from ..engines import changed, with_values
from ..scored import Score, healthy
from .test_dump_llamacpp import made

pytestmark = [pytest.mark.oracle, pytest.mark.model]
SHORT, LONG = 9, 90  # from 64 on, queries come in tiles
IN_HALVES, IN_BFLOAT16 = "16-bit KV, flash attention", "keys and values in bfloat16"

CASES = {
    "f16": (SHORT, ["-fa", "on"], IN_HALVES),
    "f16 tiles": (LONG, ["-fa", "on", "--layers", "0..2"], IN_HALVES),
    "f32": (SHORT, ["-fa", "on", "--kv", "f32"], IN_HALVES),  # llama.cpp makes halves of it for flash attention
    "bf16": (SHORT, ["-fa", "on", "--kv", "bf16"], IN_BFLOAT16),
    "pieces": (SHORT, ["-fa", "on", "-ub", "4"], IN_HALVES),
    "q8_0 tiles": (LONG, ["-fa", "on", "--kv", "q8_0", "--layers", "0..2"], "held in q8_0 (rotated)"),
    "q8_0 keys": (SHORT, ["-ctk", "q8_0"], "held in q8_0 (rotated)"),
    "q4_1 keys": (SHORT, ["-ctk", "q4_1"], "held in q4_1 (rotated)"),
    **{
        kind: (SHORT, ["-fa", "on", "--kv", kind], f"held in {kind} (rotated)")
        for kind in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")
    },
}


@cache
def weights(path: Path) -> Weights:
    return open_weights(str(path))[1]


def dumped(model: Path, at: Path, repack: bool, length: int, words: list[str]) -> Dump:
    ids = np.random.default_rng(length).integers(0, 100_000, length)
    layers = [] if "--layers" in words else ["--layers", "0..4"]
    text = ",".join(map(str, ids))
    return made(model, at, repack, "--tokens", text, "--decode-steps", "1", *words, *layers)


@pytest.mark.parametrize("case", CASES)
def test_healthy(model_path: Path, tmp_path: Path, repack: bool, case: str, score: Score) -> None:
    length, words, said = CASES[case]
    d = dumped(model_path, tmp_path / "dump", repack, length, words)
    v = verify(whole(d), weights(model_path))
    healthy(v, "llama.cpp, flash attention and caches", case, score)
    assert said in engine_words(v)


def whole(d: Dump) -> Dump:
    """Without the final norm, whose layer was not dumped."""
    return changed(d, lambda e: None if e.stage.name in ("final_norm", "lm_head") else e)


@pytest.mark.parametrize("case", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_mistake_is_found(
    model_path: Path, tmp_path: Path, repack: bool, case: str, layer: int, score: Score
) -> None:
    """A head that is louder by 3 %, a position that holds the one before it."""
    length, words, _ = CASES[case]
    d = whole(dumped(model_path, tmp_path / "dump", repack, length, words))
    for what in ("louder", "late"):

        def wrong(x: np.ndarray, what: str = what) -> np.ndarray:
            y = x.copy()
            if what == "louder":
                y[:, 3] *= np.float32(1.03)
            else:
                y[5] = x[4]
            return y

        bad = changed(d, lambda e: with_values(e, wrong(e.values())) if e.key == (0, layer, "attention") else e)
        found = {f.key for f in verify(bad, weights(model_path)).findings if f.verdict not in (EXACT, REPRODUCED)}
        score("mistakes in llama.cpp's attention", case, planted=1, found=int((0, layer, "attention") in found))
        # The product that reads it was computed of the right values.
        assert (0, layer, "attention") in found and found <= {(0, layer, "attention"), (0, layer, "attn_out")}
