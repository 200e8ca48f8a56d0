"""The tensors that the architectures of the page share, by Hugging Face's and ggml's names, and the pieces to choose.

ggml's names are gguf-py's (constants.py, tensor_mapping.py).
"""

from __future__ import annotations

from .architecture import Tensor

EMBED = Tensor("embed", "model.embed_tokens.weight", "token_embd.weight", "V D")
HEAD = Tensor("lm_head", "lm_head.weight", "output.weight", "V D")
WHOLE = {
    "embed": EMBED,
    "final_norm_D": Tensor("final_norm", "model.norm.weight", "output_norm.weight", "D"),
    "lm_head": HEAD,
}


def _layer(role: str, hf: str, ggml: str, axes: str) -> Tensor:
    return Tensor(role, f"model.layers.{{}}.{hf}", f"blk.{{}}.{ggml}", axes)


ATTENTION = {
    "attn_norm_D": (_layer("attn_norm", "input_layernorm.weight", "attn_norm.weight", "D"),),
    "qkv": (
        _layer("q", "self_attn.q_proj.weight", "attn_q.weight", "NH D"),
        _layer("k", "self_attn.k_proj.weight", "attn_k.weight", "KH D"),
        _layer("v", "self_attn.v_proj.weight", "attn_v.weight", "KH D"),
    ),
}
QKV_BIAS = {
    "qkv_bias_E": (
        _layer("q_bias", "self_attn.q_proj.bias", "attn_q.bias", "NH"),
        _layer("k_bias", "self_attn.k_proj.bias", "attn_k.bias", "KH"),
        _layer("v_bias", "self_attn.v_proj.bias", "attn_v.bias", "KH"),
    )
}
ATTENTION_OUT_BIAS = {"attn_out_bias_D": (_layer("attn_out_bias", "self_attn.o_proj.bias", "attn_output.bias", "D"),)}
ATTENTION_BIAS = QKV_BIAS | ATTENTION_OUT_BIAS
MLP_BIAS = {
    "gate_bias_F": (_layer("ffn_gate_bias", "mlp.gate_proj.bias", "ffn_gate.bias", "F"),),
    "up_bias_F": (_layer("ffn_up_bias", "mlp.up_proj.bias", "ffn_up.bias", "F"),),
    "ffn_down_bias_D": (_layer("ffn_down_bias", "mlp.down_proj.bias", "ffn_down.bias", "D"),),
}
HEAD_NORMS = {
    "q_norm_H": (_layer("q_norm", "self_attn.q_norm.weight", "attn_q_norm.weight", "H"),),
    "k_norm_H": (_layer("k_norm", "self_attn.k_norm.weight", "attn_k_norm.weight", "H"),),
}
OPTIONAL = ATTENTION_BIAS | MLP_BIAS | HEAD_NORMS  # what an architecture, or a file of it, may have
# What vLLM, and llama.cpp's converter if told to (--fuse-qkv), put in place of three.
STACKED = {
    "qkv": _layer("qkv", "self_attn.qkv_proj.weight", "attn_qkv.weight", "E D"),
    "qkv_bias_E": _layer("qkv_bias", "self_attn.qkv_proj.bias", "attn_qkv.bias", "E"),
}
ATTENTION_OUT = {"attn_out": (_layer("attn_out", "self_attn.o_proj.weight", "attn_output.weight", "D NH"),)}
MLP = {
    "ffn_norm_D": (_layer("ffn_norm", "post_attention_layernorm.weight", "ffn_norm.weight", "D"),),
    "gate_up": (
        _layer("ffn_gate", "mlp.gate_proj.weight", "ffn_gate.weight", "F D"),
        _layer("ffn_up", "mlp.up_proj.weight", "ffn_up.weight", "F D"),
    ),
    "ffn_down": (_layer("ffn_down", "mlp.down_proj.weight", "ffn_down.weight", "D F"),),
}
