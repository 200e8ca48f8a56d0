"""Command lines that users get wrong: one line on stderr names the thing and a way out, and nothing else happens"""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qwenref.engine.aliases import DEFAULT
from qwenref.engine.files.convert import convert
from qwenref.tools.main import COMMANDS, main

from ..models import model

# What was typed, and what the line must say: the thing, and the way out.
MISTAKES: list[tuple[str, list[str]]] = [
    # no command, or one of another program
    ("", ["COMMAND", "engine --help"]),
    ("chat m.gguf", ["'chat'", "did you mean run?"]),
    ("ls", ["'ls'", "did you mean list?"]),
    ("quantize m.gguf out.gguf q4_0", ["'quantize'", "did you mean convert?"]),
    ("inspcet m.gguf", ["'inspcet'", "did you mean inspect?"]),
    ("help verfy", ["'verfy'", "did you mean verify?"]),
    ("-p hi", ["-p", "the command comes first", "engine run"]),
    ("--model m.gguf run -p hi", ["--model", "the command comes first"]),
    # models that are none
    ("run -m nothing.gguf -p hi", ["nothing.gguf", "No such file", "engine list"]),
    ("run -m empty.gguf -p hi", ["empty.gguf", "empty", "is the download complete?"]),
    ("run -m qwen2.5-coder-0.5b -p hi", ["'qwen2.5-coder-0.5b'", f"did you mean {DEFAULT}?"]),
    ("run -m folder -p hi", ["folder", "no model in it", "gguf, apr, safetensors"]),
    ("run -m prose.gguf -p hi", ["prose.gguf", "no known model file", "gguf, apr, safetensors"]),
    ("run -m dump -p hi", ["dump", "no model", "engine verify DUMP MODEL"]),
    ("run -m arrays.npz -p hi", ["arrays.npz", "NumPy", "engine verify DUMP MODEL"]),
    ("run -m https://example.org/m.gguf -p hi", ["https://example.org/m.gguf", "download it"]),
    (
        "run -m https://huggingface.co/Qwen/Qwen2.5-0.5B/resolve/main/model.safetensors -p hi",
        ["an address", "ids: Qwen/Qwen2.5-0.5B@main"],
    ),
    ("run -m m.gguf -m other.gguf -p hi", ["-m", "given twice", "'m.gguf'", "'other.gguf'", "leave one"]),
    ("run -m", ["-m/--model", "expected one argument", "engine run --help"]),
    # prompts
    ("run -m m.gguf -p ''", ["prompt is empty", "at least one character"]),
    ("run -m m.gguf -f empty.txt", ["prompt is empty", "at least one character"]),
    ("run -m m.gguf -f nothing.txt", ["nothing.txt", "No such file"]),
    ("run -m m.gguf -f folder", ["folder", "Is a directory"]),
    ("run hi there", ["'hi' is no model", "in quotes", "'hi there'"]),
    ("run m.gguf what is this", ["'what is this'", "in quotes"]),
    ("run -m m.gguf -p hi -f text.txt", ["--file", "not allowed with", "--prompt"]),
    ("run -m m.gguf -p one -p two", ["--prompt", "given twice", "'one'", "'two'"]),
    ("run -m m.gguf --tokens 1,two", ["'two'", "give numbers"]),
    ("run -m m.gguf --tokens 999999", ["999999", "vocabulary of 272"]),
    ("embed", ["no text", "give MODEL and a TEXT"]),
    ("embed m.gguf", ["no text", "give MODEL and a TEXT"]),
    ("embed m.gguf ''", ["text 1 of 1 is empty"]),
    ("embed -m m.gguf other.gguf low", ["other.gguf and -m m.gguf are two models"]),
    ("embed m.gguf low -f text.txt", ["texts come from words and --file"]),
    ("embed m.gguf -f empty.txt", ["empty.txt has no line"]),
    ("embed m.gguf low --pooling max", ["--pooling", "'max'", "last", "mean", "cls"]),
    ("embed m.gguf low --npy folder", ["folder: a folder", "a file's name"]),
    ("score m.gguf low", ["m.gguf", "Qwen2ForCausalLM has no head that scores", "engine run text"]),
    ("score m.gguf --messages broken.json", ["no head that scores"]),
    # what it is told to do
    ("run -m m.gguf -p hi -n many", ["--max-tokens", "'many'", "engine run --help"]),
    ("run -m m.gguf -p hi -n 0", ["-n 0", "at least 1"]),
    ("run -m m.gguf -p hi --n-predict 5", ["--n-predict", "did you mean --max-tokens?"]),
    ("run -m m.gguf -p hi --temperature 0.5", ["--temperature", "did you mean --temp?"]),
    ("run -m m.gguf -p hi --temp -1", ["temperature -1", "at least 0"]),
    ("run -m m.gguf -p hi --top-p 90", ["top-p 90", "at most 1"]),
    ("run -m m.gguf -p hi --system short", ["--system", "give --chat too"]),
    ("run -m m.gguf -p hi --precision F32", ["'F32'", "did you mean f32?"]),
    ("run -m m.gguf -p hi --precision f64", ["'f64'", "it has f32, int16, int8"]),
    ("run -m m.gguf -p hi --backend gpu", ["'gpu'", "'cuda'"]),
    ("run -m m.gguf -p hi --lora folder", ["--lora folder", "a folder as PEFT saves it"]),
    ("run -m m.gguf -p hi -t 0", ["0 threads", "machine has"]),
    # pull, list, inspect
    ("pull https://huggingface.co/Qwen/Qwen2.5-0.5B", ["an address", "ids: Qwen/Qwen2.5-0.5B"]),
    (
        "pull https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF/blob/main/qwen2.5-0.5b-instruct-q4_0.gguf",
        ["an address", "ids: Qwen/Qwen2.5-0.5B-Instruct-GGUF@main:qwen2.5-0.5b-instruct-q4_0.gguf"],
    ),
    ("pull qwen2.5-coder-0.5b-instruct", ["'qwen2.5-coder-0.5b-instruct'", f"did you mean {DEFAULT}?"]),
    ("pull m.gguf", ["m.gguf: is here", "engine run -m m.gguf"]),
    ("pull one two", ["two", "engine pull --help"]),
    ("list m.gguf", ["m.gguf", "engine list --help"]),
    ("inspect dump/lm_head.bin", ["dump/lm_head.bin", "stage file", "engine diff"]),
    ("inspect m.gguf --weights", ["--weights", "engine inspect --help"]),
    # convert
    ("convert m.gguf", ["DST", "engine convert --help"]),
    ("convert out.gguf m.gguf", ["out.gguf is not there", "SRC comes first", "engine convert m.gguf out.gguf"]),
    ("convert m.gguf m.gguf --force", ["m.gguf", "source itself", "another name"]),
    ("convert m.gguf other.gguf", ["other.gguf: exists already", "--force"]),
    ("convert m.gguf nowhere/out.gguf", ["nowhere: no such folder", "make it first"]),
    ("convert m.gguf out.onnx", ["out.onnx", ".gguf and .apr"]),
    ("convert m.gguf out.gguf --quantize Q9_K", ["'q9_k'", "did you mean q"]),
    ("convert m.gguf out.gguf --quantise q8_0", ["--quantise", "did you mean --quantize?"]),
    ("convert dump out.gguf", ["dump", "no model", "engine verify DUMP MODEL"]),
    # trace
    ("trace m.gguf", ["nothing asked for", "--save-tensor STAGES", "--payload"]),
    ("trace m.gguf --save-tensor attention_scores", ["'attention_scores'", "did you mean attn_scores?"]),
    ("trace m.gguf --save-tensor all --save-tensor-layers 7", ["layer 7", "0 to 1"]),
    ("trace m.gguf --save-tensor all --save-tensor-layers first", ["'first'", "give 0..4"]),
    ("trace m.gguf --save-tensor all --save-tensor-layers 3..1", ["3..1 is empty", "must be above START"]),
    ("trace m.gguf --save-tensor all --save-tensor-dir text.txt", ["text.txt is a file", "another place"]),
    ("trace m.gguf --save-tensor all --save-tensor-dir folder-of-mine", ["folder-of-mine"]),
    ("trace m.gguf --save-tensor all --positions 99", ["position 99", "positions 0 to"]),
    ("trace m.gguf --payload --layers 0", ["--layers", "did you mean --save-tensor-layers?"]),
    ("trace m.gguf --payload --decode-steps -1", ["-1 decode steps", "cannot be negative"]),
    # eval
    ("eval m.gguf", ["-f", "--logits"]),
    ("eval m.gguf text.txt", ["text.txt", "engine eval --help"]),
    ("eval m.gguf -f text.txt -c 99999", ["of 99999", "a smaller --context"]),
    ("eval m.gguf -f text.txt -c 1", ["context of 1", "at least 4"]),
    ("eval m.gguf -f m.gguf", ["m.gguf is not UTF-8"]),
    ("eval m.gguf -f text.txt -c 8 --save-logits nowhere/base.dat", ["nowhere: no such folder", "make it first"]),
    ("eval m.gguf -f text.txt -c 8 --save-logits other.gguf", ["other.gguf is a model", "another name"]),
    # diff
    ("diff dump", ["B", "engine diff --help"]),
    ("diff m.gguf other.gguf", ["m.gguf and other.gguf are models", "engine diff --weights"]),
    ("diff dump m.gguf", ["m.gguf is a model", "engine verify"]),
    ("diff dump nothing", ["nothing", "no such file or folder"]),
    ("diff dump dump/lm_head.bin", ["dump/lm_head.bin", "two folders or two files"]),
    ("diff dump dump --tolerance tight", ["--tolerance", "'tight'", "engine diff --help"]),
    ("diff dump dump --rtol 1e-3", ["--rtol", "did you mean --tolerance?"]),
    ("diff dump dump --top 0", ["top 0", "at least 1"]),
    # verify
    ("verify m.gguf", ["m.gguf is a model", "engine verify DUMP MODEL"]),
    ("verify m.gguf other.gguf", ["m.gguf is a model", "engine verify DUMP MODEL"]),
    ("verify dump -m dump", ["dump", "no model", "engine verify DUMP MODEL"]),
    ("verify folder -m m.gguf", ["folder", "holds no stage files", ".safetensors"]),
    ("verify arrays.npz -m m.gguf", ['"foo"', "--map"]),
    ("verify raw.bin -m m.gguf", ["raw.bin", "shape", "raw.json"]),
    ("verify dump -m m.gguf --stage lm_haed", ["'lm_haed'", "did you mean lm_head?"]),
    ("verify dump -m m.gguf --layer 99", ["--layer", "layers 0 to 1"]),
    ("verify dump -m m.gguf --phase first", ["'first'", "prompt, decode"]),
    ("verify dump -m m.gguf --html folder", ["folder: a folder", "a file's name"]),
    ("verify dump -m m.gguf --html nowhere/r.html", ["nowhere: no such folder", "make it first"]),
    ("verify dump -m m.gguf --map broken.json", ["broken.json", "not JSON"]),
    ("trace -m m.gguf --tokens 1 --save-tensor all -o folder", ["unrecognized arguments: -o"]),
    ("run -m m.gguf --promt hi", ["unrecognized arguments: --promt", "did you mean --prompt?"]),
    ("verify dump m.gguf -m m.gguf", ["--model", "not allowed with argument MODEL"]),
    # import and the others
    ("import arrays.npz -m m.gguf", ["DIR", "--explain"]),
    ("import dump out -m m.gguf", ["dump", "already", "verify and diff read it"]),
    ("import m.gguf out -m m.gguf", ["m.gguf is a model", "engine convert"]),
    ("bench m.gguf -p many", ["--prompt", "'many'", "engine bench --help"]),
    ("bench m.gguf -t x", ["-t x", "numbers of at least 1"]),
    ("compile --all m.gguf", ["--all", "m.gguf is one"]),
    ("completion tcsh", ["'tcsh'", "'bash'"]),
    ("show dump 1 attn_norm", ["1 is no stage", "the stage comes first", "engine show dump attn_norm 1"]),
    ("show dump attn_norm 1 --png folder", ["folder", "give a file's name"]),
    ("show dump attn_norm 1 --png nowhere/a.png", ["nowhere", "no such folder"]),
    ("verify dump m.gguf --layer 77", ["--layer", "leave nothing", "layers 0 to 1"]),
    ("show dump attn_nrom", ["attn_nrom", "did you mean attn_norm?"]),
    ("show dump attn_norm 99", ["99", "layer"]),
    ("show attn_norm dump", ["attn_norm is a stage", "what to look at comes first"]),
    ("doctor please", ["please", "engine doctor --help"]),
    ("dump-hf m.gguf", ["DIR", "engine dump-hf --help"]),
    ("dump-hf m.gguf out --dtype float8", ["'float8'", "did you mean float64?"]),
    ("dump-llamacpp m.gguf out --flash-attn maybe", ["'maybe'", "'auto'", "'off'"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user stands: models, a dump, a text, and what is taken for one of them."""
    place = tmp_path_factory.mktemp("mistakes")
    convert(model("Q8_0"), place / "m.gguf")
    convert(model("Q8_0"), place / "other.gguf")
    dump = ["--backend", "reference", "--save-tensor", "all", "--save-tensor-dir", str(place / "dump")]
    assert main(["trace", str(place / "m.gguf"), "--tokens", "3,4,5", *dump]) == 0
    (place / "folder").mkdir()
    (place / "folder-of-mine").mkdir()
    (place / "folder-of-mine" / "thesis.tex").touch()
    (place / "empty.txt").touch()
    (place / "empty.gguf").touch()
    (place / "text.txt").write_text("the low low and the lower\n" * 9)
    (place / "prose.gguf").write_text("no model at all, but prose\n")
    (place / "broken.json").write_text("{")
    (place / "raw.bin").write_bytes(bytes(64))
    np.savez(place / "arrays.npz", foo=np.zeros(3, np.float32))
    return place


@pytest.fixture
def standing(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """There, with an empty stdin; and nothing is written."""

    def tree() -> set[tuple[str, int, int]]:
        return {(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in [place, *place.rglob("*")]}

    before = tree()
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    yield place
    assert tree() == before


@pytest.mark.parametrize(("typed", "said"), [pytest.param(*m, id=m[0][:60] or "nothing") for m in MISTAKES])
def test_a_mistake_is_one_line(typed: str, said: list[str], standing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(shlex.split(typed))
    except SystemExit as done:  # argparse's
        assert isinstance(done.code, int)
        status = done.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, ""), err
    (line,) = err.splitlines()
    assert line.startswith("engine") and [word for word in said if word not in line] == [], line


def test_every_command_is_mistaken() -> None:
    """Each has mistakes of its own in the list, and no mistake stands in it twice."""
    assert {typed.split(" ")[0] for typed, _ in MISTAKES} >= set(COMMANDS)
    assert len({typed for typed, _ in MISTAKES}) == len(MISTAKES)
