"""Ids of the hub, and which of a repository's files a model is opened from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import BadInput
from .files.foreign import PICKLE, SAVE
from .files.hf_tokenizer import GENERATION, MERGES, SENTENCEPIECE, SETTINGS, TEMPLATE, TOKENIZER, VOCAB
from .files.safetensors import CONFIG, INDEX, SINGLE
from .files.sentence_transformers import MODULES, PROMPTS

MODEL_SUFFIXES = {".gguf", ".apr", ".safetensors"}
BESIDE = {
    GENERATION, TOKENIZER, SETTINGS, VOCAB, MERGES, TEMPLATE, "special_tokens_map.json", "added_tokens.json",
    MODULES, PROMPTS,
}  # fmt: skip
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Of a file that may be fetched: no way out of the snapshot's folder, nothing that a terminal would obey.
PLAIN = re.compile(r"(?!.*\.\.)[\w+=()-][\w .+=()-]*(/[\w+=()-][\w .+=()-]*)*", re.ASCII)
ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>\w[\w./-]*))?(?::(?P<file>\w[\w ./-]*))?", re.ASCII
)


class HubId(NamedTuple):
    """What an id names. revision: a branch, tag or commit; None: main. file: a quantisation, or a file's path."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "") + (f":{self.file}" if self.file else "")


# Of a repository's files those that are needed; BadInput where they are not there.
Choose = Callable[[Iterable[str], HubId], list[str]]


def hub_id(name: str) -> HubId | None:
    """The id that a name spells, or None: it looks like a path."""
    found = ID.fullmatch(name)
    if not found or Path(found["repo"]).suffix in MODEL_SUFFIXES:
        return None
    if re.search(r"--|\.\.", found["repo"]) or ".." in (found["revision"] or ""):
        return None
    return HubId(found["repo"], found["revision"], found["file"])


def check_no_url(name: str) -> None:
    """Raises BadInput for an address, with the id that it has where it is the hub's."""
    if not re.match(r"\w+://", name):
        return
    found = re.match(r"https?://huggingface\.co/([\w-]+/[\w.-]+)(?:/(?:resolve|blob)/([^/?#]+)/([^?#]+))?", name)
    if found is None:
        raise BadInput(f"{name}: an address; download it, and give the file's path (of the hub an id does: ORG/NAME)")
    repo, revision, file = found.groups()
    single = file if file and single_files([file]) else None
    raise BadInput(f"{name}: an address; the hub's models are given by their ids: {HubId(repo, revision, single)}")


def adapter_files(names: Iterable[str], model: HubId) -> list[str]:
    """Those of an adapter, as PEFT saves it. Raises BadInput where it is none."""
    if set(ADAPTER) <= set(names):
        return [*ADAPTER]
    raise BadInput(f"{model}: no adapter as PEFT saves it, which is {' and '.join(ADAPTER)}")


def model_files(names: Iterable[str], model: HubId) -> list[str]:
    """Of a repository's files those that its model is opened from, without the shards that an index names.

    The parts of a GGUF or APR file, in order; or config.json, weights or their index, and the tokenizer's files.
    Raises BadInput that says what there is where it is no model, or several.
    """
    known = sorted(name for name in names if PLAIN.fullmatch(name))
    single = single_files(known)
    if model.file is None and CONFIG in known and (weights := next((n for n in (SINGLE, INDEX) if n in known), None)):
        below = re.compile(r"additional_chat_templates/[^/]+\.jinja|\w+_Pooling/config\.json")
        beside = BESIDE if TOKENIZER in known else BESIDE | {SENTENCEPIECE}
        return [CONFIG, weights, *sorted(beside.intersection(known)), *filter(below.fullmatch, known)]
    if model.file is not None:
        wanted = {name: files for name, files in single.items() if _is(name, files, model.file)}
        if not wanted:
            there = f"; it has {_listed(single)}" if single else ""
            raise BadInput(f"{model}: {model.repo} has no GGUF or APR file {model.file!r}{there}")
        single = wanted
    if len(single) == 1:
        return next(iter(single.values()))
    if single:
        raise several(model, single)
    if ADAPTER[0] in known:
        raise BadInput(f"{model}: an adapter (PEFT), not a model; give its base as the model, and it as --lora {model}")
    if pickle := next((n for n in known if n.endswith(PICKLED)), None):
        raise BadInput(f"{model}: has its weights as {pickle}. {PICKLE}")
    raise BadInput(f"{model}: has neither safetensors nor GGUF; save it with Transformers: {SAVE}")


def single_files(names: Iterable[str]) -> dict[str, list[str]]:
    """Models of one file, or of one file in parts: the parts by the name without its part and ending."""
    found: dict[str, list[str]] = {}
    for name in names:
        file = name.rpartition("/")[2].lower()
        if file.endswith((".gguf", ".apr")) and not re.search(r"mmproj|imatrix", file):
            found.setdefault(re.sub(r"(-\d{5}-of-\d{5})?\.\w+$", "", name), []).append(name)
    return found


def _is(name: str, files: list[str], wanted: str) -> bool:
    """A quantisation is a word of the name between dashes, dots or slashes, in upper or lower case."""
    if wanted in (name, *files):
        return True
    return re.search(rf"(^|[-./]){re.escape(wanted)}($|[-./])", name, re.IGNORECASE) is not None


def several(model: HubId, single: Iterable[str]) -> BadInput:
    return BadInput(
        f"{model}: which of its files? Give one as {model._replace(file='NAME')}, NAME being one of {_listed(single)}"
    )


def _listed(single: Iterable[str]) -> str:
    """What tells the names apart: their ends behind what all begin with, where that is a word's end."""
    names = sorted(single)
    first, last = names[0], names[-1]  # what these two share, all between them share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    start = 0 if len(names) == 1 else max(first.rfind(sign, 0, same) for sign in "-./") + 1
    return ", ".join(name[start:] for name in names[:20]) + (", ..." if len(names) > 20 else "")
