"""Weights: the arrays of a model, bound to their roles. Frozen; no code but the shape of the thing.

From a file every leaf is a QTensor, or a tuple of those whose rows are stacked. `kernels.<backend>.prepare` returns the
same structure with each leaf in the form that backend computes with, and the forward pass never looks inside a leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from .config import Config

# What a leaf is, told by its field's annotation.
Vector: TypeAlias = Any
Matrix: TypeAlias = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One transformer block. A piece that the architecture does not have is None.

    qkv and gate_up are products of one input: Q | K | V gives E = (N + 2K) H rows, gate | up gives 2F.
    """

    attn_norm_D: Vector
    qkv: Matrix
    qkv_bias_E: Vector = None
    q_norm_H: Vector = None
    k_norm_H: Vector = None
    attn_out: Matrix
    ffn_norm_D: Vector
    gate_up: Matrix
    ffn_down: Matrix


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model. embed and lm_head are [V, D].

    inv_freq_h: RoPE's inverse frequencies, float32 [H / 2] (engine/rope.py); long_inv_freq_h: those of sessions beyond
    the original positions, where they are others. magnitude: what cosine and sine are multiplied with.
    """

    config: Config
    embed: Any
    layers: tuple[Layer, ...]
    final_norm_D: Vector
    lm_head: Matrix
    inv_freq_h: Any
    long_inv_freq_h: Any = None
    magnitude: float = 1.0

    @property
    def pieces(self) -> frozenset[str]:
        """The fields that the layers of this model have."""
        return frozenset(f.name for f in fields(Layer) if getattr(self.layers[0], f.name) is not None)

    def frequencies(self, positions: int) -> Any:
        """RoPE's inverse frequencies in a session of so many positions, prompt and answer."""
        return self.long_inv_freq_h if self.config.rope_scaling.beyond(positions) else self.inv_freq_h

    def map(self, vector: Callable[..., Any], matrix: Callable[..., Any]) -> Weights:
        """The same structure with every leaf in another form: vector or matrix of its parts, which are stacked.

        embed, whose rows are looked up, and RoPE's numbers stay as they are, and a piece that is not there stays None.
        """
        forms = {"Vector": vector, "Matrix": matrix}

        def mapped(node: Layer | Weights) -> dict[str, Any]:
            leaves = {f.name: (forms[str(f.type)], getattr(node, f.name)) for f in fields(node) if f.type in forms}
            return {name: form(*parts(leaf)) for name, (form, leaf) in leaves.items() if leaf is not None}

        layers = tuple(replace(layer, **mapped(layer)) for layer in self.layers)
        return replace(self, layers=layers, **mapped(self))

    def matrices(self) -> Iterator[tuple[str, Any]]:
        """(field, matrix) of all that a token is multiplied with, stacked ones one by one; the head comes last."""
        nodes: tuple[Layer | Weights, ...] = (*self.layers, self)
        for node in nodes:
            for f in fields(node):
                if f.type == "Matrix":
                    yield from ((f.name, part) for part in parts(getattr(node, f.name)))


def parts(leaf: Any) -> tuple[Any, ...]:
    """The tensors of a leaf, in the order of their rows."""
    return leaf if isinstance(leaf, tuple) else (leaf,)
