"""Files of torch.save without torch: what PyTorch 2 wrote (tools/dev/golden_torch.py), and hostile ones."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenref.errors import BadInput
from qwenref.trace.sources import torch_pt
from qwenref.trace.sources.array import decoded

from ...torch_files import Writer, called, number, numbers, save, text

GOLDEN = Path(__file__).parents[2] / "golden"


def test_what_torch_wrote() -> None:
    """Each tensor holds 0, 1, 2 ... in the order of its axes."""
    held = torch_pt.read(GOLDEN / "torch.pt")
    arrays = {a.name: a for a in held.arrays}
    for name, a in arrays.items():
        counted = np.arange(a.raw.size).reshape(a.shape)
        if name in ("expanded", "size"):
            counted = np.zeros((2, 1)) if name == "expanded" else np.array([2, 3, 4])
        np.testing.assert_array_equal(decoded(a.kind, a.raw), counted, name)
    kinds = {n.split("/")[1]: a.kind for n, a in arrays.items() if n.startswith("kinds/")}
    assert kinds["bfloat16"] == "BF16" and kinds["int64"] == "I64" and len(kinds) == 10
    assert held.no_arrays == ("text",)
    assert arrays.keys() >= {"tuple/0", "tuple/2/0", "part", "turned", "state/weight", "parameter", "layers/0", "empty"}
    assert [a.name for a in torch_pt.read(GOLDEN / "torch_tensor.pt").arrays] == ["torch_tensor"]


def test_values_are_mapped_not_copied() -> None:
    first, second = (
        next(a for a in torch_pt.read(GOLDEN / "torch.pt").arrays if a.name == f"shared/{i}") for i in (0, 1)
    )
    base = first.raw
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert not isinstance(base, np.ndarray) and not first.raw.flags.writeable and second.raw.shape == (24,)


def program(code: bytes) -> Callable[[Path], object]:
    return lambda path: Writer().write(path, code)


def bomb(path: Path) -> object:
    """os.system, as the textbook has it: what torch.load without weights_only runs."""
    mark = text(f"touch {path.parent}/was-here")
    return Writer().write(path, called("os", "system") + mark + pickle.TUPLE1 + pickle.REDUCE)


def global_of(module: str, name: str) -> Callable[[Path], object]:
    return program(called(module, name) + pickle.EMPTY_TUPLE + pickle.REDUCE)


def cut(path: Path) -> object:
    w = Writer()
    code = w.value({"x": np.arange(12, dtype=np.float32)})
    w.storages[0] = w.storages[0][:20]
    return w.write(path, code)


def packed(path: Path) -> object:
    """A zip of 60 kB that unpacks to 64 MB."""
    w = Writer()
    code = w.value({"x": np.zeros(1 << 24, np.float32)})
    return w.write(path, code, zipfile.ZIP_DEFLATED)


def strided(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Callable[[Path], object]:
    def make(path: Path) -> object:
        w = Writer()
        right = numbers((12,))
        made = w.tensor(np.arange(12, dtype=np.float32), strides=strides, offset=offset)
        return w.write(path, made.replace(right + numbers(strides), numbers(shape) + numbers(strides)))

    return make


LAUGHS = text("x") + pickle.MEMOIZE + b"".join(
    pickle.BINGET + bytes([i]) + pickle.BINGET + bytes([i]) + pickle.TUPLE2 + pickle.MEMOIZE for i in range(60)
)  # fmt: skip


def script(path: Path) -> None:
    save(path, {"x": np.zeros(2, np.float32)})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/constants.pkl", "")


HOSTILE: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "os.system": (bomb, "asks for os.system"),
    "eval": (global_of("builtins", "eval"), "asks for builtins.eval"),
    "getattr": (global_of("builtins", "getattr"), "asks for builtins.getattr"),
    "torch.load": (global_of("torch", "load"), "asks for torch.load"),
    "numpy": (global_of("numpy.core.multiarray", "_reconstruct"), "asks for numpy.core.multiarray._reconstruct"),
    "own class": (global_of("mymodel", "Output"), "asks for mymodel.Output"),
    "dotted": (global_of("torch", "_utils.os.system"), "asks for torch._utils.os.system"),
    "extension": (program(pickle.EXT1 + b"\1"), "operation"),
    "constructor": (program(called("torch", "Size") + pickle.EMPTY_TUPLE + pickle.NEWOBJ), "operation"),
    "bytearray": (program(b"\x96" + (1 << 40).to_bytes(8, "little")), "operation"),
    "memo": (program(pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f"), None),
    "laughs as a key": (
        program(LAUGHS + pickle.EMPTY_DICT + pickle.BINGET + bytes([60]) + pickle.NONE + pickle.SETITEM),
        "neither text nor numbers",
    ),
    "laughs": (program(LAUGHS), "objects, or nested deeper"),
    "laughs as a shape": (
        program(called("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + LAUGHS + pickle.TUPLE + pickle.REDUCE),
        "without a storage|cannot be read",
    ),
    "cut": (cut, "reaches value 11 of a storage of 5"),
    "zip bomb": (packed, "is packed; torch.save packs nothing"),
    "before its storage": (strided((2,), (1,), -1), "whole numbers"),
    "behind its storage": (strided((4, 4), (4, 1)), "reaches value 15 of a storage of 12"),
    "negative stride": (strided((2,), (-1,), 3), "whole numbers"),
    "repeated without end": (strided((1 << 40, 12), (0, 1)), "repeats a storage of 12"),
    "no storage": (program(text("0") + pickle.BINPERSID), "something else than a storage"),
    "no such storage": (
        program(pickle.MARK + text("storage") + called("torch", "FloatStorage") + text("7") + text("cpu") + number(1)
                + pickle.TUPLE + pickle.BINPERSID), "storage '7' are not in the zip"),
    "no end": (lambda p: Writer().write(p, text("x")[:-1]), "cannot be read"),
    "no pickle": (lambda p: zipfile.ZipFile(p, "w").writestr("x", "y"), "a zip|without data.pkl"),
    "old format": (lambda p: p.write_bytes(pickle.dumps({"x": 1}, 2)), "not a zip, as torch.save has written since"),
    "no zip": (lambda p: p.write_bytes(b"PK\3\4" + bytes(100)), "not a zip that can be read"),
    "script": (script, "TorchScript"),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_dump_is_refused(name: str, tmp_path: Path) -> None:
    """One line, nothing executed, at once."""
    make, says = HOSTILE[name]
    make(tmp_path / "x.pt")
    if says is None:
        assert torch_pt.read(tmp_path / "x.pt").arrays == ()
        return
    with pytest.raises(BadInput, match=says) as error:
        torch_pt.read(tmp_path / "x.pt")
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(tmp_path)) + 300
    assert not (tmp_path / "was-here").exists()


@given(st.data())
def test_changed_files_are_arrays_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw = bytearray((GOLDEN / "torch.pt").read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("pt") / "x.pt"
    path.write_bytes(bytes(raw))
    with suppress(BadInput):
        for a in torch_pt.read(path).arrays:
            decoded(a.kind, a.raw)
