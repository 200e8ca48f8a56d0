"""What sentence-transformers lays beside a model: how a text's rows become its vector (modules.json, 1_Pooling)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import BadInput
from .fields import Fields, one
from .hf_tokenizer import read_object
from .mapped import read_head
from .strict_json import parse

MOST = 1 << 20  # bytes of a list of modules
MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
# Ways to pool, as sentence_transformers/models/Pooling.py spells them: a flag each, or one word.
FLAGS = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
WORDS = {"lasttoken": "last", "mean": "mean", "cls": "cls"}


def read_pooling(folder: Path) -> tuple[str, list[str]]:
    """How a folder's texts are pooled (engine/models/heads.Head), "" where it does not say, and notes on what the
    library does besides. What is not computed here is spelled out. Raises BadInput for files that are none."""
    path = folder / MODULES
    if not path.exists():
        return "", []
    modules = parse(read_head(path, MOST), str(path))
    if not isinstance(modules, list):
        raise BadInput(f"{path}: a list of modules is needed")
    ways = list(_ways(folder, modules))
    prompt = Fields(read_object(folder / PROMPTS), str(folder / PROMPTS)).text("default_prompt_name")
    note = f"{folder / PROMPTS}: a prompt, {prompt!r:.40}, goes before every text there; here texts stand as they are"
    return ", then ".join(ways), [note] if prompt else []


def write_pooling(folder: Path, pooling: str, width: int) -> None:
    """The library's files beside a model whose texts are pooled so, and brought to length 1. width: of a row."""
    steps = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(steps.items())
    ]
    (folder / MODULES).write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    (folder / steps["Pooling"]).mkdir()
    way = {"word_embedding_dimension": width} | {flag: way == pooling for flag, way in FLAGS.items()}
    (folder / steps["Pooling"] / "config.json").write_text(json.dumps(way, indent=2) + "\n", encoding="utf-8")


def _ways(folder: Path, modules: list[Any]) -> Iterator[str]:
    """What follows the model, but for its last step, which makes the vector's length 1."""
    for number, value in enumerate(modules):
        module = one(value, f"{folder / MODULES}: [{number}]")
        kind = (module.text("type") or "").rpartition(".")[2]
        if kind == "Pooling":
            yield _way(folder, module)
        elif number and kind != "Normalize":
            yield kind or "a module without a type"


def _way(folder: Path, module: Fields) -> str:
    name = module.text("path") or ""
    if not name or Path(name).name != name:
        raise module.bad("path", "a folder beside it")
    path = folder / name / "config.json"
    if not path.exists():
        raise BadInput(f"{path}: no such file; {MODULES} says that it is there; download it too")
    said = Fields(read_object(path), str(path))
    on = [flag for flag in said.values if flag.startswith("pooling_mode_") and said.flag(flag)]
    if word := said.text("pooling_mode"):
        return WORDS.get(word, word)
    return " and ".join(FLAGS.get(flag, flag.removeprefix("pooling_mode_")) for flag in on)
