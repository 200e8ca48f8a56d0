"""Makes tests/golden/embed.npz: rows of the final norm, vectors and scores of small models, by Transformers in float64.

    python -m qwenref.tools.dev.golden_embed tests/golden/embed.npz

Norms, soft-max, cosine and sine are in float64 too (tools/dump_hf.capture); all else is Transformers as it is. Of
Qwen's own reward models, whose code Transformers has not, the head is put together of torch's modules, as theirs is:
Sequential(Linear, ReLU, Linear) on the rows of Transformers' Qwen2Model.
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

from ...engine.config import from_hf, kind_of
from ...engine.models.heads import KINDS
from ..dump_hf import capture, cast_weights
from .golden_config import values as random_values
from .golden_config import write_tensors
from .golden_family import EPS, LLAMA, QWEN3, SIZES
from .golden_rope import exact_powers

PAD = 63
IDS = (5, 9, 1, 60, 33, 2, 17, 40, PAD, 11, 8, PAD)  # padding inside, and at the end
QWEN2 = SIZES | {"model_type": "qwen2", "rms_norm_eps": EPS}
QWEN3 = QWEN3 | {"rms_norm_eps": EPS}
THREE = {"id2label": {"0": "bad", "1": "fair", "2": "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
# name: its config.json, with Transformers' class, or Qwen's.
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": QWEN2 | {"architectures": ["Qwen2Model"]},
    "qwen3": QWEN3 | {"architectures": ["Qwen3Model"]},
    "qwen2, not causal": QWEN2 | {"architectures": ["Qwen2Model"], "is_causal": False},
    "qwen2, labels": QWEN2 | THREE | {"architectures": ["Qwen2ForSequenceClassification"], "pad_token_id": PAD},
    "qwen2, labels, not causal": QWEN2 | THREE
    | {"architectures": ["Qwen2ForSequenceClassification"], "pad_token_id": PAD, "is_causal": False},
    "qwen2, tokens": QWEN2 | {"architectures": ["Qwen2ForTokenClassification"]},
    "qwen3, a reward": QWEN3 | {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "LABEL_0"}},
    "llama, labels": LLAMA | THREE | {"architectures": ["LlamaForSequenceClassification"]},
    "qwen2, Qwen's reward": QWEN2 | {"architectures": ["Qwen2ForRewardModel"], "num_labels": 1, "pad_token_id": PAD},
    "qwen2, Qwen's process reward": QWEN2 | {"architectures": ["Qwen2ForProcessRewardModel"], "num_labels": 2},
}  # fmt: skip


def labels_of(config: Mapping[str, Any]) -> int:
    """How many a configuration has; Transformers takes two where it says nothing."""
    return len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2))


def write_model(folder: Path, config: Mapping[str, Any]) -> None:
    """A config.json and a model.safetensors by the names that save_pretrained gives, the same on every machine."""
    c, _ = from_hf(config, own_head=False, labels=labels_of(config))
    bare, sizes = c.head.kind == "Model", c.sizes | {"C": labels_of(config)}
    body = [(t, i) for t, i in c.architecture.tensors_of(c.num_hidden_layers) if t.role != "lm_head"]
    ends = [(t, None) for t in KINDS[c.head.kind].tensors.values() if t.role != "lm_head"]
    found = {}
    for seed, (t, layer) in enumerate([*body, *ends]):
        shape = t.shape(sizes)
        x = random_values(prod(shape), seed).reshape(shape) / 4 + np.float32("norm" in t.role)
        found[t.hf.format(layer).removeprefix("model." if bare else "")] = ("F32", x.astype(np.float32))
    write_tensors(folder, config, found)


def asked(folder: Path, kind: str) -> dict[str, Any]:
    """rows [T, D] of the final norm, and scores, of IDS."""
    import torch
    import transformers

    auto: Any = transformers
    own = kind in ("ForRewardModel", "ForProcessRewardModel")
    body_alone = kind == "Model" or own
    cls = auto.AutoModel if body_alone else getattr(auto, f"AutoModel{kind}")
    how: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
    model, info = cls.from_pretrained(folder, **how)
    assert not info["missing_keys"] and (own or not info["unexpected_keys"]), info
    cast_weights(model.eval(), "float64")
    whole = model
    if body_alone:
        whole = torch.nn.Module()
        whole.model, whole.config = model, model.config
    rows: list[Any] = []

    def emit(layer: int | None, stage: str, x: Any) -> None:
        if stage == "final_norm":
            rows.append(x)

    with capture(whole, emit), torch.no_grad():
        out = model(torch.tensor([IDS]))
    found = {"rows": rows[0]}
    if own:
        from safetensors.torch import load_file

        held = load_file(folder / "model.safetensors")
        width, labels = model.config.hidden_size, held["score.2.bias"].shape[0]
        head = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, labels))
        head.load_state_dict({k.removeprefix("score."): x for k, x in held.items() if k.startswith("score.")})
        with torch.no_grad():
            scores = head.double()(torch.from_numpy(rows[0]))
        last = max(t for t, i in enumerate(IDS) if i != model.config.pad_token_id)
        found["scores"] = (scores if KINDS[kind].every else scores[last]).numpy()
    elif kind != "Model":
        found["scores"] = out.logits[0].numpy()
    for name, x in (("last", rows[0][-1]), ("mean", rows[0].mean(0)), ("cls", rows[0][0])):
        found[name] = torch.nn.functional.normalize(torch.from_numpy(x), dim=0).numpy()
    return found


def main() -> None:
    import torch
    import transformers

    said = {
        "made by": "python -m qwenref.tools.dev.golden_embed tests/golden/embed.npz",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    arrays: dict[str, Any] = {}
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder, exact_powers():
            write_model(Path(folder), config)
            kind = kind_of(config)
            arrays |= {f"{name}/{what}": x for what, x in asked(Path(folder), kind).items()}
    np.savez_compressed(sys.argv[1], provenance=json.dumps(said), **arrays)


if __name__ == "__main__":
    main()
