"""Dumps as other engines lay them out: each is judged as the plain dump of the same pass, and a mistake is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.trace.dump import Dump
from qwenref.trace.sources import open_dump
from qwenref.trace.verify.finding import UNEXPLAINED
from qwenref.trace.verify.verify import verify

from ...engines import dump_of
from ...foreign_dumps import Arrays, llama_cpp, sglang, transformers
from ...handovers import WAYS, arrived
from ...tiny import tiny_weights
from ...torch_files import save

IDS, STEPS = [3, 200, 17, 9, 4], [77, 12]
W = tiny_weights()
C = W.config


WRITTEN = {  # by what way: phases, stages of the prompt
    "own": (3, 17 * 2 + 3),
    "own, torch": (3, 17 * 2 + 3),
    "llama.cpp": (3, 16 * 2 + 3),
    "llama.cpp, callback": (1, 13 * 2 + 3),
    "transformers": (3, 12 * 2 + 3),
    "transformers, batch": (3, 12 * 2 + 3),
    "mlx-lm": (3, 13 * 2 + 3),
    "candle": (1, 12 * 2 + 3),
    "candle, quantized": (1, 11 * 2 + 3),
    "nano-vllm": (3, 11 * 2 + 3),
    "sglang": (3, 12 * 2 + 3),
    "sglang, ranks": (3, 12 * 2 + 2),
    "vllm": (3, 13 * 2 + 3),
    "vllm, torch": (3, 11 * 2 + 3),
    "meta": (1, 9 * 2 + 3),
    "tensorrt-llm": (3, 11 * 2 + 3),
    "onnx": (1, 16 * 2 + 3),
    "onnx, nodes": (1, 16 * 2 + 3),
    "raw": (3, 17 * 2 + 3),
    "map": (1, 8 * 2 + 3),
}


def test_every_way_is_written_here() -> None:
    assert WRITTEN.keys() == WAYS.keys()


@pytest.mark.parametrize("engine", ["HF float32", "ggml, 16-bit KV"])
@pytest.mark.parametrize("how", WAYS)
def test_each_layout_is_the_plain_dump(how: str, engine: str, tmp_path: Path) -> None:
    """Every value of every stage that the layout holds, bit for bit, and so every verdict."""
    phases, stages = WRITTEN[how]
    plain = dump_of(W, engine, IDS, steps=STEPS)
    dump = arrived(WAYS[how], tmp_path, plain, W)
    assert {e.phase for e in dump.entries} == set(range(phases))
    assert sum(e.phase == 0 for e in dump.entries) == stages
    for e in dump.entries:
        right = plain.get(e.stage.name, e.layer, e.phase)
        assert right is not None and e.positions == right.positions
        np.testing.assert_array_equal(e.values().view(np.uint32), np.asarray(right.values()).view(np.uint32), e.label)
    assert list(dump.run["tokens"])[: len(IDS)] == IDS and dump.ignored == ()
    assert verify(dump, W).status == 0


BIASED = {  # of a model with a bias of every product: how many stages of a layer a way has beside those of Qwen2
    "own": 4, "llama.cpp, callback": 3, "transformers": 0, "sglang": 0, "sglang, ranks": 0, "vllm": 0, "meta": 0,
    "candle, quantized": 0, "tensorrt-llm": 0, "onnx": 4,
}  # fmt: skip


@pytest.mark.parametrize("how", BIASED)
def test_biases_of_other_products(how: str, tmp_path: Path) -> None:
    """Modules show what they put out, with its bias, and it is read as that; nodes show both."""
    w = tiny_weights(model_type="llama", asked=("attention_bias", "mlp_bias"))
    plain = dump_of(w, "HF float32", IDS)
    dump = arrived(WAYS[how], tmp_path, plain, w)
    assert len(dump.entries) == WRITTEN[how][1] + BIASED[how] * 2
    for e in dump.entries:
        right = plain.get(e.stage.name, e.layer, e.phase)
        assert right is not None
        np.testing.assert_array_equal(e.values().view(np.uint32), np.asarray(right.values()).view(np.uint32), e.label)
    shown = {e.stage.name for e in dump.entries}
    assert ("ffn_out_bias" in shown) == (how != "candle, quantized") and verify(dump, w).status == 0


@pytest.mark.parametrize("how", WAYS)
def test_a_mistake_is_found_where_it_is(how: str, tmp_path: Path) -> None:
    """Two rows of one layer's output projection are swapped for each other, and the engine goes on with it."""

    def swapped(run: Any, right: np.ndarray) -> np.ndarray:
        return right[:, [1, 0, *range(2, right.shape[1])]]

    plain = dump_of(W, "HF float32", IDS, mistakes={("attn_out", 1): swapped})
    found = verify(arrived(WAYS[how], tmp_path, plain, W), W)
    wrong = {(f.layer, f.stage) for f in found.findings if f.verdict == UNEXPLAINED}
    if how == "llama.cpp, callback":  # whose graph does not name the product: the sum shows it
        assert wrong == {(1, "post_attn_residual")}
    else:
        assert wrong == {(1, "attn_out")}


def prompt(lay_out: Callable[..., Arrays], dump: Dump) -> Arrays:
    return lay_out(dump, C, 0, IDS, range(len(IDS)))


def test_queries_before_they_are_rotated_have_the_same_name(tmp_path: Path) -> None:
    """llama.cpp's Qcur is three nodes: with its heads apart it is the rotated one, in one row it is not."""
    dump = dump_of(W, "HF float32", IDS)
    ends = np.cumsum([C.num_attention_heads * C.head_dim, C.num_key_value_heads * C.head_dim])
    found = prompt(llama_cpp, dump)
    for i in range(C.num_hidden_layers):
        q, k, v = np.split(np.asarray(dump["qkv_bias", i]), ends, 1)
        found |= {f"Qcur-{i}": q, f"Kcur-{i}": k, f"Vcur-{i}": v.reshape(len(IDS), -1, C.head_dim)}
    np.savez(tmp_path / "x.npz", **found)
    read = open_dump(tmp_path / "x.npz", C.sizes, layers=C.num_hidden_layers)
    for i in range(C.num_hidden_layers):
        np.testing.assert_array_equal(read["qkv_bias", i], dump["qkv_bias", i])
    assert not any(e.stage.name.endswith("post_rope") for e in read.entries) and verify(read, W).status == 0


def test_arrays_held_twice_are_said(tmp_path: Path) -> None:
    """A layer's output is the next layer's input: one is read, the other named."""
    found = prompt(transformers, dump_of(W, "HF float32", IDS))
    found["model.layers.1.input"] = found["model.layers.0"]
    dump = open_dump(save(tmp_path / "x.pt", found), C.sizes, layers=C.num_hidden_layers)
    assert dump.notes == ('not needed, 1 arrays: "model.layers.1.input"',)


def test_the_side_of_a_module_is_no_module(tmp_path: Path) -> None:
    """`output` is Meta's head, and what a dumper may put behind any module's path."""
    plain = prompt(transformers, dump_of(W, "HF float32", IDS))
    found = {k if k.endswith(("input", "_ids")) else f"{k}.output": x for k, x in plain.items()}
    more = {f"model.layers.{i}.self_attn.{x}.output": np.zeros(3, np.float32) for i in range(2) for x in "abcdefgh"}
    dump = open_dump(save(tmp_path / "x.pt", found | more), C.sizes, layers=C.num_hidden_layers)
    assert len(dump.entries) == 12 * 2 + 3 and dump.ignored == tuple(more)


def test_a_module_that_all_layers_call(tmp_path: Path) -> None:
    """SGLang's dumper keeps the last layer's rotation under every layer's name, and a tied head is the embedding."""
    right = dump_of(W, "HF float32", IDS)
    (tmp_path / "d").mkdir()
    found = prompt(sglang, right) | {"lm_head": right["embedding", 0]}
    dump = open_dump(save(tmp_path / "d/Pass00000.pt", found), C.sizes, layers=2)
    assert np.array_equal(dump["q_post_rope", 1], right["q_post_rope", 1]) and ("q_post_rope", 0) not in dump
    assert "lm_head" not in {e.stage.name for e in dump.entries} and dump.ignored == ()
    why = "is left out: all layers share its module, and only the last one's call, layer 1, is there"
    assert dump.notes[:2] == tuple(f"pass 0: {x}_post_rope {why}" for x in "qk")
    assert verify(dump, W).status == 0
    for n in (0, 1):  # layers that have modules of their own
        found["model.layers.0.self_attn.rotary_emb"][n] = right[("q_post_rope", "k_post_rope")[n], 0].reshape(5, -1)
    dump = open_dump(save(tmp_path / "d/Pass00000.pt", found), C.sizes, layers=2)
    assert ("q_post_rope", 0) in dump and not any("left out" in n for n in dump.notes)


def test_our_names_beside_an_engines(tmp_path: Path) -> None:
    """What a module does not show may be dumped by hand, under the stages' own names."""
    dump = dump_of(W, "HF float32", IDS, steps=STEPS)
    more = {f"layer-{i}/{n}": dump[n, i][None] for i in (0, 1) for n in ("q_post_rope", "k_post_rope")}
    found = open_dump(save(tmp_path / "hooks.pt", prompt(transformers, dump) | more), C.sizes, layers=2)
    assert found.ignored == () and ("k_post_rope", 1) in found and ("attn_norm", 1) in found
    assert np.array_equal(found["q_post_rope", 1], dump["q_post_rope", 1])
