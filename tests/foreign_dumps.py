"""A dump laid out as other engines lay theirs out: names, tuples, fused products, ranks; from their sources.

ONNX: torch.onnx.export(dynamo=False) of Transformers 5's Qwen2, whose node names were read from the file (torch 2.13).
TensorRT-LLM: tensorrt_llm/models/qwen/model.py, layers/mlp.py (GatedMLP), layers/attention.py.
SGLang: python/sglang/srt/debug_utils/tensor_dump_forward_hook.py, models/qwen2.py. llama.cpp: src/models/qwen2.cpp.
mlx-lm: mlx_lm/models/qwen2.py. nano-vllm: nanovllm/models/qwen3.py, with attention_bias as Qwen2 has it.
candle: candle-transformers/src/models/quantized_qwen2.rs, whose modules have the names of a GGUF file's tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qwenref.engine.config import Config
from qwenref.trace.dump import Dump
from qwenref.trace.stages import NAMES

Arrays = dict[str, Any]
Get = Callable[..., np.ndarray]


def getter(dump: Dump, phase: int, products: bool = False) -> Get:
    """products: what the names say; else of a product with a bias the sum, which most engines show under its name."""

    def get(name: str, layer: int | None = None) -> np.ndarray:
        with_bias = f"{name}_bias"
        held = not products and with_bias in NAMES and dump.get(with_bias, layer, phase) is not None
        return np.asarray(dump[with_bias if held else name, layer, phase])

    return get


def own(dump: Dump, c: Config, phase: int, ids: list[int], positions: range) -> Arrays:
    """One safetensors file, docs/dumps.md: heads flattened."""
    head = f"phase-{phase}/" if phase else ""
    found: Arrays = {f"{head}tokens": np.array(ids, np.int32), f"{head}positions": np.array(positions)}
    for e in dump.entries:
        if e.phase == phase:
            values = np.asarray(e.values())
            if e.stage.name in ("q_post_rope", "k_post_rope", "attention"):
                values = values.reshape(len(ids), -1)
            values = values[None] if e.stage.name == "lm_head" else values
            name = e.stage.name if e.stage.scope != "layer" else f"layer-{e.layer}/{e.stage.name}"
            found[head + name] = np.ascontiguousarray(values)
    return found


def transformers(dump: Dump, c: Config, phase: int, ids: list[int], positions: range) -> Arrays:
    """Forward hooks on Transformers' modules: a batch axis, outputs by the module's name, inputs behind it."""
    get, found = getter(dump, phase), {"input_ids": np.array([ids])}
    ends = np.cumsum([c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim])
    found["model.embed_tokens"] = get("embedding", 0)[None]
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        found[f"{at}.input_layernorm"] = get("attn_norm", i)[None]
        for x, part in zip("qkv", np.split(get("qkv_bias", i), ends, 1), strict=True):
            found[f"{at}.self_attn.{x}_proj"] = part[None]
        found[f"{at}.self_attn.o_proj.input"] = get("attention", i).reshape(1, len(ids), -1)
        found[f"{at}.self_attn.o_proj"] = get("attn_out", i)[None]
        found[f"{at}.post_attention_layernorm.input"] = get("post_attn_residual", i)[None]
        found[f"{at}.post_attention_layernorm"] = get("ffn_norm", i)[None]
        found[f"{at}.mlp.gate_proj"] = get("ffn_gate", i)[None]
        found[f"{at}.mlp.up_proj"] = get("ffn_up", i)[None]
        found[f"{at}.mlp.act_fn"] = get("ffn_silu", i)[None]
        found[f"{at}.mlp.down_proj.input"] = get("ffn_swigl", i)[None]
        found[f"{at}.mlp.down_proj"] = get("ffn_out", i)[None]
        found[at] = get("post_ffn_residual", i)[None]
    found["model.norm"] = get("final_norm")[None]
    found["lm_head"] = get("lm_head")[None, None]
    return found


def mlx_lm(dump: Dump, c: Config, phase: int, ids: list[int], positions: range) -> Arrays:
    """Every module's first input and its output; `rope` is called twice in a layer, with heads before positions."""
    get, found = getter(dump, phase), transformers(dump, c, phase, ids, positions)
    for i in range(c.num_hidden_layers):
        for n, x in enumerate("qk"):
            at = f"model.layers.{i}.self_attn.rope"
            found[f"{at}/{n}"] = np.ascontiguousarray(get(f"{x}_post_rope", i).transpose(1, 0, 2))[None]
        del found[f"model.layers.{i}.mlp.act_fn"]  # a function there
    return {**found, "model": get("final_norm")[None]}


def candle_quantized(dump: Dump, c: Config, phase: int, ids: list[int], positions: range) -> Arrays:
    """QMatMul and RmsNorm by their tensors' names; the bias is added outside of them."""
    get, found = (
        getter(dump, phase, True),
        {"tokens": np.array([ids]), "token_embd": getter(dump, phase)("embedding", 0)},
    )
    ends = np.cumsum([c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim])
    for i in range(c.num_hidden_layers):
        at = f"blk.{i}"
        for x, part in zip("qkv", np.split(get("qkv_matmul", i), ends, 1), strict=True):
            found[f"{at}.attn_{x}"] = part
        found |= {
            f"{at}.attn_norm": get("attn_norm", i),
            f"{at}.attn_output.input": get("attention", i).reshape(len(ids), -1),
            f"{at}.attn_output": get("attn_out", i),
            f"{at}.ffn_norm.input": get("post_attn_residual", i),
            f"{at}.ffn_norm": get("ffn_norm", i),
            f"{at}.ffn_gate": get("ffn_gate", i),
            f"{at}.ffn_up": get("ffn_up", i),
            f"{at}.ffn_down.input": get("ffn_swigl", i),
            f"{at}.ffn_down": get("ffn_out", i),
            at: get("post_ffn_residual", i),
        }
    found |= {"output_norm": get("final_norm"), "output": get("lm_head")[None]}
    return {k: v if k == "tokens" else v[None] for k, v in found.items()}


def nano_vllm(dump: Dump, c: Config, phase: int, ids: list[int], positions: range) -> Arrays:
    """Plain hooks on its modules: SGLang's names, heads apart, the logits in the pass that they are of."""
    get, found = getter(dump, phase), sglang(dump, c, phase, ids, positions)
    told = {k: found.pop(k) for k in list(found) if "forward_batch_info" in k}
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        del found[f"{at}.self_attn.rotary_emb"]
        found[f"{at}.self_attn.attn"] = get("attention", i)
        found[f"{at}.mlp"] = found[f"{at}.mlp.down_proj"]
        found[at] = (get("ffn_out", i), get("post_attn_residual", i))
    found["model"] = get("final_norm")
    # One module for all layers: named_modules() tells its first name, a dict keeps its last call.
    found["model.layers.0.self_attn.rotary_emb"] = tuple(get(f"{x}_post_rope", c.num_hidden_layers - 1) for x in "qk")
    words = {"input_ids": told["model.forward_batch_info.input_ids"], "positions": np.array(positions)}
    return {**found, **words, "lm_head": get("lm_head")[None]}


def sglang(dump: Dump, c: Config, phase: int, ids: list[int], positions: range) -> Arrays:
    """Leaf modules of SGLang, without the logits, which lie in the next file."""
    get, L = getter(dump, phase), c.num_hidden_layers
    found: Arrays = {
        "model.embed_tokens": get("embedding", 0),
        "model.forward_batch_info.input_ids": np.array(ids),
        "model.forward_batch_info.seq_lens": np.array([positions[-1] + 1]),
        "model.forward_batch_info.positions": np.array(positions),
    }
    for i in range(L):
        at = f"model.layers.{i}"
        norm = get("attn_norm", i)
        found[f"{at}.input_layernorm"] = [norm, get("post_ffn_residual", i - 1)] if i else norm
        found[f"{at}.self_attn.qkv_proj"] = get("qkv_bias", i)
        q, k = (get(f"{x}_post_rope", L - 1).reshape(len(ids), -1) for x in "qk")  # one module, whose last call stays
        found[f"{at}.self_attn.rotary_emb"] = [q, k]
        found[f"{at}.self_attn.attn"] = get("attention", i).reshape(len(ids), -1)
        found[f"{at}.self_attn.o_proj"] = get("attn_out", i)
        found[f"{at}.post_attention_layernorm"] = [get("ffn_norm", i), get("post_attn_residual", i)]
        found[f"{at}.mlp.gate_up_proj"] = np.concatenate([get("ffn_gate", i), get("ffn_up", i)], 1)
        found[f"{at}.mlp.act_fn"] = get("ffn_swigl", i)
        found[f"{at}.mlp.down_proj"] = get("ffn_out", i)
    found["model.norm"] = [get("final_norm"), get("post_ffn_residual", L - 1)]
    return found


def sglang_rank(whole: Arrays, c: Config, rank: int, ranks: int) -> Arrays:
    """What one rank of several holds: columns of the column-parallel products, a summand of the row-parallel ones."""
    N, K, H, F = (
        x // ranks for x in (c.num_attention_heads, c.num_key_value_heads, ranks * c.head_dim, c.intermediate_size)
    )

    def heads(x: np.ndarray, n: int) -> np.ndarray:
        return x[:, rank * n * H : (rank + 1) * n * H]

    found = dict(whole)
    for name, x in whole.items():
        if name.endswith("qkv_proj"):
            q, k, v = np.split(x, [ranks * N * H, ranks * (N + K) * H], 1)
            found[name] = np.concatenate([heads(q, N), heads(k, K), heads(v, K)], 1)
        elif name.endswith("rotary_emb"):
            found[name] = [heads(x[0], N), heads(x[1], K)]
        elif name.endswith("self_attn.attn"):
            found[name] = heads(x, N)
        elif name.endswith("gate_up_proj"):
            gate, up = np.split(x, 2, 1)
            mine = slice(rank * F, (rank + 1) * F)
            found[name] = np.concatenate([gate[:, mine], up[:, mine]], 1)
        elif name.endswith("act_fn"):
            found[name] = x[:, rank * F : (rank + 1) * F]
        elif name.endswith(("o_proj", "down_proj")):  # two summands that float32 adds exactly
            high = (x.view(np.uint32) & 0xFFFFF000).view(np.float32)
            found[name] = high if rank == 0 else x - high
    return found


def llama_cpp(dump: Dump, c: Config, phase: int, ids: list[int], positions: range) -> Arrays:
    """The graph's nodes by the names that callbacks are told; products of attention before their scale."""
    get, of_product = getter(dump, phase), getter(dump, phase, True)
    found: Arrays = {"inp_tokens": np.array(ids, np.int32), "inp_embd": get("embedding", 0)}
    for i in range(c.num_hidden_layers):
        found |= {
            f"attn_norm-{i}": get("attn_norm", i),
            f"Qcur-{i}": get("q_post_rope", i),
            f"Kcur-{i}": get("k_post_rope", i),
            f"kq-{i}": get("attn_scores", i) * np.float32(4),  # sqrt(16), which is exact
            f"kq_soft_max-{i}": get("attn_softmax", i),
            f"kqv_out-{i}": get("attention", i).reshape(len(ids), -1),
            f"ffn_inp-{i}": get("post_attn_residual", i),
            f"ffn_norm-{i}": get("ffn_norm", i),
            f"ffn_gate-{i}": of_product("ffn_gate", i),
            f"ffn_up-{i}": of_product("ffn_up", i),
            f"ffn_swiglu-{i}": get("ffn_swigl", i),
            f"ffn_out-{i}": get("ffn_out", i),
            f"l_out-{i}": get("post_ffn_residual", i),
        }
        if dump.get("attn_out_bias", i, phase):
            found[f"attn_out-{i}"] = get("attn_out", i)
        if dump.get("ffn_gate_bias", i, phase):
            found |= {f"ffn_{x}_b-{i}": get(f"ffn_{x}", i) for x in ("gate", "up")}
    return found | {"result_norm": get("final_norm"), "result_output": get("lm_head")[None]}


def meta(dump: Dump, c: Config, phase: int, ids: list[int], positions: range) -> Arrays:
    """Meta's modules, as ports of llama2.c name them."""
    get, found = getter(dump, phase), {"tokens": np.array(ids), "tok_embeddings": getter(dump, phase)("embedding", 0)}
    ends = np.cumsum([c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim])
    for i in range(c.num_hidden_layers):
        at = f"layers.{i}"
        found[f"{at}.attention_norm"] = get("attn_norm", i)
        for x, part in zip("qkv", np.split(get("qkv_bias", i), ends, 1), strict=True):
            found[f"{at}.attention.w{x}"] = part
        found[f"{at}.attention.wo"] = get("attn_out", i)
        found[f"{at}.ffn_norm.input"] = get("post_attn_residual", i)
        found[f"{at}.ffn_norm"] = get("ffn_norm", i)
        found[f"{at}.feed_forward.w1"] = get("ffn_gate", i)
        found[f"{at}.feed_forward.w3"] = get("ffn_up", i)
        found[f"{at}.feed_forward.w2"] = get("ffn_out", i)
        found[at] = get("post_ffn_residual", i)
    return found | {"norm": get("final_norm"), "output": get("lm_head")[None]}


ONNX_BIASED = {
    "self_attn/o_proj": "attn_out", "mlp/gate_proj": "ffn_gate", "mlp/up_proj": "ffn_up", "mlp/down_proj": "ffn_out",
}  # fmt: skip


def onnx(dump: Dump, c: Config, phase: int, ids: list[int], positions: range) -> Arrays:
    """An ONNX export's values by the names of its nodes: a batch axis, heads before positions."""
    get, found = getter(dump, phase, True), {"input_ids": np.array([ids]), "position_ids": np.array([positions])}
    ends = np.cumsum([c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim])

    def node(path: str, x: np.ndarray) -> None:
        found[f"/model/{path}_output_0"] = x[None]

    node("embed_tokens/Gather", get("embedding", 0))
    for i in range(c.num_hidden_layers):
        at = f"layers.{i}"
        node(f"{at}/input_layernorm/Mul_1", get("attn_norm", i))
        for name, stage in (("MatMul", "qkv_matmul"), ("Add", "qkv_bias")):
            for x, part in zip("qkv", np.split(get(stage, i), ends, 1), strict=True):
                node(f"{at}/self_attn/{x}_proj/{name}", part)
        node(f"{at}/self_attn/Add", get("q_post_rope", i).transpose(1, 0, 2))
        node(f"{at}/self_attn/Add_1", get("k_post_rope", i).transpose(1, 0, 2))
        node(f"{at}/self_attn/Softmax", get("attn_softmax", i))
        node(f"{at}/self_attn/MatMul_1", get("attention", i).transpose(1, 0, 2))
        node(f"{at}/self_attn/o_proj/MatMul", get("attn_out", i))
        node(f"{at}/Add", get("post_attn_residual", i))
        node(f"{at}/post_attention_layernorm/Mul_1", get("ffn_norm", i))
        node(f"{at}/mlp/gate_proj/MatMul", get("ffn_gate", i))
        node(f"{at}/mlp/up_proj/MatMul", get("ffn_up", i))
        node(f"{at}/mlp/act_fn/Mul", get("ffn_silu", i))
        node(f"{at}/mlp/Mul", get("ffn_swigl", i))
        node(f"{at}/mlp/down_proj/MatMul", get("ffn_out", i))
        node(f"{at}/Add_1", get("post_ffn_residual", i))
        for module, stage in ONNX_BIASED.items():
            if dump.get(f"{stage}_bias", i, phase):
                node(f"{at}/{module}/Add", get(f"{stage}_bias", i))
    node("norm/Mul_1", get("final_norm"))
    return found | {"logits": get("lm_head")[None, None]}


def tensorrt_llm(dump: Dump, c: Config, phase: int, ids: list[int], positions: range) -> Arrays:
    """Marked outputs of TensorRT-LLM's own model definition, by the modules' names; rows are packed."""
    get = getter(dump, phase)
    found: Arrays = {"input_ids": np.array(ids, np.int32), "transformer.vocab_embedding": get("embedding", 0)}
    for i in range(c.num_hidden_layers):
        at = f"transformer.layers.{i}"
        found |= {
            f"{at}.input_layernorm": get("attn_norm", i),
            f"{at}.attention.qkv": get("qkv_bias", i),
            f"{at}.attention.dense.input": get("attention", i).reshape(len(ids), -1),
            f"{at}.attention.dense": get("attn_out", i),
            f"{at}.post_layernorm.input": get("post_attn_residual", i),
            f"{at}.post_layernorm": get("ffn_norm", i),
            f"{at}.mlp.fc": get("ffn_gate", i),
            f"{at}.mlp.gate": get("ffn_up", i),
            f"{at}.mlp.proj.input": get("ffn_swigl", i),
            f"{at}.mlp.proj": get("ffn_out", i),
            at: get("post_ffn_residual", i),
        }
    return found | {"transformer.ln_f": get("final_norm"), "lm_head": get("lm_head")[None]}
