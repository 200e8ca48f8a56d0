"""What a page or a picture is of: its title, and the source, sizes and tokens below it."""

from __future__ import annotations

from ..dump import Entry
from ..store import phase_name
from .names import Names
from .view import View

TOKENS = 12  # that are spelled out


def title(e: Entry, layer: int | None) -> str:
    """layer: which one is shown, None for several and for the whole model."""
    return e.stage.name + ("" if layer is None else f", layer {layer}") + f" ({phase_name(e.phase)})"


def sizes(v: View, names: Names) -> str:
    """Lengths of the stage's axes, and its first tokens."""
    e = v.entry
    axes = " × ".join(f"{n} {letter}" for n, letter in zip(e.shape, e.stage.letters, strict=True))
    shown = " ".join(names.at(p) for p in range(min(TOKENS, len(names.ids)))) + " ..." * (len(names.ids) > TOKENS)
    return f"{axes}; tokens: {shown or 'unknown'}"
