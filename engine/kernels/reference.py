"""The reference backend: NumPy, as plain as the formulas, in float32 or float64; the slow twin of all the others.

In f64 everything after the exactly dequantised weights is float64: the judge. In f32 every sum of products is taken in
float64 and rounded once, so that a stage adds little more than the rounding of its result: a plain float32 matmul here
ended up to 4.5 times further from f64 than Hugging Face's float32 does. Products go through NumPy's own matmul, so
results may move in the last bits with the number of positions at once; bit-identity is the CPU backend's promise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput
from ...quant.tensor import QTensor, dequantize, take, vector_of
from ..config import ALL, Config
from ..weights import Weights
from . import Backend, Kernels

PRECISIONS = ("f32", "f64")
ALIKE = False
CHUNK = 512

Array = NDArray[np.floating[Any]]


class Matrix:
    """Stacked quantised matrices of one input width, dequantised a slab of rows at a time to save memory.

    dtype: of the rows that an embedding looks up; a product's slabs are float64 always.
    """

    ROWS = 4096

    def __init__(self, parts: tuple[QTensor, ...], dtype: Any) -> None:
        self.parts, self.dtype = parts, dtype

    def slabs(self) -> Any:
        for part in self.parts:
            for start in range(0, part.shape[0], self.ROWS):
                yield dequantize(part, start, min(start + self.ROWS, part.shape[0])).astype(np.float64)

    def rows(self, index_T: NDArray[np.integer[Any]]) -> Array:
        (part,) = self.parts
        return dequantize(take(part, index_T)).astype(self.dtype)


def compile_kernels(w: Weights, precision: str, progress: Callable[[int, int], None]) -> None:
    """There is nothing to compile."""


def prepare(w: Weights, precision: str) -> Weights:
    dtype = {"f32": np.float32, "f64": np.float64}[precision]

    def vector(*parts: QTensor) -> Array:
        return vector_of(*parts).astype(dtype)

    def matrix(*parts: QTensor) -> Matrix:
        return Matrix(parts, dtype)

    return replace(w.map(vector, matrix), embed=matrix(w.embed))


class KVCache:
    """Keys and values [layers, capacity, K, H], handed out as views."""

    def __init__(self, c: Config, capacity: int, dtype: Any) -> None:
        shape = (c.num_hidden_layers, capacity, c.num_key_value_heads, c.head_dim)
        self.k, self.v, self.length, self.capacity = np.zeros(shape, dtype), np.zeros(shape, dtype), 0, capacity


def positions(cache: KVCache, count: int, causal: bool = True) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    if cache.length + count > cache.capacity:
        raise BadInput(f"{cache.length + count} positions do not fit a cache of {cache.capacity}")
    pos_T = np.arange(cache.length, cache.length + count, dtype=np.int32)
    return pos_T, pos_T if causal else np.full_like(pos_T, cache.length + count - 1)


def append(cache: KVCache, layer: int, k_TKH: Array, v_TKH: Array) -> tuple[Array, Array]:
    end = cache.length + len(k_TKH)
    cache.k[layer, cache.length : end], cache.v[layer, cache.length : end] = k_TKH, v_TKH
    return cache.k[layer, :end], cache.v[layer, :end]


def advance(cache: KVCache, count: int) -> None:
    cache.length += count


def new_cache(c: Config, capacity: int, precision: str) -> KVCache:
    return KVCache(c, capacity, np.float64 if precision == "f64" else np.float32)


def embed(tokens_T: NDArray[np.integer[Any]], embed_VD: Matrix) -> Array:
    return embed_VD.rows(tokens_T)


def rms_norm(x_TD: Array, gain_D: Array, eps: float) -> Array:
    """1 / sqrt, then the gain, as the formula is written; no 16-bit cast anywhere."""
    mean_T1 = np.mean(np.square(x_TD), axis=-1, keepdims=True)
    return x_TD / np.sqrt(mean_T1 + x_TD.dtype.type(eps)) * gain_D


def linear(x_TI: Array, w: Matrix) -> Array:
    return np.concatenate([(x_TI @ slab_OI.T).astype(x_TI.dtype) for slab_OI in w.slabs()], axis=1)


def add(x_TD: Array, y: Array) -> Array:
    return x_TD + y


def mul(x_TF: Array, y: Array) -> Array:
    return x_TF * y


def scaled(x_TD: Array, factor: float) -> Array:
    return x_TD * x_TD.dtype.type(factor)


def silu(x_TF: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) = inf for very negative x, and x / inf = -0.0 is right
        return x_TF / (1 + np.exp(-x_TF))


def relu(x_TD: Array) -> Array:
    return np.maximum(x_TD, 0)


def rope(x_TNH: Array, pos_T: NDArray[np.int32], inv_freq_h: NDArray[np.float32], magnitude: float = 1.0) -> Array:
    """The angle is the float32 product that Hugging Face takes in every precision; cosine and sine are float64's."""
    angle_Th = (pos_T.astype(np.float32)[:, None] * inv_freq_h).astype(np.float64)
    size, dtype = x_TNH.dtype.type(magnitude), x_TNH.dtype
    cos_T1h, sin_T1h = (f(angle_Th)[:, None, :].astype(dtype) * size for f in (np.cos, np.sin))
    a_TNh, b_TNh = np.split(x_TNH, 2, axis=-1)
    return np.concatenate((a_TNh * cos_T1h - b_TNh * sin_T1h, b_TNh * cos_T1h + a_TNh * sin_T1h), axis=-1)


def _after(see_T: NDArray[np.int32], S: int) -> NDArray[np.bool_]:
    """[T, S]: the key stands after the last that the query sees."""
    return np.arange(S) > see_T[:, None]


def attn_scores(q_TNH: Array, k_SKH: Array, see_T: NDArray[np.int32]) -> Array:
    (T, N, H), K = q_TNH.shape, k_SKH.shape[1]
    q_KGTH = q_TNH.astype(np.float64).reshape(T, K, N // K, H).transpose(1, 2, 0, 3)
    scores_NTS = (q_KGTH @ k_SKH.transpose(1, 2, 0)[:, None]).reshape(N, T, -1) / np.sqrt(H)
    scores_NTS[:, _after(see_T, len(k_SKH))] = 0
    return scores_NTS.astype(q_TNH.dtype)


def hidden(see_T: NDArray[np.int32], S: int, window: int = ALL) -> NDArray[np.bool_]:
    """[T, S]: the query does not see the key, which stands after see_T, or before the last `window` positions."""
    return _after(see_T, S) | (np.arange(S) <= see_T[:, None].astype(np.int64) - window)


def softmax(scores_NTS: Array, see_T: NDArray[np.int32], window: int = ALL) -> Array:
    hidden_TS = hidden(see_T, scores_NTS.shape[2], window)
    masked_NTS = np.where(hidden_TS, -np.inf, scores_NTS)
    e_NTS = np.exp(masked_NTS - masked_NTS.max(axis=-1, keepdims=True))
    probs_NTS = e_NTS / e_NTS.sum(axis=-1, keepdims=True)
    probs_NTS[:, hidden_TS] = 0  # also where a score is NaN, and so the divisor
    return probs_NTS


def attn_mix(probs_NTS: Array, v_SKH: Array, see_T: NDArray[np.int32]) -> Array:
    (N, T, S), (_, K, H) = probs_NTS.shape, v_SKH.shape
    mix_KGTH = probs_NTS.astype(np.float64).reshape(K, N // K, T, S) @ v_SKH.transpose(1, 0, 2)[:, None]
    return mix_KGTH.transpose(2, 0, 1, 3).reshape(T, N, H).astype(probs_NTS.dtype)


# What is not finite is looked for in the logits; NumPy's warnings would only come before that.
_SILENT = np.errstate(all="ignore")


def batch(forward: Callable[[Kernels], Any]) -> Any:
    return _SILENT(forward)(backend())


def record(forward: Callable[[Kernels, Any], Any], cache: KVCache, tokens: int = 1) -> Callable[[Any], Any]:
    return _SILENT(partial(forward, backend()))


def to_host(x: Array) -> Array:
    return x


def backend() -> Backend:
    """This module, for all models: it remembers nothing."""
    from . import reference  # noqa: PLW0406  by its name, a type checker holds the module to the Protocol

    return reference
