"""Tensor names -> roles: the only place that knows a checkpoint's names. Hugging Face's and ggml's side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from ..quant.errors import BadInput
from ..quant.tensor import QTensor, format_of_tensor
from .config import Config
from .weights import Layer, Weights

# role: (Hugging Face, ggml); {} is the layer.
WHOLE = {
    "embed": ("model.embed_tokens.weight", "token_embd.weight"),
    "final_norm": ("model.norm.weight", "output_norm.weight"),
    "lm_head": ("lm_head.weight", "output.weight"),
}
PER_LAYER = {
    "attn_norm": ("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    "q": ("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
    "k": ("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
    "v": ("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
    "q_bias": ("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"),
    "k_bias": ("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"),
    "v_bias": ("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"),
    "attn_out": ("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
    "ffn_norm": ("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
    "ffn_gate": ("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
    "ffn_up": ("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    "ffn_down": ("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
}
# Old conversions carry the table of inverse frequencies, which follows from rope_theta.
HARMLESS = ".rotary_emb.inv_freq"


HF, GGML = 0, 1
_ROWS = {spelled: names for names in (*WHOLE.values(), *PER_LAYER.values()) for spelled in names}


def renamed(name: str, to: int) -> str | None:
    """A tensor's name as Hugging Face (to=HF) or ggml (to=GGML) spells it, from either; None without a known role."""
    layer = re.search(r"\.(\d+)\.", name)
    row = _ROWS.get(name if layer is None else f"{name[: layer.start()]}.{{}}.{name[layer.end() :]}")
    return None if row is None else row[to].format(layer[1] if layer else "")


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape that each role must have, outermost first."""
    D, F, V = c.hidden_size, c.intermediate_size, c.vocab_size
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return {
        "embed": (V, D), "final_norm": (D,), "lm_head": (V, D),
        "attn_norm": (D,), "q": (q, D), "k": (kv, D), "v": (kv, D), "q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,),
        "attn_out": (D, q), "ffn_norm": (D,), "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F),
    }  # fmt: skip


def bind(c: Config, tensors: Mapping[str, QTensor]) -> Weights:
    """Weights of a checkpoint. Raises BadInput for a tensor that is missing, has not its role's shape, has no role, or
    is of a format that nobody decodes here.

    A tensor that nothing here reads (a query norm, a rotary table, a layer too many) would be a model computed wrong.
    """
    want = shapes(c)
    used: set[str] = set()

    def get(role: str, names: tuple[str, str], i: int | None = None) -> QTensor:
        spelled = [n.format(i) for n in names]
        name = next((n for n in spelled if n in tensors), None)
        if name is None:
            has = f"; there is {next(iter(tensors))!r:.80}" if tensors else ", and there is no other"
            raise BadInput(f"tensor {' or '.join(spelled)} is missing{has}")
        used.add(name)
        w = tensors[name]
        if w.shape != want[role]:
            raise BadInput(f"tensor {w.name or spelled[0]} has shape {w.shape}; as {role} it must have {want[role]}")
        format_of_tensor(w)
        return w

    def layer(i: int) -> Layer:
        r = {role: get(role, names, i) for role, names in PER_LAYER.items()}
        return Layer(
            attn_norm_D=r["attn_norm"],
            qkv=(r["q"], r["k"], r["v"]),
            qkv_bias_E=(r["q_bias"], r["k_bias"], r["v_bias"]),
            attn_out=r["attn_out"],
            ffn_norm_D=r["ffn_norm"],
            gate_up=(r["ffn_gate"], r["ffn_up"]),
            ffn_down=r["ffn_down"],
        )

    embed = get("embed", WHOLE["embed"])
    weights = Weights(
        config=c,
        embed=embed,
        layers=tuple(layer(i) for i in range(c.num_hidden_layers)),
        final_norm_D=get("final_norm", WHOLE["final_norm"]),
        lm_head=embed if c.tie_word_embeddings else get("lm_head", WHOLE["lm_head"]),
        inv_freq_h=inverse_frequencies(c),
    )
    if c.tie_word_embeddings:  # some files hold the tied head once more
        used.update(WHOLE["lm_head"])
    if unused := [name for name in tensors if name not in used and not name.endswith(HARMLESS)]:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise BadInput(f"tensor {unused[0]!r}{more}: a Qwen2 model of {c.num_hidden_layers} layers has no use for it")
    return weights


def inverse_frequencies(c: Config) -> NDArray[np.float32]:
    """theta^(-2j/H) for j < H/2, as Qwen2 was trained: the power and its reciprocal each rounded to float32.

    Exact decimal powers keep the C library's pow, which differs between machines in the last bit, out of the model.
    """
    with localcontext(prec=40):
        theta, H = Decimal(c.rope_theta), c.head_dim
        power_h = [theta ** (Decimal(2 * j) / H) for j in range(H // 2)]
        return np.float32(1) / np.array([np.float32(float(p)) for p in power_h], np.float32)
