"""A torch.save file without torch: a zip whose pickle says which bytes are which tensor. Nothing of it is executed.

A pickle is a program that calls functions by name. Here each name of a fixed list stands for a function of this file
that writes down what it is told; any other name ends the reading. The bytes of tensors lie in the zip beside it.
Source: torch/serialization.py (_save, persistent_id) and torch/_utils.py (_rebuild_*) of PyTorch 2.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ...engine.files.mapped import read_head
from ...errors import BadInput
from .array import BYTES, LAYOUT, Array, Arrays
from .zipped import Member, members

SUFFIXES = (".pt", ".pth", ".bin")
MAX_PICKLE = 1 << 26  # bytes; a dump of a thousand tensors takes a quarter of a megabyte
MAX_VALUES = 1 << 17  # objects that a file may hold, counted as often as they are reached
MAX_DEPTH, MAX_NAME = 64, 1000
MAX_REPEATS = 64  # how often a tensor may hold each of its storage's values: heads are repeated, masks are expanded

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "bool": "BOOL",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """A dtype, or the type of a storage. name: of LAYOUT; empty for bytes whose tensor says what they are."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    kind: Kind
    member: Member


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage. offset, strides: in values."""

    storage: Storage
    kind: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def raw(self) -> NDArray[Any]:
        size = BYTES[self.kind]
        data = self.storage.member.data[self.offset * size :]
        values = data[: len(data) // size * size].view(LAYOUT[self.kind])
        return as_strided(values, self.shape, [s * size for s in self.strides], writeable=False)


class Refused(Exception):  # noqa: N818  (a reason, not a fault)
    """What the file asks for is not on the list."""


def recognises(path: Path) -> bool:
    """A zip by a suffix that torch.save is given; a pickle alone, which older versions wrote, is refused in `read`."""
    if not path.is_file() or path.suffix not in SUFFIXES:
        return False
    return path.suffix != ".bin" or read_head(path, 4) == b"PK\3\4"


def read(path: Path) -> Arrays:
    """Every tensor by the keys and indices that lead to it, mapped. Raises BadInput that names what is not read."""
    if read_head(path, 4) != b"PK\3\4":
        raise BadInput(
            f"{path}: not a zip, as torch.save has written since version 1.6; load it with torch and save it again"
        )
    files = members(path)
    name = next((n for n in files if n == "data.pkl" or n.endswith("/data.pkl")), None)
    if name is None:
        raise BadInput(f"{path}: a zip without data.pkl is no file of torch.save")
    base = name.removesuffix("data.pkl")
    if packed := next((n for n, m in files.items() if not m.stored), None):
        raise BadInput(f"{path}: {packed:.80} is packed; torch.save packs nothing")
    if f"{base}constants.pkl" in files:
        raise BadInput(f"{path}: a TorchScript program, not what torch.save has written of tensors")
    order = files.get(f"{base}byteorder")
    if order is not None and order.data.tobytes() != b"little":
        raise BadInput(f"{path}: its values are big-endian")
    program = files[name].data
    if program.size > MAX_PICKLE:
        raise BadInput(f"{path}: its pickle has {program.size} bytes, and {MAX_PICKLE} is the limit; is it a dump?")
    try:
        value = _Reader(program.tobytes(), files, base).load()
        tensors, rest = flattened(value, path.stem)
    except Refused as error:
        raise BadInput(f"{path}: {error}") from None
    except BadInput:
        raise
    except Exception as error:  # the pickle machine on bytes that nobody vouches for
        raise BadInput(f"{path}: its pickle cannot be read ({type(error).__name__}: {error!s:.80})") from None
    found = [Array(n, f"{path}: {n:.80}", t.kind, t.raw()) for n, t in tensors]
    return Arrays(path, tuple(found), no_arrays=tuple(rest))


def flattened(value: Any, alone: str) -> tuple[list[tuple[str, Tensor]], list[str]]:
    """The tensors by keys and indices, apart by `/`, and the names of what is no tensor.

    alone: the name of a tensor by itself. Raises Refused for two of one name, and for more than can be a dump.
    """
    found: dict[str, Tensor] = {}
    rest: list[str] = []
    visited = 0

    def walk(value: Any, name: str, depth: int) -> None:
        nonlocal visited
        visited += 1 if not isinstance(value, list | tuple) else 1 + len(value)
        if visited > MAX_VALUES or depth > MAX_DEPTH or len(name) > MAX_NAME:
            raise Refused(f"more than {MAX_VALUES} objects, or nested deeper than {MAX_DEPTH}: this is no dump")
        if isinstance(value, Tensor):
            if (key := name or alone) in found:
                raise Refused(f"two tensors are called {key!r:.80}")
            found[key] = value
        elif numbers := _as_numbers(value):
            found[name or alone] = numbers
        elif isinstance(value, dict):
            for k, v in value.items():
                walk(v, f"{name}/{k}" if name else str(k), depth + 1)
        elif isinstance(value, list | tuple):
            for i, v in enumerate(value):
                walk(v, f"{name}/{i}" if name else str(i), depth + 1)
        elif value is not None:
            rest.append(name or alone)

    walk(value, "", 0)
    return list(found.items()), rest


def _as_numbers(value: Any) -> Tensor | None:
    """Ids as a plain list of whole numbers, as if they were a tensor."""
    if not isinstance(value, list | tuple) or not value or not all(type(v) is int and abs(v) < 1 << 62 for v in value):
        return None
    data = np.array(value, "<i8")
    member = _Made(data.view(np.uint8))
    return Tensor(Storage(Kind("I64"), member), "I64", 0, data.shape, (1,))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Made:
    data: NDArray[np.uint8]


class _Operations(dict[int, Any]):
    def __missing__(self, operation: int) -> Any:
        raise Refused(f"its pickle has the operation {bytes([operation])!r}, which no dump of tensors needs")


# What torch.save's pickles are made of. Sets, objects' constructors and the like are not among it.
_PLAIN = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT GLOBAL STACK_GLOBAL REDUCE "
    "BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE"
)


class _Reader(pickle._Unpickler):
    """The pickle machine in Python (that in C makes room for as many memos as a file claims to have), on a fixed list
    of operations and a fixed list of names.

    No dict takes a tuple as a key: to hash one that holds another twice, and so on, takes for ever.
    """

    stack: list[Any]

    def __init__(self, program: bytes, files: Mapping[str, Member], base: str) -> None:
        super().__init__(BytesIO(program), encoding="utf-8")
        self.files, self.base = files, base
        known: dict[tuple[str, str], Any] = {("torch", name): Kind(kind) for name, kind in DTYPES.items()}
        known |= {("torch", name): Kind(kind) for name, kind in STORAGES.items()}
        known |= {(m, n): Kind("") for m in ("torch", "torch.storage") for n in ("UntypedStorage", "TypedStorage")}
        self.known: dict[tuple[str, str], Any] = known | {
            ("collections", "OrderedDict"): _ordered,
            ("torch", "Size"): _size,
            ("torch", "device"): _device,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or not all(type(k) in (str, int) for k in pairs[::2]):
            raise Refused("its pickle has a dict whose keys are neither text nor numbers")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())  # type: ignore[attr-defined]

    def load_build(self) -> None:
        """What an object's attributes are, as the metadata of a state_dict: nothing that is read."""
        self.stack.pop()

    dispatch = _Operations(
        {getattr(pickle, n)[0]: pickle._Unpickler.dispatch[getattr(pickle, n)[0]] for n in _PLAIN.split()}
    )
    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems, pickle.BUILD[0]: load_build}

    def find_class(self, module: str, name: str) -> Any:
        if (found := self.known.get((module, name))) is None:
            raise Refused(
                f"its pickle asks for {module:.60}.{name:.60}, which is not on the list of what a dump of tensors "
                "needs; nothing was executed; save plain tensors in dicts, lists and tuples"
            )
        return found

    def persistent_load(self, pid: Any) -> Storage:
        """('storage', type, key, device, count of values): the member that holds a storage."""
        match pid:
            case ("storage", Kind() as kind, str(key), str(), int()):
                if (member := self.files.get(f"{self.base}data/{key}")) is not None:
                    return Storage(kind, member)
                raise Refused(f"the bytes of storage {key!r:.40} are not in the zip")
        raise Refused("it refers to something else than a storage")


def _ordered() -> dict[Any, Any]:
    return {}


def _size(sizes: Any) -> Any:
    return sizes


def _device(*_: Any) -> None:
    return None


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or not storage.kind.name:
        raise Refused("a tensor without a storage of known values")
    return _checked(storage, storage.kind.name, offset, shape, strides)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, Kind) or not dtype.name:
        raise Refused("a tensor without a storage or a type that is known")
    return _checked(storage, dtype.name, offset, shape, strides)


def _checked(storage: Storage, kind: str, offset: Any, shape: Any, strides: Any) -> Tensor:
    """The tensor, whose every value lies in its storage."""

    def whole(values: Any) -> bool:
        return isinstance(values, tuple) and all(type(n) is int and 0 <= n < 1 << 48 for n in values)

    if not whole((offset,)) or not whole(shape) or not whole(strides) or len(shape) != len(strides) or len(shape) > 8:
        raise Refused("a tensor whose shape and strides are not up to 8 whole numbers each")
    held = storage.member.data.size // BYTES[kind]
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if prod(shape) else 0
    if prod(shape) and last >= held:
        raise Refused(f"a tensor reaches value {last} of a storage of {held}; is the file cut?")
    if prod(shape) > held * MAX_REPEATS:
        raise Refused(f"a tensor of shape {shape} repeats a storage of {held} values")
    return Tensor(storage, kind, offset, shape, strides)
