"""engine inspect: what is in a model file. Nothing is decoded unless --check asks for it."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, blamed_on

if TYPE_CHECKING:
    from ..engine.files import Checkpoint, Vocabulary
    from ..quant.tensor import QTensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, --tensors, --check, --json."""
    from .load import add_model_argument

    parser.description = "Shows what is in a model file: its configuration, weight formats, sizes and tokenizer."
    parser.epilog = "example: engine inspect model.gguf --tensors"
    add_model_argument(parser)
    parser.add_argument("--tensors", action="store_true", help="a line for each tensor")
    parser.add_argument(
        "--check", action="store_true", help="decode every weight too; exit status 2 for a NaN, an infinity or a misfit"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with all tensors, and nothing else")


def main(args: argparse.Namespace) -> int:
    """Raises BadInput for a file that can not be opened and, under --check, for one that can not be computed with."""
    from .load import open_model
    from .terminal import json_text

    checkpoint = open_model(args.model)
    if args.check:
        check(checkpoint)
    report = describe(checkpoint)
    if args.json:
        print(json_text(report | {"checked": args.check}))
    else:
        print_report(report, args.tensors)
        if args.check:
            print("\nchecked: every tensor has its role and shape, and every weight is finite")
    return 0


def describe(c: Checkpoint) -> dict[str, Any]:
    """All that there is to say about a checkpoint, as JSON has it. Sizes are in bytes."""
    from ..quant.tensor import as_stored

    stored = {name: as_stored(t) for name, t in c.tensors.items()}
    formats = [
        {"format": name, "tensors": count, "parameters": parameters, "bytes": size}
        for name, (count, parameters, size) in sorted(by_format(c.tensors.values()).items(), key=lambda f: -f[1][2])
    ]
    return {
        "path": str(c.path),
        "files": [{"path": str(path), "bytes": path.stat().st_size} for path in c.files],
        "container": c.container,
        "config": c.config.spelled(),
        "parameters": sum(prod(t.shape) for t in c.tensors.values()),
        "bytes": sum(size for _, size in stored.values()),
        "formats": formats,
        "tokenizer": describe_vocabulary(c.vocabulary()),
        "metadata": {key: plain(c.metadata[key]) for key in c.metadata},
        "tensors": [
            {"name": name, "shape": list(t.shape), "format": stored[name][0], "bytes": stored[name][1]}
            for name, t in c.tensors.items()
        ],
    }


def by_format(tensors: Iterable[QTensor]) -> dict[str, tuple[int, int, int]]:
    """format: (tensors, parameters, bytes)."""
    from ..quant.tensor import as_stored

    counts: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for t in tensors:
        name, size = as_stored(t)
        counts[name] += 1
        parameters[name] += prod(t.shape)
        sizes[name] += size
    return {name: (counts[name], parameters[name], sizes[name]) for name in counts}


def describe_vocabulary(v: Vocabulary | None) -> dict[str, Any] | None:
    """The tokenizer's sizes and special ids, None where the file has none."""
    from ..engine.files.sentencepiece import SPACES

    if v is None:
        return None
    return {
        "model": v.model,
        "pre": v.pre,
        "spaces": SPACES[v.spaces].said if v.spaces else None,
        "tokens": len(v.tokens),
        "merges": len(v.merges),
        "bos_id": v.bos_id,
        "prefix": list(v.prefix),
        "suffix": list(v.suffix),
        "eos_ids": list(v.eos_ids),
        "eos_from": list(v.eos_from),
        "pad_id": v.pad_id,
        "special": {token: i for i, token in enumerate(v.tokens) if v.types[i] in (2, 3, 4)},
        "chat_template": v.chat_template is not None,
        "notes": list(v.notes),
    }


def answer_ends(tokenizer: dict[str, Any]) -> list[str]:
    """A line for each id that ends an answer: its spelling, and who says so."""
    names = {i: f" {token}" for token, i in tokenizer["special"].items()}
    return [
        f"{i}{names.get(i, '')}, by {how}" for i, how in zip(tokenizer["eos_ids"], tokenizer["eos_from"], strict=True)
    ]


def plain(value: Any) -> Any:
    """A metadata value as JSON has it; of an array only the length, of a number that JSON lacks the spelling."""
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    return {"array": len(value)} if hasattr(value, "__len__") else str(value)


def check(c: Checkpoint) -> None:
    """Raises BadInput unless every tensor has a role and its shape, and every weight is finite.

    Loading a model does not look at the weights: to decode them all takes longer than an answer does. A scale that is
    NaN or infinite makes its block's values so, whatever the codes.
    """
    from ..engine.bind import bind

    with blamed_on(c.path):
        bind(c.config, c.tensors)
        broken = {t.name: bad for t in c.tensors.values() if (bad := unusable_row(t)) is not None}
        if broken:
            name, row = next(iter(broken.items()))
            more = f", and so do {len(broken) - 1} tensors more: {', '.join(list(broken)[1:6])}" * (len(broken) > 1)
            raise BadInput(f"tensor {name}: row {row} holds a NaN or an infinity{more}")
    c.check_unchanged()


def unusable_row(t: QTensor) -> int | None:
    """The first row that holds a NaN or an infinity."""
    return next((start + i for start, rows in decoded(t) for i, finite in enumerate(rows) if not finite), None)


def decoded(t: QTensor) -> Iterator[tuple[int, Any]]:
    """A slab at a time: its first row, and for each of its rows whether all values are finite."""
    import numpy as np

    from ..quant.tensor import dequantize, row_slabs

    for start, stop in row_slabs(t):
        with np.errstate(all="ignore"):
            values = dequantize(t, start, stop)
        yield start, np.isfinite(values.reshape(len(values), -1)).all(axis=1)


def print_report(report: dict[str, Any], tensors: bool) -> None:
    """For people: aligned columns, the same in a pipe as on a terminal, where headings are bold."""
    from rich.console import Console

    from .columns import hanging
    from .terminal import one_line

    class Quiet(Console):
        def on_broken_pipe(self) -> None:  # rich's own exits with status 1
            raise BrokenPipeError

    console = Quiet(highlight=False, soft_wrap=True, markup=False, emoji=False)

    def section(title: str, rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        console.print(f"\n{title}", style="bold")
        for row in rows:
            cells = [x.rjust(w) if i in right else x.ljust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))]
            head = "".join(f"  {cell}" for cell in cells[:-1]) + "  "
            for line in hanging(head, cells[-1].rstrip()):
                console.print(one_line(line))

    size = sum(f["bytes"] for f in report["files"])
    parts = f" in {len(report['files'])} files" if len(report["files"]) > 1 else ""
    console.print(one_line(report["path"]), style="bold")
    console.print(f"  {report['container']}, {size:,} bytes{parts}, {report['parameters']:,} parameters")
    section("configuration", [(name, str(value)) for name, value in report["config"].items()])
    weights = [
        (f["format"], f"{f['tensors']:,} tensors", f"{f['parameters']:,} parameters", f"{f['bytes']:,} bytes")
        for f in report["formats"]
    ]
    section("weights", weights, right=(1, 2, 3))
    tokenizer = report["tokenizer"]
    if tokenizer is None:
        section("tokenizer", [("none", "")])
    else:
        special = " ".join(f"{i}={token}" for token, i in tokenizer["special"].items())
        lines = [
            ("model", f"{tokenizer['model']}, pre-tokenizer {tokenizer['pre']}"),
            *([("puts a space", tokenizer["spaces"])] if tokenizer["spaces"] else []),
            ("sizes", f"{tokenizer['tokens']:,} tokens, {tokenizer['merges']:,} merges"),
            ("begins with", " ".join(map(str, tokenizer["prefix"])) or "nothing"),
            ("ends with", " ".join(map(str, tokenizer["suffix"])) or "nothing"),
            *(("answers end at", line) for line in answer_ends(tokenizer) or ["nothing"]),
            ("padding", str(tokenizer["pad_id"])),
            ("special", special or "none"),
            ("chat template", "yes" if tokenizer["chat_template"] else "no"),
            *(("note", note) for note in tokenizer["notes"]),
        ]
        section("tokenizer", lines)
    if tensors:
        rows = [
            (t["name"], " x ".join(map(str, t["shape"])), t["format"], f"{t['bytes']:,}") for t in report["tensors"]
        ]
        section("tensors (outermost dimension first; bytes)", rows, right=(3,))
