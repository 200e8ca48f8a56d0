"""Qwen2 (Qwen Team 2024, arXiv:2407.10671): grouped-query attention with a bias on queries, keys and values, a gated
MLP, RMS norms before both. Transformers' configuration_qwen2.py and modeling_qwen2.py have the rest."""

from __future__ import annotations

from ..config_keys import GGUF, HF, Keys
from .architecture import Architecture
from .decoder import ATTENTION, ATTENTION_OUT, MLP, QKV_BIAS, STACKED, WHOLE
from .heads import SCORES

ARCHITECTURE = Architecture(
    model_type="qwen2",
    gguf="qwen2",
    title="Qwen2",
    models="Qwen2, Qwen2.5, Qwen2.5-Coder, DeepSeek-R1-Distill-Qwen",
    whole=WHOLE,
    scores=SCORES,
    layer=ATTENTION | QKV_BIAS | ATTENTION_OUT | MLP,
    stacked=STACKED,
    unread=(".rotary_emb.inv_freq",),  # old conversions carry the table, which follows from rope_theta
    hf_keys=HF
    | Keys(
        read=frozenset({"use_sliding_window", "max_window_layers", "dual_chunk_attention_config"}),
        inert={"Qwen2 reads it in no version of Transformers": ("is_decoder",)},
        neutral={"use_mrope": (None, False)},
        noted={
            "auto_map": "names Python code of the publisher's, which is not run; computed as Transformers' own Qwen2"
        },
    ),
    gguf_keys=GGUF,
    hf_defaults={"max_window_layers": 28, "sliding_window": 4096},
    hf_full={"use_sliding_window": False},
    pre="qwen2",
    tokenizer_class="Qwen2Tokenizer",
)
