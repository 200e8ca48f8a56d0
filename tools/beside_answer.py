"""A file that a command writes beside its answer: --html FILE, --save-logits FILE"""

from __future__ import annotations

from pathlib import Path

from ..errors import BadInput
from .leftovers import whole_file
from .load import check_no_model


def check_place(path: Path) -> None:
    """Raises BadInput for a place where no file can be made, before anything is computed."""
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path.parent}: no such folder; make it first")
    if path.is_dir():
        raise BadInput(f"{path}: a folder; give a file's name, in it or elsewhere")
    check_no_model(str(path), "give what is written another name")


def write_page(path: Path, text: str) -> None:
    """A page of HTML: whole or not at all."""
    with whole_file(path, "the page") as beside:
        beside.write_text(text, "utf-8", "backslashreplace")  # a file's name may be no text


def write_picture(path: Path, picture: bytes) -> None:
    """A PNG: whole or not at all."""
    with whole_file(path, "the picture") as beside:
        beside.write_bytes(picture)
