"""bitsandbytes: 4-bit floats with the largest size of each block of the weight (NF4, FP4), and LLM.int8().

4 bits, of a weight [O, I]: weight, two codes a byte, whatever its dtype; weight.absmax float32, one for each block of
the weight as it lies, rows one after the other, or bytes that stand for floats of weight.nested_quant_map, times
weight.nested_absmax of every nested_blocksize, plus an offset; weight.quant_map, the levels; the rest as JSON in
weight.quant_state.bitsandbytes__nf4. 8 bits: weight int8 [O, I], SCB float32 [O].
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, isfinite

import numpy as np

from ....quant import fp4, nf4
from ....quant.tensor import QTensor
from ..fields import Fields
from ..strict_json import parse_object
from .module import Array, Module

METHODS = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")
LEVELS = {"nf4": nf4.LEVELS, "fp4": fp4.LEVELS}
STATES = {kind: f"weight.quant_state.bitsandbytes__{kind}" for kind in LEVELS}
PARTS = (
    *STATES.values(), "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
    "weight", "SCB", "weight_format",
)  # fmt: skip
MARKS = (*STATES.values(), "SCB")
UNREAD = ()
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def reader(asked: Fields) -> Callable[[Module], QTensor]:
    return lambda m: int8(m) if "SCB" in m.parts else float4(m)


def int8(m: Module) -> QTensor:
    codes_OI = m.array("weight", ("I8",), (None, None))
    O, I = codes_OI.shape
    absmax_O, _ = m.scales("SCB", (O,))
    m.tensor("SCB", "F32")
    if "weight_format" in m.parts and m.tensor("weight_format", "U8").data.any():
        raise m.bad("weight_format", "is not 0: only rows are known, as bitsandbytes saves them since 0.45")
    fields = {"absmax": absmax_O[:, None], "qs": codes_OI[:, None, :]}
    return m.weight(f"LLM_INT8/{I}", (O, I), lambda: fields)


def float4(m: Module) -> QTensor:
    kind, part = next((k, p) for k, p in STATES.items() if p in m.parts)
    where = f"tensor {m.name}.{part}"
    state = Fields(parse_object(m.tensor(part, "U8").data.tobytes(), where), where)
    shape, block, dtype = state.array("shape"), state.whole("blocksize"), state.text("dtype")
    if shape is None or len(shape) != 2 or not all(type(n) is int and 0 < n < 1 << 31 for n in shape):
        raise state.bad("shape", "those of a matrix")
    if block is None or not (0 < block < 1 << 24) or block % 2:
        raise state.bad("blocksize", "an even number")
    if dtype not in DTYPES:
        raise state.bad("dtype", f"one of {', '.join(DTYPES)}")
    if state.text("quant_type") != kind:
        raise state.bad("quant_type", kind)
    O, I = shape
    codes = m.tensor("weight", "U8", "I8", *DTYPES.values()).data
    if codes.size * 2 != O * I or I % 2:
        raise m.bad("weight", f"has {codes.size} bytes, which are not the codes of {O} rows of {I}")
    if not np.array_equal(m.array("weight.quant_map", ("F32",), (16,)), LEVELS[kind]):
        raise m.bad("weight.quant_map", f"holds other levels than those of {kind}")
    absmax = largest_sizes(m, -(-O * I // block), state)
    size = gcd(I, block)  # blocks run on from row to row
    block_OG = np.arange(0, O * I, size).reshape(O, -1) // block
    return m.weight(
        f"{kind.upper()}/{size}/{DTYPES[dtype]}",
        (O, I),
        lambda: {"absmax": absmax[block_OG], "qs": codes.reshape(O, I // size, size // 2)},
    )


def largest_sizes(m: Module, blocks: int, state: Fields) -> Array:
    """float32 [blocks], as bitsandbytes' dequantize_4bit takes nested ones apart."""
    if "weight.nested_absmax" not in m.parts:
        m.tensor("weight.absmax", "F32")
        return m.scales("weight.absmax", (blocks,))[0]
    every, offset = state.whole("nested_blocksize"), state.values.get("nested_offset")
    if every is None or not 0 < every < 1 << 24:
        raise state.bad("nested_blocksize", "a whole number from 1")
    if not isinstance(offset, int | float) or not isfinite(offset):
        raise state.bad("nested_offset", "a number")
    m.tensor("weight.nested_absmax", "F32")
    code = m.array("weight.absmax", ("U8",), (blocks,))
    outer, _ = m.scales("weight.nested_absmax", (-(-blocks // every),))
    levels, kind = m.scales("weight.nested_quant_map", (256,))
    if kind != "F32":
        raise m.bad("weight.nested_quant_map", f"is {kind}; it must be F32")
    with np.errstate(over="ignore", invalid="ignore"):
        found: Array = levels[code] * outer[np.arange(blocks) // every] + np.float32(offset)
    if not np.isfinite(found).all():
        raise m.bad("weight.nested_absmax", "makes scales that are not finite numbers")
    return found
