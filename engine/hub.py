"""Models by their id on the Hugging Face hub: `ORG/NAME`, `ORG/NAME@REVISION`, `ORG/NAME-GGUF:Q4_K_M`.

They lie in huggingface_hub's own cache, which other programs share, and that library fetches them. What is cached is
taken without asking the network; only what a model is opened from is fetched, never code and never a pickle.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .files.hf_tokenizer import SENTENCEPIECE, TOKENIZER, VOCAB
from .files.safetensors import CONFIG, INDEX, shard_names
from .hub_id import ADAPTER, MODEL_SUFFIXES, Choose, HubId, model_files, several, single_files

TIMEOUT_S = 15  # of one network operation; a hub that cannot be reached must not cost minutes


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, as in huggingface_hub, names another."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def find(model: HubId, choose: Choose | None = None) -> Path:
    """The model in the cache; fetched first if it is not all there. choose: other files than a model's.

    Raises BadInput where the hub has no such model, or cannot be asked; where there are several to choose from.
    """
    folder, of = snapshot(model), choose or model_files
    here = None if folder is None else _complete(folder, model, of)
    if here is not None and (here.is_file() or choose is not None or _has_tokenizer(here)):
        return here
    try:
        return fetch(model, of)
    except UnreachableError as error:
        if here is None and (only := _only_snapshot(model)) is not None:
            here = _complete(only, model, of)
        if here is not None:
            return here
        if folder is not None and len(single := single_files(_files(folder))) > 1 and model.file is None:
            raise several(model, single) from None
        part = f"only a part of it is in {folder}" if folder is not None else f"it is not in {cache_folder(model)}"
        raise BadInput(f"{model}: {error}, and {part}") from None


class UnreachableError(Exception):
    """The hub could not be asked; the message says why in a few words."""


def cache_folder(model: HubId) -> Path:
    """Where huggingface_hub keeps a model: refs/, snapshots/COMMIT/, blobs/."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{model.repo.replace('/', '--')}"


def snapshot(model: HubId) -> Path | None:
    """The folder of the id's revision in the cache, whatever is in it; None if that revision was never fetched."""
    home, revision = cache_folder(model), model.revision or "main"
    try:
        commit = (home / "refs" / revision).read_text("ascii").strip()
    except (OSError, ValueError):
        commit = revision
    folder = home / "snapshots" / commit
    return folder if re.fullmatch(r"[\w.-]*\w", commit) and folder.is_dir() else None


def _only_snapshot(model: HubId) -> Path | None:
    """Where no revision was asked for, and the cache does not say which is main: the only one there is."""
    found = [p for p in (cache_folder(model) / "snapshots").glob("*") if p.is_dir()]
    return found[0] if len(found) == 1 and model.revision is None else None


def _files(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]


def _complete(folder: Path, model: HubId, choose: Choose) -> Path | None:
    """The model in a snapshot's folder, None where not all of it is there."""
    names = _files(folder)
    try:
        chosen = choose(names, model)
        files = [*chosen, *(shard_names(folder / INDEX) if INDEX in chosen else ())]
    except BadInput:
        return None
    parts = re.search(r"-\d{5}-of-(\d{5})\.gguf$", chosen[0])
    if parts and len(chosen) != int(parts[1]):
        return None
    return _opened(folder, chosen) if set(files) <= set(names) else None


def _opened(folder: Path, chosen: list[str]) -> Path:
    return folder if {CONFIG, ADAPTER[0]}.intersection(chosen) else folder / chosen[0]


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in (TOKENIZER, VOCAB, SENTENCEPIECE))


def fetch(model: HubId, choose: Choose = model_files) -> Path:
    """Asks the hub what the id's revision is, and brings what is not cached of it. Progress is shown on a terminal.

    Raises UnreachableError where the hub cannot be asked, BadInput for whatever else it answers.
    """
    with _asking(model):
        from huggingface_hub import HfApi

        info: Any = HfApi(endpoint=endpoint()).model_info(model.repo, revision=model.revision, timeout=TIMEOUT_S)
        names = [str(file.rfilename) for file in info.siblings or ()]
        sha = str(info.sha)
    if not re.fullmatch("[0-9a-f]{40}", sha):
        raise BadInput(f"{model}: {endpoint()} names no commit; it is no hub")
    chosen = choose(names, model)
    small = [name for name in chosen if Path(name).suffix not in MODEL_SUFFIXES]
    folder = _bring(model, sha, small) if INDEX in chosen else None
    if folder is not None:
        shards = shard_names(folder / INDEX)
        if lost := sorted(set(shards) - set(names)):
            raise BadInput(f"{model}: {INDEX} names {lost[0]!r:.80}, which is not there")
        chosen += shards
    return _opened(_bring(model, sha, chosen), chosen)


def _bring(model: HubId, sha: str, files: list[str]) -> Path:
    with _asking(model):
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import tqdm

        class Bar(tqdm):  # one of its own would be drawn in a pipe, too
            def __init__(self, *args: Any, **settings: Any) -> None:
                super().__init__(*args, **settings | {"disable": settings.get("disable") or not sys.stderr.isatty()})

        folder = Path(
            snapshot_download(
                model.repo,
                revision=model.revision,
                endpoint=endpoint(),
                etag_timeout=TIMEOUT_S,
                tqdm_class=Bar,
                allow_patterns=[glob.escape(name) for name in files],
            )
        )
    if folder.name != sha:
        raise BadInput(f"{model}: has changed while it was fetched; do it again")
    if lost := [name for name in files if not (folder / name).is_file()]:
        raise BadInput(f"{model}: {lost[0]} did not come; do it again")
    return folder


@contextmanager
def _asking(model: HubId) -> Iterator[None]:
    """What huggingface_hub, the network or the disk may raise, in one line; and the library's own advice unsaid."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # whatever a hub may answer with: the library checks less than it reads
        raise _refusal(error, model) from None
    finally:
        logging.set_verbosity(level)


def _refusal(error: Exception, model: HubId) -> Exception:
    from huggingface_hub import errors

    where = endpoint()
    said = {
        errors.GatedRepoError: f"accept its terms at {where}/{model.repo}, then log in: hf auth login",
        errors.RevisionNotFoundError: f"{model.repo} has no revision {model.revision or 'main'!r} on {where}",
        errors.RepositoryNotFoundError: f"no such file here, and no model on {where}, or a private one (hf auth login)",
        errors.HFValidationError: "no such file here, and no id of the hub, which is ORG/NAME",
    }
    for kind, words in said.items():  # of a kind and what is more than that, the latter stands first
        if isinstance(error, kind):
            return BadInput(f"{model}: {words}")
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return UnreachableError("the hub is not asked (HF_HUB_OFFLINE)")
    if isinstance(error, OSError) and error.errno in {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EROFS,
        errno.EPERM,
    }:
        return BadInput(f"{model}: cannot write {error.filename or cache_folder(model)}: {error.strerror}")
    words = (str(error).strip().splitlines() or ["no reason given"])[0]
    return UnreachableError(f"{where} cannot be asked ({type(error).__name__}: {words:.200})")


def digests(path: Path) -> Iterator[tuple[Path, str]]:
    """The files of a cached model, and the SHA-256 that each ought to have: the cache keeps large files under it."""
    for link in sorted(path.rglob("*") if path.is_dir() else [path]):
        if link.is_file() and re.fullmatch("[0-9a-f]{64}", name := link.resolve().name):
            yield link, name
