"""RoPE as data: frequencies, magnitudes, angles and whole models as Transformers has them (tests/golden/rope.npz, made
by tools/dev/golden_rope.py, which has the cases)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine import rope, rope_gguf
from qwenref.engine.config import Config, from_hf
from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.forward import forward
from qwenref.engine.generate import check_prompt, new_tokens
from qwenref.engine.kernels import backend
from qwenref.engine.kernels.reference import Array
from qwenref.engine.load import bound, open_weights
from qwenref.engine.tap import SILENT
from qwenref.engine.weights import Weights
from qwenref.errors import BadInput
from qwenref.tools.dev.golden_config import CONFIG, write_folder
from qwenref.tools.dev.golden_rope import IDS, MODELS, ORIGINAL, POSITIONS, SHORT, STEPS, TABLES, config_of
from qwenref.tools.dev.golden_stages import key, rms, signed_sums

from ..tiny import collect

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "rope.npz")
U = 2.0**-24
STEPWISE = (IDS[:-STEPS], *((i,) for i in IDS[-STEPS:]))


def read(name: str) -> Config:
    return from_hf(config_of(name), own_head=True)[0]


@pytest.mark.parametrize("name", TABLES)
def test_frequencies_are_transformers_to_the_bit(name: str) -> None:
    c = read(name)
    for which, beyond in (("short", False), ("long", True)):
        found = rope.frequencies(c.rope_theta, c.head_dim, c.rope_scaling, beyond)
        np.testing.assert_array_equal(found.view(np.int32), GOLDEN[f"{name}/{which}"].view(np.int32))
    assert c.rope_scaling.attention_factor == GOLDEN[f"{name}/magnitude"]


@pytest.mark.parametrize("name", TABLES)
def test_frequencies_in_float64_are_the_same_formula(name: str) -> None:
    """Unrounded ones, for engines that round nothing: as far from those in float32 as its few roundings move them."""
    c = read(name)
    one, two = (rope.frequencies(c.rope_theta, c.head_dim, c.rope_scaling, dtype=t) for t in (np.float32, np.float64))
    # An exponent that is rounded moves its power by u ln(theta); a ramp's ends move what lies between by as much again.
    assert np.abs(one - two).max() <= 0 or (np.abs(one - two) / two).max() < 64 * U


@pytest.mark.parametrize("name", [name for name in TABLES if f"{name}/cos" in GOLDEN])
@pytest.mark.parametrize("where", ["reference", "cpu"])
def test_angles_past_any_context(name: str, where: str) -> None:
    """Cosine and sine, times the magnitude, at positions past 32,768 and 131,072: turned unit vectors show them.

    Both sides round a cosine that each has to an ulp or so, the magnitude, and their product.
    """
    c, k = read(name), backend(where)
    freq_h, size = rope.frequencies(c.rope_theta, c.head_dim, c.rope_scaling), c.rope_scaling.attention_factor
    unit = np.zeros((1, 1, c.head_dim), np.float32)
    unit[..., : c.head_dim // 2] = 1
    for row, position in enumerate(POSITIONS):
        turned = k.to_host(k.rope(unit, np.array([position], np.int32), freq_h, size))[0, 0]
        want = np.concatenate([GOLDEN[f"{name}/{f}"][row] for f in ("cos", "sin")])
        assert np.abs(turned - want).max() <= 4 * U * size, position


def written(folder: Path, name: str) -> Path:
    write_folder(folder, CONFIG | MODELS[name])
    return folder


def stages(w: Weights, *passes: tuple[int, ...]) -> dict[str, Array]:
    found = collect(w, "reference", "f64", *passes)
    return {f"{n}/{key(layer, stage)}": x for n, kept in enumerate(found) for (stage, layer), x in kept.items()}


@pytest.mark.parametrize("name", MODELS)
def test_stages_are_transformers_in_float64(name: str, tmp_path: Path) -> None:
    """Every stage of a prompt longer than the training, of steps behind it, and of a short prompt: within 1e-12."""
    w = open_weights(written(tmp_path, name)).weights
    found = stages(w, *STEPWISE)
    found |= {f"short/{k[2:]}": x for k, x in stages(w, IDS[:SHORT]).items()}
    names = GOLDEN[f"model {name}/stages"].tolist()
    assert set(names) == set(found) and len(names) > 100
    for at, sums, size in zip(names, GOLDEN[f"model {name}/sums"], GOLDEN[f"model {name}/rms"], strict=True):
        x = found[at]
        off = np.sqrt(np.mean(np.square(signed_sums(x) - sums)) / x.size)
        assert off <= 1e-12 * size and abs(rms(x) - size) <= 1e-12 * size, at


@pytest.mark.parametrize("name", MODELS)
def test_the_cpu_backend_has_the_same_bits_in_chunks_and_steps(name: str, tmp_path: Path) -> None:
    w = open_weights(written(tmp_path, name)).weights
    k = backend("cpu")
    prepared = k.prepare(w, "f32")

    def logits(*passes: tuple[int, ...]) -> Array:
        cache = k.new_cache(w.config, len(IDS), "f32")
        for ids in passes:
            found = k.to_host(forward(np.array(ids, np.int32), prepared, cache, k, SILENT))
        return np.array(found)

    whole = logits(IDS)
    exact = collect(w, "reference", "f64", IDS)[0]["lm_head", None]
    assert np.abs(whole - exact).max() < 1e-5 * np.abs(exact).max()
    for passes in (STEPWISE, (IDS[:17], IDS[17:31], IDS[31:]), tuple((i,) for i in IDS)):
        np.testing.assert_array_equal(logits(*passes), whole)


@pytest.mark.parametrize("suffix", [".gguf", ".apr", ""])
@pytest.mark.parametrize("name", MODELS)
def test_conversion_carries_it_or_says_what_is_lost(name: str, suffix: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    m = open_checkpoint(written(source, name))
    lost: list[str] = []
    convert(m, tmp_path / f"to{suffix}", lost=lost.append)
    again = open_checkpoint(tmp_path / f"to{suffix}")
    told = [line for line in lost if "RoPE" in line or "windows" in line]
    assert bool(told) == (suffix == ".gguf" and name not in ("linear", "yarn"))
    if again.config == m.config:
        two, one = (stages(bound(c).weights, *STEPWISE) for c in (again, m))
        assert all(np.array_equal(two[k], one[k]) for k in one)
        return
    assert told
    a, b = (rope.frequencies(c.rope_theta, c.head_dim, c.rope_scaling) for c in (again.config, m.config))
    assert (np.abs(a - b) <= 4 * U * b).all()
    sizes = (again.config.rope_scaling.attention_factor, m.config.rope_scaling.attention_factor)
    assert abs(sizes[0] - sizes[1]) <= U * sizes[1]
    convert(again, tmp_path / "back")  # and from there on nothing changes
    assert open_checkpoint(tmp_path / "back").config == again.config


@pytest.mark.parametrize("name", TABLES)
def test_gguf_holds_what_llama_cpp_reads(name: str) -> None:
    """Whatever the type: what is written and read back turns by the same angles, to float32's rounding."""
    c = read(name)
    said = rope_gguf.to_keys(c.rope_scaling, c.rope_theta, c.head_dim, c.max_position_embeddings)
    again = rope_gguf.to_keys(said.back, c.rope_theta, c.head_dim, c.max_position_embeddings)
    assert again.back == said.back and (said.back == c.rope_scaling) == (not said.lost)
    for beyond in (False, True):
        a, b = (rope.frequencies(c.rope_theta, c.head_dim, s, beyond) for s in (said.back, c.rope_scaling))
        assert (np.abs(a - b) <= 4 * U * np.maximum(a, b)).all()
    assert abs(said.back.attention_factor - c.rope_scaling.attention_factor) <= 2 * U * c.rope_scaling.attention_factor


def test_how_long_a_session_may_be(tmp_path: Path) -> None:
    """YaRN reaches as far as its factor says; LongRoPE's two tables never meet in one session."""

    def config(changes: dict[str, Any]) -> Config:
        return from_hf(json.loads(json.dumps(CONFIG | changes)), own_head=True)[0]

    assert config(MODELS["yarn"]).context == 64 and config(MODELS["yarn"]).max_position_embeddings == 16
    for changes, words in (
        (MODELS["longrope"], ["context of 16 (up to which longrope has its short factors", "ask for at most 6"]),
        (
            MODELS["dynamic"] | {"max_position_embeddings": 16},
            ["context of 16 (beyond it dynamic", "--rope-scaling yarn"],
        ),
    ):
        c = config(changes)
        assert new_tokens(10, c, None) == 6
        check_prompt([1] * 10, c, 6)
        with pytest.raises(BadInput) as error:
            check_prompt([1] * 10, c, 7)
        assert all(word in str(error.value) for word in words)
    longrope = config(MODELS["longrope"])
    assert new_tokens(20, longrope, None) == 44
    same = {**MODELS["longrope"]["rope_scaling"], "long_factor": [1.0, 1.5, 2.0, 3.0]}
    assert new_tokens(10, config({"rope_scaling": same}), None) == 54
    assert ORIGINAL in same
