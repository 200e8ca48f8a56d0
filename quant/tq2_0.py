"""TQ2_0: 256 ternary values at 2.06 bits.

C struct block_tq2_0, 66 bytes: uint8 qs[64]; half d. Ternary values of 2 bits, 0 to 2 standing for -1 to 1, times d.
Decoded by gguf-py.
"""

from __future__ import annotations

from .borrowed import borrowed

FORMAT = borrowed("TQ2_0", 256, 66, activations="Q8_K")
