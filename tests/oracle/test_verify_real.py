"""The judge against the engines it is for: Hugging Face Transformers and llama.cpp, healthy and with mistakes.

Healthy dumps of the 0.5B, prompts of 1 to 400 tokens and decode steps: no false alarm, every stage reproduced by
the recipe of that engine. Mistakes planted in Transformers' own modules (a small random model), and in a weight file
that llama.cpp runs: the stage and layer found, and named.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (make oracle)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")

from qwenref.engine.files import open_checkpoint  # noqa: E402
from qwenref.quant.tensor import format_of  # noqa: E402
from qwenref.tools import dump_hf  # noqa: E402
from qwenref.tools.dump_hf import capture, load  # noqa: E402
from qwenref.tools.load import open_weights  # noqa: E402
from qwenref.tools.main import main  # noqa: E402
from qwenref.trace.dump import Dump, Entry, ordered  # noqa: E402
from qwenref.trace.sources import open_dump  # noqa: E402
from qwenref.trace.stages import by_name  # noqa: E402
from qwenref.trace.verify.finding import EXACT, REPRODUCED, UNEXPLAINED, Finding  # noqa: E402
from qwenref.trace.verify.report.text import sentence  # noqa: E402
from qwenref.trace.verify.verify import verify  # noqa: E402

from ..scored import Score, count  # noqa: E402

pytestmark = pytest.mark.oracle

# -- healthy engines, the 0.5B ----------------------------------------------------------------------------------------

PROMPTS = {
    "one token": "Hi",
    "a name": "Qwen2",
    "a question": "What is 2+2?",
    "code": "def add(a, b):\n    return",
    "scripts": "Übersetze: Привет, 世界! 🙂 — Wie sagt man das auf Englisch, und warum?",
    "a paragraph": "The quick brown fox jumps over the lazy dog. " * 12,
    "a page": "for i in range(100):\n    print(i, i ** 2, sep=', ')  # squares, one a line\n" * 14,
}
DECODED = "a question"  # each step reads all weights again, as a prompt does
HEALTHY = {
    "Transformers float32": (["dump-hf", "--dtype", "float32"], "float32"),
    "Transformers float16": (["dump-hf", "--dtype", "float16"], "HF float16"),
    "Transformers bfloat16": (["dump-hf", "--dtype", "bfloat16"], "HF bfloat16"),
    "llama.cpp 16-bit KV": (["dump-llamacpp", "--kv", "f16"], "ggml int8, 16-bit KV"),
    "llama.cpp 32-bit KV": (["dump-llamacpp", "--kv", "f32"], "ggml int8, 32-bit KV"),
    "ours, cpu f32": (["trace", "--backend", "cpu", "--precision", "f32"], "float32"),
    "ours, cpu int8": (["trace", "--backend", "cpu", "--precision", "int8"], "ggml int8, 32-bit KV"),
    "ours, cpu int16": (["trace", "--backend", "cpu", "--precision", "int16"], "int16"),
    "ours, reference f32": (["trace", "--backend", "reference", "--precision", "f32"], "float32"),
}


LONG = "a page"  # a minute and a half each: once for each recipe
LONG_ENGINES = (
    "Transformers float32",
    "Transformers float16",
    "Transformers bfloat16",
    "llama.cpp 16-bit KV",
    "ours, cpu int8",
)
CASES = [(engine, prompt) for engine in HEALTHY for prompt in PROMPTS if prompt != LONG or engine in LONG_ENGINES]


@pytest.fixture(scope="module")
def load_once() -> Any:
    """Transformers takes half a minute to decode a GGUF: the prompts of one dtype share a model."""
    return lru_cache(maxsize=1)(load)


@pytest.mark.model
@pytest.mark.parametrize(("engine", "prompt"), CASES, ids=[f"{engine}-{prompt}" for engine, prompt in CASES])
def test_healthy(
    engine: str, prompt: str, model_path: Path, tmp_path: Path, load_once: Any, score: Score,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(dump_hf, "load", load_once)
    words, recipe = HEALTHY[engine]
    if words[0] == "dump-llamacpp":
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (README: make oracle)")
    at = tmp_path / "dump"
    target = ["--save-tensor", "all", "--save-tensor-dir", str(at)] if words[0] == "trace" else [str(at)]
    steps = ["--decode-steps", "2"] if prompt == DECODED else []
    assert main([words[0], str(model_path), *target, *words[1:], "-p", PROMPTS[prompt], *steps]) == 0
    v = verify(open_dump(at), open_weights(str(model_path))[1])
    shutil.rmtree(at)
    count(v, "healthy engines, the 0.5B", engine, score, tokens=len(v.tokens or ()))
    assert {f.verdict for f in v.findings} <= {EXACT, REPRODUCED}, sentence(v)
    assert {f.recipe.split(" (")[0] for f in v.findings if f.recipe} == {recipe}


# -- mistakes in Transformers' own modules ----------------------------------------------------------------------------

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35]


Plant = Callable[[Any, Any, Any], None]  # model, layer, its neighbour
PLANTS: dict[str, tuple[tuple[str, ...], str, Plant]] = {}


def plant(stages: str, named: str) -> Callable[[Plant], Plant]:
    """stages: those that must be found. named: the hypothesis that must be reported for each."""

    def enter(f: Plant) -> Plant:
        PLANTS[f.__name__] = (tuple(stages.split()), named, f)
        return f

    return enter


@plant("qkv_bias", "bias-missing")
def no_key_bias(model: Any, layer: Any, other: Any) -> None:
    layer.self_attn.k_proj.bias.zero_()


@plant("qkv_bias", "bias-other-layer")
def bias_of_the_neighbour(model: Any, layer: Any, other: Any) -> None:
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(layer.self_attn, name).bias.copy_(getattr(other.self_attn, name).bias)


@plant("qkv_matmul", "weight-other-layer")
def qkv_of_the_neighbour(model: Any, layer: Any, other: Any) -> None:
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(layer.self_attn, name).weight.copy_(getattr(other.self_attn, name).weight)


@plant("ffn_out", "weight-other-layer")
def down_of_the_neighbour(model: Any, layer: Any, other: Any) -> None:
    layer.mlp.down_proj.weight.copy_(other.mlp.down_proj.weight)


@plant("attn_out", "weight-transposed")
def transposed_output(model: Any, layer: Any, other: Any) -> None:
    layer.self_attn.o_proj.weight.copy_(layer.self_attn.o_proj.weight.T.clone())


@plant("ffn_gate ffn_up", "gate-up-swapped")
def gate_and_up(model: Any, layer: Any, other: Any) -> None:
    gate = layer.mlp.gate_proj.weight.clone()
    layer.mlp.gate_proj.weight.copy_(layer.mlp.up_proj.weight)
    layer.mlp.up_proj.weight.copy_(gate)


@plant("attn_norm", "norm-eps")
def large_eps(model: Any, layer: Any, other: Any) -> None:
    layer.input_layernorm.variance_epsilon = 1e-3


@plant("ffn_norm", "norm-gain-plus-one")
def gain_plus_one(model: Any, layer: Any, other: Any) -> None:
    layer.post_attention_layernorm.weight.add_(1)


@plant("ffn_norm", "norm-skipped")
def no_norm(model: Any, layer: Any, other: Any) -> None:
    layer.post_attention_layernorm.forward = lambda x: x


@plant("ffn_silu", "activation")
def gelu(model: Any, layer: Any, other: Any) -> None:
    layer.mlp.act_fn = torch.nn.GELU()


@plant("ffn_silu", "activation")
def gelu_tanh(model: Any, layer: Any, other: Any) -> None:
    layer.mlp.act_fn = torch.nn.GELU(approximate="tanh")


@plant("attn_scores", "scale")
def no_scale(model: Any, layer: Any, other: Any) -> None:
    layer.self_attn.scaling = 1.0


@plant("attn_out", "factor")
def louder(model: Any, layer: Any, other: Any) -> None:
    layer.self_attn.o_proj.register_forward_hook(lambda _m, _x, y: y * 1.5)


@plant("ffn_out", "zeros")
def silent(model: Any, layer: Any, other: Any) -> None:
    layer.mlp.down_proj.register_forward_hook(lambda _m, _x, y: y * 0)


def dumped(model: Any, folder: Path, **more: Any) -> Dump:
    """The dump of one pass of a Transformers model."""
    entries: list[Entry] = []
    pos = tuple(range(len(TOKENS)))

    def emit(layer: int | None, name: str, value: np.ndarray) -> None:
        s = by_name(name)
        where = pos if "T" in s.letters else pos[-1:]
        entries.append(Entry(Path(name), s, layer, 0, value.shape, where, array=np.asarray(value, np.float32)))

    with capture(model, emit):
        model(torch.tensor([TOKENS]), **more)
    return Dump(Path("dump"), {"tokens": TOKENS}, open_checkpoint(folder).config.sizes, ordered(entries))


def stored(dump: Dump, name: str, layer: int) -> np.ndarray:
    e = dump.get(name, layer)
    assert e is not None
    return e.values()


def unexplained(dump: Dump, folder: Path) -> list[Finding]:
    return [f for f in verify(dump, open_weights(str(folder))[1]).findings if f.verdict == UNEXPLAINED]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mistake", PLANTS)
def test_planted_in_one_layer(mistake: str, dtype: str, index: int, folder: Path, score: Score) -> None:
    stages, named, f = PLANTS[mistake]
    model = load(folder, dtype)
    right = dumped(model, folder)
    with torch.no_grad():
        f(model, model.model.layers[index], model.model.layers[(index + 1) % 3])
    wrong = dumped(model, folder)
    if np.array_equal(stored(wrong, stages[0], index), stored(right, stages[0], index)):
        # No effect in 8 bits of mantissa, beside a mean square of 20.
        assert (mistake, dtype) == ("large_eps", "bfloat16")
        return
    check(wrong, folder, {(index, s) for s in stages}, named, dtype, score)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planted_in_every_layer(dtype: str, folder: Path, score: Score) -> None:
    """Mistakes of the whole engine: a wrong theta, positions off by one, no causal mask, keys that are not rotated."""
    from transformers.models.qwen2 import modeling_qwen2 as hf

    model = load(folder, dtype)
    assert unexplained(dumped(model, folder), folder) == []
    rotary = model.model.rotary_emb
    right = rotary.inv_freq.clone()
    rotary.inv_freq.copy_(1 / 10000 ** (torch.arange(0, 8, 2) / 8))

    def check_all(dump: Dump, stages: set[str], named: str) -> None:
        check(dump, folder, {(i, s) for i in range(3) for s in stages}, named, dtype, score)

    check_all(dumped(model, folder), {"q_post_rope", "k_post_rope"}, "rope-theta")
    rotary.inv_freq.copy_(right)
    later = {"position_ids": torch.arange(1, len(TOKENS) + 1)[None]}
    check_all(dumped(model, folder, **later), {"q_post_rope", "k_post_rope"}, "rope-position")
    T = len(TOKENS)
    free = {"attention_mask": torch.zeros(1, 1, T, T, dtype=model.dtype)}
    check_all(dumped(model, folder, **free), {"attn_softmax"}, "mask-missing")
    turn = hf.apply_rotary_pos_emb
    with patch.object(hf, "apply_rotary_pos_emb", lambda q, k, *rest: (turn(q, k, *rest)[0], k)):
        check_all(dumped(model, folder), {"k_post_rope"}, "rope-missing")


def check(dump: Dump, folder: Path, places: set[tuple[int, str]], named: str, dtype: str, score: Score) -> None:
    """What is unexplained is `places` and nothing else, each with the name of the mistake."""
    found = unexplained(dump, folder)
    at = {(f.layer, f.stage) for f in found}
    known = all(named in {h.name for h in f.hypotheses} for f in found)
    score(
        "mistakes planted in Transformers", dtype, planted=1, stage_found={s for _, s in places} <= {s for _, s in at},
        layer_right=places <= at, name_right=bool(found) and known, false_alarms=len(at - places),
    )  # fmt: skip
    assert at == places
    assert known, [(f.layer, f.stage, f.hypotheses) for f in found]


# -- a damaged weight file in llama.cpp -------------------------------------------------------------------------------

ROW, BLOCK = 100, 5


@cache
def damaged_copy(source: Path, target: Path) -> None:
    """The model with one block of one row of blk.7.ffn_down.weight lost: its half-precision scale is set to 0."""
    c = open_checkpoint(source)
    t = c.tensors["blk.7.ffn_down.weight"]
    f = format_of(t.format)
    assert t.format == "Q6_K"
    raw = np.memmap(source, np.uint8, "r")
    start = t.data.__array_interface__["data"][0] - _mapped_at(c, raw)
    shutil.copy(source, target)
    copy = np.memmap(target, np.uint8, "r+")
    at = start + (ROW * t.shape[1] // f.block + BLOCK) * f.bytes
    assert np.array_equal(copy[start : start + t.data.size], t.data)
    copy[at + 208 : at + 210] = 0
    copy.flush()


def _mapped_at(c: Any, raw: np.ndarray) -> int:
    """Where in memory the file's first byte would be: the first tensor's address less its place in the file."""
    first = min(c.tensors.values(), key=lambda t: t.data.__array_interface__["data"][0])
    head = first.data[:4096].tobytes()
    return int(first.data.__array_interface__["data"][0]) - raw[: 1 << 26].tobytes().find(head)


@pytest.mark.model
def test_a_block_that_llama_cpp_lost(model_path: Path, tmp_path: Path) -> None:
    """An int8 engine's dump: noise of 1e-2 in the product, and one row of 896 whose sum lacks one of 19 blocks."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (README: make oracle)")
    damaged_copy(model_path, tmp_path / "damaged.gguf")
    at = tmp_path / "dump"
    assert main(["dump-llamacpp", str(tmp_path / "damaged.gguf"), str(at), "-p", PROMPTS["scripts"]]) == 0
    v = verify(open_dump(at), open_weights(str(model_path))[1])
    (f,) = (f for f in v.findings if f.verdict == UNEXPLAINED)
    assert (f.layer, f.stage) == (7, "ffn_out")
    (spot,) = f.where.rows
    assert (spot.row, spot.block, spot.confidence) == (ROW, BLOCK, 1.0)
    assert spot.number.factor == pytest.approx(0, abs=1e-4)
    assert "row 100 of blk.7.ffn_down.weight, block 5, is not the model's" in sentence(v)
