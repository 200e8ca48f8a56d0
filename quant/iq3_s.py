"""IQ3_S: 256 values at 3.44 bits.

C struct block_iq3_s, 110 bytes: half d; uint8 qs[64]; uint8 qh[8]; uint8 signs[32]; uint8 scales[4]. qs picks rows of 4
from a grid of 512 with one bit more from qh; one sign bit a value; scales hold 4 bits per 32 values. Decoded by
gguf-py.
"""

from __future__ import annotations

from .borrowed import borrowed

FORMAT = borrowed("IQ3_S", 256, 110, activations="Q8_K")
