"""One block of one row of one matrix is wrong: found in the dump of a float32 or an int8 engine, and located."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qwenref.engine.kernels import reference
from qwenref.engine.weights import Weights
from qwenref.quant.tensor import QTensor, format_of
from qwenref.trace.verify.finding import UNEXPLAINED, Axis, Finding, Verification
from qwenref.trace.verify.report.terminal import text
from qwenref.trace.verify.report.text import sentence
from qwenref.trace.verify.verify import verify

from ...engines import Run, dump_of
from ...tiny import tiny_weights

ROW, BLOCK = 77, 2
ENGINES = ["reference f32", "HF float32", "ggml, 16-bit KV", "ggml, 32-bit KV", "HF bfloat16"]


def weights() -> Weights:
    return tiny_weights(layers=3, hidden=256, head_dim=32, heads=8, mlp=1024, formats="Q4_K")


def damaged(q: QTensor, change: Callable[[np.ndarray], None]) -> QTensor:
    """The matrix with block BLOCK of row ROW changed."""
    size = format_of(q.format).bytes
    data = q.data.reshape(q.shape[0], -1, size).copy()
    change(data[ROW, BLOCK])
    return replace(q, data=data.reshape(-1))


def random_codes(block: np.ndarray) -> None:
    block[16:] = np.random.default_rng(3).integers(0, 256, len(block) - 16)


def one_code(block: np.ndarray) -> None:
    """The least damage there is: one weight of 256 off by one step."""
    block[40] ^= 1


def zeroed(block: np.ndarray) -> None:
    block[:] = 0


def other_scale(block: np.ndarray) -> None:
    halves = block[:4].view("<f2")
    halves *= np.float16(2)


def judged(engine: str, change: Callable[[np.ndarray], None], positions: int, layer: int = 1) -> Verification:
    w = weights()

    def mistake(run: Run, y: np.ndarray) -> np.ndarray:
        (q,) = run.weights.layers[layer].ffn_down.parts
        return run.kernels.linear(run.get("ffn_swigl"), reference.Matrix((damaged(q, change),), np.float32))

    tokens = np.random.default_rng(2).integers(0, 259, positions).tolist()
    return verify(dump_of(w, engine, tokens, mistakes={("ffn_out", layer): mistake}), w)


def the_one(v: Verification, layer: int = 1) -> Finding:
    (f,) = (f for f in v.findings if f.verdict == UNEXPLAINED)
    assert (f.layer, f.stage) == (layer, "ffn_out")
    assert f.where.axes["channels"] == Axis(1, 256, (ROW,))
    return f


@pytest.mark.parametrize("engine", ENGINES)
def test_random_codes_are_located(engine: str) -> None:
    """Nothing is known of what the codes became: the positions' errors have the block's own covariance."""
    f = the_one(judged(engine, random_codes, 60))
    (spot,) = f.where.rows
    assert (spot.row, spot.block, spot.size, spot.format) == (ROW, BLOCK, 256, "Q4_K")
    assert spot.confidence > 0.99


@pytest.mark.parametrize("engine", ENGINES[:4])
def test_one_code_off_by_one_step_is_found(engine: str) -> None:
    f = the_one(judged(engine, one_code, 60))
    assert f.where.rows[0].row == ROW


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("engine", ENGINES[:4])
@pytest.mark.parametrize(("change", "factor"), [(zeroed, 0.0), (other_scale, 2.0)])
def test_a_lost_or_scaled_block_is_located_by_few_positions(
    engine: str, change: Callable[[np.ndarray], None], factor: float, layer: int
) -> None:
    v = judged(engine, change, 5, layer)
    (spot,) = the_one(v, layer).where.rows
    assert (spot.row, spot.block, spot.confidence) == (ROW, BLOCK, 1.0)
    assert spot.number.factor == pytest.approx(factor, abs=1e-3)
    words = "it is lost" if factor == 0 else "it counts 2 times what it should"
    assert words in text(v)
    assert f"row {ROW} of blk.{layer}.ffn_down.weight" in sentence(v)


def scale(block: np.ndarray) -> None:
    block[:2].view("<f2")[:] *= np.float16(1.5)


def minimum(block: np.ndarray) -> None:
    block[2:4] = 0


def scale_of_a_group(block: np.ndarray) -> None:
    """The 6-bit scale of group 3, in the low bits of its byte."""
    block[4 + 3] ^= 0x20


@pytest.mark.parametrize("engine", ENGINES[:4])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (scale, "its scale counts 1.5 times what it should"),
        (minimum, "its minimum is lost"),
        (scale_of_a_group, "the scale of columns 608 to 639 counts"),
        (one_code, "the weight of column 536 is off by"),
    ],
)
def test_one_wrong_number_is_told_by_few_positions(
    engine: str, change: Callable[[np.ndarray], None], words: str
) -> None:
    """As a flipped bit in a file makes it: the block, and which of its numbers."""
    v = judged(engine, change, 6)
    (spot,) = the_one(v).where.rows
    assert (spot.row, spot.block, spot.confidence) == (ROW, BLOCK, 1.0)
    assert words in text(v)


def test_one_position_names_the_row_and_says_why_no_more() -> None:
    v = judged("HF float32", zeroed, 1)
    (spot,) = the_one(v).where.rows
    assert (spot.row, spot.block) == (ROW, None)
    assert "one position cannot say which block" in text(v)


def test_few_positions_do_not_claim_to_know() -> None:
    v = judged("HF float32", random_codes, 2)
    (spot,) = the_one(v).where.rows
    assert spot.row == ROW
    assert spot.confidence < 0.95
    assert "so few positions do not say which block" in text(v)


def test_many_rows_are_no_block() -> None:
    """A wrong matrix is not listed block by block."""
    w = weights()

    def mistake(run: Run, y: np.ndarray) -> np.ndarray:
        return run.kernels.linear(run.get("ffn_swigl"), run.weights.layers[0].ffn_down)

    v = verify(dump_of(w, "HF float32", [1, 2, 3], mistakes={("ffn_out", 1): mistake}), w)
    (f,) = (f for f in v.findings if f.verdict == UNEXPLAINED)
    assert f.where.rows == ()
