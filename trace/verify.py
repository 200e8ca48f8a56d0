"""Local verification: every stage of a dump recomputed in float64 from the dump's own inputs, and a verdict for each.

What an engine carried forward from earlier stages cancels; what is left is what one operation did. docs/verify.md tells
the story, docs/budgets.md derives the bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..engine.weights import Weights
from ..quant.errors import BadInput
from .dump import Dump
from .recipes_floats import Span
from .recipes_rope import fitted
from .verify_bench import PRODUCTS, ROPE, Bench, place
from .verify_finding import EXACT, REPRODUCED, UNEXPLAINED, UNJUDGED, Finding, Verification
from .verify_formulas import heads_of
from .verify_judge import Judge
from .verify_review import review
from .verify_tokens import known_tokens, nearest


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
    bench = Bench(dump, weights)
    bench.tokens, remarks = known_tokens(bench)
    for files, what in (
        (dump.missing, "the manifest lists, and the dump lacks"),
        (dump.ignored, "left out, as their names are no stage's"),
    ):
        if files:
            remarks.append(f"{what}: {', '.join(files[:3])}{f' and {len(files) - 3} more' if len(files) > 3 else ''}")
    bench.rotations, told = fitted(bench.rotations, list(rotations_seen(bench)))
    judge = Judge(bench)
    findings = []
    for n, e in enumerate(dump.entries):
        findings.append(judge.judge(e))
        done(n + 1)
    judge.name_recipes(findings)
    second = None if against is None else Judge(Bench(dump, against, bench.tokens, rotations=bench.rotations))
    review(judge, findings, second)
    recipe = judge.recipe
    operands = sorted(
        {recipe.operand(p.format) for layer in weights.layers for p in (*layer.qkv, layer.ffn_down)} - {"F32"}
    )
    turned = told and any(f.stage in ROPE and f.verdict in (EXACT, REPRODUCED) for f in findings)
    return Verification(findings, recipe, bench.tokens, first_of_all(bench, findings), remarks, operands, turned)


def check_shape(dump: Dump, weights: Weights) -> None:
    c = weights.config
    if dump.sizes is not None and dict(dump.sizes) != dict(c.sizes):
        odd = ", ".join(f"{k} {n} for {c.sizes.get(k)}" for k, n in dump.sizes.items() if c.sizes.get(k) != n)
        raise BadInput(f"{dump.path}: a dump of another model: {odd}; give the model that was run with -m")
    deepest = max((e.layer for e in dump.entries if e.layer is not None), default=0)
    if deepest >= c.num_hidden_layers:
        raise BadInput(f"{dump.path} has layer {deepest}; the model has layers 0 to {c.num_hidden_layers - 1}")


def first_of_all(bench: Bench, findings: Sequence[Finding]) -> list[str]:
    """Sentences that must be said before any other."""
    said = []
    embedding = next((f for f in findings if f.stage == "embedding" and f.verdict == UNEXPLAINED), None)
    if embedding is not None and not embedding.hypotheses:
        products = [f for f in findings if f.stage in PRODUCTS and f.verdict != UNJUDGED]
        e = bench.dump.get("embedding", 0, embedding.phase)
        assert e is not None
        if products and all(f.explained for f in products):
            tokens = " ".join(map(str, nearest(bench, e.values())[:12]))
            said.append(f"The embedding already differs, the products do not: other tokens were run ({tokens}).")
        else:
            said.append("The embedding already differs: this dump is of another model, or of other tokens.")
    broken = next((f for f in findings if any("NaN" in n for n in f.notes) or "NaN" in f.reason), None)
    if broken is not None:
        step = f" of decode step {broken.phase}" if broken.phase else ""
        said.append(f"Values that are NaN or infinite first appear in {broken.stage} of {place(broken.layer)}{step}.")
    return said


def rotations_seen(bench: Bench) -> Iterator[tuple[Any, Any, Any]]:
    """(before, after, positions) of the rotations in the first layer that has them, in every phase."""
    layers = sorted({e.layer for e in bench.dump.entries if e.stage.name in ROPE and e.layer is not None})
    for layer in layers[:1]:
        for phase in bench.phases:
            for part, name in enumerate(ROPE):
                after, before = bench.dump.get(name, layer, phase), bench.dump.get("qkv_bias", layer, phase)
                if after is None or before is None or bench.positions(after) != bench.positions(before):
                    continue
                x, y = np.asarray(before.values(), np.float64), np.asarray(after.values(), np.float64)
                if np.isfinite(x).all() and np.isfinite(y).all():
                    pos_T = np.array(bench.positions(after), np.int32)
                    yield heads_of(bench.config, Span.point(x), part).mid, y, pos_T
