"""engine bench --prompts: what drafts save on prompts that mean something, against the same answers without them."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ..engine.drafts import LIMIT, MOST, Drafts
from ..engine.files.strict_json import parse
from ..engine.generate import check_prompt, generate
from ..engine.load import Loaded, Opened, blaming, check_threads, load, spelling_of, threads
from ..engine.text.chat import Chat, prompt_ids
from ..errors import BadInput
from ..trace.plural import plural
from .columns import middle
from .load import open_tokenizer, show_compiling
from .progress import progress
from .prompt import text_of_file
from .terminal import one_line


@dataclass
class Answers:
    """One prompt's, with drafts and without. seconds: behind the first token, of each round; by whether drafted."""

    text: str
    ids: list[int]
    made: list[int] = field(default_factory=list)
    passes: int = 0
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})

    def speeds(self, drafted: bool) -> list[float]:
        return [(len(self.made) - 1) / s for s in self.seconds[drafted]]

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "prompt": self.text,
            "prompt_tokens": len(self.ids),
            "generated_tokens": len(self.made),
            "rounds": len(self.seconds[True]),
        }
        if len(self.made) > 1:  # else the first token was the last, and nothing was to be drafted
            row["tokens_per_pass"] = round((len(self.made) - 1) / self.passes, 2)
            for drafted, key in ((False, "plain_tokens_per_s"), (True, "drafted_tokens_per_s")):
                speeds = self.speeds(drafted)
                row[key] = round(median(speeds), 2)
                row[f"{key}_spread"] = [round(min(speeds), 2), round(max(speeds), 2)]
            pairs = zip(self.seconds[False], self.seconds[True], strict=True)
            row["ratio"] = round(median(plain / drafted for plain, drafted in pairs), 3)
        return row


def read_prompts(name: str) -> list[str]:
    """A JSON list of texts where the file is one (it begins with a bracket), else a prompt a line. Raises BadInput."""
    text = text_of_file(name)
    if text.lstrip().startswith("["):
        found = parse(text.encode(), f"--prompts {name}")
        if bad := [x for x in found if not isinstance(x, str) or not x]:
            raise BadInput(f"--prompts {name}: {bad[0]!r:.60} is no prompt; give a JSON list of texts, or one a line")
    else:
        found = [line for line in text.splitlines() if line.strip()]
    if not found:
        raise BadInput(f"--prompts {name}: no prompt is in it; give a JSON list of texts, or one a line")
    return list(found)


def measure(
    args: argparse.Namespace, path: Path, opened: Opened, counts: list[int], warm_up: int
) -> list[dict[str, Any]]:
    """A row for each number of threads, precision and prompt. warm_up: tokens that nobody counts."""
    most = MOST if args.draft is None else args.draft
    if not 1 <= most <= LIMIT:
        raise BadInput(f"--draft {most}: drafts are measured against none; give 1 to {LIMIT} tokens")
    for count in counts:
        check_threads(count)
    texts = read_prompts(args.prompts)
    tokenizer, template = open_tokenizer(opened.checkpoint)
    ids = [prompt_ids(tokenizer, template, Chat([{"role": "user", "content": t}]) if args.chat else t) for t in texts]
    for i in ids:
        check_prompt(i, opened.checkpoint.config, args.generate)
    rows = []
    for precision in args.precision.split(","):
        model = load(opened, "cpu", precision, None, show_compiling)
        for count in counts:
            facts = {"model": path.name, "precision": precision, "threads": count, "draft": most}
            answers = [Answers(text, i) for text, i in zip(texts, ids, strict=True)]
            with threads(count):
                take_turns(model, opened, answers, args.generate, most, args.repeats, warm_up)
            rows += [facts | a.row() for a in answers]
        del model  # one precision's weights at a time
    return rows


def take_turns(
    model: Loaded, opened: Opened, answers: list[Answers], new: int, most: int, rounds: int, warm_up: int
) -> None:
    """Each prompt with and without drafts, one after the other, in each round: the slow minutes fall on both."""
    ends = spelling_of(opened.checkpoint, opened.checkpoint.vocabulary()).eos_ids

    def answer(a: Answers, count: int, drafts: Drafts) -> tuple[list[int], float]:
        tokens = generate(a.ids, model.weights, model.kernels, model.precision, count, ends, drafts=drafts)
        made = [next(tokens := blaming(tokens, opened))]
        started = time.perf_counter()
        made += tokens
        return made, time.perf_counter() - started

    answer(answers[0], min(new, warm_up), Drafts(most))
    with progress(f"{model.precision}", rounds * len(answers)) as done:
        for i in range(rounds):
            for n, a in enumerate(answers):
                found: list[list[int]] = []
                for drafted in (False, True) if i % 2 == 0 else (True, False):
                    drafts = Drafts(most if drafted else 0)
                    made, seconds = answer(a, new, drafts)
                    found.append(made)
                    a.seconds[drafted].append(seconds)
                    if drafted:
                        a.made, a.passes = made, drafts.passes
                if found[0] != found[1]:
                    raise AssertionError(f"drafts have changed the answer to {a.text!r:.60}: please report that")
                done(i * len(answers) + n + 1)


def table(rows: list[dict[str, Any]]) -> str:
    """Speeds behind the first token, with their spread: plain, then with drafts."""
    line = "{:15s} {:>6s} {:>5s} {:>8s} {:>9s} {:>8s} {:>9s} {:>6s} {:>6s}"
    lines = [line.format("prompt", "tokens", "made", "plain/s", "spread", "draft/s", "spread", "ratio", "a pass")]
    run = ""
    for r in rows:
        if run != (run := f"{r['precision']}, {plural(r['threads'], 'thread')}:"):
            lines.append(run)
        cells = ["", "", "", "", "", ""]
        if "ratio" in r:
            cells = []
            for key in ("plain_tokens_per_s", "drafted_tokens_per_s"):
                low, high = r[f"{key}_spread"]
                cells += [f"{r[key]:.1f}", f"{low:.0f}-{high:.0f}"]
            cells += [f"{r['ratio']:.2f}x", f"{r['tokens_per_pass']:.2f}"]
        name = middle(one_line(r["prompt"].replace("\n", " ")), 15)
        lines.append(line.format(name, str(r["prompt_tokens"]), str(r["generated_tokens"]), *cells).rstrip())
    return "\n".join(lines)
