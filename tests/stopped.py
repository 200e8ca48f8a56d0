"""The public cases (cases.py) that a judge of single .npy files could not be handed, with the way in which each one's
engine leaves its tensors (handovers.py), and what is said of it when it arrives so.

An engine's arithmetic and its mistake are cases.py's; here is only how they arrive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from qwenref.trace.stages import STAGES
from qwenref.trace.verify.finding import UNEXPLAINED
from qwenref.trace.verify.report.text import engine_words, sentence
from qwenref.trace.verify.verify import verify

from .cases import CASES, DESCRIBED, LOCATED, MISSED, NAMED, OUTSIDE, Case, how_well
from .handovers import WAYS, arrived

STOPPED: Mapping[int, str] = MappingProxyType(
    {1: "candle, quantized", 2: "own", 3: "transformers, batch", 6: "vllm, torch", 7: "vllm, torch"}
    | dict.fromkeys((11, 12, 13, 14, 15, 16, 32), "llama.cpp")
    | {19: "mlx-lm", 21: "candle", 23: "own", 24: "mlx-lm", 25: "transformers", 26: "sglang", 27: "vllm", 28: "mlx-lm"}
    | {29: "tensorrt-llm", 30: "vllm", 33: "vllm", 34: "tensorrt-llm", 35: "sglang", 36: "tensorrt-llm"}
    | {37: "tensorrt-llm", 40: "vllm", 41: "tensorrt-llm", 42: "vllm", 43: "own", 45: "vllm", 46: "own", 47: "own"}
    | {48: "nano-vllm", 49: "nano-vllm", 50: "own, torch", 51: "transformers", 52: "onnx", 53: "transformers"}
    | {54: "sglang, ranks", 55: "transformers", 60: "vllm", 61: "vllm", 62: "map", 63: "transformers"}
)


def shown_by(stages: tuple[str, ...], held: set[str]) -> set[str]:
    """The stages of a dump in which these are seen: themselves, or what is made of those that it lacks."""
    found = set()
    for s in stages:
        if s in held:
            found.add(s)
        else:
            found |= shown_by(tuple(x.name for x in STAGES if s in x.inputs), held)
    return found


def verdict(c: Case, folder: Path) -> tuple[str, str]:
    """How well verify serves a case that is handed over as its engine would (cases.py): what is said of it, or why it
    is not reached. Missed: it is not judged where its mistake is, or elsewhere too."""
    if c.make is None:
        return OUTSIDE, c.reason
    dump, w = c.make()
    read = arrived(WAYS[STOPPED[c.number]], folder, dump, w)
    v = verify(read, w)
    said = sentence(v)
    wrong = {f.stage for f in v.findings if f.verdict == UNEXPLAINED}
    if not c.stages:
        said = f"{said} {engine_words(v)}"
        return MISSED if v.status else how_well(c, said), said
    shown = shown_by(c.stages, {e.stage.name for e in read.entries})
    return how_well(c, said) if wrong and wrong <= shown else MISSED, said


def numbered(number: int) -> Case:
    return next(c for c in CASES if c.number == number)


def table() -> list[str]:
    """The part of docs/cases.md on these."""
    rows, count = [], Counter[str]()
    for number, name in sorted(STOPPED.items()):
        c = numbered(number)
        with TemporaryDirectory() as folder:
            how, said = verdict(c, Path(folder))
        count[how] += 1
        rows.append(f"| {number} | {c.thread} | {WAYS[name].leaves} | {how} | {said.replace('|', '/')} |")
    return [
        "## Handed over as their engines leave them", "",
        f"{len(STOPPED)} of these could not be handed over, when single `.npy` files were all that was read. Each is",
        "now written as its engine writes (tests/handovers.py), read, and judged; what an engine fuses is not in its",
        "dump, and a mistake in it shows in the next stage that is, and nowhere else. "
        + ", ".join(f"{how.capitalize()} {count[how]}" for how in (NAMED, DESCRIBED, LOCATED, MISSED, OUTSIDE)) + ".",
        "That each way brings every value as it was, bit for bit, is tested: `tests/trace/sources/test_engines.py`,",
        "`test_each_layout_is_the_plain_dump`, a parameter for each.",
        "", "| # | case | what the engine leaves | | what verify says first |", "|---|---|---|---|---|", *rows,
    ]  # fmt: skip
