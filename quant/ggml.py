"""ggml's tensor types: number in a file, name, and size of a block.

Numbers are those of `enum ggml_type` (ggml.h); 4, 5, 31 to 33 and 36 to 38 were once used and are withdrawn.
"""

from __future__ import annotations

from .tensor import format_of

NAMES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
NUMBERS = {name: number for number, name in NAMES.items()}
# Values and bytes of a block of the types that no weights come in, so that no file here decodes them.
UNDECODED = {"I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8), "F64": (1, 8), "Q1_0": (128, 18)}


def size_of(name: str) -> tuple[int, int]:
    """(values, bytes) of a block of ggml's type of that name."""
    if name in UNDECODED:
        return UNDECODED[name]
    f = format_of(name)
    return f.block, f.bytes
