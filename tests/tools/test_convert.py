"""engine convert: what goes in comes out, through any chain of containers, and other programs open it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenref.engine.files import Checkpoint, apr_writer, open_checkpoint, safetensors_writer
from qwenref.engine.files.carried import carried
from qwenref.engine.files.convert import convert
from qwenref.engine.files.writing import Planned
from qwenref.engine.models.qwen2 import ARCHITECTURE as QWEN2
from qwenref.engine.text.tokenizer import Tokenizer
from qwenref.errors import BadInput
from qwenref.quant.tensor import dequantize, quantize
from qwenref.tools.main import main

from ..gguf_builder import F32, KEYS, Gguf
from ..models import logits, model, vocabulary

NAMES = ("model.gguf", "model.apr", "model")  # what becomes GGUF, APR, safetensors
WIDE = {"hidden": 256, "mlp": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "layers": 1}


def chain(source: Checkpoint, tmp: Path, names: Sequence[str], **options: Any) -> list[Checkpoint]:
    """The model converted to each of the names in turn, each from the one before."""
    found = [source]
    for i, name in enumerate(names):
        path = tmp / f"{i}-{name}"
        convert(found[-1], path, **options)
        found.append(open_checkpoint(path))
    return found


def values(m: Checkpoint) -> dict[str, bytes]:
    """Every value of a model as float32 bits, by Hugging Face's names."""
    return {QWEN2.renamed(n, "hf") or n: dequantize(w).tobytes() for n, w in m.tensors.items()}


def raw(m: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {QWEN2.renamed(n, "hf") or n: (w.format, w.shape, w.data.tobytes()) for n, w in m.tensors.items()}


@settings(max_examples=25)
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    formats=st.sampled_from(["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q4_K", "Q6_K"]),
    tied=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_value_survives_every_chain(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], formats: str, tied: bool, seed: int
) -> None:
    source = model(formats, tied=tied, seed=seed, **WIDE)
    for m in chain(source, tmp_path_factory.mktemp("chain"), names):
        assert m.config == source.config
        assert values(m) == values(source)


@pytest.mark.parametrize(("name", "formats"), [
    ("model.gguf", "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS"),
    ("model.apr", "F32 F16 BF16 Q4_K Q6_K"),
    ("model", "F32 F16 BF16"),
])  # fmt: skip
def test_bytes_pass_where_the_container_has_the_format(tmp_path: Path, name: str, formats: str) -> None:
    for i, format in enumerate(formats.split()):
        source = model(format, **WIDE)
        (tmp_path / str(i)).mkdir()
        _, one, there_and_back = chain(source, tmp_path / str(i), [name, "model.gguf"])
        assert raw(one) == raw(source)
        assert {n: x for n, x in raw(there_and_back).items() if len(x[1]) > 1} == {
            n: x for n, x in raw(source).items() if len(x[1]) > 1
        }


def test_norms_and_biases_become_f32_in_gguf(tmp_path: Path) -> None:
    """llama.cpp computes them in F32 only; from 16 bits that is exact."""
    source = model(dict.fromkeys(["attn_norm", "q_bias", "q", "final_norm"], "BF16"), spell="hf")
    _, _, m = chain(source, tmp_path, ["a", "m.gguf"])
    assert values(m) == values(source)
    assert {n for n, w in m.tensors.items() if w.format == "BF16"} == {f"blk.{i}.attn_q.weight" for i in (0, 1)}


def test_raw_ggml_codes(tmp_path: Path) -> None:
    """Formats that aprender has no code for keep their bytes under ggml's codes, and our reader tells them apart."""
    formats = {"q": "Q4_0", "k": "Q4_1", "v": "Q5_0", "attn_out": "Q5_1", "ffn_up": "Q8_0", "ffn_down": "Q5_K"}
    source = model(formats, **WIDE)
    lines = convert(source, tmp_path / "raw.apr", raw=True)
    assert raw(open_checkpoint(tmp_path / "raw.apr")) == raw(source)
    assert "1 tensors Q5_0 kept as they are" in lines
    lines = convert(source, tmp_path / "plain.apr")
    assert "1 tensors Q5_0 -> F32: apr has no code for Q5_0" in lines
    assert values(open_checkpoint(tmp_path / "plain.apr")) == values(source)


def test_f16_where_that_is_exact(tmp_path: Path) -> None:
    """A Q8_0 tensor whose scales are powers of two fits half precision, and takes half the room."""
    source = model("F32")
    name = "blk.0.attn_q.weight"
    codes = np.random.default_rng(0).integers(-127, 128, source.tensors[name].shape).astype(np.float32)
    codes[:, ::32] = 127  # the scale is then exactly 1
    source.tensors[name] = replace(quantize(codes, "Q8_0"), name=name)
    lines = convert(source, tmp_path / "m.apr")
    assert "1 tensors Q8_0 -> F16: apr has no code for Q8_0" in lines
    assert values(open_checkpoint(tmp_path / "m.apr")) == values(source)


def test_aprenders_own_formats_travel(tmp_path: Path) -> None:
    """AprQ8 stays AprQ8 from APR to APR, and is decoded for the others."""
    from ..engine.files.test_apr import build, entries, metadata_of

    m = model(spell="hf")
    stored = []
    for name, code, shape, data in entries(m):
        if name.endswith("up_proj.weight"):
            x = np.frombuffer(data, "<f4")
            scale = np.float32(np.abs(x).max() / 127)
            stored.append((name, 129, shape, scale.tobytes() + np.rint(x / scale).astype(np.int8).tobytes()))
        else:
            stored.append((name, code, shape, data))
    path = tmp_path / "a.apr"
    path.write_bytes(build(metadata_of(m), stored))
    source, again, gguf = chain(open_checkpoint(path), tmp_path, ["b.apr", "c.gguf"])
    assert raw(again) == raw(source) and values(gguf) == values(source)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_logits_from_all_three(tmp_path: Path, name: str) -> None:
    source = model("F16", **WIDE)
    (_, m) = chain(source, tmp_path, [name])
    assert np.array_equal(logits(m), logits(source))


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1], ("model", "model.apr", "model")])
def test_the_tokenizer_survives(tmp_path: Path, names: Sequence[str]) -> None:
    source = model()
    want = vocabulary(source.config.vocab_size)
    text = "low  the\n日本 e\u0301 <|im_start|>user<tool_call>"
    for m in chain(source, tmp_path, names)[1:]:
        v, _ = carried(m, "safetensors")
        assert v is not None
        used = len([t for t in want.types if t != 5])
        assert (v.tokens[:used], v.types[:used], v.merges) == (want.tokens[:used], want.types[:used], want.merges)
        assert (v.chat_template, set(v.eos_ids), v.eos_ids[0]) == (
            want.chat_template,
            set(want.eos_ids),
            want.eos_ids[0],
        )
        assert (v.bos_id, v.pad_id, v.prefix, v.suffix) == (want.bos_id, want.pad_id, (), ())
        for special in (True, False):
            ours, theirs = (Tokenizer.from_vocabulary(x).encode(text, special=special) for x in (v, want))
            assert ours == theirs


def test_a_models_own_tokenizer_json_survives(tmp_path: Path) -> None:
    """As it is written, through GGUF, which has a key for the whole file; another pre-tokenizer is refused."""
    convert(model(), tmp_path / "first")
    own = json.loads((tmp_path / "first" / "tokenizer.json").read_text()) | {"normalizer": None, "ours": 1}
    (tmp_path / "first" / "tokenizer.json").write_text(json.dumps(own))
    convert(open_checkpoint(tmp_path / "first"), tmp_path / "m.gguf")
    convert(open_checkpoint(tmp_path / "m.gguf"), tmp_path / "last")
    assert json.loads((tmp_path / "last" / "tokenizer.json").read_text()) == own
    convert(open_checkpoint(tmp_path / "last"), tmp_path / "m.apr")
    own["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(a+)+$"}
    (tmp_path / "first" / "tokenizer.json").write_text(json.dumps(own))
    with pytest.raises(BadInput, match="pre-tokenizer is not supported"):
        convert(open_checkpoint(tmp_path / "first"), tmp_path / "n.gguf")


def test_keys_of_the_source_are_kept(tmp_path: Path) -> None:
    source = model()
    convert(source, tmp_path / "a.gguf")
    first = open_checkpoint(tmp_path / "a.gguf")
    named = replace(
        first, container="APR v2", metadata={"source_metadata": {"general.name": "N", "general.tags": ["a", "b"]}}
    )
    convert(named, tmp_path / "b.gguf")
    (_, _, b) = chain(open_checkpoint(tmp_path / "b.gguf"), tmp_path, ["c.apr", "d.gguf"])
    assert (b.metadata["general.name"], b.metadata["general.tags"]) == ("N", ["a", "b"])
    again = chain(open_checkpoint(tmp_path / "b.gguf"), tmp_path, ["e.gguf"])[1]
    before, after = (m.metadata for m in (open_checkpoint(tmp_path / "b.gguf"), again))
    assert [(k, after.kind(k)) for k in after] == [(k, before.kind(k)) for k in before]  # type: ignore[attr-defined]


@pytest.mark.parametrize("asked", ["f32", "f16", "bf16", "q4_0", "q5_0", "q8_0", "q4_k", "q5_k", "q6_k"])
def test_quantize(tmp_path: Path, asked: str) -> None:
    """Every matrix in the format, each block as quant writes it; norms and biases untouched."""
    source = model("F32", **WIDE)
    (_, m) = chain(source, tmp_path, ["model.gguf"], quantize=asked)
    for name, w in m.tensors.items():
        x = source.tensors[name]
        format = asked.upper() if len(w.shape) > 1 else "F32"
        assert (w.format, w.data.tobytes()) == (format, quantize(dequantize(x), format).data.tobytes())


def test_quantize_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    """GGUF takes llama.cpp's narrower format; APR pads its rows, as aprender does."""
    source = model("F32")  # rows of 64 and 96 values
    lines = convert(source, tmp_path / "m.gguf", "q4_k")
    assert "Q5_0: rows of 64 are no whole Q4_K blocks" in "\n".join(lines)
    convert(source, tmp_path / "m.apr", "q4_k")
    read = open_checkpoint(tmp_path / "m.apr")
    for name, w in read.tensors.items():
        x = dequantize(source.tensors[next(n for n in source.tensors if QWEN2.renamed(n, "hf") == name)])
        if x.ndim == 2:
            padded = np.pad(x, [(0, 0), (0, -x.shape[1] % 256)])
            assert w.format == "Q4_K" and np.array_equal(
                dequantize(w), dequantize(quantize(padded, "Q4_K"))[:, : x.shape[1]]
            )
    assert values(chain(read, tmp_path, ["n.gguf"])[1]) == values(read)
    assert np.isfinite(logits(read)).all()


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    try:
        status = main(["convert", *map(str, words)])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(model("Q8_0", **WIDE), tmp_path / "a.gguf")
    status, out, err = run(capsys, tmp_path / "a.gguf", tmp_path / "b.apr")
    assert status == 0 and err == ""  # no bar in a pipe
    assert "9 tensors Q8_0 -> F32: apr has no code for Q8_0" in out and "read back and compared" in out
    before = (tmp_path / "b.apr").read_bytes()
    status, out, err = run(capsys, tmp_path / "a.gguf", tmp_path / "b.apr")
    assert (status, out) == (2, "") and "--force" in err and err.count("\n") == 1
    assert (tmp_path / "b.apr").read_bytes() == before
    assert run(capsys, tmp_path / "a.gguf", tmp_path / "b.apr", "--force", "--raw-ggml-codes")[0] == 0
    assert (tmp_path / "b.apr").read_bytes() != before
    assert run(capsys, tmp_path / "a.gguf", tmp_path / "folder")[0] == 0
    assert run(capsys, tmp_path / "a.gguf", tmp_path / "folder", "--force", "--quantize", "f16")[0] == 0
    assert open_checkpoint(tmp_path / "folder").tensors["lm_head.weight"].format == "F16"
    for name in ("v2.5", "v2.5/"):  # said to be a folder, then one that is there
        assert run(capsys, tmp_path / "a.gguf", f"{tmp_path}/{name}")[0] == (0 if name.endswith("/") else 2)
    assert run(capsys, tmp_path / "a.gguf", f"{tmp_path}/v2.5", "--force")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.apr", "folder", "v2.5"]


def test_what_is_lost_is_said_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(replace(model(), vocabulary=lambda: None), tmp_path / "mute.gguf")
    status, _, err = run(capsys, tmp_path / "mute.gguf", tmp_path / "mute.apr")
    assert status == 0 and err == "not in mute.apr: the source has no tokenizer, and so the result has none\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["m.gguf", "m.gguf", "--force"], "the source itself"),
        (["m.gguf", "none/x.apr"], "no such folder"),
        (["m.gguf", "x.safetensors"], ".safetensors is no container's ending"),
        (["m.gguf", "m.ggufx"], ".ggufx is no container's ending; .gguf and .apr are"),
        (["m.gguf", "Qwen2.5-Coder"], "given as NAME/"),
        (["m.gguf", "x.apr", "--quantize", "q8_0"], "apr has no code for it; --raw-ggml-codes"),
        (["m.gguf", "x", "--quantize", "q4_k"], "safetensors has no code for it"),
        (["m.gguf", "x.gguf", "--raw-ggml-codes"], "is for APR"),
        (["m.gguf", "x.apr", "--quantize", "int4"], "invalid choice"),
        (["m.gguf", "other", "--force"], "holds more than a model (sub)"),
        (["m.gguf", "x.gguf", "--force"], "is no file"),
        (["absent.gguf", "y.apr"], "absent.gguf"),
    ],
)
def test_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    convert(model(), tmp_path / "m.gguf")
    (tmp_path / "other" / "sub").mkdir(parents=True)
    if said == "is no file":
        (tmp_path / "x.gguf").mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "") and said in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_tensor_without_a_role_is_not_dropped(tmp_path: Path) -> None:
    source = model()
    source.tensors["rope_freqs.weight"] = replace(source.tensors["output_norm.weight"], name="rope_freqs.weight")
    with pytest.raises(BadInput, match=r"rope_freqs\.weight has no place"):
        convert(source, tmp_path / "m.apr")


def test_what_is_read_back_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that forgets: the file is refused and nothing is left behind."""
    wrote = apr_writer.write_apr

    def forgets(file: Any, *rest: Any) -> None:
        wrote(file, *rest)
        size = file.tell()
        file.seek(size - 4 - 64)
        file.write(b"\x00" * 16)

    monkeypatch.setattr(apr_writer, "write_apr", forgets)
    with pytest.raises(BadInput, match="damaged"):
        convert(model("F16"), tmp_path / "m.apr")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenref.engine.files import convert as command

    monkeypatch.setattr(command.shutil, "disk_usage", lambda path: type("U", (), {"free": 10})())
    with pytest.raises(BadInput, match="are free there"):
        convert(model(), tmp_path / "m.apr")
    monkeypatch.undo()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(apr_writer, "write_apr", full)
    with pytest.raises(BadInput, match="No space left on device"):
        convert(model(), tmp_path / "m.apr")
    assert not list(tmp_path.iterdir())


def test_memory_is_bounded_by_a_slab(tmp_path: Path) -> None:
    """205 MB of F32 become F16 in a process that may not allocate 150 MB (maps of files are not counted)."""
    rows, width = 100_000, 512
    source = model("F32", vocab=272, hidden=width, mlp=64, heads=4, kv_heads=2, head_dim=16, layers=1, tied=True)
    one = source.tensors["token_embd.weight"]
    big = np.lib.stride_tricks.as_strided(dequantize(one)[:1], (rows, width), (0, 4))  # one row, again and again
    path = tmp_path / "big.npy"
    np.save(path, big)
    data = np.load(path, mmap_mode="r").reshape(-1).view(np.uint8)
    source.tensors["token_embd.weight"] = replace(one, shape=(rows, width), data=data)
    convert(
        replace(source, config=replace(source.config, vocab_size=rows), vocabulary=lambda: None), tmp_path / "m.gguf"
    )
    path.unlink()
    code = (
        "import resource, sys; from qwenref.tools.main import main;"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({150 << 20}, {150 << 20}));"
        "sys.exit(main(['convert', *sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m.gguf", tmp_path / "m.apr", "--quantize", "f16"],
        capture_output=True, text=True, check=False, env={**__import__("os").environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.apr").stat().st_size > rows * width * 2


@pytest.mark.oracle
def test_transformers_opens_the_folder(tmp_path: Path) -> None:
    """Weights, configuration and tokenizer: the same ids and, to float32 rounding, the same logits."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    source = model("Q8_0", **WIDE)
    convert(source, tmp_path / "m.gguf")
    convert(open_checkpoint(tmp_path / "m.gguf"), tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, attn_implementation="eager"
    )
    ids = (3, 200, 17, 9)
    with torch.no_grad():
        want = theirs(torch.tensor([ids])).logits[0, -1].numpy()
    assert np.abs(logits(source, ids) - want).max() < 2e-6 * max(1, np.abs(want).max())
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ours = Tokenizer.from_vocabulary(vocabulary(272))
    for text in ("low the  e\u0301", "<|im_start|>user\nhi<|im_end|>", "<tool_call>日本\r\n 12", "don't"):
        assert hf(text).input_ids == ours.prompt_ids(text)
    messages = [{"role": "user", "content": "the"}]
    assert hf.apply_chat_template(messages, tokenize=False) == "<|im_start|>user\nthe<|im_end|>\n"
    assert (hf.eos_token_id, hf.pad_token_id, hf.bos_token_id) == (ours.eos_ids[0], ours.pad_id, None)


@pytest.mark.oracle
@pytest.mark.parametrize("format", ["F32", "F16", "BF16", "Q8_0", "Q4_K"])
def test_llama_cpp_opens_the_gguf(tmp_path: Path, format: str) -> None:
    """From safetensors and APR: its vocabulary, its template, its logits to within 8-bit activations."""
    llama_cpp = pytest.importorskip("llama_cpp")
    source = model(format, **WIDE)
    chain(source, tmp_path, ["a.apr" if format == "Q4_K" else "a", "m.gguf"])
    path = next(tmp_path.glob("*-m.gguf"))
    if format in ("F32", "Q8_0", "Q4_K"):
        kept = {"F32": "F32", "Q8_0": "F32", "Q4_K": "Q4_K"}[format]
        assert open_checkpoint(path).tensors["blk.0.attn_q.weight"].format == kept
    llama = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
    ours = Tokenizer.from_vocabulary(vocabulary(272))
    text = "low the 日本"
    assert llama.tokenize(text.encode(), add_bos=False) == ours.encode(text)
    assert llama.metadata["tokenizer.chat_template"] == source.vocabulary().chat_template  # type: ignore[union-attr]
    ids = (3, 200, 17, 9)
    llama.eval(ids)
    got, want = llama.scores[len(ids) - 1], logits(source, ids)
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 0.02
    assert int(got.argmax()) == int(want.argmax())


def test_gguf_py_reads_what_we_write(tmp_path: Path) -> None:
    from gguf import GGUFReader

    source = model("Q4_K", **WIDE)
    convert(source, tmp_path / "m.gguf")
    reader = GGUFReader(tmp_path / "m.gguf")
    assert {t.name: t.data.tobytes() for t in reader.tensors} == {
        n: w.data.tobytes() for n, w in source.tensors.items()
    }
    assert all(tuple(t.shape.tolist())[::-1] == source.tensors[t.name].shape for t in reader.tensors)
    assert reader.fields["tokenizer.ggml.pre"].contents() == "qwen2"
    assert reader.fields["tokenizer.ggml.tokens"].contents() == vocabulary(272).tokens
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == vocabulary(272).eos_ids[0]
    assert reader.fields["general.file_type"].contents() == 15


@pytest.mark.model
def test_the_real_model_through_apr_and_back(tmp_path: Path, model_path: Path) -> None:
    """Every tensor of the 0.5B byte for byte, every key but those about alignment, and the tokenizer."""
    source = open_checkpoint(model_path)
    convert(source, tmp_path / "m.apr", raw=True)
    apr = open_checkpoint(tmp_path / "m.apr")
    convert(apr, tmp_path / "m.gguf")
    again = open_checkpoint(tmp_path / "m.gguf")
    assert apr.config == again.config == source.config
    for name, w in source.tensors.items():
        hf = QWEN2.renamed(name, "hf")
        assert hf is not None
        for copy in (apr.tensors[hf], again.tensors[name]):
            assert (copy.format, copy.shape) == (w.format, w.shape) and np.array_equal(copy.data, w.data), name
    first, last = source.vocabulary(), again.vocabulary()
    assert first is not None and last is not None
    assert first == last


@pytest.mark.model
@pytest.mark.oracle
def test_the_real_tokenizer_in_transformers(tmp_path: Path, model_path: Path) -> None:
    """From the 0.5B's GGUF to tokenizer.json: AutoTokenizer gives the ids that the publisher's own tokenizer gave."""
    transformers = pytest.importorskip("transformers")
    source = open_checkpoint(model_path)
    v = source.vocabulary()
    one = model("F32", layers=1)
    planned = [Planned("w", "F32", (1,), 4, lambda: iter([np.zeros(4, np.uint8)]))]
    safetensors_writer.write(tmp_path, replace(one, config=source.config), v, planned, None, lambda count: None)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    golden = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "tokenizer.json.gz").read_bytes()))
    assert len(golden["texts"]) > 2000
    wrong = [t for t, ids in zip(golden["texts"], golden["ids"], strict=True) if theirs(t).input_ids != ids]
    assert not wrong
    assert v is not None and theirs.chat_template == v.chat_template


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """Sampling that the model's makers advise, and fields that nobody knows, have no place in every container."""
    convert(model("F16"), tmp_path / "m")
    edit = {"generation_config.json": {"do_sample": True, "temperature": 0.7}, "config.json": {"something_new": 7}}
    for name, more in edit.items():
        path = tmp_path / "m" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    source = open_checkpoint(tmp_path / "m")
    for name, kind in (("a.gguf", "gguf"), ("a.apr", "apr")):
        said = f"left out, with no place in {kind}: generation_config.json's do_sample, generation_config.json's "
        assert f"{said}temperature, config.json's something_new" in convert(source, tmp_path / name)
    assert not any("left out" in line for line in convert(source, tmp_path / "b"))
    again = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert again["temperature"] == 0.7 and open_checkpoint(tmp_path / "b").metadata["config"]["something_new"] == 7

    path = tmp_path / "c.gguf"
    g = Gguf().drop(*(key for key in KEYS if key.startswith("tokenizer.")))
    path.write_bytes(g.put("general.sampling.temp", F32, 0.7).put("qwen2.something_new", F32, 2.0).build())
    lines = convert(open_checkpoint(path), tmp_path / "c")
    assert "left out, with no place in safetensors: qwen2.something_new, general.sampling.temp" in lines
    assert not any("left out" in line for line in convert(open_checkpoint(path), tmp_path / "d.gguf"))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, "u32"),
        (1 << 40, "u64"),
        (-1, "i64"),
        (0.5, "f32"),
        (0.1, "f64"),
        (1e300, "f64"),
        (True, "bool"),
        ("x", "str"),
    ],
)
def test_numbers_of_an_apr_file_in_gguf(tmp_path: Path, value: object, kind: str) -> None:
    """source_metadata is JSON, whose numbers have no type: the smallest that holds them."""
    source = replace(model("F16"), container="APR v2", metadata={"source_metadata": {"general.x": value}})
    convert(source, tmp_path / "m.gguf")
    m: Any = open_checkpoint(tmp_path / "m.gguf").metadata
    assert (m["general.x"], m.kind("general.x")) == (value, kind)


def test_a_number_that_no_type_holds(tmp_path: Path) -> None:
    for wrong in (1 << 70, -(1 << 70)):
        source = replace(model("F16"), container="APR v2", metadata={"source_metadata": {"general.x": wrong}})
        with pytest.raises(BadInput, match=r"key general.x is -?\d+\.*\d*, which is no i64 as GGUF holds it"):
            convert(source, tmp_path / "m.gguf")
        assert list(tmp_path.iterdir()) == []
