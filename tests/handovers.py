"""Ways in which engines leave their tensors, each as the engine writes it, under its own names (foreign_dumps.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from qwenref.engine.config import Config
from qwenref.engine.weights import Weights
from qwenref.trace.dump import Dump
from qwenref.trace.sources import Asked, open_dump
from qwenref.trace.sources.names import read_map
from qwenref.trace.stages import of_pieces
from qwenref.trace.store import DumpWriter

from . import foreign_dumps as layouts
from .foreign_dumps import Arrays
from .onnx_files import write_nodes
from .torch_files import save

Write = Callable[[Path, Dump, Config], Path]


def passes(lay_out: Callable[..., Arrays], dump: Dump, c: Config) -> list[Arrays]:
    """One dictionary for the prompt and for each step."""
    ids = list(dump.run["tokens"]) + list(dump.run.get("generated", []))
    found = []
    for phase in sorted({e.phase for e in dump.entries}):
        at = next(e.positions for e in dump.entries if e.phase == phase and e.stage.letters[0] == "T")
        assert at is not None
        positions = range(at[0], at[-1] + 1)
        found.append(lay_out(dump, c, phase, [ids[p] for p in positions], positions))
    return found


# -- files ------------------------------------------------------------------------------------------------------------


def one_file(folder: Path, dump: Dump, c: Config) -> Path:
    """What the writers in C, Rust and Python write."""
    everything: Arrays = {}
    for p in passes(layouts.own, dump, c):
        everything |= p
    save_file(everything, folder / "dump.safetensors", {"format": "qwenref-dump-1", "producer": "toy"})
    return folder / "dump.safetensors"


def one_pt(folder: Path, dump: Dump, c: Config) -> Path:
    """The stages' own names, saved by torch."""
    return save(folder / "dump.pt", {k: x for p in passes(layouts.own, dump, c) for k, x in p.items()})


def dump_folder(folder: Path, dump: Dump, c: Config) -> Path:
    """What `engine dump-llamacpp` writes, whatever device the layers are on; what is fused is absent."""
    with DumpWriter(folder / "dump", {"tokens": list(dump.run["tokens"])}, c.sizes) as w:
        for e in dump.entries:
            assert e.positions is not None
            if e.stage.name != "ffn_silu":
                w.put(e.stage.name, e.layer, e.values(), e.positions, phase=e.phase)
    return folder / "dump"


def raw_values(folder: Path, dump: Dump, c: Config) -> Path:
    """One file of values, and a manifest that says where each array lies in it."""
    entries, at = [], 0
    with (folder / "all.bin").open("wb") as file:
        for p in passes(layouts.own, dump, c):
            for name, x in p.items():
                dtype = {"f": "float32", "i": f"int{8 * x.itemsize}"}[x.dtype.kind]
                entries.append({"name": name, "shape": list(x.shape), "dtype": dtype, "file": "all.bin", "offset": at})
                at += file.write(np.ascontiguousarray(x).tobytes())
    (folder / "manifest.json").write_text(json.dumps(entries))
    return folder


def hooks_of_transformers(folder: Path, dump: Dump, c: Config) -> Path:
    return each_pass(folder, passes(layouts.transformers, dump, c))


def each_pass(folder: Path, found: list[Arrays]) -> Path:
    """torch.save, of one pass or of each."""
    if len(found) == 1:
        return save(folder / "hooks.pt", found[0])
    for i, p in enumerate(found):
        save(folder / f"d/pass-{i}.pt", p)
    return folder / "d"


def padded_batch(folder: Path, dump: Dump, c: Config) -> Path:
    """The prompt as row 1 of three, padded on the left to two more; the other rows hold its values again, doubled."""
    found: list[Arrays] = []
    for p in passes(layouts.transformers, dump, c):
        T = p["input_ids"].shape[1]
        pad = 0 if found else 2
        made: Arrays = {}
        for name, x in p.items():
            side = [(0, 0), (pad if x.shape[1] == T else 0, 0), *[(0, 0)] * (x.ndim - 2)]  # logits are of the last one
            made[name] = np.concatenate([np.pad(row, side) for row in (x * 2 if x.dtype.kind == "f" else x, x, x)])
        seen = found[-1]["attention_mask"].shape[1] if found else 0
        made["attention_mask"] = np.ones((3, seen + T + pad), np.int64)
        made["attention_mask"][:, :2] = 0
        found.append(made)
    return each_pass(folder, found)


def sglang(folder: Path, dump: Dump, c: Config) -> Path:
    late: Arrays = {}
    for i, p in enumerate(passes(layouts.sglang, dump, c)):
        save(folder / f"d/TP0_PP0_Rank0_pid77/Pass{i:05d}.pt", {**late, **p})
        late = {"logits_processor": dump["lm_head", None, i][None]}
    save(folder / f"d/TP0_PP0_Rank0_pid77/Pass{i + 1:05d}.pt", late)  # of the next pass nothing else is needed
    return folder / "d"


def sglang_ranks(folder: Path, dump: Dump, c: Config) -> Path:
    for i, p in enumerate(passes(layouts.sglang, dump, c)):
        for rank in range(2):
            save(folder / f"d/TP{rank}_PP0_Rank{rank}_pid77/Pass{i:05d}.pt", layouts.sglang_rank(p, c, rank, 2))
    return folder / "d"


def hooks_of_vllm(folder: Path, dump: Dump, c: Config) -> Path:
    """What `qwenref.hooks` writes: the first two of what a module puts out, each call of rotary_emb by its layer."""
    made: Arrays = {}
    for i, p in enumerate(passes(layouts.sglang, dump, c)):
        for n in range(c.num_hidden_layers):
            both = [dump[f"{x}_post_rope", n, i] for x in "qk"]
            p[f"model.layers.{n}.self_attn.rotary_emb"] = [x.reshape(len(x), -1) for x in both]
        p["logits_processor"] = dump["lm_head", None, i][None]
        for name, value in p.items():
            words = name.rsplit("forward_batch_info.", 1)[-1]
            for side, x in enumerate(value) if isinstance(value, list) else ((None, value),):
                key = words if side is None else f"{words}/{side}"
                if words != "seq_lens":
                    made[f"phase-{i}/{key}" if i else key] = np.ascontiguousarray(x)
    save_file(made, folder / "hooks.safetensors", {"format": "qwenref-dump-1"})
    return folder / "hooks.safetensors"


def plain_hooks_on_vllm(folder: Path, dump: Dump, c: Config) -> Path:
    """torch.save of what hooks saw: linear layers put out (value, bias), which is None; all layers' rotary_emb is one
    module, whose first name holds its last call."""
    found = []
    for i, p in enumerate(passes(layouts.sglang, dump, c)):
        shared = [p.pop(f"model.layers.{n}.self_attn.rotary_emb") for n in range(c.num_hidden_layers)]
        told = {k.rsplit(".", 1)[1]: p.pop(k) for k in list(p) if "forward_batch_info" in k}
        hooks = {k: (v, None) if k.endswith("_proj") else tuple(v) if isinstance(v, list) else v for k, v in p.items()}
        hooks["model.layers.0.self_attn.rotary_emb"] = tuple(shared[-1])
        hooks["logits_processor"] = dump["lm_head", None, i][None]
        found.append({**hooks, "input_ids": told["input_ids"], "positions": told["positions"]})
    return each_pass(folder, found)


def nano_vllm(folder: Path, dump: Dump, c: Config) -> Path:
    return each_pass(folder, passes(layouts.nano_vllm, dump, c))


def tensorrt_llm(folder: Path, dump: Dump, c: Config) -> Path:
    return each_pass(folder, passes(layouts.tensorrt_llm, dump, c))


def mlx(folder: Path, dump: Dump, c: Config) -> Path:
    """What `qwenref_dump.py` in mlx-lm's modules writes."""
    found = {
        f"phase-{i}/{k}" if i else k: x for i, p in enumerate(passes(layouts.mlx_lm, dump, c)) for k, x in p.items()
    }
    save_file({k: np.ascontiguousarray(x) for k, x in found.items()}, folder / "mlx.safetensors")
    return folder / "mlx.safetensors"


def candle(folder: Path, dump: Dump, c: Config) -> Path:
    """candle's own `save` of a map of tensors, by the names of its VarBuilder."""
    found = passes(layouts.transformers, dump, c)[0]
    found["input_ids"] = found["input_ids"].astype(np.uint32)
    save_file({k: np.ascontiguousarray(v) for k, v in found.items()}, folder / "candle.safetensors")
    return folder / "candle.safetensors"


def candle_quantized(folder: Path, dump: Dump, c: Config) -> Path:
    found = passes(layouts.candle_quantized, dump, c)[0]
    save_file({k: np.ascontiguousarray(v) for k, v in found.items()}, folder / "candle.safetensors")
    return folder / "candle.safetensors"


def graph(folder: Path, dump: Dump, c: Config) -> Path:
    """llama.cpp's nodes by the names of its callback, by a tool of one's own."""
    np.savez(folder / "graph.npz", **passes(layouts.llama_cpp, dump, c)[0])
    return folder / "graph.npz"


def meta(folder: Path, dump: Dump, c: Config) -> Path:
    (folder / "arrays").mkdir()
    for name, x in passes(layouts.meta, dump, c)[0].items():
        np.save(folder / f"arrays/{name}.npy", x)
    return folder / "arrays"


def onnx(folder: Path, dump: Dump, c: Config) -> Path:
    """Intermediate values as outputs of the graph, which a script saves."""
    np.savez(folder / "ort.npz", **passes(layouts.onnx, dump, c)[0])
    return folder / "ort.npz"


def onnx_nodes(folder: Path, dump: Dump, c: Config) -> Path:
    return write_nodes(folder / "nodes", passes(layouts.onnx, dump, c)[0])


AT = "decoder.layers.{layer}"
MEGATRON = {  # megatron/core/models/gpt: fused QKV lies by groups there, which no map says; it is left out
    "input_ids": "tokens",
    "embedding.word_embeddings": "embedding",
    f"{AT}.input_layernorm": "attn_norm",
    f"{AT}.self_attention.core_attention": "attention",
    f"{AT}.self_attention.linear_proj": "attn_out",
    f"{AT}.pre_mlp_layernorm": "ffn_norm",
    f"{AT}.mlp.linear_fc1": ["ffn_gate", "ffn_up"],
    f"{AT}.mlp.linear_fc2": "ffn_out",
    AT: "post_ffn_residual",
    "decoder.final_layernorm": "final_norm",
    "output_layer": "lm_head",
}


def megatron(folder: Path, dump: Dump, c: Config) -> Path:
    """Names that are not known here, and the map that its user writes: positions before the batch."""
    found: Arrays = {"input_ids": np.array(dump.run["tokens"][: len(dump["final_norm"])])}
    for name, stages in MEGATRON.items():
        for i in range(c.num_hidden_layers if "{layer}" in name else 1):
            layer = i if "{layer}" in name else 0 if stages == "embedding" else None
            parts = [dump[s, layer] for s in ([stages] if isinstance(stages, str) else stages) if s != "tokens"]
            if parts:
                rows = [p.reshape(1 if p.ndim == 1 else len(p), 1, -1) for p in parts]
                found[name.format(layer=i)] = np.concatenate(rows, 2)
    (folder / "map.json").write_text(json.dumps(MEGATRON))
    return save(folder / "megatron.pt", found)


@dataclass(frozen=True)
class Way:
    """leaves: what the engine leaves, for people. asked: what a user says with it."""

    leaves: str
    write: Write
    asked: Mapping[str, Any] = field(default_factory=dict)


WAYS: Mapping[str, Way] = MappingProxyType({
    "own": Way("one file of `qwenref_dump.h`, `.rs` or `.py`", one_file),
    "own, torch": Way("a `.pt` of its own tensors, under the stages' names", one_pt),
    "llama.cpp": Way("a folder of `engine dump-llamacpp -ngl N`", dump_folder),
    "llama.cpp, callback": Way("an `.npz` of the graph's nodes by their names", graph),
    "transformers": Way("a `.pt` of hooks on Transformers' modules", hooks_of_transformers),
    "transformers, batch": Way("a `.pt` of each pass of a padded batch; `--row 1`", padded_batch, {"row": 1}),
    "vllm": Way("`qwenref.hooks` on vLLM's modules", hooks_of_vllm),
    "vllm, torch": Way("a `.pt` of plain hooks on vLLM's modules", plain_hooks_on_vllm),
    "sglang": Way("`--debug-tensor-dump-output-folder`", sglang),
    "sglang, ranks": Way("`--debug-tensor-dump-output-folder` of two ranks", sglang_ranks),
    "nano-vllm": Way("a `.pt` of hooks on nano-vllm's modules", nano_vllm),
    "tensorrt-llm": Way("a `.pt` of marked outputs", tensorrt_llm),
    "mlx-lm": Way("`qwenref_dump.py` in mlx-lm's modules", mlx),
    "candle": Way("a `.safetensors` by the names of its VarBuilder", candle),
    "candle, quantized": Way("a `.safetensors` by the names of the GGUF's tensors", candle_quantized),
    "meta": Way("a folder of `.npy`, by the names of llama2.c's ports", meta),
    "onnx": Way("an `.npz` of the graph's inner values", onnx),
    "onnx, nodes": Way("ONNX Runtime's node dumps", onnx_nodes),
    "raw": Way("raw values and a manifest", raw_values),
    "map": Way("a `.pt` by Megatron's names, and a `--map`", megatron, {"map": "map.json"}),
})  # fmt: skip


def arrived(way: Way, folder: Path, dump: Dump, w: Weights) -> Dump:
    """The dump, written and read again."""
    path = way.write(folder, dump, w.config)
    said = {k: v for k, v in way.asked.items() if k != "map"}
    rules = tuple(read_map(folder / way.asked["map"])) if "map" in way.asked else None
    if way.write is dump_folder:
        return open_dump(path)
    c = w.config
    asked = Asked(rules=rules, **said)
    return open_dump(path, c.sizes, layers=c.num_hidden_layers, stages=of_pieces(w.pieces), asked=asked)
