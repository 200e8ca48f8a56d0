"""Local verification: every stage of a dump recomputed in float64 from the dump's own inputs, and a verdict for each.

What an engine carried forward from earlier stages cancels; what is left is what one operation did. docs/verify.md tells
the story, docs/budgets.md derives the bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ...engine.weights import Layer, Weights, parts, plain
from ...errors import BadInput
from ...quant.tensor import Assembled, forget
from ..dump import Dump
from ..stages import Key, of_pieces
from .arithmetic import formats_of
from .engine import settled
from .evidence import Evidence
from .facts import (
    FilesIgnored,
    FilesMissing,
    First,
    FirstNotFinite,
    FormatWrong,
    NotFinite,
    OtherModel,
    OtherTokens,
    Remark,
)  # fmt: skip
from .finding import EXACT, REPRODUCED, UNEXPLAINED, UNJUDGED, Finding, Verification
from .formulas import PRODUCTS, ROPE, as_heads
from .judge import Judge
from .parallel import keep_pages
from .recipes.rope import fitted
from .review import entry, review
from .rivals import doubted
from .span import Span
from .tokens import known_tokens, nearest


# BLAS threads wait for one another by spinning: beside other work that took 9 times the processor time, and longer.
@threadpool_limits.wrap(limits=1, user_api="blas")
@np.errstate(all="ignore")  # overflow is an answer here: what is not finite is judged as such
def verify(
    dump: Dump, weights: Weights, *, against: Weights | None = None, done: Callable[[int], None] = lambda n: None
) -> Verification:
    """Judges every file of a dump by a model's weights (QTensors, as bind gives them).

    against: a second model that the engine may have run. done: told how many files are judged.
    Raises BadInput if the dump cannot be one of this model's shape.
    """
    check_shape(dump, weights)
    if against is not None:
        check_shape(dump, against)
    keep_pages()
    evidence = Evidence(dump, weights)
    evidence.tokens, told_of_ids = known_tokens(evidence)
    if seen := next((i for i in evidence.tokens or () if i in weights.config.pictures), None):
        raise BadInput(f"{dump.path}: token {seen} stands for a picture; give the dump of a prompt of text alone")
    remarks: list[Remark | None] = [
        told_of_ids,
        FilesMissing(tuple(dump.missing)) if dump.missing else None,
        FilesIgnored(tuple(dump.ignored)) if dump.ignored else None,
    ]
    evidence.rotations, told = fitted(evidence.rotations, list(rotations_seen(evidence)), evidence.weights.magnitude)
    judge = Judge(evidence)
    findings = []
    for n, e in enumerate(dump.entries):
        if n and e.layer != (before := dump.entries[n - 1].layer) and before is not None:
            forget_layer(weights.layers[before])
        findings.append(judge.judge(e))
        done(n + 1)
    findings, untold = doubted(judge, findings)
    remarks.append(untold)
    findings, recipe = settled(judge, findings)
    second = None if against is None else Judge(Evidence(dump, against, evidence.tokens, rotations=evidence.rotations))
    findings = review(judge, findings, recipe, second)
    blocks = [plain(p) for layer in weights.layers for p in (*layer.qkv, layer.ffn_down)]
    operands = {recipe.operand(p.format) for p in blocks} - {"F32"}
    return Verification(
        findings=tuple(findings),
        recipe=recipe,
        tokens=evidence.tokens,
        first=tuple(first_of_all(judge, findings)),
        remarks=tuple(r for r in remarks if r is not None),
        operands=tuple(sorted(operands)),
        turned=told and any(f.stage in ROPE and f.verdict in (EXACT, REPRODUCED) for f in findings),
    )


def forget_layer(layer: Layer) -> None:
    """Lets go of the pages of a layer's matrices: layers are read one after another, and in 4 bits a model of 7B has
    4.7 GB of them."""
    for part in map(plain, (*parts(layer.qkv), *parts(layer.attn_out), *parts(layer.gate_up), *parts(layer.ffn_down))):
        if not isinstance(part, Assembled):
            forget(part.data)


def check_shape(dump: Dump, weights: Weights) -> None:
    c = weights.config
    if dump.sizes is not None and dict(dump.sizes) != dict(c.sizes):
        odd = ", ".join(f"{k} {n} for {c.sizes.get(k)}" for k, n in dump.sizes.items() if c.sizes.get(k) != n)
        raise BadInput(f"{dump.path}: a dump of another model: {odd}; give the model that was run with -m")
    deepest = max((e.layer for e in dump.entries if e.layer is not None), default=0)
    if deepest >= c.num_hidden_layers:
        raise BadInput(f"{dump.path} has layer {deepest}; the model has layers 0 to {c.num_hidden_layers - 1}")
    has = of_pieces(weights.pieces)
    if none := next((e.stage.name for e in dump.entries if e.stage.name not in has), None):
        raise BadInput(f"{dump.path} holds {none}, a stage that a {c.architecture.title} model does not have")


def first_of_all(judge: Judge, findings: Sequence[Finding]) -> Iterator[First]:
    """What must be said before anything else."""
    embedding = next((f for f in findings if f.stage == "embedding" and f.verdict == UNEXPLAINED), None)
    if embedding is not None and not embedding.hypotheses:
        products = [f for f in findings if f.stage in PRODUCTS and f.verdict != UNJUDGED]
        e = judge.evidence.dump.get("embedding", 0, embedding.phase)
        assert e is not None
        ids = tuple(nearest(judge.evidence, e.values())[:12])
        yield OtherTokens(ids) if products and all(f.explained for f in products) else OtherModel()
    if judge.broken:
        yield FirstNotFinite(judge.broken[0])
    yield from format_wrong(judge, findings)


def format_wrong(judge: Judge, findings: Sequence[Finding]) -> Iterator[FormatWrong]:
    """The format whose every product is wrong, where no mistake is known and no other stage is wrong."""
    formats: dict[Key, set[str]] = {}
    for f in findings:
        if f.verdict != UNJUDGED:
            formats[f.key] = set(formats_of(judge.evidence, judge.involved(entry(judge, f))))
    bad = [f for f in findings if f.verdict == UNEXPLAINED]
    if len(bad) < 2 or any(f.hypotheses or any(isinstance(n, NotFinite) for n in f.notes) for f in bad):
        return
    wrong = {f.key for f in bad}
    for name in sorted(set.intersection(*(formats[key] for key in wrong))):
        with_it = {key for key, held in formats.items() if name in held}
        phases = {key[0] for key in wrong}
        if {key for key in with_it if key[0] in phases} == wrong and any(formats[key] - {name} for key in formats):
            everywhere = phases == {key[0] for key in with_it}
            yield FormatWrong(name, len(wrong), () if everywhere else tuple(sorted(phases)))
            return


def rotations_seen(evidence: Evidence) -> Iterator[tuple[Any, Any, Any]]:
    """(before, after, positions) of the rotations in the first layer that has them, in every phase."""
    layers = sorted({e.layer for e in evidence.dump.entries if e.stage.name in ROPE and e.layer is not None})
    for layer in layers[:1]:
        for phase in evidence.phases:
            for part, name in enumerate(ROPE):
                (given,) = evidence.stage(name).inputs
                after, before = evidence.dump.get(name, layer, phase), evidence.dump.get(given, layer, phase)
                if after is None or before is None or evidence.positions(after) != evidence.positions(before):
                    continue
                x, y = np.asarray(before.values(), np.float64), np.asarray(after.values(), np.float64)
                if np.isfinite(x).all() and np.isfinite(y).all():
                    pos_T = np.array(evidence.positions(after), np.int32)
                    yield as_heads(evidence.config, Span.point(x), part).mid, y, pos_T
