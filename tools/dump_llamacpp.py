"""engine dump-llamacpp: every stage of a llama.cpp run, through llama-cpp-python's evaluation callback.

llama.cpp hands out the nodes of its graph by names that repeat (Qcur-0 is three operations) or say nothing (node_31),
so a node is known by its operation and by the weight that it reads, or else by its own name.
"""

from __future__ import annotations

import argparse
import ctypes
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.config import Config
from ..engine.files import Checkpoint
from ..engine.rope_gguf import DIVISORS
from ..errors import BadInput
from ..trace.stages import Stage
from .foreign import Emit, Forward, add_dump_arguments, job, write_dump

GGML_TYPES = {"f32": 0, "f16": 1}
NOTES = (
    "flash attention off; all positions' logits asked for, or the last layer would compute one position",
    "attn_scores are llama.cpp's times 1/sqrt(H), which it applies inside the soft-max; the cache's padding is cut off",
)


class Tensor(ctypes.Structure):
    """ggml_tensor as ggml.h has it, up to its name; where the library has that is checked at every node."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs a GGUF model in llama.cpp on the CPU and writes its stages, as engine trace does."
    parser.epilog = (
        "needs llama-cpp-python: pip install llama-cpp-python\n"
        "example: engine dump-llamacpp model.gguf llama-trace -p 'What is 2+2?' --kv f32 --decode-steps 2"
    )
    add_dump_arguments(parser)
    parser.add_argument("--kv", choices=GGML_TYPES, default="f16", help="the key/value cache (default: f16)")
    parser.add_argument(
        "-t", "--threads", type=int, default=0, metavar="N", help="threads (default: llama.cpp's choice)"
    )


def absent(stages: Mapping[str, Stage]) -> dict[str, str]:
    """Those of a model's stages that llama.cpp has no node of."""
    return {name: s.unless_ggml for name, s in stages.items() if not s.ggml}


def main(args: argparse.Namespace) -> int:
    try:
        import llama_cpp
    except ModuleNotFoundError as error:
        raise BadInput(f"dump-llamacpp needs {error.name}; get it with: pip install llama-cpp-python") from None
    j = job(args, absent)
    if not j.checkpoint.container.startswith("GGUF"):
        raise BadInput(f"{j.checkpoint.path} is {j.checkpoint.container}; llama.cpp reads GGUF")
    facts = {
        "engine": "llama.cpp",
        "versions": {"llama-cpp-python": llama_cpp.__version__},
        "backend": llama_cpp.llama_print_system_info().decode().strip(" |"),
        "precision": f"ggml's activations, {args.kv} cache",
        "notes": list(NOTES),
    }
    capacity = len(j.ids) + j.plan.decode_steps
    write_dump(j, running(j.checkpoint, j.stages, capacity, args.kv, args.threads), facts)
    return 0


@contextmanager
def running(c: Checkpoint, stages: Mapping[str, Stage], capacity: int, kv: str, threads: int = 0) -> Iterator[Forward]:
    """A forward pass of llama.cpp, with its key/value cache from call to call.

    stages: the model's, by name. capacity: positions of all calls together. kv: the cache's type. Raises BadInput where
    llama.cpp refuses.
    """
    from llama_cpp import llama_cpp as lib

    log: list[str] = []
    keep_log = lib.llama_log_callback(lambda _level, text, _data: log.append(text.decode(errors="replace").strip()))
    lib.llama_log_set(keep_log, ctypes.c_void_p(0))

    def refused(what: str) -> BadInput:
        return BadInput(
            f"{c.path}: llama.cpp cannot {what}: {next((x for x in reversed(log) if x), 'no reason given')}"
        )

    lib.llama_backend_init()
    graph = Graph(c.config, stages)
    settings = lib.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(c.path).encode(), settings)
    if not model:
        raise refused("load it")
    try:
        p = lib.llama_context_default_params()
        p.n_ctx = p.n_batch = p.n_ubatch = capacity  # one pass: a prompt must not be cut into several graphs
        p.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        p.type_k = p.type_v = GGML_TYPES[kv]
        p.cb_eval = keep_callback = lib.ggml_backend_sched_eval_callback(graph.callback)
        if threads:
            p.n_threads = p.n_threads_batch = threads
        context = lib.llama_init_from_model(model, p)
        if not context:
            raise refused(f"make a context of {capacity} positions")
        past = 0

        def forward(tokens: Sequence[int], emit: Emit) -> NDArray[np.floating[Any]]:
            nonlocal past
            batch = lib.llama_batch_init(len(tokens), 0, 1)
            try:
                batch.n_tokens = len(tokens)
                for i, token in enumerate(tokens):
                    batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, past + i, 1
                    batch.seq_id[i][0], batch.logits[i] = 0, 1
                graph.begin(past, emit)
                status = lib.llama_decode(context, batch)
            finally:
                lib.llama_batch_free(batch)
            if graph.error is not None:
                raise graph.error
            if status:
                raise refused(f"decode (status {status})")
            past += len(tokens)
            return np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (c.config.vocab_size,)).copy()

        try:
            yield forward
        finally:
            lib.llama_free(context)
    finally:
        lib.llama_model_free(model)
        lib.llama_log_set(lib.llama_log_callback(0), ctypes.c_void_p(0))
        del keep_log, keep_callback  # ctypes does not keep what it has handed out


class Graph:
    """Turns the nodes of a pass into stages: llama.cpp calls `callback` before and after it computes each.

    nodes: (operation, weight that it reads or else own name, both without the layer): (stage, part of it).
    """

    def __init__(self, c: Config, stages: Mapping[str, Stage]) -> None:
        self.config, self.head_dim, self.ggml = c, c.head_dim, _ggml()
        self.nodes = {
            (node.operation, node.name): (stage, part)
            for stage in stages.values()
            for part, nodes in enumerate(stage.ggml)
            for node in nodes
        }
        self.error: BaseException | None = None

    def begin(self, past: int, emit: Emit) -> None:
        """The next nodes belong to a pass behind `past` positions."""
        self.past, self.emit = past, emit
        self.parts: dict[tuple[int | None, str], dict[int, NDArray[np.float32]]] = {}

    def callback(self, address: int, ask: bool, _data: Any) -> bool:
        """ask: whether the node is wanted; False otherwise stops the pass."""
        try:
            if self.ggml.ggml_get_name(address) != address + Tensor.name.offset:
                raise BadInput("this llama-cpp-python has another layout of ggml_tensor than dump-llamacpp knows")
            t = Tensor.from_address(address)
            found = self._find(address, t)
            if found is not None and not ask:
                self._take(t, *found)
            return found is not None or not ask
        except BaseException as error:  # nothing may pass through C; the pass raises it when C has come back
            self.error = error
            return False

    def _find(self, address: int, t: Tensor) -> tuple[int | None, Stage, int] | None:
        """(layer, stage, part) of a node, None if it is no stage."""
        read = [Tensor.from_address(source).name.decode() for source in t.src if source]
        read = [name for name in read if name not in DIVISORS]
        name = next((n for n in read if n.endswith((".weight", ".bias"))), t.name.decode())
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(.+?)(?:-(\d+))?", name)
        found = match and self.nodes.get((self.ggml.ggml_op_desc(address).decode(), match[2]))
        if not match or not found:
            return None
        stage, part = found
        return None if stage.scope == "whole" else int(match[1] or match[3] or 0), stage, part

    def _take(self, t: Tensor, layer: int | None, stage: Stage, part: int) -> None:
        parts = self.parts.setdefault((layer, stage.name), {})
        parts[part] = _values(t)
        if len(parts) == len(stage.ggml):
            whole = np.concatenate([parts[i] for i in sorted(parts)], axis=-1)
            self.emit(layer, stage.name, self._apart(stage, self._shaped(stage, whole)))

    def _apart(self, stage: Stage, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Queries and keys whose pairs llama.cpp has side by side (models/architecture.py, paired), as halves."""
        if not self.config.architecture.paired or stage.name not in ("qkv_matmul", "q_post_rope", "k_post_rope"):
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
            x = x[0, :, :, : self.past + x.shape[2]]
            return np.tril(x * np.float32(self.head_dim**-0.5), self.past) if stage.kind == "scores" else x
        x = x[0, 0]
        if stage.kind == "mix":
            return x.reshape(len(x), -1, self.head_dim)
        return x[-1] if stage.positions == "last" else x


def _values(t: Tensor) -> NDArray[np.float32]:
    """A copy of the node's values, outermost dimension first."""
    if t.type != GGML_TYPES["f32"]:
        raise BadInput(f"llama.cpp's node {t.name.decode()} is of ggml type {t.type}, not F32")
    shape, strides = tuple(t.ne)[::-1], tuple(t.nb)[::-1]
    room = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 4
    values: NDArray[np.float32] = np.ndarray(shape, np.float32, (ctypes.c_char * room).from_address(t.data), 0, strides)
    return values.copy()


def _ggml() -> ctypes.CDLL:
    """The ggml that llama-cpp-python has brought with it, and has loaded."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = ctypes.CDLL(str(next(p for p in sorted(folder.iterdir()) if "ggml-base" in p.name)))
    ggml.ggml_op_desc.argtypes, ggml.ggml_op_desc.restype = [ctypes.c_void_p], ctypes.c_char_p
    ggml.ggml_get_name.argtypes, ggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_void_p
    return ggml
