"""The CPU backend: Numba kernels on packed weights, results the same to the bit on every path, thread count and
chunking.

machine/ vectors, threads, memory; matmul/ and formats/ matrix products and the weights that they read; rows.py and
attention.py the rest. float32 throughout; precisions as in kernels/__init__.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import BadInput
from ....quant.tensor import QTensor, dequantize, forget, format_of, take, vector_of
from ...config import ALL, Config
from ...weights import Weights
from .. import Backend, Kernels
from . import ahead, attention, rows
from .machine.codegen import LANES
from .machine.kernel import Kernel, at, bits, rows_of, share
from .machine.memory import Pool
from .machine.replay import Batch, Jobs, Recording
from .machine.team import run_now
from .matmul import linear as products
from .matmul.linear import Stack, stack
from .matmul.packed import form_of

BLOCK = 1 << 23  # bytes of scores that are there at once, where nobody looks at them

Array = NDArray[np.float32]


def formats_of(w: Weights) -> list[str]:
    """Those that the weights of a file are packed in."""
    return list(dict.fromkeys(form_of(t).format.name for _, t in w.matrices()))


class KVCache:
    """Keys and values as attention.py wants them: [layers, K, S / 32, H, 32] and [layers, K, H / 32, S, 32]."""

    def __init__(self, c: Config, capacity: int) -> None:
        K, H, blocks = c.num_key_value_heads, c.head_dim, -(-capacity // LANES)
        self.k = np.zeros((c.num_hidden_layers, K, blocks, H, LANES), np.float32)
        self.v = np.zeros((c.num_hidden_layers, K, -(-H // LANES), blocks * LANES, LANES), np.float32)
        self.length, self.capacity = 0, capacity


@dataclass(frozen=True, slots=True)
class Untapped:
    """Scores and probabilities that nobody looks at: they are made when attention is mixed, some queries at a time."""

    q_TNH: Array
    k_SKH: Any
    window: int = ALL


def row_of(factor: float, D: int) -> Array:
    """A row of one number."""
    return np.full(D, factor, np.float32)


def rotary(inv_freq: bytes, magnitude: float, first: int, last: int) -> tuple[Array, Array]:
    """Cosines and sines of the positions first..last."""
    inv_freq_h = np.frombuffer(inv_freq, np.float32)
    cos, sin = (np.empty((last + 1 - first, len(inv_freq_h)), np.float32) for _ in range(2))
    table = (first, at(inv_freq_h), len(inv_freq_h), bits(magnitude), at(cos), at(sin))
    run_now(rows.rotary_table.job(len(cos), 256, *table))
    return cos, sin


@dataclass(frozen=True)
class Cpu:
    """The backend as one model has it, for one pass at a time: what is put off reads memory that another would get.

    jobs: what becomes of the kernels' jobs, and memory for their results. rotary, row_of: a pass asks for the same few
    in every layer.
    """

    PRECISIONS = ("f32", "int16", "int8")
    ALIKE = True
    CHUNK = 256

    jobs: Jobs = field(default_factory=lambda: Jobs(Pool()))
    rotary: Callable[..., tuple[Array, Array]] = field(default_factory=lambda: lru_cache(maxsize=4)(rotary))
    row_of: Callable[..., Array] = field(default_factory=lambda: lru_cache(maxsize=16)(row_of))

    def compile_kernels(self, w: Weights, precision: str, progress: Callable[[int, int], None]) -> None:
        """Makes ready what prepare and the page need for a file's weights: from the cache, else compiled, which takes
        seconds. progress(done, total) is called between kernels from the first that was not in the cache.
        """
        ahead.compile_kernels(formats_of(w), [precision], progress)

    def prepare(self, w: Weights, precision: str) -> Weights:
        """Vectors decoded, matrices packed; the embedding stays in its file's bytes, and is shared with the head where
        they are tied.
        """

        def vector(*parts: QTensor) -> Array:
            return vector_of(*parts).astype(np.float32, copy=False)

        def matrix(*parts: QTensor) -> Stack:
            return stack(parts, precision)

        return w.map(vector, matrix)

    def new_cache(self, c: Config, capacity: int, precision: str) -> KVCache:
        return KVCache(c, capacity)

    def batch(self, forward: Callable[[Kernels], Any]) -> Any:
        """Fewer waits, and rows that stay in the caches."""
        jobs = Batch(self.jobs.pool)
        result = forward(replace(self, jobs=jobs))
        jobs.flush()
        return result

    def record(
        self, forward: Callable[[Kernels, NDArray[np.int32]], Any], cache: KVCache, tokens: int = 1
    ) -> Callable[[NDArray[np.int32]], Any]:
        """As machine/replay.py says; the result lasts until the next call."""
        self.jobs.pool.clear()  # what a prompt needed
        length, cache.length = cache.length, cache.capacity - tokens
        try:
            made = Recording(self._positions(cache, tokens))
            result = forward(replace(self, jobs=made), np.zeros(tokens, np.int32))
        finally:
            cache.length = length
        program = made.program()

        def step(token_T: NDArray[np.int32]) -> Any:
            made.position[:] = self._positions(cache, tokens)
            for action in made.before:
                action(token_T)
            program.run()
            self.advance(cache, tokens)
            return result

        return step

    # ---- the functions of the page

    def positions(self, cache: KVCache, count: int, causal: bool = True) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        pos_T = self._positions(cache, count)
        return pos_T, pos_T if causal else self.jobs.keep(np.full_like(pos_T, pos_T[-1]))

    def _positions(self, cache: KVCache, count: int) -> NDArray[np.int32]:
        if isinstance(self.jobs, Recording):
            return self.jobs.position
        if cache.length + count > cache.capacity:
            raise BadInput(f"{cache.length + count} positions do not fit a cache of {cache.capacity}")
        return self.jobs.keep(np.arange(cache.length, cache.length + count, dtype=np.int32))

    def append(self, cache: KVCache, layer: int, k_TKH: Array, v_TKH: Array) -> tuple[Any, Any]:
        pos_T, (T, K, H), k, v = self._positions(cache, len(k_TKH)), k_TKH.shape, cache.k[layer], cache.v[layer]
        new = (at(k_TKH), k_TKH.strides[0], at(v_TKH), v_TKH.strides[0], at(pos_T), K, H)
        job = attention.append.job(T, share(T), *new, at(k), k.strides[0], at(v), v.strides[0], rows=T)
        self.jobs.submit(job)
        return k, (v, H)

    def advance(self, cache: KVCache, count: int) -> None:
        cache.length += count
        if count > 1 and not self.jobs.untapped:
            self.jobs.pool.clear()  # scores of this many keys: the next pass over a prompt has more, and makes its own

    def embed(self, tokens_T: NDArray[np.integer[Any]], embed_VD: QTensor) -> Array:
        D = embed_VD.shape[1]
        x_TD = self.jobs.empty(len(tokens_T), D)
        if isinstance(made := self.jobs, Recording):
            # Few calls: what a token's weights have driven out of the caches makes Python ten times slower.
            form = format_of(embed_VD.format)
            blocks = embed_VD.data.reshape(embed_VD.shape[0], -1, form.bytes)

            def look_up(tokens_T: NDArray[np.integer[Any]]) -> None:
                with np.errstate(over="ignore", invalid="ignore"):  # as in dequantize
                    for x_D, token in zip(x_TD, tokens_T, strict=True):
                        x_D[:] = form.decode(blocks[token]).reshape(-1)[:D]

            made.before.append(look_up)
        else:
            x_TD[:] = dequantize(take(embed_VD, tokens_T))
            if len(tokens_T) > 1:
                forget(embed_VD.data)  # the system mapped 64 KB around every row
        return x_TD

    def rms_norm(self, x_TD: Array, gain_D: Array, eps: float) -> Array:
        """1 / sqrt, then the gain, as the formula is written."""
        T, *heads, D = x_TD.shape
        y_TD = self.jobs.empty(*x_TD.shape)
        norm = at(gain_D), bits(eps), prod(heads), D, at(y_TD)
        self.jobs.submit(rows.rms_norm.job(T, share(T), *rows_of(x_TD), *norm, rows=T))
        return y_TD

    def linear(self, x_TI: Array, w: Stack) -> Array:
        return products.linear(self.jobs, x_TI, w)

    def _pairwise(self, kernel: Kernel, x: Array, y: Array) -> Array:
        T, D = x.shape
        z = self.jobs.empty(T, D)
        self.jobs.submit(
            kernel.job(T, share(T), *rows_of(x), at(y), y.strides[0] if y.ndim > 1 else 0, D, at(z), rows=T)
        )
        return z

    def add(self, x_TD: Array, y: Array) -> Array:
        return self._pairwise(rows.add, x_TD, y)

    def mul(self, x_TF: Array, y: Array) -> Array:
        return self._pairwise(rows.mul, x_TF, y)

    def scaled(self, x_TD: Array, factor: float) -> Array:
        return self.mul(x_TD, self.jobs.keep(self.row_of(factor, x_TD.shape[1])))

    def silu(self, x_TF: Array) -> Array:
        T, F = x_TF.shape
        y_TF = self.jobs.empty(T, F)
        self.jobs.submit(rows.silu.job(T, share(T), *rows_of(x_TF), F, at(y_TF), rows=T))
        return y_TF

    def relu(self, x_TD: Array) -> Array:
        return np.maximum(x_TD, np.float32(0))

    def rope(self, x_TNH: Array, pos_T: NDArray[np.int32], inv_freq_h: Array, magnitude: float = 1.0) -> Array:
        """Angles as in kernels/reference.py, positions ascending."""
        T, N, H = x_TNH.shape
        first = 0 if isinstance(self.jobs, Recording) else int(pos_T[0])
        cos, sin = self.rotary(inv_freq_h.tobytes(), magnitude, first, int(pos_T[-1]))
        y_TNH = self.jobs.empty(T, N, H)
        where = (*rows_of(x_TNH), at(pos_T), first, at(self.jobs.keep(cos)), at(self.jobs.keep(sin)))
        self.jobs.submit(rows.rope.job(T, share(T), *where, N, H // 2, at(y_TNH), rows=T))
        return y_TNH

    def attn_scores(self, q_TNH: Array, k_SKH: Any, see_T: NDArray[np.int32]) -> Any:
        if self.jobs.untapped:
            return Untapped(q_TNH, k_SKH)
        (T, N, _), S = q_TNH.shape, int(see_T[-1]) + 1
        scores_NTS = self.jobs.empty(N, T, S)
        self._scores(q_TNH, k_SKH, see_T, scores_NTS)
        return scores_NTS

    def softmax(self, scores_NTS: Any, see_T: NDArray[np.int32], window: int = ALL) -> Any:
        if isinstance(scores_NTS, Untapped):
            return replace(scores_NTS, window=window)
        probs_NTS = self.jobs.empty(*scores_NTS.shape)
        self._softmax(scores_NTS, see_T, window, probs_NTS)
        return probs_NTS

    def attn_mix(self, probs_NTS: Any, v_SKH: Any, see_T: NDArray[np.int32]) -> Array:
        """Of untapped scores only BLOCK bytes exist at a time, and become probabilities where they are."""
        _, H = v_SKH
        if not isinstance(probs_NTS, Untapped):
            N, T, _ = probs_NTS.shape
            mix_TNH = self.jobs.empty(T, N, H)
            self._mix(probs_NTS, v_SKH, see_T, mix_TNH)
            return mix_TNH
        (T, N, H), S = probs_NTS.q_TNH.shape, int(see_T[-1]) + 1
        mix_TNH = self.jobs.empty(T, N, H)
        rows = min(T, max(1, BLOCK // (4 * N * S)))
        memory = self.jobs.empty(N * rows * S)
        for t in range(0, T, rows):
            here = slice(t, min(t + rows, T))
            shape = N, here.stop - t, int(see_T[here.stop - 1]) + 1
            block_NTS = memory[: prod(shape)].reshape(shape)
            self._scores(probs_NTS.q_TNH[here], probs_NTS.k_SKH, see_T[here], block_NTS)
            self._softmax(block_NTS, see_T[here], probs_NTS.window, block_NTS)
            self._mix(block_NTS, v_SKH, see_T[here], mix_TNH[here])
        return mix_TNH

    def _scores(self, q_TNH: Array, k_SKH: Any, see_T: NDArray[np.int32], scores_NTS: Array) -> None:
        (T, N, H), K, S = q_TNH.shape, len(k_SKH), scores_NTS.shape[2]
        where = (*rows_of(q_TNH), at(k_SKH), k_SKH.strides[0], at(see_T))
        self.jobs.submit(
            attention.scores.job(K * attention.SHARES, 1, *where, T, K, N // K, H, bits(np.sqrt(H)), at(scores_NTS), S)
        )

    def _softmax(self, scores_NTS: Array, see_T: NDArray[np.int32], window: int, probs_NTS: Array) -> None:
        """probs_NTS may be scores_NTS."""
        N, T, S = scores_NTS.shape
        self.jobs.submit(
            attention.softmax.job(N * T, share(N * T), at(scores_NTS), at(see_T), T, S, window, at(probs_NTS))
        )

    def _mix(self, probs_NTS: Array, v_SKH: Any, see_T: NDArray[np.int32], mix_TNH: Array) -> None:
        (N, T, S), (v, H) = probs_NTS.shape, v_SKH
        K, slices = v.shape[:2]
        items = T * K * slices
        where = (at(probs_NTS), S, at(v), v.strides[0], at(see_T))
        self.jobs.submit(attention.mix.job(items, share(items), *where, T, K, N // K, H, at(mix_TNH)))

    def to_host(self, x: Array) -> Array:
        return x


def backend() -> Backend:
    return Cpu()
