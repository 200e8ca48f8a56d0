"""The paragraph at the top of a report: what a colleague would say of the dump, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator

from ...plural import plural
from ...stages import layer_name
from ..facts import FirstNotFinite, FromTokens, IdsUnknown, NotFinite, OtherModel, OtherTokens, Recomputed
from ..finding import BUDGET, UNEXPLAINED, UNJUDGED, Finding, Verification
from .text import by_size, engine_words, mistakes, named, runs, sentence

UNTOLD = "What the engine computes with cannot be told from this dump"


def paragraph(v: Verification) -> list[str]:
    """Its sentences: the verdict; what was judged; how the engine computes; what is wrong first, and what only follows
    from it; the next step."""
    said = [sentence(v), *_judged(v)]
    if any(f.explained for f in v.findings):
        words = engine_words(v)
        said.append(f"The engine computes with: {words}." if words else f"{UNTOLD}{_why_untold(v)}.")
    return [*said, *_first(v), *_follows(v), f"Next: {next_step(v)}."]


def _judged(v: Verification) -> Iterator[str]:
    judged = [f for f in v.findings if f.verdict != UNJUDGED]
    if not judged:
        return
    steps, layers = len({f.phase for f in judged} - {0}), sorted({f.layer for f in judged if f.layer is not None})
    parts = ["the prompt"] * any(not f.phase for f in judged) + [plural(steps, "decode step")] * bool(steps)
    where = f", layer{'s' * (len(layers) > 1)} {runs(layers)}" if layers else ""
    yield f"Judged: {' and '.join(parts)}{where}, each stage from the dump's own inputs."


def wrong(v: Verification) -> list[Finding]:
    """The unexplained in order of execution."""
    return [f for f in v.findings if f.verdict == UNEXPLAINED]


def _why_untold(v: Verification) -> str:
    """Where stages are right, but each through others that the dump lacks."""
    made = [n for f in v.findings if f.explained for n in f.notes if isinstance(n, Recomputed)]
    if not made:
        return ""
    most = max(len(n.missing) for n in made)
    return f": up to {most} stages are missing on the way to one, and their roundings leave room for several engines"


def _first(v: Verification) -> Iterator[str]:
    """The first wrong stage, unless the verdict has just named it."""
    bad = wrong(v)
    if len(bad) < 2:
        return
    one = mistakes(v) and len(mistakes(v)[0][1]) == len(bad)
    if one or bad[0] is not by_size(bad)[0]:
        cause = f": {bad[0].hypotheses[0].sentence}" if bad[0].hypotheses and not one else ""
        yield f"The first in order of execution is {named(bad[0])}{cause}."


def _follows(v: Verification) -> Iterator[str]:
    """What is only a consequence of the wrong ones, and what is not."""
    bad = wrong(v)
    lost = [f for f in v.findings if f.verdict == UNJUDGED and isinstance(f.reason, NotFinite) and f.reason.inputs]
    if lost:
        yield f"{plural(len(lost), 'stage')} got NaN or infinite inputs and cannot be judged: a consequence."
    if not bad or {f.key for f in bad} <= {f.blames for f in v.findings}:
        return
    at = v.findings.index(bad[0])
    after = sum(f.explained for f in v.findings[at + 1 :])
    if after:
        verb = "is right given its inputs" if after == 1 else "are right given their inputs"
        yield f"After it {plural(after, 'stage')} {verb}: what differs there is only the consequence."
    causes = {f.hypotheses[0].sentence if f.hypotheses else f.key for f in bad}
    if len(causes) > 1:
        yield "The other unexplained stages are wrong by themselves: an error that is handed on does not count here."


def next_step(v: Verification) -> str:
    """The one thing to do now."""
    if any(isinstance(x, OtherModel) for x in v.first):
        return "judge by the model and the tokens that were run (-m, --tokens)"
    if any(isinstance(x, OtherTokens) for x in v.first):
        return "give the ids that were run (--tokens), or find out why the engine ran others"
    bad = wrong(v)
    if not bad:
        return _when_right(v)
    f = bad[0]
    if {x.key for x in bad} <= {x.blames for x in v.findings}:
        return f"look at what writes {named(f)}, not at what computes it"
    if broken := [x for x in v.first if isinstance(x, FirstNotFinite)]:
        _, layer, stage = broken[0].key
        return f"print the largest value that {stage} of {layer_name(layer)} is made of, and the format it is kept in"
    if f.hypotheses:
        return f"correct that in {named(f)}, and dump again"
    if f.where is not None and f.where.rows:
        r = f.where.rows[0]
        return f"compare row {r.row} of {r.matrix} as the engine decodes it with the file's (engine diff --weights)"
    return f"recompute {named(f)} alone from the inputs in the dump: they are right, so that one operation is to blame"


def _when_right(v: Verification) -> str:
    chosen = [n for f in v.findings for n in f.notes if isinstance(n, FromTokens)]
    if not any(f.explained for f in v.findings):
        if any(isinstance(r, IdsUnknown) for r in v.remarks) and any(f.stage == "lm_head" for f in v.findings):
            return (
                "give the ids that were run (--tokens): float64's logits are held against them then; or dump the stages"
            )
        return "dump the stages too: they tell where" if chosen else "dump a stage together with its inputs"
    if missing := next((f for f in v.findings if f.verdict == UNJUDGED), None):
        return f"dump what {named(missing)} lacks ({plural(_unjudged(v), 'stage')} could not be judged)"
    if weak := next((f for f in v.findings if f.verdict == BUDGET), None):
        return f"where a small mistake would matter, dump what {named(weak)} is computed from: noise may hide one there"
    if not engine_words(v) and _why_untold(v):
        return "dump more stages of a layer, attention and attn_out first: nothing is wrong, but they tell the engine"
    if not engine_words(v):
        return "dump a stage that computes, together with its inputs: what is copied tells nothing of the engine"
    if not any(f.phase for f in v.findings):
        return "nothing is wrong here; a dump of decode steps would test the cache, too"
    return "nothing is left to do in what was dumped"


def _unjudged(v: Verification) -> int:
    return sum(f.verdict == UNJUDGED for f in v.findings)
