"""engine list: the models that are here, and what to call them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..engine.aliases import DEFAULT, MODELS, directory
from .columns import hanging
from .terminal import json_text, one_line

ENDINGS = (".gguf", ".apr")
NAME = max(map(len, MODELS))  # columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """Lists the models that were pulled, those that may be, and what lies in Hugging Face's cache.
The first column is what a command takes for MODEL."""
    parser.epilog = "example:\n  engine list"
    parser.add_argument("--json", action="store_true", help="one JSON list instead of lines")


def main(args: argparse.Namespace) -> int:
    found = [*aliases(), *others(), *cached()]
    if args.json:
        print(json_text(found))
        return 0
    for m in found:
        print("\n".join(map(one_line, lines_of(m))))
    return 0


def lines_of(m: dict[str, Any]) -> Iterator[str]:
    """A model; a name that is too long for its column has its own line, whole: it is to be typed or copied."""
    size = "" if m["bytes"] is None else f"{m['bytes']:,}"
    if len(m["model"]) > NAME:
        yield m["model"]
        yield from hanging("    ", f"{size} bytes, {m['state']}")
    else:
        yield from hanging(f"{m['model']:{NAME}} {size:>14}  ", m["state"])


def aliases() -> Iterator[dict[str, Any]]:
    """Every alias, pulled or not."""
    for alias, model in MODELS.items():
        there = model.there()
        if there is None:
            state = f"not here; engine pull: {model.bytes / 1e9:.1f} GB"
        elif there.name == model.part:
            state = "a part; engine pull goes on"
        else:
            state = "the default" if alias == (os.environ.get("QWENREF_MODEL") or DEFAULT) else "pulled"
        yield {"model": alias, "bytes": None if there is None else there.stat().st_size, "state": state}


def others() -> Iterator[dict[str, Any]]:
    """Other models in the same folder: they are called by their paths."""
    known = {model.file for model in MODELS.values()}
    folder = directory()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in ENDINGS and path.name not in known and path.is_file():
            yield {"model": str(path), "bytes": path.stat().st_size, "state": "in the models' folder"}


def cached() -> Iterator[dict[str, Any]]:
    """What other programs have left in Hugging Face's cache and can be opened here."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = [r for r in scan_cache_dir().repos if r.repo_type == "model"]
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda r: r.repo_id):
        for revision in sorted(repo.revisions, key=lambda r: r.commit_hash):
            names = {f.file_name: f for f in revision.files}
            state = f"{repo.repo_id} in Hugging Face's cache"
            if "config.json" in names and any(n.endswith(".safetensors") for n in names):
                yield {"model": str(revision.snapshot_path), "bytes": revision.size_on_disk, "state": state}
            for name, file in sorted(names.items()):
                if Path(name).suffix in ENDINGS:
                    yield {"model": str(file.file_path), "bytes": file.size_on_disk, "state": state}
