"""The writers for other engines, compiled and run; read with the official library, and judged."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import qwenref
from qwenref.engine.bind import bind
from qwenref.engine.files import Checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.weights import parts
from qwenref.errors import BadInput
from qwenref.quant.tensor import dequantize
from qwenref.tools.main import main

from ..models import model

WRITERS = Path(__file__).parents[2] / "writers"
IDS = [3, 141, 59, 26, 53]
C_PROGRAM = """
#define QWENREF_DUMP_IMPLEMENTATION
#ifndef QWENREF_DUMP_ROOM
#define QWENREF_DUMP_FACTS "\\"producer\\":\\"toy\\",\\"dtype\\":\\"bf16\\""
#endif
#include "qwenref_dump.h"
#include <stdlib.h>
int main(int n, char **a) {
    float x[6] = {1, -2, 3, 4, 5, 6}; int32_t ids[2] = {7, 8}; uint16_t h[2] = {0x3C00, 0xBF80};
    size_t s[3]; s[0] = 1, s[1] = 2, s[2] = 3; (void)a;
    qwenref_dump_ids("tokens", ids, 2); qwenref_dump("attn_norm", 0, x, 2, 3);
    qwenref_dump_any("attn_scores", 0, "F32", x, 3, s);
    qwenref_dump_f16("ffn_norm", 11, h, 1, 2); qwenref_dump_bf16("ffn_out", 11, h, 1, 2);
    qwenref_dump_ids("tokens", ids, 1); qwenref_dump("attn_norm", 0, x + 3, 1, 3);
    qwenref_dump("attn_norm", 0, x, 1, 3);
    if (n > 1) abort();
    return 0;
}
"""
RUST_PROGRAM = """
#[path = "{}"]
mod qwenref_dump;
fn main() {{
    qwenref_dump::facts(&[("dtype", "bf16"), ("note", "a \\"quoted\\" \\n word")]);
    qwenref_dump::dump_ids("tokens", &[7, 8]);
    qwenref_dump::dump("attn_norm", Some(0), &[1.0, -2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
    qwenref_dump::dump("attn_scores", Some(0), &[1.0, -2.0, 3.0, 4.0, 5.0, 6.0], &[1, 2, 3]);
    qwenref_dump::dump_bytes("ffn_norm", Some(11), "F16", &[0x00, 0x3C, 0x80, 0xBF], &[1, 2]);
    qwenref_dump::dump_bytes("ffn_out", Some(11), "BF16", &[0x00, 0x3C, 0x80, 0xBF], &[1, 2]);
    qwenref_dump::dump_ids("tokens", &[7]);
    qwenref_dump::dump("attn_norm", Some(0), &[4.0, 5.0, 6.0], &[1, 3]);
    qwenref_dump::dump("attn_norm", Some(0), &[1.0, -2.0, 3.0], &[1, 3]);
    if std::env::args().count() > 1 {{ std::process::abort(); }}
}}
"""
PYTHON_PROGRAM = """
import os, sys
import numpy as np
import qwenref_dump as q
x = np.array([1, -2, 3, 4, 5, 6], np.float32)
q.dump("tokens", None, np.array([7, 8], np.int32))
q.dump("attn_norm", 0, x.reshape(2, 3)[:, ::1])
q.dump("attn_scores", 0, x.reshape(3, 2).T.reshape(1, 2, 3) * 0 + x.reshape(1, 2, 3))
h = np.array([[0x3C00, 0xBF80]], np.uint16)
q.dump("ffn_norm", 11, h.view(np.float16))
q._writer.dump_bytes("layer-11/ffn_out", "BF16", (1, 2), h.tobytes())
q.dump("tokens", None, np.array([7], np.int32))
q.dump("attn_norm", 0, x[None, 3:])
q.dump("attn_norm", 0, x[None, :3])
if len(sys.argv) > 1: os.abort()
"""


def needs(tool: str) -> str:
    """A compiler that is there and works: rustup's stands in for one that a home without a toolchain has not."""
    path = shutil.which(tool)
    if path is None or subprocess.run([path, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"{tool} is not installed")
    return path


def built(language: str, folder: Path) -> list[str]:
    """The command that runs the language's program."""
    program = str(folder / "program")
    if language == "python":
        (folder / "program.py").write_text(PYTHON_PROGRAM)
        return [sys.executable, str(folder / "program.py")]
    if language == "rust":
        (folder / "program.rs").write_text(RUST_PROGRAM.format(WRITERS / "qwenref_dump.rs"))
        command = [needs("rustc"), "-D", "warnings", "--edition", "2021", "-o", program, str(folder / "program.rs")]
    else:
        compiler, standard, suffix = {"c": ("gcc", "c99", "c"), "c++": ("g++", "c++11", "cpp")}[language]
        (folder / f"program.{suffix}").write_text(C_PROGRAM)
        strict = [f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{WRITERS}"]
        command = [needs(compiler), *strict, "-o", program, str(folder / f"program.{suffix}")]
    subprocess.run(command, check=True, capture_output=True)
    return [program]


@pytest.mark.parametrize("language", ["c", "c++", "python", "rust"])
def test_a_program_that_dumps(language: str, tmp_path: Path) -> None:
    """All of it is in the file, bit for bit, also where it then dies. A stage that comes again begins the next pass."""
    command, path = built(language, tmp_path), tmp_path / "dump.safetensors"
    plain = {k: v for k, v in os.environ.items() if k != "QWENREF_DUMP"} | {"PYTHONPATH": str(WRITERS)}
    if language != "python":  # whose program looks at the writer itself
        assert subprocess.run(command, env=plain, check=True, capture_output=True).stderr == b""
        assert not path.exists()
    done = subprocess.run([*command, "die"], env=plain | {"QWENREF_DUMP": str(path)}, capture_output=True, check=False)
    assert done.returncode != 0
    with safe_open(path, "np") as f:
        assert f.metadata()["format"] == "qwenref-dump-1" and f.metadata()["producer"]
        if language != "python":  # whose Writer takes them as keywords
            assert f.metadata()["dtype"] == "bf16"
        got: dict[str, Any] = {k: (f.get_slice(k).get_dtype(), f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118
        assert got == {
            "tokens": ("I32", [2]), "layer-0/attn_norm": ("F32", [2, 3]), "layer-0/attn_scores": ("F32", [1, 2, 3]),
            "layer-11/ffn_norm": ("F16", [1, 2]), "layer-11/ffn_out": ("BF16", [1, 2]),
            "phase-1/tokens": ("I32", [1]), "phase-1/layer-0/attn_norm": ("F32", [1, 3]),
            "phase-2/layer-0/attn_norm": ("F32", [1, 3]),
        }  # fmt: skip
        assert f.get_tensor("layer-0/attn_norm").tolist() == [[1, -2, 3], [4, 5, 6]]
        assert f.get_tensor("layer-0/attn_scores").tolist() == [[[1, -2, 3], [4, 5, 6]]]
        assert f.get_tensor("layer-11/ffn_norm").view(np.uint16).tolist() == [[0x3C00, 0xBF80]]
        assert f.get_tensor("phase-1/layer-0/attn_norm").tolist() == [[4, 5, 6]]
        assert f.get_tensor("phase-2/layer-0/attn_norm").tolist() == [[1, -2, 3]]
    assert path.read_bytes().endswith(np.array([1, -2, 3], "<f4").tobytes())


def test_the_header_is_full(tmp_path: Path) -> None:
    """It says so once, and what is there stays whole."""
    source, path = tmp_path / "p.c", tmp_path / "d.safetensors"
    source.write_text("#define QWENREF_DUMP_ROOM 512\n" + C_PROGRAM)
    subprocess.run([needs("gcc"), "-std=c99", f"-I{WRITERS}", "-o", str(tmp_path / "p"), str(source)], check=True)
    done = subprocess.run([tmp_path / "p"], env={"QWENREF_DUMP": str(path)}, capture_output=True, check=True)
    assert done.stderr == b"qwenref_dump: QWENREF_DUMP_ROOM is full; nothing more is dumped\n"
    with safe_open(path, "np") as f:
        assert 2 < len(list(f.keys())) < 8
    where = {"QWENREF_DUMP": str(tmp_path / "no" / "folder")}
    done = subprocess.run([tmp_path / "p"], env=where, capture_output=True, check=True)
    assert done.stderr == b"qwenref_dump: cannot make the file; nothing more is dumped\n"


TOYS = {
    "c": ("gcc", ["-std=gnu99", "-O1", f"-I{WRITERS}"], ["-lm"]),
    "rs": ("rustc", ["--edition", "2021", "-O", "-D", "warnings"], []),
}


def toy(folder: Path, language: str = "c", change: str = "", m: Checkpoint | None = None) -> tuple[Path, Path]:
    """(the toy engine's dump, the model): change, `this -> that`, is made to its text before it is compiled."""
    tool, flags, libraries = TOYS[language]
    compiler = needs(tool)
    m = model("F32") if m is None else m
    c, w = m.config, bind(m.config, m.tensors)
    convert(m, folder / "m.gguf")
    order: list[Any] = [w.embed]
    for v in w.layers:
        order += [v.attn_norm_D, v.qkv, v.qkv_bias_E, v.attn_out, v.ffn_norm_D, *v.gate_up, v.ffn_down]
    order += [w.final_norm_D, w.lm_head]
    with (folder / "weights").open("wb") as file:
        for leaf in order:
            for part in parts(leaf):
                file.write(dequantize(part).tobytes())
    text = Path(__file__).with_name(f"toy.{language}").read_text()
    if change:
        this, that = change.split(" -> ")
        assert text.count(this) == 1
        text = text.replace(this, that)
    source, program = folder / f"toy.{language}", folder / "toy"
    source.write_text(text)
    shutil.copy(WRITERS / "qwenref_dump.rs", folder)  # as its users have it, beside
    subprocess.run([compiler, *flags, "-o", str(program), str(source), *libraries], check=True, capture_output=True)
    sizes = [c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.intermediate_size, c.vocab_size]
    numbers = map(str, [c.rope_theta, c.rms_norm_eps, *sizes, c.num_hidden_layers, *IDS])
    dump = folder / "dump.safetensors"
    subprocess.run([program, folder / "weights", *numbers], env={"QWENREF_DUMP": str(dump)}, check=True)
    return dump, folder / "m.gguf"


@pytest.mark.parametrize(("language", "stages"), [("c", 27), ("rs", 31)])
def test_a_toy_engine_is_judged_in_one_line(
    language: str, stages: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump, path = toy(tmp_path, language)
    assert main(["verify", str(dump), str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"All {stages} stages that were judged are explained.") and "float32" in out and err == ""


def test_its_mistake_is_named(tmp_path: Path) -> None:
    """The heads grouped by modulo, which attention shows: scores and soft-max are not in the dump."""
    dump, path = toy(tmp_path, change="m / (N / K) * H -> m % K * H")
    report = qwenref.verify(dump, path)
    wrong = {(r["layer"], r["stage"]) for r in report.rows if r["verdict"] == "unexplained"}
    assert wrong == {(0, "attention"), (1, "attention")} and report.status == 1


def blocks(word: str) -> list[str]:
    """Code of docs/dumps.md that has this word."""
    page = (WRITERS.parent / "docs" / "dumps.md").read_text("utf-8")
    return [b for b in re.findall(r"(?ms)^```\w+\n(.*?)^```$", page) if word in b]


@pytest.mark.parametrize("language", ["c", "c++", "rust", "python"])
def test_the_lines_of_the_page(language: str, tmp_path: Path) -> None:
    """As they stand there, in an engine that has such variables."""
    if language == "rust":
        (text,) = blocks("dump_ids(")[1:]
        head, calls = text.split("mod qwenref_dump;")
        body = "let (ids, x, layer, rows, columns) = (vec![7i32, 8], vec![1f32; 6], 3usize, 2usize, 3usize);"
        shutil.copy(WRITERS / "qwenref_dump.rs", tmp_path)
        (tmp_path / "e.rs").write_text(f"{head}mod qwenref_dump;\nfn main() {{ {body} {calls} }}")
        command = [needs("rustc"), "-D", "warnings", "--edition", "2021", "-o", "e", "e.rs"]
    elif language == "python":
        (text,) = (b for b in blocks("qwenref_dump as q") if b.count("\n") < 6)
        shutil.copy(WRITERS / "qwenref_dump.py", tmp_path)
        start = "import numpy as np\nids, x, layer = np.array([7, 8]), np.ones((2, 3), np.float32), 3\n"
        (tmp_path / "e.py").write_text(start + text)
        command = []
    else:
        text = blocks("QWENREF_DUMP_IMPLEMENTATION")[0]
        shutil.copy(WRITERS / "qwenref_dump.h", tmp_path)
        head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
        calls = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        body = "int32_t ids[2] = {7, 8}; float x[6] = {0}, logits[4] = {0};"
        body += "int rows = 2, columns = 3, vocabulary = 4, layer = 3;"
        suffix = "c" if language == "c" else "cpp"
        (tmp_path / f"e.{suffix}").write_text(f"{head}\nint main(void) {{ {body}\n{calls}\nreturn 0; }}")
        compiler = {"c": ["gcc", "-std=c99"], "cpp": ["g++", "-std=c++11"]}[suffix]
        command = [needs(compiler[0]), compiler[1], "-Wall", "-Wextra", "-Werror", "-o", "e", f"e.{suffix}"]
    if command:
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    run = [sys.executable, "e.py"] if language == "python" else ["./e"]
    subprocess.run(run, cwd=tmp_path, env=dict(os.environ) | {"QWENREF_DUMP": "d.safetensors"}, check=True)
    with safe_open(tmp_path / "d.safetensors", "np") as f:
        assert set(f.keys()) - {"lm_head"} == {"tokens", "layer-3/attn_norm"}
        assert f.get_slice("layer-3/attn_norm").get_shape() == [2, 3]


def test_hooks_need_numpy_only(tmp_path: Path) -> None:
    """In the environment of another engine, whose packages are its own."""
    code = f"""
import sys
for name in ("numba", "safetensors", "gguf", "tokenizers", "jinja2", "rich", "huggingface_hub"):
    sys.modules[name] = None
sys.path.insert(0, {str(WRITERS.parents[1])!r})
import qwenref
print(qwenref.hooks, *qwenref.__path__)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (
        done.stdout.startswith("<function hooks")
        and (Path(done.stdout.split()[-1]) / "writers/qwenref_dump.h").exists()
    )


def test_hooks_refuse_what_is_no_dump(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for name, says in (("model.safetensors", "is no dump of this kind"), ("no/x", "no such folder")):
        with pytest.raises(BadInput, match=says), qwenref.hooks(object(), tmp_path / name):
            pass
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


def test_the_c_writer_is_short_and_seeks_in_the_header_only() -> None:
    """A `long` has 32 bits on Windows: what lies behind 2 GiB is appended, never sought."""
    text = (WRITERS / "qwenref_dump.h").read_text()
    assert len(text.splitlines()) <= 80
    assert "SEEK_END" not in text and text.count("fseek(") == 1 and "(long)qwenref_dump_.used - 1" in text
