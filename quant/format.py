"""Format: what there is to know about one format of weights, stated once, in the format's own file.

The names of a block's fields are those of ggml's C struct, where ggml has one. Where something lies follows from
`struct`; who needs a scale's place asks for the field, not for a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Format:
    """One format: values in blocks of `block`, each block a `struct`. Floats are blocks of one value.

    decode: uint8 [n, bytes] -> float32 [n, block]. encode: the other way, of finite values; None: it is only read.
    struct has fields, but for floats and for what gguf-py decodes (plain bytes).

    group: how many values share a scale of their own; unless told, the whole block.
    scale: the field that every scale of the block hangs on, and minimum the same of its minima, where it has any.
    six_bits: the field that packs the groups' scales and minima as Q4_K does (q4_k.unpack_scales).
    scales: the field that packs scales of six bits without minima, and what unpacks and packs it: [n, bytes] <->
    [n, groups].

    codes: the fields that hold nothing but codes. levels: how many values a code can stand for, spaced evenly or nearly
    so; 0: not even. offset: the code that stands for 0, or for the minimum.
    nibbles: the field whose bytes are two codes each (or their low bits), and how many values a run of them holds: the
    low nibbles are its first half, the high ones its second; of 2, they are neighbours. high: the field of the codes'
    upper bits.

    activations: the format that ggml gives the activations of a product with it (its `vec_dot_type`), and
    activations_int16 that of `--precision int16` (q16.py). F32: as they are.
    """

    name: str
    block: int
    struct: np.dtype[Any]
    decode: Callable[[Bytes], Values]
    encode: Callable[[Values], Bytes] | None = None
    group: int = 0
    scale: str | None = None
    minimum: str | None = None
    six_bits: str | None = None
    scales: tuple[str, Callable[[Bytes], Bytes], Callable[[Bytes], Bytes]] | None = None
    codes: tuple[str, ...] = ()
    levels: int = 0
    offset: int = 0
    nibbles: tuple[str, int] | None = None
    high: str | None = None
    activations: str = "F32"
    activations_int16: str = "F32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", self.group or self.block)

    @property
    def bytes(self) -> int:
        """Of one block."""
        return self.struct.itemsize

    @property
    def constants(self) -> bool:
        """Whether code 0 stands for something: a group's minimum, or minus the offset times its scale."""
        return self.minimum is not None or self.offset != 0
