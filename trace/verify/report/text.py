"""A verification in words and as a table of signs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ...plural import plural
from ...stages import STAGES
from ..facts import FromTokens, NotFinite
from ..finding import BUDGET, EXACT, REPRODUCED, UNEXPLAINED, UNJUDGED, Finding, Named, Verification
from ..recipes.facts.fused import PRODUCT
from ..recipes.recipe import RECIPES, Recipe
from .places import part_words, surely, where_words
from .words import words

SIGNS = {EXACT: "=", REPRODUCED: "+", BUDGET: "~", UNEXPLAINED: "X", UNJUDGED: "?"}
WORST_FIRST = (UNEXPLAINED, UNJUDGED, BUDGET, REPRODUCED, EXACT)
ANGLES = {
    "product": "RoPE's angle as one float32 product",
    "repeated": "RoPE's angle by repeated multiplication in float32, as ggml",
    "exact": "RoPE's angle unrounded",
}


def named(f: Finding) -> str:
    """`layer 7 k_post_rope`, `decode step 2, lm_head`."""
    step = f"decode step {f.phase}, " if f.phase else ""
    return step + (f"layer {f.layer} {f.stage}" if f.layer is not None else f.stage)


def number(x: float | None) -> str:
    return "-" if x is None else "0" if x == 0 else f"{x:.1e}"


def sentence(v: Verification) -> str:
    """The whole verification in one sentence, after those that must come first."""
    return " ".join([*map(words, v.first), _verdict(v)])


def in_short(v: Verification) -> str:
    """What there is to say where there is little room: the worst stage and its likeliest cause; of a dump that is
    explained, what the engine computes with."""
    if v.first:
        return words(v.first[0])
    if bad := by_size(v.findings):
        return f"{named(bad[0])}{_guess(bad[0], told=True)}"
    return engine_words(v) if any(f.explained for f in v.findings) else _verdict(v)


def _verdict(v: Verification) -> str:
    count = Counter(f.verdict for f in v.findings)
    bad, unjudged = count[UNEXPLAINED], count[UNJUDGED]
    judged = sum(count.values()) - unjudged
    tail = f"; {plural(unjudged, 'stage')} could not be judged" if unjudged else ""
    if not judged and (alone := [(f, n) for f in v.findings for n in f.notes if isinstance(n, FromTokens)]):
        f, note = next((x for x in alone if not x[1].agrees), alone[0])
        return f"No stage can be judged by itself; {named(f)}: {words(note)}."
    if not judged:
        why = f"{named(v.findings[0])}: {reason(v.findings[0])}" if v.findings else "the dump is empty"
        return f"Nothing could be judged: {why}; dump the stages before it, too."
    if not bad:
        weak = f", {count[BUDGET]} of them only within a noise budget" if count[BUDGET] else ""
        if judged == 1:
            return f"The only stage that was judged is explained{', within a noise budget' * bool(weak)}{tail}."
        return f"All {judged} stages that were judged are explained{weak}{tail}."
    cause, found = (mistakes(v) or [("", [])])[0]
    if bad > 1 and len(found) == bad:
        return f"{bad} of {judged} stages are not explained, all by one mistake: {cause}{_files(v)}{tail}."
    first = by_size(v.findings)[0]
    many = f"{bad} of {judged} stages are not explained; the worst is" if bad > 1 else "One stage is not explained:"
    return f"{many} {named(first)}{_guess(first, bool(v.first))}{_files(v)}{tail}."


def _guess(f: Finding, told: bool) -> str:
    """The likeliest cause of an unexplained stage. told: something was said before that may be it."""
    if f.hypotheses:
        return f": {f.hypotheses[0].sentence}"
    if broken := [n for n in f.notes if isinstance(n, NotFinite)]:
        return f": {words(broken[0])}, and its inputs are not"
    if f.where is not None and f.where.rows:
        spots = ", ".join(f"row {r.row} of {r.matrix}{surely(r)}" for r in f.where.rows)
        return f": {spots} {'is' if len(f.where.rows) == 1 else 'are'} not the model's"
    part = part_words(f.where) if f.where is not None else ""
    return (
        (f": wrong in {part} alone" if part else "")
        if told
        else f", and no mistake that is known here explains it{part and f': it is wrong in {part} alone'}"
    )


def _files(v: Verification) -> str:
    """Whether the unexplained are wrong files of an engine that is right."""
    blamed = {f.blames for f in v.findings}
    bad = {f.key for f in v.findings if f.verdict == UNEXPLAINED}
    if not bad <= blamed:
        return ""
    return "; what follows was computed from right values, so the files are wrong, not the engine"


def mistakes(v: Verification) -> list[tuple[str, list[Finding]]]:
    """The named mistakes, each with the stages that it explains; the one that explains most comes first."""
    found: dict[str, list[Finding]] = {}
    for f in v.findings:
        for said in dict.fromkeys(h.sentence for h in f.hypotheses):
            found.setdefault(said, []).append(f)
    ranked = sorted(found.items(), key=lambda item: -len(item[1]))
    return [(said, fs) for said, fs in ranked if len(fs) > 1]


def places_of(findings: Sequence[Finding]) -> str:
    """`q_post_rope and k_post_rope of layers 0 to 23`."""
    stages = " and ".join(dict.fromkeys(f.stage for f in findings))
    layers = sorted({f.layer for f in findings if f.layer is not None})
    return f"{stages} of layer{'s' * (len(layers) > 1)} {runs(layers)}" if layers else stages


def runs(numbers: Sequence[int]) -> str:
    """Ascending numbers for people: `0 to 23`, `3`, `0 to 2, 5`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    stops = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a} to {b}" if a < b else f"{a}" for a, b in zip(starts, stops, strict=True))


def by_size(findings: Sequence[Finding]) -> list[Finding]:
    """The unexplained ones, largest first: by what is left over what rounding allows."""

    def size(f: Finding) -> float:
        return (f.left or 0) / max(f.predicted or 0, 1e-12)

    return sorted((f for f in findings if f.verdict == UNEXPLAINED), key=size, reverse=True)


def apart(v: Verification) -> list[Finding]:
    """The unexplained ones to tell one by one, largest first: of a mistake that runs through a stage of many layers,
    the largest stands for all."""
    first: dict[tuple[str, str, bool], Finding] = {}
    for f in by_size(v.findings):
        for h in f.hypotheses:
            first.setdefault((h.sentence, f.stage, bool(f.phase)), f)
    heard = {id(f) for f in first.values()}
    return [f for f in by_size(v.findings) if not f.hypotheses or id(f) in heard]


def engine_words(v: Verification) -> str:
    """What the engine seems to compute with, and where it does not; "" where the dump does not tell."""
    words = describe(v.recipe, v.operands)
    if v.turned:
        words += f"; {ANGLES[v.recipe.angle]}"
    others = Counter((f.recipe, f.stage) for f in v.findings if f.explained and f.recipe != v.recipe.name)
    for (recipe, stage), n in others.most_common(4):
        words += f"; but {stage} in {plural(n, 'place')}: {recipe}"
    return words


def describe(r: Recipe, operands: Sequence[str]) -> str:
    name, _, apart = r.name.partition("; ")
    if name not in (known.name for known in RECIPES) or (apart and r.result.name == "float32"):
        return r.name
    if r.result.name != "float32":
        inside = "weights and every result rounded, norm and soft-max inside in float32"
        more = "; bias inside the product" * (PRODUCT in r.fused) + "; flash attention" * (r.mix != "stored")
        return f"Hugging Face in {r.result.name}: {inside}{more}" + f"; {apart}" * bool(apart)
    kv = "16-bit KV" if r.attention.name == "float16" else "32-bit KV"
    kv += ", flash attention" * (r.mix != "stored")
    if r.quantiser == "int16":
        return f"qwenref's int16: {' and '.join(operands) or 'unrounded'} activations, the rest float32"
    if r.quantiser:
        return f"ggml: {' and '.join(operands) or 'unrounded'} activations, {kv}, the rest float32"
    return "float32 throughout" if kv == "32-bit KV" else f"float32, {kv}"


def statement(f: Finding) -> list[str]:
    """What is to be said about one finding: a line of verdict, then what is known of it."""
    lines, notes = [f"{named(f)}: {f.verdict}"], [words(n) for n in f.notes]
    if f.verdict == UNJUDGED:
        return [f"{lines[0]}: {reason(f)}", *notes]
    if f.budget is not None:
        lines[0] += f": {f.budget.source} ({number(f.observed)}, {f.budget.ratio:.2f} of what that predicts)"
    elif f.verdict == UNEXPLAINED and f.fit is not None:
        lines[0] += (
            f" ({number(f.left)}; rounding allows {number(f.predicted)}; {f.outside} of {f.fit.size} values outside)"
        )
        lines += [f"{_exactly(h)} by: {h.sentence}{_at(f, h)}" for h in f.hypotheses]
        lines += [] if f.where is None else where_words(f.where)
    else:
        by = f" by {f.recipe}" if f.recipe else ""
        lines[0] += f"{by} (left {number(f.left)}, rounding allows {number(f.predicted)})"
    return lines + notes


def reason(f: Finding) -> str:
    return "" if f.reason is None else words(f.reason)


def _exactly(h: Named) -> str:
    return "reproduced exactly" if h.left == 0 else f"reproduced to {number(h.left)}"


def _at(f: Finding, h: Named) -> str:
    return "" if h.at == f.stage else f" (in {h.at}, which the dump does not hold)"


def sections(v: Verification) -> Iterator[tuple[str, list[Finding]]]:
    """The prompt's findings, and those of all decode steps together."""
    prompt, steps = ([f for f in v.findings if bool(f.phase) == late] for late in (False, True))
    if prompt:
        yield "Prompt", prompt
    if steps:
        yield plural(len({f.phase for f in steps}), "decode step"), steps


def grid(title: str, findings: Sequence[Finding]) -> list[str]:
    """Layers x stages, one sign each: the worst verdict of that place."""
    cell = worst_of(findings)
    names = [s.name for s in STAGES if s.scope == "layer" and any((layer, s.name) in cell for layer, _ in cell)]
    layers = sorted({layer for layer, _ in cell if layer is not None})
    legend = "= bit-equal, + reproduced, ~ within budget, X unexplained, ? not judged"
    lines = [f"{title}: {legend}"] if len(title) + len(legend) <= 78 else [f"{title}:", f"  {legend}"]
    for i, name in enumerate(names):
        lines.append("      " + "| " * i + f"{name}")
    for layer in layers:
        signs = (SIGNS[cell[layer, n].verdict] if (layer, n) in cell else " " for n in names)
        lines.append(f"{layer:4d}  {' '.join(signs)}".rstrip())
    whole = [(layer, name) for layer, name in cell if layer is None or name == "embedding"]
    return lines + [f"      {name} {SIGNS[cell[layer, name].verdict]}" for layer, name in whole]


def worst_of(findings: Sequence[Finding]) -> dict[tuple[int | None, str], Finding]:
    """The finding to show for each layer and stage, of all phases given."""
    cell: dict[tuple[int | None, str], Finding] = {}
    for f in findings:
        key = (f.layer, f.stage)
        if key not in cell or _rank(f) < _rank(cell[key]):
            cell[key] = f
    return cell


def _rank(f: Finding) -> tuple[int, float]:
    return WORST_FIRST.index(f.verdict), -(f.worst or 0)
