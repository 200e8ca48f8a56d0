"""What the dumpers of other engines share: their arguments, what can be refused early, and the writing of the dump."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engine.files import Checkpoint
from ..engine.generate import check_prompt, greedy_passes
from ..engine.load import check_generates
from ..engine.text.tokenizer import Tokens
from ..errors import BadInput
from ..facts import model_facts, run_facts
from ..trace.plan import Plan, plan
from ..trace.stages import Stage, by_name, of_pieces
from ..trace.store import DumpWriter, check_target
from ..tracing import check_room, require_all
from .leftovers import written_down
from .load import open_weights
from .prompt import given_tokens
from .record import add_prompt_arguments, best, print_files, print_tokens, prompt_of

# Takes a stage of a forward pass: (layer or None for the whole model, stage, value).
Emit = Callable[[int | None, str, NDArray[np.floating[Any]]], None]


class EmitRows(Protocol):
    """The same of an engine that may take a pass in pieces. rows: which of the pass's positions the value is of; None:
    all of them."""

    def __call__(
        self, layer: int | None, stage: str, value: NDArray[np.floating[Any]], rows: range | None = None
    ) -> None: ...


# One pass over new tokens behind those of the passes before: hands out its stages, returns the last position's logits.
Forward = Callable[[Sequence[int], EmitRows], NDArray[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class Job:
    """A dump to make; all that can be known to be wrong before the engine loads the model has been refused.

    stages: those of the model, by name. absent: those of them that the engine does not compute, and why; it may grow
    while the engine runs. named: whether the stages were named one by one, so that each must come.
    """

    checkpoint: Checkpoint
    tokenizer: Tokens | None
    ids: list[int]
    plan: Plan
    target: Path
    stages: Mapping[str, Stage]
    absent: dict[str, str]
    named: bool


def add_dump_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model file, folder or alias")
    parser.add_argument("directory", type=Path, metavar="DIR", help="where the dump goes")
    parser.add_argument("--stages", default="all", metavar="STAGES", help="comma list of stages (default: all)")
    parser.add_argument("--layers", default="all", metavar="RANGE", help="0..4, 3, 0,5,27 or all (default: all)")
    parser.add_argument("--decode-steps", type=int, default=0, metavar="N", help="N greedy steps after the prompt too")
    add_prompt_arguments(parser)


def job(args: argparse.Namespace, absent_of: Callable[[Mapping[str, Stage]], Mapping[str, str]]) -> Job:
    """The job of the arguments. absent_of: which of a model's stages the engine does not compute, and why.

    The ids are this package's tokenizer's, so that dumps of all engines hold the same tokens for the same text.
    """
    ids = given_tokens(args)
    asked = plan(args.stages, args.layers, "all", args.decode_steps)
    target: Path = args.directory
    check_target(target)
    checkpoint, weights = open_weights(args.model)
    if args.decode_steps:
        check_generates(checkpoint)
    c, stages = checkpoint.config, of_pieces(weights.pieces)
    asked, absent = asked.within(stages), dict(absent_of(stages))
    named = args.stages.strip().lower() != "all"
    there = without(asked, absent, named)
    there.check(c.num_hidden_layers)
    ids, tokenizer = prompt_of(args, ids, checkpoint)
    check_prompt(ids, c, args.decode_steps)
    check_room(there, c, len(ids), target)
    return Job(checkpoint, tokenizer, ids, there, target, stages, absent, named)


def without(asked: Plan, absent: Mapping[str, str], named: bool) -> Plan:
    """The plan without stages that the engine does not compute. Raises BadInput if one of them was named."""
    there = replace(asked, stages=tuple(s for s in asked.stages if s.name not in absent))
    if there != asked and named:
        name = next(s.name for s in asked.stages if s.name in absent)
        raise BadInput(f"this engine has no stage {name}: {absent[name]}")
    return there


def write_dump(j: Job, engine: AbstractContextManager[Forward], facts: Mapping[str, Any]) -> None:
    """Runs the prompt, then the decode steps greedily, writes what is wanted of each pass, and says what was written.

    What the engine takes in pieces, each a graph of its own, is a phase for each.
    facts: what the manifest says of the engine, over what it says of every run. Raises BadInput if a stage asked for
    did not come.
    """
    c = j.checkpoint.config
    with written_down(j.target), DumpWriter(j.target, {}, c.sizes) as writer, engine as forward:
        phases: dict[int, int] = {}  # by their first positions

        def run(tokens: Sequence[int], positions: range, _pass: int) -> NDArray[np.floating[Any]]:
            def emit(
                layer: int | None, stage: str, value: NDArray[np.floating[Any]], rows: range | None = None
            ) -> None:
                s = by_name(stage)
                if j.plan.wants(s, layer):
                    of = positions if rows is None else positions[rows.start : rows.stop]
                    phase = phases.setdefault(of[0], len(phases))
                    writer.put(stage, layer, value, of if "T" in s.letters else of[-1:], phase=phase)

            return forward(tokens, emit)

        made, logits = greedy_passes(j.ids, j.plan.decode_steps, run)
        asked = replace(without(j.plan, j.absent, j.named), decode_steps=max(len(phases) - 1, j.plan.decode_steps))
        require_all(asked, c.num_hidden_layers, writer.kept)
        writer.run.update(run_facts(j.checkpoint, "", "", j.ids, made), model=model_facts(j.checkpoint))
        writer.run.update(facts, versions={**writer.run["versions"], **facts["versions"]})
        writer.run.update(prompt=j.tokenizer.decode(j.ids) if j.tokenizer else None)
        chosen = [best(x, j.tokenizer) for x in logits] if "lm_head" in j.stages else []
        writer.run.update(next=[first for first, *_ in chosen], absent=dict(j.absent))
        j.checkpoint.check_unchanged()
    report = {
        "tokens": j.ids,
        "generated": made,
        "next": chosen,
        "directory": str(j.target),
        "files": [f | {"bytes": (j.target / f["path"]).stat().st_size} for f in writer.files],
    }
    print_files(report)
    print_tokens(report, j.tokenizer)
