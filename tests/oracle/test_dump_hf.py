"""engine dump-hf on small random models that Transformers itself makes and saves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (make oracle)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")

from qwenref.engine.files.convert import convert  # noqa: E402
from qwenref.errors import BadInput  # noqa: E402
from qwenref.tools.dev.golden_config import write_case  # noqa: E402
from qwenref.tools.dump_hf import DTYPES, capture, load  # noqa: E402
from qwenref.tools.load import open_weights  # noqa: E402
from qwenref.tools.main import main  # noqa: E402
from qwenref.trace.dump import Dump  # noqa: E402
from qwenref.trace.sources import open_dump  # noqa: E402
from qwenref.trace.stages import of_pieces, shape_for  # noqa: E402
from qwenref.trace.verify.verify import verify  # noqa: E402

from ..models import model  # noqa: E402
from ..tiny import collect, relative, tiny_weights  # noqa: E402

pytestmark = pytest.mark.oracle
QWEN2 = of_pieces(tiny_weights().pieces)
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.fixture
def dump(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Dump]:
    def run(*words: str) -> Dump:
        at = tmp_path / "-".join(("dump", *words))
        assert main(["dump-hf", str(folder), str(at), "--tokens", ",".join(map(str, TOKENS)), *words]) == 0
        assert f"{at}\n" in capsys.readouterr().out
        return open_dump(at)

    return run


def by_phase(d: Dump, phase: int) -> dict[tuple[str, int | None], Any]:
    return {(e.stage.name, e.layer): e.values() for e in d.entries if e.phase == phase}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_stage_of_prompt_and_decode_steps(dump: Callable[..., Dump], folder: Path, dtype: str) -> None:
    d = dump("--dtype", dtype, "--decode-steps", "2")
    d.check_digests()
    sizes = open_weights(str(folder))[0].config.sizes
    expected = {
        (phase, None if s.scope == "whole" else layer, s.name): shape_for(s, sizes, T, len(TOKENS) + phase)
        for phase, T in ((0, len(TOKENS)), (1, 1), (2, 1))
        for s in QWEN2.values()
        for layer in (range(3) if s.scope == "layer" else (0,))
    }
    assert {e.key: e.shape for e in d.entries} == expected
    assert all(e.capture == dict(e.stage.capture) for e in d.entries)
    assert d.run["precision"] == dtype and d.run["tokens"] == TOKENS and len(d.run["generated"]) == 2
    assert d.run["versions"]["transformers"] == transformers.__version__ and d.run["model"]["sha256"]
    assert [n["id"] for n in d.run["next"]][:2] == d.run["generated"]


@pytest.mark.parametrize(
    "words", [("--hooks-only",), ("--attention", "sdpa"), ("--hooks-only", "--attention", "eager")]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hooks_only_is_the_model_as_it_is(
    dump: Callable[..., Dump], folder: Path, dtype: str, words: tuple[str, ...]
) -> None:
    """What it fuses is absent, the logits are its own to the bit, and the judge explains all of it."""
    d = dump("--dtype", dtype, "--decode-steps", "2", *words)
    fused = {"qkv_matmul", "q_post_rope", "k_post_rope", "attn_scores", "attn_softmax"}
    assert (
        {e.stage.name for e in d.entries}
        == {s.name for s in QWEN2.values()} - fused
        == set(QWEN2) - d.run["absent"].keys()
    )
    attention = "eager" if "eager" in words else "sdpa"
    m, ids = load(folder, dtype, attention=attention), torch.tensor([TOKENS + d.run["generated"]])
    assert d.run["backend"] == f"cpu, {attention} attention, nothing patched"
    with torch.no_grad():
        first = m(ids[:, : len(TOKENS)], use_cache=True, logits_to_keep=1)
        second = m(ids[:, len(TOKENS) : len(TOKENS) + 1], past_key_values=first.past_key_values)
    for phase, output in enumerate((first, second)):
        assert np.array_equal(d["lm_head", None, phase], output.logits[0, -1].float().numpy())
    assert verify(d, open_weights(str(folder)).weights).status == 0


def test_float64_is_this_engines_float64(dump: Callable[..., Dump], folder: Path) -> None:
    """Prompt and decode steps, every stage: what is left is the rounding to the file's float32."""
    d = dump("--dtype", "float64", "--decode-steps", "2")
    passes = [TOKENS, *([token] for token in d.run["generated"])]
    for phase, ours in enumerate(collect(open_weights(str(folder))[1], "reference", "f64", *passes)):
        theirs = by_phase(d, phase)
        assert theirs.keys() == ours.keys()
        assert {k: e for k, x in ours.items() if not (e := relative(x, theirs[k])) < 6e-8} == {}


@pytest.mark.parametrize("dtype", UNIT)
def test_other_dtypes_are_that_model_rounded(dump: Callable[..., Dump], folder: Path, dtype: str) -> None:
    """Their distance from float64 is some roundings of the dtype, and every value of 16 bits is one of the dtype's."""
    (exact,) = collect(open_weights(str(folder))[1], "reference", "f64", TOKENS)
    found = by_phase(dump("--dtype", dtype), 0)
    for k, x in found.items():
        values = torch.tensor(np.array(x))
        assert torch.equal(values.to(getattr(torch, dtype)).float(), values)
        error = relative(exact[k], x)
        assert error < 40 * UNIT[dtype]
        assert error > UNIT[dtype] / 40 or (dtype == "float32" and k[0] == "embedding")


@pytest.mark.parametrize("dtype", UNIT)
def test_attention_is_transformers_own_to_the_bit(folder: Path, dtype: str) -> None:
    from transformers.models.qwen2 import modeling_qwen2 as hf

    model, own = load(folder, dtype), hf.eager_attention_forward
    layer = model.model.layers[1].self_attn
    q, k, v = (torch.randn(1, n, s, 8).to(model.dtype) for n, s in ((6, 5), (2, 9), (2, 9)))
    mask = torch.full((5, 9), torch.finfo(model.dtype).min, dtype=model.dtype).triu(5)[None, None]
    seen = {}
    with capture(model, lambda i, stage, x: seen.__setitem__((i, stage), x)):
        ours = hf.eager_attention_forward(layer, q, k, v, mask, layer.scaling)
    for a, b in zip(ours, own(layer, q, k, v, mask, layer.scaling), strict=True):
        assert torch.equal(a, b)
    assert seen.keys() == {(1, s) for s in ("q_post_rope", "k_post_rope", "attn_scores", "attn_softmax", "attention")}
    assert np.array_equal(seen[1, "k_post_rope"], k[0, :, 4:].transpose(0, 1).float().numpy())
    assert not seen[1, "attn_scores"][:, 0, 5:].any() and seen[1, "attn_scores"][:, 0, :5].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_looking_leaves_the_model_as_it_was(folder: Path, dtype: str) -> None:
    """And its answer within the one rounding that splitting the bias off costs."""
    model, ids = load(folder, dtype), torch.tensor([TOKENS])
    with torch.no_grad():
        before = model(ids).logits
        with capture(model, lambda *_: None):
            during = model(ids).logits
        after = model(ids).logits
    assert torch.equal(before, after)
    assert relative(before.float().numpy(), during.float().numpy()) < 40 * UNIT.get(dtype, UNIT["float32"])


def test_chosen_stages_and_layers(dump: Callable[..., Dump]) -> None:
    d = dump("--stages", "attn_softmax,lm_head", "--layers", "1")
    assert [e.key for e in d.entries] == [(0, 1, "attn_softmax"), (0, None, "lm_head")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--device", "nowhere"], "device nowhere"),
        (["--stages", "qkv"], "unknown stage 'qkv'"),
        (["--layers", "3"], "layer 3 is past the last"),
        (["--tokens", "101"], "outside the vocabulary"),
        (["-p", "text"], "no tokenizer"),
        (["--decode-steps", "60"], "do not fit"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    given = words if words[0] in {"--tokens", "-p"} else ["--tokens", "3,1,4,1,5", *words]
    assert main(["dump-hf", str(folder), str(tmp_path / "dump"), *given]) == 2
    line = capsys.readouterr().err
    assert says in line and line.count("\n") == 1 and not list(tmp_path.iterdir())


def test_another_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    with pytest.raises(BadInput, match="gemma2"):
        load(tmp_path)


def test_biases_that_transformers_leaves_out_of_a_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m = model("F16", model_type="llama", asked=("attention_bias",))
    convert(m, tmp_path / "tiny.gguf")
    argv = ["--tokens", "1,2,3"]
    assert main(["dump-hf", str(tmp_path / "tiny.gguf"), str(tmp_path / "dump"), *argv]) == 2
    said = capsys.readouterr().err
    assert "leaves out of it what qkv_bias, attn_out_bias are made of; engine convert makes a folder" in said
    convert(m, tmp_path / "folder")
    assert main(["dump-hf", str(tmp_path / "folder"), str(tmp_path / "dump"), *argv]) == 0


@pytest.mark.model
def test_a_gguf_is_dumped_as_the_golden_has_it(model_path: Path, tmp_path: Path) -> None:
    """The 0.5B through the command: the float32 run that tests/golden/hf_stages.npz was made from."""
    from qwenref.tools.dev.golden_stages import key, rms, signed_sums

    assert main(["dump-hf", str(model_path), str(tmp_path / "dump"), "-p", "What is 2+2?"]) == 0
    d = open_dump(tmp_path / "dump")
    with np.load(Path(__file__).parents[1] / "golden" / "hf_stages.npz") as golden:
        assert d.run["tokens"] == golden["two_plus_two/prompt_ids"].tolist() and d.run["next"][0]["id"] == 576
        rows = zip(*(golden[f"two_plus_two/{k}"] for k in ("stages", "rms", "sums", "float32_error")), strict=True)
        found = {key(e.layer, e.stage.name): e.values() for e in d.entries}
        for stage, size, sums, error in rows:
            x = found.pop(str(stage))
            assert rms(signed_sums(x) - sums) / (size * np.sqrt(x.size)) < 3 * error + 1e-12, stage
    assert not found


def test_weights_that_transformers_makes_up(tmp_path: Path) -> None:
    """Names under torch.compile's prefix are read here and not by Transformers, whose model is then random."""
    write_case(tmp_path, "prefix _orig_mod.")
    with pytest.raises(BadInput, match=r"finds no lm_head.weight in it and takes random numbers; engine convert"):
        load(tmp_path)
    (tmp_path / "as-it-is").mkdir()
    write_case(tmp_path / "as-it-is", "as it is")
    load(tmp_path / "as-it-is")


def test_a_file_of_that_name_in_the_working_directory_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers takes that one before the one that was named."""
    (tmp_path / "here").mkdir()
    convert(model(), tmp_path / "tiny.gguf")
    convert(model(seed=1), tmp_path / "here" / "tiny.gguf")
    monkeypatch.chdir(tmp_path / "here")
    head = load(tmp_path / "tiny.gguf").lm_head.weight.detach().numpy()
    assert np.array_equal(head, model().tensors["output.weight"].data.view("<f4").reshape(head.shape))


# ---- batches, and quantised weights


def test_rows_of_a_batch_are_judged_as_if_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GGUF with a tokenizer; padded on the left, two steps. A row's tokens are those of its own run."""
    at, out = tmp_path / "tiny.gguf", tmp_path / "batch.safetensors"
    convert(model("F16"), at)
    (tmp_path / "prompts").write_text("low\nthe lowest of the low\nthe\n")
    words = [str(at), "--decode-steps", "2"]
    assert main(["dump-hf", words[0], str(out), "--batch", str(tmp_path / "prompts"), *words[1:]]) == 0
    said = capsys.readouterr()
    rows = [line.split(",")[1].split("then ")[1].split(" ")[:3] for line in said.out.splitlines()[:3]]
    assert "absent, since Transformers fuses them: qkv_matmul" in said.err
    for row, prompt in enumerate(["low", "the lowest of the low", "the"]):
        assert main(["verify", str(out), str(at), "--row", str(row), "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["stages"]) > 30
        alone = tmp_path / f"alone-{row}"
        assert main(["dump-hf", words[0], str(alone), "-p", prompt, "--hooks-only", *words[1:]]) == 0
        capsys.readouterr()
        assert [str(n["id"]) for n in open_dump(alone).run["next"]] == rows[row]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out"], "out: --batch writes one file; name it out.safetensors"),
        (["o.safetensors", "-p", "x"], "--batch has the prompts; leave --prompt away"),
        (["o.safetensors", "--layers", "0"], "--batch keeps every stage of every layer"),
        (["o.safetensors", "--chat"], "--batch takes each line as it stands"),
        (["there.safetensors"], "there.safetensors: is there already"),
    ],
)
def test_a_batch_that_can_not_be(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    convert(model("F16"), tmp_path / "tiny.gguf")
    (tmp_path / "prompts").write_text("low\n")
    (tmp_path / "there.safetensors").write_text("mine")
    assert main(["dump-hf", "tiny.gguf", words[0], "--batch", "prompts", *words[1:]]) == 2
    assert capsys.readouterr().err.startswith(f"engine dump-hf: {said}")
    (tmp_path / "none").write_text("")
    assert main(["dump-hf", "tiny.gguf", "o.safetensors", "--batch", "none"]) == 2
    assert capsys.readouterr().err.startswith("engine dump-hf: none: 0 prompts")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["none", "prompts", "there.safetensors", "tiny.gguf"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_weights_run_in_their_own_library(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As bitsandbytes quantises, saves and multiplies them; its CPU kernels want such sizes."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import has_avx512bf16

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=101, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path / "plain")
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
    )
    saved = tmp_path / "saved"
    auto: Any = transformers.AutoModelForCausalLM
    auto.from_pretrained(tmp_path / "plain", quantization_config=how, dtype=getattr(torch, dtype)).save_pretrained(
        saved
    )
    words = ["dump-hf", str(saved), str(tmp_path / "dump"), "--tokens", "3,1,4,1,5", "--dtype", dtype]
    assert main(words) == 2
    assert "has quantised weights, whose products can not be taken apart; give --hooks-only" in capsys.readouterr().err
    assert main([*words, "--hooks-only"]) == 0
    mine = open_dump(tmp_path / "dump").get("lm_head", None, 0)
    theirs = auto.from_pretrained(saved, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        logits = theirs(torch.tensor([[3, 1, 4, 1, 5]]), logits_to_keep=1).logits[0, -1].float().numpy()
    assert mine is not None and np.array_equal(mine.values().reshape(-1), logits)
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "dump"), str(saved), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {f["verdict"] for f in told["stages"]} <= {"exact", "reproduced"}
    assert ("4-bit levels and sizes in bfloat16" in told["recipe_words"]) == has_avx512bf16()
