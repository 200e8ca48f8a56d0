"""Every hypothesis, planted: the mistake is made inside a foreign engine, which goes on with it. The judge must find
the stage and the layer, only those, and the mistake's name among what it reports.

Each mistake is planted in the first, a middle and the last layer of Hugging Face's arithmetic, of this package's own
backends and of ggml's, the engines of each family taking turns, so that each has its turn in every engine;
tests/oracle/test_verify_real.py plants some in Hugging Face's own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from qwenref.engine.weights import Weights
from qwenref.trace.dump import Dump, Entry
from qwenref.trace.stages import by_name
from qwenref.trace.verify.facts import FileWrong
from qwenref.trace.verify.hypotheses.table import TABLE
from qwenref.trace.verify.verify import UNEXPLAINED, Finding, verify

from ...engines import changed, dump_of, with_values
from ...plants import PLANTS, Plant, by_groups
from ...thinned import always, thinned
from ...tiny import scaled, tiny_weights
from .test_hypotheses_fitted import FITTED

TOKENS = np.random.default_rng(1).integers(0, 259, 9).tolist()
FAMILIES = {
    "Hugging Face": ("HF float32", "HF float16", "HF bfloat16"),
    "our own": ("cpu f32", "cpu int8", "reference f32"),
    "rounded activations": ("ggml, 16-bit KV", "ggml, 32-bit KV", "cpu int16"),
}
Score = Callable[..., None]


@cache
def weights(
    formats: str,
    scaling: tuple[tuple[str, object], ...] = (),
    windows: tuple[int, ...] = (),
    model_type: str = "qwen2",
) -> Weights:
    """Wide enough for K-quants: their decoders' mistakes are planted too."""
    w = tiny_weights(layers=3, hidden=256, head_dim=32, heads=8, mlp=512, formats=formats, model_type=model_type)
    w = scaled(w, **dict(scaling)) if scaling else w
    return replace(w, config=replace(w.config, windows=windows))


def planted(p: Plant, engine: str, layer: int | None) -> list[Finding]:
    """What is unexplained once the mistake is made."""
    mistake = (lambda run, x: p.make(run, x) if run.phase else x) if p.step else p.make
    steps, w = [5] if p.step else [], weights(p.formats, p.scaling, p.windows, p.model_type)
    dump = dump_of(w, engine, TOKENS, steps=steps, mistakes={(p.stage, layer): mistake})
    return [f for f in verify(dump, w).findings if f.verdict == UNEXPLAINED]


def check(p: Plant, engine: str, layer: int, score: Score) -> None:
    at = None if by_name(p.stage).scope == "whole" else layer
    found = planted(p, engine, at)
    places = {(f.layer, f.stage) for f in found}
    named = all(p.named in {h.name for h in f.hypotheses} for f in found)
    score(
        "mistakes planted in simulated engines", engine, planted=1, stage_found=p.stage in {s for _, s in places},
        layer_right=(at, p.stage) in places, name_right=bool(found) and named,
        false_alarms=len(places - {(at, p.stage)}),
    )  # fmt: skip
    assert places == {(at, p.stage)}, [(f.phase, f.layer, f.stage, f.left) for f in found]
    assert named, [(f.phase, [h.name for h in f.hypotheses]) for f in found]


def layers_of(p: Plant) -> list[int]:
    return [0] if by_name(p.stage).scope == "whole" else list(p.layers)


def turns() -> Iterator[tuple[Plant, str, int]]:
    """Each mistake in each of its layers, in one engine of each family that it shows in."""
    for i, p in enumerate(PLANTS):
        for engines in FAMILIES.values():
            fit = [e for e in engines if e in p.engines]
            for layer in layers_of(p) if fit else ():
                yield p, fit[(i + layer) % len(fit)], layer


TURNS = list(turns())
PLANTED = thinned(TURNS, lambda t: f"{t[0].id}-{t[1]}-{t[2]}", 11, of=lambda t: t[0].named)


@pytest.mark.parametrize(("p", "engine", "layer"), PLANTED)
def test_planted(p: Plant, engine: str, layer: int, score: Score) -> None:
    check(p, engine, layer, score)


def test_every_hypothesis_has_a_turn_that_runs_always() -> None:
    assert {p.named for p, _, _ in always(PLANTED)} == {p.named for p in PLANTS}


def test_every_hypothesis_has_its_turn_in_every_layer() -> None:
    """In Hugging Face's dumps and in ours: the first, a middle and the last layer, where the mistake can be made."""
    for family in ("Hugging Face", "our own"):
        had = {(p.named, layer) for p, engine, layer in TURNS if engine in FAMILIES[family]}
        for h in {p.named for p in PLANTS}:
            stages = {p.stage for p in PLANTS if p.named == h}
            whole = all(by_name(s).scope != "layer" for s in stages)
            assert {layer for name, layer in had if name == h} == ({0} if whole else {0, 1, 2}), (h, family)


def test_every_mistake_has_its_turn_in_every_engine() -> None:
    had = {(p.id, engine) for p, engine, _ in TURNS}
    for p in PLANTS:
        if len(layers_of(p)) == 3:
            assert {engine for name, engine in had if name == p.id} == set(p.engines), p.id


# -- mistakes of the dump, not of the engine --------------------------------------------------------------------------


def healthy() -> Dump:
    return dump_of(weights("Q4_K"), "HF float32", TOKENS)


def replaced(dump: Dump, stage: str, layer: int, values: np.ndarray) -> Dump:
    """The dump with one file's values others."""

    def keep(e: Entry) -> Entry:
        return with_values(e, values) if e.key == (0, layer, stage) else e

    return changed(dump, keep)


def values(dump: Dump, stage: str, layer: int) -> np.ndarray:
    e = dump.get(stage, layer)
    assert e is not None
    return e.values()


def unexplained(dump: Dump) -> list[Finding]:
    return [f for f in verify(dump, weights("Q4_K")).findings if f.verdict == UNEXPLAINED]


def test_a_product_that_holds_the_values_after_the_bias() -> None:
    """The case this project came from: two capture points under one name. The next stage is not to blame."""
    dump = healthy()
    (f,) = unexplained(replaced(dump, "qkv_matmul", 1, values(dump, "qkv_bias", 1)))
    assert (f.layer, f.stage) == (1, "qkv_matmul")
    assert {"bias-included", "other-file", "other-stage"} <= {h.name for h in f.hypotheses}
    assert any(isinstance(note, FileWrong) for note in f.notes)


def test_a_file_of_another_layer() -> None:
    dump = healthy()
    (f,) = unexplained(replaced(dump, "k_post_rope", 1, values(dump, "k_post_rope", 0)))
    assert (f.layer, f.stage) == (1, "k_post_rope")
    (named,) = [h for h in f.hypotheses if h.name == "other-file"]
    assert "k_post_rope of layer 0" in named.sentence
    assert any(isinstance(note, FileWrong) for note in f.notes)


@pytest.mark.parametrize("stage", ["q_post_rope", "attention"])
def test_another_layout(stage: str) -> None:
    dump = healthy()
    x = values(dump, stage, 2)
    (f,) = unexplained(replaced(dump, stage, 2, np.ascontiguousarray(x.swapaxes(0, 1)).reshape(x.shape)))
    assert (f.layer, f.stage) == (2, stage)
    assert "layout" in {h.name for h in f.hypotheses}


@pytest.mark.parametrize("back", [False, True])
def test_an_order_of_matrices_and_bias_where_no_product_is_shown(back: bool) -> None:
    """A fused bias: Megatron's order of both, taken for blocks, and the reverse."""
    dump = healthy()
    rows = by_groups(SimpleNamespace(config=weights("Q4_K").config))  # type: ignore[arg-type]
    wrong = replaced(dump, "qkv_bias", 1, values(dump, "qkv_bias", 1)[:, np.argsort(rows) if back else rows])
    (f,) = unexplained(changed(wrong, lambda e: None if e.stage.name == "qkv_matmul" else e))
    assert (f.layer, f.stage) == (1, "qkv_bias")
    (named,) = [h for h in f.hypotheses if h.name == "qkv-order"]
    assert ("read as if" in named.sentence) == back


def test_two_files_exchanged() -> None:
    """Gate and up under each other's names: both are found, and said to hold the other."""
    dump = healthy()
    gate, up = values(dump, "ffn_gate", 1), values(dump, "ffn_up", 1)
    found = unexplained(replaced(replaced(dump, "ffn_gate", 1, up), "ffn_up", 1, gate))
    assert {(f.layer, f.stage) for f in found} >= {(1, "ffn_gate"), (1, "ffn_up")}
    assert all(any(h.name in ("gate-up-swapped", "other-stage") for h in f.hypotheses) for f in found[:2])


def test_a_mistake_in_a_stage_that_the_dump_lacks() -> None:
    """llama.cpp fuses silu: a wrong activation shows in the product, and is named where it is."""
    make = next(p for p in PLANTS if p.id == "activation-relu").make
    dump = dump_of(weights("Q4_K"), "ggml, 16-bit KV", TOKENS, mistakes={("ffn_silu", 1): make})
    (f,) = unexplained(changed(dump, lambda e: None if e.stage.name == "ffn_silu" else e))
    assert (f.layer, f.stage) == (1, "ffn_swigl")
    (named,) = [h for h in f.hypotheses if h.name == "activation"]
    assert named.at == "ffn_silu"
    assert named.sentence == "ReLU stands for SiLU"


def test_every_hypothesis_is_planted_somewhere() -> None:
    here = {"other-file", "other-stage", "bias-included", "layout"}
    adapters = {
        "adapter-missing",
        "adapter-twice",
        "adapter-scaled",
        "adapter-other",
        "dora-magnitude",
    }  # test_verify_lora.py
    heads = {"head-run"}  # test_heads.py: a vocabulary of three times a state's size
    mixed_up = {"layer-weights", "weights-displaced", "batch-row", "batch-cache"}  # test_mixed_up.py
    blocks = {"softmax-blocks"}  # test_hooked.py: more keys than a block
    tiles = {"product-tile"}  # test_hypotheses_fitted.py: the factor is fitted, so there is no one sentence
    assert {h.name for h in TABLE} == {
        p.named for p in PLANTS
    } | here | adapters | heads | mixed_up | blocks | tiles | set(FITTED)
    assert len({h.name for h in TABLE}) == len(TABLE)
