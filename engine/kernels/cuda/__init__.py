"""The CUDA backend: Numba kernels on an NVIDIA card, from token ids in to logits (and traced stages) out.

card.py what must be there; memory.py arrays on the card; packed.py weights, and a file per format; product.py and
product8.py matrix products in f32 and int8; rows.py, attention.py the other kernels; cache.py keys and values;
recording.py decode steps as a recorded graph; ptx.py the machine's operations. Each result is the same to the bit from
run to run, and traced or untraced: no atomics, one order for every sum.
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

from ....quant.tensor import QTensor, format_of
from ...config import ALL, Config
from ...weights import Weights, plain
from .. import Backend, Kernels
from . import attention, rows, signatures
from . import product as p32
from . import product8 as p8
from .cache import KVCache, Positions, Side
from .card import require_card
from .memory import Buffer, Place, Rows, require_room
from .packed import Packed, form_of, packed_bytes, stack, vector
from .ptx import SIMULATED
from .recording import Recorded

ENOUGH_WARPS = 4096  # two for each that an H200 has room for (132 multiprocessors, 16 at 128 registers a thread)
VECTOR_TOKENS = 4  # up to so many tokens, each reads the weights anew: cheaper than a mostly empty tile


@dataclass(frozen=True, slots=True)
class Matrix:
    """Packed matrices of one input width whose rows follow one another, and the precision to multiply them in."""

    parts: tuple[Packed, ...]
    int8: bool

    @property
    def outputs(self) -> int:
        return sum(part.O for part in self.parts)


def _same(a: QTensor, b: QTensor) -> bool:
    """The same bytes of the same file: a tied head."""
    return a.format == b.format and a.shape == b.shape and a.data.ctypes.data == b.data.ctypes.data


def _blocks(count: int, per: int) -> int:
    return -(-count // per)


class _Ready:
    """The activations as kernels want them, each form made once for all parts of a stack."""

    def __init__(self, place: Place, x_TI: Rows) -> None:
        self.place = place
        self.x_TI, self.T, self.I = x_TI, len(x_TI), x_TI.shape[1]
        self.tiles = _blocks(self.I, p32.GROUP * p32.TILE)
        self.made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def narrowed(self, form: str) -> Rows:
        """x rounded to a 16-bit format, or as it is for F32."""
        if form == "F32":
            return self.x_TI

        def make() -> Rows:
            y_TI = self.place.rows(self.T, self.I)
            grid = _blocks(self.I, rows.THREADS), self.T
            self.place.launch(rows.narrow, grid, rows.THREADS, *self.x_TI.where, self.I, int(form == "BF16"), y_TI.data)
            return y_TI

        return self.once(form, make)

    def laid(self, form: str) -> tuple[Rows, Rows]:
        """Lane order, and the sum of each group."""

        def make() -> tuple[Rows, Rows]:
            x_TI = self.narrowed(form)
            laid, sums = (self.place.rows(self.T, self.tiles * width) for width in (512, 16))
            out = self.I, self.tiles, laid.data, sums.data
            self.place.launch(p32.lay_out, (self.tiles, self.T), p32.LAY_OUT_THREADS, *x_TI.where, *out)
            return laid, sums

        return self.once((form, "laid"), make)

    def quantised(self, form: str) -> tuple[Buffer, Rows, Buffer]:
        """Bytes in lane order, each group's step, and the sums of its halves; form Q8_0 or Q8_K."""

        def make() -> tuple[Buffer, Rows, Buffer]:
            groups = self.T * self.tiles * p32.TILE
            words, sums = self.place.buffer(groups * 8), self.place.buffer(groups * 2)
            steps = self.place.rows(self.T, self.tiles * p32.TILE)
            out = words.data.view(np.uint32), steps.data, sums.data.view(np.int32)
            grid, width = (self.tiles * 2, self.T), format_of(form).block
            self.place.launch(p8.quantise, grid, p8.BLOCK, *self.x_TI.where, self.I, self.tiles, width, *out)
            return words, steps, sums

        return self.once(form, make)


def _vector_shape(w: Packed, T: int) -> tuple[tuple[int, int], int]:
    """(grid, shift) of a vector product: warps share rows, as far as there are tiles to share, to be ENOUGH_WARPS."""
    tiles, shift = _blocks(w.G, p32.TILE), 0
    while shift < 2 and 2 << shift <= tiles and (w.O >> 3) << shift < ENOUGH_WARPS:
        shift += 1
    return (_blocks(w.O, p32.VECTOR_ROWS >> shift), T), shift


def _matrix_grid(w: Packed, T: int) -> tuple[int, int]:
    return _blocks(w.O, p32.MATRIX_ROWS), _blocks(T, p32.MATRIX_TOKENS)


def _floats(ready: _Ready, w: Packed, y_TO: Rows, at: int, narrow: bool) -> None:
    """y[:, at:] of one matrix, activations in float32 (narrowed first where ggml would and `narrow` says so)."""
    T, y, form = ready.T, (y_TO.data, at, y_TO.row), w.form.FORMAT.activations if narrow else "F32"
    kernels = p32.products(w.form)
    if T <= VECTOR_TOKENS:
        (laid, sums), (grid, shift) = ready.laid(form), _vector_shape(w, T)
        x = laid.data, sums.data, sums.data  # the steps are the 8 bits' alone
        ready.place.launch(kernels.vector, grid, p32.VECTOR_THREADS, *x, *w.planes, *y, w.O, w.G, shift)
    else:
        x_TI = ready.narrowed(form)
        ready.place.launch(
            kernels.matrix, _matrix_grid(w, T), p32.MATRIX_THREADS, *x_TI.where, w.I, *w.planes, *y, w.O, w.G, T
        )


def _integers(ready: _Ready, w: Packed, y_TO: Rows, at: int, narrow: bool) -> None:
    """y[:, at:] of one matrix, activations in 8 bits."""
    T, y, kernels = ready.T, (y_TO.data, at, y_TO.row), p8.products8(w.form)
    words, steps, sums = ready.quantised(w.form.FORMAT.activations)
    x = words.data.view(np.uint32), steps.data, sums.data.view(np.int32)
    if T <= VECTOR_TOKENS:
        grid, shift = _vector_shape(w, T)
        ready.place.launch(kernels.vector, grid, p32.VECTOR_THREADS, *x, *w.planes, *y, w.O, w.G, shift)
    else:
        ready.place.launch(kernels.matrix, _matrix_grid(w, T), p8.MATRIX_THREADS, *x, *w.planes, *y, w.O, w.G, T)


def row_of(factor: float, D: int) -> Any:
    """A row of one number, on the card."""
    return cuda.to_device(np.full(D, factor, np.float32))


@dataclass(frozen=True)
class Cuda:
    """The backend as one model has it.

    place: where buffers come from and launches go. row_of: a pass asks for the same few in every layer. roomy: the pass
    is being recorded, for all positions of the cache.
    """

    PRECISIONS = ("f32", "int8")
    ALIKE = False  # a prompt's products are other kernels than a token's

    place: Place = field(default_factory=Place)
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
        tied = _same(w.embed, plain(w.lm_head))
        matrices = [t for _, t in w.matrices()] + ([] if tied else [w.embed])
        need = sum(packed_bytes(t) for t in matrices)
        require_room(need, "the model", "take a smaller model or format, or --backend cpu")

        def matrix(*parts: QTensor) -> Matrix:
            return Matrix(stack(self.place, parts), precision == "int8")

        prepared = w.map(vector, matrix)
        return replace(
            prepared,
            embed=plain(prepared.lm_head) if tied else matrix(w.embed),
            inv_freq_h=cuda.to_device(np.asarray(w.inv_freq_h, np.float32)),
            long_inv_freq_h=None if w.long_inv_freq_h is None else cuda.to_device(w.long_inv_freq_h),
        )

    def new_cache(self, c: Config, capacity: int, precision: str) -> KVCache:
        return KVCache(c, capacity, self.place)

    def batch(self, forward: Callable[[Kernels], Rows]) -> Rows:
        return forward(self)

    def record(self, forward: Callable[[Kernels, Any], Rows], cache: KVCache, tokens: int = 1) -> Callable[[Any], Rows]:
        """A decode step as a recorded graph (recording.py), which has one token."""
        assert tokens == 1
        return Recorded(lambda place, token: forward(replace(self, place=place, roomy=True), token), cache)

    # ---- the functions of the page

    def positions(self, cache: KVCache, count: int) -> Positions:
        return cache.positions(count, self.roomy)

    def append(self, cache: KVCache, layer: int, k_TKH: Rows, v_TKH: Rows) -> tuple[Side, Side]:
        cache.positions(len(k_TKH))
        sides = keys, _ = cache.sides(layer)
        width = keys.K * keys.H
        into = (cache.start, width, cache.k, cache.v, keys.at)
        self.place.launch(attention.append, len(k_TKH), min(256, width), *k_TKH.where, *v_TKH.where, *into)
        return sides

    def advance(self, cache: KVCache, count: int) -> None:
        self.place.launch(attention.advance, 1, 1, cache.start, count)
        cache.length += count

    def embed(self, tokens_T: Any, embed_VD: Matrix) -> Rows:
        """Rows decoded on the card, from token ids in NumPy's memory or already there."""
        tokens = cuda.to_device(np.asarray(tokens_T, np.int32)) if isinstance(tokens_T, np.ndarray) else tokens_T
        (w,) = embed_VD.parts
        y_TD = self.place.rows(len(tokens), w.I)
        grid = _blocks(w.G, p32.EMBED_THREADS), len(tokens)
        self.place.launch(p32.products(w.form).embed, grid, p32.EMBED_THREADS, tokens, *w.planes, y_TD.data, w.I, w.G)
        return y_TD

    def rms_norm(self, x_TD: Rows, gain_D: Any, eps: float) -> Rows:
        """1 / sqrt, then the gain, as the formula is written."""
        T, *heads, D = x_TD.shape
        y_TD, N = self.place.rows(*x_TD.shape), prod(heads)
        threads = min(rows.NORM_THREADS, 32 * _blocks(D, 32))
        self.place.launch(rows.rms_norm, (T, N), threads, *x_TD.where, gain_D, np.float32(eps), N, D, y_TD.data)
        return y_TD

    def linear(self, x_TI: Rows, w: Matrix) -> Rows:
        y_TO = self.place.rows(len(x_TI), w.outputs)
        at, ready = 0, _Ready(self.place, x_TI)
        for part in w.parts:
            (_integers if w.int8 and part.form.FORMAT.block > 1 else _floats)(ready, part, y_TO, at, w.int8)
            at += part.O
        return y_TO

    def _by_element(self, kernel: Any, x: Rows, *more: Any) -> Rows:
        T, D = x.shape
        y = self.place.rows(T, D)
        self.place.launch(kernel, (_blocks(D, rows.THREADS), T), min(rows.THREADS, D), *x.where, *more, D, y.data)
        return y

    def add(self, x_TD: Rows, y: Any) -> Rows:
        return self._by_element(rows.add, x_TD, *(y.where if isinstance(y, Rows) else (y, 0, 0)))

    def mul(self, x_TF: Rows, y_TF: Rows) -> Rows:
        return self._by_element(rows.mul, x_TF, *y_TF.where)

    def scaled(self, x_TD: Rows, factor: float) -> Rows:
        return self._by_element(rows.mul, x_TD, self.row_of(factor, x_TD.shape[1]), 0, 0)

    def silu(self, x_TF: Rows) -> Rows:
        return self._by_element(rows.silu, x_TF)

    def rope(self, x_TNH: Rows, pos_T: Positions, inv_freq_h: Any, magnitude: float = 1.0) -> Rows:
        """Angles as in kernels/reference.py: a float32 product; cosine and sine in float64, then rounded."""
        T, N, H = x_TNH.shape
        y_TNH = self.place.rows(T, N, H)
        threads = min(64, H // 2), min(8, N)
        self.place.launch(
            rows.rope, T, threads, *x_TNH.where, pos_T.start, inv_freq_h, np.float32(magnitude), N, H // 2, y_TNH.data
        )
        return y_TNH

    def attn_scores(self, q_TNH: Rows, k_SKH: Side, pos_T: Positions) -> Rows:
        (T, N, H), (keys, at, K, _), S = q_TNH.shape, k_SKH, pos_T.S
        scores_NTS = self.place.rows(N, T, S)
        grid = _blocks(S, attention.KEYS), _blocks(T * (N // K), attention.QUERIES), K
        sizes = pos_T.start, T, N // K, H, np.float32(np.sqrt(H))
        block = attention.KEYS, attention.QUERIES
        self.place.launch(attention.scores, grid, block, *q_TNH.where, keys, at, *sizes, scores_NTS.data, S)
        return scores_NTS

    def softmax(self, scores_NTS: Rows, pos_T: Positions, window: int = ALL) -> Rows:
        N, T, S = scores_NTS.shape
        probs_NTS = self.place.rows(N, T, S)
        sizes = S, pos_T.start, T, window
        self.place.launch(attention.softmax, (T, N), attention.SOFTMAX_THREADS, scores_NTS.data, *sizes, probs_NTS.data)
        return probs_NTS

    def attn_mix(self, probs_NTS: Rows, v_SKH: Side, pos_T: Positions) -> Rows:
        """Spans of positions on their own, then their sum; with room for one span only, there is nothing to add up."""
        (N, T, S), (values, at, K, H) = probs_NTS.shape, v_SKH
        spans, size = _blocks(S, attention.SPAN), T * N * H
        parts = self.place.rows(spans * T, N, H)
        columns = max(d for d in range(1, attention.MIX_COLUMNS + 1) if H % d == 0)
        grid = spans * (H // columns), _blocks(T * (N // K), attention.MIX_ROWS), K
        sizes = pos_T.start, T, N // K, H, attention.SPAN
        self.place.launch(
            attention.mix, grid, (columns, attention.SLICES), probs_NTS.data, S, values, at, *sizes, parts.data
        )
        if spans == 1:
            return parts
        mix_TNH = self.place.rows(T, N, H)
        grid_1 = _blocks(size, rows.THREADS)
        self.place.launch(
            attention.gather, grid_1, rows.THREADS, parts.data, pos_T.start, T, attention.SPAN, size, mix_TNH.data
        )
        return mix_TNH

    def to_host(self, x: Rows) -> NDArray[np.floating]:
        return x.to_host()


def backend() -> Backend:
    return Cuda()
