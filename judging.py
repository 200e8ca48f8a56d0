"""A dump judged by a model: what `engine verify` prints."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .cost import costs
from .engine.all_logits import all_logits
from .engine.generate import prefill
from .engine.load import Opened, load, open_weights, spelling_of
from .errors import BadInput
from .model import Model
from .quant.rms import ratio
from .trace.dump import Dump
from .trace.sources import AS_IT_IS, Asked, open_dump
from .trace.stages import of_pieces
from .trace.verify.facts import FromTokens
from .trace.verify.finding import Verification
from .trace.verify.likeness import likeness, near
from .trace.verify.recipes.recipe import SO_FAR
from .trace.verify.report.report import Report
from .trace.verify.report.spent import Spent
from .trace.verify.verify import verify as judge

AnyModel = Model | str | os.PathLike[str]


def verify(
    dump: Dump | str | os.PathLike[str],
    model: AnyModel,
    *,
    against: AnyModel | None = None,
    cost: bool = False,
    asked: Asked = AS_IT_IS,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Recomputes every stage of a dump in float64 from the dump's own inputs, and says what explains it.

    dump: opened, or the path of what holds one (docs/dumps.md). model: loaded, or a path or alias: no backend is
    needed. against: a second model that the engine may have run. cost: also run the dump's tokens in float64 with each
    fact of the engine's arithmetic alone, for `report.costs`. asked: which prompt of a batch, and what else is to be
    said of another tool's arrays. progress: told how many stages are judged.
    Raises BadInput if the dump cannot be one of this model's shape, or is not what its manifest says; with cost, if
    nothing is known of the engine, nobody knows the tokens, or the model has adapters.
    """
    second = None if against is None else _opened(against)
    opened = _opened(model)
    report = judged(opened_for(dump, opened, asked), opened, second, progress)
    return with_cost(report, opened) if cost else report


def with_cost(report: Report, model: Opened, progress: Callable[[int], None] = lambda done: None) -> Report:
    """The report, with what the engine's arithmetic costs. progress: told how many facts are run."""
    found, keys = costs(report, model.weights, progress)
    whole = not report.recipe.name.endswith(SO_FAR)
    return replace(report, spent=Spent(tuple(found), keys, whole))


def judged(
    dump: Dump | str | os.PathLike[str],
    model: Opened,
    against: Opened | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """`verify`, of models that are open."""
    checkpoint, weights = model
    dump = opened_for(dump, model)
    dump.check_digests()
    found = judge(dump, weights, against=None if against is None else against.weights, done=progress)
    if found.status == 2:
        found = with_truth(found, dump, model)
    for used in (model, against):
        if used is not None:
            used.checkpoint.check_unchanged()
    return Report.of(found, dump.path.absolute().name, checkpoint.path.name, texts(found.tokens, model))


def texts(ids: tuple[int, ...] | None, model: Opened) -> tuple[str, ...] | None:
    """Each id's text; None where the model cannot say it."""
    try:
        vocabulary = None if ids is None else model.checkpoint.vocabulary()
    except BadInput:  # judged all the same, and who asks for text is told
        return None
    if ids is None or vocabulary is None or max(ids, default=0) >= len(vocabulary.tokens):
        return None
    spelling = spelling_of(model.checkpoint, vocabulary)
    return tuple(spelling.text_of(i) for i in ids)


def with_truth(found: Verification, dump: Dump, model: Opened) -> Verification:
    """The verification with what float64 makes of the dump's tokens beside its logits, where nothing else is there."""
    ids = found.tokens
    heads = {f.phase: e for f in found.findings if (e := dump.get(f.stage, f.layer, f.phase)) and f.stage == "lm_head"}
    wanted = {p: e.positions[-1] + 1 for p, e in heads.items() if e.positions and np.isfinite(e.values()).all()}
    if ids is None or not wanted or max(wanted.values()) > len(ids):
        return found
    if bad := next((t for t in ids if t >= model.weights.config.vocab_size), None):
        raise BadInput(f"{dump.path}: token {bad} is outside the vocabulary of {model.weights.config.vocab_size}")
    m = load(model, "reference", "f64")
    cache, reached, notes = m.kernels.new_cache(m.weights.config, max(wanted.values()), "f64"), 0, {}
    with np.errstate(all="ignore"):
        for phase, end in sorted(wanted.items(), key=lambda item: item[1]):
            exact_V = np.asarray(prefill(ids[reached:end], m.weights, cache, m.kernels), np.float64)
            reached, got_V = end, heads[phase].values().astype(np.float64)
            notes[phase] = from_tokens(got_V, exact_V)
            if not near(got_V, exact_V):  # every position's are computed only where these are not surely it
                every = [np.array(rows_TV) for _, rows_TV in all_logits(ids[:end], m.weights, m.kernels, "f64")]
                notes[phase] = replace(notes[phase], like=likeness(got_V, np.concatenate(every)))
    named = (
        replace(f, notes=(*f.notes, notes[f.phase])) if f.stage == "lm_head" and f.phase in notes else f
        for f in found.findings
    )
    return replace(found, findings=tuple(named))


def from_tokens(got_V: NDArray[np.float64], exact_V: NDArray[np.float64]) -> FromTokens:
    """The dump's logits against float64's."""
    mine, best = int(np.argmax(got_V)), int(np.argmax(exact_V))
    second, first = np.sort(exact_V)[-2:]
    noise, size = (float(np.sqrt(np.mean(np.square(x)))) for x in (got_V - exact_V, exact_V))
    p, q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (exact_V, got_V))
    rank = int(np.count_nonzero(exact_V > exact_V[mine])) + 1
    kl = float(np.sum(np.exp(p) * (p - q)))
    return FromTokens(mine, best, rank, float(first - second), noise, ratio(noise, size), kl)


def opened_for(dump: Dump | str | os.PathLike[str], model: Opened, asked: Asked = AS_IT_IS) -> Dump:
    """The dump, which the model gives its sizes if nothing else does. Files may be missing."""
    if isinstance(dump, Dump) and dump.sizes is not None:
        return dump
    path = dump.path if isinstance(dump, Dump) else Path(dump)
    c, stages = model.checkpoint.config, of_pieces(model.weights.pieces)
    return open_dump(path, c.sizes, layers=c.num_hidden_layers, stages=stages, incomplete=True, asked=asked)


def _opened(model: AnyModel) -> Opened:
    return model.opened if isinstance(model, Model) else open_weights(model)
