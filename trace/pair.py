"""Which files of two dumps may be compared, and why not: a number between different things is worse than none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import BadInput
from .dump import Dump, Entry
from .plan import spell_ranges
from .sources import AS_IT_IS, Asked, open_dump, reader_of
from .sources.aprt_folder import open_stage
from .stages import Stage


@dataclass(frozen=True, slots=True)
class Pairs:
    """both: entries of one stage, layer and phase, in order of execution. only_a, only_b: labels of the rest.

    apart: labels of decode steps that were fed another token in each dump, and so are no longer comparable.
    ignored: paths of .bin files, and arrays of other tools, that are no stage's. notes: how such a tool's were read.
    tokens: the prompt's ids, if one of them says so.
    """

    both: tuple[tuple[Entry, Entry], ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    apart: tuple[str, ...]
    sizes: Mapping[str, int] | None
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tokens: tuple[int, ...] | None = None


def pair_files(a: Path, b: Path) -> Pairs:
    """Two stage files. Raises BadInput if they are of different layers, stages or sizes."""
    (x, sizes_a), (y, sizes_b) = open_stage(a), open_stage(b)
    if x.layer != y.layer:
        spelled = ["the whole model" if e.layer is None else f"layer {e.layer}" for e in (x, y)]
        raise BadInput(f"not comparable: {a} is of {spelled[0]}, {b} of {spelled[1]}")
    if x.stage.shape and y.stage.shape and x.stage.name != y.stage.name:
        raise BadInput(f"not comparable: {a} holds {x.stage.name}, {b} holds {y.stage.name}")
    return Pairs((check(x, y),), (), (), (), sizes_a or sizes_b)


@dataclass(frozen=True, slots=True)
class Known:
    """What opens sources of other tools: the model's sizes, layers and stages, and what the user says of both
    sources."""

    sizes: Mapping[str, int] | None = None
    layers: int | None = None
    stages: Mapping[str, Stage] | None = None
    asked: Asked = AS_IT_IS


def pair_dumps(x: Dump | Path, y: Dump | Path, known: Known = Known()) -> Pairs:
    """Two dumps, opened or by their paths, with or without manifests; one's sizes serve the other.

    Raises BadInput if they do not compare.
    """
    a, b = _opened(x, y, known)
    path_a, path_b = a.path, b.path
    if a.sizes is None and b.sizes is not None:
        a = open_dump(path_a, b.sizes)
    if b.sizes is None and a.sizes is not None:
        b = open_dump(path_b, a.sizes)
    if a.sizes and b.sizes and a.sizes != b.sizes:
        k = next(k for k in sorted({*a.sizes, *b.sizes}) if a.sizes.get(k) != b.sizes.get(k))
        of = f"{k} is {a.sizes.get(k)} against {b.sizes.get(k)}"
        raise BadInput(f"not comparable: {path_a} and {path_b} are of models of other sizes ({of})")
    for d in (a, b):
        d.check_digests()
    tokens = [d.run.get("tokens") for d in (a, b)]
    if None not in tokens and tokens[0] != tokens[1]:
        raise BadInput(f"not comparable: {path_a} traces tokens {tokens[0]}, {path_b} {tokens[1]}")
    agreed = _agreed_steps(a, b)
    keys_a, keys_b = ({e.key: e for e in d.entries} for d in (a, b))
    common = [(e, keys_b[k]) for k, e in keys_a.items() if k in keys_b]
    if not common:
        raise BadInput(f"nothing to compare: {path_a} and {path_b} have no stage of a layer in common")
    both = tuple(check(x, y) for x, y in common if x.phase <= agreed)
    if not both:
        raise BadInput(f"nothing to compare: {path_a} and {path_b} fed other tokens to every step that they have")
    return Pairs(
        both=both,
        only_a=tuple(e.label for k, e in keys_a.items() if k not in keys_b),
        only_b=tuple(e.label for k, e in keys_b.items() if k not in keys_a),
        apart=tuple(x.label for x, _ in common if x.phase > agreed),
        sizes=a.sizes,
        ignored=tuple(str(d.path / f) for d in (a, b) for f in d.ignored),
        notes=(*a.notes, *b.notes),
        tokens=next((tuple(t) for t in tokens if t is not None), None),
    )


def _opened(x: Dump | Path, y: Dump | Path, known: Known) -> tuple[Dump, Dump]:
    """Both, the one that says its sizes itself first."""
    found: dict[int, Dump] = {}
    sizes = known.sizes
    for i, d in sorted(enumerate((x, y)), key=lambda p: not isinstance(p[1], Dump) and reader_of(p[1]) is not None):
        if isinstance(d, Dump):
            found[i] = d
        elif reader_of(d) is None:
            found[i] = open_dump(d, sizes)
        else:
            found[i] = open_dump(d, sizes, layers=known.layers, stages=known.stages, asked=known.asked)
        sizes = sizes or found[i].sizes
    return found[0], found[1]


def _agreed_steps(a: Dump, b: Dump) -> int:
    """The last decode step that both dumps fed the same tokens up to; a dump that does not say is taken to agree."""
    fed = [d.run.get("generated") for d in (a, b)]
    if not all(isinstance(x, list) for x in fed):
        return 1 << 30
    return next((i for i, (x, y) in enumerate(zip(*fed, strict=False)) if x != y), 1 << 30)


def check(a: Entry, b: Entry) -> tuple[Entry, Entry]:
    """The pair, with the shape that one knows lent to the other. Raises BadInput if the two are not the same thing."""
    where = f"not comparable: {a.path} and {b.path}"
    if a.positions is not None and b.positions is not None and a.positions != b.positions:
        of = [spell_ranges(e.positions or ()) for e in (a, b)]
        raise BadInput(f"{where}: positions {of[0]} against {of[1]}")
    if a.capture is not None and b.capture is not None:
        for fact in sorted({*a.capture, *b.capture} - {"above_diagonal"}):
            said = [e.capture.get(fact) if e.capture else None for e in (a, b)]
            if None not in said and said[0] != said[1]:
                raise BadInput(f"{where}: captured at different points: {fact} {said[0]} against {fact} {said[1]}")
    counts = [e.values().size for e in (a, b)]
    if not any(counts):
        raise BadInput(f"nothing to compare: {a.path} and {b.path} hold no values")
    if counts[0] != counts[1]:
        shapes = [" x ".join(map(str, e.shape)) for e in (a, b)]
        hint = _positions_hint(a, b)
        raise BadInput(f"{where}: {counts[0]} values ({shapes[0]}) against {counts[1]} ({shapes[1]}){hint}")
    if len(a.shape) < len(b.shape):
        a = replace(a, shape=b.shape, positions=b.positions)
    elif len(b.shape) < len(a.shape):
        b = replace(b, shape=a.shape)
    if a.shape != b.shape:
        raise BadInput(f"{where}: shape {a.shape} against {b.shape}")
    return a, b


def _positions_hint(a: Entry, b: Entry) -> str:
    """Says so if one side looks like the last position of the other's, the commonest mistake of all."""
    small, large = sorted((a.values().size, b.values().size))
    if a.stage.positions == "all" and "S" not in a.stage.letters and small and large % small == 0:
        return f"; one holds {large // small} times the other's positions: all of them against the last?"
    return ""
