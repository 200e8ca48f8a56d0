"""Models by their id on the hub: a hub on this machine (tests/small_hub.py), the real huggingface_hub and its cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest

import qwenref
from qwenref.engine.aliases import resolve
from qwenref.engine.files.convert import convert
from qwenref.engine.hub_id import ADAPTER, HubId, hub_id, model_files
from qwenref.engine.lora import opened_loras
from qwenref.errors import BadInput
from qwenref.tools.main import main
from qwenref.tools.record import default_directory

from .. import hostile_hub
from ..models import model
from ..small_hub import SmallHub, small_hub

SMALL = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 32}
NEVER = {
    "pytorch_model.bin": b"\x80",
    "modeling_qwen2.py": b"x",
    "README.md": b"x",
    "onnx/model.onnx": b"x",
    "x.pt": b"",
}
WHOLE, SHARDS, GGUF = "Org/Small", "Org/Small-shards", "Org/Small-GGUF"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "Small"
    convert(model("F16", **SMALL), path)
    return path


@pytest.fixture(scope="module")
def gguf(folder: Path) -> bytes:
    path = folder.with_suffix(".gguf")
    convert(model("F16", **SMALL), path)
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(folder: Path, gguf: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    with small_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        for repo in (WHOLE, SHARDS):
            hub.add(repo, folder)
            hub.repos[repo].update(NEVER)
        weights = hub.repos[SHARDS].pop("model.safetensors")
        hub.repos[SHARDS]["model-00001-of-00001.safetensors"] = weights
        names = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")]).keys() - {"__metadata__"}
        index = {"weight_map": dict.fromkeys(sorted(names), "model-00001-of-00001.safetensors")}
        hub.repos[SHARDS]["model.safetensors.index.json"] = json.dumps(index).encode()
        hub.repos[SHARDS]["consolidated.safetensors"] = b"of no use"
        hub.repos[GGUF] = {f"small-{q}.gguf": gguf for q in ("q4_0", "q4_k_m", "f16")} | {"mmproj-f16.gguf": b"x"}
        yield hub


def refused(name: str) -> str:
    with pytest.raises(BadInput) as error:
        resolve(name)
    line = str(error.value)
    assert "\n" not in line and name in line and len(line) < 500, line
    return line


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", HubId("Qwen/Qwen2.5-0.5B-Instruct")),
        ("Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M", HubId("Qwen/Qwen2.5-0.5B-Instruct-GGUF", None, "Q4_K_M")),
        ("a/b@refs/pr/1:x/y.gguf", HubId("a/b", "refs/pr/1", "x/y.gguf")),
        ("a/b@" + "0" * 40, HubId("a/b", "0" * 40)),
        *((path, None) for path in ("a", "a/b/c", "./a", "../a", "/a/b", "a/b.gguf", "a/b.safetensors", "a/b.apr")),
        *((bad, None) for bad in ("a/b@", "a/b:", "a/b--c", "a/..", "a/b@../x", "a b/c", "a/b\n", "")),
    ],
)
def test_what_is_an_id(name: str, means: HubId | None) -> None:
    assert hub_id(name) == means


def test_only_what_is_needed_is_fetched(hub: SmallHub, folder: Path, cache: Path) -> None:
    """And once: the second time the hub is not asked at all."""
    needed = {p.name for p in folder.iterdir()} & {
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
        "chat_template.jinja",
    }
    found = resolve(WHOLE)
    assert found == cache / "models--Org--Small" / "snapshots" / hub.commit
    assert set(hub.fetched) == needed == {p.name for p in found.iterdir()} and len(hub.fetched) == len(needed)
    asked = hub.asked
    for name in (WHOLE, f"{WHOLE}@main", f"{WHOLE}@{hub.commit}"):
        assert resolve(name) == found
    assert hub.asked == asked


@pytest.mark.parametrize("with_json", [True, False])
def test_tokenizer_model_where_there_is_no_tokenizer_json(with_json: bool) -> None:
    names = ["config.json", "model.safetensors", "tokenizer.model", *(["tokenizer.json"] if with_json else [])]
    assert ("tokenizer.model" in model_files(names, HubId("Org/Name"))) is not with_json


def test_how_texts_are_pooled_is_fetched_too() -> None:
    names = ["config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "2_Dense/config.json"]
    assert {*names} - {*model_files(names, HubId("Org/Name"))} == {"2_Dense/config.json"}


def test_shards_are_those_of_the_index(hub: SmallHub, folder: Path) -> None:
    found = resolve(SHARDS)
    assert {n for n in hub.fetched if n.endswith(".safetensors")} == {"model-00001-of-00001.safetensors"}
    whole, shards = (qwenref.load(path, backend="reference") for path in (folder, found))
    assert (whole.logits([1, 2, 3]) == shards.logits([1, 2, 3])).all()
    (found / "model-00001-of-00001.safetensors").unlink()  # as after an interrupted download
    hub.fetched.clear()
    assert resolve(SHARDS) == found and (found / "model-00001-of-00001.safetensors").exists()


def test_a_quantisation(hub: SmallHub) -> None:
    for word in ("Q4_K_M", "q4_k_m", "small-q4_k_m", "small-q4_k_m.gguf"):
        assert resolve(f"{GGUF}:{word}").name == "small-q4_k_m.gguf"
    assert hub.fetched == ["small-q4_k_m.gguf"]
    assert "f16, q4_0, q4_k_m" in refused(f"{GGUF}:Q4_K")  # a whole word, or none
    shutil.rmtree(resolve(f"{GGUF}:q4_0").parents[2])
    assert "f16, q4_0, q4_k_m" in refused(GGUF)  # of the hub's, as none is cached


def test_parts_of_a_file() -> None:
    names = [f"{q}/m-{q}-{i:05d}-of-00002.gguf" for q in ("Q8_0", "Q4_0") for i in (2, 1)]
    assert model_files(names, HubId("a/b", None, "q8_0")) == [
        "Q8_0/m-Q8_0-00001-of-00002.gguf",
        "Q8_0/m-Q8_0-00002-of-00002.gguf",
    ]


def test_names_that_lead_out_are_no_files() -> None:
    bad = ["../m.gguf", "a/../../m.gguf", "/m.gguf", "a\\m.gguf", "\x1b[2Jm.gguf", ".m.gguf"]
    assert model_files([*bad, "m.gguf"], HubId("a/b")) == ["m.gguf"]
    with pytest.raises(BadInput, match="neither safetensors nor GGUF"):
        model_files(bad, HubId("a/b"))


def test_what_the_hub_refuses(hub: SmallHub) -> None:
    hub.repos["Org/old"] = {"config.json": b"{}", **NEVER}
    hub.repos["Org/adapter"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    hub.repos["Org/gated"] = {}
    hub.gated.add("Org/gated")
    assert "no such file here, and no model on" in refused("Org/nothing")
    assert "has no revision 'v9'" in refused(f"{WHOLE}@v9")
    assert "pytorch_model.bin" in refused("Org/old") and "never opened" in refused("Org/old")
    assert "an adapter (PEFT)" in refused("Org/adapter")
    assert "log in" in refused("Org/gated")
    assert hub.fetched == []


def test_an_adapter(hub: SmallHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two files, once; without a network from the cache."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "lora.npz")
    files = {name: golden[f"all/{name}"].tobytes() for name in ADAPTER}
    hub.repos["Org/lora"] = files | {"adapter_model.bin": b"\x80", "README.md": b"x", "tokenizer.json": b"{}"}
    (lora,) = opened_loras("Org/lora:0.5")
    assert lora.path == cache / "models--Org--lora" / "snapshots" / hub.commit and lora.factor == 0.5
    assert sorted(hub.fetched) == sorted(files) and len(lora.modules) == 14
    with pytest.raises(BadInput, match="Org/Small: no adapter as PEFT saves it"):
        opened_loras(WHOLE)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert opened_loras(["Org/lora@main"])[0].path == lora.path


def test_without_a_network(hub: SmallHub, gguf: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cached is found, also where the cache was made by hand and does not say what main is."""
    whole = resolve(WHOLE)
    by_hand = cache / "models--Org--Other" / "snapshots" / "0123abc"
    by_hand.mkdir(parents=True)
    (by_hand / "m-q8_0.gguf").write_bytes(gguf)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # discard: nothing listens
    assert resolve(WHOLE) == whole
    assert resolve("Org/Other:q8_0") == resolve("Org/Other@0123abc") == by_hand / "m-q8_0.gguf"
    assert "cannot be asked" in refused(GGUF) and "not in" in refused(GGUF)
    (whole / "model.safetensors").unlink()
    assert "only a part of it is in" in refused(WHOLE)
    (by_hand / "m-q4_0.gguf").write_bytes(gguf)
    assert "q4_0, q8_0" in refused("Org/Other@0123abc")


def test_a_path_is_a_path(hub: SmallHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / WHOLE)
    assert resolve(WHOLE) == Path(WHOLE) and hub.asked == 0


def test_pull_asks_for_the_newest(
    hub: SmallHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(WHOLE)
    hub.commit = "b" * 40
    assert resolve(WHOLE) == first
    assert main(["pull", WHOLE]) == 0
    assert resolve(WHOLE).name == hub.commit
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{resolve(WHOLE)} is there\n")
    blob = (resolve(WHOLE) / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x01")
    assert main(["pull", WHOLE]) == 2
    assert "SHA-256" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["pull", "Org/nothing"]) == 2


def test_a_trace_is_not_put_into_the_cache(hub: SmallHub) -> None:
    assert default_directory(resolve(WHOLE)) == Path("Small-trace")
    assert default_directory(resolve(f"{GGUF}:f16")) == Path("small-f16-trace")


def test_the_commands(hub: SmallHub, folder: Path, tmp_path: Path) -> None:
    """In processes of their own, where two of them want the model at once; a pipe gets no bar, and no advice."""
    environment = {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "new"), "PATH": "", "HOME": str(tmp_path)}

    def engine(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "qwenref.tools.main", *args]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)

    done = engine("run", f"{GGUF}:q4_0", "-p", "ab", "-n", "3", "--backend", "reference", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["ids"] and done.stderr == "", done.stderr


def test_other_commands(hub: SmallHub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "--weights", WHOLE, str(folder)]) == 0
    assert main(["inspect", f"{GGUF}:q4_0", "--json"]) == 0
    capsys.readouterr()
    assert main(["inspect", "Org/nothing"]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)


def test_hostile_answers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each, and nothing that is taken for a model."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hostile_hub.hub().server_address[1]}")
    for seed in range(12):
        hostile_hub.hub().answers = list(hostile_hub.answers(Random(seed)))
        assert "cannot be asked" in refused("who/what")
