"""Config: the hyper-parameters by Hugging Face's names. Every value comes from the model's file; no defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    """A Qwen2 model's sizes and constants.

    model_type: "qwen2", the only architecture there is.
    rms_norm_eps, rope_theta: as the file has them (float32 values widened).
    tie_word_embeddings: the head is the embedding; the file has no tensor of its own for it.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
