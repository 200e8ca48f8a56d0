"""engine show: one stage of a dump, or of a model's own pass, to look at."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np

from ..engine.aliases import MODELS, beside
from ..engine.generate import check_prompt
from ..engine.hub_id import hub_id
from ..engine.load import Opened
from ..errors import BadInput, meant
from ..judging import opened_for
from ..lens import RESIDUALS, lens
from ..trace.dump import Dump, Entry
from ..trace.plan import parse_ranges, plan, spell_ranges
from ..trace.show.drawing import check_matplotlib
from ..trace.show.figures import layer_figures
from ..trace.show.histogram import histogram
from ..trace.show.names import Names
from ..trace.show.page import layers_page, lens_page, stage_page
from ..trace.show.picture import layers_picture, lens_picture, stage_picture
from ..trace.show.view import View, view
from ..trace.sources import open_dump
from ..trace.stages import NAMES, Stage, by_name, find, of_pieces
from ..trace.store import phase_name
from ..tracing import held
from .beside_answer import check_place, write_page, write_picture
from .leftovers import whole_file
from .load import add_computing_arguments, is_model, load_as_asked, open_spelling, open_weights, rope_asked
from .prompt import given_tokens
from .record import add_prompt_arguments, prompt_of
from .show_json import about, figures_as_json, lens_as_json
from .show_text import header, histogram_lines, layer_lines, lens_lines, row_lines, value_lines
from .source import KINDS, add_source_arguments, asked, say_notes
from .terminal import bar_block, json_text, one_line

TOP = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shows a stage of a dump: values, statistics of each row, a histogram; without\n"
        "LAYER a line for each layer. Of a model, a prompt is run first, in memory.\n" + KINDS
    )
    parser.epilog = f"""stages:
{fill(", ".join(NAMES), 78, initial_indent="  ", subsequent_indent="  ")}
A:B is as in Python: B is not included, -3: are the last three. What is chosen
is shown from end to end.
examples:
  engine show dump/ attn_norm 3
  engine show dump/ post_ffn_residual
  engine show dump/ attn_softmax 3 --head 5 -m model.gguf
  engine show model.gguf ffn_swigl 0 -p 'Hi' --rows=-1: --columns 0:12
  engine show model.gguf attn_softmax 3 -p 'What is 2+2?' --html map.html
  engine show model.gguf --lens -p 'What is 2+2?' --png lens.png
  engine show hooks.pt attn_out 3 -m model.gguf --tokens 3838,374,220"""
    parser.add_argument("source", metavar="DUMP|MODEL", help="a dump, or a model to run")
    parser.add_argument("stage", metavar="STAGE", nargs="?", help="its name, listed below; with --lens a residual")
    parser.add_argument("layer", metavar="LAYER", nargs="?", help="a number, 0..4 (4 not included) or all (default)")
    parser.add_argument("-m", "--model", metavar="MODEL", help="whose dump it is: for sizes, and for tokens as text")
    parser.add_argument("--head", metavar="A:B", help="heads, of a stage that has them")
    parser.add_argument("--rows", metavar="A:B", help="rows: positions, counted from the first that is there")
    parser.add_argument("--columns", metavar="A:B", help="channels; keys of attention, tokens of lm_head")
    parser.add_argument("--step", type=int, default=0, metavar="N", help="of decode step N (default: 0, the prompt)")
    parser.add_argument(
        "--lens", action="store_true", help="what the model would say if it ended after each layer: the logit lens"
    )
    parser.add_argument("--top", type=int, metavar="K", help=f"tokens that --lens says (default: {TOP})")
    parser.add_argument("--npy", metavar="FILE", type=Path, help="write what is shown as a NumPy array, too")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="draw it for a browser, too: attention, channels, layers"
    )
    parser.add_argument(
        "--png", metavar="FILE", type=Path, help="draw it as a picture, too (pip install 'qwenref[png]')"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object; the values of a part that was chosen")
    add_computing_arguments(parser)
    add_prompt_arguments(parser)
    add_source_arguments(parser, tokens=False)


@dataclass(frozen=True, slots=True)
class Source:
    """What is looked at. model: None where no option names it."""

    dump: Dump
    names: Names
    model: Opened | None


def main(args: argparse.Namespace) -> int:
    if find(args.source) and not Path(args.source).exists():
        raise BadInput(f"{args.source} is a stage; what to look at comes first: engine show DUMP {args.source}")
    for place in filter(None, (args.npy, args.html, args.png)):
        check_place(place)
    if args.png is not None:
        check_matplotlib()
    if args.stage is not None and args.layer is not None and not find(args.stage) and find(args.layer):
        right = f"engine show {args.source} {args.layer} {args.stage}"
        raise BadInput(f"{args.stage} is no stage, and {args.layer} is one; the stage comes first: {right}")
    if args.step < 0:
        raise BadInput(f"--step {args.step}: 0 is the prompt, 1 the first decode step")
    if args.top is not None and not (args.lens and args.top > 0):
        raise BadInput(f"--top {args.top}: how many tokens --lens says of each layer, at least 1")
    stage = None if args.stage is None else by_name(args.stage)
    if args.lens:
        stage = check_lens(stage, args)
    check_layer(stage, args.layer)
    source = of_dump(args) if is_dump(args.source) else of_model(args, stage)
    if stage is None:
        held = dict.fromkeys(e.stage.name for e in source.dump.entries)
        raise BadInput(f"which stage? {args.source} has {', '.join(held)}")
    if args.lens:
        show_lens(source, stage, args)
    else:
        show_values(source, stage, args)
    return 0


def is_dump(name: str) -> bool:
    """Whether it is, and no model. Raises BadInput for what can be neither."""
    if not is_model(name) and Path(name).exists():
        return True
    if not is_model(name) and hub_id(name) is None:
        raise BadInput(
            f"{name} is neither a dump nor a model, nor is there such a file{beside(Path(name)) or meant(name, MODELS)}"
        )
    return False


def check_layer(stage: Stage | None, layer: str | None) -> None:
    """Raises BadInput for a layer that the stage does not have, whatever the model."""
    if stage is None or layer is None or layer.lower() == "all":
        return
    numbers = parse_ranges(layer, "layer")
    if stage.scope == "whole":
        raise BadInput(f"{stage.name} is of the whole model; leave out the layer {layer}")
    if stage.scope == "first" and numbers != (range(1),):
        raise BadInput(f"{stage.name} is of layer 0 alone; leave out the layer {layer}")


def check_lens(stage: Stage | None, args: argparse.Namespace) -> Stage:
    """The stage that the lens reads. Raises BadInput for one that the final norm would not."""
    stage = by_name(RESIDUALS[-1]) if stage is None else stage
    if stage.name not in RESIDUALS:
        raise BadInput(f"--lens reads the residual: {', '.join(RESIDUALS)} (the default), not {stage.name}")
    if (other := next((o for o in ("head", "columns", "npy") if getattr(args, o) is not None), None)) is not None:
        raise BadInput(f"--lens reads whole rows; --{other} is for values")
    if is_dump(args.source) and args.model is None:
        raise BadInput("--lens needs the model's final norm and head; give it with -m")
    return stage


def of_dump(args: argparse.Namespace) -> Source:
    """A dump, opened. The model says sizes and spells tokens, and has what the lens needs."""
    if said := next((o for o in ("prompt", "file") if getattr(args, o) is not None), "chat" if args.chat else None):
        raise BadInput(f"{args.source} is a dump, which has its prompt; --{said} is for a model that is run")
    if (args.backend, args.precision) != ("cpu", "f32"):
        raise BadInput(f"{args.source} is a dump, for which nothing is run; --backend and --precision are for a model")
    scaling = rope_asked(args)
    if args.model is None:
        if scaling or args.lora:
            raise BadInput("--lora and --rope-scaling say how a model is; name it with -m")
        dump, opened, spelling = open_dump(args.source, incomplete=True, asked=asked(args)), None, None
    else:
        opened = open_weights(args.model, scaling, args.lora)
        dump, spelling = opened_for(args.source, opened, asked(args)), open_spelling(opened.checkpoint)
    say_notes(dump)
    return Source(dump, Names(ids_of(dump), spelling), opened)


def of_model(args: argparse.Namespace, stage: Stage | None) -> Source:
    """The stage of a model's own pass, held in memory."""
    if args.model is not None:
        raise BadInput(f"{args.source} is a model already; -m is for a dump")
    if said := next((o for o in ("map", "row", "passes") if getattr(args, o) is not None), None):
        raise BadInput(f"{args.source} is a model; --{said} is for another engine's dump")
    ids = given_tokens(args)
    opened = open_weights(args.source, rope_asked(args), args.lora)
    c, has = opened.checkpoint.config, of_pieces(opened.weights.pieces)
    if stage is None:
        raise BadInput(f"which stage? {args.source} has {', '.join(has)}")
    drawn_by_layer = (args.html, args.png) != (None, None) and "S" not in stage.letters
    layers = args.layer if args.layer is not None and stage.scope == "layer" and not drawn_by_layer else "all"
    wanted = plan(stage.name, layers, "all", args.step).within(has)
    wanted.check(c.num_hidden_layers)
    ids, spelling = prompt_of(args, ids, opened.checkpoint)
    check_prompt(ids, c, args.step)
    dump = held(load_as_asked(args, opened), ids, wanted)
    return Source(dump, Names(ids_of(dump), spelling), opened)


def ids_of(dump: Dump) -> list[int]:
    """The tokens that were run, by position; empty where nobody knows them."""
    return [*dump.run.get("tokens", ()), *dump.run.get("generated", ())]


def entries(dump: Dump, stage: Stage, layer: str | None, phase: int) -> list[Entry]:
    """The stage of the layers that were asked for, in order. Raises BadInput that says what there is instead."""
    of_phase = [e for e in dump.entries if e.phase == phase]
    there = [e for e in of_phase if e.stage.name == stage.name]
    asked = None if layer is None or layer.lower() == "all" else parse_ranges(layer, "layer")
    found = [e for e in there if asked is None or (e.layer is not None and any(e.layer in r for r in asked))]
    if found:
        return found
    if there:
        held = spell_ranges(e.layer for e in there if e.layer is not None)
        where = f"layer {layer} ({phase_name(phase)}); it has that of layers {held}"
        raise BadInput(f"{dump.path} has no {stage.name} of {where}")
    if not of_phase:
        held = ", ".join(dict.fromkeys(phase_name(e.phase) for e in dump.entries))
        raise BadInput(f"{dump.path} has no {phase_name(phase)}; it has {held}")
    held = ", ".join(dict.fromkeys(e.stage.name for e in of_phase))
    raise BadInput(f"{dump.path} has no {stage.name} ({phase_name(phase)}); it has {held}")


def viewed(source: Source, stage: Stage, layer: str | None, args: argparse.Namespace, rows: str | None) -> list[View]:
    """The part that was asked for, of every layer that was."""
    return [view(e, args.head, rows, args.columns) for e in entries(source.dump, stage, layer, args.step)]


def show_lens(source: Source, stage: Stage, args: argparse.Namespace) -> None:
    assert source.model is not None  # check_lens has seen to it
    views = viewed(source, stage, args.layer, args, args.rows or "-1")
    found = list(lens(views, source.model, args.top or TOP))
    if args.html is not None:
        write_page(args.html, lens_page(args.source, found, views[0], source.names))
    if args.png is not None:
        write_picture(args.png, lens_picture(args.source, found, views[0], source.names))
    if args.json:
        print(json_text(about(args.source, views[0].entry, source.names) | lens_as_json(found, source.names)))
        return
    for i, guesses in enumerate(found):
        print("\n" * bool(i) + "\n".join(lens_lines(guesses, source.names)))


def show_values(source: Source, stage: Stage, args: argparse.Namespace) -> None:
    views, names = viewed(source, stage, args.layer, args, args.rows), source.names
    if args.npy is not None:
        if len(views) > 1:
            raise BadInput(f"--npy {args.npy}: it holds one array; name the layer")
        with whole_file(args.npy, "the array") as path, path.open("wb") as file:
            np.save(file, views[0].values)
    if (args.html, args.png) != (None, None):
        every = viewed(source, stage, None, args, args.rows) if stage.scope == "layer" else views
        draw(args, views, every, names)
    if args.json:
        chosen = (args.rows, args.head, args.columns) != (None, None, None)
        print(json_text(about(args.source, views[0].entry, names) | figures_as_json(views, chosen)))
    elif len(views) == 1:
        print_stage(views[0], source, args)
    else:
        print_layers(views)


def draw(args: argparse.Namespace, views: list[View], every: list[View], names: Names) -> None:
    """The page and the picture. every: the same part of every layer that is there."""
    one = len(views) == 1
    if args.html is not None:
        page = stage_page(args.source, views[0], every, names) if one else layers_page(args.source, views, names)
        write_page(args.html, page)
    if args.png is not None:
        of_one, of_all = stage_picture, layers_picture
        write_picture(
            args.png, of_one(args.source, views[0], every, names) if one else of_all(args.source, views, names)
        )


def print_stage(v: View, source: Source, args: argparse.Namespace) -> None:
    every_row = args.rows is not None or args.head is not None
    print(f"{one_line(header(v))}\n")
    print("\n".join(value_lines(v, source.names, every_row, args.columns is not None)))
    print("\n".join(["", *row_lines(v, source.names, every_row)]))
    if (spread := histogram(v.computed())) is not None:
        print("\n".join(["", *histogram_lines(spread, bar_block())]))


def print_layers(views: list[View]) -> None:
    e = views[0].entry
    print(f"{e.stage.name} ({phase_name(e.phase)}), layer by layer\n")
    print("\n".join(layer_lines([layer_figures(v) for v in views], views[0].column_is)))
