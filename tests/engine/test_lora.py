"""LoRA adapters: what PEFT computes with its own files (tests/golden/lora.npz, made by tools/dev/golden_lora.py), on
every backend and merged; and adapters that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qwenref
from qwenref.engine.load import Opened, open_weights
from qwenref.engine.lora import opened_loras
from qwenref.tools.dev.golden_config import CONFIG, IDS, write_folder
from qwenref.tools.dev.golden_lora import ADAPTERS, CASES
from qwenref.tools.dev.golden_stages import key, rms, signed_sums

from ..tiny import collect

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "lora.npz")
FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, and PEFT's own files of each adapter in a folder of its name."""
    root = tmp_path_factory.mktemp("lora")
    (root / "base").mkdir()
    write_folder(root / "base", CONFIG)
    for name in ADAPTERS:
        (root / name).mkdir()
        for file in FILES:
            (root / name / file).write_bytes(GOLDEN[f"{name}/{file}"].tobytes())
    return root


def specs(folders: Path, case: str) -> list[str]:
    return [f"{folders / name}:{factor}" if factor != 1 else str(folders / name) for name, factor in CASES[case]]


def opened(folders: Path, case: str) -> Opened:
    return open_weights(folders / "base", loras=opened_loras(specs(folders, case)))


@pytest.mark.parametrize("case", CASES)
def test_stages_are_pefts_in_float64(folders: Path, case: str) -> None:
    """Every stage, within 1e-12."""
    (kept,) = collect(opened(folders, case).weights, "reference", "f64", IDS)
    found = {key(layer, stage): x for (stage, layer), x in kept.items()}
    names = GOLDEN[f"{case}/stages"].tolist()
    assert set(found) == set(names)
    for at, sums, size in zip(names, GOLDEN[f"{case}/sums"], GOLDEN[f"{case}/rms"], strict=True):
        off = np.sqrt(np.mean(np.square(signed_sums(found[at]) - sums)) / found[at].size)
        assert off <= 1e-12 * size and abs(rms(found[at]) - size) <= 1e-12 * size, at


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_greedy_ids_are_pefts(folders: Path, case: str, backend: str) -> None:
    model = qwenref.load(folders / "base", backend=backend, lora=specs(folders, case))
    want = GOLDEN[f"{case}/ids"].tolist()
    made = model.generate(IDS, max_tokens=len(want))
    for _ in made:
        pass
    assert made.ids == want
