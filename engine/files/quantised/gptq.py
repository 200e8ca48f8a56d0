"""GPTQ, as AutoGPTQ and gptqmodel save it: codes of 2, 3, 4 or 8 bits, down the columns (arXiv:2210.17323).

Of a weight [O, I], with B bits and G groups of columns: qweight int32 [I B / 32, O], scales [G, O], qzeros int32
[G, O B / 32], g_idx int32 [I], the group of each column. Version 1 keeps zero points less one, version 2 as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ....quant.codes import unpack
from ....quant.tensor import QTensor
from ..fields import Fields
from .module import Array, Module

METHODS = ("gptq",)
PARTS = ("qweight", "scales", "qzeros", "g_idx")
MARKS = ("qweight",)
UNREAD = ()
BITS = (2, 3, 4, 8)


def reader(asked: Fields) -> Callable[[Module], QTensor]:
    bits = asked.whole("bits")
    if bits not in BITS:
        raise asked.bad("bits", f"one of {', '.join(map(str, BITS))}")
    if asked.flag("is_marlin_format"):
        raise asked.bad("is_marlin_format", "false: that layout is of one GPU kernel; convert it back with gptqmodel")
    fields = [f for f in ("checkpoint_format", "format") if asked.text(f) is not None]
    for field in fields:
        if asked.text(field) not in ("gptq", "gptq_v2") or asked.text(field) != asked.text(fields[0]):
            raise asked.bad(field, "gptq or gptq_v2")
    less_one = not fields or asked.text(fields[0]) == "gptq"
    group, mixed = asked.whole("group_size"), asked.values.get("dynamic") not in (None, {})
    where = f"{asked.where}: group_size"

    def weight(m: Module) -> QTensor:
        qweight_RO = m.array("qweight", ("I32",), (None, None))
        R, O = qweight_RO.shape
        scales_GO, kind = m.scales("scales", (None, O))
        G, B = len(scales_GO), bits
        if "g_idx" in m.parts:
            g_idx_I = m.groups_of("g_idx", None, G)
            I = len(g_idx_I)
            B = R * 32 // I
            if R * 32 != B * I or B not in BITS or (bits != B and not mixed):
                raise m.bad("qweight", f"has shape {(R, O)}, which is not {bits} bits of the {I} columns of g_idx")
            if not mixed:
                m.check_sizes(g_idx_I, G, group, where)
        else:
            I = R * 32 // bits
            g_idx_I = np.arange(I) // m.group(I, G, group, where)
        zeros = zero_points(m, (G, O), B, less_one)
        shape = (O, I)

        def stream() -> NDArray[np.uint8]:
            """The codes of each row of the weight, one behind the other."""
            return np.ascontiguousarray(qweight_RO.T).view(np.uint8)

        if I % G == 0 and np.array_equal(g_idx_I, np.arange(I) // (I // G)):
            size = I // G
            return m.weight(
                f"INT/{B}/{size}/{kind}",
                shape,
                lambda: {"scale": scales_GO.T, "zero": zeros().T, "qs": stream().reshape(O, G, -1)},
            )

        return m.in_act_order(kind, shape, B, stream, lambda: (scales_GO.T, zeros().T), g_idx_I)

    return weight


def zero_points(m: Module, shape: tuple[int, int], bits: int, less_one: bool) -> Callable[[], Array]:
    """[G, O], int16. Raises BadInput for a shape that does not fit."""
    G, O = shape
    qzeros = m.array("qzeros", ("I32",), (G, -(-O * bits // 32)))

    def made() -> Array:
        return unpack(np.ascontiguousarray(qzeros).view(np.uint8), bits)[:, :O].astype(np.int16) + less_one

    if less_one and (made() > (1 << bits) - 1).any():
        top = (1 << bits) - 1
        m.notes.add(
            f"GPTQ version 1 zero points of {top} + 1 are taken as {top + 1}, as AutoGPTQ does; gptqmodel overflows"
        )
    return made
