"""Recipes: what an engine may compute with, as far as it shows in its numbers.

A recipe fixes the roundings that are part of the engine's arithmetic (operands, results); what it leaves open, the
order of summation, is bounded in products.py and operations.py. docs/budgets.md derives every bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ....quant.tensor import format_of
from ..span import BFLOAT16, FLOAT16, FLOAT32, Float
from .facts.fused import PRODUCT
from .scaled import KINDS


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a stage is computed, a field for each fact (facts/); of a whole engine, each fact where it shows.

    result: the stage is rounded to it. weights: matrices, gains and biases are rounded to it first; None: as the file
    has them.
    quantiser: None, or which of ggml's routines makes 8-bit activations: "reference" (1/d, ties away from zero), "x86"
    (127/amax, ties to even), "arm" (1/d, ties to even); they part at ties only. "int16": this package's own 16 bits.
    attention: operands of both attention products are rounded to it (ggml: the type of the KV cache).
    "sumless": the reference without Q8_1: Q8_0 for all formats of 32 values, as ports of ggml have it.
    "cuda rows", "cuda tiles": ggml's blocks on CUDA (cuda_blocks.py).
    "int8 token" ...: numbers of 8 bits with a scale, see scaled.py. requantised: the same of the matrices.
    sums: in what products are summed. cache: how keys and values are held, beside `attention` (scaled.py).
    angle: how RoPE's angle comes about (rope.py). fused: stages that go into this one as computed, not as stored.
    norm, turn, scale, mix, sigmoid: see facts/.
    """

    name: str = field(default="", compare=False)
    result: Float = FLOAT32
    weights: Float | None = None
    quantiser: str | None = None
    requantised: str | None = None
    sums: Float = FLOAT32
    attention: Float = FLOAT32
    cache: str | None = None
    angle: str = "product"
    fused: frozenset[str] = frozenset()
    norm: str = "twice"
    turn: str = "rounded"
    scale: str = "after"
    mix: str = "stored"
    sigmoid: str = "float32"

    def operand(self, weight_format: str) -> str:
        """What the activations of a product become: a format, "F32" for as they are."""
        if self.quantiser is None or self.quantiser in KINDS:
            return self.quantiser or "F32"
        f = format_of(weight_format)
        if self.quantiser in ("cuda rows", "cuda tiles"):
            known = f.activations.startswith("Q8") and (f.minimum is None or f.group == 32)  # not Q2_K, of groups of 16
            return f"{self.quantiser} {weight_format}" if known else f.activations
        if self.quantiser == "sumless" and f.activations == "Q8_1":
            return "Q8_0"
        return f.activations_int16 if self.quantiser == "int16" else f.activations

    @property
    def slack(self) -> float:
        """An engine that keeps float32 may have held an operand wider than it stored it (fused kernels, float64): one
        rounding more or less of each. A 16-bit recipe says where it rounds."""
        return FLOAT32.u if self.result is FLOAT32 else 0.0


FLOAT32_RECIPE = Recipe("float32")

UNTOLD = ""  # the name of an arithmetic of which a dump shows nothing
SO_FAR = ", as far as this dump shows"  # ends the name of one that has no mark of its own there


def sixteen(name: str, f: Float, **facts: Any) -> Recipe:
    """An engine whose weights and results are all of one 16-bit format."""
    return Recipe(name, result=f, weights=f, attention=f, **facts)


FUSED: dict[str, Any] = {"fused": frozenset({PRODUCT})}

# Engines that have a name.
RECIPES = (
    FLOAT32_RECIPE,
    Recipe("ggml int8, 16-bit KV", quantiser="x86", attention=FLOAT16),
    Recipe("ggml int8, 32-bit KV", quantiser="reference"),
    Recipe("ggml int8, 32-bit KV (x86)", quantiser="x86"),
    Recipe("ggml int8, 16-bit KV (reference)", quantiser="reference", attention=FLOAT16),
    Recipe("ggml int8, 16-bit KV (arm)", quantiser="arm", attention=FLOAT16),
    Recipe("float32, 16-bit KV", attention=FLOAT16),
    Recipe("ggml int8, 16-bit KV, flash attention", quantiser="x86", attention=FLOAT16, mix="ggml"),
    Recipe("ggml int8, 32-bit KV, flash attention", quantiser="x86", mix="ggml"),
    Recipe("int16", quantiser="int16"),
    sixteen("HF float16", FLOAT16),
    sixteen("HF bfloat16", BFLOAT16),
    sixteen("HF float16, bias inside the product", FLOAT16, **FUSED),
    sixteen("HF bfloat16, bias inside the product", BFLOAT16, **FUSED),
    sixteen("HF float16, sdpa", FLOAT16, mix="fast flash", **FUSED),
    sixteen("HF bfloat16, sdpa", BFLOAT16, mix="fast flash", **FUSED),
)
