"""Which stages are one operation with the stage that uses them: their value goes on as it was computed, in float32, not
as the dump has it stored.

In 16 bits one rounding is lacking then. In float32 that is no difference, but for a bias inside a product: the sum may
begin at it, and each of its additions rounds a partial sum that is larger by the bias. An engine that does so does it
with every product that has a bias, so that PRODUCT stands for whichever goes into a stage of a bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ....stages import Stage, of_kind
from ...span import FLOAT32, Float
from .fact import Fact

NONE: frozenset[str] = frozenset()
BIASES = of_kind("bias")
ROTATED = ("q_post_rope", "k_post_rope")
PRODUCT = "product"

WITH: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "attn_norm": (("post_ffn_residual",), ("post_ffn_residual", "ffn_out")),
    "final_norm": (("post_ffn_residual",), ("post_ffn_residual", "ffn_out")),
    "ffn_norm": (("post_attn_residual",), ("post_attn_residual", "attn_out")),
    **dict.fromkeys(BIASES, ((PRODUCT,),)),
    "q_post_rope": (("q_norm",), ("qkv_bias",), ("qkv_bias", PRODUCT)),
    "k_post_rope": (("k_norm",), ("qkv_bias",), ("qkv_bias", PRODUCT)),
    "attn_scores": (ROTATED,),
    "attn_softmax": (("attn_scores",),),
    "attention": (ROTATED,),
    "post_attn_residual": (("attn_out",), ("attn_out_bias",), ("attn_out_bias", PRODUCT)),
    "ffn_swigl": (("ffn_silu",),),
    "post_ffn_residual": (
        ("ffn_out",), ("ffn_out_bias",), ("ffn_out_bias", PRODUCT), ("post_attn_residual",),
        ("post_attn_residual", "ffn_out"), ("post_attn_residual", "ffn_out_bias"),
    ),
}  # fmt: skip

WORDS = {
    PRODUCT: "bias inside the product",
    "attn_out": "residual inside the product",
    "ffn_out": "residual inside the product",
    "attn_out_bias": "residual sum of the unrounded biased product",
    "ffn_out_bias": "residual sum of the unrounded biased product",
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
    if stage.name not in WITH or (result is FLOAT32 and stage.kind != "bias"):
        return ()
    sets = WITH[stage.name]
    if stage.kind in ("rotation", "residual"):  # which have other inputs in other models
        sets = tuple(names for names in sets if {*names} - {PRODUCT} <= {*stage.inputs})
    return (NONE, *map(frozenset, sets)) if sets else ()


def words(value: frozenset[str], result: Float) -> str:
    return "; ".join(dict.fromkeys(said for stage, said in WORDS.items() if stage in value))


FACT = Fact("fused", values, words)
