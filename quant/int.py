"""INT/bits/group/scales: whole numbers round a zero point, times a scale for each group: GPTQ, AWQ, compressed-tensors.

A block is a group, in a layout of this project's own, as these files scatter it over several tensors: int16 zero; scale
(F32, F16 or BF16); codes of 1 to 8 bits in a stream, the lowest bit first.
value[j] = scale * (q[j] - zero), in the type of the scale, as gptqmodel's TorchLinear, AutoAWQ's dequantize_gemm and
compressed-tensors' dequantize compute it: the difference is exact in each of the types, the product is rounded once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .codes import SCALES, check_size, decoded, rounded, scales_of, unpack
from .format import Format


def FORMAT(bits: int, group: int, scales: str) -> Format:
    name = f"INT/{bits}/{group}/{scales}"
    check_size(name, group, bits, scales)
    block = np.dtype([("zero", "<i2"), ("scale", SCALES[scales]), ("qs", "u1", group * bits // 8)])

    def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        b = np.ascontiguousarray(blocks).view(block)[:, 0]
        zero, scale = b["zero"].astype(np.float32)[:, None], scales_of(b["scale"], scales)[:, None]
        return decoded(unpack(b["qs"], bits), 1 << bits, lambda q: rounded((q - zero) * scale, scales))

    return Format(
        name,
        group,
        block,
        decode,
        scale="scale",
        minimum="zero",
        codes=("qs",),
        levels=1 << bits,
        nibbles=("qs", 2) if bits == 4 else None,
    )
