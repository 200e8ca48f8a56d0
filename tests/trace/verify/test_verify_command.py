"""engine verify from the outside: real files, exit statuses, one line for what the user gave wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qwenref.engine.bind import bind
from qwenref.engine.files.convert import convert
from qwenref.engine.weights import Weights
from qwenref.tools.main import main
from qwenref.trace.store import DumpWriter

from ...engines import dump_of
from ...models import model
from ...plants import PLANTS

TOKENS = [17, 3, 99, 200, 4]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of GGUF files: tiny, the model that ran; other, of its shape; wide, of another."""
    folder = tmp_path_factory.mktemp("models")
    convert(model("Q8_0"), folder / "tiny.gguf")
    convert(model("Q8_0", seed=3), folder / "other.gguf")
    convert(model("Q8_0", hidden=96), folder / "wide.gguf")
    return folder


@pytest.fixture(autouse=True)
def here(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)


def weights() -> Weights:
    m = model("Q8_0")
    return bind(m.config, m.tensors)


def written(path: Path, *, mistake: str | None = None, manifest: bool = True) -> Path:
    w = weights()
    p = next((p for p in PLANTS if p.id == mistake), None)
    dump = dump_of(w, "HF float32", TOKENS, steps=[7], mistakes={(p.stage, 1): p.make} if p else {})
    with DumpWriter(path, {"tokens": TOKENS, "generated": [7]}, w.config.sizes) as writer:
        for e in dump.entries:
            assert e.positions is not None
            writer.put(e.stage.name, e.layer, e.values(), e.positions, phase=e.phase)
    if not manifest:
        (path / "manifest.json").unlink()
    return path


def test_a_healthy_dump_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(written(tmp_path / "d")), "-m", "tiny.gguf"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("All 74 stages that were judged are explained.")
    assert "float32 throughout" in out


def test_a_wrong_engine_exits_1_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "d", mistake="activation")
    assert main(["verify", str(path), "-m", "tiny.gguf", "--html", str(tmp_path / "r.html")]) == 1
    out = capsys.readouterr().out
    assert "layer 1 ffn_silu: unexplained" in out
    assert "GELU (erf) stands for SiLU" in out
    assert "GELU (erf) stands for SiLU" in (tmp_path / "r.html").read_text("utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "r.html"]


def test_json_alone_is_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(written(tmp_path / "d")), "-m", "tiny.gguf", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"].keys() <= {"exact", "reproduced"}
    assert told["tokens"] == [*TOKENS, 7]


def test_a_dump_without_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(written(tmp_path / "d", manifest=False)), "-m", "tiny.gguf"]) == 0
    assert "the token ids are those whose embedding rows the dump holds" in capsys.readouterr().out


def test_another_model_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(written(tmp_path / "d")), "other.gguf"]) == 1
    assert capsys.readouterr().out.startswith("The embedding already differs: this dump is of another model")


def test_a_second_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(written(tmp_path / "d")), "-m", "other.gguf", "--against", "tiny.gguf"]) == 0
    assert "the weights of the second model, exactly" in capsys.readouterr().out


def test_only_logits_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = weights().config
    path = tmp_path / "d"
    with DumpWriter(path, {}, c.sizes) as writer:
        writer.put("lm_head", None, np.zeros(c.vocab_size, np.float32), [4])
    assert main(["verify", str(path), "-m", "tiny.gguf"]) == 2
    out = capsys.readouterr().out
    assert out.startswith("Nothing could be judged: lm_head: ")
    assert "computes with" not in out
    assert "give the ids that were run (--tokens)" in out


def other_logits() -> dict[str, tuple[np.ndarray, str]]:
    """Logits by themselves that are not those of the last position, and what must be said of them."""
    w = weights()
    heads = [dump_of(w, "HF bfloat16", ids).get("lm_head", None) for ids in (TOKENS, TOKENS[:-1], TOKENS[::-1])]
    last, before, other = (e.values() for e in heads if e is not None)
    p = np.exp(last - last.max()) / np.exp(last - last.max()).sum()
    return {
        "before": (before, "the logits of position 3, not of 4"),
        "softmax": (p, "these are probabilities"),
        "log": (np.log(p), "these are log-probabilities"),
        "order": (last[::-1], "another order of the vocabulary"),
        "other": (other, "no position's of these tokens"),
        "last": (last, "as float64 has it from the same tokens"),
    }


def test_logits_alone_are_told_for_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (values, said) in other_logits().items():
        with DumpWriter(tmp_path / name, {"tokens": TOKENS}, weights().config.sizes) as writer:
            writer.put("lm_head", None, values, [len(TOKENS) - 1])
        assert main(["verify", str(tmp_path / name), "-m", "tiny.gguf"]) == int(name != "last")
        assert said in capsys.readouterr().out.splitlines()[0], name


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["verify", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_what_cannot_be_judged_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "d")
    assert "a dump of another model: D 64 for 96" in refused(capsys, str(path), "-m", "wide.gguf")
    assert "no such file or folder" in refused(capsys, str(tmp_path / "none"), "-m", "tiny.gguf")
    assert "no such folder" in refused(capsys, str(path), "-m", "tiny.gguf", "--html", str(tmp_path / "no" / "r.html"))
    cut = tmp_path / "cut"
    shutil.copytree(path, cut)
    file = cut / "layer-1" / "ffn_up.bin"
    file.write_bytes(file.read_bytes()[:-4])
    assert "layer-1/ffn_up.bin: is truncated" in refused(capsys, str(cut), "-m", "tiny.gguf")


def test_a_layer_folder_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "d")
    shutil.rmtree(path / "layer-1")
    assert main(["verify", str(path), "tiny.gguf"]) == 0
    out = capsys.readouterr().out
    lost = "layer-1/attn_norm.bin, layer-1/qkv_matmul.bin, layer-1/qkv_bias.bin and 14 more"
    assert f"Note: the manifest lists, and the dump lacks: {lost}." in out
    assert "missing: " in out


def test_a_decode_step_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "d")
    for name in ("layer-0", "layer-1"):
        shutil.rmtree(path / name)
    for name in ("final_norm.bin", "lm_head.bin"):
        (path / name).unlink()
    assert main(["verify", str(path), "tiny.gguf"]) == 0
    assert (
        "Not judged: attn_scores in 2 places: the keys of positions 0 to 4 are not in the dump"
        in capsys.readouterr().out
    )


def test_nan_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "d", manifest=False)
    file = path / "layer-1" / "ffn_up.bin"
    file.write_bytes(file.read_bytes()[:-4] + np.float32(np.nan).tobytes())
    assert main(["verify", str(path), "tiny.gguf"]) == 1
    said = capsys.readouterr().out
    assert said.startswith(
        "Values that are NaN or infinite first appear in ffn_up of layer 1. One stage is not explained"
    )
    assert "layer 1 ffn_up: 1 value is NaN or infinite, and its inputs are not" in said


def test_other_tokens_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "d")
    told = json.loads((path / "manifest.json").read_text("utf-8"))
    told["run"]["tokens"] = [1, 2, 3, 4, 5]
    (path / "manifest.json").write_text(json.dumps(told), "utf-8")
    assert main(["verify", str(path), "tiny.gguf"]) == 1
    assert "the products do not: other tokens were run (17 3 99 200 4)" in capsys.readouterr().out


def test_files_exchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a manifest the digests tell; between layers the headers; without either, the judge."""
    path = written(tmp_path / "d")
    gate, up = path / "layer-1" / "ffn_gate.bin", path / "layer-1" / "ffn_up.bin"
    gate.rename(tmp_path / "x")
    up.rename(gate)
    (tmp_path / "x").rename(up)
    assert "SHA-256 is not the one in manifest.json" in refused(capsys, str(path), "-m", "tiny.gguf")
    (path / "manifest.json").unlink()
    assert main(["verify", str(path), "-m", "tiny.gguf"]) == 1
    said = capsys.readouterr().out.splitlines()[0]
    assert "the weights of gate and up are swapped" in said
    assert said.endswith("computed from right values, so the files are wrong, not the engine.")
    shutil.copy(path / "layer-0" / "attn_out.bin", path / "layer-1" / "attn_out.bin")
    assert "its header says layer 0, its path does not" in refused(capsys, str(path), "-m", "tiny.gguf")


def test_an_empty_folder_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no stage files" in refused(capsys, str(tmp_path), "-m", "tiny.gguf")


def test_the_ids_of_the_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`low` is one token, by the merges `l o` and `lo w`; `how` is three. The manifest or the embedding has the ids."""
    dump, m = str(tmp_path / "d"), "tiny.gguf"
    traced = ["trace", m, "--backend", "reference", "-p", "low", "--save-tensor", "all", "--save-tensor-dir", dump]
    assert main(traced) == 0
    low = json.loads((tmp_path / "d" / "manifest.json").read_text())["run"]["tokens"]
    assert len(low) == 1
    capsys.readouterr()
    for _ in range(2):
        assert main(["verify", dump, m, "-p", "low"]) == 0
        assert capsys.readouterr().out.startswith("The ids that were run are those of the prompt, 1 of them.\n")
        assert main(["verify", dump, m, "-p", "how", "--json"]) == 1
        told = json.loads(capsys.readouterr().out)["prompt"]
        h = model().vocabulary().tokens.index("h")  # type: ignore[union-attr]
        assert len(told["tokens"]) == 3 and told["tokens"][0] == h
        said = f"the prompt has 3 ids, and 1 were run; at 0 it has {h} 'h', and {low[0]} 'low' was run."
        assert told["difference"] == f"Other ids than the prompt's: {said}"
        assert main(["verify", dump, m, "-p", "lowlow"]) == 1
        assert "at 1 it has" in (out := capsys.readouterr().out) and "and nothing was run" in out
        assert main(["verify", dump, m, "-p", "low", "--chat"]) == 1
        assert "at 0 it has" in (out := capsys.readouterr().out) and "<|im_start|>" in out
        (tmp_path / "d" / "manifest.json").unlink(missing_ok=True)
    for words, says in ((["--system", "x"], "--chat"), (["-p", ""], "the prompt is empty")):
        assert main(["verify", dump, m, *words]) == 2
        assert says in capsys.readouterr().err


def test_stages_layers_and_phases_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All is judged; what is told, and the exit status, are of the chosen ones."""
    dump = str(written(tmp_path / "d", mistake="rope-missing-k_post_rope"))
    base = ["verify", dump, "-m", "tiny.gguf", "--json"]
    assert main([*base, "--stage", "k_post_rope", "--layer", "1", "--phase", "decode"]) == 1
    (only,) = json.loads(capsys.readouterr().out)["stages"]
    assert (only["phase"], only["layer"], only["stage"]) == (1, 1, "k_post_rope")
    assert main([*base, "--layer", "0"]) == 0
    assert {s["layer"] for s in json.loads(capsys.readouterr().out)["stages"]} == {0}
    assert main([*base, "--phase", "7"]) == 2
    assert "--stage, --layer and --phase leave nothing; it has embedding" in capsys.readouterr().err
    assert main([*base, "--phase", "last"]) == 2
    assert "give prompt, decode, or the numbers of decode steps" in capsys.readouterr().err
