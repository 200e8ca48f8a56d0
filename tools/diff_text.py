"""What `engine diff` prints, in 80 columns; `--csv` and `--json` have every figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite

from ..trace.compare import place
from ..trace.diff import Diff, Row
from ..trace.store import phase_name
from .columns import hanging, middle

LABEL = 28  # layer-23/post_attn_residual
AT = "p position, h head, Q K V a head of Q, K or V, k key, t token, i index"
BRIEF = {
    "position": "p", "kv head": "h", "head": "h", "Q head": "Q", "K head": "K", "V head": "V", "key": "k",
    "token": "t", "index": "i",
}  # fmt: skip


def brief(said: str) -> str:
    """`place` in letters: "p0 Q1 i31"."""
    parts = (part.rpartition(" ") for part in said.split(", "))
    return " ".join(f"{BRIEF[word]}{number}" for word, _, number in parts)


def lines_of(a: str, b: str, found: Diff) -> Iterator[str]:
    """a, b: what was compared. Names are as they are: whoever prints them makes them safe."""
    first, pairs = found.first_beyond, found.pairs
    wide = min(LABEL, max(len(label_of(r)) for r in found.stages))
    yield from hanging("A ", a)
    yield from hanging("B ", b)
    yield from ("relative = RMS(A - B) / RMS(A)", f"at: {AT}", "")
    yield f"{'stage':<{wide}} {'cosine':>12} {'relative':>9} {'max|A-B|':>9}  at"
    phase = 0
    for r in found.stages:
        if r.a.phase != phase:
            phase = r.a.phase
            yield f"{phase_name(phase)}:"
        yield from stage_lines(r, wide, pairs.sizes)
        if r is first:
            yield "    <-- first beyond the tolerance"
    shown = first or (found.stages[0] if len(found.stages) == 1 else None)
    if shown and shown.figures.top:
        yield ""
        yield from hanging("largest differences of ", f"{shown.a.label}:")
        yield f"  {'':<34}{'A':>16}{'B':>16}{'|A-B|':>12}"
        for d in shown.figures.top:
            at = place(shown.a, d.index, pairs.sizes)
            yield f"  {at:<34}{d.a:>16.9g}{d.b:>16.9g}{d.size:>12.4e}"
    yield ""
    for name, labels in (("only in A", pairs.only_a), ("only in B", pairs.only_b), ("no stage", pairs.ignored)):
        if labels:
            few = f"{', '.join(labels[:4])}{', ...' if len(labels) > 4 else ''}"
            yield f"not compared, {name}: {len(labels)} ({few})"
    if pairs.apart:
        yield f"not compared, fed another token: {len(pairs.apart)}, from {pairs.apart[0]} on"
    yield found.sentence


def label_of(r: Row) -> str:
    """Without the phase, which stands above."""
    return r.a.label.removeprefix(f"{phase_name(r.a.phase)}/")


def stage_lines(r: Row, wide: int, sizes: Mapping[str, int] | None) -> Iterator[str]:
    """A stage's figures, and below them what is odd."""
    f = r.figures
    cosine = "-" if f.cosine is None else f"{f.cosine:.10f}"
    relative = f"{f.relative:.3e}" if isfinite(f.relative) else "-"
    at = "equal" if f.equal else brief(place(r.a, f.top[0].index, sizes)) if f.top else "-"
    yield f"{middle(label_of(r), wide):<{wide}} {cosine:>12} {relative:>9} {f.max_abs:>9.3e}  {at}"
    if f.first_mismatch is not None:
        where = place(r.a, f.first_mismatch, sizes)
        yield from hanging("    ", f"{f.mismatched} elements are NaN or Inf on one side only, the first at {where}")
    if f.nan_both:
        yield f"    {f.nan_both} elements are NaN on both sides (counted as equal)"
    if r.choice:
        c = r.choice
        kl = "-" if c.kl is None else f"{c.kl:.3e}"
        said = f"arg max A {c.argmax_a}, B {c.argmax_b}; top-5 overlap {c.top5_overlap} of 5; KL(A || B) {kl} nats"
        yield from hanging("    ", said)
