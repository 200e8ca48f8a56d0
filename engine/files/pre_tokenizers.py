"""How a text is cut before a byte-level BPE merges: a row for each pre-tokenizer, under ggml's names of it.

Two files say which it is: a GGUF by name (tokenizer.ggml.pre; llama-vocab.cpp says what each stands for), a
tokenizer.json by what it does. A regex of a file is never run, only compared with these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Step = dict[str, Any]


def split(pattern: str) -> tuple[Step, ...]:
    """Cut by a pattern, then spelled in GPT-2's byte alphabet."""
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return cut, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


BYTE_LEVEL: Step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}  # which has GPT-2's pattern
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """names: ggml's, the first is written. steps: as a tokenizer.json has them. nfc: the text is brought to NFC first.
    whole: llama.cpp takes a piece that is a token as it stands, without merging it. bos: llama.cpp puts BOS before a
    prompt where the file does not say.
    """

    names: tuple[str, ...]
    steps: tuple[Step, ...]
    nfc: bool = False
    whole: bool = False
    bos: bool = False


ROWS = (
    # llama.cpp reads "deepseek-r1-qwen" as "qwen2", and Transformers loads the R1 distills with Qwen2Tokenizer
    # (huggingface/transformers#48211).
    PreTokenizer(("qwen2", "deepseek-r1-qwen"), split(QWEN2_PATTERN), nfc=True),
    PreTokenizer(
        ("llama-bpe", "llama3", "llama-v3"),
        split(QWEN2_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|")),
        whole=True,
        bos=True,
    ),
    PreTokenizer(("tekken",), split(TEKKEN_PATTERN), whole=True, bos=True),
    PreTokenizer(("smollm",), ({"type": "Digits", "individual_digits": True}, BYTE_LEVEL)),
    PreTokenizer(("gpt-2",), (BYTE_LEVEL,)),
)
PRE_TOKENIZERS = {name: row for row in ROWS for name in row.names}


def recognised(steps: Sequence[Step]) -> str | None:
    """The name of the pre-tokenizer that does this; trim_offsets moves offsets only."""
    said = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps]
    for step in said:
        if step.get("type") == "ByteLevel":
            step.setdefault("use_regex", True)  # older files do not say
    return next((row.names[0] for row in ROWS if list(row.steps) == said), None)


def taken_whole(name: str) -> bool:
    """Whether llama.cpp takes pieces that are tokens as they stand, under this name."""
    return name in PRE_TOKENIZERS and PRE_TOKENIZERS[name].whole


def pre_tokenizer(row: PreTokenizer) -> Step:
    """As a tokenizer.json has it."""
    steps = [s | {"trim_offsets": False} if s["type"] == "ByteLevel" else s for s in row.steps]
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
