"""A command that is asked for several things at once: each is a part, computed by itself, here, by workers
(tools/workers.py) or on a cluster (tools/cluster.py); and one table of all.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..engine.aliases import DEFAULT
from ..errors import BadInput
from .part import Desk, Outcome, Part, attempt
from .progress import progress
from .table import Column, table
from .terminal import json_text, on_stderr


def add_parts_arguments(parser: argparse.ArgumentParser, head: str) -> None:
    """--workers and --scheduler. head: what it is of which they do a part each."""
    group = parser.add_argument_group(head)
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, metavar="N", help="so many processes at once, which share the cores of this machine"
    )
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of a Dask cluster, as in tcp://10.0.0.1:8786, whose workers do it and must see every file by the same "
        "path (pip install 'qwenref[cluster]')",
    )


def in_parts(args: argparse.Namespace, count: int) -> bool:
    """Whether the answer is a table: there are several things, or it was said who computes them. Raises BadInput."""
    if args.workers is not None and args.workers < 1:
        raise BadInput(f"--workers {args.workers}: give at least 1")
    return count > 1 or args.workers is not None or args.scheduler is not None


def everywhere(name: str | None) -> str:
    """What a model or a file is called by a process that stands elsewhere; None is the default model."""
    chosen = (os.environ.get("QWENREF_MODEL") or DEFAULT) if name is None else name
    return str(Path(chosen).absolute()) if chosen and Path(chosen).exists() else chosen


def adapter_everywhere(spec: str) -> str:
    """The same for DIR[:SCALE]."""
    path, colon, scale = spec.rpartition(":")
    return f"{everywhere(path)}:{scale}" if colon and not Path(spec).exists() else everywhere(spec)


def outcomes(
    command: str, parts: Sequence[Part], args: argparse.Namespace, sizes: Sequence[int] | None = None
) -> list[Outcome]:
    """What became of each part, in their order.

    sizes: of what is one answer, for a bar that counts what the command alone would: up to the first part that failed,
    as the command would have ended there. None for parts with an answer each.
    """
    whole = sizes is not None
    total, unit = (len(parts), "parts") if sizes is None else (sum(sizes), "")
    with progress(command, total, unit) as show:
        shares = [0.0] * len(parts)

        def done(number: int, so_far: int, of: int) -> None:
            shares[number] = so_far / max(of, 1) * (1 if sizes is None else sizes[number])
            show(sum(shares))

        if args.scheduler is not None:
            from .cluster import on_cluster

            return on_cluster(parts, args.scheduler, done, whole=whole)
        if args.workers is not None:
            from .workers import with_workers

            return with_workers(parts, args.workers, done, whole=whole)
        desk, found = Desk(), []
        for number, part in enumerate(parts):
            found.append(attempt(part, desk, partial(done, number)))
            done(number, 1, 1)
            if whole and "error" in found[-1].told:
                break
        return found


def tell(
    command: str, parts: Sequence[Part], found: Sequence[Outcome], columns: Sequence[Column], as_json: bool
) -> int:
    """Prints the table, or the document; the exit status, which is the worst of the parts'."""
    status = max(o.status for o in found)
    for part, outcome in zip(parts, found, strict=True):
        for note in outcome.notes:
            on_stderr(f"note: {', '.join(part.asked.values())}: {note}")
    if as_json:
        told = [{"asked": dict(p.asked), "status": o.status, **o.told} for p, o in zip(parts, found, strict=True)]
        print(json_text({"schema": "qwenref-parts-v1", "command": command, "status": status, "parts": told}, indent=1))
    else:
        rows = [o.cells or str(o.told["error"]) for o in found]
        print("\n".join(table([p.asked for p in parts], rows, columns)))
    if lost := sum("error" in o.told for o in found):
        on_stderr(f"engine {command}: {lost} of {len(parts)} came to nothing; {'each' if lost > 1 else 'it'} says why")
    return status
