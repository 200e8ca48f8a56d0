"""A model to work with from Python: text and logits out of it, and every stage of its passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine.config import Config
from .engine.embed import embed, pooling_of, score
from .engine.files import Vocabulary
from .engine.generate import check_prompt, drafts_for, generate, new_tokens, prefill
from .engine.load import (
    Loaded,
    Opened,
    blaming,
    check_generates,
    check_logits,
    open_weights,
    spelling_of,
    threads,
    tokenizer_of,
    vocabulary_of,
)
from .engine.load import load as load_opened
from .engine.lora import Spec, opened_loras
from .engine.models.heads import KINDS
from .engine.sample import Sampling
from .engine.text.chat import Chat, Message
from .engine.text.chat import prompt_ids as ids_of
from .engine.text.generation import Generation
from .engine.text.tokenizer import Tokenizer, Tokens
from .errors import BadInput, blamed_on
from .facts import model_facts
from .trace.dump import Dump
from .trace.plan import Plan, plan
from .trace.sources import open_dump
from .trace.stages import of_pieces
from .trace.store import check_target
from .tracing import check_room, held, written

# A text, ids (of a list, an array, a tensor), or the messages of a chat.
Prompt = str | Sequence[int] | NDArray[np.integer] | Sequence[Message] | Chat


def load(
    path_or_alias: str | os.PathLike[str] | None = None,
    *,
    backend: str = "cpu",
    precision: str = "f32",
    threads: int | None = None,
    rope_scaling: Mapping[str, Any] | None = None,
    lora: Spec | Sequence[Spec] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Model:
    """A model file, a folder, or the alias of a pulled model (None: the default alias), ready to compute.

    backend: cpu, reference or cuda. precision: f32; int16, int8 (cpu, cuda); f64 (reference). threads: of the CPU
    backend, for this model's own calls only; None: as many as Numba has, which is all cores. rope_scaling:
    instead of the file's own, as config.json has it: {"rope_type": "yarn", "factor": 4.0}. lora: an adapter's folder,
    with ":0.5" behind it or in a pair with a number for another scale, or several. progress: told (done, total) while
    kernels are compiled, which takes a minute the first time.
    Raises BadInput, a ValueError of one line, for whatever is wrong with the file or the settings.
    """
    opened = open_weights(path_or_alias, rope_scaling, opened_loras(lora))
    return Model(opened, load_opened(opened, backend, precision, threads, progress), threads)


class Model:
    """What `load` gives. One call at a time: two models, or two generations of one, may take turns, not run at once.

    path; backend, precision, threads: as given; config: hyper-parameters by Hugging Face's names; opened: the file's
    tensors, not decoded, for `verify`.
    """

    def __init__(self, opened: Opened, loaded: Loaded, threads: int | None) -> None:
        self.opened, self._loaded, self.threads = opened, loaded, threads
        self.path, self.backend, self.precision = opened.checkpoint.path, loaded.backend, loaded.precision

    @property
    def config(self) -> Config:
        return self.opened.checkpoint.config

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """A line each on what is odd about the file but does no harm: what a command says on stderr."""
        try:
            of_text = self._vocabulary.notes
        except BadInput as error:
            of_text = (str(error),)
        return self.opened.checkpoint.notes + of_text

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text <-> ids. Raises BadInput if the file has none: then ids are the prompt, and the answer."""
        return tokenizer_of(self.opened.checkpoint, self._vocabulary)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return vocabulary_of(self.opened.checkpoint)

    @cached_property
    def _spelling(self) -> Tokens:
        try:
            return spelling_of(self.opened.checkpoint, self._vocabulary)
        except BadInput:  # which `notes` tells
            return spelling_of(self.opened.checkpoint, None)

    def prompt_ids(self, prompt: Prompt, *, chat: bool = False) -> list[int]:
        """The ids that a prompt is: a text's, as it stands or, with `chat`, as a user's message; a chat's, by the
        model's own template; ids as they are. Raises BadInput for what is none of these.
        """
        if isinstance(prompt, str):
            if not prompt:
                raise BadInput("the prompt is empty; give at least one character")
            prompt = Chat([{"role": "user", "content": prompt}]) if chat else prompt
        elif not isinstance(prompt, Chat):
            ids = _ids(prompt)
            if ids is not None and chat:
                raise BadInput("chat=True wraps text, and the prompt is ids; give one of them")
            if ids is not None:
                return ids
            prompt = Chat(list(prompt))  # type: ignore[arg-type]  # which checks it
        tools = isinstance(prompt, Chat) and prompt.tools is not None
        return ids_of(self.tokenizer, self._vocabulary.template(tools), prompt)

    def generate(
        self,
        prompt: Prompt,
        *,
        chat: bool = False,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | int | Sequence[str | int] = (),
        draft: int | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Generation:
        """Continues a prompt or answers a chat, piece by piece: `for piece in model.generate(...)`, or all at once with
        `.text`; the ids are in `.ids`. As prompt_ids takes it; the rest as in `engine run`.

        max_tokens: None: 256, or as many as the context still holds. temperature 0: greedy. stop: strings, which the
        text ends before, and ids, besides those that end an answer. draft: how many tokens are looked up ahead at most,
        0 for none; None: 15 where the choice is greedy. It changes no answer. progress: told how many prompt positions
        are done.
        Raises BadInput at once; while iterated, if the logits are not finite or the file was changed.
        """
        check_generates(self.opened.checkpoint)
        ids = self.prompt_ids(prompt, chat=chat)
        if max_tokens is not None and max_tokens < 1:
            raise BadInput(f"max_tokens {max_tokens}: ask for at least 1")
        stops = [stop] if isinstance(stop, str | int) else list(stop)
        if bad := [s for s in stops if not isinstance(s, str | int) or s == ""]:
            raise BadInput(f"stop {bad[0]!r:.80}: give a string of at least one character, or an id")
        sampling = Sampling(temperature, top_k, top_p, seed)
        new, spelling = new_tokens(len(ids), self.config, max_tokens), self._spelling
        check_prompt(ids, self.config, new)
        if not spelling.spells and any(isinstance(s, str) for s in stops):
            raise BadInput(f"{self.path} has no tokenizer, so that no stop string can be found; give ids")
        ends = [*spelling.eos_ids, *(s for s in stops if isinstance(s, int))]
        m = self._loaded
        drafts = drafts_for(m.kernels, m.backend, sampling, draft)
        tokens = generate(ids, m.weights, m.kernels, m.precision, new, ends, sampling, progress, drafts)
        return Generation(ids, self._with_threads(blaming(tokens, self.opened)), spelling, stops, self._check)

    def logits(self, prompt: Prompt, *, chat: bool = False) -> NDArray[np.floating]:
        """Logits [V] after the prompt's last position; float64 in f64, float32 otherwise."""
        check_logits(self.opened.checkpoint)
        ids, m = self.prompt_ids(prompt, chat=chat), self._loaded
        check_prompt(ids, self.config)
        with threads(self.threads), np.errstate(all="ignore"):
            cache = m.kernels.new_cache(self.config, len(ids), m.precision)
            found = np.array(prefill(ids, m.weights, cache, m.kernels))
        self._check()
        return found

    def embed(
        self, texts: Prompt | Sequence[str], *, pooling: str | None = None, normalize: bool = True
    ) -> NDArray[np.floating]:
        """A text's vector [D], or of a list of texts one each, [n, D]: rows of the final norm, pooled. A text may be
        given as ids; what the tokenizer puts round a text it gets. float64 in f64, float32 otherwise.

        pooling: last, mean or cls (the first); None: as the model's files have it, else the last. normalize: to length
        1. Each text runs alone, so that there is no padding. Raises BadInput.
        """
        way = pooling_of(self.config, pooling)
        return self._of_texts(texts, lambda ids, m: embed(ids, m.weights, m.kernels, m.precision, way, normalize))

    def score(self, texts: Prompt | Sequence[str], *, chat: bool = False) -> NDArray[np.floating]:
        """The scores of a text by a reward model or classifier, [C], in the order of `config.head.labels`; of a list
        of texts [n, C]. Of a head that scores each token [T, C], and one text only. No soft-max, no sigmoid.

        A text is taken as it stands (with `chat`: as a user's message), or given as ids, or as messages, behind whose
        last the template then puts nothing for an answer to begin with. Raises BadInput, also for a model without such
        a head.
        """
        if not isinstance(texts, str | Chat) and len(texts) and all(isinstance(part, dict) for part in texts):
            texts = Chat(list(texts), add_generation_prompt=False)  # type: ignore[arg-type]  # which checks it
        if KINDS[self.config.head.kind].every and _several(texts):
            raise BadInput("this model scores each token, and texts have numbers of their own; give one at a time")
        return self._of_texts(texts, lambda ids, m: score(ids, m.weights, m.kernels, m.precision), chat)

    def _of_texts(
        self, texts: Any, made: Callable[[list[int], Loaded], NDArray[np.floating]], chat: bool = False
    ) -> NDArray[np.floating]:
        """What is made of one text, or of each of several."""
        several = _several(texts)
        prompts = [self.prompt_ids(text, chat=chat) for text in (texts if several else [texts])]
        for ids in prompts:
            check_prompt(ids, self.config)
        with blamed_on(self.path), threads(self.threads), np.errstate(all="ignore"):
            found = [made(ids, self._loaded) for ids in prompts]
        self._check()
        return np.stack(found) if several else found[0]

    def trace(
        self,
        prompt: Prompt,
        *,
        stages: str | Iterable[str] = "all",
        layers: str | int | Iterable[int] = "all",
        positions: str | int | Iterable[int] = "all",
        decode_steps: int = 0,
        chat: bool = False,
        to: str | os.PathLike[str] | None = None,
    ) -> Dump:
        """Every stage of a forward pass: `model.trace(ids)["attn_norm", 3]` is an array. It is held in memory or, where
        `to` names a folder, mapped from the files there, which are those of `engine trace`.

        stages: names; layers: numbers; positions: of the prompt, or "last"; all of them also as a command spells them
        ("0..4,7"). decode_steps: greedy steps to trace behind the prompt.
        Raises BadInput; of what goes to a folder nothing is left behind then.
        """
        p = plan(_spelled(stages), _spelled(layers), _spelled(positions), decode_steps)
        target = None if to is None else Path(to)
        if target is not None:
            check_target(target)
        if decode_steps:
            check_generates(self.opened.checkpoint)
        p = p.within(of_pieces(self.opened.weights.pieces))
        p.check(self.config.num_hidden_layers)
        ids = self.prompt_ids(prompt, chat=chat)
        check_prompt(ids, self.config, decode_steps)
        p.check(self.config.num_hidden_layers, len(ids))
        with threads(self.threads):
            return held(self._loaded, ids, p) if target is None else self._written(ids, p, target)

    def _written(self, ids: list[int], p: Plan, target: Path) -> Dump:
        check_room(p, self.config, len(ids), target)
        written(self._loaded, ids, p, target, lambda: self._facts)
        return open_dump(target)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return model_facts(self.opened.checkpoint)

    def _check(self) -> None:
        self.opened.checkpoint.check_unchanged()

    def _with_threads(self, tokens: Iterator[int]) -> Iterator[int]:
        """Each made with this model's threads, and those of whoever asks for it left as they are."""
        while True:
            with threads(self.threads):
                token = next(tokens, None)
            if token is None:
                return
            yield token

    def __repr__(self) -> str:
        return f"<Model {str(self.path)!r}: backend {self.backend}, precision {self.precision}>"


def _several(texts: Any) -> bool:
    """Whether these are texts, and not one text, its ids, or the messages of a chat."""
    return isinstance(texts, list | tuple) and bool(texts) and all(isinstance(text, str) for text in texts)


def _ids(prompt: Any) -> list[int] | None:
    """The prompt as ids; None if it is no ids, and so must be messages. Raises BadInput where it is neither."""
    try:
        if isinstance(prompt, bytes | bytearray):
            raise TypeError
        parts = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
        if parts and all(isinstance(part, dict) for part in parts):
            return None
        return [index(part) for part in parts]
    except TypeError:
        what = "a text, a list of ids, or a list of messages"
        raise BadInput(f"prompt {prompt!r:.80} is no {what}") from None


def _spelled(words: str | int | Iterable[str | int]) -> str:
    """As the command line has them, which says what is wrong with them."""
    return str(words) if isinstance(words, str | int) else ",".join(map(str, words))
