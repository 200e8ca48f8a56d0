"""LoRA adapters as PEFT saves them: a folder of adapter_config.json and adapter_model.safetensors.

What the fields of its configuration do is in lora_config.py.
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
from numpy.typing import NDArray

from ...errors import BadInput, blamed_on
from ...quant.tensor import QTensor, dequantize, transposed
from .hf_tokenizer import read_object
from .lora_config import CONFIG, ONES, WEIGHTS, check, check_wanted, of_module
from .safetensors_header import read_tensors

BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# What a matrix's adapter may have beside its halves: the field that asks for it, and its tensor's name.
VECTORS = {"bias": ("lora_bias", "lora_B.bias"), "magnitude": ("use_dora", "lora_magnitude_vector")}
# A tensor of a module that was trained whole, as PEFT 0.9 and later name it, and before.
SAVED = re.compile(r"(?:base_model\.model\.)?([\w.]+?)(?:\.modules_to_save(?:\.default)?)?\.(weight|bias)", re.ASCII)
HALF = re.compile(r"(?:base_model\.model\.)?([\w.]+)\.lora_([AB])(?:\.default)?\.weight", re.ASCII)
VECTOR = re.compile(
    r"(?:base_model\.model\.)?([\w.]+)\.(?:lora_(magnitude)_vector(?:\.default)?(?:\.weight)?|lora_B(?:\.default)?\.(bias))",
    re.ASCII,
)
BIAS = re.compile(r"(?:base_model\.model\.)?([\w.]+?)(?:\.base_layer)?\.bias", re.ASCII)  # the base's, trained
OF_EMBEDDING = re.compile(
    r"(?:base_model\.model\.)?([\w.]*embed_tokens)\.lora_embedding_([AB])(?:\.default)?", re.ASCII
)
COPY = re.compile(r"(?:base_model\.model\.)?((?:[\w.]+\.)?(?:embed_tokens|lm_head))(?:\.base_layer)?\.weight", re.ASCII)

Values = NDArray[np.float64]


class Pair(NamedTuple):
    """What is added to a matrix [O, I]: scale * (up (down x) + bias), with down [r, I] and up [O, r], both F32, and of
    some bias [O]. magnitude: of DoRA, how long each row is made, [O]; of an embedding each column, [I]."""

    down: QTensor
    up: QTensor
    scale: float
    bias: Values | None = None
    magnitude: Values | None = None


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter that was opened. modules: by the names that it has for the base's modules. copies: the base's matrices
    that PEFT saved too, by their modules: where the head has an adapter, it saves head and embedding, in case they have
    grown. saved: tensors of modules that were trained whole, and biases, by the base's names of them; saved_of: what
    the configuration names so (modules_to_save); biases: which of them are there for their own sake (bias). tied: head
    and embedding have one adapter (ensure_weight_tying). architecture: GGUF's name of the base's, where the file says
    it. factor: what its own scales were multiplied with; sha256: of its weights.
    """

    path: Path
    modules: Mapping[str, Pair]
    copies: Mapping[str, QTensor]
    factor: float
    sha256: str
    saved: Mapping[str, QTensor] = field(default_factory=dict)
    saved_of: tuple[str, ...] = ()
    biases: frozenset[str] = frozenset()
    tied: bool = False
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
        check(said)
    if not (folder / WEIGHTS).is_file():
        other = next((p.name for p in sorted(folder.glob("adapter_model*"))), None)
        raise BadInput(f"{folder}: no {WEIGHTS}" + (f"; {other} is a pickle, and never opened" if other else ""))
    held, _ = read_tensors(folder / WEIGHTS, BYTES)
    if not held:
        raise BadInput(f"{folder / WEIGHTS}: holds no tensor")
    with blamed_on(folder / WEIGHTS):
        tensors = {name: QTensor(dtype, shape, data, name) for name, (dtype, shape, data) in held.items()}
        whole, tied = tuple(said.get("modules_to_save") or ()), said.get("ensure_weight_tying") is True
        ends = (*whole, *ONES) if tied and any(name.endswith(ONES) for name in whole) else whole
        saved = _saved(tensors, ends)
        own = {w.name for w in saved.values()}
        biases = _biases({name: w for name, w in tensors.items() if name not in own}, said.get("bias", "none"))
        own |= {w.name for w in biases.values()}
        halves, vectors, copies = _halves({name: w for name, w in tensors.items() if name not in own})
    modules = {}
    for module, (down, up) in halves.items():
        with blamed_on(folder / CONFIG):
            check_wanted(said, module)
            rank = int(of_module(said, "rank_pattern", module, said["r"]))
            alpha = of_module(said, "alpha_pattern", module, said["lora_alpha"])
        if down.shape[0] != rank or up.shape[1] != rank:
            shapes = f"{list(down.shape)} and {list(up.shape)}"
            raise BadInput(f"{folder / WEIGHTS}: {module}: lora_A and lora_B are {shapes}; r is {rank} in {CONFIG}")
        # The order of PEFT's set_scale, which has the same bits where the factor is 1.
        scale = factor * alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)
        more = {}
        for kind, (asked, name) in VECTORS.items():
            more[kind] = vectors.pop((module, kind), None)
            if (more[kind] is not None) != bool(said.get(asked)):
                odd = f"{name} is {'missing' if said.get(asked) else 'there'}; {asked} is {said.get(asked)} in {CONFIG}"
                raise BadInput(f"{folder / WEIGHTS}: {module}: {odd}")
        modules[module] = Pair(down, up, scale, more["bias"], more["magnitude"])
    if alone := next(iter(vectors), None):
        what = f"{VECTORS[alone[1]][1]} is there, and lora_A and lora_B are missing"
        raise BadInput(f"{folder / WEIGHTS}: {alone[0]}: {what}")
    with (folder / WEIGHTS).open("rb") as file:
        sha256 = file_digest(file, "sha256").hexdigest()
    if (saved or biases) and factor != 1:
        what = whole[0] if saved else f"{next(iter(biases))} (bias)"
        raise BadInput(f"--lora {path}: {what} was trained whole, and has no scale; leave {factor} out")
    return Lora(folder, modules, copies, factor, sha256, saved | biases, whole, frozenset(biases), tied)


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
Vectors = dict[tuple[str, str], Values]


def _halves(tensors: Mapping[str, QTensor]) -> tuple[Halves, Vectors, dict[str, QTensor]]:
    """down and up of each module, in float32, which PEFT computes with; what it has beside them; and copies of the
    base's. Raises BadInput for what is none of these."""
    found: dict[str, dict[str, QTensor]] = {}
    vectors: Vectors = {}
    copies: dict[str, QTensor] = {}
    for name, w in tensors.items():
        if copy := COPY.fullmatch(name):
            copies[copy[1]] = w
            continue
        if beside := VECTOR.fullmatch(name):
            if len(w.shape) != 1 or 0 in w.shape:
                raise BadInput(f"tensor {name}: shape {list(w.shape)}; a vector is needed")
            vectors[beside[1], beside[2] or beside[3]] = dequantize(as_f32(w)).astype(np.float64)
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
    return {module: (halves["A"], halves["B"]) for module, halves in found.items()}, vectors, copies


def _biases(tensors: Mapping[str, QTensor], wanted: Any) -> dict[str, QTensor]:
    """The base's biases that were trained, by its names of them. Raises BadInput where none were asked for."""
    found: dict[str, QTensor] = {}
    for name, w in tensors.items():
        if ".lora_" in name or not (bias := BIAS.fullmatch(name)):
            continue
        if wanted == "none":
            raise BadInput(f"tensor {name!r:.120}: a bias of the base's, and bias is none in {CONFIG}")
        if f"{bias[1]}.bias" in found:
            raise BadInput(f"tensor {name!r:.120}: {bias[1]} has two of it")
        as_f32(w)
        found[f"{bias[1]}.bias"] = w
    return found


def as_f32(w: QTensor) -> QTensor:
    """In float32, which PEFT computes with. Raises BadInput for values that are none."""
    values = dequantize(w)
    if not np.isfinite(values).all():
        raise BadInput(f"tensor {w.name}: {int((~np.isfinite(values)).sum())} values are not finite")
    return QTensor("F32", w.shape, values.reshape(-1).view(np.uint8), w.name)


def _kind(name: str) -> str:
    """What a tensor is that is no half of a plain LoRA."""
    for mark, what in (
        ("modules_to_save", "a module that was trained whole (modules_to_save)"),
        ("trainable_tokens", "trained rows of the embedding (trainable_token_indices)"),
    ):
        if mark in name:
            return f"{what}, which is not supported; merge the adapter"
    return "not lora_A or lora_B of a module; is it an adapter as PEFT saves it?"
