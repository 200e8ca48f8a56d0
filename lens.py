"""The logit lens: what a model would say if it ended after a layer (nostalgebraist, interpreting GPT: the logit lens,
2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .engine.load import Opened, check_logits, load
from .errors import BadInput
from .trace.show.guess import Guess, guess
from .trace.show.view import View

RESIDUALS = ("embedding", "post_attn_residual", "post_ffn_residual")  # the stages that a final norm could read
AT_ONCE = 96  # residuals: for each such group the head is decoded anew, and their logits are in memory together


def lens(views: Sequence[View], model: Opened, top: int) -> Iterator[list[Guess]]:
    """Position by position, what each layer says: final norm and head of its residual, in float64.

    views: one of RESIDUALS, a layer each, and the same rows of it; whatever engine computed them. Raises BadInput for
    those of another model, and where the layers do not have the same positions.
    """
    whole = (len(views[0].rows), model.checkpoint.config.hidden_size)
    for v in views:
        if v.values.shape != whole or v.positions != views[0].positions:
            raise BadInput(f"{v.entry.path}: {v.values.shape}, where {whole} is needed at the first layer's positions")
    check_logits(model.checkpoint)
    m = load(model, "reference", "f64")
    w, k = m.weights, m.kernels
    x_LTD = np.stack([v.by_head[0] for v in views]).astype(np.float64)
    L, T, D = x_LTD.shape
    step = max(1, AT_ONCE // L)
    for start in range(0, T, step):
        x_RD = x_LTD[:, start : start + step].reshape(-1, D)
        with np.errstate(all="ignore"):  # of what is not finite
            logits_RV = k.linear(k.rms_norm(x_RD, w.final_norm_D, w.config.rms_norm_eps), w.lm_head)
        logits_LTV = logits_RV.reshape(L, -1, logits_RV.shape[-1])
        for t in range(logits_LTV.shape[1]):
            position, last = views[0].positions[views[0].rows[start + t]], int(np.argmax(logits_LTV[-1, t]))
            yield [
                guess(v.entry.layer, position, x_V, top, last) for v, x_V in zip(views, logits_LTV[:, t], strict=True)
            ]
