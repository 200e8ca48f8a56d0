"""engine trace --payload: statistics over all positions and over the last, and what they mark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenref.engine.files import open_checkpoint
from qwenref.quant.tensor import dequantize
from qwenref.tools.dev.golden_config import write_tensors
from qwenref.tools.dev.golden_embed import MODELS as EMBEDDING
from qwenref.tools.dev.golden_embed import write_model
from qwenref.tools.main import main
from qwenref.trace.stats import statistics

from ..tiny import collect, tiny_weights, write_gguf

TOKENS = [3, 1, 4, 1, 5]


def test_payload_counts_all_positions_and_the_last_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_gguf(tmp_path / "m.gguf", tiny_weights())
    assert main(["trace", str(model), "--payload", "--json", "--tokens", "3,1,4,1,5", "--backend", "reference"]) == 0
    report = json.loads(capsys.readouterr().out)
    (stages,) = collect(tiny_weights(), "reference", "f32", TOKENS)
    assert [(r["stage"], r["layer"]) for r in report["stages"]] == list(stages)
    for r in report["stages"]:
        value = stages[r["stage"], r["layer"]].astype(np.float64)
        if r["stage"] == "lm_head":
            assert r["all"] is None
            every, last = None, value
        elif r["stage"] in ("attn_scores", "attn_softmax"):
            every = np.concatenate([value[:, t, : t + 1].reshape(-1) for t in range(5)])
            last = value[:, -1]
        else:
            every, last = value, value[-1]
        for said, x in ((r["all"], every), (r["last"], last)):
            if x is not None:
                assert said["count"] == x.size and (said["nan"], said["inf"]) == (0, 0)
                assert said["zero"] == np.count_nonzero(x == 0)
                np.testing.assert_allclose(
                    [said[k] for k in ("mean", "std", "min", "max")], [x.mean(), x.std(), x.min(), x.max()], atol=1e-12
                )
    assert "population" in report["note"]
    assert len(report["next"][0]) == 5


def test_payload_marks_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gain of infinity in layer 1: its norm is infinite or NaN, and so is all that follows; JSON stays JSON."""
    w = tiny_weights()
    gain = w.layers[1].attn_norm_D
    gain.data.view("<f4")[3] = np.inf
    command = [
        "trace",
        str(write_gguf(tmp_path / "m.gguf", w)),
        "--payload",
        "--tokens",
        "1,2",
        "--backend",
        "reference",
    ]
    assert main(command) == 0
    text, said = capsys.readouterr()
    assert said == (
        "note: the logits after position 1 are not finite; the first such value is an infinity in attn_norm of "
        "layer 1, position 0, index 3: tensor blk.1.attn_norm.weight has an infinity at element 3\n"
    )
    flagged = [line.split()[1].rstrip(":") for line in text.splitlines() if "<--" in line]
    assert flagged[0] == "attn_norm" and "post_ffn_residual" in flagged and flagged[-1] == "lm_head"
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert f"note: {report['not_finite']}\n" == said
    bad = next(r for r in report["stages"] if r["anomalies"])
    assert (bad["stage"], bad["layer"], bad["anomalies"]) == ("attn_norm", 1, ["2 Inf"])


def test_of_a_model_without_logits_it_is_the_final_norm_that_is_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path, EMBEDDING["qwen2"])
    held = {name: ("F32", dequantize(w).copy()) for name, w in open_checkpoint(tmp_path).tensors.items()}
    held["model.layers.1.mlp.up_proj.weight"][1][2, 3] = np.nan
    write_tensors(tmp_path, EMBEDDING["qwen2"], held)
    assert main(["trace", str(tmp_path), "--payload", "--tokens", "1,2", "--backend", "reference"]) == 0
    assert (
        "note: the final norm's row of position 1 is not finite; the first such value is a NaN in ffn_up of layer 1, "
        "position 0, index 2: tensor model.layers.1.mlp.up_proj.weight has a NaN at row 2, column 3\n"
    ) in capsys.readouterr().err


@given(st.lists(st.lists(st.floats(width=32), max_size=6), max_size=5))
def test_statistics_of_parts_are_those_of_the_whole(parts: list[list[float]]) -> None:
    arrays = [np.array(p, np.float32) for p in parts]
    s = statistics(arrays)
    x = np.concatenate([*arrays, np.empty(0, np.float32)]).astype(np.float64)
    finite = x[np.isfinite(x)]
    assert (s.count, s.nan, s.inf) == (x.size, np.isnan(x).sum(), np.isinf(x).sum())
    assert s.zero == (finite == 0).sum()
    if not finite.size:
        assert s.mean is s.std is s.min is s.max is None
    else:
        assert (s.min, s.max) == (finite.min(), finite.max())
        scale = np.abs(finite).max() or 1.0
        assert abs(s.mean - finite.mean()) <= 1e-12 * scale and abs(s.std - finite.std()) <= 1e-12 * scale
