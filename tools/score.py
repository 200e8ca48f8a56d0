"""engine score: what a reward model or a classifier says of texts."""

from __future__ import annotations

import argparse
from typing import Any

from .load import add_computing_arguments, load_as_asked, open_weights, rope_asked
from .terminal import json_text, one_line
from .texts import add_text_arguments, ids_of_texts, take_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """The scores of each text by a model that ends in them: a reward, or one for each label;
of a process reward model or a tagger, of each token. They are the head's own numbers, before any soft-max or sigmoid.
A chat (--messages) is the model's own template's, with nothing behind its last message."""
    parser.epilog = """examples:
  engine score reward/ --messages chat.json
  engine score classifier/ 'A fine day.' 'A dull one.' --json
  engine score prm/ --tokens 3838,374,220"""
    add_text_arguments(parser)
    parser.add_argument(
        "--messages", action="append", metavar="FILE", help="a chat as a JSON list of messages; once for each"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_computing_arguments(parser)


def main(args: argparse.Namespace) -> int:
    take_model(args)
    opened = open_weights(args.model, rope_asked(args), args.lora)
    from ..engine.embed import check_scores
    from ..errors import blamed_on
    from ..model import Model

    c = opened.checkpoint
    with blamed_on(c.path):
        check_scores(c.config)
    texts = ids_of_texts(args, c)
    model = Model(opened, load_as_asked(args, opened), args.threads)
    scores = [model.score(ids) for ids in texts]
    labels = c.config.head.labels
    if args.json:
        said: dict[str, Any] = {"model": str(c.path), "backend": args.backend, "precision": args.precision}
        rows = [{"ids": ids, "scores": x.tolist()} for ids, x in zip(texts, scores, strict=True)]
        print(json_text(said | {"labels": labels, "texts": rows}))
        return 0
    for ids, x in zip(texts, scores, strict=True):
        for i, row in zip(ids, x.tolist() if x.ndim == 2 else [x.tolist()], strict=False):
            token = f"{i}  " * (x.ndim == 2)
            print(one_line(token + "  ".join(f"{name} {v:.6f}" for name, v in zip(labels, row, strict=True))))
    return 0
