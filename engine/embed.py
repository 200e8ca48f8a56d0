"""What a whole text becomes: a vector, from rows of the final norm, or the scores of a head that has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .chunks import chunks
from .config import Config
from .forward import EVERY, LAST, forward
from .kernels import Backend, Kernels
from .models.heads import KINDS, POOLINGS
from .tap import SILENT
from .weights import Weights

SMALLEST = 1e-12  # length below which a vector is left as it is: torch.nn.functional.normalize's eps
Floats = NDArray[np.floating[Any]]


def pooling_of(c: Config, asked: str | None) -> str:
    """The pooling that was asked for, else the file's own, else the last. Raises BadInput for one that is not known."""
    said = asked or c.head.pooling or "last"
    if said not in POOLINGS:
        whose = "" if asked else "this model's files ask for "
        raise BadInput(f"{whose}pooling {said!r:.60}, which is not computed here; give one of {', '.join(POOLINGS)}")
    return said


def embed(ids: Sequence[int], w: Weights, ops: Backend, precision: str, pooling: str, normalize: bool = True) -> Floats:
    """A text's vector [D], of one of POOLINGS: float32, of float64 in f64. normalize: to length 1.

    Mean and length are taken in float64 and rounded once. Raises BadInput if a value is not finite.
    """
    at = {"last": len(ids) - 1, "cls": 0, "mean": None}[pooling]
    rows = [np.array(ops.to_host(x_TD)) for x_TD in rows_at(ids, at, w, ops, precision)]
    mean_D = np.sum([x_TD.sum(axis=0, dtype=np.float64) for x_TD in rows], axis=0) / sum(map(len, rows))
    if not np.isfinite(mean_D).all():
        raise BadInput("the vector is not finite; engine trace --payload shows where that begins")
    if normalize:
        mean_D = mean_D / max(float(np.sqrt(np.sum(np.square(mean_D)))), SMALLEST)
    return np.asarray(mean_D, rows[0].dtype)


def check_scores(c: Config) -> None:
    """Raises BadInput for a model that does not end in scores."""
    if KINDS[c.head.kind].scores is None:
        what = f"{c.architecture.title}{c.head.kind}"
        raise BadInput(f"{what} has no head that scores; engine embed gives vectors, engine run text")


def score(ids: Sequence[int], w: Weights, ops: Backend, precision: str) -> Floats:
    """The scores of a text, [C] by label, or [T, C] of a head that scores each token: before any soft-max or sigmoid.

    A text's last token is its last that is not padding, as Transformers looks for it. w: in the backend's form.
    Raises BadInput if the model has no such head, or a score is not finite.
    """
    check_scores(w.config)
    head = w.config.head
    every = KINDS[head.kind].every
    at = None if every else max((t for t, i in enumerate(ids) if i != head.pad), default=0)
    rows = [np.array(ops.to_host(scores(x_TD, w, ops))) for x_TD in rows_at(ids, at, w, ops, precision)]
    scores_TC = np.concatenate(rows)
    if not np.isfinite(scores_TC).all():
        raise BadInput("the scores are not finite; engine trace --payload shows where that begins")
    return scores_TC if every else scores_TC[0]


def scores(x_TD: Any, w: Weights, ops: Kernels) -> Any:
    """The head: scores [T, C] of rows of the final norm."""
    if w.score_hidden is not None:
        x_TD = ops.relu(ops.add(ops.linear(x_TD, w.score_hidden), w.score_hidden_bias_D))
    y_TC = ops.linear(x_TD, w.score)
    return y_TC if w.score_bias_C is None else ops.add(y_TC, w.score_bias_C)


def rows_at(ids: Sequence[int], at: int | None, w: Weights, ops: Backend, precision: str) -> Iterator[Any]:
    """Rows of the final norm [T, D], in the backend's form: of one position, or, for None, of all, pass by pass."""
    body, causal = replace(w, lm_head=None), w.config.causal
    fed = ids if at is None or not causal else ids[: at + 1]  # no position sees a later one
    cache, of = ops.new_cache(w.config, len(fed), precision), EVERY if at is None or not causal else (LAST[0], EVERY[1])
    for positions, tokens_T in chunks(fed, ops.CHUNK, causal=causal):
        x_TD = ops.batch(partial(forward, tokens_T, body, cache, tap=SILENT, of=of))
        if at is None:
            yield x_TD
        elif positions.stop == len(fed):
            yield x_TD if causal else x_TD[at : at + 1]
