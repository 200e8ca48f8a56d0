"""IQ2_S: 256 values at 2.56 bits.

C struct block_iq2_s, 82 bytes: half d; uint8 qs[64]; uint8 qh[8]; uint8 scales[8]. The first 32 bytes of qs pick rows
of 8 from a grid of 1,024 with two bits more from qh; the last 32 are sign bits; scales hold 4 bits per 16 values.
Decoded by gguf-py.
"""

from __future__ import annotations

from .borrowed import borrowed

FORMAT = borrowed("IQ2_S", 256, 82, activations="Q8_K")
