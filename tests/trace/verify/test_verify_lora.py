"""The judge on models with LoRA adapters: healthy engines are explained without any mistake, and an adapter that is
left out, applied twice or by another scale is found where it is and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from qwenref.engine.weights import Adapted, Adapter, Weights, parts
from qwenref.quant.tensor import QTensor
from qwenref.trace.verify.verify import EXACT, REPRODUCED, UNEXPLAINED, verify

from ...engines import dump_of
from ...tiny import tiny_weights, with_adapters

TOKENS = np.random.default_rng(1).integers(0, 259, 9).tolist()
FIELDS = ("qkv", "attn_out", "gate_up", "ffn_down")
Change = Callable[[tuple[Adapter, ...]], tuple[Adapter, ...]]


@cache
def adapted(formats: str = "F32", count: int = 1, more: str = "") -> Weights:
    sizes = {"hidden": 256, "head_dim": 64, "mlp": 256} if formats != "F32" else {}
    return with_adapters(tiny_weights(formats=formats, **sizes), count, more=more)


def planted(w: Weights, field: str, change: Change, at: int = 1) -> Weights:
    """The model with the adapters of a layer's field changed."""
    leaf = getattr(w.layers[at], field)
    own = tuple(replace(p, adapters=change(p.adapters)) if isinstance(p, Adapted) else p for p in parts(leaf))
    layers = list(w.layers)
    layers[at] = replace(layers[at], **{field: own if isinstance(leaf, tuple) else own[0]})
    return replace(w, layers=tuple(layers))


@pytest.mark.parametrize(("engine", "count"), [("HF float32", 1), ("HF bfloat16", 2), ("reference f64", 2)])
def test_healthy(engine: str, count: int) -> None:
    w = adapted(count=count)
    found = verify(dump_of(w, engine, TOKENS, steps=[5, 9]), w)
    assert {f.verdict for f in found.findings} <= {EXACT, REPRODUCED} and found.status == 0


@pytest.mark.parametrize(("engine", "count", "more"), [
    ("HF float32", 2, "embedding"), ("HF float32", 1, "dora"), ("cpu f32", 2, "dora"), ("HF float32", 1, "bias"),
])  # fmt: skip
def test_healthy_with_more(engine: str, count: int, more: str) -> None:
    """An adapter of the embedding, too; DoRA, which PEFT computes in float32 (tests/oracle/test_lora.py has it in 16
    bits); adapters' biases."""
    w = adapted(count=count, more=more)
    found = verify(dump_of(w, engine, TOKENS, steps=[5, 9]), w)
    assert {f.verdict for f in found.findings} <= {EXACT, REPRODUCED} and found.status == 0


@pytest.mark.parametrize("engine", ["cpu int8"])
def test_healthy_on_quantised_weights(engine: str) -> None:
    w = adapted("Q4_K")
    found = verify(dump_of(w, engine, TOKENS), w)
    assert {f.verdict for f in found.findings} <= {EXACT, REPRODUCED} and found.status == 0


MISTAKES: dict[str, tuple[Change, str, str]] = {
    "left out": (lambda a: (), "adapter-missing", "the adapter is not applied"),
    "twice": (lambda a: a * 2, "adapter-twice", "the adapter is applied twice"),
    "by 0.25": (lambda a: (replace(a[0], scale=a[0].scale / 4),), "adapter-scaled", "0.25 times what it should"),
    "by 1": (lambda a: (replace(a[0], scale=1.0),), "adapter-scaled", "(as if its scale were 1)"),
    "rslora": (lambda a: (replace(a[0], scale=a[0].scale * 5**0.5),), "adapter-scaled", "alpha / sqrt(r) in place of"),
}
STAGES = {"qkv": {"qkv_matmul"}, "attn_out": {"attn_out"}, "gate_up": {"ffn_gate", "ffn_up"}, "ffn_down": {"ffn_out"}}


TURNS = [  # the rest in PEFT's own modules, tests/oracle/test_lora.py
    ("left out", "qkv", "HF float32"), ("twice", "gate_up", "cpu f32"), ("by 0.25", "attn_out", "HF bfloat16"),
    ("by 1", "ffn_down", "HF float32"), ("rslora", "attn_out", "HF bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "field", "engine"), TURNS)
def test_a_mistake_is_found_and_named(mistake: str, field: str, engine: str) -> None:
    change, name, words = MISTAKES[mistake]
    w = adapted()
    found = verify(dump_of(planted(w, field, change), engine, TOKENS), w)
    bad = [f for f in found.findings if f.verdict == UNEXPLAINED]
    assert {(f.layer, f.stage) for f in bad} == {(1, stage) for stage in STAGES[field]}
    for f in bad:
        assert f.hypotheses and f.hypotheses[0].name == name and words in f.hypotheses[0].sentence, f.hypotheses


def test_one_of_two_adapters_and_one_of_three_matrices() -> None:
    w = adapted(count=2)
    (f,) = [
        f
        for f in verify(dump_of(planted(w, "attn_out", lambda a: a[:1]), "HF float32", TOKENS), w).findings
        if f.verdict == UNEXPLAINED
    ]
    assert f.hypotheses[0].sentence == "adapter 2 of 2 is not applied"
    w = adapted()
    q, k, v = w.layers[0].qkv
    layers = (replace(w.layers[0], qkv=(q, k.base, v)), w.layers[1])
    found = verify(dump_of(replace(w, layers=layers), "HF float32", TOKENS), w)
    (f,) = [f for f in found.findings if f.verdict == UNEXPLAINED]
    assert (f.layer, f.stage) == (0, "qkv_matmul") and "is not applied" in f.hypotheses[0].sentence


def scaled(adapters: tuple[Adapter, ...], factor: float) -> tuple[Adapter, ...]:
    return tuple(replace(a, scale=a.scale * factor) for a in adapters)


def plain_lora(adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
    return tuple(replace(a, dora=None) for a in adapters)


OF_EMBEDDING: dict[str, tuple[str, Change, str, str]] = {
    "left out": ("embedding", lambda a: (), "adapter-missing", "the adapter is not applied"),
    "twice": ("embedding", lambda a: a * 2, "adapter-twice", "the adapter is applied twice"),
    "half": ("embedding", lambda a: scaled(a, 0.5), "adapter-scaled", "the adapter adds 0.5 times what it should"),
    "DoRA left out": ("dora", lambda a: (), "adapter-missing", "the adapter is not applied"),
    "no lengths": ("dora", plain_lora, "dora-magnitude", "DoRA's magnitude is left out"),
}


@pytest.mark.parametrize(("mistake", "engine"), [
    ("left out", "HF float32"), ("twice", "HF bfloat16"), ("half", "cpu f32"), ("DoRA left out", "HF float32"),
    ("no lengths", "HF float32"),
])  # fmt: skip
def test_a_mistake_with_the_embeddings_adapter(mistake: str, engine: str) -> None:
    more, change, name, words = OF_EMBEDDING[mistake]
    w = adapted(more=more)
    wrong = replace(w, embed=replace(w.embed, adapters=change(w.embed.adapters)))
    bad = [f for f in verify(dump_of(wrong, engine, TOKENS), w).findings if f.verdict == UNEXPLAINED]
    assert {(f.layer, f.stage) for f in bad} == {(0, "embedding")}
    for f in bad:
        assert f.hypotheses and f.hypotheses[0].name == name and words in f.hypotheses[0].sentence, f.hypotheses


DORA: dict[str, tuple[Change, str, str]] = {
    "forgotten": (plain_lora, "dora-magnitude", "left out, as if the adapter were plain LoRA"),
    "norm of W": (
        lambda a: (replace(a[0], dora=replace(a[0].dora, squares=a[0].dora.squares * [[1.0], [0.0], [0.0]])),),
        "dora-magnitude", "divided by the norm of W alone, not of W + scale B A, in the adapter",
    ),
    "by 0.3": (lambda a: scaled(a, 0.3), "adapter-scaled", "the adapter adds 0.3 times what it should"),
    "left out": (lambda a: (), "adapter-missing", "the adapter is not applied"),
    "twice": (lambda a: a * 2, "adapter-twice", "the adapter is applied twice"),
}  # fmt: skip


@pytest.mark.parametrize(("mistake", "field", "engine"), [
    ("forgotten", "attn_out", "HF float32"), ("norm of W", "ffn_down", "HF float32"), ("by 0.3", "attn_out", "cpu f32"),
    ("left out", "qkv", "HF float32"), ("twice", "ffn_down", "HF float32"),
])  # fmt: skip
def test_a_mistake_with_dora(mistake: str, field: str, engine: str) -> None:
    change, name, words = DORA[mistake]
    w = adapted(more="dora")
    found = verify(dump_of(planted(w, field, change), engine, TOKENS), w)
    bad = [f for f in found.findings if f.verdict == UNEXPLAINED]
    assert {(f.layer, f.stage) for f in bad} == {(1, stage) for stage in STAGES[field]}
    for f in bad:
        assert f.hypotheses and f.hypotheses[0].name == name and words in f.hypotheses[0].sentence, f.hypotheses


def test_what_an_adapter_adds_lands_in_another_slice() -> None:
    w = adapted()
    q, k, v = w.layers[1].qkv
    other, turned = Adapted(v, k.adapters), replace(k, adapters=swapped(k.adapters))
    for moved, words in (
        ((q, k.base, other), "what the adapter of K adds is added to V, and not to its own"),
        ((q, turned, other), "what the adapters of K and V add is added to the other"),
    ):
        right = w if moved[1] is k.base else with_layer(w, (q, k, Adapted(v, swapped(k.adapters))))
        found = verify(dump_of(with_layer(w, moved), "HF float32", TOKENS), right)
        (f,) = [f for f in found.findings if f.verdict == UNEXPLAINED]
        assert (f.layer, f.stage) == (1, "qkv_matmul")
        assert f.hypotheses[0].sentence == words


def swapped(adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
    """An adapter of its own for V: the same, of the other sign and half the size."""
    return tuple(replace(a, scale=-a.scale / 2) for a in adapters)


def with_layer(w: Weights, qkv: tuple[Adapted | QTensor, ...]) -> Weights:
    return replace(w, layers=(w.layers[0], replace(w.layers[1], qkv=qkv)))
