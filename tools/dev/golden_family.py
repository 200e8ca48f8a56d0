"""Makes tests/golden/family.npz: every stage of small models of each architecture, by Transformers in float64.

    python -m qwenref.tools.dev.golden_family tests/golden/family.npz

The power is the correctly rounded one, as golden_rope.py says; all else is Transformers as it is.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.config import from_hf
from ..dump_hf import cast_weights
from .golden_config import IDS, write_tensors
from .golden_config import values as random_values
from .golden_rope import LLAMA3, exact_powers, stages_of
from .golden_stages import rms, signed_sums

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 64, "rope_theta": 5000.0,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
EPS = 2.0**-17  # about 1e-5, which float32 does not hold: Transformers adds another number in float64 than in float32
QWEN3 = SIZES | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16}
LLAMA = SIZES | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": EPS}
MISTRAL = SIZES | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "rms_norm_eps": EPS}
# name: its config.json. A head of Qwen3 is wider than the hidden size over their number.
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": QWEN3,
    "qwen3, tied, windows": QWEN3 | {
        "tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1, "use_sliding_window": True,
        "sliding_window": 4, "max_window_layers": 1,
    },
    "llama": LLAMA | {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 16}},
    "llama, tied": LLAMA | {"tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 4},
    "llama, biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "qwen3, biases": QWEN3 | {"attention_bias": True, "tie_word_embeddings": True},
    "mistral": MISTRAL | {"sliding_window": 5, "head_dim": 16},
    "mistral, no window": MISTRAL | {"sliding_window": None},
}  # fmt: skip
PASSES = (IDS[:-2], IDS[-2:-1], IDS[-1:])


def write_family(folder: Path, config: Mapping[str, Any]) -> None:
    """A config.json and a model.safetensors with every tensor of its architecture, the same on every machine."""
    c, _ = from_hf(config, own_head=not config["tie_word_embeddings"])
    found = {}
    asked = [field for field in c.architecture.optional if config.get(field)]
    for seed, (t, layer) in enumerate(c.architecture.tensors_of(c.num_hidden_layers, asked)):
        if t.role != "lm_head" or not c.tie_word_embeddings:
            shape = t.shape(c.sizes)
            x = random_values(prod(shape), seed).reshape(shape) / 4 + np.float32("norm" in t.role)
            found[t.hf.format(layer)] = ("F32", x.astype(np.float32))
    write_tensors(folder, config, found)


def main() -> None:
    import torch
    import transformers

    said = {
        "made by": "python -m qwenref.tools.dev.golden_family tests/golden/family.npz",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    auto: Any = transformers.AutoModelForCausalLM
    arrays: dict[str, Any] = {}
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder, exact_powers():
            write_family(Path(folder), config)
            how: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
            model, info = auto.from_pretrained(folder, **how)
            assert not info["missing_keys"] and not info["unexpected_keys"], info
            kept = stages_of(cast_weights(model.eval(), "float64"), *PASSES)
            ids = cast_weights(model, "float32").generate(torch.tensor([IDS]), max_new_tokens=12, do_sample=False)
        arrays[f"{name}/stages"] = np.array(list(kept))
        arrays[f"{name}/sums"] = np.array([signed_sums(x) for x in kept.values()])
        arrays[f"{name}/rms"] = np.array([rms(x) for x in kept.values()])
        arrays[f"{name}/ids"] = ids[0, len(IDS) :].numpy()
    np.savez_compressed(sys.argv[1], provenance=json.dumps(said), **arrays)


if __name__ == "__main__":
    main()
