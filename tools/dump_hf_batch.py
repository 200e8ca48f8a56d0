"""engine dump-hf --batch: prompts side by side in one pass of Transformers, as its users run them, into one file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import hooks  # of the front door: the module of that name, imported here, would stand in its place
from ..engine.generate import check_prompt
from ..engine.load import check_generates
from ..errors import BadInput
from ..trace.stages import Stage, of_pieces
from .load import open_tokenizer, open_weights
from .prompt import prompt_ids, text_of_file

MOST = 256  # prompts


def dump(
    args: argparse.Namespace,
    load: Callable[[Path, Mapping[str, Stage]], Any],
    fused: Callable[[Mapping[str, Stage]], Mapping[str, str]],
) -> list[str]:
    """Runs the prompts of args.batch and args.decode_steps greedy steps; which stages are fused. Raises BadInput."""
    for name in ("prompt", "file", "tokens", "messages"):
        if getattr(args, name) is not None:
            raise BadInput(f"--batch has the prompts; leave --{name} away")
    if (args.stages, args.layers) != ("all", "all"):
        raise BadInput("--batch keeps every stage of every layer; leave --stages and --layers away")
    if args.chat:
        raise BadInput("--batch takes each line as it stands; leave --chat away")
    target: Path = args.directory
    if target.suffix != ".safetensors":
        raise BadInput(f"{target}: --batch writes one file; name it {target.name or 'batch'}.safetensors")
    if target.exists():
        raise BadInput(f"{target}: is there already; give another name, or remove it first")
    prompts = text_of_file(args.batch).splitlines()
    if not 1 <= len(prompts) <= MOST:
        raise BadInput(f"{args.batch}: {len(prompts):,} prompts, one in each line; --batch takes 1 to {MOST}")
    checkpoint, weights = open_weights(args.model)
    check_generates(checkpoint)
    tokenizer, template = open_tokenizer(checkpoint)
    rows = [prompt_ids(tokenizer, template, prompt) for prompt in prompts]
    for number, ids in enumerate(rows):
        try:
            check_prompt(ids, checkpoint.config, args.decode_steps)
        except BadInput as error:
            raise BadInput(f"{args.batch}, line {number + 1}: {error}") from None
    made = _run(load(checkpoint.path, of_pieces(weights.pieces)), rows, args.decode_steps, target)
    checkpoint.check_unchanged()
    for number, (ids, after) in enumerate(zip(rows, made, strict=True)):
        print(f"row {number}: {len(ids)} tokens, then {' '.join(map(str, after))} {tokenizer.decode(after)!r}")
    print(f"{target.stat().st_size:,} bytes in {target}; judge a row with engine verify {target} MODEL --row 0")
    return list(fused(of_pieces(weights.pieces)))


def _run(model: Any, rows: list[list[int]], steps: int, target: Path) -> list[list[int]]:
    """One more likeliest token than there are steps, for each row."""
    import torch
    import transformers

    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=model.device)
    past: Any = transformers.DynamicCache()
    made: list[list[int]] = [[] for _ in rows]
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    with torch.no_grad(), hooks(model, target, engine=versions):
        for _ in range(1 + steps):
            where = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            out = model(ids, attention_mask=mask, position_ids=where, past_key_values=past, use_cache=True)
            ids = out.logits[:, -1:].argmax(-1)
            mask = torch.cat((mask, torch.ones_like(ids)), 1)
            for row, token in zip(made, ids[:, 0].tolist(), strict=True):
                row.append(token)
    return made
