"""The CPU backend: Numba kernels on packed weights, results the same to the bit on every path, thread count and chunking.

simd.py vectors; team.py kernels, jobs, threads; packed.py weights; product.py, and a file per format, matrix products; rows.py and
attention.py the rest. float32 throughout; precisions as in kernels/__init__.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....quant.errors import BadInput
from ....quant.tensor import QTensor, dequantize
from ...config import Config
from ...weights import Layer, Weights
from . import attention, product, rows
from .packed import Packed, pack
from .simd import LANES
from .team import Kernel, run_now

PRECISIONS = ("f32",)

Array = NDArray[np.float32]


def _bits(x: float) -> int:
    return int(np.float32(x).view(np.int32))


def _share(items: int) -> int:
    """Items to take at a time: pieces small enough for a slow core not to be waited for."""
    return max(1, items // 32)


# ---- weights


@dataclass(frozen=True, slots=True)
class Stack:
    """Packed matrices of one input width, whose rows follow one another."""

    parts: tuple[Packed, ...]
    rows: int
    K: int


def prepare(w: Weights, precision: str) -> Weights:
    """Vectors decoded, matrices packed; the embedding stays in its file's bytes, and is shared with the head where they are tied."""

    def vector(*parts: QTensor) -> Array:
        return np.concatenate([dequantize(p) for p in parts])

    def matrix(*parts: QTensor) -> Stack:
        packed = tuple(pack(p) for p in parts)
        return Stack(packed, sum(p.rows for p in packed), packed[0].K)

    layers = tuple(
        Layer(
            attn_norm_D=vector(v.attn_norm_D),
            qkv=matrix(*v.qkv),
            qkv_bias_E=vector(*v.qkv_bias_E),
            attn_out=matrix(v.attn_out),
            ffn_norm_D=vector(v.ffn_norm_D),
            gate_up=matrix(*v.gate_up),
            ffn_down=matrix(v.ffn_down),
        )
        for v in w.layers
    )
    return replace(w, layers=layers, final_norm_D=vector(w.final_norm_D), lm_head=matrix(w.lm_head))


class KVCache:
    """Keys and values of each layer as attention.py wants them, [layers, K, S / 32, H, 32] and [layers, K, S, H]."""

    def __init__(self, c: Config, capacity: int) -> None:
        K, H, blocks = c.num_key_value_heads, c.head_dim, -(-capacity // LANES)
        self.k = np.zeros((c.num_hidden_layers, K, blocks, H, LANES), np.float32)
        self.v = np.zeros((c.num_hidden_layers, K, blocks * LANES, H), np.float32)
        self.length, self.capacity = 0, capacity

    def positions(self, count: int) -> NDArray[np.int32]:
        if self.length + count > self.capacity:
            raise BadInput(f"{self.length + count} positions do not fit a cache of {self.capacity}")
        return np.arange(self.length, self.length + count, dtype=np.int32)

    def append(self, layer: int, k_TKH: Array, v_TKH: Array) -> tuple[Any, Any]:
        pos_T, (T, K, H), k, v = self.positions(len(k_TKH)), k_TKH.shape, self.k[layer], self.v[layer]
        new = (_at(k_TKH), k_TKH.strides[0], _at(v_TKH), v_TKH.strides[0], _at(pos_T), K, H)
        run_now(attention.append.job(T, _share(T), *new, _at(k), k.strides[0], _at(v), v.strides[0]))
        return k, v

    def advance(self, count: int) -> None:
        self.length += count


def new_cache(c: Config, capacity: int, precision: str) -> KVCache:
    return KVCache(c, capacity)


# ---- the functions of the page


def _at(x: NDArray[Any]) -> int:
    return x.ctypes.data


def _rows(x: Array) -> tuple[int, int]:
    """Address and bytes from row to row."""
    return x.ctypes.data, x.strides[0]


def embed(tokens_T: NDArray[np.integer[Any]], embed_VD: QTensor) -> Array:
    return np.concatenate([dequantize(embed_VD, i, i + 1) for i in tokens_T.tolist()])


def rms_norm(x_TD: Array, gain_D: Array, eps: float) -> Array:
    """1 / sqrt, then the gain, as the formula is written."""
    T, D = x_TD.shape
    y_TD = np.empty((T, D), np.float32)
    run_now(rows.rms_norm.job(T, _share(T), *_rows(x_TD), _at(gain_D), _bits(eps), D, _at(y_TD)))
    return y_TD


def linear(x_TI: Array, w: Stack) -> Array:
    """All parts in one parallel region, after one job that lays x out for them."""
    T, K = x_TI.shape
    tile = product.TILE if T > 1 else 1
    tiles = -(-T // tile)
    x = np.empty((tiles, K, tile), np.float32)
    sums = np.empty((tiles, K // 32, tile), np.float32)
    y = np.empty((tiles * tile, w.rows), np.float32)
    jobs = [product.lay_out.job(tiles, _share(tiles), *_rows(x_TI), T, K, tile, _at(x), _at(sums))]
    start = 0
    for p in w.parts:
        blocks = -(-p.rows // LANES)
        arguments = (_at(p.data), p.size, _at(x), _at(sums), _at(y) + 4 * start, y.strides[0], p.rows, K, tiles)
        jobs.append(p.form.F32[T > 1].job(blocks, _share(blocks), *arguments, barrier=False))
        start += p.rows
    jobs[-1][3] = True
    run_now(*jobs)
    return y[:T]


def _pairwise(kernel: Kernel, x: Array, y: Array) -> Array:
    T, D = x.shape
    z = np.empty((T, D), np.float32)
    run_now(kernel.job(T, _share(T), *_rows(x), _at(y), y.strides[0] if y.ndim > 1 else 0, D, _at(z)))
    return z


def add(x_TD: Array, y: Array) -> Array:
    return _pairwise(rows.add, x_TD, y)


def mul(x_TF: Array, y_TF: Array) -> Array:
    return _pairwise(rows.mul, x_TF, y_TF)


def silu(x_TF: Array) -> Array:
    T, F = x_TF.shape
    y_TF = np.empty((T, F), np.float32)
    run_now(rows.silu.job(T, _share(T), *_rows(x_TF), F, _at(y_TF)))
    return y_TF


@lru_cache(maxsize=8)
def _rotary(inv_freq: bytes, count: int) -> tuple[Array, Array]:
    """Cosines and sines of the positions 0..count - 1."""
    inv_freq_h = np.frombuffer(inv_freq, np.float32)
    cos, sin = (np.empty((count, len(inv_freq_h)), np.float32) for _ in range(2))
    run_now(rows.rotary_table.job(count, 256, _at(inv_freq_h), len(inv_freq_h), _at(cos), _at(sin)))
    return cos, sin


def rope(x_TNH: Array, pos_T: NDArray[np.int32], inv_freq_h: Array) -> Array:
    """Angles as in kernels/reference.py; their cosines and sines come from a table that doubles as positions grow."""
    T, N, H = x_TNH.shape
    cos, sin = _rotary(inv_freq_h.tobytes(), max(1024, 1 << int(pos_T[-1]).bit_length()))
    y_TNH = np.empty((T, N, H), np.float32)
    run_now(rows.rope.job(T, _share(T), *_rows(x_TNH), _at(pos_T), _at(cos), _at(sin), N, H // 2, _at(y_TNH)))
    return y_TNH


def attn_scores(q_TNH: Array, k_SKH: Any, pos_T: NDArray[np.int32]) -> Array:
    (T, N, H), (K, blocks, _, _), S = q_TNH.shape, k_SKH.shape, int(pos_T[-1]) + 1
    scores_NTS = np.empty((N, T, S), np.float32)
    items = K * -(-S // LANES)
    where = (*_rows(q_TNH), _at(k_SKH), k_SKH.strides[0], _at(pos_T))
    run_now(attention.scores.job(items, 1, *where, T, N // K, H, _bits(np.sqrt(H)), _at(scores_NTS), S))
    return scores_NTS


def softmax(scores_NTS: Array, pos_T: NDArray[np.int32]) -> Array:
    N, T, S = scores_NTS.shape
    probs_NTS = np.empty((N, T, S), np.float32)
    run_now(attention.softmax.job(N * T, _share(N * T), _at(scores_NTS), _at(pos_T), T, S, _at(probs_NTS)))
    return probs_NTS


def attn_mix(probs_NTS: Array, v_SKH: Any, pos_T: NDArray[np.int32]) -> Array:
    (N, T, S), (K, _, H) = probs_NTS.shape, v_SKH.shape
    mix_TNH = np.empty((T, N, H), np.float32)
    where = (_at(probs_NTS), S, _at(v_SKH), v_SKH.strides[0], _at(pos_T))
    run_now(attention.mix.job(T * K, _share(T * K), *where, T, K, N // K, H, _at(mix_TNH)))
    return mix_TNH


def to_host(x: Array) -> Array:
    return x
