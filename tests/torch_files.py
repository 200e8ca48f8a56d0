"""Files as torch.save writes them, without torch, from the format's description; and hostile ones, too."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

STORAGE = {
    "<f8": "DoubleStorage",
    "<f4": "FloatStorage",
    "<f2": "HalfStorage",
    "<i8": "LongStorage",
    "<i4": "IntStorage",
}


class Bf16:
    """Bits of bfloat16."""

    def __init__(self, bits: np.ndarray) -> None:
        self.bits = bits


def text(s: str) -> bytes:
    raw = s.encode()
    return pickle.BINUNICODE + len(raw).to_bytes(4, "little") + raw


def number(n: int) -> bytes:
    raw = n.to_bytes(8, "little", signed=True)
    return pickle.LONG1 + bytes([8]) + raw


def called(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def numbers(values: Any) -> bytes:
    return pickle.MARK + b"".join(map(number, values)) + pickle.TUPLE


class Writer:
    def __init__(self) -> None:
        self.storages: list[bytes] = []

    def tensor(self, x: np.ndarray | Bf16, *, strides: tuple[int, ...] | None = None, offset: int = 0) -> bytes:
        bits, kind = (x.bits, "BFloat16Storage") if isinstance(x, Bf16) else (x, STORAGE[x.dtype.newbyteorder("<").str])
        key = str(len(self.storages))
        self.storages.append(np.ascontiguousarray(bits).tobytes())
        own = tuple(s // bits.itemsize for s in np.ascontiguousarray(bits).strides)
        storage = pickle.MARK + text("storage") + called("torch", kind) + text(key) + text("cpu") + number(bits.size)
        return (
            called("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + storage + pickle.TUPLE + pickle.BINPERSID
            + number(offset) + numbers(bits.shape) + numbers(strides or own) + pickle.NEWFALSE
            + called("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE
        )  # fmt: skip

    def value(self, x: Any) -> bytes:
        if isinstance(x, np.ndarray | Bf16):
            return self.tensor(x)
        if isinstance(x, dict):
            items = b"".join(text(k) + self.value(v) for k, v in x.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        if isinstance(x, list):
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(self.value, x)) + pickle.APPENDS
        if isinstance(x, tuple):
            return pickle.MARK + b"".join(map(self.value, x)) + pickle.TUPLE
        return {type(None): pickle.NONE}.get(type(x)) or (text(x) if isinstance(x, str) else number(x))

    def write(self, path: Path, program: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", compression) as file:
            file.writestr("archive/data.pkl", pickle.PROTO + b"\2" + program + pickle.STOP)
            file.writestr("archive/byteorder", "little")
            for i, data in enumerate(self.storages):
                file.writestr(f"archive/data/{i}", data)
            file.writestr("archive/version", "3\n")
        return path


def save(path: Path, x: Any) -> Path:
    w = Writer()
    return w.write(path, w.value(x))
