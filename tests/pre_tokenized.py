"""Small tokenizers of the family's kinds, trained here by the tokenizers library, with the pre-tokenizers of published
tokenizer.json files; and texts that tell these apart."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import Tokenizer, models, trainers

# As they stand in the files of meta-llama/Llama-3.2-1B, mistralai/Mistral-Nemo-Instruct-2407,
# HuggingFaceTB/SmolLM2-135M, openai-community/gpt2 and Qwen/Qwen3-0.6B.
LLAMA = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # noqa: E501
TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # noqa: E501
QWEN = LLAMA.replace("{1,3}", "")


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def cut(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return sequence(split, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-bpe": {"pre_tokenizer": cut(LLAMA), "ignore_merges": True},
    "tekken": {"pre_tokenizer": cut(TEKKEN), "ignore_merges": True},
    "smollm": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, BYTES)},
    "gpt-2": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}},
    "qwen2": {"pre_tokenizer": cut(QWEN), "normalizer": {"type": "NFC"}},
}
TEXTS = (
    "What is 2+2? It's 12345678 and 1,234.5; I'LL say we'Ve, THEY'RE don't.",
    "def add(a, b):\n    return a + b\n\n\tif x:\r\n\t\tpass   \n   # done\n",
    "CamelCase HTTPServer iPhone ÉCOLE école straße ǅ ﬁ",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u4e00\u4e8c 123\u5e74 \u0645\u0631\u062d\u0628\u0627 \u0661\u0662\u0663",
    "a/b//c\n/d https://x.org/?q=1&r=22#333 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301",
    "\u0915\u094d\u0937",
    "  leading, trailing  \u00a0\u3000 \n\n \n x  ",
    "<|last|>not <|first|> quite<|last|> ",
    "",
)
SPECIAL = ("<|first|>", "<|last|>")


@cache
def published(name: str) -> str:
    """A tokenizer.json with this pre-tokenizer, trained on the texts and on words that Unicode has in several cases."""
    said = PUBLISHED[name]
    settings = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    start = Tokenizer.from_str(json.dumps(settings | {"pre_tokenizer": said["pre_tokenizer"]}))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = start.pre_tokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)
    bpe.train_from_iterator([text for text in TEXTS for _ in range(3)], trainer)
    bpe.add_special_tokens(list(SPECIAL))
    file = json.loads(bpe.to_str())
    file["normalizer"] = said.get("normalizer")
    file["pre_tokenizer"] = said["pre_tokenizer"]
    file["model"]["ignore_merges"] = said.get("ignore_merges", False)
    file["decoder"] = BYTES
    return json.dumps(file)
