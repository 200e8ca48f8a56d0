"""engine embed: texts as vectors."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..engine.models.heads import POOLINGS
from .beside_answer import check_place
from .leftovers import whole_file
from .load import add_computing_arguments, load_as_asked, open_weights, rope_asked
from .terminal import json_text
from .texts import add_text_arguments, ids_of_texts, take_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """The vector of each text: the final norm's rows, pooled as the model's files say
(modules.json, GGUF's pooling_type; else the last row), and brought to length 1. Each text runs alone, with what the
tokenizer puts round it; an instruction that a model wants before it is yours to write. One line a text on stdout."""
    parser.epilog = """examples:
  engine embed model/ 'What is a cat?' 'An animal.' --json
  engine embed model.gguf -f lines.txt --npy vectors.npy
  engine embed model.gguf --tokens 3838,374,220 --pooling mean --raw"""
    add_text_arguments(parser)
    parser.add_argument("--pooling", choices=POOLINGS, help="instead of the files' own; cls is the first row")
    parser.add_argument("--raw", action="store_true", help="leave the length as it is")
    parser.add_argument("--npy", metavar="FILE", type=Path, help="write the vectors as one NumPy array instead")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_computing_arguments(parser)


def main(args: argparse.Namespace) -> int:
    take_model(args)
    if args.npy is not None:
        check_place(args.npy)
    opened = open_weights(args.model, rope_asked(args), args.lora)
    from ..engine.embed import pooling_of
    from ..errors import blamed_on
    from ..model import Model

    c = opened.checkpoint
    with blamed_on(c.path):
        way = pooling_of(c.config, args.pooling)
    texts = ids_of_texts(args, c)
    model = Model(opened, load_as_asked(args, opened), args.threads)
    vectors = [model.embed(ids, pooling=way, normalize=not args.raw) for ids in texts]
    if args.npy is not None:
        import numpy as np

        with whole_file(args.npy, "the vectors") as path, path.open("wb") as file:
            np.save(file, np.stack(vectors))
    if args.json:
        said = {"model": str(c.path), "backend": args.backend, "precision": args.precision}
        said |= {"pooling": way, "normalized": not args.raw}
        rows = [{"ids": ids, "vector": v.tolist()} for ids, v in zip(texts, vectors, strict=True)]
        print(json_text(said | {"texts": rows}))
    elif args.npy is None:
        for v in vectors:
            print(" ".join(f"{x:.9g}" for x in v.tolist()))
    return 0
