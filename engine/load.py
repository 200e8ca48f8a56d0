"""A model by its path or alias: opened, bound to roles, brought into a backend's form."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..cores import cores
from ..errors import BadInput, blamed_on
from .aliases import resolve
from .bind import bind
from .config import with_rope
from .files import Checkpoint, Vocabulary, open_checkpoint
from .files.lora import Lora
from .kernels import Backend, backend, check_precision
from .kernels.adapted import adapting
from .lora import with_loras, with_saved
from .models.heads import KINDS, LM
from .nonfinite import NotFinite
from .text.tokenizer import Tokenizer, Tokens
from .weights import Weights


class Opened(NamedTuple):
    """A model's file, and its tensors by their roles; nothing is decoded yet."""

    checkpoint: Checkpoint
    weights: Weights


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in a backend's form. bound: as `bind` gives it."""

    checkpoint: Checkpoint
    bound: Weights
    weights: Weights
    kernels: Backend
    backend: str
    precision: str


def open_weights(
    path_or_alias: str | os.PathLike[str] | None,
    rope_scaling: Mapping[str, Any] | None = None,
    loras: Sequence[Lora] = (),
) -> Opened:
    """None is the default alias. rope_scaling: instead of the file's own, as config.json has it (config.with_rope).
    loras: adapters (engine/lora.py).

    Raises BadInput that names the file and what is wrong with it.
    """
    return with_adapters(bound(with_scaling(open_checkpoint(resolve(path_or_alias)), rope_scaling)), loras)


def with_adapters(opened: Opened, loras: Sequence[Lora]) -> Opened:
    """The model with these adapters. Raises BadInput for those of another one."""
    if not loras:
        return opened
    with blamed_on(opened.checkpoint.path):
        adapters = (*opened.checkpoint.adapters, *(lora.facts for lora in loras))
        checkpoint = replace(opened.checkpoint, adapters=adapters)
        if any(lora.saved or lora.saved_of for lora in loras):
            checkpoint = with_saved(checkpoint, loras)
            opened = Opened(checkpoint, bind(checkpoint.config, checkpoint.tensors))
        return Opened(checkpoint, with_loras(opened.weights, loras))


def with_scaling(checkpoint: Checkpoint, rope_scaling: Mapping[str, Any] | None) -> Checkpoint:
    """The checkpoint with RoPE scaled so, or, for None, as it is."""
    return (
        checkpoint if rope_scaling is None else replace(checkpoint, config=with_rope(checkpoint.config, rope_scaling))
    )


def bound(checkpoint: Checkpoint) -> Opened:
    """The tensors of an opened file bound to their roles. Raises BadInput if one is missing, or of another shape."""
    with blamed_on(checkpoint.path):
        return Opened(checkpoint, bind(checkpoint.config, checkpoint.tensors))


def check_generates(checkpoint: Checkpoint) -> None:
    """Raises BadInput for a model that makes no text: it has no logits, or attention sees the tokens to come."""
    check_logits(checkpoint)
    if not checkpoint.config.causal:
        why = "attention is not causal, so no text comes out of it token by token"
        raise BadInput(f"{checkpoint.path}: {why}; engine embed gives its vectors")


def check_logits(checkpoint: Checkpoint) -> None:
    """Raises BadInput for a model that has no logits of a next token, with what it has instead."""
    kind, title = checkpoint.config.head.kind, checkpoint.config.architecture.title
    if kind != LM:
        scored = KINDS[kind].scores is not None
        does = "scores, which engine score gives" if scored else "no output head; engine embed gives its vectors"
        raise BadInput(f"{checkpoint.path}: {title}{kind}, and no text comes out of that: it has {does}")


def load(
    opened: Opened,
    backend_name: str = "cpu",
    precision: str = "f32",
    count: int | None = None,
    compiling: Callable[[int, int], None] = lambda done, total: None,
) -> Loaded:
    """The model in the form of a backend and precision.

    count: threads to do it with. compiling: told (done, total) while kernels are compiled, which can take a minute; it
    may raise to end that.
    """
    ops = backend(backend_name)
    check_precision(ops, backend_name, precision)
    if opened.weights.adapted:
        ops = adapting(ops)
    check_threads(count)
    with threads(count):
        ops.compile_kernels(opened.weights, precision, compiling)
        prepared = ops.prepare(opened.weights, precision)
    opened.checkpoint.check_unchanged()
    return Loaded(*opened, prepared, ops, backend_name, precision)


def blaming(tokens: Iterator[int], opened: Opened) -> Iterator[int]:
    """The tokens that are generated. Raises BadInput that names the weight where the numbers leave the finite."""
    try:
        yield from tokens
    except NotFinite as error:
        raise BadInput(f"{opened.checkpoint.path}: {error.traced_to(opened.weights)}") from None


def vocabulary_of(checkpoint: Checkpoint) -> Vocabulary:
    """What the file says about text. Raises BadInput if it says nothing."""
    if (vocabulary := checkpoint.vocabulary()) is not None:
        return vocabulary
    files = " (tokenizer.json, or vocab.json and merges.txt)" if checkpoint.container == "safetensors" else ""
    raise BadInput(f"{checkpoint.path} has no tokenizer{files}; give token ids, as --tokens 1,2,3, instead of text")


def tokenizer_of(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Tokenizer:
    """That vocabulary at work. Raises BadInput that names the file."""
    with blamed_on(checkpoint.path):
        return Tokenizer.from_vocabulary(vocabulary, checkpoint.config.vocab_size)


def spelling_of(checkpoint: Checkpoint, vocabulary: Vocabulary | None) -> Tokens:
    """What spells ids out and knows which end an answer. Without a vocabulary it knows only these, and spells none."""
    if vocabulary is not None:
        return Tokens.of(vocabulary, checkpoint.config.vocab_size)
    from .files.hf_tokenizer import stop_ids

    m = checkpoint.metadata
    ends = stop_ids(m["config"], m["generation_config"]) if checkpoint.container == "safetensors" else []
    return Tokens([], [], checkpoint.config.vocab_size, tuple(i for _, i in ends))


def check_threads(count: int | None) -> None:
    """Raises BadInput for a count that this machine does not have. None: as many as Numba has, which is all cores."""
    if count is None:
        return
    if not 1 <= count <= cores():
        raise BadInput(f"{count} threads: this machine has {cores()} to give")
    if count > (most := _numba().config.NUMBA_NUM_THREADS):
        raise BadInput(f"{count} threads: NUMBA_NUM_THREADS={most} allows no more")


def set_threads(count: int | None) -> None:
    """Computes with so many threads from here on. Raises BadInput as check_threads does."""
    check_threads(count)
    if count is not None:
        _numba().set_num_threads(count)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """In here kernels compute with so many threads, behind it with as many as before. None changes nothing."""
    if count is None:
        yield
        return
    before = _numba().get_num_threads()
    _numba().set_num_threads(count)
    try:
        yield
    finally:
        _numba().set_num_threads(before)


def _numba() -> Any:
    """Numba, which keeps the kind of threads that it starts with: the CPU backend chooses it."""
    import numba

    from .kernels.cpu.machine import team  # noqa: F401

    return numba
