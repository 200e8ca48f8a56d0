"""Llama 2 and 3 (Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, arXiv:2407.21783) and what is built
like them: Qwen2 without the bias, or with one of every product but the head. Transformers' configuration_llama.py and
modeling_llama.py have the rest.

ggml turns adjacent pairs of such models' heads, so that llama.cpp's converter permutes the rows that make them.
"""

from __future__ import annotations

from ..config_keys import GGUF, HF, Keys
from .architecture import Architecture
from .decoder import ATTENTION, ATTENTION_BIAS, ATTENTION_OUT, MLP, MLP_BIAS, STACKED, WHOLE
from .heads import SCORES

ARCHITECTURE = Architecture(
    model_type="llama",
    gguf="llama",
    title="Llama",
    models="Llama 2 and 3, TinyLlama, SmolLM2, DeepSeek-R1-Distill-Llama",
    whole=WHOLE,
    scores=SCORES,
    layer=ATTENTION | ATTENTION_OUT | MLP,
    optional={"attention_bias": ATTENTION_BIAS, "mlp_bias": MLP_BIAS},
    stacked=STACKED,
    unread=(".rotary_emb.inv_freq",),
    hf_keys=HF | Keys(inert={"Llama reads it in no version of Transformers": ("is_decoder", "is_llama_config")}),
    gguf_keys=GGUF,
    paired=frozenset({"q", "k", "q_bias", "k_bias"}),
    llama_cpp_reads=frozenset({"divisors", "output bias"}),
    pre="llama-bpe",
    tokenizer_class="PreTrainedTokenizerFast",
)
