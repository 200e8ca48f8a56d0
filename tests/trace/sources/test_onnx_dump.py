"""Tensors of ONNX: what its own library wrote, and what is no such file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwenref.errors import BadInput
from qwenref.trace.sources import onnx_dump
from qwenref.trace.sources.array import decoded

from ...onnx_files import block, tensor, varint, write_nodes

X = np.array([[1, -2, 3], [4, 5, 6.5]], np.float32)
# numpy_helper.from_array and helper.make_tensor of onnx 1.23.2, SerializeToString
WRITTEN = {
    "raw": (b"\x08\x02\x08\x03\x10\x01B /model/layers.0/mlp/Mul_output_0J\x18" + X.tobytes(), X),
    "float_data": (b'\x08\x02\x08\x03\x10\x01"\x18' + X.tobytes() + b"B\x01f", X),
    "float16": (b"\x08\x02\x10\n*\x05\x80x\x80\x80\x03B\x01h", [1, -2]),
    "bfloat16": (b"\x08\x02\x10\x10*\x05\x80\x7f\x80\x80\x03B\x01b", [1, -2]),
    "int64": (b"\x08\x02\x10\x07:\x0b\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01B\x01i", [3, -1]),
    "int32": (b"\x08\x02\x10\x06*\x0b\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01B\x01n", [3, -1]),
    "uint16": (b"\x08\x02\x10\x04*\x04\x03\xff\xff\x03B\x01s", [3, 65535]),
    "uint32": (b"\x08\x02\x10\x0cB\x01uZ\x06\x03\xff\xff\xff\xff\x0f", [3, (1 << 32) - 1]),
    "uint64": (b"\x08\x02\x10\rB\x01wZ\x06\x03\x80\x80\x80\x80 ", [3, 1 << 33]),
    "float64": (b"\x08\x01\x10\x0bB\x01dR\x08\x00\x00\x00\x00\x00\x00\xe0?", [0.5]),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_what_onnx_wrote(how: str, tmp_path: Path) -> None:
    data, values = WRITTEN[how]
    (tmp_path / "x.tensorproto").write_bytes(data)
    (a,) = onnx_dump.read(tmp_path / "x.tensorproto").arrays
    np.testing.assert_array_equal(decoded(a.kind, a.raw), values)
    assert how != "raw" or a.name == "/model/layers.0/mlp/Mul_output_0"


def test_our_own_writer_is_onnxs() -> None:
    assert tensor("/model/layers.0/mlp/Mul_output_0", X) == WRITTEN["raw"][0]


def test_a_rank_stands_in_the_files_name(tmp_path: Path) -> None:
    write_nodes(tmp_path, {"/a/b": X}, "_rank_3")
    (a,) = onnx_dump.read(tmp_path / "_a_b_rank_3.tensorproto").arrays
    assert a.name == "rank3//a/b"


GOOD = tensor("x", X)
HOSTILE = {
    "cut": (GOOD[:-1], "is the file cut"),
    "empty": (b"", "data type 0 of ONNX is not read"),
    "no protobuf": (b"\x0b\xff\xff", "no protobuf message"),
    "a number without end": (b"\x08" + b"\xff" * 12, "no protobuf message"),
    "strings": (b"\x08\x01\x10\x08" + block(6, b"abc"), "data type 8 of ONNX"),
    "a model": (b"\x08\x08" + block(2, b"pytorch") + block(7, b"graph"), "data type 0 of ONNX"),
    "elsewhere": (b"\x08\x02\x10\x01" + block(13, b"location"), "lie in another file"),
    "more values": (b"\x08\x02" + GOOD, "24 bytes of values, where"),
    "negative": (b"\x08" + varint((1 << 64) - 1) + b"\x10\x01", "shape"),
    "vast": (b"\x08" + varint(1 << 47) + b"\x08" + varint(1 << 47) + b"\x10\x06", "0 values, where"),
    "vast floats": (b"\x08" + varint(1 << 47) + b"\x08" + varint(1 << 47) + b"\x10\x01", "0 bytes of values"),
    "many axes": (b"\x08\x01" * 9 + b"\x10\x01", "up to 8 whole numbers"),
    "many fields": (b"\x08\x01" * 5000, "more than 4096 fields"),
    "twice": (GOOD + GOOD, "stands twice"),
    "a name that is no text": (b"\x10\x01" + block(8, b"\xff\xfe"), "no text"),
    "a long name": (b"\x10\x01" + block(8, b"x" * 5000), "the limit"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_tensor_is_refused(name: str, tmp_path: Path) -> None:
    data, says = HOSTILE[name]
    (tmp_path / "x.pb").write_bytes(data)
    with pytest.raises(BadInput, match=says) as error:
        onnx_dump.read(tmp_path / "x.pb")
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(tmp_path)) + 300
