"""The CUDA backend: Numba kernels on an NVIDIA card, from token ids in to logits (and traced stages) out.

machine/ the card, its memory and operations, decode steps as a recorded graph; matmul/ and formats/ matrix products and
the weights that they read; rows.py, attention.py the other kernels; cache.py keys and values. Each result is the same
to the bit from run to run, and traced or untraced: no atomics, one order for every sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from ....errors import BadInput
from ....quant.tensor import QTensor
from ...config import ALL, Config
from ...weights import Weights, plain
from .. import Backend, Kernels
from . import attention, rows, signatures
from .cache import KVCache, Positions, Side
from .machine.card import require_card
from .machine.memory import Queue, Rows, blocks, require_room
from .machine.ptx import SIMULATED
from .machine.recording import Recorded
from .matmul import linear as products
from .matmul import product as p32
from .matmul.linear import Matrix
from .matmul.packed import form_of, packed_bytes, stack, vector


def _same(a: QTensor, b: QTensor) -> bool:
    """The same bytes of the same file: a tied head."""
    return a.format == b.format and a.shape == b.shape and a.data.ctypes.data == b.data.ctypes.data


def row_of(factor: float, D: int) -> Any:
    """A row of one number, on the card."""
    return cuda.to_device(np.full(D, factor, np.float32))


@dataclass(frozen=True)
class Cuda:
    """The backend as one model has it.

    queue: where buffers come from and launches go. row_of: a pass asks for the same few in every layer. roomy: the pass
    is being recorded, for all positions of the cache.
    """

    PRECISIONS = ("f32", "int8")
    ALIKE = False  # a prompt's products are other kernels than a token's
    CHUNK = 512

    queue: Queue = field(default_factory=Queue)
    row_of: Callable[..., Any] = field(default_factory=lambda: lru_cache(maxsize=16)(row_of))
    roomy: bool = False

    def compile_kernels(self, w: Weights, precision: str, progress: Callable[[int, int], None]) -> None:
        """Compiles for the card what the weights of a file will need, anew in each process: a second or so a kernel.

        Raises BadInput without a usable card.
        """
        require_card()
        if SIMULATED:
            return
        forms = {form_of(t)[0] for t in (*(t for _, t in w.matrices()), w.embed)}
        needed = [k for form in forms for k in signatures.products(form.__name__, form, (precision,))]
        needed += list(signatures.others())
        for done, (_, kernel, types) in enumerate(needed):
            progress(done, len(needed))
            kernel.compile(types)

    def prepare(self, w: Weights, precision: str) -> Weights:
        """Everything uploaded once. Raises BadInput without a usable card, or if its memory is too small."""
        require_card()
        tied = w.lm_head is not None and _same(w.embed, plain(w.lm_head))
        matrices = [t for _, t in w.matrices()] + ([] if tied else [w.embed])
        need = sum(packed_bytes(t) for t in matrices)
        require_room(need, "the model", "take a smaller model or format, or --backend cpu")

        def matrix(*parts: QTensor) -> Matrix:
            return Matrix(stack(self.queue, parts), precision == "int8")

        prepared = w.map(vector, matrix)
        return replace(
            prepared,
            embed=plain(prepared.lm_head) if tied else matrix(w.embed),
            inv_freq_h=cuda.to_device(np.asarray(w.inv_freq_h, np.float32)),
            long_inv_freq_h=None if w.long_inv_freq_h is None else cuda.to_device(w.long_inv_freq_h),
        )

    def new_cache(self, c: Config, capacity: int, precision: str) -> KVCache:
        return KVCache(c, capacity, self.queue)

    def batch(self, forward: Callable[[Kernels], Rows]) -> Rows:
        return forward(self)

    def record(self, forward: Callable[[Kernels, Any], Rows], cache: KVCache, tokens: int = 1) -> Callable[[Any], Rows]:
        """A decode step as a recorded graph (recording.py), which has one token."""
        assert tokens == 1
        return Recorded(lambda queue, token: forward(replace(self, queue=queue, roomy=True), token), cache)

    # ---- the functions of the page

    def positions(self, cache: KVCache, count: int, causal: bool = True) -> tuple[Positions, Positions]:
        if not causal:
            raise BadInput("backend cuda has causal attention only, and this model's is not; take --backend cpu")
        pos_T = cache.positions(count, self.roomy)
        return pos_T, pos_T

    def append(self, cache: KVCache, layer: int, k_TKH: Rows, v_TKH: Rows) -> tuple[Side, Side]:
        cache.positions(len(k_TKH))
        sides = keys, _ = cache.sides(layer)
        width = keys.K * keys.H
        into = (cache.start, width, cache.k, cache.v, keys.at)
        self.queue.launch(attention.append, len(k_TKH), min(256, width), *k_TKH.where, *v_TKH.where, *into)
        return sides

    def advance(self, cache: KVCache, count: int) -> None:
        self.queue.launch(attention.advance, 1, 1, cache.start, count)
        cache.length += count

    def embed(self, tokens_T: Any, embed_VD: Matrix) -> Rows:
        """Rows decoded on the card, from token ids in NumPy's memory or already there."""
        tokens = cuda.to_device(np.asarray(tokens_T, np.int32)) if isinstance(tokens_T, np.ndarray) else tokens_T
        (w,) = embed_VD.parts
        y_TD = self.queue.rows(len(tokens), w.I)
        grid = blocks(w.G, p32.EMBED_THREADS), len(tokens)
        self.queue.launch(p32.products(w.form).embed, grid, p32.EMBED_THREADS, tokens, *w.planes, y_TD.data, w.I, w.G)
        return y_TD

    def rms_norm(self, x_TD: Rows, gain_D: Any, eps: float) -> Rows:
        """1 / sqrt, then the gain, as the formula is written."""
        T, *heads, D = x_TD.shape
        y_TD, N = self.queue.rows(*x_TD.shape), prod(heads)
        threads = min(rows.NORM_THREADS, 32 * blocks(D, 32))
        self.queue.launch(rows.rms_norm, (T, N), threads, *x_TD.where, gain_D, np.float32(eps), N, D, y_TD.data)
        return y_TD

    def linear(self, x_TI: Rows, w: Matrix) -> Rows:
        return products.linear(self.queue, x_TI, w)

    def _by_element(self, kernel: Any, x: Rows, *more: Any) -> Rows:
        T, D = x.shape
        y = self.queue.rows(T, D)
        self.queue.launch(kernel, (blocks(D, rows.THREADS), T), min(rows.THREADS, D), *x.where, *more, D, y.data)
        return y

    def add(self, x_TD: Rows, y: Any) -> Rows:
        return self._by_element(rows.add, x_TD, *(y.where if isinstance(y, Rows) else (y, 0, 0)))

    def mul(self, x_TF: Rows, y: Any) -> Rows:
        return self._by_element(rows.mul, x_TF, *(y.where if isinstance(y, Rows) else (y, 0, 0)))

    def scaled(self, x_TD: Rows, factor: float) -> Rows:
        return self.mul(x_TD, self.row_of(factor, x_TD.shape[1]))

    def silu(self, x_TF: Rows) -> Rows:
        return self._by_element(rows.silu, x_TF)

    def relu(self, x_TD: Rows) -> Rows:
        return self._by_element(rows.relu, x_TD)

    def rope(self, x_TNH: Rows, pos_T: Positions, inv_freq_h: Any, magnitude: float = 1.0) -> Rows:
        """Angles as in kernels/reference.py: a float32 product; cosine and sine in float64, then rounded."""
        T, N, H = x_TNH.shape
        y_TNH = self.queue.rows(T, N, H)
        threads = min(64, H // 2), min(8, N)
        self.queue.launch(
            rows.rope, T, threads, *x_TNH.where, pos_T.start, inv_freq_h, np.float32(magnitude), N, H // 2, y_TNH.data
        )
        return y_TNH

    def attn_scores(self, q_TNH: Rows, k_SKH: Side, see_T: Positions) -> Rows:
        (T, N, H), (keys, at, K, _), S = q_TNH.shape, k_SKH, see_T.S
        scores_NTS = self.queue.rows(N, T, S)
        grid = blocks(S, attention.KEYS), blocks(T * (N // K), attention.QUERIES), K
        sizes = see_T.start, T, N // K, H, np.float32(np.sqrt(H))
        block = attention.KEYS, attention.QUERIES
        self.queue.launch(attention.scores, grid, block, *q_TNH.where, keys, at, *sizes, scores_NTS.data, S)
        return scores_NTS

    def softmax(self, scores_NTS: Rows, see_T: Positions, window: int = ALL) -> Rows:
        N, T, S = scores_NTS.shape
        probs_NTS = self.queue.rows(N, T, S)
        sizes = S, see_T.start, T, window
        self.queue.launch(attention.softmax, (T, N), attention.SOFTMAX_THREADS, scores_NTS.data, *sizes, probs_NTS.data)
        return probs_NTS

    def attn_mix(self, probs_NTS: Rows, v_SKH: Side, see_T: Positions) -> Rows:
        """Spans of positions on their own, then their sum; with room for one span only, there is nothing to add up."""
        (N, T, S), (values, at, K, H) = probs_NTS.shape, v_SKH
        spans, size = blocks(S, attention.SPAN), T * N * H
        parts = self.queue.rows(spans * T, N, H)
        columns = max(d for d in range(1, attention.MIX_COLUMNS + 1) if H % d == 0)
        grid = spans * (H // columns), blocks(T * (N // K), attention.MIX_ROWS), K
        sizes = see_T.start, T, N // K, H, attention.SPAN
        self.queue.launch(
            attention.mix, grid, (columns, attention.SLICES), probs_NTS.data, S, values, at, *sizes, parts.data
        )
        if spans == 1:
            return parts
        mix_TNH = self.queue.rows(T, N, H)
        grid_1 = blocks(size, rows.THREADS)
        self.queue.launch(
            attention.gather, grid_1, rows.THREADS, parts.data, see_T.start, T, attention.SPAN, size, mix_TNH.data
        )
        return mix_TNH

    def to_host(self, x: Rows) -> NDArray[np.floating]:
        return x.to_host()


def backend() -> Backend:
    return Cuda()
