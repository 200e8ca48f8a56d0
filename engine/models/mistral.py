"""Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama with an attention window in every layer. Transformers'
configuration_mistral.py and modeling_mistral.py have the rest; llama.cpp takes it for Llama, without the window."""

from __future__ import annotations

from dataclasses import replace

from ..config_keys import HF, Keys
from . import llama
from .decoder import STACKED

ARCHITECTURE = replace(
    llama.ARCHITECTURE,
    model_type="mistral",
    title="Mistral",
    optional={},
    stacked={"qkv": STACKED["qkv"]},
    models="Mistral 7B, Nemo, Small",
    hf_keys=HF | Keys(inert={"Mistral reads it in no version of Transformers": ("is_decoder",)}),
    hf_defaults={"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 4096},
    hf_full={"sliding_window": None},
    pre="tekken",
    tokenizer_class="LlamaTokenizer",
)
