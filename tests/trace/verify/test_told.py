"""What a dump cannot tell of an engine's arithmetic is not said: sentences rest on what the values show."""

from __future__ import annotations

import numpy as np
import pytest

from qwenref.cost import costs
from qwenref.engine.weights import Weights
from qwenref.errors import BadInput
from qwenref.trace.dump import Dump
from qwenref.trace.verify.finding import Verification
from qwenref.trace.verify.report.paragraph import paragraph
from qwenref.trace.verify.report.plain import as_json
from qwenref.trace.verify.report.text import engine_words, statement
from qwenref.trace.verify.verify import verify

from ...engines import changed, dump_of
from ...thinned import thinned
from ...tiny import tiny_weights

TOKENS = np.random.default_rng(2).integers(0, 259, 9).tolist()
ENGINES = ["HF float32", "HF bfloat16", "HF float16", "ggml, 16-bit KV", "ggml, 32-bit KV"]


def weights(formats: str) -> Weights:
    return tiny_weights(layers=2, formats=formats)


def judged(engine: str, w: Weights, *stages: str) -> Verification:
    dump: Dump = dump_of(w, engine, TOKENS)
    return verify(changed(dump, lambda e: e if not stages or e.stage.name in stages else None), w)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_copied_row_is_the_same_in_any_engine(engine: str) -> None:
    """Of a file in bfloat16, whose values lie far within float16's range."""
    w = weights("BF16")
    v = judged(engine, w, "embedding")
    (f,) = v.findings
    assert v.status == 0
    assert engine_words(v) == ""
    assert statement(f) == ["layer 0 embedding: exact (left 0, rounding allows 0)"]
    told = as_json(v)
    assert (told["recipe"], told["recipe_words"], told["stages"][0]["recipe"]) == (None, None, None)
    said = " ".join(paragraph(v))
    assert "What the engine computes with cannot be told from this dump." in said
    assert "dump a stage that computes" in said
    assert "float" not in said
    with pytest.raises(BadInput, match="the same in any"):
        costs(v, w)


@pytest.mark.parametrize("engine", ["HF bfloat16", "HF float16"])
def test_a_row_that_was_rounded_tells_its_format(engine: str) -> None:
    """And no more than that."""
    words = engine_words(judged(engine, weights("Q8_0"), "embedding"))
    assert words == f"{engine.removeprefix('HF ')}, as far as this dump shows"


@pytest.mark.parametrize("stages", [("embedding",), ("qkv_matmul", "qkv_bias"), ("final_norm", "lm_head")])
def test_what_is_float32_is_not_so_throughout_if_attention_was_not_seen(stages: tuple[str, ...]) -> None:
    """An engine with a 16-bit cache leaves the same there. (Rows of an F32 file are no 16-bit numbers.)"""
    for engine in ("HF float32", "ggml, 16-bit KV"):
        assert engine_words(judged(engine, weights("F32"), *stages)) == "float32, as far as this dump shows", engine


@pytest.mark.parametrize(
    "formats", ["BF16", "Q8_0", *(pytest.param(f, marks=pytest.mark.matrix) for f in ("F32", "F16"))]
)
def test_a_whole_dump_tells_its_engine(formats: str) -> None:
    for engine, words in (("HF float32", "float32 throughout"), ("HF bfloat16", "Hugging Face in bfloat16: weights")):
        assert engine_words(judged(engine, weights(formats))).startswith(words)


MISSING = [
    (engine, formats, stages)
    for engine in ("HF bfloat16", "HF float16")
    for formats in ("F32", "BF16", "F16", "Q8_0")
    for stages in (("ffn_gate", "ffn_up", "ffn_silu"), ("qkv_bias",), ("attention",), ("embedding", "attn_norm"))
]


@pytest.mark.parametrize(("engine", "formats", "stages"), thinned(MISSING, lambda case: "-".join(map(str, case)), 5))
def test_values_tell_their_format_where_much_is_missing(engine: str, formats: str, stages: tuple[str, ...]) -> None:
    """Half a layer, or a whole one, between a stage and what it is computed from: a span of float32 that wide may hold
    values that were rounded to 16 bits, but does not explain why every one of them was."""
    words = engine_words(judged(engine, weights(formats), *stages))
    assert engine.removeprefix("HF ") in words
    assert not words.startswith(("float32", "ggml"))


def test_ggmls_operands_of_16_bit_weights_are_no_8_bits() -> None:
    """llama.cpp takes halves where the weights are halves."""
    from qwenref.trace.verify.recipes.facts.operands import FACT
    from qwenref.trace.verify.span import FLOAT32

    said = {f: FACT.words(FACT.amounts("x86", [f]), FLOAT32) for f in ("F16", "BF16", "Q8_0", "F32")}
    assert said == {
        "F16": "activations in float16, as ggml",
        "BF16": "activations in bfloat16, as ggml",
        "Q8_0": "activations in 8 bits, as ggml",
        "F32": "",
    }
    assert FACT.amounts("x86", ["F16", "Q4_K"]) == "x86"


@pytest.mark.parametrize("engine", ["HF bfloat16", "HF float16"])
def test_residuals_alone_tell_the_format_that_they_were_rounded_to(engine: str) -> None:
    """Through a whole layer float32's span holds them too; what is near in their own format is tried before it."""
    v = judged(engine, tiny_weights(layers=3, formats="F16"), "embedding", "post_ffn_residual")
    assert v.status == 0
    assert engine.removeprefix("HF ") in engine_words(v)
