"""Which stage an array of a name holds: rules, and the maps of a user that are made of them.

A target is a stage, a part of one (Q, K and V by themselves), or a fact that says which rows the arrays have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...engine.files.strict_json import parse_object
from ...errors import BadInput, meant
from ..stages import ALIASES, NAMES, by_name

HEADS = (("q", "N"), ("k", "K"), ("v", "K"))
# Parts of a stage, that stand side by side in it: axes, stage, which one.
PARTS: Mapping[str, tuple[tuple[str, ...], str, int]] = MappingProxyType(
    {f"{x}_proj": (("T", heads, "H"), "qkv_bias", i) for i, (x, heads) in enumerate(HEADS)}
    | {f"{x}_matmul": (("T", heads, "H"), "qkv_matmul", i) for i, (x, heads) in enumerate(HEADS)}
)
FACTS = ("tokens", "positions", "attention_mask", "seq_lens", "cu_seqlens")
TARGETS = (*NAMES, *PARTS, *FACTS)
RANKS = ("columns", "sum", "same")
MAP_KEYS = {"stage", "axes", "scale", "take", "ranks"}


@dataclass(frozen=True, slots=True)
class Rule:
    """Arrays of this name hold these targets, side by side along the last axis.

    targets: empty for what is known and no stage. axes: the letters in the array's order. scale: times the values.
    later: how many layers after the stage's own the name's is. take: (axis, index) that is meant of a larger array.
    ranks: how what several ranks hold makes one; None to tell by the shapes.
    last: letters whose product the last axis must be, where a name alone stands for two things.
    unscaled: products that are still to be divided by sqrt(H).
    level: a rule of a lower one is preferred where two arrays hold the same.
    shared: of a module that all layers call, whose name may hold another layer's call.
    """

    name: re.Pattern[str]
    targets: tuple[str, ...]
    axes: tuple[str, ...] | None = None
    scale: float = 1.0
    later: int = 0
    take: tuple[int, int] | None = None
    ranks: str | None = None
    last: tuple[str, ...] = ()
    unscaled: bool = False
    level: int = 0
    shared: bool = False


def pattern(name: str, fields: Mapping[str, str]) -> re.Pattern[str]:
    """A pattern that takes time linear in a name's length: what stands behind a star is looked for once, as fnmatch
    does. A field that stands twice means the same both times."""
    seen = set[str]()

    def part(piece: str) -> str:
        found = ""
        for word in re.split(r"(\{[a-z]+\})", piece):
            found += f"(?P={word[1:-1]})" if word in seen else fields.get(word, re.escape(word))
            seen.update({word} & fields.keys())
        return found

    first, *rest = map(part, re.sub(r"\*+", "*", name).split("*"))
    middle = "".join(f"(?>.*?{p})" for p in rest[:-1])
    return re.compile(first + middle + "".join(f".*{p}" for p in rest[-1:]))


FIELDS = MappingProxyType({f"{{{n}}}": rf"(?P<{n}>\d{{1,9}})" for n in ("layer", "phase", "rank")})


def rule(name: str, *targets: str, **more: Any) -> Rule:
    """`*` is anything; {layer}, {phase} and {rank} are numbers."""
    return Rule(pattern(name, FIELDS), targets, **more)


def letters_of(target: str) -> tuple[str, ...]:
    """The axes that an array may have: of Q, K and V their heads', of the logits every position's."""
    if target in PARTS:
        return PARTS[target][0]
    return ("T", "V") if target == "lm_head" else by_name(target).letters


def read_map(path: Path) -> list[Rule]:
    """The rules of a map. Raises BadInput that names the entry which cannot be understood."""
    try:
        told = parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if not told:
        raise BadInput(f"{path}: a map is a JSON object, name -> stage")
    return [_entry(f"{path}: {name!r}", name, what) for name, what in told.items()]


def _entry(where: str, name: str, what: Any) -> Rule:
    """One entry: null (no stage), a stage, a list of stages side by side, or an object with `stage` and more."""
    if what is None:
        return rule(name)
    entry = what if isinstance(what, dict) else {"stage": what}
    if odd := sorted(entry.keys() - MAP_KEYS):
        raise BadInput(f"{where}: {odd[0]!r:.80} is not known here; {', '.join(sorted(MAP_KEYS))} are")
    stage, axes, scale, take, ranks = (entry.get(k) for k in ("stage", "axes", "scale", "take", "ranks"))
    targets = tuple(stage) if isinstance(stage, list) else (stage,)
    if wrong := [t for t in targets if not isinstance(t, str) or t not in TARGETS] or ([stage] if not targets else []):
        near = meant(str(wrong[0]), TARGETS)
        raise BadInput(f"{where}: {wrong[0]!r:.80} is no stage; the stages are {', '.join(TARGETS)}{near}")
    letters = None if axes is None else tuple(str(axes).split())
    if letters and (len(targets) > 1 or targets[0] in FACTS or sorted(letters) != sorted(letters_of(targets[0]))):
        own = " ".join(letters_of(targets[0])) if len(targets) == 1 and targets[0] not in FACTS else "for one stage"
        raise BadInput(f"{where}: axes {axes!r:.80} are not those of {targets[0]}, {own}, in some order")
    if scale is not None and (type(scale) not in (int, float) or not 0 < abs(scale) < 1e30):
        raise BadInput(f"{where}: scale {scale!r:.40} is no number that stages can be multiplied by")
    if take is not None and (
        not isinstance(take, list) or len(take) != 2 or not all(type(n) is int and abs(n) < 1 << 31 for n in take)
    ):
        raise BadInput(f"{where}: take {take!r:.40} must be [axis, index]")
    if ranks is not None and ranks not in RANKS:
        raise BadInput(f"{where}: ranks {ranks!r:.40} must be one of {', '.join(RANKS)}")
    return rule(
        name,
        *targets,
        axes=letters,
        scale=1.0 if scale is None else float(scale),
        take=None if take is None else (take[0], take[1]),
        ranks=ranks,
    )


def nearest(name: str) -> str | None:
    """The target whose name looks most like the last words of an array's; None if none does."""
    words = re.split(r"[./]", re.sub(r"\d+", "", name.lower()))
    for word in reversed([w.strip("_-") for w in words]):
        if close := get_close_matches(word, [*TARGETS, *ALIASES], n=1, cutoff=0.6):
            return ALIASES.get(close[0], close[0])
    return None
