"""A model whose adapters are merged into its own matrices: what `engine convert --lora` writes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from ..quant.tensor import QTensor, dequantize, quantize, row_slabs
from .files import Checkpoint
from .weights import Adapted, Weights, summed


def merged(checkpoint: Checkpoint, w: Weights) -> tuple[Checkpoint, list[str]]:
    """The checkpoint with the adapters of its weights merged: W + scale up down, times DoRA's gain, in float64, rounded
    to the format of W or, where that has blocks, to float32. And a line for each format, with how many became it. A
    tied head becomes a matrix of its own where its adapters are not the embedding's.

    Raises BadInput for an adapter's bias (lora_bias) where the model has none.
    """
    c, a = checkpoint.config, checkpoint.config.architecture
    if not w.adapted:
        return checkpoint, []
    tensors = {a.renamed(name, "hf") or name: (name, t) for name, t in checkpoint.tensors.items()}
    embed, head, formats = a.whole["embed"].hf, a.whole["lm_head"].hf, Counter[str]()
    tied = c.tie_word_embeddings and _adapters(w.embed) == _adapters(w.lm_head)
    if c.tie_word_embeddings:
        tensors.pop(head, None)  # some files hold the tied head once more
    if c.tie_word_embeddings and not tied:
        tensors[head] = head, replace(tensors[embed][1], name=head)
    last: list[Any] = [None, None]
    for part in w.adapted_matrices():
        of_head = c.tie_word_embeddings and part is not w.embed and part is w.lm_head
        if of_head and tied:
            continue
        hf = head if of_head else str(a.renamed(part.name, "hf"))
        for adapter in part.adapters:
            if adapter.bias is None:
                continue
            bias = f"{hf.removesuffix('.weight')}.bias"
            if bias not in tensors:
                raise BadInput(
                    f"{checkpoint.path}: there is no {bias} that the adapter's (lora_bias) could be merged with; give "
                    "the adapter to engine run as it is"
                )
            values = dequantize(a.in_order(tensors[bias][1], "hf", c.sizes)) + adapter.scale * adapter.bias
            tensors[bias] = bias, quantize(values, _format(tensors[bias][1]), bias)
        made = _Merged(part, last, hf, part is w.embed)  # whose rows are in the order of that name
        tensors[hf] = hf, made
        formats[made.format] += 1
    said = [f"{n} matrices merged with their adapters: values rounded to {format}" for format, n in formats.items()]
    found = {name: t for name, t in tensors.values()}
    return replace(checkpoint, tensors=found, config=replace(c, tie_word_embeddings=tied)), said


def _adapters(part: Any) -> list[int]:
    """Which adapters a matrix has: those that embedding and head share are the same objects."""
    return [id(adapter) for adapter in part.adapters] if isinstance(part, Adapted) else []


def _format(w: QTensor) -> str:
    return w.format if w.format in {"F16", "BF16"} else "F32"


class _Merged(QTensor):
    """A tensor whose bytes are made when they are asked for. Only the last one's are kept: a model's would not fit into
    memory, and each is read to its end before the next.

    last: the part whose bytes were made last, and these. by_column: DoRA's gain is of columns, as an embedding's is.
    """

    _part: Adapted
    _last: list[Any]
    _by_column: bool

    def __init__(self, part: Adapted, last: list[Any], name: str, by_column: bool) -> None:
        own = {"format": _format(part.base), "shape": part.shape, "name": name}
        for field, value in {**own, "_part": part, "_last": last, "_by_column": by_column}.items():
            object.__setattr__(self, field, value)

    @property
    def data(self) -> NDArray[np.uint8]:
        last: list[Any] = self._last
        if last[0] is not self._part:
            last[:] = self._part, np.concatenate([self._rows(*cut) for cut in row_slabs(self._part.base)])
        made: NDArray[np.uint8] = last[1]
        return made

    def _rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        return quantize(summed(self._part, start, stop, self._by_column), self.format, self.name).data
