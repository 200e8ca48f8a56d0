"""What every maker starts from: seeded weights, texts and prompts. NumPy only, for it runs in each maker's own Python.

A tensor's values depend on its name, its shape and a seed alone, so that models share bytes and their archive stays
small. Most values are few-bit multiples of a step: exact in float32, bfloat16 and float16, and cheap to compress.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 10  # new tokens a prompt
GAP = 1e-2  # the smallest distance of the two largest logits that counts as no tie in float32
RUNS = 3  # prompts a model

# How large a matrix's outputs are for inputs of size one: scores and gates far from flat, so that a mistake shows.
GAINS = {
    "q_proj": 1.4, "k_proj": 1.4, "v_proj": 1.5, "o_proj": 2.0, "gate_proj": 1.5, "up_proj": 1.5, "down_proj": 3.0,
    "lm_head": 3.0,
}  # fmt: skip


def weights(name: str, shape: Sequence[int], kind: str = "coarse", seed: int = 0) -> np.ndarray:
    """Values for a tensor by its Hugging Face name, float32.

    kind: "coarse" (25 values, exact in 16 bits), "fine" (all bits of a float32), "sparse" (fine, five of six are
    zero: what compresses after quantisation too).
    """
    rng = np.random.RandomState(zlib.crc32(f"{name} {tuple(shape)} {kind} {seed}".encode()))
    x = rng.standard_normal(tuple(shape))
    role = name.split(".")[-2]
    if name.endswith("bias"):
        mean, std = 0.0, 0.5
    elif "norm" in role:
        mean, std = 1.0, 0.25
    elif role == "embed_tokens":
        mean, std = 0.0, 0.375
    else:
        mean, std = 0.0, GAINS[role] / shape[-1] ** 0.5
    if kind == "coarse":
        step = 2.0 ** np.round(np.log2(std / 3))
        return (mean + step * np.clip(np.round(x * 3), -12, 12)).astype(np.float32)
    if kind == "sparse" and len(shape) > 1:
        x *= 2.5 * (rng.random_sample(tuple(shape)) < 1 / 6)
    return (mean + std * x).astype(np.float32)


SENTENCES = (
    "The engine runs the model and shows every stage of the forward pass.",
    "If the tokens are the same, then the answers are the same as the reference has them.",
    "def forward(tokens, weights):\n    for layer in weights.layers:\n        x = layer(x)\n    return x\n",
    "Es war einmal ein kleiner Müller, der hatte eine schöne Tochter.",
    "It's what they'd said: there isn't any other way, and we've tried them all.",
    "机器学习模型的推理引擎。模型的权重。",
    "the then there these those that this they them their with will what when where which while",
    "    return [value for value in values if value > 0]\n\n\n",
)

TEXTS = (
    "Hello world",
    " leading and trailing ",
    "I'm sure they'll say IT'S fine, we'Ve",
    "x = [1, 22, 333, 4444]; y=3.14e-10",
    "tabs\tand\n\nnewlines \n  \r\n\r\n end",
    "多语言 模型, 日本語のテキスト",
    "für Müllers schöne Café-Terrasse",
    "naïve café",
    "🚀🌫️ emoji 👩🏽‍🚀",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|endoftext|>b",
    "<tool_call>{}</tool_call> <think>hm</think>",
    "the theory of the other weather",
    "\u00a0\u3000nbsp\u200b",
    "ABCdefGHI_snake_case CamelCase",
)
NFD = "nai\u0308ve cafe\u0301"  # Transformers brings it to NFC first; llama.cpp has no normaliser

PROMPTS = (
    "The engine runs",
    "What is 2+2?",
    "def forward(tokens):\n",
    "Es war einmal",
    "模型的权重",
    "Once upon a time, there were three small models.",
    "1, 2, 3, 4,",
    "the same",
    "A B C D",
    "It isn't what they'd said.",
    "for x in values:\n    ",
    "\n\n",
    "Q",
    "which while",
    "When the stages are shown, every tensor is there.",
    "zzz",
    "return x",
    "schöne Tochter",
    "{}[]()",
    "why?",
    "layers layers layers",
    "0",
    "and then the next one",
    "!",
    "reference",
    "   spaces",
    "weights.layers[0]",
    "Hello",
    "yes or no",
    "another way",
)

# What ends an answer for llama.cpp wherever it is in a vocabulary, for Transformers only where a configuration says so.
ENDS = ("<|im_end|>", "<|endoftext|>", "<｜end▁of▁sentence｜>")

CHAT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What's a model?"})

TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

# One prompt's continuation: its ids, and how sure each was.
Continue = Callable[[list[int]], tuple[list[int], list[float]]]


def runs(encode: Callable[[str], list[int]], go_on: Continue, ends: Iterable[int]) -> list[dict[str, Any]]:
    """The first RUNS prompts whose continuation is sure and not one id over and over; shorter ones if these are few.

    go_on: ids of a prompt -> ids, and the distance of the two largest logits at each; below GAP is a tie, which ends
    what is sure. ends: ids that some tool ends at (ENDS); whoever goes on behind one is followed up to there.
    Raises ValueError if fewer than STEPS ids in all are sure.
    """
    whole, short = [], []
    for text in PROMPTS:
        prompt = encode(text)
        ids, gaps = go_on(prompt)
        doubts = (i for i, gap in enumerate(gaps) if gap < GAP or (ids[i] in ends and i + 1 < len(ids)))
        sure = next(doubts, len(ids))
        run = {"text": text, "prompt_ids": prompt, "ids": ids[:sure], "gap": round(min([*gaps[:sure], 99.0]), 4)}
        if sure == len(ids):
            run["ended"] = len(ids) < STEPS
        if sure == len(ids) and len(set(ids)) > min(4, len(ids) - 1):
            whole.append(run)
        elif len(set(ids[:sure])) > 1:
            short.append(run)
        if len(whole) == RUNS:
            break
    short.sort(key=lambda run: -len(run["ids"]))
    kept = whole
    while short and (len(kept) < RUNS or sum(len(run["ids"]) for run in kept) < STEPS):
        kept.append(short.pop(0))
    if sum(len(run["ids"]) for run in kept) < STEPS:
        raise ValueError(f"too few sure steps: {kept}")
    return kept


def record(folder: Path, name: str, **facts: Any) -> None:
    """Writes what is expected of a model, for make.py to collect."""
    (folder / f"{name}.expected.json").write_text(json.dumps({"name": name, **facts}, ensure_ascii=False))
    shown = facts.get("refused") or [len(r["ids"]) for r in facts.get("runs", [])]
    print(f"{name}: {shown}", flush=True)
