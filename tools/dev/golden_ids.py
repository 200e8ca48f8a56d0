"""Makes tests/golden/hf_greedy_ids.json: what Transformers answers, in float32, greedily, and how sure each step was.

    python -m qwenref.tools.dev.golden_ids MODEL.gguf tests/golden/hf_greedy_ids.json

Every prompt is continued by 64 tokens, past the end of the answer too. Each step keeps the two largest logits' ids and
their distance, in float32 as Transformers has it, and in float64 for the same prefix: the two distances differ by what
float32 rounding does to this model, so their largest difference tells which steps are ties and which are not.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dump_hf import capture, cast_weights, load

STEPS = 64
TEXTS = {
    "two_plus_two": "What is 2+2?",
    "the": "The",
    "newline": "\n",
    "digits": "3.14159 26535 89793 1,000,000 0x1F4A9 ",
    "question": "Which planet of the solar system has the most moons, and why is that so hard to say?",
    "story": "The lighthouse keeper had not spoken to anybody for eleven days when the radio",
    "python": "def fibonacci(n):",
    "python_class": (
        'class Stack:\n    """Last in, first out."""\n\n'
        "    def __init__(self):\n        self.items = []\n\n    def push("
    ),
    "c": "#include <stdio.h>\n\n/* Reverses a string in place. */\nvoid reverse(char *s) {\n",
    "rust": "fn main() {\n    let numbers = vec![3, 1, 4, 1, 5];\n    let total: i32 = numbers",
    "sql": "-- The five customers who spent most in 2023\nSELECT c.name, SUM(o.amount) AS spent\nFROM customers c\n",
    "html": "<!DOCTYPE html>\n<html>\n<head>\n  <title>Opening hours</title>\n",
    "json": '{"name": "Ada", "languages": ["English", "French"], "born": 1815, "machines": [',
    "shell": "#!/bin/sh\n# Remove log files older than 30 days\nfind /var/log -name '*.log' ",
    "fill_in": "<|fim_prefix|>def area(radius):\n    return <|fim_suffix|>\n\nprint(area(2))\n<|fim_middle|>",
    "chinese": "请用一句话解释什么是递归函数，并举一个简单的例子。",
    "german": "Der Zug nach Köln hatte zwanzig Minuten Verspätung, und auf dem Bahnsteig",
    "russian": "Однажды зимним вечером старый мастер открыл окно своей мастерской и",
    "arabic": "كتب المهندس برنامجا صغيرا يحسب عدد الكلمات في الملف ثم",
    "japanese": "次の文章を英語に翻訳してください。「明日は雨が降るので、傘を持って行きます。」",
    "korean": "서울에서 부산까지 기차로 가는 방법은",
    "french": "Voici la recette d'une soupe à l'oignon pour quatre personnes :",
    "hindi": "गणित में अभाज्य संख्या वह संख्या होती है जो",
    "emoji": "Rate my day: 🌧️ ☕ 🐈‍⬛ 👩🏽‍🚀 🎉 ->",
    "spaces": "a\t\tb    c\n\n\n    d        e\r\n\r\n  ",
}
CHATS = {
    "chat_two_plus_two": [{"role": "user", "content": "What is 2+2?"}],
    "chat_system": [
        {"role": "system", "content": "Answer like a ship's captain, in one sentence."},
        {"role": "user", "content": "How do I sort a list in Python without changing it?"},
    ],
    "chat_turns": [
        {"role": "user", "content": "Name a prime number above 20."},
        {"role": "assistant", "content": "23"},
        {"role": "user", "content": "And the next one?"},
    ],
    "chat_chinese": [{"role": "user", "content": "写一个 Python 函数，判断一个字符串是不是回文。"}],
    "chat_code": [
        {"role": "user", "content": "Why does this loop never end?\n\nlet i = 0;\nwhile (i < 10) { i - 1; }"}
    ],
}


def long_texts() -> dict[str, str]:
    """Three prompts of more than 1,000 tokens, written by rule: a log, a story told in turns, a source file."""
    parts = ("valve", "gear", "spring", "hinge", "filter", "switch", "sensor")
    log = "\n".join(
        f"{i:03d} 2024-{i % 12 + 1:02d}-{i % 28 + 1:02d} shelf {chr(65 + i % 5)}{i * 7 % 31}: "
        f"{i * 13 % 40 + 1} x {parts[i % 7]}, {'ok' if i % 9 else 'missing'}"
        for i in range(40)
    )
    people = ("the baker", "her brother", "the teacher", "an old sailor", "the youngest child", "the postman")
    doings = ("lost a key", "found a coin in the snow", "told a lie about the bridge", "fixed the clock on the tower")
    whys = (
        "because the river had risen",
        "although nobody had asked",
        "before the bells rang",
        "and said nothing of it",
    )
    story = " ".join(
        f"On day {i + 1}, {people[i * 5 % 6]} {doings[i * 3 % 4]} {whys[(i * 7 + i // 4) % 4]}, "
        f"and {people[i % 6]} saw it."
        for i in range(40)
    )
    code = "\n\n".join(
        f'def step_{i}(state, amount={i}):\n    """Move {parts[i % 7]} number {i} forward."""\n'
        f"    if state['{parts[i % 7]}'] > {i * 3 % 11}:\n"
        f"        return state | {{'{parts[(i + 1) % 7]}': amount - {i % 4}}}\n"
        "    return state"
        for i in range(18)
    )
    return {
        "long_log": f"Stock list of the workshop.\n{log}\nIn short, what is missing from the shelves is",
        "long_story": f"{story} In the end, everybody in the village knew that",
        "long_code": f"{code}\n\ndef run_all(state):\n",
    }


def greedy(model: Any, prompt_ids: list[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ids [STEPS, 2] of the two largest logits of each step, the larger first, and the logits themselves."""
    import torch

    step, cache, ids, logits = torch.tensor([prompt_ids]), None, [], []
    with torch.no_grad():
        for _ in range(STEPS):
            output = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            top = output.logits[0, -1].topk(2)
            ids.append(top.indices.numpy())
            logits.append(top.values.numpy())
            step = top.indices[None, :1]
    return np.array(ids), np.array(logits)


def logits64(model: Any, prompt_ids: list[int], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The float64 model's logits [STEPS, 2] of the same ids after the same prefixes."""
    import torch

    prefix = torch.tensor([[*prompt_ids, *ids[:-1, 0].tolist()]])
    with capture(model, lambda *_: None):  # for its float64 norms, angles and soft-max
        logits = model(prefix, use_cache=False, logits_to_keep=STEPS).logits[0].numpy()
    return np.take_along_axis(logits, ids, axis=1)


def main() -> None:
    import torch
    import transformers

    source, target = (Path(word) for word in sys.argv[1:])
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=str(source.absolute()))
    prompts: list[dict[str, Any]] = [
        {"name": name, "text": text, "prompt_ids": tokenizer(text).input_ids}
        for name, text in (TEXTS | long_texts()).items()
    ]
    for name, messages in CHATS.items():
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompts.append({"name": name, "messages": messages, "text": text, "prompt_ids": tokenizer(text).input_ids})

    model = load(source)
    results = []
    for p in prompts:
        results.append(greedy(model, p["prompt_ids"]))
        print(f"{p['name']:20s} {len(p['prompt_ids']):5d} {tokenizer.decode(results[-1][0][:, 0])!r}", file=sys.stderr)
    cast_weights(model, "float64")
    noise = 0.0
    for p, (ids, logits) in zip(prompts, results, strict=True):
        exact = logits64(model, p["prompt_ids"], ids)
        gap, gap64 = (x[:, 0].astype(np.float64) - x[:, 1] for x in (logits, exact))
        noise = max(noise, float(np.abs(gap - gap64).max()))
        p["ids"], p["second"] = ids[:, 0].tolist(), ids[:, 1].tolist()
        p["gap"], p["gap64"] = ([float(f"{g:.4g}") for g in x] for x in (gap, gap64))
        print(f"{p['name']:20s} noise {np.abs(gap - gap64).max():.1e}, closest {gap64.min():.2e}", file=sys.stderr)

    head = {
        "made_by": "python -m qwenref.tools.dev.golden_ids MODEL.gguf tests/golden/hf_greedy_ids.json",
        "engine": f"Hugging Face Transformers {transformers.__version__}, torch {torch.__version__}, eager, CPU",
        "machine": platform.machine(),
        "model": source.name,
        "model_sha256": hashlib.file_digest(source.open("rb"), "sha256").hexdigest(),
        "fields": {
            "ids": "greedy in float32 with a key/value cache, not stopped at any id",
            "second": "the id of the second largest logit of the step",
            "gap": "float32 logit of ids minus that of second",
            "gap64": "the same two logits' distance in float64 after the same prefix; negative: it prefers second",
            "noise": "the largest |gap - gap64| of all steps: what float32 rounding moves; a gap of that size is a tie",
        },
        "noise": noise,
    }
    body = ",\n".join(json.dumps(p, ensure_ascii=False, separators=(",", ":")) for p in prompts)
    target.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "prompts": [\n{body}\n]}}\n')


if __name__ == "__main__":
    main()
