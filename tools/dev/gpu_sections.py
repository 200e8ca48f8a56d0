"""The sections of make gpu (gpu.py), each a process: python -m qwenref.tools.dev.gpu_sections SECTION --json FILE.

Nothing is fetched: models are random blocks written as GGUF files, once for all sections.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...child import own_process
from ...engine.forward import forward
from ...engine.generate import prefill
from ...engine.kernels import backend
from ...engine.tap import SILENT
from ...errors import BadInput
from ...quant.rms import ratio, rms
from ...quant.tensor import QTensor, dequantize, format_of
from ..load import open_weights
from .random_model import SHAPES, random_tensor, write_model

PARITY = 1e-4  # RMS of the difference over RMS: rounding carried through all layers; one wrong block is far above it
FORMATS = ("Q4_K", "Q6_K", "Q5_0", "Q8_0", "Q4_0", "F16", "BF16", "F32")


@dataclass
class Found:
    """Rows for a section's table and what is wrong, written to the file and printed at once for whoever waits."""

    section: str
    file: Path | None = None
    rows: list[list[str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def say(self, *row: str) -> None:
        self.rows.append(list(row))
        print(f"[{self.section}] {' | '.join(row)}", flush=True)
        self._keep()

    def blame(self, what: str) -> None:
        self.wrong.append(what)
        print(f"[{self.section}] WRONG {what}", flush=True)
        self._keep()

    def _keep(self) -> None:
        if self.file:
            beside = self.file.with_suffix(".new")
            beside.write_text(json.dumps({"rows": self.rows, "wrong": self.wrong}))
            os.replace(beside, self.file)

    def guarded(self, what: str, work: Callable[..., None], *arguments: Any) -> None:
        """One thing that fails is named, and the rest goes on: a loan is short."""
        try:
            work(*arguments)
        except Exception as error:
            self.blame(f"{what}: {type(error).__name__}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=("card", "products", "speed", "parity", "verify"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where the models are, or will be")
    parser.add_argument("--models", default="0.5B,7B")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=24)
    parser.add_argument("--against", default="cpu", choices=("cpu", "reference"))
    args = parser.parse_args()
    found = Found(args.section, args.json)
    try:
        k = backend("cuda")
        from ...engine.kernels.cuda.machine.card import require_card

        require_card()
    except BadInput as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2
    found.guarded(args.section, globals()[f"section_{args.section}"], args, k, found)
    return 1 if found.wrong else 0


def section_card(args: argparse.Namespace, k: Any, found: Found) -> None:
    for row in card_facts():
        found.say(*row)
    found.say("read bandwidth (median of 10)", f"{read_bandwidth() / 1e9:.0f} GB/s")


def section_products(args: argparse.Namespace, k: Any, found: Found) -> None:
    limit = read_bandwidth()
    for fmt in FORMATS:
        found.guarded(fmt, product, k, fmt, limit, found)


def section_speed(args: argparse.Namespace, k: Any, found: Found) -> None:
    limit = read_bandwidth()
    for name in args.models.split(","):
        found.guarded(name, speed, k, name, model(args.folder, name, None), limit, found)


def section_parity(args: argparse.Namespace, k: Any, found: Found) -> None:
    for name in args.models.split(","):
        found.guarded(name, parity, k, name, model(args.folder, name, args.layers), args, found)


def section_verify(args: argparse.Namespace, k: Any, found: Found) -> None:
    for name in args.models.split(","):
        found.guarded(name, verify, name, model(args.folder, name, args.layers), args.folder, found)


def model(folder: Path, name: str, layers: int | None) -> Path:
    """The file of that shape, made now if no section before made it. `layers` is the 7B's alone."""
    layers = layers if name == "7B" else None
    path = folder / f"{name}-{layers or SHAPES[name][0]}.gguf"
    if not path.exists():
        started = time.perf_counter()
        write_model(path, name, layers)
        size, seconds = path.stat().st_size / 1e9, time.perf_counter() - started
        print(f"[{name}] {size:.2f} GB of random blocks, {seconds:.0f} s", flush=True)
    return path


# ---- the card


def card_facts() -> list[list[str]]:
    from numba import cuda

    device = cuda.get_current_device()
    free, whole = cuda.current_context().get_memory_info()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name

    def installed(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} not installed"

    return [
        [
            "card",
            f"{name}, {device.MULTIPROCESSOR_COUNT} multiprocessors, sm_{''.join(map(str, device.compute_capability))}",
        ],
        ["memory", f"{free / 1e9:.1f} GB free of {whole / 1e9:.1f} GB"],
        ["versions", ", ".join(installed(p) for p in ("numba", "numba-cuda", "cuda-core", "cuda-bindings", "numpy"))],
        ["host", f"Python {platform.python_version()}, {platform.machine()}"],
    ]


def timed(work: Callable[[], None], repeats: int) -> list[float]:
    """Seconds of each call on the card, by its own events; one call first to warm up."""
    from numba import cuda

    work()
    seconds = []
    for _ in range(repeats):
        first, last = cuda.event(), cuda.event()
        first.record()
        work()
        last.record()
        last.synchronize()
        seconds.append(cuda.event_elapsed_time(first, last) / 1e3)
    return seconds


def read_bandwidth() -> float:
    """Bytes a second that a kernel reads which does nothing else."""
    import numba

    from ...engine.kernels.cuda.machine.ptx import load4
    from ...engine.kernels.cuda.matmul.product import dot4

    cuda: Any = numba.cuda
    float32: Any = numba.float32

    @cuda.jit
    def read(x: Any, count: Any, out: Any) -> None:
        i, step = cuda.grid(1), cuda.gridsize(1)
        total = float32(0)
        while i + 3 * step < count:
            a, b, c, d = load4(x, i), load4(x, i + step), load4(x, i + 2 * step), load4(x, i + 3 * step)
            total = dot4(a, b, dot4(c, d, total))
            i += 4 * step
        if total == float32(-1.0):  # never: the loads have to be of use
            out[0] = total

    size = 1 << 30  # elements: 4 GiB, or what the card has
    while 8 * size > cuda.current_context().get_memory_info()[0]:
        size >>= 1
    x, out = cuda.to_device(np.random.default_rng(0).random(1 << 24, np.float32)), cuda.device_array(1, np.float32)
    big = cuda.device_array(size, np.float32)
    for at in range(0, size, 1 << 24):
        big[at : at + (1 << 24)].copy_to_device(x)
    blocks = 8 * cuda.get_current_device().MULTIPROCESSOR_COUNT
    return 4 * size / float(np.median(timed(lambda: read[blocks, 256](big, size // 4, out), 10)))


# ---- sections


def product(k: Any, fmt: str, limit: float, found: Found) -> None:
    """One token through a matrix too large for the card's cache: 512 rows against float64, and its time."""
    from ...engine.kernels.cuda.machine.memory import Arena, Queue
    from ...engine.kernels.cuda.machine.recording import graph_of
    from ...engine.kernels.cuda.matmul.linear import Matrix
    from ...engine.kernels.cuda.matmul.packed import pack, packed_bytes

    O, I = SHAPES["7B"][6], SHAPES["7B"][1]
    w = random_tensor("w", fmt, (O, I), I**-0.5, 7)
    x = np.random.default_rng(8).standard_normal((1, I)).astype(np.float32)
    card_x, packed = k.queue.rows(1, I), pack(k.queue, w)
    card_x.data[:I].copy_to_device(x[0])
    picked = np.sort(np.random.default_rng(9).choice(O, 512, replace=False))
    rows = np.concatenate([dequantize(w, int(i), int(i) + 1) for i in picked]).astype(np.float64)
    for precision in k.PRECISIONS:
        matrix = Matrix((packed,), precision == "int8")
        y, again = k.to_host(k.linear(card_x, matrix)), k.to_host(k.linear(card_x, matrix))
        if not np.array_equal(y.view(np.uint32), again.view(np.uint32)):
            found.blame(f"{fmt} {precision}: two runs differ")
        a = rounded_as_ggml(x, w, precision)
        # Q4_K: the sums of s q x and of m x are rounded apart.
        bound = (I + 8) * 2.0**-24 * (np.abs(a) @ np.abs(rows).T) * (4 if fmt == "Q4_K" else 1)
        error = float(np.max(np.abs(y[:, picked] - a @ rows.T) / bound))
        if not error <= 1:
            found.blame(f"{fmt} {precision}: {error:.3g} of the bound")

        arena = Arena()

        def ten(stream: Any, matrix: Any = matrix, arena: Any = arena) -> None:
            there = replace(k, queue=Queue(arena, stream))
            for _ in range(10):
                there.linear(card_x, matrix)

        ten(0)
        seconds = float(np.median(timed(graph_of(ten), 20))) / 10
        rate, want = packed_bytes(w) / seconds, "0.7" if fmt == "Q4_K" else ""
        measured = [f"{error:.2g}", f"{seconds * 1e6:.0f}", f"{rate / 1e9:.0f}", f"{rate / limit:.2f}", want]
        found.say(fmt, precision, *measured)


def rounded_as_ggml(x: NDArray[np.float32], w: QTensor, precision: str) -> NDArray[np.float64]:
    """The activations that meet a matrix on the card."""
    from ...engine.kernels.cuda.matmul.packed import FORMS, form_of
    from ...quant import bf16, f16, q8_0, q8_k

    fmt = w.format
    if precision == "f32" or form_of(w) is FORMS["F32"]:
        return x.astype(np.float64)
    if fmt in ("F16", "BF16"):
        f = f16 if fmt == "F16" else bf16
        return f.decode(f.encode(x.reshape(-1, 1))).reshape(x.shape).astype(np.float64)
    if format_of(fmt).block == 256:
        return q8_k.decode(q8_k.encode(x.reshape(-1, 256))).reshape(x.shape).astype(np.float64)
    return q8_0.decode(q8_0.encode_activations(x.reshape(-1, 32))).reshape(x.shape).astype(np.float64)


class Keep:
    """A tap that brings every stage to the host."""

    def __init__(self, k: Any) -> None:
        self.k, self.seen = k, dict[tuple[str, int | None], NDArray[np.floating]]()

    def layer(self, index: int) -> Any:
        return lambda stage, value: self._keep(stage, index, value)

    def whole(self, stage: str, value: Any) -> Any:
        return self._keep(stage, None, value)

    def _keep(self, stage: str, layer: int | None, value: Any) -> Any:
        self.seen[stage, layer] = np.array(self.k.to_host(value))
        return value


def parity(k: Any, name: str, path: Path, args: argparse.Namespace, found: Found) -> None:
    """Every stage of a prompt and of decode steps on both backends, the same tokens to both; then recorded steps."""
    _, w = open_weights(str(path))
    other = backend(args.against)
    mine, theirs = k.prepare(w, "f32"), other.prepare(w, "f32")
    prompt = np.random.default_rng(1).integers(0, w.config.vocab_size, args.prompt).astype(np.int32)
    room = len(prompt) + args.steps
    caches = k.new_cache(w.config, room, "f32"), other.new_cache(w.config, room, "f32")
    recorded = k.new_cache(w.config, room, "f32")
    forward(prompt, mine, recorded, k, SILENT)
    step = k.record(lambda k, token: forward(token, mine, recorded, k, SILENT), recorded)
    worst, where, stages, same, bits, tokens = 0.0, "", 0, 0, True, prompt
    for phase in range(args.steps + 1):
        a, b = Keep(k), Keep(other)
        got = k.to_host(forward(tokens, mine, caches[0], k, a)).copy()
        want = other.to_host(forward(tokens, theirs, caches[1], other, b))
        for at, theirs_ in b.seen.items():
            stages += 1
            off = ratio(rms(a.seen[at] - theirs_), rms(theirs_))
            if not off <= worst:
                worst, where = off, f"{at[0]} of layer {at[1]}, pass {phase}"
        if phase:
            bits &= np.array_equal(got.view(np.uint32), k.to_host(step(tokens)).view(np.uint32))
        same += int(np.argmax(got)) == int(np.argmax(want))
        tokens = np.array([np.argmax(want)], np.int32)
        if phase in (0, 1):
            print(f"[{name}] after pass {phase}: worst {worst:.2e} ({where})", flush=True)
    passes = args.steps + 1
    row = [
        f"{name}, {w.config.num_hidden_layers} layers",
        args.against,
        f"{passes}",
        f"{stages}",
        f"{worst:.1e}",
        where,
    ]
    found.say(*row, f"{same}/{passes}", "yes" if bits else "NO", f"< {PARITY:g}")
    if not worst < PARITY:
        found.blame(f"{name} parity: {worst:.2e} at {where}")
    if not bits:
        found.blame(f"{name}: recorded decode steps differ from traced ones")


def verify(name: str, path: Path, folder: Path, found: Found) -> None:
    """engine verify of a dump by engine trace --backend cuda, in both precisions."""
    for precision in ("f32", "int8"):
        dump = folder / f"{name}-{precision}"
        ids = ",".join(map(str, np.random.default_rng(2).integers(0, 150000, 6).tolist()))
        trace = ["trace", str(path), "--backend", "cuda", "--precision", precision, "--tokens", ids]
        engine(*trace, "--save-tensor", "all", "--save-tensor-dir", str(dump), "--decode-steps", "2")
        status, last = engine("verify", str(dump), "-m", str(path))
        found.say(name, precision, str(status), last)
        if status:
            found.blame(f"{name} {precision}: engine verify ends with {status}")


def engine(*arguments: str) -> tuple[int, str]:
    """Exit status and last line of a command of this package."""
    command = own_process(own_process.__module__.replace(".child", ".main"), *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    if done.returncode:
        print("\n".join(lines[-12:]), flush=True)
    return done.returncode, lines[-1].replace("|", "/")


def speed(k: Any, name: str, path: Path, limit: float, found: Found) -> None:
    """Prompt of 512 and 64 decode steps after it, with tokens to the card and logits back in each."""
    from ...engine.kernels.cuda.matmul.packed import packed_bytes

    _, w = open_weights(str(path))
    for precision in k.PRECISIONS:
        started = time.perf_counter()
        mine = k.prepare(w, precision)
        print(f"[{name}] {precision}: packed and uploaded in {time.perf_counter() - started:.1f} s", flush=True)
        prompt = np.random.default_rng(3).integers(0, w.config.vocab_size, 512).tolist()
        times = []
        for _ in range(6):
            cache = k.new_cache(w.config, 1024, precision)
            started = time.perf_counter()
            prefill(prompt, mine, cache, k)
            times.append(time.perf_counter() - started)
        step = k.record(lambda k, token, m=mine, c=cache: forward(token, m, c, k, SILENT), cache)
        steps = []
        for i in range(69):
            started = time.perf_counter()
            k.to_host(step(np.array([i], np.int32)))
            steps.append(time.perf_counter() - started)
        size = sum(packed_bytes(t) for _, t in w.matrices())
        prompt_rate, rate = 512 / float(np.median(times[1:])), 1 / float(np.median(steps[5:]))
        aims = "prompt >= 2000, decode >= 300, >= 0.5" if name == "7B" else ""
        figures = [f"{prompt_rate:.0f}", f"{rate:.0f}", f"{size / 1e9:.2f} GB", f"{size * rate / limit:.2f}", aims]
        found.say(name, precision, *figures)


if __name__ == "__main__":
    sys.exit(main())
