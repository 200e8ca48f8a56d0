"""What a file of this folder states: how an architecture's tensors and keys are called, and which pieces it has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

from ...quant.tensor import QTensor
from ..config_keys import Keys

Spelling = Literal["hf", "ggml"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint.

    hf, ggml: its name in Hugging Face's files and in ggml's; {} is the layer.
    axes: its shape, outermost first, each axis a product of sizes by shape letter (Config.sizes): "NH D".
    """

    role: str
    hf: str
    ggml: str
    axes: str

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(prod(sizes[letter] for letter in axis) for axis in self.axes.split())


@dataclass(frozen=True, slots=True)
class Architecture:
    """The facts that tell one architecture from the others that the page (engine/forward.py) computes.

    model_type: its name in config.json; gguf: its name in GGUF, which is also the beginning of its keys there;
    title: how the names of Transformers' classes for it begin; models: whose weights are of it, for people.
    whole: fields of Weights (engine/weights.py) and their tensors. layer: fields of Layer and theirs, in the order in
    which their rows are stacked; a field that is not named is a piece that this architecture does not have.
    stacked: of such a field, the tensor that some writers put in place of its several.
    unread: how the names of tensors end that files hold and nobody needs.
    hf_keys, gguf_keys: what the fields of config.json, and GGUF's keys behind the name, do to the result.
    hf_defaults: what Transformers' configuration takes for a field that is not there; never a value of Config's.
    own_head_dim: whether head_dim does not follow from the other sizes where a config.json leaves it out.
    hf_full: what a config.json has to say for Transformers to attend to every position, as the page does.
    pre, tokenizer_class: ggml's name of the pre-tokenizer, for files that leave it out, and Transformers' class.
    """

    model_type: str
    gguf: str
    title: str
    models: str
    whole: Mapping[str, Tensor]
    layer: Mapping[str, tuple[Tensor, ...]]
    unread: tuple[str, ...]
    hf_keys: Keys
    gguf_keys: Keys
    pre: str
    tokenizer_class: str
    stacked: Mapping[str, Tensor] = field(default_factory=dict)
    hf_defaults: Mapping[str, Any] = field(default_factory=dict)
    own_head_dim: bool = False
    hf_full: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hf_class(self) -> str:
        """Transformers' class of the model with its head."""
        return f"{self.title}ForCausalLM"

    def tensors_of(self, layers: int) -> Iterator[tuple[Tensor, int | None]]:
        """Every tensor of a model of so many layers, with its layer; the whole model's come first."""
        yield from ((t, None) for t in self.whole.values())
        for i in range(layers):
            yield from ((t, i) for stacked in self.layer.values() for t in stacked)

    def unstacked(self, tensors: Mapping[str, QTensor], sizes: Mapping[str, int]) -> dict[str, QTensor]:
        """The tensors, with those that hold the rows of several split into views of these. sizes: as Config.sizes."""
        found: dict[str, QTensor] = {}
        for name, w in tensors.items():
            pattern, layer = self._pattern(name)
            field = next((f for f, t in self.stacked.items() if pattern in (t.hf, t.ggml)), None)
            if field is None or w.shape != self.stacked[field].shape(sizes):
                found[name] = w
                continue
            row, start = w.data.size // w.shape[0], 0
            for part in self.layer[field]:
                spelled = (part.hf if pattern == self.stacked[field].hf else part.ggml).format(layer)
                shape = part.shape(sizes)
                stop = start + shape[0]
                found[spelled] = replace(w, shape=shape, data=w.data[start * row : stop * row], name=spelled)
                start = stop
        return found

    @staticmethod
    def _pattern(name: str) -> tuple[str, str]:
        """A tensor's name with {} for its layer, and the layer as the name spells it."""
        layer = re.search(r"\.(\d+)\.", name)
        return (name, "") if layer is None else (f"{name[: layer.start()]}.{{}}.{name[layer.end() :]}", layer[1])

    def renamed(self, name: str, to: Spelling) -> str | None:
        """A tensor's name in the other spelling, or the same one, from either; None if it has no role here."""
        pattern, layer = self._pattern(name)
        for t, _ in self.tensors_of(layers=1):
            if pattern in (t.hf, t.ggml):
                return str(getattr(t, to)).format(layer)
        return None
