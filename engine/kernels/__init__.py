"""What a backend is: a module (or folder) of this package whose `backend()` makes one, found by its name.

Its functions are pure: arrays in, new arrays out; a cache alone changes, by `append` and `advance`. No backend knows a
file or a model. Arrays are the backend's own kind (NumPy on the CPU, device arrays on a GPU); `to_host` brings one back
as a NumPy array for the tap. What a backend remembers (memory to use again, tables, a pass that is being recorded)
changes no result, and lies in the object that was made: a model takes one of its own. One per process are compiled
code, and the threads of the CPU, which work for one model at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput
from ..config import ALL, Config
from ..weights import Weights
from . import numba_settings

numba_settings.install()

BACKENDS = ("cpu", "reference", "cuda")


class Cache(Protocol):
    """Keys and values of every layer for the positions so far; the only thing that changes during a forward pass."""

    length: int  # set back, it forgets positions
    capacity: int


class Kernels(Protocol):
    """The functions of the page. x is in the backend's activation type (float32; float64 on the reference in f64)."""

    def positions(self, cache: Any, count: int, causal: bool = True) -> tuple[Any, Any]:
        """int32 [T]: positions of the next `count` tokens; and the last position that each of them sees, which is its
        own, or, where attention is not causal, the last of all. Raises BadInput if they pass the cache's capacity."""

    def append(self, cache: Any, layer: int, k_TKH: Any, v_TKH: Any) -> tuple[Any, Any]:
        """Stores T new positions of a layer; returns keys and values of all S = length + T, [S, K, H] each."""

    def advance(self, cache: Any, count: int) -> None:
        """The forward pass is over: the cache holds `count` positions more."""

    def embed(self, tokens_T: Any, embed_VD: Any) -> Any:
        """Rows of the embedding: [T, D]."""

    def rms_norm(self, x_TD: Any, gain_D: Any, eps: float) -> Any:
        """x / sqrt(mean(x^2) + eps) * gain (Zhang and Sennrich 2019), each row, or each head of [T, N, H]."""

    def linear(self, x_TI: Any, w: Any) -> Any:
        """x W^T: [T, O] for a matrix [O, I]; the rows of stacked matrices one after the other."""

    def add(self, x_TD: Any, y: Any) -> Any:
        """x + y, with y of the same shape or one row [D]."""

    def mul(self, x_TF: Any, y: Any) -> Any:
        """x times y, with y of the same shape or one row [F]."""

    def scaled(self, x_TD: Any, factor: float) -> Any:
        """x times a number, which is rounded to x's type first."""

    def silu(self, x_TF: Any) -> Any:
        """x / (1 + exp(-x)) (Elfwing et al. 2017)."""

    def relu(self, x_TD: Any) -> Any:
        """max(x, 0), exactly; NaN stays. No stage: of heads that score (engine/embed.py), outside of `batch`."""

    def rope(self, x_TNH: Any, pos_T: Any, inv_freq_h: Any, magnitude: float = 1.0) -> Any:
        """Rotary embedding (Su et al. 2021) of split halves, as Qwen2 has it: element j pairs with j + H/2.

        magnitude: cosine and sine are rounded to the activation's type, then multiplied with it, and rounded again.
        """

    def attn_scores(self, q_TNH: Any, k_SKH: Any, see_T: Any) -> Any:
        """q.k / sqrt(H), [N, T, S]; query head n reads kv head n // (N / K); 0 where the key comes after see_T."""

    def softmax(self, scores_NTS: Any, see_T: Any, window: int = ALL) -> Any:
        """Soft-max over the last `window` keys up to see_T, which is one of them; 0 before and after these."""

    def attn_mix(self, probs_NTS: Any, v_SKH: Any, see_T: Any) -> Any:
        """Probabilities times values: [T, N, H]."""

    def to_host(self, x: Any) -> NDArray[np.floating]:
        """The array as NumPy's; it may be a view, so who keeps it copies it."""


class Backend(Kernels, Protocol):
    """A backend, as one model has it: its functions, and all that goes before and round them."""

    @property
    def PRECISIONS(self) -> tuple[str, ...]: ...

    @property
    def ALIKE(self) -> bool:
        """A token's results have the same bits alone and among others of a pass."""

    @property
    def CHUNK(self) -> int:
        """Positions of a prompt that go through the page at once: more take memory, fewer read the weights oftener."""

    def compile_kernels(self, w: Weights, precision: str, progress: Callable[[int, int], None]) -> None:
        """Compiles what the weights of a file will need, if that takes time; tells progress(done, total) where it
        does.
        """

    def prepare(self, w: Weights, precision: str) -> Weights:
        """The weights of a file in the form that this backend computes with, for one of its PRECISIONS."""

    def new_cache(self, c: Config, capacity: int, precision: str) -> Cache: ...

    def batch(self, forward: Callable[[Kernels], Any]) -> Any:
        """forward(kernels), which may run together and as late as its end: no tap looks at a stage meanwhile."""

    def record(self, forward: Callable[[Kernels, Any], Any], cache: Any, tokens: int = 1) -> Callable[[Any], Any]:
        """`forward` of kernels and one token [1] into `cache`, again and again, or where ALIKE of several [tokens]. A
        backend may record the kernels that are called and replay them: the same results, whose memory is used anew at
        the next call. No tap sees a replayed stage."""


def backend(name: str) -> Backend:
    """A backend of that name, for one model. Raises BadInput if there is none; an import error inside one comes through
    as it is.
    """
    if name not in BACKENDS:
        raise BadInput(f"unknown backend {name!r}; there are {', '.join(BACKENDS)}")
    return cast(Backend, import_module(f".{name}", __package__).backend())


def check_precision(ops: Backend, name: str, precision: str) -> None:
    """Raises BadInput if the backend does not compute in that precision."""
    if precision not in ops.PRECISIONS:
        raise BadInput(f"backend {name} has no precision {precision!r}; it has {', '.join(ops.PRECISIONS)}")
