"""Prefill, then decode: token ids in, token ids out. Knows no text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .chunks import chunks
from .config import Config
from .drafts import LIMIT, MOST, Drafts
from .forward import EVERY, LAST, forward
from .kernels import Backend, Cache, Kernels
from .nonfinite import NotFinite, first_place
from .sample import Sampling, sample
from .session import Session
from .tap import SILENT
from .weights import Weights

MAX_TOKENS = 256  # where nobody asked for another number


def check_ids(ids: Sequence[int], c: Config) -> None:
    """Raises BadInput for an id without a row in the embedding, and for one in whose place a picture's rows belong."""
    if bad := [i for i in ids if not 0 <= i < c.vocab_size]:
        raise BadInput(f"token id {bad[0]} is outside the vocabulary of {c.vocab_size}")
    if bad := [i for i in ids if i in c.pictures]:
        raise BadInput(f"token {bad[0]} stands for a picture, and none is read here; give text alone")


def check_prompt(ids: Sequence[int], c: Config, max_tokens: int = 0) -> None:
    """Raises BadInput for an empty prompt, for ids as check_ids does, or more positions than the context."""
    if not ids:
        raise BadInput("the prompt is empty; give at least one token")
    check_ids(ids, c)
    most, why = c.room(len(ids))
    why = f" ({why})" if why else ""
    if len(ids) > most:
        raise BadInput(f"the prompt has {len(ids)} tokens, more than the context of {most}{why}")
    if len(ids) + max_tokens > most:
        room = most - len(ids)
        raise BadInput(
            f"{len(ids)} prompt tokens and {max_tokens} new ones do not fit the context of {most}{why}; "
            + (f"ask for at most {room}" if room else "shorten the prompt")
        )


def new_tokens(prompt: int, c: Config, asked: int | None) -> int:
    """How many new tokens to make: as many as were asked for, else MAX_TOKENS, or what the context still holds."""
    return asked or max(1, min(MAX_TOKENS, c.room(prompt)[0] - prompt))


def prefill(
    ids: Sequence[int], w: Weights, cache: Cache, ops: Backend, progress: Callable[[int], None] = lambda done: None
) -> NDArray[np.floating]:
    """Runs the prompt in chunks; logits [V] of its last position. `progress` is told the positions done so far."""
    for positions, tokens_T in chunks(ids, ops.CHUNK, causal=w.config.causal):
        logits_V = ops.batch(partial(forward, tokens_T, w, cache, tap=SILENT))
        progress(positions.stop)
    return ops.to_host(logits_V)


def greedy_passes(
    ids: Sequence[int], steps: int, run: Callable[[Sequence[int], range, int], NDArray[np.floating]]
) -> tuple[list[int], list[NDArray[np.floating]]]:
    """The prompt, then one pass for each greedy step: (the ids fed to the steps, the logits of the prompt and of each).

    run: takes a pass's tokens, their positions and its number (0: the prompt); returns the last position's logits [V].
    """
    made: list[int] = []
    logits: list[NDArray[np.floating]] = []
    for phase in range(steps + 1):
        end = len(ids) + phase
        positions = range(end - 1, end) if phase else range(end)
        logits.append(np.array(run(made[-1:] if phase else ids, positions, phase)))
        if phase < steps:
            made.append(int(np.argmax(logits[-1])))
    return made, logits


def generate(
    ids: Sequence[int],
    w: Weights,
    ops: Backend,
    precision: str,
    max_tokens: int,
    stop: Sequence[int] = (),
    sampling: Sampling | None = None,
    progress: Callable[[int], None] = lambda done: None,
    drafts: Drafts | None = None,
    session: Session | None = None,
) -> Iterator[int]:
    """Yields up to max_tokens new ids; a stop id is yielded too, and ends it. Raises BadInput as check_prompt does, and
    NotFinite, which says where from, if a logit is NaN or infinite: nothing in the page masks one, so none may be.

    The cache holds no more positions than the prompt and the new tokens need. The last id is never fed back.
    drafts: of an answer's tokens, on a backend where these change no bit (`drafts_for`); they count the passes, too.
    session: what it holds of the prompt is not fed again, and what is fed is kept there; `progress` counts it as done.
    """
    sampling, drafts = sampling or Sampling(), drafts or Drafts(0)
    check_prompt(ids, w.config, max_tokens)
    if max_tokens < 1:
        return
    generator = np.random.default_rng(sampling.seed)
    room = len(ids) + max_tokens
    if session is None:
        cache, held = ops.new_cache(w.config, room, precision), 0
    else:
        cache, held = session.begin(ids, room, w.config, ops, precision)
    seen = list(ids)

    def choose(logits_V: NDArray[np.floating]) -> int:
        if not np.isfinite(logits_V).all():
            raise NotFinite(seen, first_place(seen, w, ops, precision))
        seen.append(sample(logits_V, sampling, generator))
        return seen[-1]

    def page(ops: Kernels, tokens_T: Any, of: tuple[Any, Any]) -> Any:
        return forward(tokens_T, w, cache, ops, SILENT, of)

    try:
        token = choose(prefill(ids[held:], w, cache, ops, lambda done: progress(held + done)))
        yield token
        drafts.extend(seen)
        steps: dict[int, Callable[[NDArray[np.int32]], Any]] = {}
        while (left := len(ids) + max_tokens - len(seen)) and token not in stop:
            draft = drafts.draft(left - 1)
            width = next((n for n in drafts.widths() if len(draft) < n <= left), 1)
            draft = draft[: width - 1]
            if first := width not in steps:
                steps[width] = ops.record(partial(page, of=EVERY if width > 1 else LAST), cache, width)
            tokens_T = np.array([token, *draft, *[token] * (width - 1 - len(draft))], np.int32)
            started = perf_counter()
            logits_TV = ops.to_host(steps[width](tokens_T)).reshape(width, -1)
            if not first:  # whose memory is new
                drafts.took(width, perf_counter() - started)
            drafts.passes += 1
            for t in range(len(draft) + 1):
                token = choose(logits_TV[t])
                drafts.made += 1
                drafts.extend([token])
                yield token
                if token in stop or draft[t : t + 1] != [token]:
                    break
            cache.length = len(seen) - 1  # all that was fed, and stays
            drafts.said(tokens_T[: len(draft) + 1].tolist(), logits_TV[: len(draft) + 1])
    finally:
        if session is not None and len(seen) > len(ids):
            session.ids = seen[:-1]  # fed, whatever was drafted beyond


def drafts_for(ops: Backend, name: str, sampling: Sampling, asked: int | None) -> Drafts:
    """Drafts of at most as many tokens as were asked for; None: of MOST, where the choice is greedy.

    Raises BadInput if the backend (name) has other bits for several tokens than for one: a draft would move the answer.
    """
    if asked is None:
        return Drafts(MOST if ops.ALIKE and sampling.temperature == 0 else 0)
    if not 0 <= asked <= LIMIT:
        raise BadInput(f"drafts of {asked} tokens: give 1 to {LIMIT}, or off")
    if asked and not ops.ALIKE:
        raise BadInput(
            f"backend {name} computes several tokens with other bits than one, so that drafts would move its "
            "answers; turn them off, or take backend cpu"
        )
    return Drafts(asked)
