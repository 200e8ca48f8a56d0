"""Weights: the arrays of a model, bound to their roles. Frozen; no code but the shape of the thing.

From a file every leaf is a QTensor. `kernels.<backend>.prepare` returns the same structure with each leaf in the form
that backend computes with, and the forward pass never looks inside a leaf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .config import Config


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block.

    qkv and gate_up are products of one input: from a file, tuples of the QTensors whose rows are stacked
    (Q | K | V gives E = (N + 2K) H rows, gate | up gives 2F).
    """

    attn_norm_D: Any
    qkv: Any
    qkv_bias_E: Any
    attn_out: Any
    ffn_norm_D: Any
    gate_up: Any
    ffn_down: Any


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model. embed and lm_head are [V, D]; inv_freq_h is float32 [H / 2] (see `bind.inverse_frequencies`)."""

    config: Config
    embed: Any
    layers: tuple[Layer, ...]
    final_norm_D: Any
    lm_head: Any
    inv_freq_h: Any
