"""Models that mlx_lm.convert makes of the folders of hf.py, unquantised and quantised.

python by_mlx.py FOLDER
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}

import mlx.core as mx
import mlx_lm
import numpy as np
from ground import CHAT, ENDS, NFD, STEPS, TEXTS, record, runs
from mlx_lm.utils import dequantize_model

MAKER = f"mlx-lm {version('mlx-lm')}"
FIELDS = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "rms_norm_eps",
}  # fmt: skip

# mlx-lm does not read Transformers 5's rope_parameters: these are of 4.
# name: folder, arguments of mlx_lm.convert, what is special
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mlx-bf16": ("t457-bf16-tied", {}, "bfloat16, tied"),
    "mlx-f32": ("t446-f32-fine-untied", {"dtype": "float32"}, "float32 with all bits of the mantissa"),
    "mlx-f16": ("t457-f16-untied", {"dtype": "float16"}, "float16"),
    "mlx-theta": ("t446-theta-1000000", {}, "rope_theta 1000000"),
    "mlx-q4": ("t457-bf16-sharded", {"quantize": True, "q_bits": 4, "q_group_size": 32}, "4 bits"),
    "mlx-q8": ("t457-bf16-sharded", {"quantize": True, "q_bits": 8, "q_group_size": 32}, "8 bits"),
}


def judged(folder: Path) -> dict[str, Any]:
    """What mlx_lm makes of the folder, its weights decoded as mlx does it, then widened to float32."""
    model, tokenizer, config = mlx_lm.load(str(folder), return_config=True)
    model = dequantize_model(model)
    model.set_dtype(mx.float32)
    ends = {config["eos_token_id"]}

    def go_on(prompt: list[int]) -> tuple[list[int], list[float]]:
        ids, gaps = list[int](), list[float]()
        while len(ids) < STEPS:
            logits = np.array(model(mx.array([prompt + ids]))[0, -1])
            second, first = np.partition(logits, -2)[-2:]
            ids.append(int(logits.argmax()))
            gaps.append(float(first - second))
            if ids[-1] in ends:
                break
        return ids, gaps

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text))

    args, vocabulary = model.args, tokenizer.get_vocab()
    chat = tokenizer.apply_chat_template(list(CHAT), tokenize=False, add_generation_prompt=True)
    return {
        "judge": f"{MAKER}, mlx {version('mlx')} on the CPU, float32",
        "config": {name: getattr(args, name) for name in sorted(FIELDS)}
        | {
            "head_dim": args.hidden_size // args.num_attention_heads,
            "rope_theta": float(args.rope_theta),
            "tied": args.tie_word_embeddings,
        },
        "texts": [encode(text) for text in TEXTS],
        "nfd": encode(NFD),
        "chat": list(tokenizer.encode(chat, add_special_tokens=False)),
        "runs": runs(encode, go_on, {vocabulary[x] for x in ENDS if x in vocabulary}),
    }


def main() -> None:
    mx.set_default_device(mx.cpu)
    root = Path(sys.argv[1])
    for name, (folder, arguments, what) in MODELS.items():
        mlx_lm.convert(str(root / folder), str(root / name), **arguments)
        record(root, name, maker=MAKER, what=f"{what} ({folder})", path=name, **judged(root / name))


if __name__ == "__main__":
    main()
