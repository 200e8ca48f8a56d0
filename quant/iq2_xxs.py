"""IQ2_XXS: 256 values at 2.06 bits.

C struct block_iq2_xxs, 66 bytes: half d; uint16 qs[32]. Each 32 values are four bytes that pick rows of 8 from a grid
of 256, four 7-bit sign patterns and a 4-bit scale. Decoded by gguf-py.
"""

from __future__ import annotations

from .borrowed import borrowed

FORMAT = borrowed("IQ2_XXS", 256, 66, activations="Q8_K")
