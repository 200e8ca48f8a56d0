"""What a packed weight format declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from .....quant.format import Format
from .....quant.tensor import QTensor
from ..machine.kernel import Kernel

Products: TypeAlias = tuple[Kernel, Kernel, Kernel]  # of one token, of few and of many


class Integer(TypedDict):
    """The products of a form with activations of 8 and of 16 bits."""

    int8: Products
    int16: Products


class Columns(NamedTuple):
    """Rows of a matrix, uint8 [O, bytes], in whole words; and what stands once in front of all row blocks."""

    rows: NDArray[np.uint8]
    front: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Form:
    """How 32 rows of a format lie side by side, and the products that read them.

    A block has a half at half_at (or none, -1), and as many 32-bit words from words_at on as the rest takes. Packed, a
    block of 32 rows is the 32 halves, then 32 rows' first words, second words, and so on, and `extra` words of 0.
    rearrange, where there is one, goes over the packed blocks. f32, int8, int16: products by what the activations are;
    a form without integer ones takes float32's. takes: whether the products give these blocks' values to the bit,
    where not all have it; a matrix with others is decoded.

    columns: of a form whose blocks are not the file's, what is packed in their place, or None where the products do not
    give the values to the bit.
    """

    format: Format
    half_at: int
    words_at: int
    f32: Products
    int8: Products | None = None
    int16: Products | None = None
    rearrange: Kernel | None = None
    extra: int = 0
    takes: Callable[[NDArray[Any]], bool] | None = None
    columns: Callable[[QTensor], Columns | None] | None = None
