"""TQ1_0: 256 ternary values at 1.69 bits.

C struct block_tq1_0, 54 bytes: uint8 qs[48]; uint8 qh[4]; half d. Ternary values, five to a byte as base-3 digits (four
in qh), times d. Decoded by gguf-py.
"""

from __future__ import annotations

from .borrowed import borrowed

FORMAT = borrowed("TQ1_0", 256, 54, activations="Q8_K")
