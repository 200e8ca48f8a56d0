"""How well a model predicts a text, and how far it is from another: perplexity, Kullback-Leibler divergence, flips.

A text is cut into windows, and of each the second half is scored, so that every token has a context. llama-perplexity
does the same, and so figures compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import exp, inf, sqrt
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .all_logits import all_logits
from .files import Checkpoint
from .files.logits_file import LogitsFile, scored, write_rows
from .load import Loaded

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Windows:
    """ids: the windows', each of `context`; left: ids of the text's end, fewer than a window. first: what number the
    first of them is in the text."""

    ids: tuple[tuple[int, ...], ...]
    context: int
    left: int
    first: int = 0

    def part(self, start: int, stop: int) -> Windows:
        """Some of them."""
        return replace(self, ids=self.ids[start:stop], left=0, first=self.first + start)


def windows(ids: Sequence[int], context: int, most: int | None = None) -> Windows:
    """A text's windows, at most so many. Raises BadInput for a text that is shorter than one."""
    if context < 4:
        raise BadInput(f"a context of {context}: half of a window is scored, so give at least 4")
    count = len(ids) // context
    if not count:
        raise BadInput(
            f"the text is shorter than a window: tokens {len(ids)} of {context}; give more text, or a smaller --context"
        )
    count = min(count, most or count)
    cut = (tuple(ids[i * context : (i + 1) * context]) for i in range(count))
    return Windows(tuple(cut), context, len(ids) - count * context)


@dataclass(frozen=True, slots=True)
class Flip:
    """A position where the two models' likeliest tokens differ. token: in the text.

    gap: by how much the base's choice beats the other token, in the base's logits; noise: the RMS, over the vocabulary,
    of what the two models' log-probabilities differ by there, times sqrt 2, for the gap is a difference of two.
    """

    token: int
    base: int
    model: int
    gap: float
    noise: float


@dataclass
class Figures:
    """What is known of each scored position, in order: nll, -log p of the text's next token; with a base also its nll,
    the divergence KL(base || model), and the change of the next token's probability."""

    nll: list[float] = field(default_factory=list)
    base_nll: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    change: list[float] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)

    def add(self, token: int, logits_TV: NDArray[np.floating], next_T: NDArray[np.intp], base_TV: Array | None) -> None:
        """Some positions, the first of which is `token` of the text. base_TV: the base's log-probabilities."""
        log_TV = log_softmax(logits_TV)
        rows = np.arange(len(next_T))
        nll = -log_TV[rows, next_T]
        self.nll += nll.tolist()
        if base_TV is None:
            return
        known = base_TV > -inf  # a file tells nothing apart that is 16 below the likeliest
        p_TV = np.where(known & (base_TV > -16), np.exp(base_TV), 0)
        self.base_nll += (-base_TV[rows, next_T]).tolist()
        self.divergence += np.sum(p_TV * np.where(p_TV > 0, base_TV - log_TV, 0), 1).tolist()
        self.change += (np.exp(-nll) - np.exp(base_TV[rows, next_T])).tolist()
        top, base_top = log_TV.argmax(1), base_TV.argmax(1)
        for i in np.flatnonzero(top != base_top):
            seen = base_TV[i] > base_TV[i].min()
            off = (log_TV[i] - base_TV[i])[seen]
            noise = sqrt(2) * float(np.std(off)) if off.size else 0.0
            gap = float(base_TV[i, base_top[i]] - base_TV[i, top[i]])
            self.flips.append(Flip(token + int(i), int(base_top[i]), int(top[i]), gap, noise))

    def extend(self, more: Figures) -> None:
        """By those of the positions that come next."""
        for name in ("nll", "base_nll", "divergence", "change", "flips"):
            getattr(self, name).extend(getattr(more, name))

    def summary(self) -> dict[str, Any]:
        """Plain values. Errors are standard errors of the mean; a perplexity's by its derivative."""
        mean, error = mean_of(self.nll)
        told: dict[str, Any] = {"scored": len(self.nll), "nll": mean, "nll_error": error}
        told |= {"perplexity": exp(mean), "perplexity_error": exp(mean) * error}
        if self.divergence:
            base, base_error = mean_of(self.base_nll)
            ratio, ratio_error = mean_of(np.subtract(self.nll, self.base_nll))
            kl, kl_error = mean_of(self.divergence)
            change, change_error = mean_of(self.change)
            same = 1 - len(self.flips) / len(self.nll)
            told |= {
                "base_perplexity": exp(base), "base_perplexity_error": exp(base) * base_error,
                "log_ratio": ratio, "log_ratio_error": ratio_error,
                "kl": kl, "kl_error": kl_error, "kl_median": float(np.median(self.divergence)),
                "kl_99": float(np.quantile(self.divergence, 0.99)), "kl_max": max(self.divergence),
                "top1_agreement": same, "top1_agreement_error": sqrt(same * (1 - same) / max(1, len(self.nll) - 1)),
                "delta_p": change, "delta_p_error": change_error,
                "delta_p_rms": sqrt(float(np.mean(np.square(self.change)))), "flips": len(self.flips),
            }  # fmt: skip
        return told


def mean_of(values: Sequence[float] | Array) -> tuple[float, float]:
    """The mean, and its standard error."""
    n = len(values)
    return float(np.mean(values)), float(np.std(values)) / sqrt(max(1, n - 1))


def log_softmax(logits_TV: NDArray[np.floating]) -> Array:
    x = logits_TV.astype(np.float64)
    x -= x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def check_base(checkpoint: Checkpoint, base: Checkpoint | LogitsFile | None) -> None:
    """Raises BadInput for a base of another vocabulary."""
    V = checkpoint.config.vocab_size
    theirs = base.vocabulary if isinstance(base, LogitsFile) else base.config.vocab_size if base else V
    if theirs != V:
        raise BadInput(f"the base has a vocabulary of {theirs}, {checkpoint.path} one of {V}")


def evaluate(
    model: Loaded,
    cut: Windows,
    base: Loaded | LogitsFile | None = None,
    bos: int | None = None,
    save: IO[bytes] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Figures:
    """Scores every window. base: what the model is held against. bos: stands in the place of each window's first id.

    save: takes the rows of a logits file, behind its head. progress: told how many positions are scored.
    Raises BadInput if logits are not finite, or the base is of another vocabulary.
    """
    check_base(model.checkpoint, base.checkpoint if isinstance(base, Loaded) else base)
    figures, done, positions = Figures(), 0, scored(cut.context)
    for window, ids in enumerate(cut.ids, cut.first):
        fed = ids if bos is None else (bos, *ids[1:])
        told = None if base is None else _base(base, fed, window, positions)
        for at, logits_TV in _blocks(model, fed, positions):
            if not np.isfinite(logits_TV).all():
                where = f"{model.checkpoint.path}: the logits of window {window + 1}"
                raise BadInput(f"{where} are not finite; engine run says where that comes from")
            next_T = np.array(ids[at + 1 : at + 1 + len(logits_TV)])
            base_TV = None if told is None else told(at, len(logits_TV))
            figures.add(window * cut.context + at, logits_TV, next_T, base_TV)
            if save is not None:
                write_rows(save, logits_TV)
            progress(done := done + len(logits_TV))
    return figures


def _blocks(model: Loaded, ids: Sequence[int], positions: range) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """Logits of the scored positions."""
    with np.errstate(all="ignore"):
        for at, x in all_logits(ids, model.weights, model.kernels, model.precision, positions.start):
            kept = x[: max(0, positions.stop - at)]
            if len(kept):
                yield at, kept


def _base(base: Loaded | LogitsFile, ids: Sequence[int], window: int, positions: range) -> Callable[[int, int], Array]:
    """The base's log-probabilities [count, V] from a position on; asked for block by block, as the model's come."""
    if isinstance(base, LogitsFile):
        return lambda at, count: base.log_probabilities(window, at - positions.start, count)
    blocks = _blocks(base, ids, positions)
    return lambda at, count: log_softmax(next(blocks)[1])
