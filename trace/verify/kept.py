"""What a dump lacks, recomputed once: most stages of a partial dump ask for the same values, under the same facts.

A value is the same wherever the facts that its formula reads are the same. Which facts those may be is told by the
kinds of the stages above it, whatever the dump holds of them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

from ..stages import BEFORE
from .evidence import Evidence
from .recipes.facts.table import FACTS
from .site import Site
from .span import BFLOAT16, FLOAT16, FLOAT32, Span

ROOM = 256 << 20  # bytes of spans, beyond which the one that was asked for longest ago goes
FIELDS = tuple(f.field for f in FACTS if f.field != "fused")  # what is fused is told as a whole


@dataclass
class Kept:
    """Values by what decides them, with what was read and made up on the way to each (Site.used, Site.recomputed)."""

    evidence: Evidence
    held: OrderedDict[Any, tuple[Site, Span]] = field(default_factory=OrderedDict)
    size: int = 0
    read: dict[str, tuple[tuple[str, ...], bool]] = field(default_factory=dict)

    def value(self, site: Site) -> Span:
        """What the site computes. Raises Unjudgeable."""
        key = self.key(site)
        if key not in self.held:
            made = replace(site, used={}, recomputed={})
            self.held[key] = made, made.compute()
            self.size += bytes_of(self.held[key][1])
            while self.size > ROOM and len(self.held) > 1:
                self.size -= bytes_of(self.held.popitem(last=False)[1][1])
        self.held.move_to_end(key)
        made, span = self.held[key]
        site.used.update(made.used)
        site.recomputed.update(made.recomputed)
        return span

    def key(self, site: Site) -> Any:
        how, fields = site.how, self.fields(site)
        given = tuple((name, id(span)) for name, span in site.given.items())  # which the entry's site keeps alive
        facts = tuple(getattr(how, f) for f in fields)
        where = site.phase, site.layer, site.stage, site.pos, site.stage == site.judged, site.missing_layers
        own = site.recipe.result.name, site.recipe.scale  # of scores that are not stored no fact tells them
        return where, how.result.name, own, how.fused, facts, given, frozenset(self.evidence.distrusted)

    def fields(self, site: Site) -> tuple[str, ...]:
        """The facts that may bear on the value: all of them where the layer's own input is lacking too, of a layer."""
        own, entered = self.above(site.stage)
        if not entered or self.enters(site):
            return own
        return tuple(dict.fromkeys((*own, *self.above("embedding")[0]))) if site.layer == 0 else FIELDS

    def above(self, name: str) -> tuple[tuple[str, ...], bool]:
        """The facts that bear on a stage or on those of its layer that it is computed from, and whether these end in
        the layer's input."""
        if name in self.read:
            return self.read[name]
        seen: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in seen:
                seen[name] = None
                for given in self.evidence.stage(name).inputs if name != BEFORE else ():
                    visit(given)

        visit(name)
        stages = [self.evidence.stage(n) for n in seen if n != BEFORE]
        formats = (FLOAT32, FLOAT16, BFLOAT16)
        shows = [f.field for f in FACTS if any(f.values(s, result) for s in stages for result in formats)]
        self.read[name] = tuple(f for f in shows if f in FIELDS), BEFORE in seen
        return self.read[name]

    def enters(self, site: Site) -> bool:
        """Whether the dump has the residual that enters this layer, of this phase and all before it."""
        if "post_ffn_residual" in site.how.fused:
            return False
        at, phases = self.evidence.entering(site.layer), (p for p in self.evidence.phases if p <= site.phase)
        return all(self.evidence.stored((phase, *at)) is not None for phase in phases)


def bytes_of(span: Span) -> int:
    return span.mid.nbytes if span.exact else 3 * span.mid.nbytes
