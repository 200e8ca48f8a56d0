"""Where each array of a source belongs: pass, rank, layer and what it holds, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from ...errors import BadInput
from ..stages import USUAL, Stage, by_name, standing_for
from .array import Array
from .engines import FACT_RULES, OWN, engine_of
from .names import FACTS, PARTS, Rule

# A folder or prefix that says which pass of the model an array is of. SGLang begins a new file when the module `model`
# is through, so that what comes after it, the logits, lies in the next one.
PASS = re.compile(r"(?:(?<=/)|^)(?:(?P<sglang>Pass)|phase|step|decode|pass|prompt)[-_]?(?P<phase>\d{0,9})/")
RANK = re.compile(
    r"(?:(?<=/)|^)(?:TP(?P<tp>\d{1,4})_PP\d{1,4}_Rank\d{1,4}_pid\d{1,9}|(?:tp[-_]?)?rank[-_]?(?P<rank>\d{1,4}))/"
)

Target = tuple[int, int | None, str]  # phase, layer, stage or part of one


@dataclass(frozen=True, slots=True)
class Held:
    """An array that holds targets side by side along its last axis, of which one is meant: number `which`."""

    array: Array
    rule: Rule
    which: int


@dataclass
class Places:
    """held: by rank. facts: of each pass. unknown: arrays whose names say nothing. spare: arrays of what a better one
    holds, or that are known to be no stage. engine: whose names these are. ordered: see Engine."""

    engine: str
    ordered: bool = False
    held: dict[Target, dict[int, Held]] = field(default_factory=dict)
    facts: dict[int, dict[str, Array]] = field(default_factory=dict)
    unknown: list[Array] = field(default_factory=list)
    spare: list[Array] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Name:
    """What a name says beside the stage. late: it may be of the pass before."""

    inside: str
    phase: int
    rank: int
    late: bool


def name_of(name: str) -> Name:
    phase, rank, late = 0, 0, False
    if m := RANK.search(name):
        rank, name = int(m["tp"] or m["rank"]), name[: m.start()] + name[m.end() :]
    if m := PASS.search(name):
        phase, late, name = int(m["phase"] or 0), m["sglang"] is not None, name[: m.start()] + name[m.end() :]
    return Name(name, phase, rank, late)


def placed(
    arrays: Sequence[Array],
    rules: Sequence[Rule] | None,
    sizes: Mapping[str, int],
    layers: int | None,
    stages: Mapping[str, Stage] | None = None,
) -> Places:
    """Every array by its name. rules: a user's map; None for the engine's whose names these are. sizes, layers, stages:
    the model's; q_proj of a model without bias is the product itself; so is o_proj of one that is not known.

    Raises BadInput where two arrays are the same stage, and for layers that the model has not.
    """
    named = {a.name: Name(a.name, 0, 0, False) if rules else name_of(a.name) for a in arrays}
    engine = None if rules else engine_of([n.inside for n in named.values()])
    known = rules or (*FACT_RULES, *engine.rules, *OWN.rules) if engine else rules or ()  # ours are always understood
    places = Places("a map") if engine is None else Places(engine.name, engine.ordered)
    if engine not in (None, OWN):
        stages = stages or USUAL
    deepest = layers or _deepest(named.values(), known)
    for a in arrays:
        _place(places, a, named[a.name], known, sizes, deepest, stages)
    return _renumbered(places)


def _deepest(names: Iterable[Name], rules: Sequence[Rule]) -> int:
    told = (m.groupdict().get("layer") for n in names for r in rules if (m := r.name.fullmatch(n.inside)))
    return max((int(x) + 1 for x in told if x), default=0)


def _place(
    places: Places,
    a: Array,
    name: Name,
    rules: Sequence[Rule],
    sizes: Mapping[str, int],
    layers: int,
    stages: Mapping[str, Stage] | None,
) -> None:
    found = next(((r, m) for r in rules if (m := r.name.fullmatch(name.inside)) and _wide(a, r, sizes)), None)
    if found is None:
        places.unknown.append(a)
        return
    r, m = found
    told = m.groupdict()
    phase, rank = int(told.get("phase") or name.phase), int(told.get("rank") or name.rank)
    if not r.targets:
        places.spare.append(a)
        return
    if r.targets[0] in FACTS:
        kept = places.facts.setdefault(phase, {})
        if (before := kept.get(r.targets[0])) is None or len(a.name) < len(before.name):
            kept[r.targets[0]] = a  # the outermost: modules hand it on
        return
    targets = r.targets if stages is None else [held_by(t, stages) for t in r.targets]
    if None in targets:
        places.unknown.append(a)
        return
    for which, target in enumerate(t for t in targets if t is not None):
        scope = "layer" if target in PARTS else by_name(target).scope
        layer = int(told["layer"]) if told.get("layer") else None
        if r.later:  # a layer before it, or the last one, has put it out
            layer = (layers if layer is None else layer) - r.later
            if layer < 0:
                places.spare.append(a)
                return
        layer = {"first": 0, "whole": None}.get(scope, layer)
        if scope == "layer" and (layer is None or layer >= layers):
            raise BadInput(f"{a.where}: {target} of layer {layer}; the model has layers 0 to {layers - 1}")
        late = name.late and target == "lm_head"
        _keep(places, (phase - late, layer, target), rank, Held(a, r, which))


def _wide(a: Array, r: Rule, sizes: Mapping[str, int]) -> bool:
    """Whether the last axis is what the rule asks for."""
    return not r.last or a.shape[-1:] == (prod(sizes[x] for x in r.last),)


def _keep(places: Places, key: Target, rank: int, new: Held) -> None:
    ranks = places.held.setdefault(key, {})
    old = ranks.get(rank)
    if old is not None and old.rule.level == new.rule.level:
        layer = "the whole model" if key[1] is None else f"layer {key[1]}"
        raise BadInput(f"{new.array.where}: {key[2]} of {layer} is also in {old.array.where}")
    if old is None or new.rule.level < old.rule.level:
        ranks[rank] = new
    if old is not None:
        places.spare.append(old.array if new.rule.level < old.rule.level else new.array)


def _renumbered(places: Places) -> Places:
    """Passes from 0 on, without gaps. Logits of a pass of which nothing else is there are of no use."""
    whole = sorted({p for p, _, name in places.held if name != "lm_head"} | places.facts.keys())
    if not whole:
        whole = sorted({p for p, _, _ in places.held})
    number = {p: i for i, p in enumerate(whole)}
    lost = [h.array for (p, _, _), ranks in places.held.items() if p not in number for h in ranks.values()]
    return replace(
        places,
        held={(number[p], *key): ranks for (p, *key), ranks in places.held.items() if p in number},  # type: ignore[misc]
        facts={number[p]: facts for p, facts in places.facts.items()},
        spare=[*places.spare, *lost],
    )


def stage_name(target: str) -> str:
    """The stage that a target is, or is a part of."""
    return PARTS[target][1] if target in PARTS else target


def held_by(target: str, stages: Mapping[str, Stage]) -> str | None:
    """The target of a model with these stages; None for a stage that it has not."""
    if target not in PARTS:
        return standing_for(target, stages)
    axes, stage, which = PARTS[target]
    mine = standing_for(stage, stages)
    return next((name for name, part in PARTS.items() if part == (axes, mine, which)), None)


def told_facts(facts: Mapping[str, Array]) -> dict[str, Array]:
    """Those that say something of rows: a mask of two axes, not one of scores."""
    return {k: a for k, a in facts.items() if k != "attention_mask" or len(a.shape) <= 2}
