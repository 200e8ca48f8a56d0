"""What the ranks of a tensor-parallel engine hold of a stage, put together.

Megatron's layout, which SGLang, vLLM and TensorRT-LLM share: a column-parallel product gives each rank some columns (of
Q, K and V each their own heads), a row-parallel one gives each rank a summand of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...quant import bf16
from .names import PARTS, letters_of

Values = NDArray[np.float32]
SUMMED = ("attn_out", "attn_out_bias", "ffn_out", "ffn_out_bias")


def share(target: str) -> str | None:
    """The letter of the axis that ranks share out among them; None where each has the whole."""
    return next((x for x in ("E", "N", "K", "F", "V") if x in letters_of(target)), None)


def sizes_of_rank(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """The sizes that one of so many ranks works with. Fewer key heads than ranks: several ranks have the same one."""
    mine = {**sizes, **{x: max(1, sizes[x] // ranks) for x in "NKFV"}}
    return mine | {"E": (mine["N"] + 2 * mine["K"]) * sizes["H"]}


def joined(
    target: str, pieces: Sequence[Values], whole: bool, how: str | None, kind: str, sizes: Mapping[str, int]
) -> Values:
    """One array of what the ranks hold, in order of rank.

    whole: whether each piece has the stage's full size. how: "columns", "sum" or "same"; None: told by the sizes and,
    of a row-parallel product, by whether the ranks have the same already. A sum is rounded to what the engine holds
    it in, `kind`: between two ranks that is what it computed.
    """
    if len(pieces) == 1 or how == "same":
        return pieces[0]
    if whole and how != "columns":
        if how is None and (target not in SUMMED or all(np.array_equal(p, pieces[0], equal_nan=True) for p in pieces)):
            return pieces[0]
        total: Values = np.sum(np.stack(pieces), axis=0, dtype=np.float32)
        return _rounded(total, kind)
    if target in PARTS or share(target) != "E":
        letters = letters_of(target)
        letter = share(target) or letters[-1]
        return np.concatenate(_distinct(pieces, letter, sizes), letters.index(letter))
    R, H = len(pieces), sizes["H"]
    mine = sizes_of_rank(sizes, R)
    ends = [mine["N"] * H, (mine["N"] + mine["K"]) * H]
    q, k, v = zip(*(np.split(p, ends, axis=1) for p in pieces), strict=True)
    return np.concatenate([*q, *_distinct(k, "K", sizes), *_distinct(v, "K", sizes)], 1)


def _distinct(pieces: Sequence[Values], letter: str, sizes: Mapping[str, int]) -> Sequence[Values]:
    """Without the repeats of key heads."""
    repeats = max(1, len(pieces) // sizes[letter]) if letter == "K" else 1
    return pieces[::repeats]


def _rounded(x: Values, kind: str) -> Values:
    if kind == "F16":
        return x.astype(np.float16).astype(np.float32)
    if kind == "BF16":
        return bf16.decode(bf16.encode(x.reshape(-1, 1))).reshape(x.shape)
    return x
