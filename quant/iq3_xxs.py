"""IQ3_XXS: 256 values at 3.06 bits.

C struct block_iq3_xxs, 98 bytes: half d; uint8 qs[96]. The first 64 bytes of qs pick rows of 4 from a grid of 256; the
last 32 are, per 32 values, four 7-bit sign patterns and a 4-bit scale. Decoded by gguf-py.
"""

from __future__ import annotations

from .borrowed import borrowed

FORMAT = borrowed("IQ3_XXS", 256, 98, activations="Q8_K")
