"""Makes tests/golden/config.json: what Transformers computes when a field of config.json, or a tensor, is another.

    python -m qwenref.tools.dev.golden_config tests/golden/config.json

A small model is saved, changed as CASES says, and loaded by AutoModelForCausalLM (float32, eager). For each case the
file has the logits behind the last of IDS, or the first line of the error with which Transformers refuses.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IDS = (3, 60, 17, 9, 9, 41, 0, 22, 58, 31, 5, 12)
LAYERS, D, N, K, H, F, V = 2, 32, 4, 2, 8, 48, 64
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": N,
    "num_key_value_heads": K,
    "intermediate_size": F,
    "vocab_size": V,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}

THETA = {"rope_theta": 5000.0}
WINDOW = {"use_sliding_window": True, "sliding_window": 4}
# name: what becomes of config.json; ... takes a field away.
FIELDS: dict[str, dict[str, Any]] = {
    "as it is": {},
    # RoPE: which of the places rules
    "theta in rope_parameters": {"rope_theta": ..., "rope_parameters": THETA | {"rope_type": "default"}},
    "theta in rope_parameters, no type": {"rope_theta": ..., "rope_parameters": THETA},
    "theta in both, the same": {"rope_parameters": THETA | {"rope_type": "default"}},
    "theta in both, another": {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}},
    "no theta": {"rope_theta": ...},
    "theta in rope_scaling": {"rope_theta": ..., "rope_scaling": THETA | {"rope_type": "default"}},
    "rope_scaling null": {"rope_scaling": None},
    "rope_scaling empty": {"rope_scaling": {}},
    "rope_scaling default": {"rope_scaling": {"rope_type": "default"}},
    "rope_scaling default, old name": {"rope_scaling": {"type": "default"}},
    "rope_scaling beside rope_parameters": {
        "rope_theta": ...,
        "rope_scaling": {"rope_type": "default"},
        "rope_parameters": THETA | {"rope_type": "default"},
    },
    "rope_scaling beside rope_parameters and theta": {
        "rope_scaling": {"rope_type": "default"},
        "rope_parameters": THETA | {"rope_type": "default"},
    },
    "rope_parameters by layer type": {
        "rope_theta": ...,
        "layer_types": ["full_attention"] * LAYERS,
        "rope_parameters": {"full_attention": THETA | {"rope_type": "default"}},
    },
    "linear, factor 1": {"rope_scaling": {"rope_type": "linear", "factor": 1.0}},
    "linear, factor 1, old name": {"rope_scaling": {"type": "linear", "factor": 1}},
    "linear, factor 2": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "dynamic, factor 1": {"rope_scaling": {"rope_type": "dynamic", "factor": 1.0}},
    "dynamic, factor 4": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "yarn, factor 1": {"rope_scaling": {"rope_type": "yarn", "factor": 1.0}},
    "yarn, factor 4": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "llama3, factor 1": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 1.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "llama3, factor 8": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "mrope": {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
    "partial_rotary_factor 1": {"partial_rotary_factor": 1.0},
    "partial_rotary_factor 1 in rope_parameters": {"rope_parameters": {"partial_rotary_factor": 1.0}},
    "partial_rotary_factor 0.5": {"partial_rotary_factor": 0.5},
    "partial_rotary_factor 0.5, linear": {
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "linear", "factor": 1.0},
    },
    # attention
    "is_causal false": {"is_causal": False},
    "is_causal true": {"is_causal": True},
    "is_causal null": {"is_causal": None},
    "is_decoder false": {"is_decoder": False},
    "is_decoder true": {"is_decoder": True},
    "attention_bias false": {"attention_bias": False},
    "attention_bias true": {"attention_bias": True},
    "attention_dropout": {"attention_dropout": 0.5},
    "window": WINDOW,
    "window behind the layers": WINDOW | {"max_window_layers": LAYERS},
    "window of layer 1": WINDOW | {"max_window_layers": 1},
    "window as long as the context": WINDOW | {"sliding_window": 64, "max_window_layers": 0},
    "window off": WINDOW | {"use_sliding_window": False, "max_window_layers": 0},
    "window null": {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
    "window, layer_types full": WINDOW | {"layer_types": ["full_attention"] * LAYERS, "max_window_layers": 0},
    "window, layer_types sliding": WINDOW | {"layer_types": ["full_attention", "sliding_attention"]},
    "window off, layer_types sliding": {"sliding_window": 4, "layer_types": ["sliding_attention"] * LAYERS},
    "layer_types too short": {"layer_types": ["full_attention"]},
    "layer_types old name": {"layer_types": ["attention"] * LAYERS},
    "head_dim said": {"head_dim": H},
    "head_dim null": {"head_dim": None},
    "num_key_value_heads null": {"num_key_value_heads": None},
    "num_key_value_heads missing": {"num_key_value_heads": ...},
    "dual_chunk_attention_config": {
        "dual_chunk_attention_config": {
            "chunk_size": 32,
            "local_size": 8,
            "original_max_position_embeddings": 32,
        }
    },
    "attention_chunk_size": {"attention_chunk_size": 4},
    # the rest of the model
    "hidden_act missing": {"hidden_act": ...},
    "hidden_act swish": {"hidden_act": "swish"},
    "hidden_act gelu": {"hidden_act": "gelu"},
    "mlp_bias true": {"mlp_bias": True},
    "rms_norm_eps 0.1": {"rms_norm_eps": 0.1},
    "chunk_size_feed_forward": {"chunk_size_feed_forward": 4},
    "logit_scale": {"logit_scale": 0.5},
    "embedding_multiplier": {"embedding_multiplier": 12.0},
    "final_logit_softcapping": {"final_logit_softcapping": 0.1},
    "use_qk_norm": {"use_qk_norm": True},
    "use_logn_attn": {"use_logn_attn": True},
    "pruned_heads": {"pruned_heads": {"0": [0]}},
    "add_cross_attention": {"add_cross_attention": True},
    "is_encoder_decoder": {"is_encoder_decoder": True},
    "tie_encoder_decoder": {"tie_encoder_decoder": True},
    "per_layer_config": {"per_layer_config": {"1": {"num_attention_heads": 2}}},
    "text_config": {"text_config": {"rope_theta": 100.0, "rms_norm_eps": 0.1}},
    "torchscript": {"torchscript": True},
    "pretraining_tp": {"pretraining_tp": 2},
    "auto_map": {"auto_map": {"AutoModelForCausalLM": "modeling_other.Other"}},
    "architectures missing": {"architectures": ...},
    "architectures of the bare model": {"architectures": ["Qwen2Model"]},
    "pad -1": {"pad_token_id": -1},
    "bos -1": {"bos_token_id": -1},
    "eos -1": {"eos_token_id": -1},
    "something new": {"something_new": 7},
}
# What becomes of the tensors, beside a change of config.json.
TENSORS: dict[str, dict[str, Any]] = {
    "tied, no head": {"tie_word_embeddings": True},
    "tied, a copy as head": {"tie_word_embeddings": True},
    "tied, a copy in F32 of an embedding in BF16": {"tie_word_embeddings": True},
    "tied, a copy in BF16 of an embedding in F32": {"tie_word_embeddings": True},
    "tied, another head": {"tie_word_embeddings": True},
    "tied, only the head": {"tie_word_embeddings": True},
    "tie_word_embeddings missing, another head": {"tie_word_embeddings": ...},
    "tie_word_embeddings missing, no head": {"tie_word_embeddings": ...},
    "not tied, no head": {},
    "prefix _orig_mod.": {},
    "_orig_mod. in each layer": {},
    "prefix module.": {},
    "prefix base_model.model.": {},
    "prefix model.": {},
    "prefix transformer.": {},
    "no prefix, tied": {"tie_word_embeddings": True},
    "no prefix, not tied, no head": {},
    "no prefix, not tied, a head": {},
    "inv_freq": {},
    "a norm of heads": {},
    "o_proj.bias": {},
    "a layer more": {},
    "a layer less": {},
    "no q bias": {},
}
CASES = FIELDS | TENSORS
EMBED, HEAD, TORCH_COMPILE = "model.embed_tokens.weight", "lm_head.weight", "_orig_mod."


def values(count: int, seed: int) -> NDArray[np.float32]:
    """Uniform in [-1, 1), exact in BF16: from the raw bits of PCG64, which NumPy promises never to change."""
    raw = np.random.PCG64(seed).random_raw(count) >> np.uint64(57)
    return (raw.astype(np.float32) / 64 - 1).astype(np.float32)


def tensors_of(name: str) -> dict[str, tuple[str, NDArray[np.float32]]]:
    """name: (dtype, values) of the case."""
    shapes = {EMBED: (V, D), "model.norm.weight": (D,), HEAD: (V, D)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        shapes |= {f"{at}{norm}_layernorm.weight": (D,) for norm in ("input", "post_attention")}
        for p, rows in (("q", N * H), ("k", K * H), ("v", K * H)):
            shapes |= {f"{at}self_attn.{p}_proj.weight": (rows, D), f"{at}self_attn.{p}_proj.bias": (rows,)}
        shapes |= {f"{at}self_attn.o_proj.weight": (D, N * H), f"{at}mlp.down_proj.weight": (D, F)}
        shapes |= {f"{at}mlp.{p}_proj.weight": (F, D) for p in ("gate", "up")}
    found: dict[str, tuple[str, NDArray[np.float32]]] = {}
    for seed, (tensor, shape) in enumerate(shapes.items()):
        x = values(int(np.prod(shape)), seed).reshape(shape)
        found[tensor] = ("F32", (x / 4 + np.float32("norm" in tensor)).astype(np.float32))

    def renamed(rule: Any) -> None:
        for old in list(found):
            found[rule(old)] = found.pop(old)

    embed = found[EMBED][1]
    if name.startswith("tied") or name.endswith("no head") or name == "no prefix, tied":
        del found[HEAD]
    if name == "tied, only the head":
        found[HEAD] = found.pop(EMBED)
    if name.startswith("tied, a copy"):
        found[HEAD] = ("F32", embed)
    if name.endswith("an embedding in BF16"):
        found[EMBED] = ("BF16", embed)
    if name == "tied, a copy in BF16 of an embedding in F32":
        exact = embed + np.float32(2**-12)  # which BF16 rounds away
        found |= {EMBED: ("F32", exact), HEAD: ("BF16", exact)}
    if name == "tied, another head":
        found[HEAD] = ("F32", values(V * D, 99).reshape(V, D))
    if name.startswith("prefix"):
        renamed(lambda old: name.split()[1] + old)
    if name == "_orig_mod. in each layer":
        renamed(lambda old: old.replace(".self_attn.", ".self_attn._orig_mod.").replace(".mlp.", "._orig_mod.mlp."))
    if name.startswith("no prefix"):
        renamed(lambda old: old.removeprefix("model."))
    more = {"inv_freq": ("self_attn.rotary_emb.inv_freq", H // 2), "a norm of heads": ("self_attn.q_norm.weight", H),
            "o_proj.bias": ("self_attn.o_proj.bias", D)}  # fmt: skip
    if name in more:
        found |= {f"model.layers.{i}.{more[name][0]}": ("F32", values(more[name][1], 7)) for i in range(LAYERS)}
    if name == "a layer more":
        found |= {old.replace(".1.", ".2."): x for old, x in list(found.items()) if ".1." in old}
    if name == "a layer less":
        found = {old: x for old, x in found.items() if ".1." not in old}
    if name == "no q bias":
        found = {old: x for old, x in found.items() if not old.endswith("q_proj.bias")}
    return found


def write_case(folder: Path, name: str) -> None:
    """The case's config.json and model.safetensors, into an empty folder."""
    write_folder(folder, {k: v for k, v in (CONFIG | CASES[name]).items() if v is not ...}, name)


def write_folder(folder: Path, config: Mapping[str, Any], name: str = "as it is") -> None:
    """This config.json, and the case's model.safetensors."""
    write_tensors(folder, config, tensors_of(name))


def write_tensors(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, tuple[str, NDArray[np.float32]]]
) -> None:
    """A config.json, and a model.safetensors of (dtype, values) by name."""
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for tensor, (dtype, x) in sorted(tensors.items()):
        bits = np.ascontiguousarray(x, "<f4").view("<u4")
        raw = bits.tobytes() if dtype == "F32" else ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
        header[tensor] = {"dtype": dtype, "shape": x.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def ask(name: str) -> dict[str, Any]:
    """Transformers' answer to the case. loaded: tensors that it made up, did not use, or found too large or small."""
    import torch
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        write_case(Path(folder), name)
        try:
            model, info = auto.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
            with torch.no_grad():
                logits = model.eval()(torch.tensor([IDS])).logits[0, -1]
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    made_up = {kind: sorted(map(str, info[kind]))[:3] for kind in ("missing_keys", "unexpected_keys") if info[kind]}
    return made_up | ({} if "missing_keys" in made_up else {"logits": [float(f"{x:.9g}") for x in logits.tolist()]})


def main() -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    said = {"made by": "python -m qwenref.tools.dev.golden_config tests/golden/config.json", "versions": versions}
    cases = ",\n".join(f"{json.dumps(name)}: {json.dumps(ask(name))}" for name in CASES)
    text = f'{json.dumps(said)[:-1]},\n"cases": {{\n{cases}\n}}}}\n'
    json.loads(text)
    Path(sys.argv[1]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
