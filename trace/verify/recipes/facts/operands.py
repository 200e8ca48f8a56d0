"""What the activations of a product become before they meet the weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .....quant.tensor import format_of
from ....stages import Stage
from ...span import FLOAT32, Float
from .fact import Fact

GGML = ("x86", "reference", "arm")
CUDA = ("cuda rows", "cuda tiles")
WORDS = {
    "int16": "activations in 16-bit integers",
    **dict.fromkeys(GGML, "activations in 8 bits, as ggml"),
    "sumless": "activations in 8 bits, as ggml but for Q8_1, for which Q8_0 stands",
    "int8 token": "int8 activations, a scale for each token",
    "int8 tensor": "int8 activations, one scale",
    "e4m3 token": "FP8 activations (e4m3), a scale for each token",
    "e4m3 tensor": "FP8 activations (e4m3), one scale",
    "e4m3 block": "FP8 activations (e4m3), a scale for each 128 columns",
    "int8 32": "int8 activations, a scale for each 32 columns",
    "float16": "activations in float16",
    "cuda rows": "activations in 8-bit blocks of 32 with sums, as ggml on CUDA (MMVQ)",
    "cuda tiles": "activations in 8-bit blocks of 32 with sums, as ggml on CUDA (MMQ)",
    "uint8 tensor": "uint8 activations, one scale and zero point",
    "uint8 token": "uint8 activations, a scale and zero point for each token",
    "uint7 tensor": "activations in 7 bits, one scale and zero point (torch.ao, reduced range)",
}
SIXTEEN = ("float16",)  # of engines that keep float32 otherwise

HALVES = {
    "F32": "",
    "F16": "activations in float16, as ggml",
    "BF16": "activations in bfloat16, as ggml",
}


def values(stage: Stage, result: Float) -> Sequence[str | None]:
    if stage.kind != "product":
        return ()
    eight = tuple(kind for kind in WORDS if kind not in (*GGML, *CUDA, "int16", "sumless"))
    if result is FLOAT32:
        return (None, *GGML, "int16", *CUDA, *eight, "sumless")
    return (None, *(kind for kind in eight if kind not in SIXTEEN))


def amounts(value: str | None, formats: Collection[str]) -> str | None:
    """What ggml takes for weights of 16 bits is no 8-bit number."""
    made = {format_of(weight_format).activations for weight_format in formats}
    return min(made) if value in GGML and made and made <= HALVES.keys() else value


FACT = Fact("quantiser", values, lambda value, result: (WORDS | HALVES).get(value, ""), amounts=amounts)
