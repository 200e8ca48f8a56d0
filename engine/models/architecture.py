"""What a file of this folder states: how an architecture's tensors and keys are called, and which pieces it has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np

from ...quant.tensor import Assembled, QTensor, blocks_of
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
    whole: fields of Weights (engine/weights.py) and their tensors; scores: tensors of heads in place of the output's
    (heads.py). layer: fields of Layer and theirs, in the order in
    which their rows are stacked; a field that is not named is a piece that this architecture does not have.
    optional: the same of pieces that a model may have, as its tensors say; by the field of config.json that asks for
    them, and has to agree.
    stacked: of such a field, the tensor that some writers put in place of its several.
    paired: roles of matrices and biases whose rows stand in another order under ggml's name, in each head those
    together that RoPE turns together: llama.cpp turns adjacent pairs of such models.
    llama_cpp_reads: of "divisors" of RoPE's frequencies, YaRN's "betas", attention "windows" and the "output bias" of
    attention, what llama.cpp takes from a file of this architecture.
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
    scores: tuple[Tensor, ...] = ()
    optional: Mapping[str, Mapping[str, tuple[Tensor, ...]]] = field(default_factory=dict)
    stacked: Mapping[str, Tensor] = field(default_factory=dict)
    paired: frozenset[str] = frozenset()
    llama_cpp_reads: frozenset[str] = frozenset()
    hf_defaults: Mapping[str, Any] = field(default_factory=dict)
    own_head_dim: bool = False
    hf_full: Mapping[str, Any] = field(default_factory=dict)

    @property
    def windowed(self) -> bool:
        """Whether layers may have an attention window."""
        return "sliding_window" in self.hf_defaults

    @property
    def hf_class(self) -> str:
        """Transformers' class of the model with its head."""
        return f"{self.title}ForCausalLM"

    @property
    def pieces(self) -> dict[str, tuple[Tensor, ...]]:
        """What a layer may have: the fields of `layer`, then the optional ones."""
        return {**self.layer, **{name: t for asked in self.optional.values() for name, t in asked.items()}}

    def tensors_of(self, layers: int, asked: Iterable[str] = ()) -> Iterator[tuple[Tensor, int | None]]:
        """Every tensor of a model of so many layers, with its layer; the whole model's come first. asked: the fields of
        config.json that ask for optional pieces."""
        yield from ((t, None) for t in self.whole.values())
        fields = {**self.layer, **{name: t for field in asked for name, t in self.optional[field].items()}}
        for i in range(layers):
            yield from ((t, i) for stacked in fields.values() for t in stacked)

    def of_role(self, pattern: str) -> Tensor | None:
        """The tensor that is called so in either spelling, with {} for its layer; None if it has no role here."""
        known = self.tensors_of(1, self.optional)
        return next((t for t, _ in known if pattern in (t.hf, t.ggml)), None)

    def found(self, names: Iterable[str]) -> dict[str, tuple[str, str]]:
        """The optional fields of which there is a tensor among these names: the first one's name, and the field of
        config.json that asks for the piece."""
        first: dict[str, str] = {}
        for name in names:
            first.setdefault(self._pattern(name)[0], name)
        return {
            piece: (first[spelled], field)
            for field, pieces in self.optional.items()
            for piece, stacked in pieces.items()
            if (spelled := next((n for t in stacked for n in (t.hf, t.ggml) if n in first), None)) is not None
        }

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
            for part in self.pieces[field]:
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

    def in_order(self, w: QTensor, to: Spelling, sizes: Mapping[str, int]) -> QTensor:
        """The tensor with its rows in the order that they have under the other name, from either: whole rows move, and
        no byte of a block changes. sizes: as Config.sizes."""
        pattern, _ = self._pattern(w.name)
        t = self.of_role(pattern)
        if t is None or t.role not in self.paired or pattern == getattr(t, to) or w.shape[0] % sizes["H"]:
            return w
        half = (2, sizes["H"] // 2) if to == "ggml" else (sizes["H"] // 2, 2)
        order = np.arange(w.shape[0]).reshape(-1, *half).swapaxes(1, 2).reshape(-1)
        return Assembled(w.format, w.shape, lambda: blocks_of(w).reshape(len(order), -1)[order].reshape(-1), w.name)

    def renamed(self, name: str, to: Spelling) -> str | None:
        """A tensor's name in the other spelling, or the same one, from either; None if it has no role here."""
        pattern, layer = self._pattern(name)
        if (t := self.of_role(pattern)) is not None:
            return str(getattr(t, to)).format(layer)
        return next((str(getattr(t, to)) for t in self.scores if name in (t.hf, t.ggml)), None)
