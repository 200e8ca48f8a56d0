"""Recipes: what an engine may compute with, as far as it shows in its numbers.

A recipe fixes the roundings that are part of the engine's arithmetic (operands, results); what it leaves open, the
order of summation, is bounded in products.py and operations.py. docs/budgets.md derives every bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..span import BFLOAT16, FLOAT16, FLOAT32, Float

# ggml's `vec_dot_type` (ggml-cpu.c, type_traits_cpu): what the activations become before they meet weights of a format.
OPERANDS = {
    "F16": "F16", "BF16": "BF16",
    "Q4_0": "Q8_0", "Q5_0": "Q8_0", "Q8_0": "Q8_0", "IQ4_NL": "Q8_0", "MXFP4": "Q8_0",
    "NVFP4": "Q8_0",
    "Q4_1": "Q8_1", "Q5_1": "Q8_1",
    "Q2_K": "Q8_K", "Q3_K": "Q8_K", "Q4_K": "Q8_K", "Q5_K": "Q8_K", "Q6_K": "Q8_K",
    "IQ1_S": "Q8_K", "IQ1_M": "Q8_K", "IQ2_XXS": "Q8_K", "IQ2_XS": "Q8_K", "IQ2_S": "Q8_K",
    "IQ3_XXS": "Q8_K", "IQ3_S": "Q8_K", "IQ4_XS": "Q8_K", "TQ1_0": "Q8_K", "TQ2_0": "Q8_K",
}  # fmt: skip
# The same of this package's int16 (quant/q16.py): blocks of 32 or 256, where the CPU backend has integer products.
OPERANDS_INT16 = {
    "Q4_0": "Q16_0", "Q5_0": "Q16_0", "Q8_0": "Q16_0",
    "Q4_K": "Q16_K", "Q5_K": "Q16_K", "Q6_K": "Q16_K",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """One engine's arithmetic.

    result: every stage is rounded to it. weights: matrices, gains and biases are rounded to it first; None: as the
    file has them.
    quantiser: None, or which of ggml's routines makes 8-bit activations: "reference" (1/d, ties away from zero), "x86"
    (127/amax, ties to even), "arm" (1/d, ties to even); they part at ties only. "int16": OPERANDS_INT16.
    attention: operands of both attention products are rounded to it (ggml: the type of the KV cache).
    angle: how RoPE's angle comes about (rope.py).
    """

    name: str
    result: Float = FLOAT32
    weights: Float | None = None
    quantiser: str | None = None
    attention: Float = FLOAT32
    angle: str = "product"

    def operand(self, weight_format: str) -> str:
        """What the activations of a product become: "F32" for as they are, or a format of OPERANDS."""
        if self.quantiser is None:
            return "F32"
        return (OPERANDS_INT16 if self.quantiser == "int16" else OPERANDS).get(weight_format, "F32")

    @property
    def slack(self) -> float:
        """An engine that keeps float32 may have held an operand wider than it stored it (fused kernels, float64): one
        rounding more or less of each. A 16-bit recipe says where it rounds."""
        return FLOAT32.u if self.result is FLOAT32 else 0.0


FLOAT32_RECIPE = Recipe("float32")
RECIPES = (
    FLOAT32_RECIPE,
    Recipe("ggml int8, 16-bit KV", quantiser="x86", attention=FLOAT16),
    Recipe("ggml int8, 32-bit KV", quantiser="reference"),
    Recipe("ggml int8, 32-bit KV (x86)", quantiser="x86"),
    Recipe("ggml int8, 16-bit KV (reference)", quantiser="reference", attention=FLOAT16),
    Recipe("ggml int8, 16-bit KV (arm)", quantiser="arm", attention=FLOAT16),
    Recipe("float32, 16-bit KV", attention=FLOAT16),
    Recipe("int16", quantiser="int16"),
    Recipe("HF float16", result=FLOAT16, weights=FLOAT16, attention=FLOAT16),
    Recipe("HF bfloat16", result=BFLOAT16, weights=BFLOAT16, attention=BFLOAT16),
)
