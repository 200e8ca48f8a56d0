"""engine dump-llamacpp: every stage of a llama.cpp run, through its scheduler's evaluation callback.

llama.cpp hands out the nodes of its graph by names that repeat (Qcur-0 is three operations) or say nothing (node_31),
so a node is known by its operation and by the weight that it reads, or else by its own name.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.config import Config
from ..engine.files import Checkpoint
from ..engine.rope_gguf import DIVISORS
from ..errors import BadInput
from ..quant.ggml import NUMBERS
from ..trace.stages import STAGES, Node, Stage
from .foreign import EmitRows, Forward, add_dump_arguments, job, write_dump
from .libllama import Evaluation, LibLlama, Log, Tensor, library
from .terminal import on_stderr

FLASH = {s.name: "inside of flash attention" for s in STAGES if s.kind in ("scores", "soft-max")}
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")
PAIRED = ("qkv_matmul", "qkv_bias", "q_post_rope", "k_post_rope")
ATTENTION = {"auto": -1, "off": 0, "on": 1}  # llama.h: llama_flash_attn_type
EMBEDDED = ("GET_ROWS", "token_embd.weight")  # the first node of each graph


@dataclass(frozen=True, slots=True)
class Run:
    """How llama.cpp is asked to run. library: None for llama-cpp-python's. flash: a key of ATTENTION. keys, values: of
    KV_TYPES. batch, ubatch: positions of a call and of a graph, 0 for as many as there are. threads: 0 for its choice.
    gpu_layers: on a device. repack: whether it may lay out weights for the machine when it loads them.
    """

    library: Path | None = None
    flash: str = "off"
    keys: str = "f16"
    values: str = "f16"
    batch: int = 0
    ubatch: int = 0
    threads: int = 0
    gpu_layers: int = 0
    repack: bool = True

    def __str__(self) -> str:
        cache = self.keys if self.keys == self.values else f"{self.keys} keys and {self.values} values"
        return f"ggml's activations, {cache} cache"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs a GGUF model in llama.cpp and writes its stages, as engine trace does. Flash attention is off if it is\n"
        "not asked for, since it holds no scores; a prompt that is cut (-ub) is a phase for each piece."
    )
    parser.epilog = (
        "needs llama-cpp-python (pip install llama-cpp-python) or another libllama (--libllama)\n"
        "examples:\n"
        "  engine dump-llamacpp model.gguf llama-trace -p 'def f(n):' --kv f32\n"
        "  engine dump-llamacpp model.gguf as-it-is -fa auto -ctk q8_0 -ctv q8_0"
    )
    add_dump_arguments(parser)
    add = parser.add_argument
    add("--kv", choices=KV_TYPES, default="f16", metavar="TYPE", help=f"the key/value cache: {', '.join(KV_TYPES)}")
    add("-ctk", "--cache-type-k", choices=KV_TYPES, metavar="TYPE", help="that of keys alone")
    add("-ctv", "--cache-type-v", choices=KV_TYPES, metavar="TYPE", help="that of values alone")
    add("-fa", "--flash-attn", choices=ATTENTION, default="off", help="flash attention (default: off)")
    add("-b", "--batch-size", type=int, default=0, metavar="N", help="positions of a call (default: all)")
    add("-ub", "--ubatch-size", type=int, default=0, metavar="N", help="positions of a graph (default: those of -b)")
    add("-t", "--threads", type=int, default=0, metavar="N", help="threads (default: llama.cpp's choice)")
    add("-ngl", "--gpu-layers", type=int, default=0, metavar="N", help="layers on a device (default: 0)")
    add("--no-repack", action="store_true", help="weights stay as they are in the file (llama.cpp's -nr)")
    add("--libllama", type=Path, metavar="PATH", help="a llama.cpp: its libllama, or the folder of it")


def absent(stages: Mapping[str, Stage]) -> dict[str, str]:
    """Those of a model's stages that llama.cpp has no node of."""
    return {name: s.unless_ggml for name, s in stages.items() if not s.ggml}


def main(args: argparse.Namespace) -> int:
    for name in ("batch_size", "ubatch_size", "threads", "gpu_layers"):
        if getattr(args, name) < 0:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(args, name)}: it cannot be negative")
    run = Run(
        args.libllama, args.flash_attn, args.cache_type_k or args.kv, args.cache_type_v or args.kv, args.batch_size,
        args.ubatch_size, args.threads, args.gpu_layers, not args.no_repack,
    )  # fmt: skip
    found = library(run.library)
    j = job(args, lambda stages: absent(stages) | (FLASH if run.flash == "on" else {}))
    if not j.checkpoint.container.startswith("GGUF"):
        raise BadInput(f"{j.checkpoint.path} is {j.checkpoint.container}; llama.cpp reads GGUF")
    lib = LibLlama(found)
    lib.begin()
    facts = {
        "engine": "llama.cpp",
        "versions": {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")} if not run.library else {},
        "backend": lib.llama_print_system_info().decode().strip(" |"),
        "precision": str(run),
        "notes": list(notes(run, found)),
    }
    capacity = len(j.ids) + j.plan.decode_steps
    write_dump(j, running(j.checkpoint, j.stages, capacity, run, j.plan.wants, j.absent), facts)
    if fused := [name for name in j.absent if name not in absent(j.stages)]:
        on_stderr(f"absent, since flash attention fuses them: {', '.join(fused)}")
    return 0


def notes(run: Run, found: Path) -> Iterator[str]:
    """What of the run does not show in the values."""
    yield f"flash attention {run.flash}; all positions' logits asked for, or the last layer would compute one position"
    yield (
        "attn_scores are llama.cpp's times 1/sqrt(H), which it applies inside the soft-max; the cache's padding is cut "
        "off"
    )
    if run.library is not None:
        yield f"the library is {found}"
    if run.gpu_layers:
        yield "a device's kernel ends at each stage that is taken, so it fuses less than it would unobserved"


@contextmanager
def running(
    c: Checkpoint,
    stages: Mapping[str, Stage],
    capacity: int,
    run: Run,
    wanted: Callable[[Stage, int | None], bool] = lambda stage, layer: True,
    absent: dict[str, str] | None = None,
) -> Iterator[Forward]:
    """A forward pass of llama.cpp, with its key/value cache from call to call.

    stages: the model's, by name. capacity: positions of all calls together. wanted: stages to hand out. absent: gets
    what flash attention turns out to fuse. Raises BadInput where llama.cpp refuses.
    """
    lib = LibLlama(library(run.library))
    with logged(lib) as log:

        def refused(what: str) -> BadInput:
            return BadInput(
                f"{c.path}: llama.cpp cannot {what}: {next((x for x in reversed(log) if x), 'no reason given')}"
            )

        lib.begin()
        graph = Graph(lib, c.config, stages, wanted, {} if absent is None else absent)
        settings = lib.llama_model_default_params()
        settings.put(lib.model.n_gpu_layers, ctypes.c_int32(run.gpu_layers))
        if not run.repack:
            settings.put(lib.model.use_extra_bufts, ctypes.c_bool(False))
        model = lib.llama_model_load_from_file(str(c.path).encode(), settings)
        if not model:
            raise refused("load it")
        try:
            keep_callback = Evaluation(graph.callback)
            batch_size = min(run.batch or capacity, capacity)
            context = lib.llama_init_from_model(model, context_settings(lib, run, capacity, batch_size, keep_callback))
            if not context:
                raise refused(f"make a context of {capacity} positions")
            check_settings(lib, context, capacity, batch_size, min(run.ubatch or batch_size, batch_size))
            past = 0

            def decode(tokens: Sequence[int]) -> None:
                nonlocal past
                batch = lib.llama_batch_init(len(tokens), 0, 1)
                try:
                    batch.n_tokens = len(tokens)
                    for i, token in enumerate(tokens):
                        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, past + i, 1
                        batch.seq_id[i][0], batch.logits[i] = 0, 1
                    status = lib.llama_decode(context, batch)
                finally:
                    lib.llama_batch_free(batch)
                if graph.error is not None:
                    raise graph.error
                if status:
                    raise refused(f"decode (status {status})")
                past += len(tokens)

            def forward(tokens: Sequence[int], emit: EmitRows) -> NDArray[np.floating[Any]]:
                graph.begin(past, emit)
                for start in range(0, len(tokens), batch_size):
                    decode(tokens[start : start + batch_size])
                return np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (c.config.vocab_size,)).copy()

            try:
                yield forward
            finally:
                lib.llama_free(context)
        finally:
            lib.llama_model_free(model)
            del keep_callback  # ctypes does not keep what it has handed out


@contextmanager
def logged(lib: LibLlama) -> Iterator[list[str]]:
    """What the library says, instead of on stderr. It is told to say it there again whatever happens: it would call
    what Python has thrown away."""
    log: list[str] = []
    keep = Log(lambda _level, text, _data: log.append(text.decode(errors="replace").strip()))
    lib.llama_log_set(keep, None)
    try:
        yield log
    finally:
        lib.llama_log_set(Log(), None)
        del keep  # ctypes does not keep what it has handed out


def context_settings(lib: LibLlama, run: Run, capacity: int, batch_size: int, callback: Any) -> Any:
    """llama_context_params of a run. Raises BadInput for flash attention where this version cannot be told of it."""
    p, at = lib.llama_context_default_params(), lib.context
    if at.flash_attn_type is None and run.flash != "off":
        raise BadInput(f"{lib.path} is older than August 2025; dump-llamacpp can ask it for no flash attention")
    for where, value in (
        (at.n_ctx, capacity), (at.n_batch, batch_size), (at.n_ubatch, min(run.ubatch or batch_size, batch_size)),
        (at.flash_attn_type, ATTENTION[run.flash]), (at.type_k, NUMBERS[run.keys.upper()]),
        (at.type_v, NUMBERS[run.values.upper()]),
    ):  # fmt: skip
        if where is not None:
            p.put(where, ctypes.c_int32(value))
    if run.threads:
        p.put(at.n_threads, ctypes.c_int32(run.threads))
        p.put(at.n_threads_batch, ctypes.c_int32(run.threads))
    p.put(at.cb_eval, callback)
    return p


def check_settings(lib: LibLlama, context: Any, capacity: int, batch: int, ubatch: int) -> None:
    """Raises BadInput if a context is not as it was asked for: its settings lie elsewhere, or it has its own limits."""
    made = lib.llama_n_ctx(context), lib.llama_n_batch(context), lib.llama_n_ubatch(context)
    if made[0] < capacity or made[1] < batch or made[2] != ubatch:
        raise BadInput(
            f"{lib.path} made a context of {made[0]} positions, {made[1]} a call and {made[2]} a graph where "
            f"{capacity}, {batch} and {ubatch} were asked for"
        )


class Graph:
    """Turns the nodes of a pass into stages: llama.cpp calls `callback` before and after it computes each.

    nodes: (operation, weight that it reads or else own name, without the layer): (stage, part of it, how it shows it).
    """

    def __init__(
        self,
        lib: LibLlama,
        c: Config,
        stages: Mapping[str, Stage],
        wanted: Callable[[Stage, int | None], bool],
        absent: dict[str, str],
    ) -> None:
        self.lib, self.config, self.head_dim, self.wanted, self.absent = lib, c, c.head_dim, wanted, absent
        self.nodes: dict[tuple[str, str], list[tuple[Stage, int, Node]]] = {}
        for stage in stages.values():
            for part, nodes in enumerate(stage.ggml):
                for node in nodes:
                    self.nodes.setdefault((node.operation, node.name), []).append((stage, part, node))
        self.error: BaseException | None = None

    def begin(self, past: int, emit: EmitRows) -> None:
        """The next nodes belong to a pass behind `past` positions; it may take several graphs."""
        self.first, self.emit = past, emit
        self.past = self.end = past
        self.parts: dict[tuple[int | None, str], dict[int, NDArray[np.float32]]] = {}

    def callback(self, address: int, ask: bool, _data: Any) -> bool:
        """ask: whether the node is wanted; False otherwise stops the pass."""
        try:
            if self.lib.ggml_get_name(address) != address + Tensor.name.offset:
                raise BadInput(f"{self.lib.path} has another layout of ggml_tensor than dump-llamacpp knows")
            t = Tensor.from_address(address)
            operation = self.lib.ggml_op_desc(address).decode()
            name, layer = named(t)
            if ask and (operation, name) == EMBEDDED:
                self.past, self.end = self.end, self.end + t.ne[1]
            if operation == "FLASH_ATTN_EXT":
                self.absent |= FLASH
            found = [
                (of, stage, part, node)
                for stage, part, node in self.nodes.get((operation, name), ())
                if self.wanted(stage, of := None if stage.scope == "whole" else layer)
            ]
            for of, stage, part, node in () if ask else found:
                self._take(address if node.side == "output" else t.src[1], of, stage, part)
            return bool(found) or not ask
        except BaseException as error:  # nothing may pass through C; the pass raises it when C has come back
            self.error = error
            return False

    def _take(self, address: int, layer: int | None, stage: Stage, part: int) -> None:
        parts = self.parts.setdefault((layer, stage.name), {})
        parts[part] = self._values(address)
        if len(parts) == len(stage.ggml):
            whole = np.concatenate([parts[i] for i in sorted(parts)], axis=-1)
            parts.clear()
            rows = range(self.past - self.first, self.end - self.first)
            self.emit(layer, stage.name, self._apart(stage, self._shaped(stage, whole)), rows)

    def _apart(self, stage: Stage, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Queries and keys whose pairs llama.cpp has side by side (models/architecture.py, paired), as halves."""
        if not self.config.architecture.paired or stage.name not in PAIRED:
            return x
        heads = self.config.num_attention_heads + self.config.num_key_value_heads
        turned = x.reshape(len(x), -1, self.head_dim).copy()
        pairs = turned[:, :heads].reshape(len(x), -1, self.head_dim // 2, 2)
        turned[:, :heads] = pairs.swapaxes(2, 3).reshape(len(x), -1, self.head_dim)
        return turned.reshape(x.shape)

    def _shaped(self, stage: Stage, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """ggml's four dimensions, outermost first, as trace/stages.py has them."""
        if stage.letters[0] == "T" and stage.letters[-1] == "H" and stage.kind != "mix":
            return x[0]
        if "S" in stage.letters:
            x = x[0, :, :, : self.end]
            return np.tril(x * np.float32(self.head_dim**-0.5), self.past) if stage.kind == "scores" else x
        x = x[0, 0]
        if stage.kind == "mix":
            return x.reshape(len(x), -1, self.head_dim)
        return x[-1] if stage.positions == "last" else x

    def _values(self, address: int) -> NDArray[np.float32]:
        """A copy of a node's values, from wherever they are, outermost dimension first."""
        t = Tensor.from_address(address)
        if t.type != NUMBERS["F32"]:
            raise BadInput(f"llama.cpp's node {t.name.decode()} is of ggml type {t.type}, not F32")
        held = np.empty(self.lib.ggml_nbytes(address), np.uint8)
        self.lib.ggml_backend_tensor_get(address, held.ctypes.data, 0, held.nbytes)
        shape, strides = tuple(t.ne)[::-1], tuple(t.nb)[::-1]
        values: NDArray[np.float32] = np.ndarray(shape, np.float32, held.data, 0, strides)
        return values.copy()


def named(t: Tensor) -> tuple[str, int]:
    """The weight that a node reads, or else its own name, without the layer; and the layer."""
    read = [Tensor.from_address(source).name.decode() for source in t.src if source]
    read = [name for name in read if name not in DIVISORS]
    name = next((n for n in read if n.endswith((".weight", ".bias"))), t.name.decode())
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(.*?)(?:-(\d+))?", name, re.DOTALL)
    assert match is not None
    return match[2], int(match[1] or match[3] or 0)
