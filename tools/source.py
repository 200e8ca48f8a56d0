"""What the commands that read another engine's dump share: which prompt, which passes, which names."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..trace.dump import Dump
from ..trace.plan import parse_ranges
from ..trace.sources import Asked
from ..trace.sources.names import read_map
from .load import note
from .prompt import parse_tokens

KINDS = """A dump is one of:
  - a folder of APRT stage files: engine trace, dump-hf, dump-llamacpp, aprender
  - one .safetensors file: tensors layer-3/attn_norm, lm_head, tokens
  - .pt of torch.save, or a folder of them (SGLang's PassN.pt of each rank); nothing in it is executed
  - .npz, a folder of .npy, .safetensors (Transformers' debugger), or raw .f32 with .json beside
The names of the stages, of Transformers, mlx-lm, candle, SGLang, vLLM, nano-vllm, TensorRT-LLM, ONNX exports,
llama.cpp's graph and Meta's Llama are known; others take a --map. docs/dumps.md has a section for each."""


def add_source_arguments(parser: argparse.ArgumentParser, tokens: bool = True) -> None:
    """--map, --row, --passes, --tokens; without the last where the command has one of its own."""
    group = parser.add_argument_group("a dump of another engine")
    group.add_argument("--map", metavar="FILE", type=Path, help="JSON: names of its arrays -> stages")
    group.add_argument("--row", metavar="N", type=int, help="which prompt of a batch, padded or packed; from 0")
    group.add_argument(
        "--passes", metavar="RANGE", help="which passes of the model, where several prompts were run: 3..7"
    )
    if tokens:
        what = "the token ids that were run, a comma list, if the dump has none"
        group.add_argument("--tokens", metavar="IDS", help=what)


def asked(args: argparse.Namespace) -> Asked:
    """What these arguments say. Raises BadInput."""
    return Asked(
        rules=None if args.map is None else tuple(read_map(args.map)),
        tokens=None if args.tokens is None else tuple(parse_tokens(args.tokens)),
        row=args.row,
        passes=None if args.passes is None else parse_ranges(args.passes, "passes"),
    )


def say_notes(*dumps: Dump, say: Callable[[str], None] = note) -> None:
    for d in dumps:
        for line in d.notes:
            say(line)
