# SPDX-License-Identifier: Apache-2.0
"""Dumps an engine's tensors for `engine verify` (qwenref), as one safetensors file. One file to copy; needs NumPy only.

    import qwenref_dump as q
    q.dump("tokens", None, ids)  # the ids of this forward pass, once
    q.dump("attn_norm", layer, x)  # [rows, columns]; attn_scores and attn_softmax [heads, rows, keys]
    q.dump("lm_head", None, logits)  # layer None: the whole model's

Nothing happens unless the environment has QWENREF_DUMP=FILE. A stage that was dumped already begins the next pass. One
thread at a time. Between two calls the file is whole, so an engine that dies leaves what it had. Anything that
numpy.asarray takes is an array; bfloat16 (ml_dtypes) keeps its bits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

ROOM = 4 << 20  # bytes of header: some 40,000 tensors
KINDS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
KINDS |= {"int64": "I64", "int32": "I32", "uint32": "U32"}


class Writer:
    """A file that tensors are added to. facts: text, what is to be known of the run."""

    def __init__(self, path: str, **facts: str) -> None:
        self.file: IO[bytes] = open(path, "w+b")  # noqa: SIM115  (it stays open)
        told = {"format": "qwenref-dump-1", "producer": "qwenref_dump.py", **facts}
        text = json.dumps({"__metadata__": told}, separators=(",", ":")).encode()
        self.used, self.bytes, self.call, self.names = len(text), 0, 0, set[str]()
        self.file.write(ROOM.to_bytes(8, "little") + text.ljust(ROOM))
        self.file.flush()

    def dump(self, stage: str, layer: int | None, values: Any) -> None:
        """One stage, of the pass that is running. Raises ValueError for values of another kind, or a full header."""
        x = np.asarray(values)
        if (kind := KINDS.get(x.dtype.name)) is None:
            raise ValueError(f"{stage}: values of {x.dtype}; {', '.join(KINDS)} can be dumped")
        name = stage if layer is None else f"layer-{layer}/{stage}"
        self.dump_bytes(name, kind, x.shape, np.ascontiguousarray(x).tobytes())

    def next_pass(self) -> None:
        """What comes is of another forward pass, if something came of this one."""
        if self.names:
            self.call, self.names = self.call + 1, set()

    def dump_bytes(self, name: str, kind: str, shape: Sequence[int], data: bytes) -> None:
        """The same of values as they lie in memory. kind: in safetensors' words, as BF16."""
        if name in self.names:
            self.next_pass()
        self.names.add(name)
        key = f"phase-{self.call}/{name}" if self.call else name
        entry = {"dtype": kind, "shape": list(shape), "data_offsets": [self.bytes, self.bytes + len(data)]}
        text = f",{json.dumps(key)}:{json.dumps(entry, separators=(',', ':'))}}}".encode()
        if self.used + len(text) > ROOM:
            raise ValueError(f"{key}: the header has {ROOM} bytes, and they are full")
        self.file.seek(0, os.SEEK_END)
        self.file.write(data)
        self.file.seek(8 + self.used - 1)  # the brace that closes the header
        self.file.write(text)
        self.file.flush()
        self.used, self.bytes = self.used + len(text) - 1, self.bytes + len(data)


_writer: Writer | None = None


def dump(stage: str, layer: int | None, values: Any) -> None:
    """Into the file that QWENREF_DUMP names, if it names one."""
    global _writer  # noqa: PLW0603  (one file a process)
    if _writer is None:
        if not (path := os.environ.get("QWENREF_DUMP")):
            return
        _writer = Writer(path)
    _writer.dump(stage, layer, values)
