"""Where a mistake may be that shows in a stage: in the stage itself, or in one on the way to it that the dump lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial

import numpy as np

from ..arithmetic import involved
from ..formulas import ROPE
from ..site import Site
from ..span import Array, Span
from .hypothesis import Hypothesis

Name = tuple[str, int]  # of a variant: its detail, and how many of the same detail come before it
Variants = Iterator[tuple[Name, Span]]
Way = Callable[[Hypothesis, Site, Collection[Name] | None], Variants]  # the variants wanted, None for all; of the stage

Q, K = ROPE
GATE, UP = "ffn_gate", "ffn_up"


def ways(site: Site) -> Iterator[tuple[str, Way]]:
    """The stages in which the mistake may be, and what it then makes of this one. Queries and keys are turned by one
    table, so that a mistake in it is in both."""
    yield site.stage, in_itself
    here = (site.phase, site.layer, site.stage)
    lacking = [stage.name for layer, stage in involved(site.evidence, here) if layer == site.layer][1:]
    if {Q, K} <= set(lacking):
        yield Q, turned
    if {GATE, UP} <= set(lacking):
        yield GATE, of_both
    for at in reversed(lacking):
        yield at, of_keys if at == K else partial(made_up, at)


def in_itself(h: Hypothesis, site: Site, wanted: Collection[Name] | None) -> Variants:
    yield from _numbered(h, site, wanted)


def made_up(at: str, h: Hypothesis, site: Site, wanted: Collection[Name] | None) -> Variants:
    """The stage, if another of the same positions is made by the mistake."""
    for name, span in _numbered(h, site.at(at), wanted):
        yield name, site.having(**{at: span}).compute()


def of_both(h: Hypothesis, site: Site, wanted: Collection[Name] | None) -> Variants:
    """The stage, if gate and up, which weights of one format make of one input, are both made by the mistake."""
    other = dict(_numbered(h, site.at(UP), wanted)) if UP in h.stages else {}
    for name, gate in _numbered(h, site.at(GATE), wanted) if other else ():
        if name in other:
            yield name, site.having(**{GATE: gate, UP: other[name]}).compute()


def of_keys(h: Hypothesis, site: Site, wanted: Collection[Name] | None) -> Variants:
    """The stage, if all keys of its phase are made by the mistake."""
    right, own = site.so_far(K), _keys(site, site.phase)
    for name, span in _numbered(h, own, wanted):
        yield name, site.having(**{f"all {K}": _placed(right, own, span)}).compute()


def turned(h: Hypothesis, site: Site, wanted: Collection[Name] | None) -> Variants:
    """The stage, if queries and keys are both turned by the mistake: in this phase, in all so far, or in all steps."""
    right, own = site.so_far(K), _keys(site, site.phase)
    before = [_keys(site, phase) for phase in site.evidence.phases if phase < site.phase]
    earlier = [dict(_numbered(h, at, wanted)) for at in before]
    keys = dict(_numbered(h, own, wanted))
    for name, q in _numbered(h, site.at(Q), wanted):
        for first in (len(before), *range(min(2, len(before)))):  # the phase that it begins with
            if name in keys and all(name in each for each in earlier[first:]):
                k = _placed(right, own, keys[name])
                for at, each in zip(before[first:], earlier[first:], strict=True):
                    k = _placed(k, at, each[name])
                yield name, site.having(**{Q: q, f"all {K}": k}).compute()


def _keys(site: Site, phase: int) -> Site:
    """The site of all of a phase's keys."""
    return site.at(K, pos=site.evidence.rows[phase], phase=phase)


def _placed(keys: Span, at: Site, rows: Span) -> Span:
    """Keys so far [S, K, H], with other rows at a site's positions."""
    pos = [p for p in at.pos if p < len(keys.mid)]

    def with_rows(a: Array, b: Array) -> Array:
        a = np.array(a)
        a[pos] = b[: len(pos)]
        return a

    if rows.mid.shape[1:] != keys.mid.shape[1:]:
        return keys
    if keys.exact and rows.exact:
        return Span.point(with_rows(keys.mid, rows.mid))
    return Span(with_rows(keys.mid, rows.mid), with_rows(keys.lo, rows.lo), with_rows(keys.hi, rows.hi))


def _numbered(h: Hypothesis, site: Site, wanted: Collection[Name] | None) -> Variants:
    met = Counter[str]()
    for detail, span in h.variants(site):
        name = detail, met[detail]
        met[detail] += 1
        if wanted is None or name in wanted:
            yield name, span
