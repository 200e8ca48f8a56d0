"""The members of a zip as bytes: those that were stored are views of the file's map, packed ones are bounded.

np.savez and torch.save store. A packed member takes memory that a file's size does not bound: so its own size must.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from ...engine.files.mapped import map_file
from ...errors import BadInput

MAX_PACKED = 1 << 31  # bytes of all packed members of a file, unpacked
LOCAL = Struct(
    "<4s22xHH"
)  # the header before a member's bytes (APPNOTE.TXT 4.3.7): lengths of its name and extra field


@dataclass(frozen=True)
class Member:
    """stored: its bytes lie in the file as they are."""

    path: Path
    info: zipfile.ZipInfo
    file: NDArray[np.uint8]

    @property
    def stored(self) -> bool:
        return self.info.compress_type == zipfile.ZIP_STORED

    @cached_property
    def data(self) -> NDArray[np.uint8]:
        """Mapped, or unpacked once. Raises BadInput where the zip lies."""
        where = f"{self.path}: {self.info.filename:.80}"
        if self.stored:
            start = self.info.header_offset
            head = self.file[start : start + LOCAL.size].tobytes()
            if len(head) < LOCAL.size or not head.startswith(b"PK\3\4"):
                raise BadInput(f"{where}: the zip has no member where it says")
            _, name, extra = LOCAL.unpack(head)
            begin = start + LOCAL.size + name + extra
            data = self.file[begin : begin + self.info.file_size]
            if self.info.compress_size != self.info.file_size or data.size != self.info.file_size:
                raise BadInput(f"{where}: {data.size} bytes of {self.info.file_size} are there; is the file cut?")
            return data
        try:
            with zipfile.ZipFile(self.path) as file, file.open(self.info) as packed:
                raw = packed.read(self.info.file_size + 1)
        except Exception as error:  # zlib's, lzma's, zipfile's own and the system's
            raise BadInput(f"{where}: cannot be unpacked ({type(error).__name__})") from None
        if len(raw) != self.info.file_size:
            raise BadInput(f"{where}: unpacks to more or less than the {self.info.file_size} bytes that the zip says")
        return np.frombuffer(raw, np.uint8)


def members(path: Path) -> Mapping[str, Member]:
    """The files of a zip by their names. Raises BadInput for what is no zip, for two of one name, for what is locked,
    and for packed members of more than MAX_PACKED bytes together."""
    mapped = map_file(path)
    try:
        with zipfile.ZipFile(path) as file:
            infos = [i for i in file.infolist() if not i.is_dir()]
    except Exception as error:  # whatever the standard library makes of a directory that nobody vouches for
        raise BadInput(f"{path}: not a zip that can be read ({type(error).__name__}: {error!s:.80})") from None
    found = {i.filename: Member(path, i, mapped) for i in infos}
    if len(found) != len(infos):
        raise BadInput(f"{path}: the zip holds two members of one name")
    if locked := next((i.filename for i in infos if i.flag_bits & 1), None):
        raise BadInput(f"{path}: {locked:.80} is encrypted")
    if (packed := sum(m.info.file_size for m in found.values() if not m.stored)) > MAX_PACKED:
        raise BadInput(
            f"{path}: its packed arrays take {packed} bytes unpacked, and {MAX_PACKED} is the limit; "
            "save them unpacked (np.savez, not np.savez_compressed)"
        )
    return found
