"""Where the first value came from that is not finite: the page run again, with a tap that looks at every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from ..quant.tensor import QTensor, dequantize
from .chunks import chunks
from .forward import forward
from .kernels import Backend
from .tap import At
from .weights import Weights, parts, plain

HEADS_FIRST = ("attn_scores", "attn_softmax")  # N T S; every other stage has T first, or no T


@dataclass(frozen=True, slots=True)
class Place:
    """An element of a stage. layer: None for the whole model. index: in the stage's shape, without T."""

    stage: str
    layer: int | None
    position: int
    index: tuple[int, ...]
    value: float

    def __str__(self) -> str:
        of = f"{self.stage} of layer {self.layer}" if self.layer is not None else self.stage
        return f"{of}, position {self.position}, index {', '.join(map(str, self.index))}"


class NotFinite(BadInput):
    """Logits that are no numbers to choose by. place: the first such value; None if a second run had none.

    ids: the tokens that were run, the prompt's and those made from it. head: there are logits; else it is the final
    norm's row.
    """

    def __init__(self, ids: Sequence[int], place: Place | None, head: bool = True) -> None:
        super().__init__(ids, place, head)
        self.ids, self.place, self.head = ids, place, head

    def __str__(self) -> str:
        what = "the logits after position {} are" if self.head else "the final norm's row of position {} is"
        after = f"{what.format(len(self.ids) - 1)} not finite"
        if self.place is None:
            return f"{after}, and came out finite when computed again: this machine does not compute the same twice"
        return f"{after}; the first such value is {spelled(self.place.value)} in {self.place}"

    def traced_to(self, w: Weights) -> str:
        """The message, with the weight that is to blame. w: the model as `bind` gives it."""
        return str(self) if self.place is None else f"{self}: {blame(self.place, w, self.ids)}"


def spelled(x: float) -> str:
    return "a NaN" if np.isnan(x) else "an infinity"


class _Found(Exception):  # noqa: N818  (ends the run that looks for it)
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.place = place


class _Look:
    """The tap. start: the position of the pass's first token; count: how many tokens it has."""

    def __init__(self, to_host: Callable[[Any], NDArray[np.floating]], start: int, count: int) -> None:
        self.to_host, self.start, self.count = to_host, start, count

    def layer(self, index: int) -> At:
        return partial(self._look, layer=index)

    def whole(self, stage: str, value: Any) -> Any:
        return self._look(stage, value, None)

    def _look(self, stage: str, value: Any, layer: int | None) -> Any:
        x = self.to_host(value)
        finite = np.isfinite(x)
        if stage == "attn_scores":
            finite |= x == -np.inf  # soft-max makes 0 of it: as a score, it is one
        if not finite.all():
            at = [int(i) for i in np.unravel_index(int(finite.argmin()), x.shape)]
            number = float(x[tuple(at)])
            t = self.count - 1 if x.ndim == 1 else at.pop(1 if stage in HEADS_FIRST else 0)
            raise _Found(Place(stage, layer, self.start + t, tuple(at), number))
        return value


def first_place(ids: Sequence[int], w: Weights, ops: Backend, precision: str) -> Place | None:
    """The first value that is not finite when the ids are run; None if all are finite.

    w: in the backend's form.
    """
    cache = ops.new_cache(w.config, len(ids), precision)
    try:
        heads = w.config.num_attention_heads if ops.ALIKE else 0
        for positions, tokens_T in chunks(ids, ops.CHUNK, heads, w.config.causal):
            with np.errstate(all="ignore"):
                forward(tokens_T, w, cache, ops, _Look(ops.to_host, positions.start, len(tokens_T)))
    except _Found as found:
        return found.place
    return None


def blame(place: Place, w: Weights, ids: Sequence[int]) -> str:
    """What made the value: as its inputs are finite, it is the stage's weights, or its arithmetic.

    Of the weights only the row that made this value is decoded.
    """
    row = ids[place.position] if place.stage == "embedding" else place.index[-1]
    for part in parts_of(place, w):
        if row < part.shape[0]:
            values = np.atleast_1d(dequantize(part, row, row + 1).reshape(-1))
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                where = f"row {row}, column {bad[0]}" if len(part.shape) > 1 else f"element {row}"
                return f"tensor {part.name} has {spelled(float(values[bad[0]]))} at {where}"
            break
        row -= part.shape[0]
    return "no weight makes it so, the arithmetic overflowed"


def parts_of(place: Place, w: Weights) -> tuple[QTensor, ...]:
    """The tensors whose rows, one after the other, make the values of the stage's last axis; the embedding's are its
    tokens'. None where a stage has no weights."""
    whole = {"embedding": w.embed, "final_norm": w.final_norm_D, "lm_head": w.lm_head}
    if place.stage in whole or place.layer is None:
        return (plain(whole[place.stage]),)
    v = w.layers[place.layer]
    of: dict[str, Any] = {
        "attn_norm": v.attn_norm_D, "qkv_matmul": v.qkv, "qkv_bias": v.qkv_bias_E, "q_norm": v.q_norm_H,
        "k_norm": v.k_norm_H, "attn_out": v.attn_out, "attn_out_bias": v.attn_out_bias_D, "ffn_norm": v.ffn_norm_D,
        "ffn_gate": v.gate_up[:1], "ffn_gate_bias": v.gate_bias_F, "ffn_up": v.gate_up[1:], "ffn_up_bias": v.up_bias_F,
        "ffn_out": v.ffn_down, "ffn_out_bias": v.ffn_down_bias_D,
    }  # fmt: skip
    return tuple(map(plain, parts(of.get(place.stage, ()))))
