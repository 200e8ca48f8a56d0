"""Makes tests/golden/hf_stages.npz: every stage of Transformers in float64, and how far its float32 is from that.

    python -m qwenref.tools.dev.golden_stages MODEL.gguf tests/golden/hf_stages.npz

All stages of all layers in float64 would be hundreds of MB, so each tensor is kept as 16 sums of its values under
random signs. Two tensors whose difference has the RMS d differ in such a sum by d sqrt(n) times a number of mean
square 1 (Johnson and Lindenstrauss 1984), so the sums measure the difference of the whole tensors: no element is left
out, and a wrong one anywhere shows in all of them. Transformers' float32 run is kept as its relative RMS error.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dump_hf import capture, cast_weights, load

SUMS = 16
PROMPTS = {
    "two_plus_two": "What is 2+2?",
    "merge": (
        "def merge(left, right):\n    # Both lists are sorted; so is what comes back.\n    out = []\n"
        "    while left and right:\n        out.append((left if left[0] <= right[0] else right).pop(0))\n"
        "    return out + left + right\n\nprint(merge([1, 4], "
    ),
}


@lru_cache(maxsize=1)
def _signs(count: int) -> NDArray[np.float64]:
    """[count, SUMS] of +1 and -1, from the raw bits of PCG64, which NumPy promises never to change."""
    bits = np.unpackbits(np.random.PCG64(2).random_raw(count).astype("<u8").view(np.uint8)).reshape(count, 64)
    return np.where(bits[:, :SUMS], -1.0, 1.0)


def signed_sums(x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """[SUMS] sums of all values of the array in row-major order, each under signs of its own."""
    sums: NDArray[np.float64] = x.astype(np.float64).reshape(-1) @ _signs(x.size)
    return sums


def rms(x: NDArray[np.floating[Any]]) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def key(layer: int | None, stage: str) -> str:
    return stage if layer is None else f"{layer}.{stage}"


def main() -> None:
    import torch
    import transformers

    source, target = (Path(word) for word in sys.argv[1:])
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=str(source.absolute()))
    ids = {name: tokenizer(text).input_ids for name, text in PROMPTS.items()}
    model = load(source)

    def stages(prompt_ids: list[int]) -> dict[str, NDArray[np.floating[Any]]]:
        kept: dict[str, NDArray[np.floating[Any]]] = {}
        with capture(model, lambda layer, stage, value: kept.__setitem__(key(layer, stage), value)):
            model(torch.tensor([prompt_ids]), use_cache=False, logits_to_keep=1)
        return kept

    single = {name: stages(prompt_ids) for name, prompt_ids in ids.items()}
    cast_weights(model, "float64")
    arrays: dict[str, Any] = {}
    for name, prompt_ids in ids.items():
        exact = stages(prompt_ids)
        arrays |= {
            f"{name}/prompt_ids": np.array(prompt_ids, np.int32),
            f"{name}/stages": np.array(list(exact)),
            f"{name}/rms": np.array([rms(x) for x in exact.values()]),
            f"{name}/sums": np.array([signed_sums(x) for x in exact.values()]),
            f"{name}/float32_error": np.array([rms(single[name][k] - x) / rms(x) for k, x in exact.items()]),
        }
        for stage in dict.fromkeys(k.rpartition(".")[2] for k in exact):
            worst = max(e for k, e in zip(exact, arrays[f"{name}/float32_error"], strict=True) if k.endswith(stage))
            print(f"{name} {len(prompt_ids)} tokens, {stage}: float32 is off by up to {worst:.1e}", file=sys.stderr)
    arrays["provenance"] = json.dumps(
        {
            "made_by": "python -m qwenref.tools.dev.golden_stages MODEL.gguf tests/golden/hf_stages.npz",
            "engine": f"Hugging Face Transformers {transformers.__version__}, torch {torch.__version__}, eager, CPU",
            "float64": "norms, soft-max, cosine and sine, which Transformers computes in float32 always, are patched "
            "to float64; the angles stay the float32 products that they are; Q, K, V are a product, then a sum",
            "model": source.name,
            "model_sha256": hashlib.file_digest(source.open("rb"), "sha256").hexdigest(),
            "prompts": PROMPTS,
            "stages": "layer.stage, in the order of the other arrays",
            "rms, sums": "of the float64 run, sums as signed_sums has them",
            "float32_error": "RMS of float32 - float64, over rms",
        }
    )
    np.savez_compressed(target, **arrays)


if __name__ == "__main__":
    main()
