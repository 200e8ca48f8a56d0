"""LoRA adapters as PEFT saves them: a folder of adapter_config.json and adapter_model.safetensors.

What a field does to the result is from PEFT's own sources (tuners/lora/config.py, layer.py). Fields that would change
it otherwise than by scale * up (down x) are refused by their names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import BadInput, blamed_on
from ...quant.tensor import QTensor, dequantize, transposed
from .hf_tokenizer import read_object
from .safetensors_header import read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# Fields that say where an adapter came from, or how it was trained.
TOLD = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_core", "runtime_config", "eva_config", "loftq_config", "qalora_group_size",
    "layers_pattern",
}  # fmt: skip
READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "bias",
    "exclude_modules", "layers_to_transform", "init_lora_weights", "modules_to_save",
}  # fmt: skip
# What leaves the base as it is; the others (pissa, olora, corda, loftq ...) change it before training.
STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
PATTERN = re.compile(r"[\w.^$\\*|-]{1,200}", re.ASCII)  # without groups, so that matching takes no exponential time
# A tensor of a module that was trained whole, as PEFT 0.9 and later name it, and before.
SAVED = re.compile(r"(?:base_model\.model\.)?([\w.]+?)(?:\.modules_to_save(?:\.default)?)?\.(weight|bias)", re.ASCII)
HALF = re.compile(r"(?:base_model\.model\.)?([\w.]+)\.lora_([AB])(?:\.default)?\.weight", re.ASCII)
OF_EMBEDDING = re.compile(
    r"(?:base_model\.model\.)?([\w.]*embed_tokens)\.lora_embedding_([AB])(?:\.default)?", re.ASCII
)
COPY = re.compile(r"(?:base_model\.model\.)?((?:[\w.]+\.)?(?:embed_tokens|lm_head))(?:\.base_layer)?\.weight", re.ASCII)


class Pair(NamedTuple):
    """What is added to a matrix [O, I]: scale * up (down x), with down [r, I] and up [O, r], both F32."""

    down: QTensor
    up: QTensor
    scale: float


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter that was opened. modules: by the names that it has for the base's modules. copies: the base's matrices
    that PEFT saved too, by their modules: where the head has an adapter, it saves head and embedding, in case they have
    grown. saved: tensors of modules that were trained whole, by the base's names of them; saved_of: what the
    configuration names so (modules_to_save). architecture: GGUF's name of the base's, where the file says it. factor:
    what its own scales were multiplied with; sha256: of its weights.
    """

    path: Path
    modules: Mapping[str, Pair]
    copies: Mapping[str, QTensor]
    factor: float
    sha256: str
    saved: Mapping[str, QTensor] = field(default_factory=dict)
    saved_of: tuple[str, ...] = ()
    architecture: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"name": self.path.absolute().name, "sha256": self.sha256, "scale": self.factor}


def read_lora(path: Path, factor: float = 1.0) -> Lora:
    """The adapter of a folder, or of its adapter_model.safetensors; every scale times `factor`.

    Raises BadInput that names the file, and the field or tensor that is wrong, or that does more than LoRA does here.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        what = "no such folder" if not path.exists() else f"no {CONFIG} there; an adapter is a folder as PEFT saves it"
        raise BadInput(f"--lora {path}: {what}")
    with blamed_on(folder / CONFIG):
        said = read_object(folder / CONFIG)
        _check(said)
    if not (folder / WEIGHTS).is_file():
        other = next((p.name for p in sorted(folder.glob("adapter_model*"))), None)
        raise BadInput(f"{folder}: no {WEIGHTS}" + (f"; {other} is a pickle, and never opened" if other else ""))
    held, _ = read_tensors(folder / WEIGHTS, BYTES)
    if not held:
        raise BadInput(f"{folder / WEIGHTS}: holds no tensor")
    with blamed_on(folder / WEIGHTS):
        tensors = {name: QTensor(dtype, shape, data, name) for name, (dtype, shape, data) in held.items()}
        whole = tuple(said.get("modules_to_save") or ())
        saved = _saved(tensors, whole)
        own = {w.name for w in saved.values()}
        halves, copies = _halves({name: w for name, w in tensors.items() if name not in own})
    modules = {}
    for module, (down, up) in halves.items():
        with blamed_on(folder / CONFIG):
            _check_wanted(said, module)
            rank = int(_of_module(said, "rank_pattern", module, said["r"]))
            alpha = _of_module(said, "alpha_pattern", module, said["lora_alpha"])
        if down.shape[0] != rank or up.shape[1] != rank:
            shapes = f"{list(down.shape)} and {list(up.shape)}"
            raise BadInput(f"{folder / WEIGHTS}: {module}: lora_A and lora_B are {shapes}; r is {rank} in {CONFIG}")
        # The order of PEFT's set_scale, which has the same bits where the factor is 1.
        scale = factor * alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)
        modules[module] = Pair(down, up, scale)
    with (folder / WEIGHTS).open("rb") as file:
        sha256 = file_digest(file, "sha256").hexdigest()
    if saved and factor != 1:
        raise BadInput(f"--lora {path}: {whole[0]} was trained whole, and has no scale; leave {factor} out")
    return Lora(folder, modules, copies, factor, sha256, saved, whole)


def _check(said: Mapping[str, Any]) -> None:
    """Raises BadInput for a configuration that is not LoRA's, or that asks for more."""
    kind = said.get("peft_type")
    if kind != "LORA":
        raise BadInput(f"peft_type is {kind!r:.80}; only LORA is computed")
    for name in ("r", "lora_alpha"):
        value = said.get(name)
        whole = name == "r"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < 1e6:
            raise BadInput(f"{name} is {value!r:.80}; it must be a {'whole ' if whole else ''}number above 0")
    if said.get("bias", "none") != "none":
        raise BadInput(f"bias is {said['bias']!r:.80}: trained biases are not supported; merge the adapter")
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
            if not PATTERN.fullmatch(key) or key.count("*") > 2:
                raise BadInput(f"{name}: {key!r:.80} is not understood; a module's name, dots and two stars are")
            try:
                re.compile(key)
            except re.error as error:
                raise BadInput(f"{name}: {key!r:.80} is no pattern: {error}") from None


def _of_module(said: Mapping[str, Any], field: str, module: str, usual: float) -> float:
    """A number of this module, by the first pattern that fits the end of its name, as PEFT's get_pattern_key."""
    for key, value in (said.get(field) or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return usual


def _check_wanted(said: Mapping[str, Any], module: str) -> None:
    """Raises BadInput for weights of a module that the configuration does not name: PEFT would not load them. A pattern
    (target_modules as one text) is taken to fit what was saved."""
    targets, layers = said.get("target_modules"), said.get("layers_to_transform")
    if isinstance(targets, list) and not _named(module, targets):
        raise BadInput(f"target_modules does not name {module}, of which {WEIGHTS} has weights")
    if isinstance(said.get("exclude_modules"), list) and _named(module, said["exclude_modules"]):
        raise BadInput(f"exclude_modules names {module}, of which {WEIGHTS} has weights")
    layer = re.search(r"\.(\d+)\.", module)
    wanted = [layers] if isinstance(layers, int) else layers
    if wanted and isinstance(wanted, list) and (layer is None or int(layer[1]) not in wanted):
        raise BadInput(f"layers_to_transform does not name {module}, of which {WEIGHTS} has weights")


def _named(module: str, names: Sequence[str]) -> bool:
    """Whether one of these is the module's name, or the end of it."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def _saved(tensors: Mapping[str, QTensor], modules: Sequence[str]) -> dict[str, QTensor]:
    """The tensors of modules that were trained whole, by the base's names: those that end in one of these texts, for
    PEFT does not ask for a dot before it. Raises BadInput for values that are none."""
    found: dict[str, QTensor] = {}
    for name, w in tensors.items():
        part = SAVED.fullmatch(name)
        if part is None or ".lora_" in name or not part[1].endswith(tuple(modules)):
            continue
        own = f"{part[1]}.{part[2]}"
        if own in found:
            raise BadInput(f"tensor {name!r:.120}: {part[1]} has two of it")
        if not np.isfinite(dequantize(w)).all():
            raise BadInput(f"tensor {name}: holds values that are not finite")
        found[own] = w
    return found


Halves = dict[str, tuple[QTensor, QTensor]]


def _halves(tensors: Mapping[str, QTensor]) -> tuple[Halves, dict[str, QTensor]]:
    """down and up of each module, in float32, which PEFT computes with; and copies of the base's. Raises BadInput for
    what is neither."""
    found: dict[str, dict[str, QTensor]] = {}
    copies: dict[str, QTensor] = {}
    for name, w in tensors.items():
        if copy := COPY.fullmatch(name):
            copies[copy[1]] = w
            continue
        part = HALF.fullmatch(name) or OF_EMBEDDING.fullmatch(name)
        if part is None:
            raise BadInput(f"tensor {name!r:.120}: {_kind(name)}")
        if len(w.shape) != 2 or 0 in w.shape:
            raise BadInput(f"tensor {name}: shape {list(w.shape)}; a matrix is needed")
        if part[2] in found.setdefault(part[1], {}):
            raise BadInput(f"tensor {name!r:.120}: {part[1]} has two of it")
        found[part[1]][part[2]] = as_f32(w)
        if part.re is OF_EMBEDDING:  # the matrix's rows are looked up, and these are its columns
            found[part[1]][part[2]] = transposed(found[part[1]][part[2]])
    for module, halves in found.items():
        if len(halves) != 2:
            raise BadInput(f"{module}: lora_{'B' if 'A' in halves else 'A'} is missing")
        if module.endswith("embed_tokens"):
            halves["A"], halves["B"] = halves["B"], halves["A"]
    return {module: (halves["A"], halves["B"]) for module, halves in found.items()}, copies


def as_f32(w: QTensor) -> QTensor:
    """In float32, which PEFT computes with. Raises BadInput for values that are none."""
    values = dequantize(w)
    if not np.isfinite(values).all():
        raise BadInput(f"tensor {w.name}: {int((~np.isfinite(values)).sum())} values are not finite")
    return QTensor("F32", w.shape, values.reshape(-1).view(np.uint8), w.name)


def _kind(name: str) -> str:
    """What a tensor is that is no half of a plain LoRA."""
    for mark, what in (
        ("lora_magnitude", "of DoRA (use_dora)"),
        (".bias", "a bias (lora_bias)"),
        ("modules_to_save", "a module that was trained whole (modules_to_save)"),
        ("trainable_tokens", "trained rows of the embedding (trainable_token_indices)"),
    ):
        if mark in name:
            return f"{what}, which is not supported; merge the adapter"
    return "not lora_A or lora_B of a module; is it an adapter as PEFT saves it?"
