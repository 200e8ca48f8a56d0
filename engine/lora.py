"""LoRA adapters and the model that they are for: added to its matrices, or merged into them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from ..quant.tensor import QTensor, dequantize, quantize, row_slabs
from .config import Config
from .files import Checkpoint, same_values
from .files.lora import Lora, read_lora
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
    """The checkpoint with what these adapters hold of modules that were trained whole, in place of its own tensors: a
    tied matrix becomes two, as in PEFT.

    Raises BadInput for a module that the model has not, of another shape, or that two adapters hold.
    """
    c, a = checkpoint.config, checkpoint.config.architecture
    whole = [*a.whole.values(), *KINDS[c.head.kind].tensors.values()]
    known = {t.hf for t in whole} | {t.hf.format(i) for i in range(c.num_hidden_layers) for t in _of_layer(a)}
    embed, head = a.whole["embed"].hf, a.whole["lm_head"].hf
    tensors = {a.renamed(name, "hf") or name: (name, w) for name, w in checkpoint.tensors.items()}
    if c.tie_word_embeddings:
        tensors[head] = (head, replace(tensors[embed][1], name=head))
    seen: dict[str, Path] = {}
    for lora in loras:
        for name, w in lora.saved.items():
            hf = name if name in known else f"model.{name}"
            if hf not in known or hf not in tensors:
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
    tied = c.tie_word_embeddings and not {embed, head} & seen.keys()
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
        shape = (a.up.shape[0], a.down.shape[1])
        if shape != matrix.shape:
            raise BadInput(
                f"{lora.path}: {module}: is for a matrix of {list(shape)}, and this model's is {list(matrix.shape)}; "
                "it was trained on another model"
            )
        up = replace(a.up, name=f"{module}.weight")
        own[layer, field, part] = Adapter(a.down, arch.in_order(up, "hf", w.config.sizes) if ggml else a.up, a.scale)

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


def merged(checkpoint: Checkpoint, w: Weights) -> tuple[Checkpoint, list[str]]:
    """The checkpoint with the adapters of its weights merged: W + scale up down, summed in float64 and rounded to the
    format of W or, where that has blocks, to float32. And a line for each format, with how many became it.

    Raises BadInput for a tied head, which is the embedding too.
    """
    a = checkpoint.config.architecture
    mine = {a.renamed(name, "hf"): name for name in checkpoint.tensors}
    new, formats = dict[str, QTensor](), Counter[str]()
    last: list[Any] = [None, None]
    for part in w.adapted_matrices():
        if part.base is plain(w.embed) and w.config.tie_word_embeddings:
            raise BadInput(
                f"{checkpoint.path}: the head is tied to the embedding, and an adapter of one alone cannot be merged; "
                "give the adapter to engine run as it is"
            )
        hf = str(a.renamed(part.name, "hf"))
        new[mine[hf]] = made = _Merged(part, last, hf)  # whose rows are in the order of that name
        formats[made.format] += 1
    said = [f"{n} matrices merged with their adapters: values rounded to {format}" for format, n in formats.items()]
    tensors = {(new[name].name if name in new else name): new.get(name, w) for name, w in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors), said


class _Merged(QTensor):
    """A tensor whose bytes are made when they are asked for. Only the last one's are kept: a model's would not fit into
    memory, and each is read to its end before the next.

    last: the part whose bytes were made last, and these.
    """

    _part: Adapted
    _last: list[Any]

    def __init__(self, part: Adapted, last: list[Any], name: str) -> None:
        format = part.base.format if part.base.format in {"F16", "BF16"} else "F32"
        own = {"format": format, "shape": part.shape, "name": name, "_part": part, "_last": last}
        for field, value in own.items():
            object.__setattr__(self, field, value)

    @property
    def data(self) -> NDArray[np.uint8]:
        last: list[Any] = self._last
        if last[0] is not self._part:
            last[:] = self._part, np.concatenate([self._rows(*cut) for cut in row_slabs(self._part.base)])
        made: NDArray[np.uint8] = last[1]
        return made

    def _rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        values = dequantize(self._part.base, start, stop).astype(np.float64)
        for a in self._part.adapters:
            up, down = dequantize(a.up, start, stop).astype(np.float64), dequantize(a.down).astype(np.float64)
            values += a.scale * (up @ down)
        return quantize(values, self.format, self.name).data
