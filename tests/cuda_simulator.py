"""The CUDA backend in Numba's simulator: run by test_cuda.py in a process of its own, with NUMBA_ENABLE_CUDASIM=1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import config

from qwenref.engine.forward import forward
from qwenref.engine.generate import generate
from qwenref.engine.kernels import backend
from qwenref.engine.kernels.cuda import attention
from qwenref.engine.kernels.cuda import rows as rows_module
from qwenref.engine.kernels.cuda.formats import nibbles, q4_k, q5_0, q6_k
from qwenref.engine.kernels.cuda.machine import memory, recording
from qwenref.engine.kernels.cuda.matmul import packed, product
from qwenref.engine.kernels.cuda.matmul import product8 as p8
from qwenref.engine.kernels.cuda.matmul.linear import Matrix
from qwenref.engine.nonfinite import NotFinite
from qwenref.engine.tap import SILENT
from qwenref.engine.weights import Weights
from qwenref.errors import BadInput
from qwenref.quant import q8_0, q8_k
from qwenref.quant.tensor import QTensor
from qwenref.tests import cuda_lanes
from qwenref.tests.cuda_judge import CUDA, REFERENCE, Judge, Pair
from qwenref.tests.thinned import thinned
from qwenref.tests.tiny import TYPES, collect, relative, scaled, tiny_tensor, tiny_weights, with_adapters, write_gguf
from qwenref.tools.main import main
from qwenref.trace.verify.finding import EXACT, REPRODUCED

assert config.ENABLE_CUDASIM, "run by test_cuda.py, with NUMBA_ENABLE_CUDASIM=1"
cuda_lanes.install(attention, p8, product, rows_module, nibbles, q4_k, q5_0, q6_k)
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")  # 127 / 0 in a block of zeros, as on the card
FORMATS = tuple(packed.FORMS)
ALLOCATE = memory.Queue.allocate
BLOCK = {"Q4_K": 256, "Q6_K": 256, "Q5_K": 256, "Q4_0": 32, "Q5_0": 32, "Q8_0": 32}


@pytest.fixture(autouse=True)
def _garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory of the card holds anything: here NaN, so that what is read before it is written shows."""

    def allocate(queue: memory.Queue, count: int, kind: Any = np.float32) -> Any:
        return memory.cuda.to_device(cuda_lanes.garbage(count, kind))

    monkeypatch.setattr(memory.Queue, "allocate", allocate)


def rows(x: np.ndarray) -> memory.Rows:
    """An array on the card, as rows that lie apart, NaN between them."""
    T, I = x.shape
    held = np.full((T, I + 3), np.nan, np.float32)
    held[:, 1 : I + 1] = x
    y = CUDA.queue.rows(T, I + 3)
    y.data[: held.size].copy_to_device(held.reshape(-1))
    return y[:, 1 : I + 1]


def matrix(fmt: str, O: int, I: int, seed: int = 0) -> QTensor:
    return tiny_tensor("w", fmt, (O, I), std=I**-0.5, mean=0.0, rng=np.random.default_rng(seed))


def judged(tensors: tuple[QTensor, ...], x: np.ndarray, precision: str) -> np.ndarray:
    """x W^T, which the judge has passed."""
    judge = Judge()
    judge.precision = precision
    card = Matrix(packed.stack(CUDA.queue, tensors), precision == "int8")
    return CUDA.to_host(judge.linear(rows(x), Pair(card, *tensors)))


# ---- matrix products


PRODUCTS = [(fmt, T, precision) for fmt in FORMATS for T in (1, 5) for precision in CUDA.PRECISIONS]


@pytest.mark.parametrize(("fmt", "T", "precision"), thinned(PRODUCTS, lambda p: "-".join(map(str, p)), 5))
def test_product(fmt: str, T: int, precision: str) -> None:
    """A matrix that is not square, read the right way round, one token (vector) and a few (matrix)."""
    O, I = 37, 512 if BLOCK.get(fmt) == 256 else 96
    x = np.random.default_rng(1).standard_normal((T, I)).astype(np.float32)
    judged((matrix(fmt, O, I),), x, precision)


ODD = [(O, I, T) for O, I in ((1, 1), (3, 33), (130, 5), (19, 2080)) for T in (1, 3, 4, 6, 65)]


@pytest.mark.parametrize(("O", "I", "T"), thinned(ODD, lambda p: "-".join(map(str, p)), 3))
def test_odd_sizes(O: int, I: int, T: int) -> None:
    if T > 6:
        O, I = min(O, 3), min(I, 80)
    x = np.random.default_rng(2).standard_normal((T, I)).astype(np.float32)
    judged((matrix("F32", O, I),), x, "f32")


@pytest.mark.parametrize("precision", CUDA.PRECISIONS)
def test_warps_share_long_rows(precision: str) -> None:
    """Rows of 8 tiles and a bit: four warps to a row, some with a tile more."""
    x = np.random.default_rng(3).standard_normal((2, 8448)).astype(np.float32)
    judged((matrix("Q4_K", 5, 8448),), x, precision)


@pytest.mark.parametrize("precision", CUDA.PRECISIONS)
@pytest.mark.parametrize("T", [2, 7])
def test_stacked_matrices_of_several_formats(T: int, precision: str) -> None:
    x = np.random.default_rng(4).standard_normal((T, 256)).astype(np.float32)
    sizes = [("Q4_K", 20), ("Q4_K", 5), ("Q5_0", 7), ("Q6_K", 9), ("F16", 3), ("F32", 4)]
    sizes += [("Q5_K", 2)] if precision == "f32" else []
    parts = tuple(matrix(fmt, O, 256, seed) for seed, (fmt, O) in enumerate(sizes))
    assert len(packed.stack(CUDA.queue, parts)) == 5  # neighbours of one form are one matrix: one launch
    judged(parts, x, precision)


def test_every_type_is_looked_up_bit_for_bit() -> None:
    """Those without kernels are decoded when they are uploaded."""
    for fmt in TYPES:
        w = matrix(fmt, 2, 256)
        Judge().embed(np.array([1, 0], np.int32), Pair(Matrix(packed.stack(CUDA.queue, (w,)), False), w))


@pytest.mark.parametrize("precision", CUDA.PRECISIONS)
def test_other_types_keep_float32_activations(precision: str) -> None:
    x = np.random.default_rng(5).standard_normal((1, 256)).astype(np.float32)
    judged(tuple(matrix(fmt, 1, 256) for fmt in TYPES if fmt not in FORMATS), x, precision)


@pytest.mark.parametrize("precision", CUDA.PRECISIONS)
def test_padded_rows_are_decoded(precision: str) -> None:
    """APR's: 72 values in a block of 256, in a stack with rows that fill theirs."""
    whole = matrix("Q4_K", 3, 256)
    x = np.random.default_rng(5).standard_normal((2, 72)).astype(np.float32)
    judged((QTensor("Q4_K", (3, 72), whole.data, "w"), matrix("F32", 2, 72)), x, precision)


def test_the_card_is_asked_for_what_is_needed() -> None:
    """packed_bytes, from which a too small card is told, is what pack takes."""
    for fmt in FORMATS:
        w = matrix(fmt, 3, 256)
        planes = packed.pack(CUDA.queue, w).planes
        assert packed.packed_bytes(w) == sum(p.size * p.dtype.itemsize for p in planes if p.size > 1)


def test_a_card_too_small_is_told_before_anything_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "room", lambda: (10_000.0, 20_000.0))
    with pytest.raises(BadInput, match=r"the model needs 0.00 GB on the card, which has 0.00 GB free of 0.00 GB; take"):
        CUDA.prepare(tiny_weights(), "f32")
    with pytest.raises(BadInput, match="a cache of 4096 positions needs"):
        CUDA.new_cache(tiny_weights().config, 4096, "f32")


def test_a_full_card_gives_up_its_spare_buffers_first(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = memory.Queue()

    class FullError(Exception):
        code = memory.OUT_OF_MEMORY

    def device_array(count: int, kind: Any) -> Any:
        if queue.arena.free or count > 10:
            raise FullError
        return np.empty(count, kind)

    monkeypatch.setattr(memory.cuda, "device_array", device_array)
    queue.arena.free[512].append("spare")
    assert len(ALLOCATE(queue, 10)) == 10
    with pytest.raises(BadInput, match=r"memory is in pieces; 4.00 GB at a time"):
        ALLOCATE(queue, 10**9)
    monkeypatch.setattr(memory, "room", lambda: (3e9, 8e9))
    with pytest.raises(BadInput, match=r"the forward pass needs 4.00 GB on the card, which has 3.00 GB free of 8.00"):
        ALLOCATE(queue, 10**9)


floats = st.one_of(
    st.floats(-1e4, 1e4, width=32), st.sampled_from([0.0, -0.0, 1.0, -1.0, 127.0, -127.0, 0.5, 63.5, 1e-30, 2.0**-149])
)


@settings(max_examples=25, deadline=None)
@given(st.lists(floats, min_size=32, max_size=300), st.sampled_from([32, 256]))
def test_activations_are_quantised_as_ggml_does(values: list[float], width: int) -> None:
    """Bytes, steps and sums are those of quant/q8_0.py (its rule for activations) and quant/q8_k.py."""
    I = len(values) // 32 * 32
    x = np.zeros(512, np.float32)
    x[:I] = values[:I]
    f, encode = (q8_k, q8_k.encode) if width == 256 else (q8_0, q8_0.encode_activations)
    b = encode(x.reshape(-1, width)).view(f.STRUCT)[:, 0]
    empty = ((128, np.uint32), (16, np.float32), (32, np.int32))
    words, steps, sums = (memory.cuda.to_device(cuda_lanes.garbage(n, kind)) for n, kind in empty)
    CUDA.queue.launch(p8.quantise, (2, 1), p8.BLOCK, *rows(x[None, :I]).where, I, 1, width, words, steps, sums)
    got = words.copy_to_host().reshape(2, 16, 4).transpose(1, 0, 2).copy().view(np.int8)
    assert np.array_equal(got.reshape(-1), b["qs"].reshape(-1))
    assert np.array_equal(steps.copy_to_host(), np.repeat(b["d"].astype(np.float32), width // 32))
    assert np.array_equal(sums.copy_to_host(), b["qs"].reshape(-1, 16).sum(axis=1, dtype=np.int32))


# ---- the page


def ids(count: int, vocab: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, count).astype(np.int32)


Q4_K_M = dict.fromkeys(("embed", "q", "k", "ffn_gate", "ffn_up"), "Q4_K")
Q4_K_M |= dict.fromkeys(("v", "ffn_down", "lm_head"), "Q6_K")
Q4_K_M["attn_out"] = "Q5_0"  # its 14 x 16 inputs are no whole number of blocks of 256
OTHERS = {"embed": "IQ4_NL", "q": "Q5_1", "k": "Q8_0", "v": "MXFP4", "attn_out": "Q4_1", "ffn_gate": "Q4_1"}
OTHERS |= {"ffn_up": "Q4_0", "ffn_down": "NVFP4", "lm_head": "Q5_1"}
IN_SMALL: dict[str, Any] = {"head_dim": 16, "vocab": 40, "layers": 1}
SMALL: dict[str, Any] = IN_SMALL | {"hidden": 32, "heads": 2, "kv_heads": 1, "mlp": 32}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"vocab": 40},
    "odd": {"hidden": 50, "heads": 3, "kv_heads": 3, "head_dim": 10, "mlp": 33, "vocab": 40},
    "0.5B": IN_SMALL | {"hidden": 96, "heads": 14, "kv_heads": 2, "mlp": 160, "formats": "Q8_0", "tied": True},
    "7B": IN_SMALL | {"hidden": 256, "heads": 14, "kv_heads": 2, "mlp": 256, "formats": Q4_K_M},
}


def model(name: str) -> Weights:
    return tiny_weights(**MODELS[name])


STAGED = [("plain", "f32"), ("odd", "f32"), ("0.5B", "f32"), ("7B", "int8")]
STAGED += [(name, precision) for name in MODELS for precision in CUDA.PRECISIONS if (name, precision) not in STAGED]


@pytest.mark.parametrize(
    ("name", "precision"),
    [pytest.param(*p, marks=[pytest.mark.matrix] if i > 3 else [], id="-".join(p)) for i, p in enumerate(STAGED)],
)
def test_every_stage(name: str, precision: str) -> None:
    """A prompt, a second chunk, single tokens: each call of the page within its bound of float64 on its own inputs.

    Seven query heads share a kv head in the small 0.5B and 7B: there a first token can be right and the second wrong,
    so the 7B begins with single tokens.
    """
    judge = Judge()
    w = judge.prepare(model(name), precision)
    cache = judge.new_cache(w.config, 12, precision)
    for chunk in (1, 1, 3) if name == "7B" else (5, 3, 1):
        forward(ids(chunk), w, cache, judge, SILENT)
    assert judge.worst["linear"] > 0


@pytest.mark.parametrize("what", ["embedding", "bias", "dora", "biases"])
def test_every_stage_with_more_of_each_product(what: str) -> None:
    """Two adapters to a matrix, also of a tied head and of the embedding, also with biases and with DoRA; a bias of
    every product of a layer: as the reference backend in float64, to float32's rounding."""
    biases = {"model_type": "llama", "asked": ("attention_bias", "mlp_bias")} if what == "biases" else {}
    w = tiny_weights(tied=True, **SMALL, **biases)
    w = w if biases else with_adapters(w, 2, more=what)
    passes = (ids(2), ids(1))
    for mine, want in zip(collect(w, "cuda", "f32", *passes), collect(w, "reference", "f64", *passes), strict=True):
        assert mine.keys() == want.keys()
        assert max(relative(want[at], x) for at, x in mine.items()) < 1e-6
    x = np.ones((2, 7), np.float32)
    assert np.array_equal(CUDA.to_host(CUDA.scaled(rows(x), 1 / 3)), x * np.float32(1 / 3))


@pytest.mark.parametrize("long", [False, True])
def test_every_stage_with_scaled_rope_and_windows(long: bool) -> None:
    """Divisors of long and of short sessions, a magnitude, and a window in one layer of two."""
    longrope = {
        "rope_type": "longrope", "attention_factor": 1.2, "short_factor": [1.0 + j for j in range(8)],
        "long_factor": [2.0 + j for j in range(8)], "original_max_position_embeddings": 11 if long else 12,
    }  # fmt: skip
    w = scaled(tiny_weights(**SMALL | {"layers": 2}), **longrope)
    w = replace(w, config=replace(w.config, windows=(3, 0)))
    judge = Judge()
    prepared = judge.prepare(w, "f32")
    cache = judge.new_cache(w.config, 12, "f32")
    for chunk in (7, 4, 1):
        forward(ids(chunk), prepared, cache, judge, SILENT)
    assert judge.worst["rope"] > 0 and judge.worst["softmax"] > 0


@pytest.mark.parametrize("precision", CUDA.PRECISIONS)
def test_stage_dumps_of_other_types_are_verified(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the commands: no stage is unexplained."""
    w = tiny_weights(**SMALL | {"mlp": 64}, formats=OTHERS)
    path, at = write_gguf(tmp_path / "m.gguf", w), tmp_path / "dump"
    how = ["--backend", "cuda", "--precision", precision, "--tokens", "3,1,4", "--decode-steps", "1"]
    assert main(["trace", str(path), *how, "--save-tensor", "all", "--save-tensor-dir", str(at)]) == 0
    capsys.readouterr()
    assert main(["verify", str(at), "-m", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"].keys() <= {EXACT, REPRODUCED}


class Kept:
    """A tap that brings every stage to the host."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def layer(self, index: int) -> Any:
        return self.whole

    def whole(self, stage: str, value: Any) -> Any:
        self.seen.append(CUDA.to_host(value).copy())
        return value


@pytest.mark.parametrize("precision", CUDA.PRECISIONS)
def test_traced_untraced_and_recorded_are_the_same_bits(precision: str) -> None:
    """A recorded step sees rows of scores with room for the whole cache; here it is run, not recorded."""
    w = CUDA.prepare(tiny_weights(**SMALL, formats="Q8_0"), precision)
    logits = []
    for way in ("silent", "traced", "recorded"):
        cache = CUDA.new_cache(w.config, 9, precision)
        tap = Kept() if way == "traced" else SILENT
        made = [CUDA.to_host(forward(ids(3), w, cache, CUDA, tap)).copy()]
        page = lambda k, token, cache=cache, tap=tap: forward(token, w, cache, k, tap)  # noqa: E731
        step = CUDA.record(page, cache) if way == "recorded" else partial(page, CUDA)
        made += [CUDA.to_host(step(ids(1, seed=i))).copy() for i in range(2)]
        logits.append(np.array(made))
    assert np.array_equal(logits[0].view(np.uint32), logits[1].view(np.uint32))
    assert np.array_equal(logits[0].view(np.uint32), logits[2].view(np.uint32))


def test_two_models_by_turns_give_the_bits_of_each_alone() -> None:
    def passes(which: int) -> Iterator[bytes]:
        k, w = backend("cuda"), tiny_weights(**SMALL | {"vocab": 40 + which}, seed=which)
        w = k.prepare(w, "f32")
        cache = k.new_cache(w.config, 6, "f32")
        yield k.to_host(forward(ids(3), w, cache, k, SILENT)).tobytes()
        step = k.record(lambda k, token: forward(token, w, cache, k, SILENT), cache)
        for i in range(2):
            yield k.to_host(step(ids(1, seed=i))).tobytes()

    assert list(zip(passes(0), passes(1), strict=True)) == list(zip(list(passes(0)), list(passes(1)), strict=True))


def test_a_recorded_step_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third step on only repeats the second's launches, arguments and all: what moves must lie on the card.

    A graph that is played from a list of launches stands in for CUDA's, which the simulator has not.
    """

    def graph_of(work: Any) -> Any:
        launches: list[Any] = []
        with pytest.MonkeyPatch.context() as capturing:
            capturing.setattr(memory.Queue, "launch", lambda queue, *launch: launches.append(launch))
            work("the stream that is captured")
        assert launches
        return lambda: [memory.Queue().launch(*launch) for launch in launches]

    monkeypatch.setattr(recording, "SIMULATED", False)
    monkeypatch.setattr(recording, "graph_of", graph_of)
    w = CUDA.prepare(tiny_weights(**SMALL), "f32")
    plain, recorded = (CUDA.new_cache(w.config, 9, "f32") for _ in range(2))
    for cache in (plain, recorded):
        forward(ids(3), w, cache, CUDA, SILENT)
    step = CUDA.record(lambda k, token: forward(token, w, recorded, k, SILENT), recorded)
    for i in range(5):
        want = CUDA.to_host(forward(ids(1, seed=i), w, plain, CUDA, SILENT))
        assert np.array_equal(CUDA.to_host(step(ids(1, seed=i))).view(np.uint32), want.view(np.uint32)), f"step {i}"
        assert recorded.length == plain.length
    ordinary = CUDA.to_host(forward(ids(1), w, recorded, CUDA, SILENT))  # and the cache is good for launches one by one
    assert np.array_equal(ordinary, CUDA.to_host(forward(ids(1), w, plain, CUDA, SILENT)))
    with pytest.raises(BadInput, match="10 positions do not fit a cache of 9"):
        step(ids(1))


def test_chunks_of_a_prompt_are_the_same_bits() -> None:
    w = CUDA.prepare(tiny_weights(**SMALL), "f32")
    whole, parts = CUDA.new_cache(w.config, 12, "f32"), CUDA.new_cache(w.config, 12, "f32")
    one = CUDA.to_host(forward(ids(12), w, whole, CUDA, SILENT))
    forward(ids(12)[:5], w, parts, CUDA, SILENT)
    two = CUDA.to_host(forward(ids(12)[5:], w, parts, CUDA, SILENT))
    assert np.array_equal(one.view(np.uint32), two.view(np.uint32))


def test_attention_over_several_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SPAN", 4)
    judge = Judge()
    w = judge.prepare(tiny_weights(**SMALL), "f32")
    cache = judge.new_cache(w.config, 12, "f32")
    for chunk in (7, 1, 1, 2):
        forward(ids(chunk), w, cache, judge, SILENT)


def test_generation_is_the_reference_s() -> None:
    w = tiny_weights(**SMALL)
    prompt = ids(6).tolist()
    got = list(generate(prompt, CUDA.prepare(w, "f32"), CUDA, "f32", 4))
    assert got == list(generate(prompt, REFERENCE.prepare(w, "f64"), REFERENCE, "f64", 4))


def test_where_the_numbers_leave_the_finite() -> None:
    w = tiny_weights(**SMALL)
    w.layers[0].ffn_down.data.view("<f4")[9 * 32 + 31] = np.nan
    says = "a NaN in ffn_out of layer 0, position 0, index 9"
    with pytest.raises(NotFinite, match=says) as error:
        list(generate(ids(6).tolist(), CUDA.prepare(w, "f32"), CUDA, "f32", 4))
    assert error.value.traced_to(w).endswith("tensor blk.0.ffn_down.weight has a NaN at row 9, column 31")


def test_a_full_cache_is_refused() -> None:
    w = CUDA.prepare(tiny_weights(**SMALL), "f32")
    cache = CUDA.new_cache(w.config, 3, "f32")
    with pytest.raises(BadInput, match="4 positions do not fit a cache of 3"):
        forward(ids(4), w, cache, CUDA, SILENT)
    forward(ids(3), w, cache, CUDA, SILENT)
    with pytest.raises(BadInput, match="4 positions do not fit a cache of 3"):
        CUDA.record(lambda k, token: forward(token, w, cache, k, SILENT), cache)(ids(1))


def test_make_gpu_finds_parity_and_its_absence(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The script's own model file and comparison, on a model in small; and one wrong element of one stage is found."""
    from argparse import Namespace

    from qwenref.tools.dev import gpu_sections, random_model

    monkeypatch.setitem(random_model.SHAPES, "7B", (1, 256, 4, 2, 64, 256, 40, False))
    path, args = gpu_sections.model(tmp_path, "7B", None), Namespace(prompt=2, steps=1, against="reference")
    found = gpu_sections.Found("parity", tmp_path / "parity.json")
    gpu_sections.parity(CUDA, "7B", path, args, found)
    assert found.wrong == [] and found.rows[0][-3:-1] == ["2/2", "yes"]
    args.steps, whole = 0, CUDA.silu
    monkeypatch.setattr(type(CUDA), "silu", lambda k, x: k.mul(whole(x), whole(x)))
    gpu_sections.parity(CUDA, "7B", path, args, found)
    assert len(found.wrong) == 1 and "ffn_" in found.wrong[0]
    assert json.loads((tmp_path / "parity.json").read_text()) == {"rows": found.rows, "wrong": found.wrong}
