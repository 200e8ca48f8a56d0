"""engine verify --cost: what a fact of an engine's arithmetic costs is what an engine loses that has it alone."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import qwenref
from qwenref.cost import about_keys, costs, facts_of
from qwenref.engine.bind import bind
from qwenref.engine.files.convert import convert
from qwenref.engine.weights import Weights
from qwenref.tools.main import main
from qwenref.trace.store import DumpWriter
from qwenref.trace.verify.recipes.recipe import FLOAT32_RECIPE
from qwenref.trace.verify.report.spent import Spent
from qwenref.trace.verify.verify import verify

from .cases import larger
from .engines import dump_of
from .field import KV, W8A8, Engine, engine
from .models import model
from .tiny import tiny_weights

A = np.ndarray
TOKENS = np.random.default_rng(2).integers(0, 259, 24).tolist()


@cache
def weights() -> Weights:
    return tiny_weights(layers=3, hidden=256, head_dim=32, heads=8, mlp=384, formats="Q8_0")


def log_probabilities(w: Weights, e: Engine | str, ids: list[int]) -> A:
    dump = dump_of(w, e, ids) if isinstance(e, str) else e.dump(w, ids)
    logits = dump.get("lm_head", None)
    assert logits is not None
    x = logits.values().astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


OWN = {
    "KV in int8 by token": engine("k", "HF float32", cached=KV["int8 by token"][0]),
    "KV in uint8 by token": engine("u", "HF float32", cached=KV["uint8 by token"][0]),
    "int8 W8A8, token": engine("a", "HF float32", operand=W8A8["int8 W8A8, token"][0], matrix=lambda w: w),
}


@pytest.mark.parametrize("name", OWN)
def test_a_cost_is_what_an_engine_loses(name: str) -> None:
    """An engine that is float32 but for one fact, against float64: its divergence at the last position, its likeliest
    tokens, and its perplexity of the prompt, one run for each prefix. float32 and float64 part where a code is near a
    tie: that moves a position's divergence, and few have one."""
    w, e = weights(), OWN[name]
    found, keys = costs(verify(e.dump(w, TOKENS), w), w)
    assert len(found) == 1
    flips, nll, parted = set(), [[], []], []  # type: ignore[var-annotated]
    for n in range(1, len(TOKENS) + 1):
        exact, mine = (log_probabilities(w, engine, TOKENS[:n]) for engine in ("reference f64", e))
        kl = float((np.exp(exact) * (exact - mine)).sum())
        parted.append(abs(found[0].divergence[n - 1] / kl - 1))
        flips |= {n - 1} if exact.argmax() != mine.argmax() else set()
        if n < len(TOKENS):
            nll[0].append(-exact[TOKENS[n]])
            nll[1].append(-mine[TOKENS[n]])
    assert np.median(parted) < 0.02 and max(parted) < 0.2, parted
    assert {at for at, _ in found[0].flips} == flips
    assert found[0].perplexity == pytest.approx([float(np.exp(np.mean(x))) for x in nll], rel=1e-3)
    assert (keys is not None) == name.startswith("KV")


def test_a_large_key_bias_takes_the_cache_from_the_keys() -> None:
    """The same cache, the same keys but for a bias that is 40 times as large: what it moves keys by grows as much."""
    moved = []
    for factor in (1.0, 40.0):
        w = larger(weights(), "qkv_bias_E", factor)
        v = verify(OWN["KV in int8 by token"].dump(w, TOKENS), w)
        _, keys = costs(v, w)
        assert keys is not None and "int8" in keys and "layer" in keys
        moved.append(float(keys.split("moves keys by ")[1].split(" ")[0]))
    assert moved[1] > 8 * moved[0]
    assert about_keys("q4_0", []) is None


def test_facts_alone_and_together() -> None:
    w = weights()
    v = verify(dump_of(w, "HF bfloat16", TOKENS), w)
    found, _ = costs(v, w)
    facts = [c.fact for c in found]
    assert (facts[0], facts[-1]) == ("weights and activations of products in bfloat16", "all of these")
    assert all(min(c.divergence) >= 0 for c in found)
    exact, mine = (log_probabilities(w, name, TOKENS) for name in ("reference f64", "HF bfloat16"))
    kl = float((np.exp(exact) * (exact - mine)).sum())
    assert kl / 10 < np.median(found[-1].divergence) < kl * 10  # noise, of one size
    assert "KL" in Spent(tuple(found), None).lines()[2]
    assert list(facts_of(FLOAT32_RECIPE)) == []
    assert "nothing" in Spent((), None).lines()[1]


def test_the_command_tells_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m = model("Q8_0")
    w, at, ids = bind(m.config, m.tensors), tmp_path / "tiny.gguf", [17, 3, 99]
    convert(m, at)
    for name, told in (("dump", {"tokens": ids}), ("blind", {})):
        with DumpWriter(tmp_path / name, told, w.config.sizes) as writer:
            for e in dump_of(w, "HF float16", ids).entries:
                if name == "dump" or e.stage.name != "embedding":
                    writer.put(e.stage.name, e.layer, e.values(), e.positions or (), phase=e.phase)
    assert main(["verify", str(tmp_path / "dump"), str(at), "--cost", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {c["fact"] for c in told["cost"]} >= {"every result in float16", "all of these"}
    assert all(c["positions"] == 3 and c["kl"] >= 0 for c in told["cost"]) and told["keys"] is None
    assert main(["verify", str(tmp_path / "dump"), str(at), "--cost"]) == 0
    printed = capsys.readouterr().out
    assert "Cost, of float64's logits from the same tokens:" in printed
    report = qwenref.verify(tmp_path / "dump", at, cost=True)
    assert (str(report) + "\n", report.as_json()) == (printed, told)
    assert report.costs == told["cost"] and qwenref.verify(tmp_path / "dump", at).costs == []
    assert main(["verify", str(tmp_path / "blind"), str(at), "--cost"]) == 2
    assert "give them by --tokens" in capsys.readouterr().err
    alone = tmp_path / "alone"
    with DumpWriter(alone, {"tokens": ids}, w.config.sizes) as writer:
        for e in dump_of(w, "HF float16", ids).entries:
            if e.stage.name == "lm_head":
                writer.put(e.stage.name, e.layer, e.values(), e.positions or (), phase=e.phase)
    assert main(["verify", str(alone), str(at), "--cost"]) == 2
    assert "leave --cost away" in capsys.readouterr().err
