"""engine import: which stage the files of a name hold, by patterns that a user's map gives."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..engine.files.strict_json import parse_object
from ..errors import BadInput
from ..trace.stages import NAMES, by_name

PARTS = {"q_proj": ("T", "N", "H"), "k_proj": ("T", "K", "H"), "v_proj": ("T", "K", "H")}  # of qkv_bias, side by side


@dataclass(frozen=True, slots=True)
class Rule:
    """Files of this name hold that stage. axes: the stage's letters in the file's order; scale: times the values;
    later: how many layers after the stage's own the name's is."""

    name: re.Pattern[str]
    stage: str
    axes: tuple[str, ...] | None = None
    scale: float = 1.0
    later: int = 0


def rule(name: str, stage: str, axes: tuple[str, ...] | None = None, scale: float = 1.0) -> Rule:
    """A pattern that takes time linear in a name's length: what stands behind a star is looked for once, as fnmatch
    does. A field that stands twice means the same both times."""
    fields = {"{layer}": r"(?P<layer>\d{1,9})"}
    if stage == "{stage}":
        fields[stage] = f"(?P<stage>{'|'.join(NAMES)})"
    seen = set[str]()

    def part(piece: str) -> str:
        found = ""
        for word in re.split(r"(\{layer\}|\{stage\})", piece):
            found += f"(?P={word[1:-1]})" if word in seen else fields.get(word, re.escape(word))
            seen.update({word} & fields.keys())
        return found

    first, *rest = map(part, re.sub(r"\*+", "*", name).split("*"))
    middle = "".join(f"(?>.*?{p})" for p in rest[:-1])
    return Rule(re.compile(first + middle + "".join(f".*{p}" for p in rest[-1:])), stage, axes, scale)


def read_map(path: Path) -> list[Rule]:
    """The rules of a map. Raises BadInput that names the entry which cannot be understood."""
    try:
        told = parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if not told:
        raise BadInput(f"{path}: a map is a JSON object, file name -> stage")
    rules = []
    for name, what in told.items():
        entry = {"stage": what} if isinstance(what, str) else what
        stage, axes, scale = (
            (entry.get(k) for k in ("stage", "axes", "scale")) if isinstance(entry, dict) else (0, 0, 0)
        )
        if not isinstance(stage, str) or stage not in (*NAMES, *PARTS):
            raise BadInput(f"{path}: {name!r}: {stage!r:.80} is no stage; the stages are {', '.join((*NAMES, *PARTS))}")
        letters = None if axes is None else tuple(str(axes).split())
        if letters and sorted(letters) != sorted(letters_of(stage)):
            own = " ".join(letters_of(stage))
            raise BadInput(f"{path}: {name!r}: axes {axes!r:.80} are not those of {stage}, {own}, in some order")
        if scale is not None and (type(scale) not in (int, float) or not 0 < abs(scale) < 1e30):
            raise BadInput(f"{path}: {name!r}: scale {scale!r:.40} is no number that stages can be multiplied by")
        rules.append(rule(name, stage, letters, 1.0 if scale is None else float(scale)))
    return rules


def letters_of(name: str) -> tuple[str, ...]:
    """The axes that an array of the stage may have: of Q, K and V their heads', of the logits every position's."""
    return PARTS.get(name) or (("T", "V") if name == "lm_head" else by_name(name).letters)
