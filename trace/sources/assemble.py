"""A dump out of the arrays of a source: each stage's parts and shards put together, one prompt's rows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput
from ..axes import Letters, arranged, lengths, orders
from ..axes import fits as whole_fit
from ..dump import Dump, Entry, ordered
from ..stages import NAMES, Stage, by_name, layer_name
from .array import FLOATS, FORMAT, Arrays, decoded
from .calls import without_other_calls
from .names import PARTS, Rule, letters_of, nearest
from .places import Held, Places, Target, placed, stage_name, told_facts
from .rows import Batch, Rows, rows_of
from .shards import SUMMED, joined, share, sizes_of_rank

Raw = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user says of a source. rules: a map of names. tokens: the ids that were run. row: which prompt of a
    batch. passes: which of the passes, of the model through its layers, that the source holds."""

    rules: Sequence[Rule] | None = None
    tokens: tuple[int, ...] | None = None
    row: int | None = None
    passes: tuple[range, ...] | None = None


@dataclass
class Assembly:
    """turned: arrays that were read in another order of axes than their stage's. odd: what is strange, for people."""

    source: Arrays
    sizes: Mapping[str, int]
    places: Places
    rows: list[Rows] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


def assembled(
    source: Arrays,
    sizes: Mapping[str, int],
    layers: int | None,
    asked: Asked,
    stages: Mapping[str, Stage] | None = None,
) -> tuple[Dump, Assembly]:
    """The dump, and how it was read. Shapes are checked, values are not looked at.

    sizes, layers, stages: the model's. Raises BadInput where nothing is understood, or two arrays contradict each
    other.
    """
    places = placed(source.arrays, asked.rules, sizes, layers, stages)
    if source.facts.get("format") == FORMAT:
        places.ordered = True
    if asked.passes is not None:
        places = _passes(places, asked.passes, source)
    if not places.held:
        close = next(filter(None, (nearest(x.name) for x in source.arrays)), None)
        like = "" if close is None else f"; did you mean {close}?"
        raise BadInput(
            f"{source.path}: no array is named as a stage is ({listed(source)}); say which are with --map{like}"
        )
    a = Assembly(source, sizes, places)
    phases = sorted({key[0] for key in places.held} | places.facts.keys())
    for phase in phases:
        a.rows.append(_rows(a, phase, asked))
    _check_order(a)
    for phase in phases:
        a.odd += without_other_calls(places, phase)
    entries = [e for phase in phases for e in _entries(a, phase)]
    if not entries:
        raise BadInput(f"{source.path}: no stage of it is whole")
    dump = Dump(
        source.path, _run(a, asked), sizes, ordered(entries), (*(x.name for x in places.unknown), *source.no_arrays)
    )
    return dump, a


def _passes(places: Places, wanted: tuple[range, ...], source: Arrays) -> Places:
    chosen = sorted({p for r in wanted for p in r})
    there = {key[0] for key in places.held} | places.facts.keys()
    if missing := [p for p in chosen if p not in there]:
        raise BadInput(f"{source.path}: pass {missing[0]}; it holds passes 0 to {max(there, default=0)}")
    number = {p: i for i, p in enumerate(chosen)}
    held = {(number[p], layer, t): h for (p, layer, t), h in places.held.items() if p in number}
    facts = {number[p]: f for p, f in places.facts.items() if p in number}
    return Places(places.engine, places.ordered, held, facts, places.unknown, places.spare)


def listed(source: Arrays, count: int = 10) -> str:
    """The first names, and how many more."""
    names = [a.name for a in source.arrays]
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(f'"{n:.80}"' for n in names[:count]) + more


# -- rows -------------------------------------------------------------------------------------------------------------


def _rows(a: Assembly, phase: int, asked: Asked) -> Rows:
    facts = told_facts(a.places.facts.get(phase, {}))
    if bad := next(((k, x) for k, x in facts.items() if len(x.shape) not in (1, 2) or not prod(x.shape)), None):
        raise BadInput(f"{bad[1].where}: shape {bad[1].shape}; {bad[0]} have one axis, or prompts before it")
    told = {k: x.whole_numbers() for k, x in facts.items()}
    past = a.rows[-1].positions[-1] + 1 if a.rows and a.rows[-1].positions else 0
    width, prompts = _width(a, phase)
    where = f"{a.source.path}" + (f": pass {phase}" if phase else "")
    alone = all(target == "lm_head" for p, _, target in a.places.held if p == phase)
    if not told and width == 1 and alone and asked.tokens and not phase:
        width = len(asked.tokens)  # logits of the last position say nothing of those before it
    if not told and prompts == 1 and asked.row is None:
        return Rows(None, width, np.arange(width), tuple(range(past, past + width)))
    rows = rows_of(told, width, prompts, past, asked.row, where)
    if rows.odd:
        a.odd.append(f"{where}: {rows.odd}")
    return rows


def _width(a: Assembly, phase: int) -> tuple[int, int]:
    """How many positions, and prompts before them, the arrays of a pass have.

    Scores are asked after the others, for they may be square; the logits last, for they may be of the last position.
    """

    def last(key: Target) -> tuple[bool, bool, bool]:
        return key[2] == "lm_head", "S" in letters_of(key[2]), share(key[2]) is not None

    for key in sorted((k for k in a.places.held if k[0] == phase), key=last):
        ranks = a.places.held[key]
        held = next(iter(ranks.values()))
        raw, sizes = held.array.raw, a.sizes
        letters = letters_of(key[2])
        if held.rule.axes is None and len(letters) == 2 and raw.ndim == 3 and min(raw.shape[:2]) > 1:
            widths = [sizes[x] for x in letters[1:]]
            if raw.shape[2] == prod(widths):
                return raw.shape[1], raw.shape[0]
        if len(held.rule.targets) > 1 and raw.ndim:
            return prod(raw.shape[:-1]), 1
        if known := lengths(raw.shape, letters, sizes, None):
            return known["T"], 1
    return 1, 1


def _check_order(a: Assembly) -> None:
    """One prompt's passes follow one another. Rows that a later pass does again (rejected drafts) are left out."""
    for i, rows in enumerate(a.rows):
        later = [r.positions[0] for r in a.rows[i + 1 :] if r.positions]
        if later and rows.positions and min(later) <= rows.positions[0]:
            again = next(
                n for n, r in enumerate(a.rows) if n > i and r.positions and r.positions[0] <= rows.positions[0]
            )
            raise BadInput(
                f"{a.source.path}: passes {i} and {again} both begin at position {rows.positions[0]}: two prompts; "
                f"say which with --passes {i}..{again}"
            )
        if later and rows.positions and rows.positions[-1] >= min(later):
            a.rows[i] = rows.until(min(later))
            dropped = len(rows.positions) - len(a.rows[i].positions)
            a.odd.append(f"pass {i}: {dropped} rows are computed again by a later pass, and are left out")


def _run(a: Assembly, asked: Asked) -> dict[str, Any]:
    """The facts of the run: ids by position, where they are known from the first on."""
    told = {p: t for r in a.rows if r.ids is not None for p, t in zip(r.positions, r.ids, strict=True)}
    run: dict[str, Any] = {"engine": a.source.facts.get("producer", a.places.engine), "facts": dict(a.source.facts)}
    ids = [told[p] for p in range(len(told))] if sorted(told) == list(range(len(told))) else []
    if asked.tokens is not None:
        if ids and tuple(ids) != asked.tokens[: len(ids)]:
            raise BadInput(f"{a.source.path}: was made of tokens {ids[:8]}, not of {list(asked.tokens[:8])}")
        ids = list(asked.tokens)
    if bad := next((t for t in ids if not 0 <= t < 1 << 31), None):
        raise BadInput(f"{a.source.path}: {bad} is no token id")
    if ids:
        first = len(a.rows[0].positions)
        single = all(len(r.positions) == 1 for r in a.rows[1:])
        run |= {"tokens": ids[:first], "generated": ids[first:]} if single else {"tokens": ids, "generated": []}
    return run


# -- stages -----------------------------------------------------------------------------------------------------------


def _entries(a: Assembly, phase: int) -> list[Entry]:
    rows, found = a.rows[phase], []
    if not rows.positions:
        return []
    stages: dict[tuple[int | None, str], dict[str, dict[int, Held]]] = {}
    for (p, layer, target), ranks in a.places.held.items():
        if p == phase:
            stages.setdefault((layer, stage_name(target)), {})[target] = ranks
    for (layer, name), targets in stages.items():
        whole = targets.pop(name, None)
        if whole is not None and targets:
            one, other = (next(iter(x.values())).array.where for x in (whole, next(iter(targets.values()))))
            raise BadInput(f"{other}: {name} of {layer_name(layer)} is also in {one}")
        parts = {name: whole} if whole is not None else targets
        wanted = [p for p, (_, stage, _) in PARTS.items() if stage == name] if whole is None else [name]
        where = next(iter(parts[next(iter(parts))].values())).array
        if missing := [p for p in wanted if p not in parts]:
            raise BadInput(
                f"{where.where}: {', '.join(missing)} of {layer_name(layer)} are missing; {name} needs all three"
            )
        makers = [_maker(a, phase, target, parts[target]) for target in wanted]
        if rows.cut and rows.width > 1 and makers[0].pieces[0].sizes["T"] == 1:
            continue  # of the last row, which a later pass computes again
        s = by_name(name)
        T = makers[0].T
        letters = {"T": T, "S": makers[0].S, **a.sizes}
        shape = tuple(letters[x] for x in s.letters)
        positions = rows.positions[-1:] if "T" not in s.letters else rows.positions[-T:]
        found.append(
            Entry(a.source.path, s, layer, phase, shape, positions, read=partial(_values, tuple(makers), shape))
        )
    return found


@dataclass(frozen=True, slots=True)
class Piece:
    """What one rank holds of a target: `raw` cut to one prompt and one target, every position of its pass.

    sizes: of every letter, T and S among them. axes: the order of raw's axes. whole: whether nothing is shared out.
    """

    raw: Raw
    sizes: Mapping[str, int]
    axes: Letters | None
    whole: bool


@dataclass(frozen=True, slots=True)
class Maker:
    """How one target's values are made. take, keys: which positions and which keys; None for all. T, S: how many."""

    target: str
    rule: Rule
    kind: str
    pieces: tuple[Piece, ...]
    sizes: Mapping[str, int]
    take: NDArray[np.int64] | None
    keys: NDArray[np.int64] | None
    T: int
    S: int

    def values(self) -> NDArray[np.float32]:
        """Of the target's axes, `lm_head` without T."""
        letters, made = letters_of(self.target), []
        for p in self.pieces:
            raw, _ = arranged(p.raw, letters, p.sizes, p.axes)
            for letter, which in (("T", self.take), ("S", self.keys)):
                if which is not None and letter in letters:
                    raw = np.take(raw, which, letters.index(letter))
            made.append(decoded(self.kind, raw))
        x = joined(self.target, made, self.pieces[0].whole, self.rule.ranks, self.kind, self.sizes)
        scale = self.rule.scale / (sqrt(self.sizes["H"]) if self.rule.unscaled else 1)
        x = x * np.float32(scale) if scale != 1 else x
        return x[-1] if self.target == "lm_head" else x


def _values(makers: tuple[Maker, ...], shape: tuple[int, ...]) -> NDArray[np.float32]:
    parts = [m.values() for m in makers]
    whole = parts[0] if len(parts) == 1 else np.concatenate([p.reshape(len(p), -1) for p in parts], 1)
    return whole.reshape(shape)


def _maker(a: Assembly, phase: int, target: str, ranks: Mapping[int, Held]) -> Maker:
    """Checks that the ranks' arrays are this target's. Raises BadInput that names the array and what it could be."""
    rows, helds = a.rows[phase], [ranks[r] for r in sorted(ranks)]
    rule, first = helds[0].rule, helds[0].array
    if kinds := [h.array for h in helds if h.array.kind not in FLOATS or h.array.kind != first.kind]:
        raise BadInput(
            f"{kinds[0].where}: values of {kinds[0].kind}; {', '.join(FLOATS)} are wanted, one for all ranks"
        )
    pieces = tuple(_piece(a, rows, target, h, len(helds)) for h in helds)
    if len({p.sizes["T"] for p in pieces}) > 1 or len({p.whole for p in pieces}) > 1:
        raise BadInput(f"{first.where}: the ranks hold {target} in different shapes")
    T, S = pieces[0].sizes["T"], pieces[0].sizes.get("S", 0)
    take: NDArray[np.int64] | None = None
    if target == "lm_head" and rows.width != T == rows.sequence[1]:
        take = np.array([rows.sequence[0]])
    elif rows.width == T and len(rows.take) < T:
        take = rows.take
    keys = _columns(a, phase, S) if S else None
    kept = T if take is None else len(take)
    maker = Maker(target, rule, first.kind, pieces, a.sizes, take, keys, kept, S if keys is None else len(keys))
    if len(pieces) > 1 and pieces[0].whole and rule.ranks is None and target not in SUMMED:
        odd = [h for h, p in zip(helds, pieces, strict=True) if not np.array_equal(p.raw, pieces[0].raw)]
        if odd:
            a.odd.append(f"{odd[0].array.where}: differs from {first.where}, though each rank has all of {target}")
    return maker


def _piece(a: Assembly, rows: Rows, target: str, held: Held, ranks: int) -> Piece:
    r, where = held.rule, held.array.where
    letters = letters_of(target)
    raw = one_prompt(_taken(held), rows.batch, where)
    if not raw.size:
        raise BadInput(f"{where}: an array of shape {held.array.shape} holds no value")
    known: dict[str, int] | None = None
    for sizes in [a.sizes] if ranks == 1 else [a.sizes, sizes_of_rank(a.sizes, ranks)]:
        mine = _side(raw, held, sizes, where)
        if mine is None:
            continue
        known = lengths(mine.shape, letters, sizes, rows.width if "S" in letters else None)
        if known is not None and known["T"] in _possible(target, rows):
            break
        known = None
    if known is None or mine is None:
        raise BadInput(
            f"{where}: shape {held.array.shape} does not fit {target} ({_spelled(a, held)}){_why(a, target, rows, raw)}"
        )
    try:
        _, axes = arranged(mine, letters, {**sizes, **known}, r.axes or (letters if a.places.ordered else None))
    except BadInput as error:
        raise BadInput(f"{where}: as {target}: {error}") from None
    if not r.axes and axes != letters and len(r.targets) == 1:
        a.turned.append(f"{held.array.name} ({' '.join(axes)})")
    return Piece(mine, {**sizes, **known}, axes, sizes is a.sizes)


def _possible(target: str, rows: Rows) -> tuple[int, ...]:
    """How many rows an array may have: all of the pass, the last alone if it is this prompt's, of logits one of each
    prompt."""
    last = (1,) if rows.cut or rows.take[-1] == rows.width - 1 or (rows.batch and target == "lm_head") else ()
    return (rows.width, *last, *([rows.sequence[1]] if target == "lm_head" else []))


def _taken(held: Held) -> Raw:
    raw, take = held.array.raw, held.rule.take
    if take is None:
        return raw
    axis, index = take
    if not -raw.ndim <= axis < raw.ndim or not -raw.shape[axis] <= index < raw.shape[axis]:
        raise BadInput(f"{held.array.where}: shape {raw.shape} has no index {index} of axis {axis}")
    return np.moveaxis(raw, axis, 0)[index]


def one_prompt(raw: Raw, batch: Batch | None, where: str) -> Raw:
    """The part of an array that is one prompt's: prompts before positions, behind them, or both in one axis."""
    if batch is None:
        return raw
    if raw.shape[:1] == (batch.of,):
        return raw[batch.row]
    if raw.shape[:2] == (batch.width, batch.of):
        return raw[:, batch.row]
    if raw.shape[:1] == (batch.of * batch.width,):
        return raw.reshape(batch.of, batch.width, *raw.shape[1:])[batch.row]
    raise BadInput(f"{where}: shape {raw.shape} is none of {batch.of} prompts of {batch.width} positions")


def _side(raw: Raw, held: Held, sizes: Mapping[str, int], where: str) -> Raw | None:
    """The columns of one of the targets that the array holds side by side; None if it is not as wide as they are."""
    targets = held.rule.targets
    if len(targets) == 1:
        return raw
    widths = [prod(sizes[x] for x in letters_of(t) if x != "T") for t in targets]
    if not raw.ndim or raw.shape[-1] != sum(widths):
        return None
    start = sum(widths[: held.which])
    return raw[..., start : start + widths[held.which]]


def _columns(a: Assembly, phase: int, S: int) -> NDArray[np.int64] | None:
    """The columns of keys that are this prompt's, up to its pass; None if all are."""
    rows = a.rows[phase]
    if rows.batch is None:
        return rows.take if rows.sequence[1] > 1 and rows.width == S else None
    ends = np.cumsum([r.width for r in a.rows[: phase + 1]])
    kept = np.concatenate([end - r.width + r.take for end, r in zip(ends, a.rows, strict=False)])
    return kept[kept < S] if len(kept) < S else None


def _spelled(a: Assembly, held: Held) -> str:
    return ", ".join(
        " ".join(f"{x}={a.sizes[x]}" if x in a.sizes else x for x in letters_of(t)) for t in held.rule.targets
    )


def _why(a: Assembly, target: str, rows: Rows, raw: Raw) -> str:
    """The positions that there are, and the stages that the shape does fit."""
    more = raw.shape[-1] - a.sizes["V"] if "V" in a.sizes and raw.shape else 0
    if letters_of(target)[-1] == "V" and 0 < more <= 2 * a.sizes["V"]:
        return f"; a head that is padded? Leave its last {more} columns away"

    def fits(name: str) -> bool:
        letters = letters_of(name)
        known = lengths(raw.shape, letters, a.sizes, rows.width if "S" in letters else None)
        if known is None or known["T"] != rows.width:
            return False
        return any(whole_fit(raw.shape, o, {**a.sizes, **known}, None) for o in orders(letters))

    could = [n for n in NAMES if fits(n)]
    return f"; its pass has {rows.width} positions" + (f", so it could be {', '.join(could)}" if could else "")
