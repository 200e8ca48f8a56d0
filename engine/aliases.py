"""Models by a short name: which file the publisher means, and where it lies once pulled."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..errors import BadInput, meant
from .user_cache import user_cache


@dataclass(frozen=True, slots=True)
class Published:
    """A published file, pinned to a revision of its repository and to its content: whoever sends it, this is it."""

    repo: str
    revision: str
    file: str
    bytes: int
    sha256: str

    @property
    def url(self) -> str:
        """On the hub."""
        from .hub import endpoint

        return f"{endpoint()}/{self.repo}/resolve/{self.revision}/{self.file}"

    @property
    def part(self) -> str:
        """The name of what has come so far of the file."""
        return f"{self.file}.part"

    def there(self) -> Path | None:
        """The file in the models' folder, or what has come so far of it; None where nothing has."""
        found = (directory() / name for name in (self.file, self.part))
        return next((path for path in found if path.is_file()), None)


MODELS = {
    "qwen2.5-coder-0.5b-instruct-q4_k_m": Published(
        repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        revision="ebb2015119c907b064c512bf053e945850b5875f",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b-instruct-q4_k_m": Published(
        repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        revision="f86cb2c1fa58255f8052cc32aeede1b7482d4361",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}
DEFAULT = "qwen2.5-coder-0.5b-instruct-q4_k_m"


def directory() -> Path:
    """Where pulled models lie: $QWENREF_MODELS, or qwenref/models in the user's cache."""
    if chosen := os.environ.get("QWENREF_MODELS"):
        return Path(chosen)
    if cache := user_cache():
        return cache / "models"
    raise BadInput("this user has no home; name a folder for models with QWENREF_MODELS")


def resolve(name: str | os.PathLike[str] | None) -> Path:
    """The path of a model: a path as it is, an alias where it was pulled to, None for what $QWENREF_MODEL names, else
    the default alias; an id of the Hugging Face hub (hub.py) in its cache, fetched if it is not there.

    Raises BadInput, with the command that helps, for an alias not pulled yet and for a name that is none of these.
    A name spelled like a path comes back unchecked: who opens it says what is wrong with it.
    """
    chosen = os.environ.get("QWENREF_MODEL") or DEFAULT
    alias = chosen if name is None else os.fspath(name)
    if model := MODELS.get(alias):
        path = directory() / model.file
        if path.is_file():
            return path
        what = "no model given, and the default" if name is None else "model"
        raise BadInput(f"{what} {alias} is not in {directory()}; get it with: engine pull {alias}")
    path = Path(alias)
    if not alias:
        raise BadInput("the model's name is empty; engine list says which models are here")
    if path.exists():
        return path
    if path.is_symlink():
        raise BadInput(f"{alias}: a link to {os.readlink(path)}, which is not there")
    from .hub import find  # which --help does without
    from .hub_id import MODEL_SUFFIXES, check_no_url, hub_id

    check_no_url(alias)
    if model_id := hub_id(alias):
        return find(model_id)
    if len(path.parts) > 1 or path.suffix in MODEL_SUFFIXES:
        near = beside(path)
        raise BadInput(f"{alias}: No such file or directory{near or '; engine list says which models are here'}")
    where = "QWENREF_MODEL: " if name is None else ""
    known = f"neither a file nor an id of the hub (ORG/NAME) nor a known alias; known: {', '.join(MODELS)}"
    raise BadInput(f"{where}model {alias!r} is {known}{beside(path) or meant(alias, MODELS)}")


def beside(path: Path) -> str:
    """The end of a message: the model of a similar name in the same folder, where there is one."""
    from .hub_id import MODEL_SUFFIXES

    try:
        there = [p for p in path.parent.iterdir() if p.suffix in MODEL_SUFFIXES or (p / "config.json").is_file()]
    except OSError:
        return ""
    wanted = path.name.strip().lower()
    stems = get_close_matches(Path(wanted).stem, {p.stem.lower() for p in there}, n=1, cutoff=0.75)
    of_stem = [p.name for p in there if p.stem.lower() in stems]
    return f"; did you mean {path.parent / get_close_matches(wanted, of_stem, 1, 0)[0]}?" if of_stem else ""
