"""Models without an output head: vectors and scores as Transformers computes them (tests/golden/embed.npz, made by
tools/dev/golden_embed.py, which has the models), in every container that has a place for them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qwenref
from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.kernels import backend
from qwenref.errors import BadInput
from qwenref.tools.dev.golden_embed import IDS, MODELS, write_model
from qwenref.tools.main import main
from qwenref.trace.verify.finding import EXACT, REPRODUCED

from ..gguf_builder import D as WIDTH
from ..gguf_builder import F, Gguf, f32
from ..models import model as with_tokenizer
from ..tiny import collect, tiny_weights, write_gguf

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "embed.npz")
SCORED = [name for name in MODELS if f"{name}/scores" in GOLDEN]
POOLED = [name for name in MODELS if name not in SCORED]
POOLINGS = ("last", "mean", "cls")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp("model") for name in MODELS}
    for name, folder in found.items():
        write_model(folder, MODELS[name])
    return found


def far(x: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(x - want).max() / np.abs(want).max())


def test_the_golden_file_is_of_these_models() -> None:
    assert {name.split("/")[0] for name in GOLDEN if name != "provenance"} == set(MODELS)
    assert all(np.isfinite(GOLDEN[name]).all() for name in GOLDEN if name != "provenance")


@pytest.mark.parametrize("name", MODELS)
def test_rows_vectors_and_scores_are_transformers_in_float64(name: str, folders: dict[str, Path]) -> None:
    m = qwenref.load(folders[name], backend="reference", precision="f64")
    rows = collect(m.opened.weights, "reference", "f64", IDS)[0]["final_norm", None]
    assert far(rows, GOLDEN[f"{name}/rows"]) < 1e-12
    for way in POOLINGS:
        v = m.embed(list(IDS), pooling=way)
        assert v.dtype == np.float64 and far(v, GOLDEN[f"{name}/{way}"]) < 1e-12, way
    if name in SCORED:
        assert far(m.score(list(IDS)), GOLDEN[f"{name}/scores"]) < 1e-12
        assert len(m.config.head.labels) == GOLDEN[f"{name}/scores"].shape[-1]


@pytest.mark.parametrize("name", MODELS)
def test_the_cpu_is_as_near_as_float32_lets_it(name: str, folders: dict[str, Path]) -> None:
    """Every stage of a float32 pass is explained to its rounding (below); through two layers of this width these come
    to 1e-5 of a vector at most (seen: 1.5e-6)."""
    m = qwenref.load(folders[name])
    dump = m.trace(list(IDS), stages="final_norm")
    for way in POOLINGS:
        v = m.embed(list(IDS), pooling=way)
        assert v.dtype == np.float32 and far(v, GOLDEN[f"{name}/{way}"]) < 1e-5, way
        raw = m.embed(list(IDS), pooling=way, normalize=False)
        assert np.allclose(raw / np.linalg.norm(raw.astype(np.float64)), v, rtol=1e-6, atol=1e-7)
    assert np.array_equal(m.embed(list(IDS), pooling="last", normalize=False), dump["final_norm", None][-1])
    if name in SCORED:
        assert far(m.score(list(IDS)), GOLDEN[f"{name}/scores"]) < 1e-5


@pytest.mark.parametrize("name", ["qwen3", "qwen2, labels, not causal"])
def test_all_of_it_is_traced_and_judged_but_a_head(name: str, folders: dict[str, Path]) -> None:
    m = qwenref.load(folders[name])
    dump = m.trace(list(IDS))
    assert list(dump)[-1] == ("final_norm", None, 0)
    found = qwenref.verify(dump, m).rows
    assert {row["verdict"] for row in found} <= {EXACT, REPRODUCED} and len(found) == len(list(dump)) > 35


def test_a_long_text_goes_in_parts_and_means_the_same(folders: dict[str, Path]) -> None:
    """More positions than one pass takes: the vector is that of the rows of the whole trace."""
    w = tiny_weights(layers=1, hidden=16, heads=2, kv_heads=1, head_dim=8, mlp=16, vocab=32)
    from qwenref.engine.embed import embed

    k, ids = backend("cpu"), [i * 7 % 32 for i in range(700)]
    prepared = k.prepare(w, "f32")
    rows = collect(w, "cpu", "f32", ids)[0]["final_norm", None].astype(np.float64)
    for way, want in (("last", rows[-1]), ("mean", rows.mean(0)), ("cls", rows[0])):
        got = embed(ids, prepared, k, "f32", way, normalize=False)
        assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max(), way


@pytest.mark.parametrize("name", MODELS)
def test_containers_keep_it_or_refuse_by_name(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    m = open_checkpoint(folders[name])
    title = f"{m.config.architecture.title}{m.config.head.kind}"
    for kind in ("apr", "gguf"):
        if kind == "apr" or name in SCORED:
            with pytest.raises(BadInput, match=f"{kind} has no place for ({title}|attention that is not causal)"):
                convert(m, tmp_path / f"a.{kind}")
            assert not (tmp_path / f"a.{kind}").exists()
    way = tmp_path / "a"
    if name in POOLED:
        convert(m, tmp_path / "a.gguf")
        m = open_checkpoint(tmp_path / "a.gguf")
        assert m.config.head.pooling == "last"  # which GGUF must say of a model without a head
    convert(m, way)
    again = qwenref.load(way)
    assert again.config == m.config
    first = qwenref.load(folders[name])
    assert np.array_equal(again.embed(list(IDS)), first.embed(list(IDS)))
    if name in SCORED:
        assert np.array_equal(again.score(list(IDS)), first.score(list(IDS)))


def st_files(folder: Path, modules: list[str], **pooling: Any) -> None:
    """What sentence-transformers lays beside a model."""
    spelled = [
        {"idx": i, "name": str(i), "path": f"{i}_{m}" * (i > 0), "type": f"sentence_transformers.models.{m}"}
        for i, m in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(spelled))
    for i, m in enumerate(modules):
        if m == "Pooling":
            (folder / f"{i}_{m}").mkdir()
            (folder / f"{i}_{m}" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | pooling))


@pytest.mark.parametrize(
    ("modules", "pooling", "way"),
    [
        (["Transformer", "Pooling", "Normalize"], {"pooling_mode_lasttoken": True}, "last"),
        (["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        (["Transformer", "Pooling"], {"pooling_mode_cls_token": True}, "cls"),
        (["Transformer", "Pooling"], {"pooling_mode": "lasttoken"}, "last"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "'max_tokens', which is not computed"),
        (["Transformer", "Pooling"], {"pooling_mode_weightedmean_tokens": True, "pooling_mode_cls_token": True},
         "'weightedmean_tokens and cls', which"),
        (["Transformer", "Pooling", "Dense"], {"pooling_mode_mean_tokens": True}, "'mean, then Dense', which is not"),
    ],
)  # fmt: skip
def test_the_pooling_is_what_the_files_say(
    tmp_path: Path, modules: list[str], pooling: dict[str, Any], way: str
) -> None:
    write_model(tmp_path, MODELS["qwen2"])
    st_files(tmp_path, modules, **pooling)
    m = qwenref.load(tmp_path, backend="reference", precision="f64")
    if way in POOLINGS:
        assert far(m.embed(list(IDS)), GOLDEN[f"qwen2/{way}"]) < 1e-12
    else:
        with pytest.raises(BadInput, match=way):
            m.embed(list(IDS))
    assert far(m.embed(list(IDS), pooling="cls"), GOLDEN["qwen2/cls"]) < 1e-12


def test_a_tied_folder_that_says_how_to_pool_is_an_embedding_model(tmp_path: Path) -> None:
    """As Qwen3-Embedding's: a causal language model by its class, whose head is nobody's."""
    write_model(tmp_path, MODELS["qwen3"] | {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True})
    assert open_checkpoint(tmp_path).config.head.kind == "ForCausalLM"
    st_files(tmp_path, ["Transformer", "Pooling", "Normalize"], pooling_mode_lasttoken=True)
    (tmp_path / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')
    m = qwenref.load(tmp_path, backend="reference", precision="f64")
    assert m.config.head.kind == "Model" and not m.config.tie_word_embeddings
    assert "a prompt, 'query', goes before every text there" in m.notes[-2]
    assert far(m.embed(list(IDS)), GOLDEN["qwen3/last"]) < 1e-12


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("modules.json", "{}", "a list of modules is needed"),
        ("modules.json", "[1]", "must be an object"),
        ("modules.json", '[{"type": "a.Pooling", "path": "../x"}]', "a folder beside it"),
        ("modules.json", '[{"type": "a.Pooling", "path": "nowhere"}]', "no such file; modules.json says"),
        ("modules.json", "[", "modules.json"),
        ("config_sentence_transformers.json", '{"default_prompt_name": 3}', "must be text"),
        ("1_Pooling/config.json", '{"pooling_mode_lasttoken": "yes"}', "must be true or false"),
    ],
)
def test_files_that_lie(tmp_path: Path, file: str, text: str, says: str) -> None:
    write_model(tmp_path, MODELS["qwen2"])
    st_files(tmp_path, ["Transformer", "Pooling"], pooling_mode_lasttoken=True)
    (tmp_path / file).write_text(text)
    with pytest.raises(BadInput, match=says) as error:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "id2label has 2 labels; the head has 3 rows"),
        ({"id2label": ..., "num_labels": 5}, "num_labels has 5 labels; the head has 3 rows"),
        ({"id2label": {"0": 1, "1": "b", "2": "c"}}, "labels are texts"),
        ({"pad_token_id": "x"}, "pad_token_id is 'x'"),
        ({"is_causal": 1}, "is_causal is 1; it must be true or false"),
        ({"is_causal": False, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "windows"),
        ({"architectures": ["Qwen2ForTokenClassification"]}, "tensor score.bias or cls.output.bias is missing"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "'score.weight': a Qwen2 model of 2 layers has no use for it"),
    ],
)
def test_labels_that_lie(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_model(tmp_path, MODELS["qwen2, labels"])
    config = {k: v for k, v in (MODELS["qwen2, labels"] | changes).items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=says):
        qwenref.load(tmp_path)


def test_gguf_says_how_to_pool(tmp_path: Path) -> None:
    """pooling_type 0 to 4 is none, mean, cls, last, rank (gguf-py); with one, and no output.weight, it has no head."""
    whole = Gguf()
    bare = whole.drop("output.weight")

    def head(file: Gguf) -> tuple[str, str, bool]:
        (tmp_path / "m.gguf").write_bytes(file.build())
        c = open_checkpoint(tmp_path / "m.gguf").config
        return c.head.kind, c.head.pooling, c.tie_word_embeddings

    assert head(whole) == ("ForCausalLM", "", False) and head(bare) == ("ForCausalLM", "", True)
    assert head(bare.put("qwen2.pooling_type", 4, 0)) == ("ForCausalLM", "", True)
    assert head(bare.put("qwen2.pooling_type", 4, 3)) == ("Model", "last", False)
    assert head(bare.put("qwen2.pooling_type", 4, 1)) == ("Model", "mean", False)
    assert head(whole.put("qwen2.pooling_type", 4, 3)) == ("ForCausalLM", "last", False)
    with pytest.raises(BadInput, match="pooling_type is 9"):
        head(bare.put("qwen2.pooling_type", 4, 9))
    (tmp_path / "m.gguf").write_bytes(bare.put("qwen2.attention.causal", 7, 0).build())
    assert not open_checkpoint(tmp_path / "m.gguf").config.causal


def test_a_reranker_of_gguf(tmp_path: Path) -> None:
    """llama.cpp's converter keeps the rows of yes and no of Qwen3-Reranker's head as cls.output.weight: the scores are
    these products, and their labels the file's."""
    from dataclasses import replace

    whole = Gguf().drop("output.weight").put("qwen2.pooling_type", 4, 4)
    file = replace(whole, tensors=[*whole.tensors, f32("cls.output.weight", 2, WIDTH)])
    (tmp_path / "m.gguf").write_bytes(file.build())
    m = qwenref.load(tmp_path / "m.gguf", backend="reference", precision="f64")
    assert m.config.head.labels == ("LABEL_0", "LABEL_1")
    row = m.embed([1, 2, 3], pooling="last", normalize=False)
    rows = np.random.default_rng(len("cls.output.weight")).standard_normal((2, WIDTH)).astype("<f4")
    assert far(m.score([1, 2, 3]), rows.astype(np.float64) @ row) < 1e-14
    convert(m.opened.checkpoint, tmp_path / "a")
    assert np.array_equal(
        qwenref.load(tmp_path / "a").score([1, 2, 3]), qwenref.load(tmp_path / "m.gguf").score([1, 2, 3])
    )
    (tmp_path / "b.gguf").write_bytes(replace(file, tensors=[*whole.tensors, f32("cls.output.weight", 2, F)]).build())
    with pytest.raises(BadInput, match=r"cls\.output\.weight has shape"):
        qwenref.load(tmp_path / "b.gguf")


def test_what_has_no_head_says_what_to_use(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("a text\n")
    bare, scored, loose = (str(folders[n]) for n in ("qwen2", "qwen2, labels", "qwen2, not causal"))
    vectors, scores = "no output head; engine embed gives its vectors", "it has scores, which engine score gives"
    for line, says in (
        (["run", bare, "--tokens", "1"], vectors),
        (["run", scored, "--tokens", "1"], scores),
        (["eval", bare, "-f", str(tmp_path / "text")], vectors),
        (["bench", bare], vectors),
        (["trace", bare, "--tokens", "1", "--payload", "--decode-steps", "1"], vectors),
        (["trace", loose, "--tokens", "1", "--save-tensor", "lm_head", "--save-tensor-dir", str(tmp_path / "d")],
         "this model has no stage lm_head; its stages are embedding"),
        (["score", bare, "--tokens", "1"], "Qwen2Model has no head that scores; engine embed gives vectors"),
        (["embed", bare, "hello"], "no tokenizer"),
        (["embed", bare], "no text; give MODEL and a TEXT"),
        (["embed", bare, "x", "--tokens", "1"], "texts come from words and --tokens"),
        (["embed", bare, "--tokens", "1", "--tokens", "99"], "text 2 of 2: token id 99 is outside the vocabulary"),
    ):  # fmt: skip
        assert main(line) == 2, line
        said = capsys.readouterr()
        assert says in said.err and said.out == "" and said.err.count("\n") == 1, line
    assert not (tmp_path / "d").exists()
    m = qwenref.load(folders["qwen2"])
    for ask in (m.generate, m.logits):
        with pytest.raises(BadInput, match=vectors):
            ask([1, 2])
    with pytest.raises(BadInput, match="scores each token"):
        qwenref.load(folders["qwen2, tokens"]).score(["a", "b"])


def test_the_commands(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(folders["qwen2"])
    assert main(["embed", name, "--tokens", "5,9", "--tokens", "7", "--npy", str(tmp_path / "v.npy")]) == 0
    assert capsys.readouterr().out == ""
    v = np.load(tmp_path / "v.npy")
    assert v.shape == (2, 32) and v.dtype == np.float32 and np.allclose(np.linalg.norm(v, axis=1), 1)
    assert main(["embed", name, "--tokens", "5,9", "--tokens", "7", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["pooling"] == "last" and [t["ids"] for t in said["texts"]] == [[5, 9], [7]]
    assert np.array_equal(np.array([t["vector"] for t in said["texts"]], np.float32), v)
    assert main(["embed", name, "--tokens", "5,9"]) == 0
    assert np.array_equal(np.array(capsys.readouterr().out.split(), np.float32), v[0])
    assert main(["score", str(folders["qwen2, labels"]), "--tokens", ",".join(map(str, IDS)), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["labels"] == ["bad", "fair", "good"]
    assert far(np.array(said["texts"][0]["scores"]), GOLDEN["qwen2, labels/scores"]) < 1e-5
    assert main(["score", str(folders["qwen2, tokens"]), "--tokens", "5,9,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["5", "LABEL_0"], ["9", "LABEL_0"], ["1", "LABEL_0"]]


def test_texts_alone_and_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a tokenizer: a list of texts is each of them alone, and any model gives vectors."""
    convert(with_tokenizer(), tmp_path / "m.gguf")
    m = qwenref.load(tmp_path / "m.gguf", backend="reference")
    both = m.embed(["low", "lower still"])
    assert np.array_equal(both, np.stack([m.embed("low"), m.embed(m.prompt_ids("lower still"))]))
    (tmp_path / "lines").write_text("low\nlower still\n")
    words = ["embed", "--backend", "reference", "--json", str(tmp_path / "m.gguf")]
    assert main([*words, "low", "lower still"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert main([*words, "-f", str(tmp_path / "lines")]) == 0
    assert json.loads(capsys.readouterr().out) == one
    assert np.array_equal(np.array([t["vector"] for t in one["texts"]], np.float32), both)
    assert main([*words, "low", ""]) == 2 and "text 2 of 2 is empty" in capsys.readouterr().err
    write_gguf(tmp_path / "silent.gguf", tiny_weights())
    with pytest.raises(BadInput, match="no tokenizer"):
        qwenref.load(tmp_path / "silent.gguf", backend="reference").embed(["low"])


def test_attention_that_sees_all_is_judged_as_such(folders: dict[str, Path]) -> None:
    """A causal engine on a model that is not, and the other way round, is named."""
    causal, loose = qwenref.load(folders["qwen2"]), qwenref.load(folders["qwen2, not causal"])
    report = qwenref.verify(causal.trace(list(IDS)), loose)
    bad = {row["stage"] for row in report.rows if row["verdict"] == "unexplained"}
    assert bad and bad <= {"attn_scores", "attn_softmax", "attention"}
    assert "it is causal, and this model's attention is not" in str(report)
    report = qwenref.verify(loose.trace(list(IDS)), causal)
    assert "the causal mask is missing" in str(report)
    with pytest.raises(BadInput, match="no output head"):
        loose.trace(list(IDS), decode_steps=1)
