"""APRT files: the bytes that aprender's own dumps have, every bit kept, every wrong file refused in one line."""

from __future__ import annotations

import os
import struct
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from qwenref.errors import BadInput
from qwenref.trace import aprt

NAN = np.array([0x7FC00000, 0xFFC00001, 0x7F800001, 0x80000000, 0xFF800000, 0x00000001], np.uint32).view(np.float32)


def test_header_of_a_published_embedding(tmp_path: Path) -> None:
    """paiml/aprender, evidence/ship-007-pr-c-real-2026-05-03/findings.md: the 7B's layer-0/embedding.bin, 7 tokens."""
    aprt.write(tmp_path / "embedding.bin", 0, np.zeros((7, 3584), np.float32))
    data = (tmp_path / "embedding.bin").read_bytes()
    assert len(data) == 100364
    assert data[:12] == bytes.fromhex("41505254 00000000 00620000")


def test_header_of_a_published_lm_head(tmp_path: Path) -> None:
    """The same document: lm_head.bin, whose first logit is 2.328."""
    first = struct.unpack("<f", bytes.fromhex("45ff1440"))[0]
    aprt.write(tmp_path / "lm_head.bin", None, np.full(152064, first, np.float32))
    data = (tmp_path / "lm_head.bin").read_bytes()
    assert len(data) == 608268
    assert data[:16] == bytes.fromhex("41505254 ffffffff 00520200 45ff1440")


@given(
    bits=arrays(np.uint32, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=7)),
    layer=st.one_of(st.none(), st.integers(0, 0xFFFFFFFE)),
)
def test_every_bit_pattern_comes_back(
    bits: np.ndarray, layer: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("aprt") / "x.bin"
    digest = aprt.write(path, layer, bits.view(np.float32))
    back = aprt.read(path)
    assert back.layer == layer
    assert back.values.view(np.uint32).tolist() == bits.reshape(-1).tolist()
    assert digest == sha256(path.read_bytes()).hexdigest()


def test_strides_and_slabs_are_written_in_row_major_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aprt, "_SLAB", 10)
    x = np.arange(4 * 5 * 6, dtype=np.float32).reshape(6, 5, 4).transpose(2, 1, 0)
    aprt.write(tmp_path / "x.bin", 3, x)
    assert aprt.read(tmp_path / "x.bin").values.tolist() == x.reshape(-1).tolist()


def test_float64_is_rounded_to_nearest(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal(1000)
    aprt.write(tmp_path / "x.bin", 0, x)
    assert np.array_equal(aprt.read(tmp_path / "x.bin").values, x.astype(np.float32))


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    aprt.write(tmp_path / "x.bin", 0, NAN)
    with pytest.raises(FileExistsError):
        aprt.write(tmp_path / "x.bin", 0, NAN)


def test_counts_over_32_bits_are_refused_not_wrapped(tmp_path: Path) -> None:
    """Scores of 28 heads of a prompt of 12,386 tokens: 4,295,445,888 values. The array is a view of one value."""
    scores_NTS = np.broadcast_to(np.float32(0), (28, 12386, 12386))
    with pytest.raises(BadInput, match="do not fit an APRT file"):
        aprt.write(tmp_path / "attn_scores.bin", 0, scores_NTS)
    assert list(tmp_path.iterdir()) == []


HEAD = b"APRT" + struct.pack("<II", 5, 3)
HOSTILE = {
    "empty": (b"", "too short"),
    "four bytes": (b"APRT", "too short"),
    "eleven bytes": (HEAD[:11], "too short"),
    "wrong magic": (b"APRX" + HEAD[4:] + bytes(12), "not an APRT stage file"),
    "an APR model": (b"APR\0" + HEAD[4:] + bytes(12), "not an APRT stage file"),
    "short by one": (HEAD + bytes(11), "truncated"),
    "header alone": (HEAD, "truncated"),
    "one byte more": (HEAD + bytes(13), "trailing bytes"),
    "one value more": (HEAD + bytes(16), "trailing bytes"),
    "claims 16 GiB": (b"APRT" + struct.pack("<II", 0, 0xFFFFFFFF) + bytes(12), "truncated"),
    "claims 4 GiB": (b"APRT" + struct.pack("<II", 0, 1 << 30) + bytes(12), "truncated"),
    "count 0 with values": (b"APRT" + struct.pack("<II", 0, 0) + bytes(12), "trailing bytes"),
}


@pytest.mark.parametrize(("data", "says"), HOSTILE.values(), ids=HOSTILE)
def test_wrong_files_are_refused_in_one_line(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=says) as error:
        aprt.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@given(
    data=st.one_of(
        st.binary(max_size=64),
        st.builds(lambda n, body: b"APRT" + struct.pack("<II", 0, n) + body, st.integers(0, 9), st.binary(max_size=40)),
    )
)
def test_any_bytes_are_read_whole_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("aprt") / "x.bin"
    path.write_bytes(data)
    try:
        values = aprt.read(path).values
    except BadInput:
        return
    assert data[:4] == b"APRT" and len(data) == 12 + 4 * len(values)


def test_an_empty_tensor_is_a_header(tmp_path: Path) -> None:
    aprt.write(tmp_path / "x.bin", 1, np.empty((0, 4), np.float32))
    assert (tmp_path / "x.bin").stat().st_size == 12
    assert aprt.read(tmp_path / "x.bin").values.size == 0


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe must not be waited for."""
    os.mkfifo(tmp_path / "pipe.bin")
    for path, says in ((tmp_path, "not a regular file"), (tmp_path / "no.bin", "no such file")):
        with pytest.raises(BadInput, match=says):
            aprt.read(path)
    with pytest.raises(BadInput, match="not a regular file"):
        aprt.read(tmp_path / "pipe.bin")
