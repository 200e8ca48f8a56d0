"""The header of a GGUF file: key/value pairs and the list of tensors (ggml/docs/gguf.md). Nothing in it is trusted.

Every length is held against what is left of the file before anything is allocated or skipped for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from struct import Struct
from typing import Any

import numpy as np

from ...errors import BadInput
from . import MAX_TENSORS

# Bounds on the time and memory that a hostile file can take. Qwen2's header takes 6 MB, nearly all of it vocabulary.
MAX_HEADER = 64 << 20  # bytes
MAX_KEYS = 1 << 16
MAX_KEY = (1 << 16) - 1  # bytes, by the specification
MAX_NAME = 63  # bytes of a tensor's name: GGML_MAX_NAME less its final NUL
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_ALIGNMENT = 1 << 16  # the largest memory page in use

# gguf_type, in its order, and the codes, for struct and NumPy alike, of those that have a fixed size.
KINDS = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "array", "u64", "i64", "f64")
NUMBERS = {kind: Struct("<" + code) for kind, code in enumerate("BbHhIifB  Qqd") if code != " "}
BOOL, STRING, ARRAY = KINDS.index("bool"), KINDS.index("str"), KINDS.index("array")
U32, U64 = NUMBERS[KINDS.index("u32")], NUMBERS[KINDS.index("u64")]


@dataclass(frozen=True, slots=True)
class Array:
    """An array that still lies in the file: the type of its elements, their number, where they begin."""

    kind: int
    count: int
    at: int


class Metadata(Mapping[str, Any]):
    """The key/value pairs of a file, in its order: numbers, bools and strings; an array is read when asked for.

    An array of strings comes as a list of str, another as a read-only NumPy array.
    """

    def __init__(self, path: Path, data: memoryview, values: dict[str, Any], kinds: dict[str, str]) -> None:
        self._path, self._data, self._values, self._kinds = path, data, values, kinds

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        return self._read(key, value) if isinstance(value, Array) else value

    def __contains__(self, key: object) -> bool:
        return key in self._values  # Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def kind(self, key: str) -> str:
        """The type of a key's value: "u32", "str", "[str]"; "nothing" where there is no such key."""
        return self._kinds.get(key, "nothing")

    def bad(self, key: str, what: str) -> BadInput:
        """The error to raise for a key's value."""
        return BadInput(f"{self._path}: key {key} {what}")

    def _read(self, key: str, a: Array) -> Any:
        if a.kind != STRING:
            return np.frombuffer(self._data, "?" if a.kind == BOOL else NUMBERS[a.kind].format, a.count, a.at)
        data, at, length = self._data, a.at, U64.unpack_from
        strings: list[str] = []
        try:
            for _ in range(a.count):
                begin = at + 8
                at = begin + length(data, at)[0]
                strings.append(str(data[begin:at], "utf-8"))
        except UnicodeDecodeError:
            raise self.bad(key, f"holds a string, number {len(strings)} at byte {begin}, that is not UTF-8") from None
        return strings


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as the header lists it. dims: innermost first, as the file has them; offset: in the data section."""

    name: str
    dims: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """data_at: the byte at which the data section begins."""

    version: int
    metadata: Metadata
    tensors: list[TensorInfo]
    alignment: int
    data_at: int


class Cursor:
    """Reads on from where it stands, and never past the end."""

    def __init__(self, path: Path, file: memoryview) -> None:
        self.path, self.at = path, 0
        self.data = file[:MAX_HEADER]
        self.whole = len(file) <= MAX_HEADER

    def bad(self, what: str) -> BadInput:
        return BadInput(f"{self.path}: {what} (at byte {self.at})")

    def need(self, count: int, what: str) -> None:
        """Raises BadInput unless that many bytes are left."""
        left = len(self.data) - self.at
        if count > left:
            end = "the file" if self.whole else f"the longest header that is read ({MAX_HEADER >> 20} MiB)"
            raise self.bad(f"{what} takes {count} bytes, and {end} ends after {left}; is the download complete?")

    def number(self, form: Struct, what: str) -> Any:
        self.need(form.size, what)
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def string(self, what: str, longest: int = MAX_HEADER) -> str:
        length = self.number(U64, f"the length of {what}")
        if length > longest:
            raise self.bad(f"{what} has {length} bytes, and {longest} is the limit")
        self.need(length, what)
        try:
            text = str(self.data[self.at : self.at + length], "utf-8")
        except UnicodeDecodeError:
            raise self.bad(f"{what} is not UTF-8") from None
        self.at += length
        return text

    def count(self, what: str, most: int) -> int:
        n: int = self.number(U64, f"the number of {what}s")
        if n > most:
            raise self.bad(f"the header claims {n} {what}s, and {most} is the limit")
        return n

    def value(self, kind: int, key: str) -> Any:
        what = f"the value of key {key[:80]!r}"
        if kind == STRING:
            return self.string(what)
        if kind == ARRAY:
            return self.array(what)
        if kind not in NUMBERS:
            raise self.bad(f"{what} is of unknown type {kind}")
        number = self.number(NUMBERS[kind], what)
        if kind != BOOL:
            return number
        if number > 1:
            raise self.bad(f"{what} is a bool of {number}")
        return bool(number)

    def array(self, what: str) -> Array:
        kind = self.number(U32, f"the element type of {what}")
        count = self.number(U64, f"the element count of {what}")
        if kind == ARRAY:
            raise self.bad(f"{what} is an array of arrays, which no reader of GGUF supports")
        if kind != STRING and kind not in NUMBERS:
            raise self.bad(f"{what} is an array of unknown type {kind}")
        self.need(count * (8 if kind == STRING else NUMBERS[kind].size), f"{what}, {count} of {KINDS[kind]},")
        found = Array(kind, count, self.at)
        if kind == STRING:
            self.skip_strings(count, what)
        else:
            self.at += count * NUMBERS[kind].size
            if kind == BOOL and max(self.data[found.at : self.at], default=0) > 1:
                raise self.bad(f"{what} holds a bool that is neither 0 nor 1")
        return found

    def skip_strings(self, count: int, what: str) -> None:
        """300,000 strings stand before the list of tensors: this loop is most of the time that opening a file takes."""
        data, at, last, length = self.data, self.at, len(self.data) - 8, U64.unpack_from
        for i in range(count):
            if at > last:
                raise self.bad(f"{what}: string {i} of {count} lies past the end; is the download complete?")
            at += 8 + length(data, at)[0]
        if at > last + 8:
            raise self.bad(f"{what}: the last of {count} strings ends past the end; is the download complete?")
        self.at = at

    def tensor(self) -> TensorInfo:
        name = self.string("a tensor's name", MAX_NAME)
        if not name or "\0" in name:
            raise self.bad(f"a tensor is named {name!r}")
        what = f"tensor {name!r}"
        rank = self.number(U32, f"the rank of {what}")
        if not 1 <= rank <= MAX_DIMS:
            raise self.bad(f"{what} has {rank} dimensions; it must have 1 to {MAX_DIMS}")
        dims = tuple(self.number(U64, f"a dimension of {what}") for _ in range(rank))
        if not all(0 < d < 1 << 63 for d in dims):
            raise self.bad(f"{what} has dimensions {dims}")
        return TensorInfo(
            name, dims, self.number(U32, f"the type of {what}"), self.number(U64, f"the offset of {what}")
        )


def read_header(path: Path, file: memoryview) -> Header:
    """The header of a file that begins with GGUF. Raises BadInput with the file, what is wrong and the byte."""
    c = Cursor(path, file)
    c.at = 4
    version = c.number(U32, "the version")
    if version and not version & 0xFFFF:
        raise c.bad("this GGUF file is big-endian, which is not supported; convert the original weights again")
    if version not in (2, 3):
        raise c.bad(f"GGUF version {version} is not supported; 2 and 3 are")
    tensor_count, key_count = c.count("tensor", MAX_TENSORS), c.count("key", MAX_KEYS)

    values: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for _ in range(key_count):
        key = c.string("a key", MAX_KEY)
        if not key or key in values:
            raise c.bad(f"duplicate key {key[:80]!r}" if key else "a key is empty")
        kind = c.number(U32, f"the type of key {key[:80]!r}")
        value = values[key] = c.value(kind, key)
        kinds[key] = f"[{KINDS[value.kind]}]" if kind == ARRAY else KINDS[kind]

    alignment = values.get("general.alignment", 32)  # the specification's default
    power_of_two = kinds.get("general.alignment", "u32") == "u32" and alignment.bit_count() == 1
    if not (power_of_two and 8 <= alignment <= MAX_ALIGNMENT):
        raise c.bad(
            f"general.alignment is {brief(alignment)}; it must be a u32, a power of two from 8 to {MAX_ALIGNMENT}"
        )

    tensors: list[TensorInfo] = []
    names: set[str] = set()
    for _ in range(tensor_count):
        tensors.append(c.tensor())
        if tensors[-1].name in names:
            raise c.bad(f"duplicate tensor {tensors[-1].name!r}")
        names.add(tensors[-1].name)
    return Header(version, Metadata(path, c.data, values, kinds), tensors, alignment, -(-c.at // alignment) * alignment)
