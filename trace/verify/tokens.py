"""Which tokens a dump was made of: from its manifest, or from its embedding, whose rows are the model's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...engine.weights import Adapted, plain, summed
from ...quant.tensor import QTensor
from .evidence import Evidence
from .facts import IdsFromEmbedding, IdsUnknown, Remark

SLAB = 1 << 22


def known_tokens(evidence: Evidence) -> tuple[tuple[int, ...] | None, Remark | None]:
    """Ids by absolute position (None if unknown), and what is to be said about them."""
    told = [t for name in ("tokens", "generated") for t in evidence.dump.run.get(name) or ()]
    if told and all(type(t) is int for t in told):
        return tuple(told), None
    found: dict[int, int] = {}
    for phase in evidence.phases:
        e = evidence.dump.get("embedding", 0, phase)
        if e is None:
            continue
        for p, row in zip(evidence.positions(e), nearest(evidence, e.values()), strict=True):
            found[p] = row
    if not found:
        return None, IdsUnknown(partial=False)
    if sorted(found) != list(range(len(found))):
        return None, IdsUnknown(partial=True)
    return tuple(found[p] for p in range(len(found))), IdsFromEmbedding()


def nearest(evidence: Evidence, x_TD: np.ndarray) -> list[int]:
    """The row of the embedding nearest to each of x, a slab of rows at a time. Of equal rows, the first. An embedding
    with adapters is looked at with them, without, and without DoRA's magnitude: the engine may have left these out."""
    w = evidence.weights.embed
    ways = [_nearest(w, x_TD)]
    if isinstance(w, Adapted):
        ways.append(_nearest(plain(w), x_TD))
        if any(a.dora is not None for a in w.adapters):
            ways.append(_nearest(replace(w, adapters=tuple(replace(a, dora=None) for a in w.adapters)), x_TD))
    return min(ways, key=lambda way: way[1])[0]


def _nearest(w: QTensor | Adapted, x_TD: np.ndarray) -> tuple[list[int], float]:
    """The rows, and how far they are, summed: squares, but for those of x itself."""
    V, D = w.shape
    step = max(1, SLAB // D)
    x = np.nan_to_num(np.asarray(x_TD, np.float64))
    best, which = np.full(len(x), np.inf), np.zeros(len(x), np.int64)
    for start in range(0, V, step):
        rows = summed(w, start, min(start + step, V), by_column=True)
        distance = np.square(rows).sum(1) - 2 * x @ rows.T
        i = distance.argmin(1)
        d = distance[np.arange(len(x)), i]
        which = np.where(d < best, start + i, which)
        best = np.minimum(best, d)
    return which.tolist(), float(best.sum())
