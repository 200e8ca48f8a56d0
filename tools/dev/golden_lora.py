"""Makes tests/golden/lora.npz: LoRA adapters as PEFT saves them, and what PEFT computes with them, unmerged.

    python -m qwenref.tools.dev.golden_lora tests/golden/lora.npz

Of each case it holds PEFT's own files, every stage in float64 as signed sums (golden_stages.py), and greedy ids of
float32. The base is golden_config's small model. Needs torch, transformers and peft.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..dump_hf import capture, cast_weights
from .golden_config import CONFIG, IDS, write_folder
from .golden_stages import key, rms, signed_sums

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name: arguments of LoraConfig; dtype: what the adapter is saved in.
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"r": 4, "lora_alpha": 6, "target_modules": ALL},
    "rslora": {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "patterns": {
        "r": 4, "lora_alpha": 6.5, "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.down_proj": 5, "v_proj": 1},
        "alpha_pattern": {"k_proj": 3, "^model.layers.0.mlp.gate_proj": 7, r"layers\.1.*up_proj": 9},
    },
    "one layer, bfloat16": {
        "r": 8, "lora_alpha": 1, "target_modules": ALL[4:], "layers_to_transform": [1], "dtype": "bfloat16",
    },
    "head": {"r": 1, "lora_alpha": 2, "target_modules": ["lm_head", "o_proj"]},
    "embedding": {"r": 3, "lora_alpha": 4, "target_modules": ["embed_tokens", "q_proj"]},
    "embedding, rslora": {"r": 2, "lora_alpha": 3, "use_rslora": True, "target_modules": ["embed_tokens"]},
    "whole": {"r": 2, "lora_alpha": 3, "target_modules": ALL[:2], "modules_to_save": ["lm_head", "embed_tokens"]},
    "whole norms": {"r": 2, "lora_alpha": 3, "target_modules": ALL[:2], "modules_to_save": ["input_layernorm"]},
    "dora": {"r": 3, "lora_alpha": 4, "target_modules": ALL, "use_dora": True},
    "dora, head and embedding": {
        "r": 2, "lora_alpha": 3, "target_modules": ["embed_tokens", "lm_head", "v_proj"], "use_dora": True,
    },
    "lora_bias": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "lora_bias": True},
    "bias": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "up_proj"], "bias": "all"},
    "pattern": {"r": 2, "lora_alpha": 3, "target_modules": r"model\.layers\.(?:0|1)\.mlp\.(up|down)_proj"},
}  # fmt: skip
# name: adapters that are active together, and what each one's scale is multiplied with.
CASES: dict[str, list[tuple[str, float]]] = {name: [(name, 1.0)] for name in ADAPTERS} | {
    "scaled": [("all", -0.37)],
    "two": [("rslora", 1.0), ("all", 0.5)],
    "embedding scaled": [("embedding", 0.5)],
}
NEW = 12


def with_adapter(model: Any, name: str, seed: int, folder: Path) -> None:
    """Saves a random adapter of the model, by PEFT, in the folder; the model is left as it was."""
    import peft
    import torch

    arguments = {k: v for k, v in ADAPTERS[name].items() if k != "dtype"}
    made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **arguments))
    rng = np.random.default_rng(seed)
    for parameter_name, p in made.named_parameters():
        if "lora_magnitude_vector" in parameter_name:  # lengths, near to those that it begins with
            p.data *= torch.from_numpy(rng.uniform(0.7, 1.3, tuple(p.shape)).astype(np.float32))
        elif p.requires_grad:
            p.data = torch.from_numpy(rng.normal(0, 0.3, tuple(p.shape)).astype(np.float32))
            p.data = p.data.to(getattr(torch, ADAPTERS[name].get("dtype", "float32")))
    made.save_pretrained(folder)
    made.unload()


def base(folder: Path) -> Any:
    import torch
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def adapted(folder: Path, adapters: Path, case: str) -> Any:
    """The base with a case's adapters, as PEFT loads them."""
    import peft

    first, *others = CASES[case]
    made = peft.PeftModel.from_pretrained(base(folder), adapters / first[0], adapter_name=first[0])
    for name, _ in others:
        made.load_adapter(adapters / name, adapter_name=name)
    made.base_model.set_adapter([name for name, _ in CASES[case]])
    for module in made.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            for name, factor in CASES[case]:
                module.set_scale(name, factor)
    return made.eval()


def stages_of(model: Any) -> dict[str, Any]:
    import torch

    kept: dict[str, Any] = {}
    with capture(model, lambda layer, stage, x: kept.__setitem__(key(layer, stage), x)):
        model(torch.tensor([IDS]), use_cache=False)
    return kept


def main() -> None:
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    said = {
        "made by": "python -m qwenref.tools.dev.golden_lora tests/golden/lora.npz",
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    arrays: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, adapters = Path(scratch, "base"), Path(scratch, "adapters")
        folder.mkdir()
        write_folder(folder, CONFIG)
        for seed, name in enumerate(ADAPTERS):
            with_adapter(base(folder), name, seed, adapters / name)
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                arrays[f"{name}/{file}"] = np.frombuffer((adapters / name / file).read_bytes(), np.uint8)
        for case in CASES:
            made = adapted(folder, adapters, case)
            prompt = torch.tensor([IDS])
            with torch.no_grad():
                ids = made.generate(
                    input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False
                )
            arrays[f"{case}/ids"] = ids[0, len(IDS) :].numpy()
            kept = stages_of(cast_weights(made, "float64").base_model.model)
            arrays[f"{case}/stages"] = np.array(list(kept))
            arrays[f"{case}/sums"] = np.array([signed_sums(x) for x in kept.values()])
            arrays[f"{case}/rms"] = np.array([rms(x) for x in kept.values()])
    np.savez_compressed(sys.argv[1], provenance=json.dumps(said), **arrays)


if __name__ == "__main__":
    main()
