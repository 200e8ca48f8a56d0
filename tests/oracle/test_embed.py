"""Models without an output head in Transformers and in llama.cpp as they are installed: vectors, scores and dumps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qwenref
from qwenref.engine.load import open_weights
from qwenref.engine.models.heads import KINDS
from qwenref.tools.dev.golden_embed import IDS, MODELS, write_model
from qwenref.tools.main import main
from qwenref.trace.sources import open_dump
from qwenref.trace.verify.finding import EXACT, REPRODUCED
from qwenref.trace.verify.verify import verify

from .test_family import by_gguf_py, need_transformers

pytestmark = pytest.mark.oracle

OWN = ("ForRewardModel", "ForProcessRewardModel")  # Qwen's code, not Transformers'
HELD = [name for name, c in MODELS.items() if not c["architectures"][0].endswith(OWN)]


@pytest.fixture(params=HELD)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", MODELS[name])
    return tmp_path / "model"


@pytest.mark.parametrize("words", [(), ("--hooks-only",)], ids=["every stage", "hooks only"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_dumps_are_explained(folder: Path, tmp_path: Path, dtype: str, words: tuple[str, ...]) -> None:
    """All of a prompt, and nothing of a head that is not there."""
    need_transformers()
    argv = ["dump-hf", str(folder), str(tmp_path / "dump"), "--tokens", ",".join(map(str, IDS)), "--dtype", dtype]
    assert main([*argv, *words]) == 0
    v = verify(open_dump(tmp_path / "dump"), open_weights(folder).weights)
    assert {f.verdict for f in v.findings} <= {EXACT, REPRODUCED}
    assert len(v.findings) > 20 and v.findings[-1].stage == "final_norm"


def test_hooks_on_the_bare_model_are_judged(tmp_path: Path) -> None:
    """A user's own Qwen2Model, whose modules have no "model." before their names."""
    torch = need_transformers()
    import transformers

    auto: Any = transformers
    write_model(tmp_path, MODELS["qwen2"])
    model = auto.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad(), qwenref.hooks(model, tmp_path / "dump.safetensors"):
        model(torch.tensor([IDS]))
    report = qwenref.verify(tmp_path / "dump.safetensors", tmp_path)
    assert report.status == 0 and len(report.rows) > 20, str(report)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_llama_cpp_has_the_same_vectors(backend: str, tmp_path: Path) -> None:
    """Of GGUF files by gguf-py that say how to pool, and of attention that is not causal. llama.cpp's products of
    float32 weights round nothing but sums, its norms neither: a vector is within 1e-5 of ours."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make oracle)")
    import gguf

    for name, pooling in (("qwen2", 3), ("qwen2", 1), ("qwen3", 3), ("qwen3", 2), ("qwen2, not causal", 1)):
        folder = tmp_path / f"{name} {pooling}"
        folder.mkdir()
        write_model(folder, MODELS[name])
        path = by_gguf_py(folder, folder / "model.gguf")
        prefix = MODELS[name]["model_type"]
        with_keys(path, {f"{prefix}.pooling_type": (gguf.GGUFValueType.UINT32, pooling)}
                  | ({} if "is_causal" not in MODELS[name] else
                     {f"{prefix}.attention.causal": (gguf.GGUFValueType.BOOL, False)}))  # fmt: skip
        m = qwenref.load(path, backend=backend)
        assert m.config.head.kind == "Model"
        theirs = vector_of(llama_cpp, path, len(m.embed(list(IDS))))
        for normalize in (True, False):
            ours = m.embed(list(IDS), normalize=normalize)
            want = theirs / np.linalg.norm(theirs) if normalize else theirs
            assert np.abs(ours - want).max() < 1e-5 * np.abs(want).max(), (name, pooling)


def with_keys(path: Path, keys: dict[str, Any]) -> None:
    """The file with further keys, written anew by gguf-py."""
    import gguf

    reader = gguf.GGUFReader(path)
    arch = reader.get_field("general.architecture").contents()
    out = gguf.GGUFWriter(path.with_suffix(".new"), arch)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            out.add_key_value(key, field.contents(), field.types[0])
    for key, (kind, value) in keys.items():
        out.add_key_value(key, value, kind)
    for t in reader.tensors:
        out.add_tensor(t.name, np.array(t.data))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    path.with_suffix(".new").replace(path)


def vector_of(llama_cpp: Any, path: Path, width: int) -> np.ndarray:
    """llama.cpp's own pooled vector of IDS, through its C interface: the files have no tokenizer."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    how = llama_cpp.llama_context_default_params()
    how.embeddings, how.n_ctx, how.n_batch, how.n_ubatch = True, 64, 64, 64
    how.type_k = how.type_v = 0  # GGML_TYPE_F32
    how.flash_attn_type = 0  # with it on, vectors are 7e-4 from these, as halves would have it
    ctx = llama_cpp.llama_init_from_model(model, how)
    batch = llama_cpp.llama_batch_init(len(IDS), 0, 1)
    batch.n_tokens = len(IDS)
    for t, i in enumerate(IDS):
        batch.token[t], batch.pos[t], batch.n_seq_id[t], batch.logits[t] = i, t, 1, True
        batch.seq_id[t][0] = 0
    assert llama_cpp.llama_decode(ctx, batch) == 0
    found = np.array(llama_cpp.llama_get_embeddings_seq(ctx, 0)[:width], np.float64)
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(ctx)
    llama_cpp.llama_model_free(model)
    return found


def test_transformers_scores_as_they_are_installed(name: str, folder: Path) -> None:
    """In float32, each its own rounding: within 1e-5 of the largest."""
    torch = need_transformers()
    import transformers

    kind = qwenref.load(folder, backend="reference").config.head.kind
    if KINDS[kind].scores is None:
        pytest.skip("it has none")
    cls = getattr(transformers, f"AutoModel{kind}")
    model = cls.from_pretrained(folder, dtype=torch.float32).eval()
    labels = json.loads((folder / "config.json").read_text()).get("id2label")
    m = qwenref.load(folder)
    assert labels is None or m.config.head.labels == tuple(labels.values())
    for ids in (IDS, IDS[:3], IDS[:9]):
        with torch.no_grad():
            want = model(torch.tensor([ids])).logits[0].numpy()
        assert np.abs(m.score(list(ids)) - want).max() < 1e-5 * max(1, np.abs(want).max()), ids
