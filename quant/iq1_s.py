"""IQ1_S: 256 values at 1.56 bits.

C struct block_iq1_s, 50 bytes: half d; uint8 qs[32]; uint16 qh[8]. Each 8 values are one of 2,048 ternary rows, by qs
and three bits of qh; each 32 have a 3-bit scale and the sign of a shift by 1/8 in qh. Decoded by gguf-py.
"""

from __future__ import annotations

from .borrowed import borrowed

FORMAT = borrowed("IQ1_S", 256, 50, activations="Q8_K")
