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
from ...engine.models.vision import text_config
from ..dump_hf import cast_weights, reading
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
# As published, the text's fields beside the others; as Transformers 5 saves them, apart, the tensors by its modules.
SEES: dict[str, Any] = {
    "image_token_id": 62,
    "video_token_id": 63,
    "vision_start_token_id": 60,
    "tie_word_embeddings": False,
}
VISION = {"depth": 0, "patch_size": 2, "temporal_patch_size": 1, "num_heads": 1, "spatial_merge_size": 1}
PUBLISHED = SIZES | SEES | {
    "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "tie_word_embeddings": True,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "use_sliding_window": False, "sliding_window": 32768,
    "max_window_layers": 2, "vision_config": VISION | {"embed_dim": 4, "hidden_size": 32},
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 5000.0}
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
    "qwen2_vl": PUBLISHED,
    "qwen2_5_vl": SEES | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        "text_config": SIZES | {
            "model_type": "qwen2_5_vl_text", "rope_parameters": MROPE | {"type": "mrope", "mrope_section": [1, 1, 2]},
        },
        "vision_config": VISION | {
            "hidden_size": 4, "out_hidden_size": 32, "intermediate_size": 4, "fullatt_block_indexes": [],
        },
    },
    "qwen3_vl": SEES | {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
        "text_config": SIZES | {
            "model_type": "qwen3_vl_text", "head_dim": 16,
            "rope_parameters": MROPE | {"mrope_interleaved": True, "mrope_section": [3, 3, 2]},
        },
        "vision_config": VISION | {
            "hidden_size": 4, "out_hidden_size": 32, "intermediate_size": 4, "deepstack_visual_indexes": [],
            "num_position_embeddings": 4,
        },
    },
}  # fmt: skip
PASSES = (IDS[:-2], IDS[-2:-1], IDS[-1:])


def write_family(folder: Path, config: Mapping[str, Any]) -> None:
    """A config.json and a model.safetensors with every tensor of its architecture, the same on every machine; of a
    model that sees, with one of those by which it does."""
    text, pictures = text_config(config)
    c, _ = from_hf(text, own_head=not text["tie_word_embeddings"])
    found = {}
    asked = [field for field in c.architecture.optional if config.get(field)]
    nested = "text_config" in config
    if pictures is not None:
        sees = f"{'model.' if nested else ''}visual.patch_embed.proj.weight"
        found[sees] = ("F32", random_values(48, 0).reshape(4, 3, 1, 2, 2).astype(np.float32))
    for seed, (t, layer) in enumerate(c.architecture.tensors_of(c.num_hidden_layers, asked)):
        if t.role != "lm_head" or not c.tie_word_embeddings:
            shape = t.shape(c.sizes)
            x = random_values(prod(shape), seed).reshape(shape) / 4 + np.float32("norm" in t.role)
            name = t.hf.format(layer)
            name = name.replace("model.", "model.language_model.", 1) if nested else name
            found[name] = ("F32", x.astype(np.float32))
    write_tensors(folder, config, found)


def loaded(folder: Path) -> tuple[Any, Any]:
    """Transformers' model in float32, and what of it has the stages. All that is lacking in the file is what sees."""
    import torch
    import transformers

    sees = "vision_config" in json.loads((folder / "config.json").read_text("utf-8"))
    auto: Any = getattr(transformers, "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM")
    model, info = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    lost = [key for key in info["missing_keys"] if not key.startswith("model.visual.")]
    assert not lost and not info["unexpected_keys"], info
    return model.eval(), reading(model) if sees else model


def main() -> None:
    import torch
    import transformers

    said = {
        "made by": "python -m qwenref.tools.dev.golden_family tests/golden/family.npz",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    arrays: dict[str, Any] = {}
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder, exact_powers():
            write_family(Path(folder), config)
            model, text = loaded(Path(folder))
            cast_weights(model, "float64")
            kept = stages_of(text, *PASSES)
            ids = cast_weights(model, "float32").generate(torch.tensor([IDS]), max_new_tokens=12, do_sample=False)
        arrays[f"{name}/stages"] = np.array(list(kept))
        arrays[f"{name}/sums"] = np.array([signed_sums(x) for x in kept.values()])
        arrays[f"{name}/rms"] = np.array([rms(x) for x in kept.values()])
        arrays[f"{name}/ids"] = ids[0, len(IDS) :].numpy()
    np.savez_compressed(sys.argv[1], provenance=json.dumps(said), **arrays)


if __name__ == "__main__":
    main()
