"""Weights: the arrays of a model, bound to their roles. Frozen; no code but the shape of the thing.

From a file every leaf is a QTensor, or a tuple of those whose rows are stacked; a matrix that adapters belong to is an
Adapted. `kernels.<backend>.prepare` returns the same structure with each leaf in the form that backend computes with,
and the forward pass never looks inside a leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..quant.tensor import QTensor, dequantize, take
from .config import Config

# What a leaf is, told by its field's annotation.
Vector: TypeAlias = Any
Matrix: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Adapter:
    """What LoRA (Hu et al. 2021) adds to y = W x: scale * (up (down x) + bias), with down [r, I], up [O, r], bias [O].

    dora: of a file a Dora, in a backend's form its gain, and that less 1.
    """

    down: Any
    up: Any
    scale: float
    bias: Vector = None
    dora: Any = None

    def head(self, rows: int) -> Adapter:
        """What it adds to the first rows of a file's matrix."""
        d = self.dora
        return replace(
            self,
            up=take(self.up, np.arange(rows)),
            bias=None if self.bias is None else self.bias[:rows],
            dora=None if d is None else Dora(d.magnitude[:rows], d.squares[:, :rows]),
        )


@dataclass(frozen=True, slots=True)
class Dora:
    """DoRA (Liu et al. 2024, section 4): each row of W + scale * up down has a length of its own. Of an embedding, each
    column.

    magnitude: these lengths, float64 [O], or [D] of an embedding. squares: |w|^2, w.d and |d|^2 of each row w of W and
    d of up down, float64 [3, O].
    """

    magnitude: Any
    squares: Any

    def gain(self, scale: float) -> Any:
        """What each row of W + scale * up down is multiplied with, float64 [O]."""
        own, both, added = self.squares
        return self.magnitude / np.sqrt(own + scale * (2 * both + scale * added))


@dataclass(frozen=True, slots=True)
class Adapted:
    """A matrix [O, I], and the adapters whose sum is added to its product, one after the other. It is no QTensor: who
    does not know of adapters must not take it for the matrix alone.
    """

    base: Any
    adapters: tuple[Adapter, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    @property
    def name(self) -> str:
        return str(self.base.name)


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
    attn_out_bias_D: Vector = None
    ffn_norm_D: Vector
    gate_up: Matrix
    gate_bias_F: Vector = None
    up_bias_F: Vector = None
    ffn_down: Matrix
    ffn_down_bias_D: Vector = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A whole model. embed and lm_head are [V, D]. Of what stands behind the final norm (engine/models/heads.py), what
    the model does not have is None.

    inv_freq_h: RoPE's inverse frequencies, float32 [H / 2] (engine/rope.py); long_inv_freq_h: those of sessions beyond
    the original positions, where they are others. magnitude: what cosine and sine are multiplied with.
    """

    config: Config
    embed: Any
    layers: tuple[Layer, ...]
    final_norm_D: Vector
    lm_head: Matrix = None
    score_hidden: Matrix = None
    score_hidden_bias_D: Vector = None
    score: Matrix = None
    score_bias_C: Vector = None
    inv_freq_h: Any
    long_inv_freq_h: Any = None
    magnitude: float = 1.0

    @property
    def pieces(self) -> frozenset[str]:
        """The fields that this model, and its layers, have."""
        nodes: tuple[Layer | Weights, ...] = (self.layers[0], self)
        return frozenset(f.name for node in nodes for f in fields(node) if getattr(node, f.name) is not None)

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
            return {
                name: _formed(form, vector, parts(leaf)) for name, (form, leaf) in leaves.items() if leaf is not None
            }

        layers = tuple(replace(layer, **mapped(layer)) for layer in self.layers)
        return replace(self, layers=layers, **mapped(self))

    def matrices(self) -> Iterator[tuple[str, Any]]:
        """(field, matrix) of all that a token is multiplied with, stacked ones one by one, each with its adapters'; the
        head comes last."""
        for name, part in self._products():
            yield name, plain(part)
            for a in part.adapters if isinstance(part, Adapted) else ():
                yield from ((name, a.down), (name, a.up))

    @property
    def adapted(self) -> bool:
        """Whether an adapter belongs to one of the matrices, or to the embedding."""
        return any(True for _ in self.adapted_matrices())

    def adapted_matrices(self) -> Iterator[Adapted]:
        """Those with adapters: the embedding, then in the order of matrices()."""
        every = (self.embed, *(part for _, part in self._products()))
        return (part for part in every if isinstance(part, Adapted))

    def _products(self) -> Iterator[tuple[str, Any]]:
        nodes: tuple[Layer | Weights, ...] = (*self.layers, self)
        for node in nodes:
            for f in fields(node):
                if f.type == "Matrix" and (leaf := getattr(node, f.name)) is not None:
                    yield from ((f.name, part) for part in parts(leaf))


def parts(leaf: Any) -> tuple[Any, ...]:
    """The tensors of a leaf, in the order of their rows."""
    return leaf if isinstance(leaf, tuple) else (leaf,)


def plain(part: Any) -> Any:
    """The matrix without its adapters."""
    return part.base if isinstance(part, Adapted) else part


def summed(part: QTensor | Adapted, start: int, stop: int, by_column: bool = False) -> NDArray[np.float64]:
    """Rows start..stop of a matrix with its adapters, float64 [stop - start, I]. by_column: it is an embedding."""
    values = dequantize(plain(part), start, stop).astype(np.float64)
    for a in part.adapters if isinstance(part, Adapted) else ():
        up, down = dequantize(a.up, start, stop).astype(np.float64), dequantize(a.down).astype(np.float64)
        values += a.scale * (up @ down)
        if a.dora is not None:
            gain = a.dora.gain(a.scale)
            values *= gain if by_column else gain[start:stop, None]
    return values


def _formed(form: Callable[..., Any], vector: Callable[..., Any], stacked: tuple[Any, ...]) -> Any:
    """The leaf of these parts in a backend's form; with adapters, these in that form, too."""
    base = form(*map(plain, stacked))
    if not any(isinstance(part, Adapted) for part in stacked):
        return base
    return Adapted(base, tuple(formed(a, form, vector) for a in _stacked(stacked)))


def formed(a: Adapter, matrix: Callable[..., Any], vector: Callable[..., Any]) -> Adapter:
    """An adapter in a backend's form; its `down`, and `up`, may be several that are stacked."""
    gain = None if a.dora is None else a.dora.gain(a.scale)
    return Adapter(
        matrix(*parts(a.down)),
        matrix(*parts(a.up)),
        a.scale,
        None if a.bias is None else vector(a.bias),
        None if gain is None else (vector(gain), vector(gain - 1)),
    )


def _stacked(stacked: tuple[Any, ...]) -> Iterator[Adapter]:
    """The adapters of stacked parts as such of the whole: `down` one under the other, `up` a matrix whose blocks are
    theirs and which is 0 elsewhere. Only those of one scale and one place among their part's adapters go together.

    Adding 0 changes no sum but -0, and multiplying with 1 nothing, so each part gets what its own adapter alone would
    have given it.
    """
    of = [part.adapters if isinstance(part, Adapted) else () for part in stacked]
    for place in range(max(map(len, of))):
        for scale in dict.fromkeys(own[place].scale for own in of if place < len(own)):
            here = [own[place] if place < len(own) and own[place].scale == scale else None for own in of]
            rows = [part.shape[0] for part in stacked]
            up_OR = np.zeros((sum(rows), sum(a.down.shape[0] for a in here if a)), np.float32)
            row = column = 0
            for n, a in zip(rows, here, strict=True):
                if a is not None:
                    ranks = a.up.shape[1]
                    up_OR[row : row + n, column : column + ranks] = dequantize(a.up)
                    column += ranks
                row += n
            name = next(a.up.name for a in here if a)
            up = QTensor("F32", up_OR.shape, up_OR.reshape(-1).view(np.uint8), name)
            bias = dora = None
            if any(a and a.bias is not None for a in here):
                own = [np.zeros(n) if a is None or a.bias is None else a.bias for a, n in zip(here, rows, strict=True)]
                bias = np.concatenate(own)
            if any(a and a.dora for a in here):
                dora = _side_by_side([(a and a.dora) or _neutral(n) for a, n in zip(here, rows, strict=True)])
            yield Adapter(tuple(a.down for a in here if a), up, scale, bias, dora)


def _neutral(rows: int) -> Dora:
    """Whose gain is 1, whatever the scale."""
    return Dora(np.ones(rows), np.stack([np.ones(rows), np.zeros(rows), np.zeros(rows)]))


def _side_by_side(several: list[Dora]) -> Dora:
    return Dora(np.concatenate([d.magnitude for d in several]), np.concatenate([d.squares for d in several], 1))
