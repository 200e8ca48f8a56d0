"""What a dump may lie in: kinds of values, files that lie, and the commands that read them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwenref.errors import BadInput
from qwenref.tools.main import main
from qwenref.trace.dump import Dump
from qwenref.trace.sources import open_dump
from qwenref.trace.verify.finding import UNEXPLAINED
from qwenref.trace.verify.verify import verify

from ...engines import dump_of
from ...foreign_dumps import own
from ...tiny import tiny_weights, write_gguf
from ...torch_files import Bf16, save

IDS = [3, 200, 17, 9, 4]
W = tiny_weights()
C = W.config


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("m") / "m.gguf", W)


def arrays(engine: str = "HF float32", **more: Any) -> dict[str, np.ndarray]:
    return own(dump_of(W, engine, IDS, **more), C, 0, IDS, range(len(IDS)))


def opened(path: Path) -> Dump:
    return open_dump(path, C.sizes, layers=C.num_hidden_layers)


def bits16(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def test_16_and_64_bits(tmp_path: Path) -> None:
    """An engine of that precision loses nothing by a file of it, and is judged by its own recipe."""
    for engine, kind in (("HF bfloat16", Bf16), ("HF float16", np.float16), ("HF float32", np.float64)):
        found = {}
        for name, x in arrays(engine).items():
            found[name] = x if x.dtype.kind == "i" else Bf16(bits16(x)) if kind is Bf16 else x.astype(kind)  # type: ignore[operator]
        dump = opened(save(tmp_path / "x.pt", found))
        right = dump_of(W, engine, IDS)
        for e in dump.entries:
            np.testing.assert_array_equal(e.values(), right[e.stage.name, e.layer])
        result = verify(dump, W)
        assert result.status == 0 and result.recipe.name == verify(right, W).recipe.name


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_ids_without_a_sign(kind: type, tmp_path: Path) -> None:
    """As candle and MLX have them, in every file that has such a type."""
    found = arrays()
    found["tokens"] = found["tokens"].astype(kind)
    save_file(found, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", **found)
    (tmp_path / "raw").mkdir()
    for name, x in found.items():
        (tmp_path / "raw" / f"{name.replace('/', '.')}.raw").write_bytes(x.tobytes())
        told = {"shape": list(x.shape), "dtype": x.dtype.name}
        (tmp_path / "raw" / f"{name.replace('/', '.')}.json").write_text(json.dumps(told))
    for path in ("x.safetensors", "x.npz", "raw"):
        assert list(opened(tmp_path / path).run["tokens"]) == IDS
    found["tokens"] = np.array([1, 2, 3, 4, np.iinfo(kind).max], kind)
    np.savez(tmp_path / "x.npz", **found)
    if kind is not np.uint16:
        with pytest.raises(BadInput, match="is no token id"):
            opened(tmp_path / "x.npz")


def test_a_name_that_is_nearly_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"layer-0/atn_norm": ONES, "tokens": np.array(IDS)})
    with pytest.raises(BadInput, match=r"no array is named as a stage is .*; did you mean attn_norm\?"):
        opened(tmp_path / "x.npz")


def test_logits_by_either_name(tmp_path: Path) -> None:
    found = arrays()
    np.savez(tmp_path / "x.npz", **{"logits" if k == "lm_head" else k: x for k, x in found.items()})
    assert np.array_equal(opened(tmp_path / "x.npz")["lm_head"], found["lm_head"][0])
    np.savez(tmp_path / "x.npz", logits=found["lm_head"], **found)
    assert opened(tmp_path / "x.npz").notes == ('not needed, 1 arrays: "logits"',)


def test_a_packed_npz_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", **arrays())
    assert len(opened(tmp_path / "x.npz").entries) == 17 * 2 + 3
    monkeypatch.setattr("qwenref.trace.sources.zipped.MAX_PACKED", 1000)
    with pytest.raises(BadInput, match="and 1000 is the limit; save them unpacked"):
        opened(tmp_path / "x.npz")


def test_a_zip_that_lies(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays())
    raw = bytearray((tmp_path / "x.npz").read_bytes())
    at = raw.rindex(b"PK\1\2")
    for where, says in (
        (at + 42, "no member where it says"),
        (at + 20, "are there; is the file cut"),
        (at + 8, "encrypted"),
    ):
        changed = raw.copy()
        changed[where] ^= 0x11
        (tmp_path / "y.npz").write_bytes(bytes(changed))
        with pytest.raises(BadInput, match=f"{says}|not a zip|unpack"):
            opened(tmp_path / "y.npz")
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a.npy", b"")
        file.writestr("a.npy", b"")
    with pytest.raises(BadInput, match="two members of one name"):
        opened(tmp_path / "z.npz")


def test_raw_values_with_json_beside(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    for name, x in arrays().items():
        if x.dtype.kind == "f":
            path = folder / f"{name}.f32"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(np.ascontiguousarray(x).tobytes())
            path.with_suffix(".json").write_text(json.dumps({"shape": list(x.shape)}))
    dump = opened(folder)
    assert len(dump.entries) == 17 * 2 + 3 and verify(dump, W).status == 0


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (None, "raw values without a word on their shape; write x.json beside it"),
        ({"shape": [5, 64], "dtype": "float8"}, "dtype 'float8' is not known"),
        ({"shape": "5x64"}, "must be up to 8 whole numbers"),
        ({"shape": [5, 63]}, "1280 bytes of values, where"),
        ({"shape": [5, 64], "offset": 4}, "1276 bytes of values"),
        ({"shape": [5, 64], "offset": -4}, "no number of bytes"),
    ],
)
def test_raw_values_that_are_not_what_is_said(told: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.f32").write_bytes(bytes(1280))
    if told is not None:
        (tmp_path / "x.json").write_text(json.dumps(told))
    with pytest.raises(BadInput, match=says):
        opened(tmp_path / "x.f32")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"name": "x", "shape": [5, 64], "dtype": "F32", "file": "../out.bin"}, "not below the manifest's folder"),
        ({"name": "x", "shape": [5, 64], "dtype": "F32", "file": "a\0b"}, "not below the manifest's folder"),
        ({"name": "x", "shape": [5, 64], "dtype": "F32", "file": "circle/x"}, "not below the manifest's folder"),
        ({"name": "x", "shape": [5, 64], "dtype": "F32", "file": "y" * 5000}, "name too long"),
        ({"name": "x", "shape": [5, 64], "dtype": "F32"}, "needs a name and a file"),
        ({"name": "x", "shape": [5, 64], "dtype": "F32", "file": "nowhere"}, "No such file"),
    ],
)
def test_a_manifest_that_lies(entry: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "out.bin").write_bytes(bytes(1280))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/circle").symlink_to("circle")
    (tmp_path / "d/manifest.json").write_text(json.dumps([entry]))
    with pytest.raises(BadInput, match=says):
        opened(tmp_path / "d")


def written(path: Path, changes: dict[str, Any], **more: Any) -> Path:
    held = {k: v for k, v in {**arrays(**more), **changes}.items() if v is not None}
    save_file({k: np.ascontiguousarray(v) for k, v in held.items()}, path, {"format": "qwenref-dump-1"})
    return path


ONES = np.ones((5, 64), np.float32)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attn_norm.0": ONES}, "attn_norm of layer 0 is also in"),
        ({"layer-9/attn_norm": ONES}, "the model has layers 0 to 1"),
        ({"layer-0/attn_norm": np.ones((5, 259), np.float32)}, r"does not fit attn_norm \(T D=64\); its pass has 5"),
        ({"layer-0/ffn_gate": ONES}, "so it could be embedding, attn_norm,"),
        ({"layer-0/attn_norm": ONES[:4]}, "does not fit attn_norm"),
        ({"layer-0/attn_norm": ONES.astype(np.int32)}, "values of I32"),
        ({"tokens": np.array([0.5, 1, 2, 3, 4], np.float32)}, "whole numbers are wanted"),
        ({"tokens": np.array([-1, 1, 2, 3, 4])}, "-1 is no token id"),
        ({"positions": np.array([4, 3, 2, 1, 0])}, "a batch of 5 prompts|do not rise"),
        ({"layer-0/qkv_bias": None, "layer-0/q_proj": ONES}, "k_proj, v_proj of layer 0 are missing"),
    ],
)
def test_arrays_that_contradict(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=says) as error:
        opened(written(tmp_path / "d.safetensors", changes))
    assert "\n" not in str(error.value)


def test_nan_is_judged_not_refused(tmp_path: Path) -> None:
    broken = np.array(arrays()["layer-1/ffn_up"])
    broken[2, 7] = np.nan
    found = verify(opened(written(tmp_path / "d.safetensors", {"layer-1/ffn_up": broken})), W)
    assert [(f.layer, f.stage) for f in found.findings if f.verdict == UNEXPLAINED] == [(1, "ffn_up")]


def test_verify_reads_the_file_itself(gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = tmp_path / "right.safetensors", tmp_path / "wrong.safetensors"
    written(right, {})
    written(wrong, {"layer-1/attn_out": arrays()["layer-1/attn_out"][:, ::-1]})
    assert main(["verify", str(right), str(gguf)]) == 0
    assert main(["verify", str(wrong), "-m", str(gguf), "--json"]) == 1
    said = json.loads(capsys.readouterr().out.split("\n{", 1)[1].join(["{", ""]))
    assert [s["stage"] for s in said["stages"] if s["verdict"] == "unexplained"] == ["attn_out"]


def test_diff_takes_any_two(gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = written(tmp_path / "a.safetensors", {}), save(tmp_path / "b.pt", arrays())
    assert main(["diff", str(a), str(b), "-m", str(gguf)]) == 0
    assert "37 stages compared, 0 beyond" in capsys.readouterr().out
    assert main(["diff", str(a), str(b)]) == 2
    assert "give the model with -m" in capsys.readouterr().err
    assert main(["import", str(a), str(tmp_path / "d"), "-m", str(gguf)]) == 0
    assert main(["diff", str(tmp_path / "d"), str(b)]) == 0


def test_explain_names_what_the_model_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """o_proj of a model with its bias is the sum; of one that is not named, the product."""
    write_gguf(tmp_path / "llama.gguf", tiny_weights(model_type="llama", asked=("attention_bias",)))
    held = {f"model.layers.0.self_attn.{x}_proj": np.zeros((2, 64), np.float32) for x in "qo"}
    path = save(tmp_path / "x.pt", held)
    for words, stage in (((), "attn_out"), (("-m", str(tmp_path / "llama.gguf")), "attn_out_bias")):
        assert main(["import", str(path), "--explain", *words]) == 0
        names = json.loads(capsys.readouterr().out)
        assert names == {
            "model.layers.{layer}.self_attn.o_proj": stage, "model.layers.{layer}.self_attn.q_proj": "q_proj",
        }  # fmt: skip


def test_explain_is_a_map(gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints, edited, is what --map takes."""
    held = {k.replace("/attn_norm", "/attnnorm"): v for k, v in arrays().items()}
    path = save(tmp_path / "x.pt", held)
    assert main(["import", str(path), "--explain"]) == 0
    out, err = capsys.readouterr()
    names = json.loads(out)
    assert names["layer-{layer}/ffn_norm"] == "ffn_norm" and names["tokens"] == "tokens"
    assert names["layer-{layer}/attnnorm"] is None and "nearest stage is attn_norm" in err
    names["layer-{layer}/attnnorm"] = "attn_norm"
    (tmp_path / "map.json").write_text(json.dumps(names))
    capsys.readouterr()
    assert main(["verify", str(path), str(gguf), "--map", str(tmp_path / "map.json")]) == 0
    assert main(["import", str(path), str(tmp_path / "d"), "-m", str(gguf)]) == 0
    assert '"layer-0/attnnorm" (nearest: attn_norm)' in capsys.readouterr().err


def test_maps_split_take_scale_and_add(gguf: Path, tmp_path: Path) -> None:
    """A fused product, one of several states, doubled values, and two summands, by names of the user's own."""
    a = arrays()
    own_names = {
        "ids": a["tokens"],
        "l1.fused": np.concatenate([a["layer-1/ffn_gate"], a["layer-1/ffn_up"]], 1),
        "l1.states": np.stack([np.zeros_like(ONES), a["layer-1/post_ffn_residual"]]),
        "l1.norm": 2 * a["layer-1/ffn_norm"],
        "rank0.l1.down": a["layer-1/ffn_out"] / 2,
        "rank1.l1.down": a["layer-1/ffn_out"] / 2,
        "l1.scratch": np.zeros(3, np.float32),
    }
    rules = {
        "ids": "tokens",
        "l{layer}.fused": ["ffn_gate", "ffn_up"],
        "l{layer}.states": {"stage": "post_ffn_residual", "take": [0, 1]},
        "l{layer}.norm": {"stage": "ffn_norm", "scale": 0.5},
        "rank{rank}.l{layer}.down": {"stage": "ffn_out", "ranks": "sum"},
        "*scratch": None,
    }
    (tmp_path / "map.json").write_text(json.dumps(rules))
    source = str(save(tmp_path / "x.pt", own_names))
    flags = ["-m", str(gguf), "--map", str(tmp_path / "map.json")]
    assert main(["import", source, str(tmp_path / "d"), *flags]) == 0
    dump = opened(tmp_path / "d")
    assert {e.stage.name for e in dump.entries} == {"ffn_gate", "ffn_up", "post_ffn_residual", "ffn_norm", "ffn_out"}
    for e in dump.entries:
        np.testing.assert_array_equal(e.values(), a[f"layer-1/{e.stage.name}"], e.label)
