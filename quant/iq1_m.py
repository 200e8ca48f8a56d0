"""IQ1_M: 256 values at 1.75 bits.

C struct block_iq1_m, 56 bytes: uint8 qs[32]; uint8 qh[16]; uint8 scales[8]. IQ1_S's rows with a scale per 16 values and
a shift per 8; the half d lies in the upper four bits of the four 16-bit words of scales. Decoded by gguf-py.
"""

from __future__ import annotations

from .borrowed import borrowed

FORMAT = borrowed("IQ1_M", 256, 56, activations="Q8_K")
