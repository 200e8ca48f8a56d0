"""FP8: 8-bit floats with a scale for the tensor, for each row, or for blocks of rows and columns.

Of a weight [O, I]: weight F8_E4M3 or F8_E5M2, and weight_scale_inv (DeepSeek, Qwen; Transformers' finegrained_fp8.py)
or weight_scale (AutoFP8, FBGEMM, compressed-tensors): what a code is multiplied with, whatever the name says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd

import numpy as np

from ....quant.codes import scales_of
from ....quant.tensor import QTensor
from ..fields import Fields
from .module import Array, Module

METHODS = ("fp8", "fbgemm_fp8")
PARTS = ("weight", "weight_scale_inv", "weight_scale")
MARKS = ("weight_scale_inv", "weight_scale")
UNREAD = ("input_scale", "activation_scale", "input_scale_ub", "output_scale", "k_scale", "v_scale", "kv_scale")


def reader(asked: Fields) -> Callable[[Module], QTensor]:
    block = block_of(asked, "weight_block_size")
    return lambda m: scaled(m, block)


def block_of(asked: Fields, field: str) -> tuple[int, int] | None:
    """Rows and columns that share a scale. Raises BadInput."""
    value = asked.array(field)
    if value is None:
        return None
    if len(value) != 2 or not all(type(n) is int and 0 < n < 1 << 24 for n in value):
        raise asked.bad(field, "a number of rows and one of columns")
    return value[0], value[1]


def scaled(m: Module, block: tuple[int, int] | None) -> QTensor:
    """The weight in a Format of 8-bit floats; the group is a row where all of one has the same scale."""
    part = next(p for p in MARKS if p in m.parts)
    w = m.tensor("weight", "F8_E4M3", "F8_E5M2")
    codes_OI = m.array("weight", (w.format,), (None, None))
    O, I = codes_OI.shape
    given = m.tensor(part, "F32", "F16", "BF16").shape
    raw, kind = m.scales(part, tuple(given))
    size, by_row = scale_places(m, part, (O, I), given, block)
    scales = scales_of(raw, kind)

    def fields() -> dict[str, Array]:
        return {"scale": by_row(scales), "qs": codes_OI.reshape(O, I // size, size)}

    return m.weight(f"{w.format}/{size}/{kind}", (O, I), fields)


def scale_places(
    m: Module, part: str, shape: tuple[int, int], given: Sequence[int], block: tuple[int, int] | None
) -> tuple[int, Callable[[Array], Array]]:
    """How many values of a row share a scale, and what lays scales of the given shape out as [O, groups] or what
    broadcasts to it. Raises BadInput for a shape that is none of the three."""
    O, I = shape
    if all(n == 1 for n in given):
        return I, lambda s: s.reshape(1, 1)
    if tuple(given) in ((O,), (O, 1)):
        return I, lambda s: s.reshape(O, 1)
    if block is not None and tuple(given) == (-(-O // block[0]), -(-I // block[1])):
        size = gcd(I, block[1])  # less than a block where the last of a row is cut
        column_G, row_O = np.arange(0, I, size) // block[1], np.arange(O) // block[0]
        return size, lambda s: s[row_O][:, column_G]
    blocks = f"blocks of {block[0]} x {block[1]}" if block else "no blocks"
    raise m.bad(part, f"has shape {tuple(given)}; the weight is {shape}, and config.json says {blocks}")
