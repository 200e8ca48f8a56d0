"""engine import: keeps what another tool has dumped, as APRT files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from ..errors import BadInput
from ..facts import model_facts, run_facts
from ..trace.dump import Dump
from ..trace.sources import foreign_reader, notes
from ..trace.sources.array import Array
from ..trace.sources.assemble import Assembly, assembled
from ..trace.sources.explain import explained
from ..trace.sources.names import nearest
from ..trace.stages import NAMES, USUAL, Stage, of_pieces
from ..trace.store import DumpWriter, check_target
from .leftovers import written_down
from .load import Once, check_no_model, open_weights
from .source import KINDS, add_source_arguments, asked
from .terminal import on_stderr, one_line

SHOWN = 10  # names in a message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"""Writes an APRT dump from what another engine has left. verify and diff read that, too.
{KINDS}
What no name maps to is listed on stderr, with the stage whose name is nearest. What is not there is absent."""
    parser.epilog = """a map is JSON, name -> stage;
* is anything, {layer}, {phase} and {rank} are numbers:
  {"blk{layer}_norm1": "attn_norm", "ids": "tokens", "scratch*": null,
   "blk{layer}_kq": {"stage": "attn_scores", "axes": "N S T", "scale": 0.125},
   "blk{layer}_qkv": ["q_proj", "k_proj", "v_proj"],
   "h{layer}": {"stage": "post_ffn_residual", "take": [0, 1]},
   "tp{rank}/{layer}/o": {"stage": "attn_out", "ranks": "sum"}}
q_proj, k_proj and v_proj, after the bias, make qkv_bias together (q_matmul ... before it, qkv_matmul). A list is what
one array holds side by side; take is [axis, index] of a larger array; ranks are columns, sum or same. Axes of length 1
are dropped. Another order of axes, [D, T] or [N, T, H], is told by the sizes; where these leave a choice it is asked
for. Scores have queries before keys.
examples:
  engine import debugger-output/ dump/ -m model.gguf
  engine import sglang-dump/ dump/ -m model/ --row 2
  engine import arrays/ --explain > names.json
  engine import arrays/ dump/ -m model.gguf --map names.json"""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="file or folder that holds the dump")
    parser.add_argument("directory", type=Path, metavar="DIR", nargs="?", help="where the dump goes")
    parser.add_argument(
        "-m", "--model", action=Once, metavar="MODEL", help="the model that was run (default: the 0.5B)"
    )
    parser.add_argument("--explain", action="store_true", help="only print what each name is taken for: a map to edit")
    add_source_arguments(parser)


def main(args: argparse.Namespace) -> int:
    if (args.directory is None) != args.explain:
        raise BadInput("give DIR, where the dump goes, or --explain, which writes none")
    check_no_model(str(args.source), "engine import takes a dump; engine convert a model")
    if args.directory is not None:
        check_target(args.directory)
    said = asked(args)
    reader = foreign_reader(args.source)
    if args.explain:
        of = USUAL if args.model is None else of_pieces(open_weights(args.model).weights.pieces)
        explain(args.source, reader(args.source).arrays, of)
        return 0
    checkpoint, weights = open_weights(args.model)
    c, stages = checkpoint.config, of_pieces(weights.pieces)
    dump, how = assembled(reader(args.source), c.sizes, c.num_hidden_layers, said, stages)
    with written_down(args.directory), DumpWriter(args.directory, {}, c.sizes) as writer:
        for e in dump.entries:
            assert e.positions is not None
            writer.put(e.stage.name, e.layer, e.values(), e.positions, phase=e.phase)
        written = {e.stage.name for e in dump.entries}
        tokens, made = (dump.run.get(k, []) for k in ("tokens", "generated"))
        writer.run.update(run_facts(checkpoint, "imported", "unknown", tokens, made), model=model_facts(checkpoint))
        writer.run.update(engine=dump.run["engine"], imported_from=str(args.source), facts=dump.run["facts"])
        writer.run["absent"] = {name: "not in what was imported" for name in stages if name not in written}
    say(dump, how)
    stages_said = ", ".join(n for n in NAMES if n in written)
    print(one_line(f"{len(writer.files)} stage files in {args.directory}: {stages_said}"))
    return 0


def say(dump: Dump, how: Assembly) -> None:
    """What was not understood, and what was read otherwise than it lay there."""
    unknown = how.places.unknown
    if unknown:
        on_stderr(f"not imported, {len(unknown)} arrays: {listed(unknown)}")
    for note in notes(how):
        on_stderr(note)


def listed(arrays: list[Array]) -> str:
    def one(a: Array) -> str:
        close = nearest(a.name)
        return json.dumps(a.name) + (f" (nearest: {close})" if close else "")

    more = f" and {len(arrays) - SHOWN} more" if len(arrays) > SHOWN else ""
    return ", ".join(map(one, arrays[:SHOWN])) + more


def explain(source: Path, arrays: tuple[Array, ...], stages: Mapping[str, Stage]) -> None:
    """Prints a map in which every name stands; null where it is not understood."""
    names, engine = explained(arrays, stages)
    known = sum(what is not None for what in names.values())
    print(json.dumps(names, indent=1))
    on_stderr(f"{source}: the names of {engine}; {known} of {len(names)} are understood")
    for name, what in names.items():
        if what is None and (close := nearest(name)):
            on_stderr(f"{json.dumps(name)}: the nearest stage is {close}")
