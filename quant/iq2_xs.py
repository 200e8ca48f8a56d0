"""IQ2_XS: 256 values at 2.31 bits.

C struct block_iq2_xs, 74 bytes: half d; uint16 qs[32]; uint8 scales[8]. Each 16-bit word is 9 bits of a row of 8 from a
grid of 512 and a 7-bit sign pattern; scales hold 4 bits per 16 values. Decoded by gguf-py.
"""

from __future__ import annotations

from .borrowed import borrowed

FORMAT = borrowed("IQ2_XS", 256, 74, activations="Q8_K")
