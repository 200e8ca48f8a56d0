"""The logit lens against Transformers as it is installed: its own norm and head on its own hidden states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (make oracle)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")

from qwenref.tools.main import main  # noqa: E402

pytestmark = pytest.mark.oracle
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
IDS = ",".join(map(str, TOKENS))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Every layer's hidden states [T, D] by its module's name, norm and head of them [L, T, V], and what bounds the
    rounding of that: |W| |h| [L, T, V].
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    states: dict[str, Any] = {}
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda m, x, y, i=i: states.update({f"model.layers.{i}": y}))
    with torch.no_grad():
        model(torch.tensor([TOKENS]))
        normed = [model.model.norm(h) for h in states.values()]
        logits = np.concatenate([model.lm_head(h).numpy() for h in normed])
        size = np.concatenate(
            [h.abs().double().numpy() @ model.lm_head.weight.abs().double().numpy().T for h in normed]
        )
    return {name: h[0].numpy() for name, h in states.items()}, logits, size


def said(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[dict[str, Any]]]:
    """What each layer says, position by position, every token of the vocabulary ranked."""
    assert main(["show", *words, "--lens", "--rows", ":", "--top", "101", "--json"]) == 0
    return [position["layers"] for position in json.loads(capsys.readouterr().out)["lens"]]


def test_norm_and_head_of_their_hidden_states(
    folder: Path, theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same hidden states, ours in float64 and theirs in float32 differ by what float32 rounds, at most: the norm
    by D/2 + 5 roundings (the mean of D squares under a root, the root, three products), the head by D of each product.
    Higham (2002), section 3.1.
    """
    states, logits, size = theirs
    np.savez(tmp_path / "states.npz", **states)
    found = said(capsys, str(tmp_path / "states.npz"), "-m", str(folder), "--tokens", IDS)
    ours = np.array([[[x["logit"] for x in sorted(g["top"], key=lambda x: x["id"])] for g in p] for p in found])
    D = next(iter(states.values())).shape[-1]
    assert ours.shape == (len(TOKENS), len(states), 101)
    off = np.abs(ours.transpose(1, 0, 2) - logits) / (size * (1.5 * D + 5) * 2.0**-24)
    assert off.max() <= 1
    probabilities = torch.softmax(torch.from_numpy(ours), -1).numpy()
    held = [[[x["probability"] for x in sorted(g["top"], key=lambda x: x["id"])] for g in p] for p in found]
    np.testing.assert_allclose(held, probabilities, rtol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_model_that_is_traced_says_what_theirs_says(
    folder: Path, theirs: Any, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The likeliest token of every layer and position, and the rank of the last layer's."""
    _, logits, _ = theirs
    found = said(capsys, str(folder), "--tokens", IDS, "--backend", backend)
    best = logits.argmax(-1)
    assert [[g["top"][0]["id"] for g in p] for p in found] == best.T.tolist()
    chosen = np.take_along_axis(logits, best[-1][None, :, None].repeat(len(logits), 0), 2)
    assert [[g["rank"] for g in p] for p in found] == (1 + (logits > chosen).sum(-1)).T.tolist()
    assert best[0].tolist() != best[-1].tolist()
