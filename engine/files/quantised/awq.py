"""AWQ, as AutoAWQ saves it: codes of 4 bits in one of two layouts, zero points as they are (arXiv:2306.00978).

gemm, of a weight [O, I] in G groups of columns: qweight int32 [I, O / 8], qzeros int32 [G, O / 8], scales [G, O]; the
eight codes of a word are of columns in the order ORDER. gemv: qweight int32 [O, I / 8], qzeros int32 [O, Z], scales
[O, 8 Z], where Z is G / 8 and something for padding; in their own order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....quant.codes import pack, unpack
from ....quant.tensor import QTensor
from ..fields import Fields
from .module import Array, Module

METHODS = ("awq",)
PARTS = ("qweight", "scales", "qzeros")
MARKS = ("qweight",)
UNREAD = ()
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the code of each of eight columns is


def reader(asked: Fields) -> Callable[[Module], QTensor]:
    def spelled(name: str, other: str) -> str:
        """AutoAWQ's own files and Transformers have other names for the same."""
        return other if other in asked.values and name not in asked.values else name

    bits, version, grouped = (
        spelled(*names) for names in (("bits", "w_bit"), ("version", "format"), ("group_size", "q_group_size"))
    )
    if asked.whole(bits) != 4:
        raise asked.bad(bits, "4")
    layout = (asked.text(version) or "gemm").lower()
    if layout not in ("gemm", "gemv"):
        raise asked.bad(version, "gemm or gemv")
    group, where = asked.whole(grouped), f"{asked.where}: {grouped}"

    def gemm(m: Module) -> QTensor:
        qweight_IW = m.array("qweight", ("I32",), (None, None))
        I, O = qweight_IW.shape[0], qweight_IW.shape[1] * 8
        scales_GO, kind = m.scales("scales", (None, O))
        G = len(scales_GO)
        size = m.group(I, G, group, where)
        if I % 2 or size % 2:
            raise m.bad("qweight", f"has shape {qweight_IW.shape}, and groups of {size} values of 4 bits are no bytes")
        qzeros_GW = m.array("qzeros", ("I32",), (G, O // 8))

        def codes(words: Array) -> Array:
            """[n, O / 8] -> [n, O], columns in their order."""
            by_place = unpack(np.ascontiguousarray(words).view(np.uint8), 4)
            return by_place.reshape(len(words), -1, 8)[..., ORDER].reshape(len(words), O)

        def fields() -> dict[str, Array]:
            stream = pack(np.ascontiguousarray(codes(qweight_IW).T), 4)
            return {"scale": scales_GO.T, "zero": codes(qzeros_GW).T, "qs": stream.reshape(O, G, -1)}

        return m.weight(f"INT/4/{size}/{kind}", (O, I), fields)

    def gemv(m: Module) -> QTensor:
        qweight_OW = m.array("qweight", ("I32",), (None, None))
        O, I = qweight_OW.shape[0], qweight_OW.shape[1] * 8
        qzeros_OZ = m.array("qzeros", ("I32",), (O, None))
        Z = qzeros_OZ.shape[1]
        scales_O8Z, kind = m.scales("scales", (O, 8 * Z))
        G = 1 if group in (None, -1) else I // max(group, 1)
        size = m.group(I, G, group, where)
        if size % 2 or not 0 < G <= 8 * Z:
            raise m.bad("qzeros", f"has shape {(O, Z)}, which holds no zero points of {G} groups of {size}")

        def fields() -> dict[str, Array]:
            zeros = unpack(np.ascontiguousarray(qzeros_OZ).view(np.uint8), 4)[:, :G]
            stream = np.ascontiguousarray(qweight_OW).view(np.uint8)
            return {"scale": scales_O8Z[:, :G], "zero": zeros, "qs": stream.reshape(O, G, -1)}

        return m.weight(f"INT/4/{size}/{kind}", (O, I), fields)

    return gemm if layout == "gemm" else gemv
