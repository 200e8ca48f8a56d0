"""Which stages are one operation with the stage that uses them: their value goes on as it was computed, in float32, not
as the dump has it stored.

In 16 bits one rounding is lacking then. In float32 that is no difference, but for a bias inside a product: the sum may
begin at it, and each of its additions rounds a partial sum that is larger by the bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from .fact import Fact

NONE: frozenset[str] = frozenset()
ROTATED = ("q_post_rope", "k_post_rope")

WITH: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "attn_norm": (("post_ffn_residual",), ("post_ffn_residual", "ffn_out")),
    "final_norm": (("post_ffn_residual",), ("post_ffn_residual", "ffn_out")),
    "ffn_norm": (("post_attn_residual",), ("post_attn_residual", "attn_out")),
    "qkv_bias": (("qkv_matmul",),),
    "q_post_rope": (("q_norm",), ("qkv_bias",), ("qkv_bias", "qkv_matmul")),
    "k_post_rope": (("k_norm",), ("qkv_bias",), ("qkv_bias", "qkv_matmul")),
    "attn_scores": (ROTATED,),
    "attn_softmax": (("attn_scores",),),
    "attention": (ROTATED,),
    "post_attn_residual": (("attn_out",),),
    "ffn_swigl": (("ffn_silu",),),
    "post_ffn_residual": (("ffn_out",), ("post_attn_residual",), ("post_attn_residual", "ffn_out")),
}
IN_FLOAT32 = ("qkv_bias",)

WORDS = {
    "qkv_matmul": "bias inside the product",
    "attn_out": "residual inside the product",
    "ffn_out": "residual inside the product",
    "post_attn_residual": "norm of the unrounded residual sum",
    "post_ffn_residual": "norm of the unrounded residual sum",
    "qkv_bias": "RoPE of the unrounded product",
    "q_norm": "RoPE of the unrounded norm",
    "k_norm": "RoPE of the unrounded norm",
    "q_post_rope": "scores of unrounded queries and keys",
    "k_post_rope": "scores of unrounded queries and keys",
    "attn_scores": "soft-max of the unrounded scores",
    "ffn_silu": "SiLU and product rounded once",
}


def values(stage: Stage, result: Float) -> Sequence[frozenset[str]]:
    if stage.name not in WITH or (result is FLOAT32 and stage.name not in IN_FLOAT32):
        return ()
    sets = [names for names in WITH[stage.name] if stage.kind != "rotation" or names[0] in stage.inputs]
    return (NONE, *map(frozenset, sets)) if sets else ()


def words(value: frozenset[str], result: Float) -> str:
    return "; ".join(dict.fromkeys(said for stage, said in WORDS.items() if stage in value))


FACT = Fact("fused", values, words)
