"""How the cache holds keys and values, beside a format of 16 or 32 bits of all that goes into attention's products: 8
bits with a scale (scaled.py), or 16 bits."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from .. import ggml_cache
from ..scaled import ROUNDED
from .fact import Fact

WORDS = {
    "e4m3": "keys and values in FP8 (e4m3)",
    "e5m2": "keys and values in FP8 (e5m2)",
    "e4m3 tensor": "keys and values in FP8 (e4m3), one scale each",
    "int8 token": "keys and values in int8, a scale for each head and position",
    "int8 channel": "keys and values in int8, a scale for each channel",
    "uint8 token": "keys and values in uint8, a scale and zero point for each head and position",
    "uint4 token": "keys and values in uint4, a scale and zero point for each head and position",
    "uint4 channel": "keys and values in uint4, a scale and zero point for each channel",
    "int4 token": "keys and values in int4, a scale for each head and position",
    "uint3 token": "keys and values in uint3, a scale and zero point for each head and position",
}
# Of engines that compute in float32 with what they read from the cache.
WIDE = {
    "float16": "keys and values held in float16",
    "bfloat16": "keys and values held in bfloat16",
    "int8 32 halves": "keys and values held in int8, a scale in float16 for each 32 numbers",
}
GGML = tuple(kind + turned for kind in ggml_cache.TYPES for turned in (ggml_cache.TURNED, ""))
SCALED = tuple(kind for kind in WORDS if kind not in ("e4m3", "e5m2"))  # their numbers are exact in 16 bits


def values(stage: Stage, result: Float) -> Sequence[str | None]:
    if stage.kind not in ("scores", "mix"):
        return ()
    return (None, *WORDS, *GGML, *WIDE) if result is FLOAT32 else (None, *WORDS, *(kind + ROUNDED for kind in SCALED))


def words(value: str | None, result: Float) -> str:
    if value is None:
        return ""
    if value in GGML:
        kind = value.removesuffix(ggml_cache.TURNED)
        return f"keys and values held in {kind}" + (" (rotated)" if kind != value else "")
    kind = value.removesuffix(ROUNDED)
    return (WORDS | WIDE)[kind] + (f", rounded to {result.name} as they are read" if kind != value else "")


FACT = Fact("cache", values, words)
