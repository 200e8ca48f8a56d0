"""NVFP4: 64 values at 4.5 bits.

C struct block_nvfp4, 36 bytes: uint8 d[4]; uint8 qs[32]. Four groups of 16 4-bit floats (E2M1), each with a scale as
unsigned E4M3. Decoded by gguf-py.
"""

from __future__ import annotations

from .borrowed import borrowed

FORMAT = borrowed("NVFP4", 64, 36, activations="Q8_0")
