"""Qwen3, dense (Qwen Team 2025, arXiv:2505.09388): Qwen2 without the bias, or with one of every product of attention,
and an RMS norm of each head of queries and keys before their rotation. Transformers' configuration_qwen3.py and
modeling_qwen3.py have the rest."""

from __future__ import annotations

from ..config_keys import GGUF, HF, Keys
from .architecture import Architecture
from .decoder import ATTENTION, ATTENTION_BIAS, ATTENTION_OUT, HEAD_NORMS, MLP, STACKED, WHOLE
from .heads import SCORES

ARCHITECTURE = Architecture(
    model_type="qwen3",
    gguf="qwen3",
    title="Qwen3",
    models="Qwen3 without experts",
    whole=WHOLE,
    scores=SCORES,
    layer=ATTENTION | HEAD_NORMS | ATTENTION_OUT | MLP,
    optional={"attention_bias": ATTENTION_BIAS},
    stacked=STACKED,
    unread=(".rotary_emb.inv_freq",),
    hf_keys=HF
    | Keys(
        read=frozenset({"use_sliding_window", "max_window_layers"}),
        inert={"Qwen3 reads it in no version of Transformers": ("is_decoder",)},
    ),
    gguf_keys=GGUF,
    hf_defaults={"max_window_layers": 28, "sliding_window": 4096},
    own_head_dim=True,
    hf_full={"use_sliding_window": False},
    pre="qwen2",
    tokenizer_class="Qwen2Tokenizer",
)
