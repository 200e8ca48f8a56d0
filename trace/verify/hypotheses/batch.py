"""Rows of a batch that are mixed up: what another prompt gives stands here, or its keys and values in the cache.

Told only where the dump has the other prompts beside this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ....errors import BadInput
from ..evidence import Evidence
from ..facts import Unjudgeable
from ..kept import Kept
from ..site import Site
from ..tokens import known_tokens
from .attention import attended, mixed, scored
from .hypothesis import Hypothesis, Several, entering

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

MOST = 32  # other prompts that are looked at


@hypothesis("batch-row", "the values are those of row {} of the batch")
def batch_row(s: Site) -> Several:
    for row, there in beside(s):
        pos, T = there.evidence.rows[s.phase], len(s.pos)
        # Of a longer prompt, what stands where this one's rows are, pads being before or behind them.
        for rows in dict.fromkeys((pos[-T:], pos[:T])):
            try:
                yield str(row), replace(there, pos=rows).compute()
            except Unjudgeable:
                continue


@hypothesis("batch-cache", "{} of the batch stand in the cache", "attn_scores", "attention")
def batch_cache(s: Site) -> Several:
    for row, there in beside(s):
        try:
            if s.stage == "attn_scores":
                yield f"the keys of row {row}", scored(s, k=there.so_far("k_post_rope"))
                continue
            v = there.so_far(s.evidence.valued)
            yield f"the values of row {row}", mixed(s, v=v)
            yield f"the keys and values of row {row}", attended(s, there.so_far("k_post_rope"), v)
        except Unjudgeable:
            continue


def beside(s: Site) -> Iterator[tuple[int, Site]]:
    """The same stage of each other prompt of the batch, with its row."""
    for row, opened in list(s.evidence.dump.beside.items())[:MOST]:
        if row not in s.evidence.batch:
            try:
                other = Evidence(opened(), s.evidence.weights, rotations=s.evidence.rotations)
            except BadInput:
                continue
            other.tokens, _ = known_tokens(other)
            s.evidence.batch[row] = other
        other = s.evidence.batch[row]
        if s.phase in other.rows:
            yield row, replace(s, evidence=other, kept=Kept(other), given={}, used={}, recomputed={})
