"""compressed-tensors, as LLM Compressor saves it: packed integers, bytes, or 8-bit floats.

Of a weight [O, I]: weight_scale, one, [O, 1], [O, G] or blocks; weight_zero_point, where it is not symmetric. Packed:
weight_packed int32 [O, I B / 32], codes up by half their range, the zero points packed the same way down the rows;
weight_shape int64 [2]. Else weight, int8 or F8_E4M3 [O, I].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ....quant.codes import unpack
from ....quant.tensor import QTensor
from ..fields import Fields, one
from . import fp8
from .module import Array, Module

METHODS = ("compressed-tensors", "compressed_tensors")
PARTS = (
    "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
)  # fmt: skip
MARKS = ("weight_scale",)
UNREAD = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale")
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")


def reader(asked: Fields) -> Callable[[Module], QTensor]:
    given = asked.object("config_groups")
    groups = [
        one(g, f"{asked.where}: config_groups: {name:.40}") for name, g in (given.values if given else {}).items()
    ]
    weights = [w for g in groups if (w := g.object("weights")) is not None]
    if not weights:
        raise asked.bad("config_groups", "an object that says how weights are quantised")
    for f in (asked, *groups):
        if (format := f.text("format")) is not None and format not in FORMATS:
            raise f.bad("format", f"one of {', '.join(FORMATS)}")
    sparsity = asked.object("sparsity_config")
    if sparsity is not None and sparsity.text("format") not in (None, "dense"):
        raise sparsity.bad("format", "dense: sparse weights are not supported")
    if asked.values.get("transform_config") not in (None, {}):
        raise asked.bad("transform_config", "absent: rotations of activations are not supported")
    settings = {(w.whole("num_bits"), w.text("type") or "int") for w in weights}
    blocks = {b for w in weights if (b := fp8.block_of(w, "block_structure")) is not None}
    if len(blocks) > 1:
        raise asked.bad("config_groups", "one size of blocks for all")
    block = blocks.pop() if blocks else None
    sizes = {w.whole("group_size") for w in weights}
    where = f"{asked.where}: config_groups: group_size"
    packed_bits = sorted(b for b, kind in settings if kind == "int" and type(b) is int and 1 <= b <= 8)

    def weight(m: Module) -> QTensor:
        if "weight_packed" in m.parts:
            return packed(m, packed_bits, sizes, where)
        w = m.tensor("weight", "I8", "F8_E4M3", "F8_E5M2")
        if (8, "int" if w.format == "I8" else "float") not in settings:
            raise m.bad("weight", f"is {w.format}, of which {asked.where} says nothing")
        return integers(m, block, sizes, where) if w.format == "I8" else fp8.scaled(m, block)

    return weight


def check_group(m: Module, I: int, G: int, sizes: set[int | None], where: str) -> None:
    """Raises BadInput where no group of config.json is of the size that the scales of a row have."""
    if G > 1 and I // G not in sizes:
        m.group(I, G, next(iter(sizes)) if len(sizes) == 1 else None, where)


def packed(m: Module, bits: list[int], sizes: set[int | None], where: str) -> QTensor:
    """sizes: the groups that config.json speaks of, and where."""
    packed_OW = m.array("weight_packed", ("I32",), (None, None))
    said = m.array("weight_shape", ("I64", "I32"), (2,)).tolist()
    O, I = len(packed_OW), said[1]
    fitting = [b for b in bits if said[0] == O and 0 < I < 1 << 24 and packed_OW.shape[1] == -(-I * b // 32)]
    if len(fitting) != 1:
        wants = " or ".join(map(str, bits)) or "no"
        raise m.bad("weight_packed", f"has shape {packed_OW.shape}, which is not {said} values of {wants} bits")
    B = fitting[0]
    scales_OG, kind = m.scales("weight_scale", (None, None) if len(m.parts["weight_scale"].shape) == 2 else (1,))
    rows, G = scales_OG.shape if scales_OG.ndim == 2 else (1, 1)
    if rows not in (1, O) or I % G or I // G * B % 8:
        raise m.bad("weight_scale", f"has shape {scales_OG.shape}, which is not that of {O} rows of {I} values")
    check_group(m, I, G, sizes, where)
    half = 1 << (B - 1)
    zeros: Array | None = None
    if "weight_zero_point" in m.parts:
        zeros = m.array("weight_zero_point", ("I32",), (-(-O * B // 32), G))
    size = I // G

    def scales_and_zeros() -> tuple[Array, Array]:
        scale_OG = np.broadcast_to(scales_OG.reshape(rows, G), (O, G))
        if zeros is None:
            return scale_OG, np.broadcast_to(half, (O, G))
        return scale_OG, unpack(np.ascontiguousarray(zeros.T).view(np.uint8), B)[:, :O].T  # packed along the rows

    def stream() -> NDArray[np.uint8]:
        return np.ascontiguousarray(packed_OW).view(np.uint8)[:, : I * B // 8]

    def fields() -> dict[str, Array]:
        scale_OG, zero_OG = scales_and_zeros()
        return {"scale": scale_OG, "zero": zero_OG, "qs": stream().reshape(O, G, -1)}

    # All -1 is what the library began with: no order.
    if "weight_g_idx" in m.parts and not (m.array("weight_g_idx", ("I32",), (I,)) == -1).all():
        g_idx_I = m.groups_of("weight_g_idx", I, G)
        if not np.array_equal(g_idx_I, np.arange(I) // size):
            return m.in_act_order(kind, (O, I), B, stream, scales_and_zeros, g_idx_I)
    return m.weight(f"INT/{B}/{size}/{kind}", (O, I), fields)


def integers(m: Module, block: tuple[int, int] | None, sizes: set[int | None], where: str) -> QTensor:
    """Signed bytes, up by 128 in a block. sizes, where: as in packed."""
    codes_OI = m.array("weight", ("I8",), (None, None))
    O, I = codes_OI.shape
    given = m.tensor("weight_scale", "F32", "F16", "BF16").shape
    raw, kind = m.scales("weight_scale", tuple(given))
    if len(given) == 2 and given[0] == O and given[1] > 1 and I % given[1] == 0:
        check_group(m, I, given[1], sizes, where)
        size, by_row = I // given[1], lambda s: s
    else:
        size, by_row = fp8.scale_places(m, "weight_scale", (O, I), given, block)
    zeros = m.array("weight_zero_point", ("I8",), tuple(given)) if "weight_zero_point" in m.parts else None

    def fields() -> dict[str, Array]:
        zero = np.array([[128]]) if zeros is None else by_row(zeros).astype(np.int16) + 128
        codes = codes_OI.view(np.uint8) ^ 128
        return {"scale": by_row(raw), "zero": zero, "qs": codes.reshape(O, I // size, size)}

    return m.weight(f"INT/8/{size}/{kind}", (O, I), fields)
