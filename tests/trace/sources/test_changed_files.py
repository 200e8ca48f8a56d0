"""Files whose bytes are not what their writer left: arrays, or one line. Nothing else, whatever the container."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from qwenref.errors import BadInput
from qwenref.trace.sources import reader_of
from qwenref.trace.sources.array import decoded

from ...onnx_files import tensor

X = np.arange(12, dtype=np.float32).reshape(3, 4)
IDS = np.array([3, 1, 2], np.int32)


def safetensors(folder: Path) -> Path:
    save_file({"tokens": IDS, "layer-0/attn_norm": X}, folder / "x.safetensors", {"format": "qwenref-dump-1"})
    return folder / "x.safetensors"


def npz(folder: Path) -> Path:
    np.savez(folder / "x.npz", tokens=IDS, final_norm=X)
    return folder / "x.npz"


def packed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "x.npz", tokens=IDS, final_norm=X)
    return folder / "x.npz"


def npy(folder: Path) -> Path:
    np.save(folder / "final_norm.npy", X)
    return folder / "final_norm.npy"


def manifest(folder: Path) -> Path:
    (folder / "x.bin").write_bytes(X.tobytes())
    entry = {"name": "final_norm", "shape": [3, 4], "dtype": "F32", "file": "x.bin", "offset": 0}
    (folder / "manifest.json").write_text(json.dumps([entry]))
    return folder / "manifest.json"


def onnx(folder: Path) -> Path:
    (folder / "x.tensorproto").write_bytes(tensor("/model/norm/Mul_1_output_0", X))
    return folder / "x.tensorproto"


@pytest.mark.parametrize("make", [safetensors, npz, packed_npz, npy, manifest, onnx])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes(
    make: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes changed, and the end cut off: read as it stands there by itself and in its folder."""
    path = make(tmp_path_factory.mktemp("f"))
    raw = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=5)):
        raw[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw), len(raw) // 2, 3, 0]))]))
    for source in (path, path.parent):
        try:
            reader = reader_of(source)
            arrays = reader(source).arrays if reader else ()
            for a in arrays:
                assert decoded(a.kind, a.raw).shape == a.shape
        except BadInput as error:
            assert "\n" not in str(error)
