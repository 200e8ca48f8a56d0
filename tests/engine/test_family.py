"""Every architecture of the page against Transformers (tests/golden/family.npz, made by tools/dev/golden_family.py,
which has the models), and what containers do to it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.files.diff_weights import tensor_rows
from qwenref.engine.generate import generate
from qwenref.engine.kernels import backend
from qwenref.engine.load import open_weights
from qwenref.engine.models import ARCHITECTURES
from qwenref.engine.models.vision import VISIONS
from qwenref.engine.weights import parts
from qwenref.errors import BadInput
from qwenref.quant.tensor import dequantize
from qwenref.tools.dev.golden_config import IDS, write_tensors
from qwenref.tools.dev.golden_family import MODELS, PASSES, write_family
from qwenref.tools.dev.golden_stages import key, rms, signed_sums

from ..family import CONTAINERS
from ..tiny import collect
from .files.test_quantised import MODELS as QUANTISED

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "family.npz")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp("model") for name in MODELS}
    for name, folder in found.items():
        write_family(folder, MODELS[name])
    return found


def test_the_table_has_every_model_in_every_container_and_no_row_that_is_not_right() -> None:
    page = (Path(__file__).parents[2] / "docs" / "family.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[2:7]] for line in page.splitlines() if line.startswith("| ")][1:]
    told = {(name, container) for name, container, *_ in rows}
    assert told >= {(name, container) for name in ("qwen2", *MODELS) for container in CONTAINERS}
    assert told >= {(name.removeprefix("model "), "safetensors") for name in QUANTISED}
    for name, container, ids, stages, judged in rows:
        assert all(a == b for a, b in (cell.split(" of ") for cell in (ids, judged) if cell)), (name, container)
        assert float(stages.split()[0]) < (1e-9 if (name, container) == ("llama", "GGUF") else 1e-12), (name, container)


def test_every_architecture_has_a_model() -> None:
    known = {of.model_type for of in (*ARCHITECTURES, *VISIONS)}
    assert {m["model_type"] for m in MODELS.values()} | {"qwen2"} == known


@pytest.mark.parametrize("name", MODELS)
def test_stages_are_transformers_in_float64(name: str, folders: dict[str, Path]) -> None:
    """Every stage of a prompt and of two steps behind it: within 1e-12."""
    w = open_weights(folders[name]).weights
    found = {
        f"{n}/{key(layer, stage)}": x
        for n, kept in enumerate(collect(w, "reference", "f64", *PASSES))
        for (stage, layer), x in kept.items()
    }
    names = GOLDEN[f"{name}/stages"].tolist()
    assert set(names) == set(found) and len(names) > 100
    for at, sums, size in zip(names, GOLDEN[f"{name}/sums"], GOLDEN[f"{name}/rms"], strict=True):
        x = found[at]
        off = np.sqrt(np.mean(np.square(signed_sums(x) - sums)) / x.size)
        assert off <= 1e-12 * size and abs(rms(x) - size) <= 1e-12 * size, at


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("which", ["reference", "cpu"])
def test_the_same_ids_as_transformers(name: str, which: str, folders: dict[str, Path]) -> None:
    k, ids = backend(which), GOLDEN[f"{name}/ids"].tolist()
    w = k.prepare(open_weights(folders[name]).weights, "f32")
    assert list(generate(IDS, w, k, "f32", len(ids))) == ids


@pytest.mark.parametrize("name", MODELS)
def test_containers_keep_it(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """The same values at every role, through GGUF's order of rows and back; and what a container cannot say is said."""
    m, before = open_weights(folders[name])
    lost: list[str] = []
    convert(m, tmp_path / "a.gguf", lost=lost.append)
    assert any("GGUF has it as llama" in line for line in lost) == (name == "mistral, no window")
    convert(open_checkpoint(tmp_path / "a.gguf"), tmp_path / "b.apr")
    convert(open_checkpoint(tmp_path / "b.apr"), tmp_path / "c")
    for made in ("a.gguf", "b.apr", "c"):
        other, after = open_weights(tmp_path / made)
        assert after.pieces == before.pieces
        assert after.config.windows == before.config.windows and other.config.head_dim == m.config.head_dim
        for one, two in zip(after.layers, before.layers, strict=True):
            for field in before.pieces & {f.name for f in fields(one)}:
                both = zip(parts(getattr(one, field)), parts(getattr(two, field)), strict=True)
                assert all(np.array_equal(dequantize(x), dequantize(y)) for x, y in both), (made, field)
        assert all(row.verdict.startswith("identical") for row, _ in tensor_rows(m, other))


O_BIAS, UP_BIAS = "model.layers.0.self_attn.o_proj.bias", "model.layers.0.mlp.up_proj.bias"


@pytest.mark.parametrize(
    ("name", "changes", "without", "says"),
    [
        ("llama", {"attention_bias": True}, "", f"attention_bias is true, and there is no tensor {O_BIAS[:-11]}q_proj"),
        ("llama", {"mlp_bias": "yes"}, "", "mlp_bias is 'yes'; it must be true or false"),
        ("llama, biases", {"mlp_bias": False}, "", "mlp_bias is false, so that Transformers leaves out tensor"),
        ("llama, biases", {"attention_bias": ...}, "", "attention_bias is not there, so that Transformers leaves out"),
        (
            "qwen3, biases",
            {},
            "o_proj.bias",
            f"attention_bias is true, and there is no tensor {O_BIAS}; add it, as zer",
        ),
        ("llama, biases", {}, UP_BIAS, f"tensor {UP_BIAS} or blk.0.ffn_up.bias is missing"),
        ("llama, biases", {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "", "has no use for it"),
    ],
)
def test_config_and_tensors_agree_on_biases(
    name: str, changes: dict[str, Any], without: str, says: str, tmp_path: Path
) -> None:
    """Transformers goes by config.json, llama.cpp by the tensors: a file in which they differ is two models."""
    write_family(tmp_path, MODELS[name])
    tensors = open_checkpoint(tmp_path).tensors
    kept = {t: ("F32", dequantize(w)) for t, w in tensors.items() if not (without and t.endswith(without))}
    write_tensors(tmp_path, {k: v for k, v in (MODELS[name] | changes).items() if v is not ...}, kept)
    with pytest.raises(BadInput) as error:
        open_weights(tmp_path)
    assert says in str(error.value)


def test_some_biases_of_a_gguf_file(tmp_path: Path) -> None:
    """Its tensors say which: a model with those of Q, K and V alone runs, and no config.json can say it."""
    write_family(tmp_path, MODELS["qwen3, biases"])
    m = open_checkpoint(tmp_path)
    convert(
        replace(m, tensors={t: w for t, w in m.tensors.items() if not t.endswith("o_proj.bias")}), tmp_path / "a.gguf"
    )
    some, w = open_weights(tmp_path / "a.gguf")
    assert "qkv_bias_E" in w.pieces and "attn_out_bias_D" not in w.pieces
    lacking = {row.name for row, _ in tensor_rows(m, some) if row.verdict == "only in A"}
    assert lacking == {t for t in m.tensors if t.endswith("o_proj.bias")} and lacking
    with pytest.raises(BadInput, match=r"o_proj\.bias is not: config\.json's attention_bias is of both"):
        convert(some, tmp_path / "b")
    assert not (tmp_path / "b").exists()
