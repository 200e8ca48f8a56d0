"""MLX/bits/group/scales: MLX's affine quantisation: whole numbers times a scale, plus a bias, for each group.

A block is a group, in a layout of this project's own, as MLX keeps three tensors: scale, bias (both F32, F16 or BF16);
codes of 2 to 8 bits in a stream, the lowest bit first, as MLX packs them.
value[j] = scale * q[j] + bias, product and sum each rounded to the type of the scale, as mlx.core.dequantize does it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .codes import SCALES, check_size, decoded, rounded, scales_of, unpack
from .format import Format


def FORMAT(bits: int, group: int, scales: str) -> Format:
    name = f"MLX/{bits}/{group}/{scales}"
    check_size(name, group, bits, scales)
    block = np.dtype([("scale", SCALES[scales]), ("bias", SCALES[scales]), ("qs", "u1", group * bits // 8)])

    def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        b = np.ascontiguousarray(blocks).view(block)[:, 0]
        scale, bias = (scales_of(b[field], scales)[:, None] for field in ("scale", "bias"))
        return decoded(unpack(b["qs"], bits), 1 << bits, lambda q: rounded(rounded(q * scale, scales) + bias, scales))

    return Format(
        name,
        group,
        block,
        decode,
        scale="scale",
        minimum="bias",
        codes=("qs",),
        levels=1 << bits,
        nibbles=("qs", 2) if bits == 4 else None,
    )
