"""The engine's passes with a recorder at every stage: what `engine trace` writes and Model.trace holds."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine.chunks import chunks
from .engine.config import Config
from .engine.forward import forward
from .engine.generate import greedy_passes
from .engine.load import Loaded
from .engine.nonfinite import NotFinite, first_place
from .engine.tap import SILENT, Both, Tap
from .errors import BadInput
from .facts import run_facts
from .trace.dump import Dump
from .trace.memory import DumpInMemory
from .trace.plan import Plan
from .trace.recorder import Recorder, Sink, Summary
from .trace.stages import Key, shape_for
from .trace.store import DumpWriter, phase_name


@dataclass(frozen=True, slots=True)
class Passes:
    """A prompt's pass and those of its greedy steps. generated: the ids fed to the steps; logits [V]: of each pass;
    summaries: of each pass, if they were asked for; files: what a manifest says of each, if they were written.
    """

    generated: list[int]
    logits: list[NDArray[np.floating]]
    summaries: list[Summary]
    files: list[dict[str, Any]]


def check_room(p: Plan, c: Config, prompt: int, target: Path) -> None:
    """Raises BadInput if the files would not fit the disk, which costs nothing to know before the model runs."""
    kept, need = len(p.kept(prompt)), 0
    for phase in range(p.decode_steps + 1):
        T, S = (1, prompt + phase) if phase else (kept, prompt)
        need += sum(12 + 4 * prod(shape_for(s, c.sizes, T, S)) for s, _ in p.expected(c.num_hidden_layers))
    base = next(f for f in (target.absolute(), *target.absolute().parents) if f.is_dir())
    if need > (free := disk_usage(base).free):
        raise BadInput(
            f"the files need {need:,} bytes, and {base} has {free:,} free; trace fewer stages, layers or positions, or "
            "name another folder"
        )


def require_all(p: Plan, layers: int, kept: Container[Key]) -> None:
    """Raises BadInput if a stage that was asked for was not kept: a missing stage is never success."""
    for phase in range(p.decode_steps + 1):
        for s, layer in p.expected(layers):
            if (phase, layer, s.name) not in kept:
                of = "" if layer is None else f" of layer {layer}"
                raise BadInput(f"the model did not yield stage {s.name}{of} ({phase_name(phase)}); nothing was written")


def passes(model: Loaded, ids: Sequence[int], saved: Plan | None, sink: Sink | None, shown: Plan | None) -> Passes:
    """Runs them. saved: what goes to the sink; shown: what is summed up."""
    ops, w = model.kernels, model.weights
    steps = (saved or shown or Plan(())).decode_steps
    cache = ops.new_cache(w.config, len(ids) + steps, model.precision)
    summaries: list[Summary] = []
    heads = w.config.num_attention_heads if ops.ALIKE else 0

    def run(tokens: Sequence[int], positions: range, phase: int) -> NDArray[np.floating]:
        tap: Tap = SILENT
        looking: list[Summary | Recorder] = []
        if shown is not None:
            summaries.append(tap := Summary(shown, ops.to_host, positions, phase, w.config.causal))
            looking.append(tap)
        if saved is not None and sink is not None:
            kept = positions if phase else saved.kept(len(ids))
            recorder = Recorder(saved, ops.to_host, sink, positions, kept, phase)
            looking.append(recorder)
            tap = recorder if shown is None else Both(tap, recorder)
        for part, tokens_T in chunks(tokens, ops.CHUNK, heads, w.config.causal):
            for one in looking:
                one.now = positions[part.start : part.stop]
            with np.errstate(all="ignore"):  # a NaN is for the files and the statistics to show
                logits_V = forward(tokens_T, w, cache, ops, tap)
        return ops.to_host(logits_V)

    generated, logits = greedy_passes(ids, steps, run)
    return Passes(generated, logits, summaries, [])


def summed_up(model: Loaded, ids: Sequence[int], shown: Plan) -> Passes:
    """Statistics of the stages; nothing is kept."""
    made = passes(model, ids, None, None, shown)
    model.checkpoint.check_unchanged()
    return made


def written(
    model: Loaded,
    ids: Sequence[int],
    saved: Plan,
    target: Path,
    facts: Callable[[], dict[str, Any]],
    shown: Plan | None = None,
) -> Passes:
    """A dump on disk, whole or not at all. facts: what the manifest says of the model, asked for at the end."""
    c = model.checkpoint.config
    with DumpWriter(target, {}, c.sizes) as writer:
        made = passes(model, ids, saved, writer, shown)
        require_all(saved, c.num_hidden_layers, writer.kept)
        writer.run.update(about(model, ids, made), model=facts())
        model.checkpoint.check_unchanged()
    return Passes(made.generated, made.logits, made.summaries, writer.files)


def held(model: Loaded, ids: Sequence[int], saved: Plan) -> Dump:
    """A dump in memory."""
    c = model.checkpoint.config
    sink = DumpInMemory(f"trace of {model.checkpoint.path.name}", c.sizes)
    made = passes(model, ids, saved, sink, None)
    require_all(saved, c.num_hidden_layers, sink.kept)
    model.checkpoint.check_unchanged()
    return sink.dump(about(model, ids, made))


def about(model: Loaded, ids: Sequence[int], made: Passes) -> dict[str, Any]:
    return run_facts(model.checkpoint, model.backend, model.precision, list(ids), made.generated)


def origin(model: Loaded, ids: Sequence[int], made: Passes) -> str | None:
    """Where the first value came from that is not finite, if one reached the logits of a pass, or the final norm's row
    of a model without them. ids: the prompt's."""
    broken = next((n for n, x in enumerate(made.logits) if not np.isfinite(x).all()), None)
    if broken is None:
        return None
    fed = [*ids, *made.generated[:broken]]
    place = first_place(fed, model.weights, model.kernels, model.precision)
    return NotFinite(fed, place, model.bound.lm_head is not None).traced_to(model.bound)
