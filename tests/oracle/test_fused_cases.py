"""Public cases (tests/cases.py) of RoPE, the mask and the cache, as Transformers leaves them with plain forward hooks:
its own sdpa in bfloat16 hands over neither Q and K after RoPE nor scores, so that all of them show in the result.

Each mistake is planted in the model, its rotation or its cache; nothing of the attention itself is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (make oracle)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")

from qwenref.engine.load import open_weights  # noqa: E402
from qwenref.trace.dump import Dump, Entry, ordered  # noqa: E402
from qwenref.trace.verify.finding import UNEXPLAINED  # noqa: E402
from qwenref.trace.verify.report.text import sentence  # noqa: E402
from qwenref.trace.verify.verify import verify  # noqa: E402

from .test_recipes_real import load, saved, watched  # noqa: E402

pytestmark = pytest.mark.oracle
__all__ = ["saved"]  # a fixture

MODELLING = "transformers.models.qwen2.modeling_qwen2"
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 256}
Cache = Any
Prepare = Callable[[Any], AbstractContextManager[Any]]  # of a model, before it runs
Between = Callable[[Cache], None]  # of its cache, before the last tokens


def quietly(model: Any) -> AbstractContextManager[Any]:
    return nullcontext()


def nothing(cache: Cache) -> None:
    pass


def by_adjacent_pairs(model: Any) -> AbstractContextManager[Any]:
    def turned(q: Any, k: Any, cos: Any, sin: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        c, s = (t[..., : t.shape[-1] // 2].repeat_interleave(2, -1).unsqueeze(1) for t in (cos, sin))

        def neighbour(x: Any) -> Any:
            pairs = x.unflatten(-1, (-1, 2))
            return torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)

        return q * c + neighbour(q) * s, k * c + neighbour(k) * s

    return patch(f"{MODELLING}.apply_rotary_pos_emb", turned)


def of_base(theta: float, slower: float = 1.0) -> Prepare:
    """The rotation's buffer is of another base, or divided."""

    def prepared(model: Any) -> AbstractContextManager[Any]:
        rope, h = model.model.rotary_emb, model.model.rotary_emb.inv_freq.shape[0]
        rope.inv_freq.copy_(1 / theta ** (torch.arange(h) / h) / slower)
        rope.attention_scaling = 1.0
        return nullcontext()

    return prepared


def windowed(model: Any) -> AbstractContextManager[Any]:
    """A window of 7 in every layer, though the configuration that the judge is told has none."""
    c = model.config
    c.sliding_window, c.layer_types = 7, ["sliding_attention"] * c.num_hidden_layers
    model.model.has_sliding_layers = True
    for layer in model.model.layers:
        layer.attention_type = layer.self_attn.layer_type = "sliding_attention"
        layer.self_attn.sliding_window = 7
    return nullcontext()


def held_in_fp8(unscaled: int) -> Prepare:
    """Keys and values in e4m3 with a scale for the tensor, which one layer forgets when it reads."""

    def prepared(model: Any) -> AbstractContextManager[Any]:
        from transformers.cache_utils import DynamicLayer

        plain = DynamicLayer.update

        def kept(x: Any, forgets: bool) -> Any:
            s = x.float().abs().max() / 448
            codes = (x.float() * (1 / s)).to(torch.float8_e4m3fn).float()
            return (codes if forgets else codes * s).to(x.dtype)

        seen: list[Any] = []

        def update(self: Any, k: Any, v: Any, *more: Any, **others: Any) -> Any:
            seen.extend([self] * all(self is not other for other in seen))
            forgets = next(n for n, other in enumerate(seen) if other is self) == unscaled
            return plain(self, kept(k, forgets), kept(v, forgets), *more, **others)

        return patch.object(DynamicLayer, "update", update)

    return prepared


def rows_of(order: list[int]) -> Between:
    """The cache's rows replaced by others; -1 for zeros."""

    def between(cache: Cache) -> None:
        n = torch.tensor(order)
        for layer in cache.layers:
            for x in (layer.keys, layer.values):
                rows = x[:, :, n.clamp(min=0)] * (n >= 0)[None, None, :, None]
                x[:, :, : len(order)] = rows.to(x.dtype)

    return between


# Number: what the model does, what its cache suffers, by how much the last tokens' positions are off, what is said.
CASES: dict[int, tuple[Prepare, Between, int, str]] = {
    1: (by_adjacent_pairs, nothing, 0, "RoPE turns adjacent pairs, not halves"),
    3: (quietly, nothing, 5, "RoPE's positions are off by +5"),
    34: (quietly, rows_of([4, 5, 6, 7]), 0, "those of 4 to 7 stand at 0 to 3"),
    35: (held_in_fp8(1), nothing, 0, "the cache is read without its scale"),
    41: (of_base(1e6, 4.0), nothing, 0, "RoPE is scaled by linear, factor 4, not by yarn"),
    45: (windowed, nothing, 0, "a window of 7 positions, where this layer has none"),
    48: (quietly, rows_of([*range(8), -1, -1, -1, -1]), 0, "zeros stand at 8 to 11"),
    49: (quietly, rows_of([8, 9, 10, 11]), 0, "those of 8 to 11 stand at 0 to 3"),
    51: (of_base(1e4), nothing, 0, "RoPE's theta is 10,000, not 1,000,000"),
}
STEPPED = (3, 34, 48, 49)  # seen in what comes after the prompt


@pytest.fixture(scope="module")
def scaled(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, under a configuration that scales RoPE."""
    path = tmp_path_factory.mktemp("scaled") / "model"
    config = transformers.AutoConfig.from_pretrained(saved)
    config.rope_parameters = dict(YARN)
    transformers.AutoModelForCausalLM.from_pretrained(saved, config=config).save_pretrained(path)
    return path


def dumped(number: int, path: Path, prompt: int) -> tuple[Dump, Any]:
    """A prompt, and, where a case wants it, 5 tokens more in a second pass."""
    prepare, between, late, _ = CASES[number]
    model, w = load(path, "bfloat16", "sdpa"), open_weights(str(path))[1]
    length = prompt + 5 * (number in STEPPED)
    tokens = np.random.default_rng(number).integers(0, 101, length).tolist()
    entries: list[Entry] = []
    with torch.no_grad(), prepare(model):
        with watched(model, w.config.sizes, tuple(range(prompt)), entries):
            cache = model(torch.tensor([tokens[:prompt]]), use_cache=True).past_key_values
        if number in STEPPED:
            between(cache)
            pos = tuple(range(prompt, length))
            with watched(model, w.config.sizes, pos, entries, phase=1):
                model(torch.tensor([tokens[prompt:]]), past_key_values=cache, position_ids=torch.tensor([pos]) + late)
    return Dump(Path("dump"), {"tokens": tokens}, w.config.sizes, ordered(entries)), w


@pytest.mark.parametrize("prompt", [12, 40])
@pytest.mark.parametrize("number", CASES)
def test_a_case_in_fused_attention_is_named(number: int, prompt: int, saved: Path, scaled: Path) -> None:
    v = verify(*dumped(number, scaled if number == 41 else saved, prompt))
    wrong = [f for f in v.findings if f.verdict == UNEXPLAINED]
    layers = [1] if number == 35 else range(3)
    assert {(f.phase, f.layer, f.stage) for f in wrong} == {(number in STEPPED, n, "attention") for n in layers}
    assert all(any(CASES[number][-1] in h.sentence for h in f.hypotheses) for f in wrong), sentence(v)
    assert CASES[number][-1] in sentence(v)


@pytest.mark.parametrize("number", [1, 41, 45])
def test_without_the_mistake_nothing_is_said(number: int, saved: Path, scaled: Path) -> None:
    with patch.dict(CASES, {number: (quietly, nothing, 0, "")}):
        v = verify(*dumped(number, scaled if number == 41 else saved, 12))
    assert all(f.explained for f in v.findings), sentence(v)
