"""engine bench: how fast, against what memory allows and, in turns, against llama.cpp."""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

from ..child import end_with_parent, own_process, run_to_the_end
from ..errors import BadInput
from .memory import peak
from .signals import end_at_a_cut_file
from .terminal import json_text

READS = 8  # of all weights, before a round and after it: what the machine reads moves from second to second
WARM_UP = 8  # tokens that nobody counts
PROMPT = 256  # tokens, where nobody asked for another number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..engine.drafts import MOST
    from .load import add_model_argument
    from .run import draft_tokens

    parser.description = (
        "Measures prompt and generation speed on the CPU. Each configuration is a process of its own; they take\n"
        "turns, one round each, so that a slow minute of the machine falls on all of them. Medians, with the spread.\n"
        "With --prompts it answers prompts of yours, with drafts and without, in turns."
    )
    parser.epilog = """examples:
  engine bench model.gguf -t 1,2 --precision f32,int8 --vs llama.cpp
  engine bench model.gguf --prompts prompts.json --chat -n 256"""
    add_model_argument(parser)
    parser.add_argument("-p", "--prompt", type=int, metavar="N", help=f"tokens of prompt (default: {PROMPT})")
    parser.add_argument("-n", "--generate", type=int, default=64, metavar="N", help="tokens to generate (default: 64)")
    parser.add_argument(
        "--depth",
        type=int,
        default=0,
        metavar="N",
        help="generate after a text of N tokens, which every round reads first (default: after the prompt)",
    )
    parser.add_argument("-t", "--threads", default=None, metavar="N,N", help="thread counts (default: all cores)")
    parser.add_argument(
        "--precision", default="f32,int8", metavar="P,P", help="of f32, int16, int8 (default: f32,int8)"
    )
    parser.add_argument("-r", "--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--vs", choices=("llama.cpp",), help="an engine to take turns with (needs llama-cpp-python)")
    drafts = parser.add_argument_group("drafts")
    drafts.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts to answer with drafts and without: a JSON list of texts, or one a line",
    )
    drafts.add_argument("--draft", type=draft_tokens, metavar="N", help=f"tokens of a draft (default: {MOST})")
    drafts.add_argument("--chat", action="store_true", help="wrap each prompt in the model's own chat template")
    parser.add_argument("--json", action="store_true", help="a list of rows instead of a table")


def prompt_ids(count: int, vocab_size: int) -> list[int]:
    """Tokens of no meaning, the same on every run."""
    return [(100 + i * 7919) % min(50_000, vocab_size) for i in range(count)]


# ---- one engine in one process: each `open_*` gives facts about the model and a function that runs a round


Run = Callable[[int, int], tuple[float, float]]  # tokens of prompt, and to generate: seconds of each


def timed(run: Run, prompt: int, generated: int, depth: int) -> dict[str, float]:
    """Seconds of a prompt, and of as many new tokens behind it or, with a depth, behind so many."""
    if not depth:
        prompt_s, generate_s = run(prompt, generated)
    else:
        (prompt_s, _), (_, generate_s) = run(prompt, 0), run(depth, generated)
    return {"prompt_s": prompt_s, "generate_s": generate_s}


def open_qwenref(
    path: str, precision: str, threads: int, prompt: int, generated: int, depth: int
) -> tuple[dict[str, Any], Any]:
    from ..engine.generate import generate
    from ..engine.kernels import backend
    from ..engine.kernels.cpu.machine.paths import PATH
    from ..engine.kernels.cpu.matmul.bandwidth import read_weights
    from ..engine.load import open_weights, set_threads

    set_threads(threads)
    _, bound = open_weights(path)
    ops = backend("cpu")
    ops.compile_kernels(bound, precision, lambda done, total: None)
    w = ops.prepare(bound, precision)
    ids = prompt_ids(max(prompt, depth), w.config.vocab_size)

    def run(count: int, new: int) -> tuple[float, float]:
        started = time.perf_counter()
        tokens = generate(ids[:count], w, ops, precision, 1 + new)
        next(tokens)
        first = time.perf_counter()
        for _ in tokens:
            pass
        return first - started, time.perf_counter() - first

    def reading() -> list[float]:
        speeds = []
        for _ in range(READS):
            started = time.perf_counter()
            size = read_weights(w)
            speeds.append(size / (time.perf_counter() - started))
        return speeds

    def round_() -> dict[str, float]:
        before = reading()
        seconds = timed(run, prompt, generated, depth)
        return seconds | {"read_bytes_per_s": median(before + reading())}

    run(WARM_UP, 1)
    return {"threads": threads, "path": PATH, "bytes_per_token": read_weights(w)}, round_


def open_llama_cpp(
    path: str, precision: str, threads: int, prompt: int, generated: int, depth: int
) -> tuple[dict[str, Any], Any]:
    import numpy as np
    from llama_cpp import Llama

    longest = max(prompt, depth)
    llm = Llama(
        path, n_ctx=longest + generated + 8, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    vocab = llm.n_vocab()
    ids = prompt_ids(longest, vocab)

    def evaluate(tokens: list[int]) -> int:
        llm.eval(tokens)
        return int(np.ctypeslib.as_array(llm._ctx.get_logits_ith(-1), shape=(vocab,)).argmax())

    def run(count: int, new: int) -> tuple[float, float]:
        llm.reset()
        started = time.perf_counter()
        token = evaluate(ids[:count])
        first = time.perf_counter()
        for _ in range(new):
            token = evaluate([token])
        return first - started, time.perf_counter() - first

    def round_() -> dict[str, float]:
        return timed(run, prompt, generated, depth)

    run(min(WARM_UP, prompt), 1)
    return {"threads": threads}, round_


ENGINES: dict[str, Callable[..., tuple[dict[str, Any], Any]]] = {"qwenref": open_qwenref, "llama.cpp": open_llama_cpp}


def work(pipe: Connection, engine: str, *arguments: Any) -> None:
    """A process: loads, says so, then runs a round for every message, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says what an interruption means
    end_with_parent()
    end_at_a_cut_file(lambda line: pipe.send(BadInput(line)))
    try:
        facts, round_ = ENGINES[engine](*arguments)
        pipe.send(facts)
        while pipe.recv():
            pipe.send(round_() | {"peak_bytes": peak()})
    except BadInput as error:
        pipe.send(error)
    except (EOFError, ConnectionError):
        pass


# ---- all engines, in turns


class Bench:
    """One configuration's process, and what it has measured."""

    def __init__(
        self, engine: str, path: str, precision: str, threads: int, prompt: int, generated: int, depth: int
    ) -> None:
        self.pipe, there = multiprocessing.Pipe()
        self.engine, self.precision, self.prompt, self.generated = engine, precision, prompt, generated
        self.depth = depth or prompt
        counts = map(str, (there.fileno(), threads, prompt, generated, depth))
        started = time.perf_counter()
        self.process = subprocess.Popen(
            own_process(__name__, engine, path, precision, *counts), stdin=subprocess.PIPE, pass_fds=[there.fileno()]
        )
        there.close()
        try:
            self.facts = self.hear()
        except BadInput:
            self.close()
            raise
        self.load_s = time.perf_counter() - started
        self.rounds: list[dict[str, float]] = []

    def hear(self) -> dict[str, Any]:
        try:
            message = self.pipe.recv()
        except EOFError:
            raise BadInput(f"the process of {self.engine} ended; its own message stands above") from None
        if isinstance(message, BadInput):
            raise message
        return dict(message)

    def round(self) -> None:
        self.pipe.send(True)
        self.rounds.append(self.hear())

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.pipe.close()
        self.process.communicate()

    def speeds(self, phase: str) -> list[float]:
        count = self.prompt if phase == "prompt" else self.generated
        return [count / r[f"{phase}_s"] for r in self.rounds]

    def row(self, model: str, peer: Bench | None) -> dict[str, Any]:
        row: dict[str, Any] = {
            "model": model,
            "engine": self.engine,
            "precision": self.precision,
            "threads": self.facts["threads"],
            "prompt_tokens": self.prompt,
            "generated_tokens": self.generated,
            "depth": self.depth,
            "path": self.facts.get("path"),
            "rounds": len(self.rounds),
            "ready_s": round(self.load_s, 3),
            "peak_bytes": max(int(r["peak_bytes"]) for r in self.rounds),
        }
        for phase, key in (("prompt", "prompt_tokens_per_s"), ("generate", "generated_tokens_per_s")):
            speeds = self.speeds(phase)
            row[key] = round(median(speeds), 2)
            row[f"{key}_spread"] = [round(min(speeds), 2), round(max(speeds), 2)]
            if peer:
                ratios = [a / b for a, b in zip(speeds, peer.speeds(phase), strict=True)]
                row[f"{key}_ratio"] = round(median(ratios), 3)
        if "bytes_per_token" in self.facts:
            size = self.facts["bytes_per_token"]
            reading = [r["read_bytes_per_s"] for r in self.rounds]
            shares = [s * size / b for s, b in zip(self.speeds("generate"), reading, strict=True)]
            row |= {"bytes_per_token": size, "read_bytes_per_s": round(median(reading))}
            row["bandwidth_share"] = round(median(shares), 3)
        return row


def first_token_s(path: str, precision: str, threads: int) -> float:
    """Seconds from the command to the first token of a short prompt, as a user has it the second time: the median of
    three, after one that warms the caches up.
    """
    command = [f"{__package__}.main", "run", "-m", path, "-p", "What is 2+2?", "-n", "1"]
    command += ["--precision", precision, "-t", str(threads)]
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        status, said = run_to_the_end(*command)
        if status:
            raise BadInput(said.splitlines()[-1] if said else f"engine run ended with {status}")
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def numbers(text: str, flag: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise BadInput(f"{flag} {text}: give numbers of at least 1, with commas between them")
    return values


def table(rows: list[dict[str, Any]]) -> str:
    """Speeds with their spread and, where there is a peer, the ratio to it: of the prompt, then of the tokens made."""
    line = "{:9s} {:8s} {:9s} {:>7s} {:>8s} {:>11s} {:>7s} {:>7s} {:>6s}"
    titles = ("engine", "path", "precision", "threads")
    lines = [line.format(*titles, "prompt/s", "spread", "ratio", "first s", "").rstrip()]
    for r in rows:
        lines.append(line.format(*run_of(r), *speed(r, "prompt"), fixed(r, "first_token_s"), "").rstrip())
    lines += ["", line.format(*titles, "tokens/s", "spread", "ratio", "of mem", "GB")]
    for r in rows:
        share, most = fixed(r, "bandwidth_share"), f"{r['peak_bytes'] / 1e9:.2f}"
        lines.append(line.format(*run_of(r), *speed(r, "generated"), share, most))
    return "\n".join(lines)


def run_of(r: dict[str, Any]) -> tuple[str, str, str, str]:
    return r["engine"], r["path"] or "", r["precision"], str(r["threads"])


def speed(r: dict[str, Any], what: str) -> tuple[str, str, str]:
    """Tokens a second, from which to which, and the ratio to the peer's."""
    key = f"{what}_tokens_per_s"
    low, high = r[f"{key}_spread"]
    ratio = f"{r[f'{key}_ratio']:.2f} x" if f"{key}_ratio" in r else ""
    return f"{r[key]:.1f}", f"{low:.0f}-{high:.0f}", ratio


def fixed(r: dict[str, Any], key: str) -> str:
    return f"{r[key]:.2f}" if key in r else ""


def main(args: argparse.Namespace) -> int:
    from ..cores import cores
    from ..engine.aliases import resolve
    from ..engine.kernels import backend, check_precision
    from ..engine.load import check_generates
    from .load import open_weights
    from .progress import progress

    path = resolve(args.model)
    opened = open_weights(str(path))  # a bad model is refused here, once
    check_generates(opened.checkpoint)
    checkpoint = opened.checkpoint
    has_text = checkpoint.vocabulary() is not None  # else there is no command that a user could time
    config = checkpoint.config
    for flag, given in (("-p", args.prompt), ("-n", args.generate), ("-r", args.repeats)):
        if given is not None and given < 1:
            raise BadInput(f"{flag} {given}: give at least 1")
    precisions = args.precision.split(",")
    for precision in precisions:
        check_precision(backend("cpu"), "cpu", precision)
    counts = numbers(args.threads, "-t") if args.threads else [cores()]
    if args.prompts is None:
        if args.draft is not None or args.chat:
            raise BadInput(f"{'--chat' if args.chat else '--draft'} is of --prompts; give a file of prompts too")
    else:
        from . import bench_drafts

        if given := [f for f, v in (("-p", args.prompt), ("--depth", args.depth), ("--vs", args.vs)) if v]:
            raise BadInput(
                f"{given[0]} is not of --prompts, whose prompts are those of the file; leave one of them away"
            )
        rows = bench_drafts.measure(args, path, opened, counts, WARM_UP)
        print(json_text(rows) if args.json else bench_drafts.table(rows))
        return 0
    args.prompt = args.prompt or PROMPT
    longest = max(args.prompt, args.depth)
    if longest + args.generate + 1 > config.context:
        raise BadInput(f"{longest} + {args.generate} tokens do not fit {config.context} positions")
    if args.depth < 0:
        raise BadInput(f"--depth {args.depth}: give a number of tokens, or leave it out")
    if args.vs and not find_spec("llama_cpp"):
        raise BadInput("--vs llama.cpp needs llama-cpp-python; get it with: pip install llama-cpp-python")
    if args.vs and not checkpoint.container.startswith("GGUF"):
        raise BadInput(f"--vs llama.cpp: it reads GGUF, and {path} is {checkpoint.container}; see engine convert")
    rows = []
    for threads in counts:
        shape = (threads, args.prompt, args.generate, args.depth)
        with ExitStack() as running:
            benches = [running.enter_context(Bench("qwenref", str(path), p, *shape)) for p in precisions]
            peer = running.enter_context(Bench(args.vs, str(path), "", *shape)) if args.vs else None
            first: dict[str, dict[str, float]] = {p: {} for p in precisions}
            if has_text:  # only now, when every kernel is compiled
                first = {p: {"first_token_s": round(first_token_s(str(path), p, threads), 3)} for p in precisions}
            with progress(f"{threads} threads", args.repeats) as done:
                for i in range(args.repeats):
                    for bench in (*benches, *([peer] if peer else [])):
                        bench.round()
                    done(i + 1)
            rows += [b.row(path.name, peer) | first[b.precision] for b in benches]
            if peer:
                rows.append(peer.row(path.name, None))
    print(json_text(rows) if args.json else table(rows))
    return 0


if __name__ == "__main__":
    engine, path, precision, pipe, *counts = sys.argv[1:]
    work(Connection(int(pipe)), engine, path, precision, *map(int, counts))
