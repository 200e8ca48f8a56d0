"""Makes tests/golden/rope.npz: RoPE's frequencies, magnitudes and angles by Transformers, and stages of small models
whose RoPE is scaled or whose attention has windows.

    python -m qwenref.tools.dev.golden_rope tests/golden/rope.npz

The last bit of torch's power of a tensor depends on the vector unit that it finds (ATEN_CPU_CAPABILITY), so it stands
for no result. Here the power is the correctly rounded one; all else is Transformers as it is. powers_off says by how
many units in the last place torch's own powers are off on the machine that made the file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from ..dump_hf import capture, cast_weights
from .golden_config import CONFIG, write_folder
from .golden_stages import key, rms, signed_sums

YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = "original_max_position_embeddings"


def divisors(h: int, step: float) -> list[float]:
    return [1 + step * j for j in range(h)]


# name: (theta, head_dim, max_position_embeddings, the scaling's fields). Of shapes that are run.
TABLES: dict[str, tuple[float, int, int, dict[str, Any]]] = {
    "plain 64": (1e6, 64, 32768, {"rope_type": "default"}),
    "plain 128": (1e7, 128, 1010000, {"rope_type": "default"}),
    "linear 64": (1e4, 64, 16384, {"rope_type": "linear", "factor": 4.0}),
    "linear 96, by 3": (1e4, 96, 16384, {"rope_type": "linear", "factor": 3.0}),
    "dynamic 128": (1e6, 128, 4096, {"rope_type": "dynamic", "factor": 2.5}),
    "yarn 128, as Qwen's cards have it": (1e6, 128, 32768, YARN | {ORIGINAL: 32768}),
    "yarn 64, without original": (1e6, 64, 32768, YARN),
    "yarn 128, of null": (1e6, 128, 131072, YARN | {"factor": None, ORIGINAL: 32768}),
    "yarn 80": (1e4, 80, 8192, YARN | {ORIGINAL: 2048}),
    "yarn, attention_factor": (1e6, 128, 131072, YARN | {ORIGINAL: 32768, "attention_factor": 1.25}),
    "yarn, mscale": (1e4, 64, 163840, YARN | {"factor": 40.0, ORIGINAL: 4096, "mscale": 0.707, "mscale_all_dim": 1.0}),
    "yarn, mscale alone": (1e4, 64, 163840, YARN | {"factor": 40.0, ORIGINAL: 4096, "mscale": 0.707}),
    "yarn, betas": (1.5e5, 64, 131072, YARN | {"factor": 32.0, ORIGINAL: 4096, "beta_fast": 24.0, "beta_slow": 2.0}),
    "yarn, not truncated": (1.5e5, 64, 131072, YARN | {"factor": 32.0, ORIGINAL: 4096, "truncate": False}),
    "yarn, one pair of ramp": (1e6, 8, 64, YARN | {ORIGINAL: 16, "beta_fast": 1.0, "beta_slow": 1.0}),
    "yarn by 1": (1e6, 64, 32768, YARN | {"factor": 1.0}),
    "llama3 128": (5e5, 128, 131072, LLAMA3 | {ORIGINAL: 8192}),
    "llama3 64, by 32": (5e5, 64, 131072, LLAMA3 | {"factor": 32.0, ORIGINAL: 8192}),
    "longrope 96": (
        1e4, 96, 131072,
        {"rope_type": "longrope", "short_factor": divisors(48, 0.01), "long_factor": divisors(48, 1.3), ORIGINAL: 4096},
    ),
    "longrope 64, factor": (
        1e4, 64, 131072,
        {"rope_type": "longrope", "short_factor": divisors(32, 0.1), "long_factor": divisors(32, 2), ORIGINAL: 4096,
         "factor": 8.0},
    ),
    "longrope 64, attention_factor": (
        1e4, 64, 131072,
        {"rope_type": "longrope", "short_factor": divisors(32, 0.1), "long_factor": divisors(32, 2), ORIGINAL: 4096,
         "attention_factor": 1.1},
    ),
}  # fmt: skip

# Small models (golden_config's weights, heads of 8), trained for 16 positions: the scaling, and where it stands.
FOUR = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 3.0, 6.0, 9.0]}
MODELS: dict[str, dict[str, Any]] = {
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0, ORIGINAL: 16}, "max_position_embeddings": 16},
    "yarn, attention_factor": {"rope_parameters": YARN | {"rope_theta": 5000.0, ORIGINAL: 16, "attention_factor": 1.5}},
    "llama3": {"rope_scaling": LLAMA3 | {ORIGINAL: 16}},
    "longrope": {"rope_scaling": FOUR | {"rope_type": "longrope", ORIGINAL: 16}},
    "longrope, original beside it": {"rope_scaling": FOUR | {"rope_type": "longrope"}, ORIGINAL: 16},
    "windows": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "windows of layer_types": {
        "use_sliding_window": True, "sliding_window": 1, "layer_types": ["sliding_attention", "full_attention"],
    },
    "windows and yarn": {
        "use_sliding_window": True, "sliding_window": 36, "max_window_layers": 0, "max_position_embeddings": 16,
        "rope_scaling": YARN | {ORIGINAL: 16},
    },
}  # fmt: skip
IDS = tuple((7 * i * i + 3 * i + 5) % 64 for i in range(40))  # past the 16 positions
STEPS = 3  # of these, the last are decoded one by one
SHORT = 11  # tokens of a prompt within the 16

# Positions of a long text, and those where float32 has few digits left.
POSITIONS = (0, 1, 17, 4095, 32767, 32768, 32769, 65537, 131071, 131072, 131073, 262143, 1009999)


def config_of(name: str) -> dict[str, Any]:
    """The config.json of a table's case."""
    theta, head_dim, positions, scaling = TABLES[name]
    said = {"head_dim": head_dim, "max_position_embeddings": positions, "rope_theta": theta}
    return CONFIG | said | {"rope_scaling": scaling}


@contextmanager
def exact_powers() -> Iterator[list[int]]:
    """While it lasts, torch's number ** tensor is correctly rounded; the list takes by how much its own is off."""
    import torch

    own, off = torch.Tensor.__rpow__, [0]

    def power(exponent: Any, base: Any) -> Any:
        if exponent.is_meta:  # a model that has no values yet
            return own(exponent, base)
        assert exponent.dtype == torch.float32
        with localcontext(prec=40):
            theta = Decimal(float(np.float32(base)))
            exact = np.array([float(theta ** Decimal(e)) for e in exponent.tolist()], np.float32)
        its = own(exponent, base).numpy()
        off.append(int(np.abs(exact.view(np.int32).astype(np.int64) - its.view(np.int32)).max()))
        return torch.from_numpy(exact)

    with patch.object(torch.Tensor, "__rpow__", power):
        yield off


def tables() -> dict[str, Any]:
    """Of every case: the frequencies, those of a long session, the magnitude, and cosine and sine at POSITIONS."""
    import torch
    import transformers
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    found: dict[str, Any] = {}
    for name in TABLES:
        said = config_of(name)
        with exact_powers() as off:
            config = transformers.Qwen2Config(**{k: v for k, v in said.items() if k not in ("architectures",)})
            rotary = Qwen2RotaryEmbedding(config)
            found[f"{name}/short"] = rotary.inv_freq.numpy().copy()
            length = config.rope_parameters.get(ORIGINAL, said["max_position_embeddings"])
            if config.rope_parameters["rope_type"] == "longrope":
                rotary(torch.zeros(1, 1, 1), torch.tensor([[length]]))
            found[f"{name}/long"] = rotary.inv_freq.numpy().copy()
        found[f"{name}/magnitude"] = np.float64(rotary.attention_scaling)
        found[f"{name}/powers_off"] = np.int64(max(off))
        if config.rope_parameters["rope_type"] not in ("dynamic", "longrope"):
            cos, sin = rotary(torch.zeros(1, 1, 1), torch.tensor([POSITIONS]))
            h = said["head_dim"] // 2
            found[f"{name}/cos"], found[f"{name}/sin"] = (x[0, :, :h].numpy() for x in (cos, sin))
    return found


def stages_of(model: Any, *passes: tuple[int, ...]) -> dict[str, Any]:
    """Stages of passes over one cache, by pass."""
    import torch
    import transformers

    kept: dict[str, Any] = {}
    cache = transformers.DynamicCache()  # made of no configuration: of layers with a window too it keeps all
    for number, ids in enumerate(passes):

        def emit(layer: int | None, stage: str, x: Any, number: int = number) -> None:
            kept[f"{number}/{key(layer, stage)}"] = x

        with capture(model, emit):
            model(torch.tensor([ids]), use_cache=True, past_key_values=cache)
    return kept


def models() -> dict[str, Any]:
    """Every stage in float64, as signed sums (golden_stages.py): of a long prompt and steps, and of a short prompt."""
    import torch
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    found: dict[str, Any] = {}
    prompt, steps = IDS[:-STEPS], [(i,) for i in IDS[-STEPS:]]
    for name, changes in MODELS.items():
        with tempfile.TemporaryDirectory() as folder, exact_powers():
            write_folder(Path(folder), CONFIG | changes)
            model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
            cast_weights(model, "float64")
            kept = stages_of(model, prompt, *steps)
            kept |= {f"short/{k[2:]}": x for k, x in stages_of(model, IDS[:SHORT]).items()}
        found[f"{name}/stages"] = np.array(list(kept))
        found[f"{name}/sums"] = np.array([signed_sums(x) for x in kept.values()])
        found[f"{name}/rms"] = np.array([rms(x) for x in kept.values()])
    return found


def main() -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    said = {
        "made by": "python -m qwenref.tools.dev.golden_rope tests/golden/rope.npz",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    arrays = tables() | {f"model {k}": x for k, x in models().items()}
    print("torch's own powers are off by up to", max(int(x) for k, x in arrays.items() if k.endswith("_off")), "ulp")
    np.savez_compressed(sys.argv[1], provenance=json.dumps(said), **arrays)


if __name__ == "__main__":
    main()
