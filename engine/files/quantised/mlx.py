"""MLX's affine quantisation, as mlx_lm.convert saves it: codes of 2 to 8 bits in a stream, along each row.

Of a weight [O, I], with B bits and G groups: weight uint32 [O, I B / 32], scales and biases [O, G]. config.json has
bits and group_size for all, and under a module's name those of one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....quant.tensor import QTensor
from ..fields import Fields
from .module import Array, Module

METHODS = ("mlx",)
PARTS = ("weight", "scales", "biases")
MARKS = ("scales",)
UNREAD = ()
BITS = (2, 3, 4, 5, 6, 8)


def reader(asked: Fields) -> Callable[[Module], QTensor]:
    def settings(of: Fields) -> tuple[int, int]:
        bits, group = of.whole("bits"), of.whole("group_size")
        if bits not in BITS:
            raise of.bad("bits", f"one of {', '.join(map(str, BITS))}")
        if group is None or group < 1:
            raise of.bad("group_size", "a whole number from 1")
        if of.text("mode") not in (None, "affine"):
            raise of.bad("mode", "affine")
        return bits, group

    settings(asked)

    def weight(m: Module) -> QTensor:
        own = asked.values.get(m.name)
        of = asked.object(m.name) if isinstance(own, dict) else asked
        assert of is not None
        if own is False:
            raise m.bad("scales", f"is there, but {asked.where} says that the module is not quantised")
        B, group = settings(of)
        words_OW = m.array("weight", ("U32",), (None, None))
        O, W = words_OW.shape
        I = W * 32 // B
        scales_OG, kind = m.scales("scales", (O, None))
        biases_OG, other = m.scales("biases", scales_OG.shape)
        size = m.group(I, scales_OG.shape[1], group, f"{of.where}: group_size")
        if kind != other or W * 32 != I * B or size * B % 8:
            raise m.bad("weight", f"has shape {words_OW.shape}, which is not groups of {size} values of {B} bits")

        def fields() -> dict[str, Array]:
            stream = np.ascontiguousarray(words_OW).view(np.uint8)
            return {"scale": scales_OG, "bias": biases_OG, "qs": stream.reshape(O, I // size, -1)}

        return m.weight(f"MLX/{B}/{size}/{kind}", (O, I), fields)

    return weight
