"""LoRA adapters and the model that they are for: added to its matrices (merged into them: merge.py)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import BadInput
from ..quant.tensor import QTensor
from .config import Config
from .dora import dora_of
from .files import Checkpoint, same_values
from .files.lora import Lora, Pair, read_lora
from .files.lora_gguf import read_gguf_lora
from .files.mapped import read_head
from .models.architecture import Architecture, Tensor
from .models.heads import KINDS
from .models.vision import find_vision
from .weights import Adapted, Adapter, Layer, Weights, parts, plain

# A folder, or an id of the hub; with ":0.5" behind it, or in a pair with a number, its scale is multiplied with that.
Spec: TypeAlias = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]


def opened_loras(specs: Spec | Sequence[Spec]) -> list[Lora]:
    """The adapters of one or several specifications, in their order. Raises BadInput that names what is wrong."""
    pair = isinstance(specs, tuple) and len(specs) == 2 and isinstance(specs[1], int | float)
    several: Sequence[Any] = [specs] if pair or isinstance(specs, str | os.PathLike) else list(specs)
    return [_read(*_split(spec)) for spec in several]


def _read(path: Path, factor: float) -> Lora:
    """A folder of PEFT's, or a GGUF file of llama.cpp's."""
    in_gguf = path.is_file() and read_head(path, 4) == b"GGUF"
    return read_gguf_lora(path, factor) if in_gguf else read_lora(path, factor)


def _split(spec: Spec) -> tuple[Path, float]:
    if isinstance(spec, tuple):
        path, factor = Path(spec[0]), spec[1]
    else:
        path, factor = Path(spec), 1.0
        scaled = re.fullmatch(r"(.+):([^:/\\]*)", os.fspath(spec), re.DOTALL)
        if scaled and not path.exists():
            path = Path(scaled[1])
            try:
                factor = float(scaled[2])
            except ValueError:
                raise BadInput(f"--lora {os.fspath(spec)}: the scale {scaled[2]!r:.80} is no number") from None
    if not path.exists():
        from .hub import find
        from .hub_id import adapter_files, hub_id

        if model_id := hub_id(os.fspath(path)):
            path = find(model_id, adapter_files)
    if isinstance(factor, bool) or not isfinite(factor):
        raise BadInput(f"--lora {path}: the scale {factor} must be a finite number")
    return path, float(factor)


def with_saved(checkpoint: Checkpoint, loras: Sequence[Lora]) -> Checkpoint:
    """The checkpoint with what these adapters hold of modules that were trained whole, and of biases, in place of its
    own tensors: a tied matrix becomes two, as in PEFT, unless the adapter ties them (ensure_weight_tying).

    Raises BadInput for a module that the model has not, of another shape, or that two adapters hold.
    """
    c, a = checkpoint.config, checkpoint.config.architecture
    whole = [*a.whole.values(), *KINDS[c.head.kind].tensors.values()]
    known = {t.hf for t in whole} | {t.hf.format(i) for i in range(c.num_hidden_layers) for t in _of_layer(a)}
    embed, head = a.whole["embed"].hf, a.whole["lm_head"].hf
    tensors = {a.renamed(name, "hf") or name: (name, w) for name, w in checkpoint.tensors.items()}
    if c.tie_word_embeddings:
        tensors[head] = (head, replace(tensors[embed][1], name=head))
    tied, seen = c.tie_word_embeddings, dict[str, Path]()
    for lora in loras:
        for name, w in lora.saved.items():
            hf = name if name in known else f"model.{name}"
            if hf not in known or hf not in tensors:
                if name in lora.biases:
                    raise BadInput(f"{lora.path}: {name}: the model has no such bias; it was trained on another model")
                raise BadInput(f"{lora.path}: {_unknown(name.rpartition('.')[0], c)}")
            if w.shape != tensors[hf][1].shape:
                raise BadInput(
                    f"{lora.path}: {name} is {list(w.shape)}, and this model's {list(tensors[hf][1].shape)}; it has "
                    "grown, or was trained on another model"
                )
            if hf in seen:
                raise BadInput(f"{lora.path}: holds another {name} than {seen[hf]}; two cannot be added")
            seen[hf] = lora.path
            tensors[hf] = (hf, replace(w, name=hf))
        for hf in known:
            module = hf.rpartition(".")[0]
            if module.endswith(lora.saved_of) and not any(one.rpartition(".")[0] == module for one in seen):
                raise BadInput(f"{lora.path}: modules_to_save names {module}, and there is no tensor of it")
        own = [tensors[hf][1] for hf in (embed, head) if seen.get(hf) is lora.path]
        if own and lora.tied:
            if not same_values(own[0], own[-1]):
                raise BadInput(f"{lora.path}: ensure_weight_tying, and its embed_tokens and lm_head are not the same")
            tensors.update({hf: (hf, replace(own[0], name=hf)) for hf in (embed, head)})
        elif own:
            tied = False
    if tied:
        tensors.pop(head)
    found = {name: w for name, w in tensors.values()}
    return replace(checkpoint, tensors=found, config=replace(c, tie_word_embeddings=tied))


def _of_layer(a: Architecture) -> list[Tensor]:
    return [t for stacked in a.pieces.values() for t in stacked]


def with_loras(w: Weights, loras: Sequence[Lora]) -> Weights:
    """The weights with these adapters added, in this order.

    Raises BadInput for a module that the model has not, and for one of another shape.
    """
    for lora in loras:
        w = _with_lora(w, lora)
    return w


def _with_lora(w: Weights, lora: Lora) -> Weights:
    places, arch = modules_of(w.config), w.config.architecture
    by_ggml = {str(arch.renamed(f"{name}.weight", "ggml")).removesuffix(".weight"): name for name in places}
    sees = find_vision(lora.architecture, by="gguf")
    if lora.architecture not in ("", arch.gguf) and (sees is None or sees.text is not arch):
        raise BadInput(f"{lora.path}: is for {lora.architecture:.80}, and this model is {arch.gguf}")
    own: dict[tuple[int | None, str, int], Adapter] = {}
    for module, a in lora.modules.items():
        ggml = module in by_ggml
        name = by_ggml.get(module) or (module if module in places else f"model.{module}")
        if name not in places:
            raise BadInput(f"{lora.path}: {_unknown(module, w.config)}")
        layer, field, part = places[name]
        matrix = parts(getattr(w if layer is None else w.layers[layer], field))[part]
        if matrix is None:
            raise BadInput(f"{lora.path}: {module}: this model ends in no head that an adapter could belong to")
        up = arch.in_order(replace(a.up, name=f"{module}.weight"), "hf", w.config.sizes) if ggml else a.up
        own[layer, field, part] = _adapter(lora, module, a._replace(up=up), matrix, by_column=field == "embed")
    if lora.tied:
        _tie(lora, own, w)

    for module, copy in lora.copies.items():
        whole = plain(w.embed) if module.endswith("embed_tokens") else plain(w.lm_head)
        if whole is None or not same_values(copy, whole):
            raise BadInput(
                f"{lora.path}: holds another {module} than this model's, which was trained, has grown or is "
                "quantised; merge the adapter into the model that it was trained on"
            )

    def adapted(node: Layer | Weights, layer: int | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for f in fields(node):
            if (f.type == "Matrix" or f.name == "embed") and any((layer, f.name) == key[:2] for key in own):
                leaf = getattr(node, f.name)
                more = tuple(_with(p, own.get((layer, f.name, i))) for i, p in enumerate(parts(leaf)))
                found[f.name] = more if isinstance(leaf, tuple) else more[0]
        return found

    layers = tuple(replace(layer, **adapted(layer, i)) for i, layer in enumerate(w.layers))
    return replace(w, layers=layers, **adapted(w, None))


def _adapter(lora: Lora, module: str, a: Pair, matrix: QTensor | Adapted, by_column: bool) -> Adapter:
    """An adapter of this matrix. by_column: it is the embedding. Raises BadInput for another shape."""
    shape, width = (a.up.shape[0], a.down.shape[1]), matrix.shape[by_column]
    if shape != matrix.shape:
        raise BadInput(
            f"{lora.path}: {module}: is for a matrix of {list(shape)}, and this model's is {list(matrix.shape)}; "
            "it was trained on another model"
        )
    for what, values in (("lora_magnitude_vector", a.magnitude), ("lora_B.bias", a.bias)):
        if values is not None and values.shape != (width,):
            raise BadInput(f"{lora.path}: {module}: {what} is {list(values.shape)}, and must be [{width}]")
    if a.magnitude is None:
        return Adapter(a.down, a.up, a.scale, a.bias)
    dora = dora_of(plain(matrix), a.down, a.up, a.magnitude, by_column)
    with np.errstate(divide="ignore", invalid="ignore"):
        finite = np.isfinite(dora.gain(a.scale))
    if not finite.all():
        what = f"{'column' if by_column else 'row'} {int(finite.argmin())}"
        raise BadInput(f"{lora.path}: {module}: {what} of matrix and adapter is 0, and DoRA divides by its length")
    return Adapter(a.down, a.up, a.scale, None, dora)


def _tie(lora: Lora, own: dict[tuple[int | None, str, int], Adapter], w: Weights) -> None:
    """Gives head and embedding the same adapter (ensure_weight_tying). Raises BadInput for two, or untied matrices."""
    embed, head = (own.get((None, field, 0)) for field in ("embed", "lm_head"))
    one = embed or head
    if one is None:
        return
    if not w.config.tie_word_embeddings:
        raise BadInput(f"{lora.path}: ensure_weight_tying, and this model's head is not tied to its embedding")
    if embed and head:
        if not (same_values(embed.down, head.down) and same_values(embed.up, head.up)):
            raise BadInput(f"{lora.path}: ensure_weight_tying, and the adapters of embed_tokens and lm_head differ")
        if one.dora or embed.scale != head.scale:
            return
    elif one.dora:
        raise BadInput(f"{lora.path}: ensure_weight_tying with use_dora, and one of head and embedding has no adapter")
    own[None, "embed", 0] = own[None, "lm_head", 0] = one


def _with(matrix: QTensor | Adapted, a: Adapter | None) -> QTensor | Adapted:
    if a is None:
        return matrix
    if isinstance(matrix, Adapted):
        return Adapted(matrix.base, (*matrix.adapters, a))
    return Adapted(matrix, (a,))


def modules_of(c: Config) -> dict[str, tuple[int | None, str, int]]:
    """The modules that an adapter may be of, by Transformers' names: layer, field of Layer or Weights, part of it."""
    kinds = {f.name for node in (Layer, Weights) for f in fields(node) if f.type == "Matrix"} | {"embed"}
    a = c.architecture
    found: dict[str, tuple[int | None, str, int]] = {
        t.hf.removesuffix(".weight"): (None, field, 0) for field, t in a.whole.items() if field in kinds
    }
    for i in range(c.num_hidden_layers):
        for field, stacked in a.layer.items():
            for part, t in enumerate(stacked if field in kinds else ()):
                found[t.hf.format(i).removesuffix(".weight")] = (i, field, part)
    return found


def _unknown(module: str, c: Config) -> str:
    layer = re.search(r"\.layers\.(\d+)\.", f".{module}")
    if layer and int(layer[1]) >= c.num_hidden_layers:
        return f"{module}: the model has layers 0 to {c.num_hidden_layers - 1}; it was trained on another model"
    known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in modules_of(c)))
    return f"{module}: the model has no such matrix; adapters may be of {known}"
