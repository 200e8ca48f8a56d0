"""Dumps as other engines lay them out: each is judged as the plain dump of the same pass, and a mistake is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwenref.trace.dump import Dump
from qwenref.trace.sources import open_dump
from qwenref.trace.verify.finding import UNEXPLAINED
from qwenref.trace.verify.verify import verify

from ...engines import dump_of
from ...foreign_dumps import (
    Arrays,
    candle_quantized,
    llama_cpp,
    meta,
    mlx_lm,
    nano_vllm,
    onnx,
    own,
    sglang,
    sglang_rank,
    tensorrt_llm,
    transformers,
)
from ...onnx_files import write_nodes
from ...tiny import tiny_weights
from ...torch_files import save

IDS, STEPS = [3, 200, 17, 9, 4], [77, 12]
W = tiny_weights()
C = W.config


def passes(lay_out: Callable[..., Arrays], dump: Dump, steps: list[int] = STEPS) -> list[Arrays]:
    """One dictionary for the prompt and for each step."""
    fed = [(IDS, range(len(IDS))), *(([t], range(len(IDS) + i, len(IDS) + i + 1)) for i, t in enumerate(steps))]
    return [lay_out(dump, C, phase, ids, positions) for phase, (ids, positions) in enumerate(fed)]


def write_own(folder: Path, dump: Dump) -> Path:
    path = folder / "dump.safetensors"
    everything: Arrays = {}
    for p in passes(own, dump):
        everything |= p
    save_file(everything, path, {"format": "qwenref-dump-1", "producer": "toy"})
    return path


def write_transformers(folder: Path, dump: Dump) -> Path:
    return save(folder / "hooks.pt", passes(transformers, dump)[0])


def write_mlx(folder: Path, dump: Dump) -> Path:
    np.savez(folder / "mlx.npz", **passes(mlx_lm, dump)[0])
    return folder / "mlx.npz"


def write_candle(folder: Path, dump: Dump) -> Path:
    """candle's own `save` of a map of tensors."""
    save_file(
        {k: np.ascontiguousarray(v) for k, v in passes(candle_quantized, dump)[0].items()},
        folder / "candle.safetensors",
    )
    return folder / "candle.safetensors"


def write_nano_vllm(folder: Path, dump: Dump) -> Path:
    return save(folder / "hooks.pt", passes(nano_vllm, dump)[0])


def write_sglang(folder: Path, dump: Dump) -> Path:
    late: Arrays = {}
    for i, p in enumerate(passes(sglang, dump)):
        save(folder / f"d/TP0_PP0_Rank0_pid77/Pass{i:05d}.pt", {**late, **p})
        late = {"logits_processor": dump["lm_head", None, i][None]}
    return folder / "d"


def write_sglang_ranks(folder: Path, dump: Dump) -> Path:
    for i, p in enumerate(passes(sglang, dump)):
        for rank in range(2):
            save(folder / f"d/TP{rank}_PP0_Rank{rank}_pid77/Pass{i:05d}.pt", sglang_rank(p, C, rank, 2))
    return folder / "d"


def write_vllm(folder: Path, dump: Dump) -> Path:
    """Plain hooks: linear layers put out (value, bias), which is None."""
    made = passes(sglang, dump)[0]
    shared = [made.pop(f"model.layers.{i}.self_attn.rotary_emb") for i in range(C.num_hidden_layers)]
    made["model.layers.0.self_attn.rotary_emb"] = shared[-1]
    told = {k.rsplit(".", 1)[1]: made.pop(k) for k in list(made) if "forward_batch_info" in k}
    hooks = {
        k: (v, None) if k.endswith(("_proj",)) else tuple(v) if isinstance(v, list) else v for k, v in made.items()
    }
    return save(folder / "hooks.pt", {**hooks, "input_ids": told["input_ids"], "positions": told["positions"]})


def write_llama_cpp(folder: Path, dump: Dump) -> Path:
    np.savez(folder / "graph.npz", **passes(llama_cpp, dump)[0])
    return folder / "graph.npz"


def write_meta(folder: Path, dump: Dump) -> Path:
    (folder / "arrays").mkdir()
    for name, x in passes(meta, dump)[0].items():
        np.save(folder / f"arrays/{name}.npy", x)
    return folder / "arrays"


def write_tensorrt_llm(folder: Path, dump: Dump) -> Path:
    return save(folder / "trt.pt", passes(tensorrt_llm, dump)[0])


def write_onnx(folder: Path, dump: Dump) -> Path:
    """Intermediate values as outputs of the graph, which a script saves."""
    np.savez(folder / "ort.npz", **passes(onnx, dump)[0])
    return folder / "ort.npz"


def write_onnx_nodes(folder: Path, dump: Dump) -> Path:
    return write_nodes(folder / "nodes", passes(onnx, dump)[0])


def write_raw(folder: Path, dump: Dump) -> Path:
    """One file of values, and a manifest that says where each array lies in it."""
    entries, at = [], 0
    with (folder / "all.bin").open("wb") as file:
        for name, x in passes(own, dump)[0].items():
            dtype = {"f": "float32", "i": f"int{8 * x.itemsize}"}[x.dtype.kind]
            entries.append({"name": name, "shape": list(x.shape), "dtype": dtype, "file": "all.bin", "offset": at})
            at += file.write(np.ascontiguousarray(x).tobytes())
    (folder / "manifest.json").write_text(json.dumps(entries))
    return folder


WRITERS: dict[str, tuple[Callable[[Path, Dump], Path], int, int]] = {  # how, phases, stages of the prompt
    "own": (write_own, 3, 17 * 2 + 3),
    "transformers": (write_transformers, 1, 12 * 2 + 3),
    "mlx-lm": (write_mlx, 1, 13 * 2 + 3),
    "candle, quantized": (write_candle, 1, 11 * 2 + 3),
    "nano-vllm": (write_nano_vllm, 1, 11 * 2 + 3),
    "sglang": (write_sglang, 3, 12 * 2 + 3),
    "sglang-ranks": (write_sglang_ranks, 3, 12 * 2 + 2),
    "vllm": (write_vllm, 1, 11 * 2 + 2),
    "llama.cpp": (write_llama_cpp, 1, 13 * 2 + 3),
    "meta": (write_meta, 1, 9 * 2 + 3),
    "tensorrt-llm": (write_tensorrt_llm, 1, 11 * 2 + 3),
    "onnx": (write_onnx, 1, 16 * 2 + 3),
    "onnx-nodes": (write_onnx_nodes, 1, 16 * 2 + 3),
    "raw": (write_raw, 1, 17 * 2 + 3),
}


@pytest.mark.parametrize("engine", ["HF float32", "ggml, 16-bit KV"])
@pytest.mark.parametrize("how", WRITERS)
def test_each_layout_is_the_plain_dump(how: str, engine: str, tmp_path: Path) -> None:
    """Every value of every stage that the layout holds, bit for bit, and so every verdict."""
    write, phases, stages = WRITERS[how]
    plain = dump_of(W, engine, IDS, steps=STEPS)
    dump = open_dump(write(tmp_path, plain), C.sizes, layers=C.num_hidden_layers)
    assert {e.phase for e in dump.entries} == set(range(phases))
    assert sum(e.phase == 0 for e in dump.entries) == stages
    for e in dump.entries:
        right = plain.get(e.stage.name, e.layer, e.phase)
        assert right is not None and e.positions == right.positions
        np.testing.assert_array_equal(e.values().view(np.uint32), np.asarray(right.values()).view(np.uint32), e.label)
    assert list(dump.run["tokens"]) == IDS and dump.ignored == ()
    assert verify(dump, W).status == 0


@pytest.mark.parametrize("how", WRITERS)
def test_a_mistake_is_found_where_it_is(how: str, tmp_path: Path) -> None:
    """Two rows of one layer's output projection are swapped for each other, and the engine goes on with it."""

    def swapped(run: Any, right: np.ndarray) -> np.ndarray:
        return right[:, [1, 0, *range(2, right.shape[1])]]

    plain = dump_of(W, "HF float32", IDS, steps=STEPS, mistakes={("attn_out", 1): swapped})
    dump = open_dump(WRITERS[how][0](tmp_path, plain), C.sizes, layers=C.num_hidden_layers)
    found = verify(dump, W)
    wrong = {(f.layer, f.stage) for f in found.findings if f.verdict == UNEXPLAINED}
    if how == "llama.cpp":  # whose graph does not name the product: the sum shows it
        assert wrong == {(1, "post_attn_residual")}
    else:
        assert wrong == {(1, "attn_out")}


def test_queries_before_they_are_rotated_have_the_same_name(tmp_path: Path) -> None:
    """llama.cpp's Qcur is three nodes: with its heads apart it is the rotated one, in one row it is not."""
    dump = dump_of(W, "HF float32", IDS)
    ends = np.cumsum([C.num_attention_heads * C.head_dim, C.num_key_value_heads * C.head_dim])
    found = passes(llama_cpp, dump, [])[0]
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
    found = passes(transformers, dump_of(W, "HF float32", IDS), [])[0]
    found["model.layers.1.input"] = found["model.layers.0"]
    dump = open_dump(save(tmp_path / "x.pt", found), C.sizes, layers=C.num_hidden_layers)
    assert dump.notes == ('not needed, 1 arrays: "model.layers.1.input"',)


def test_the_side_of_a_module_is_no_module(tmp_path: Path) -> None:
    """`output` is Meta's head, and what a dumper may put behind any module's path."""
    plain = passes(transformers, dump_of(W, "HF float32", IDS), [])[0]
    found = {k if k.endswith(("input", "_ids")) else f"{k}.output": x for k, x in plain.items()}
    more = {f"model.layers.{i}.self_attn.{x}.output": np.zeros(3, np.float32) for i in range(2) for x in "abcdefgh"}
    dump = open_dump(save(tmp_path / "x.pt", found | more), C.sizes, layers=C.num_hidden_layers)
    assert len(dump.entries) == 12 * 2 + 3 and dump.ignored == tuple(more)


def test_a_module_that_all_layers_call(tmp_path: Path) -> None:
    """SGLang's dumper keeps the last layer's rotation under every layer's name, and a tied head is the embedding."""
    right = dump_of(W, "HF float32", IDS)
    (tmp_path / "d").mkdir()
    found = passes(sglang, right, [])[0] | {"lm_head": right["embedding", 0]}
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
    found = open_dump(save(tmp_path / "hooks.pt", passes(transformers, dump)[0] | more), C.sizes, layers=2)
    assert found.ignored == () and ("k_post_rope", 1) in found and ("attn_norm", 1) in found
    assert np.array_equal(found["q_post_rope", 1], dump["q_post_rope", 1])
