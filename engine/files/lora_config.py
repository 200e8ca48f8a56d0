"""What the fields of an adapter's adapter_config.json do to the result, from PEFT's own sources (tuners/lora/config.py,
layer.py, dora.py). Those that would change it otherwise than by LoRA, DoRA and trained biases are refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import BadInput

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ONES = ("embed_tokens", "lm_head")  # which ensure_weight_tying makes one
# Fields that say where an adapter came from, or how it was trained.
TOLD = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_core", "runtime_config", "eva_config", "loftq_config", "qalora_group_size",
    "layers_pattern",
}  # fmt: skip
READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "bias",
    "exclude_modules", "layers_to_transform", "init_lora_weights", "modules_to_save", "use_dora", "lora_bias",
    "ensure_weight_tying",
}  # fmt: skip
# What leaves the base as it is; the others (pissa, olora, corda, loftq ...) change it before training.
STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
# A pattern of names: two repetitions and two groups, none of them repeated, so that matching takes no exponential time.
PATTERN = re.compile(r"(?!(?:.*?[*+]){3})(?!(?:.*?\(){3})(?:[\w.^$\\|()-]|\(\?:|(?<!\))[*+])" + "{1,200}", re.ASCII)


def check(said: Mapping[str, Any]) -> None:
    """Raises BadInput for a configuration that is not LoRA's, or that asks for more."""
    kind = said.get("peft_type")
    if kind != "LORA":
        raise BadInput(f"peft_type is {kind!r:.80}; only LORA is computed")
    for name in ("r", "lora_alpha"):
        value = said.get(name)
        whole = name == "r"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < 1e6:
            raise BadInput(f"{name} is {value!r:.80}; it must be a {'whole ' if whole else ''}number above 0")
    if said.get("bias", "none") not in ("none", "all", "lora_only"):
        raise BadInput(f"bias is {said['bias']!r:.80}; there are none, all and lora_only")
    for name in ("use_dora", "lora_bias", "ensure_weight_tying", "use_rslora"):
        if not isinstance(said.get(name), bool | None):
            raise BadInput(f"{name} is {said[name]!r:.80}; it must be true or false")
    if said.get("use_dora") and said.get("lora_bias"):
        raise BadInput("use_dora and lora_bias are both set, which PEFT refuses; an adapter has one of them")
    start = said.get("init_lora_weights")
    if not any(start is known or (isinstance(start, str) and start == known) for known in STARTS):
        raise BadInput(f"init_lora_weights is {start!r:.80}, which changes the base's weights; merge the adapter")
    for name, value in said.items():
        neutral = value is None or value is False or value in ({}, [])
        if name not in READ | TOLD and not neutral:
            raise BadInput(f"{name} is {value!r:.80}: it changes the result and is not supported; merge the adapter")
    listed = said.get("modules_to_save") or []
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise BadInput(f"modules_to_save is {listed!r:.80}; it must be a list of modules' names")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = said.get(name) or {}
        if not isinstance(pattern, dict):
            raise BadInput(f"{name} must be an object that gives a number for a module's name")
        for key, value in pattern.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
            if not number or (name == "rank_pattern" and not isinstance(value, int)):
                raise BadInput(f"{name}: {key!r:.80} is {value!r:.80}; it must be a number above 0")
            if not PATTERN.fullmatch(key):
                what = "a module's name, dots, two stars and two groups are"
                raise BadInput(f"{name}: {key!r:.80} is not understood; {what}")
            try:
                re.compile(key)
            except re.error as error:
                raise BadInput(f"{name}: {key!r:.80} is no pattern: {error}") from None


def of_module(said: Mapping[str, Any], field: str, module: str, usual: float) -> float:
    """A number of this module, by the first pattern that fits the end of its name, as PEFT's get_pattern_key."""
    for key, value in (said.get(field) or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return usual


def check_wanted(said: Mapping[str, Any], module: str) -> None:
    """Raises BadInput for weights of a module that the configuration does not name: PEFT would not load them. A pattern
    (target_modules as one text) that may take for ever to match is taken to fit what was saved."""
    targets, layers = said.get("target_modules"), said.get("layers_to_transform")
    if said.get("ensure_weight_tying") and isinstance(targets, list) and _named(module, ONES):
        targets = [*targets, *ONES] if any(name.endswith(ONES) for name in targets) else targets
    if isinstance(targets, str):
        odd = targets != "all-linear" and _understood(targets) and not re.fullmatch(targets, module)
    else:
        odd = isinstance(targets, list) and not _named(module, targets)
    if odd:
        raise BadInput(f"target_modules does not name {module}, of which {WEIGHTS} has weights")
    out = said.get("exclude_modules")
    if (isinstance(out, list) and _named(module, out)) or (
        isinstance(out, str) and _understood(out) and re.fullmatch(out, module)
    ):
        raise BadInput(f"exclude_modules names {module}, of which {WEIGHTS} has weights")
    layer = re.search(r"\.(\d+)\.", module)
    wanted = [layers] if isinstance(layers, int) else layers
    if wanted and isinstance(wanted, list) and (layer is None or int(layer[1]) not in wanted):
        raise BadInput(f"layers_to_transform does not name {module}, of which {WEIGHTS} has weights")


def _understood(pattern: str) -> bool:
    """Whether a text is a pattern of names that is matched at once."""
    try:
        return PATTERN.fullmatch(pattern) is not None and re.compile(pattern) is not None
    except re.error:
        return False


def _named(module: str, names: Sequence[str]) -> bool:
    """Whether one of these is the module's name, or the end of it."""
    return any(module == name or module.endswith(f".{name}") for name in names)
