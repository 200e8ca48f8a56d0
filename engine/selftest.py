"""Does this machine compute the bits that every machine computes? A small model's, against digests of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256, shake_256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant import f32
from ..quant.tensor import QTensor, format_of
from .bind import bind
from .config import Config
from .forward import forward
from .generate import prefill
from .kernels import Backend, backend
from .tap import SILENT, At
from .weights import Weights

# What the CPU backend computes, by precision: `engine doctor --json` prints them. They are the same on every path and
# at any number of threads (tests/engine/kernels/test_cpu_paths.py).
DIGESTS = {
    "f32": "5dbca0430edcdfecbe475f831cce9016",
    "int16": "c11b8b808a99d4755f22d3c82d2cc431",
    "int8": "ad0fd7f93132d0387ab686fc6dba7974",
}

CONFIG = Config("qwen2", 256, 2, 4, 1, 64, 256, 256, 64, 1e6, float(np.float32(1e-6)), False)
# The formats of a Q4_K_M as published. The scale that gives random codes a standard deviation of about 1/16, which is
# 1 / sqrt(256): a power of two, so that nothing here is rounded.
SCALES = {"Q4_K": 2.0**-12, "Q5_0": 2.0**-7, "Q6_K": 2.0**-14, "Q8_0": 2.0**-10}
FORMATS = {"embed": "Q8_0", "v": "Q8_0", "ffn_down": "Q4_K", "lm_head": "Q6_K"}  # the rest: Q5_0
PROMPT, AFTER = 37, 3  # positions at once, and one by one


def random_bytes(name: str, count: int) -> NDArray[np.uint8]:
    """The same on every machine and with every version of NumPy."""
    return np.frombuffer(shake_256(name.encode()).digest(count), np.uint8).copy()


def tensor(role: str, name: str, shape: tuple[int, ...]) -> QTensor:
    """Random codes under one scale; vectors are float32, norms near 1, biases near 0."""
    if len(shape) == 1:
        middle, spread = (0, 128) if role.endswith("bias") else (1, 512)
        values = middle + (random_bytes(name, shape[0]).astype(np.int32) - 128) / spread  # exact
        return QTensor("F32", shape, f32.encode(values.astype(np.float32)).reshape(-1), name)
    form = FORMATS.get(role, "Q5_0")
    f = format_of(form)
    data = random_bytes(name, shape[0] * shape[1] // f.block * f.bytes)
    blocks = data.view(f.struct)
    blocks[f.scale] = SCALES[form]
    if f.minimum is not None:
        blocks[f.minimum] = 7.5 * SCALES[form]  # the mean code: values average to about nothing
    return QTensor(form, shape, data, name)


def weights() -> Weights:
    tensors = CONFIG.architecture.tensors_of(CONFIG.num_hidden_layers)
    made = (tensor(t.role, t.ggml.format(i), t.shape(CONFIG.sizes)) for t, i in tensors)
    return bind(CONFIG, {w.name: w for w in made})


class Hashing:
    """A tap that adds every stage's bits to a digest."""

    def __init__(self, to_host: Callable[[Any], NDArray[Any]]) -> None:
        self.digest, self._to_host = sha256(), to_host

    def layer(self, index: int) -> At:
        return self.whole

    def whole(self, stage: str, value: Any) -> Any:
        self.digest.update(np.ascontiguousarray(self._to_host(value)).tobytes())
        return value


def digest(ops: Backend, w: Weights, precision: str, tokens: NDArray[np.int32]) -> str:
    """Of every stage of a prompt and of the tokens after it, looked at; then of the logits of the same, batched and
    replayed, as a user's run has them.
    """
    tap = Hashing(ops.to_host)
    cache = ops.new_cache(CONFIG, len(tokens), precision)
    rest = [tokens[i : i + 1] for i in range(PROMPT, len(tokens))]
    for part in (tokens[:PROMPT], *rest):
        forward(part, w, cache, ops, tap)
    again = ops.new_cache(CONFIG, len(tokens), precision)
    tap.whole("lm_head", prefill(tokens[:PROMPT].tolist(), w, again, ops))
    step = ops.record(lambda ops, token_T: forward(token_T, w, again, ops, SILENT), again)
    for part in rest:
        tap.whole("lm_head", step(part))
    return tap.digest.hexdigest()[:32]


def found(progress: Callable[[int, int], None]) -> Iterator[tuple[str, str]]:
    """Precision, and the digest of what the CPU backend computes here.

    progress(done, total) is called where kernels are compiled first.
    """
    ops, w = backend("cpu"), weights()
    tokens = random_bytes("tokens", PROMPT + AFTER).astype(np.int32)
    for precision in ops.PRECISIONS:
        ops.compile_kernels(w, precision, progress)
        yield precision, digest(ops, ops.prepare(w, precision), precision, tokens)
