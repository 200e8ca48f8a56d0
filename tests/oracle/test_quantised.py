"""What quantising libraries decode, asked anew with other weights than tests/golden/quantised.safetensors has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.quantised import quantised_by
from qwenref.engine.files.safetensors import _read_file
from qwenref.quant.tensor import dequantize
from qwenref.tools.dev.golden_quantised import CASES, write

from ..engine.files.test_quantised import model

pytestmark = pytest.mark.oracle
LIBRARIES = {
    "gptq": "gptqmodel", "awq": "torch", "fp8": "transformers", "ct": "compressed_tensors", "bnb": "bitsandbytes",
    "mlx": "mlx.core",
}  # fmt: skip


@pytest.mark.parametrize("scheme", LIBRARIES)
def test_the_library_decodes_the_same(scheme: str, tmp_path: Path) -> None:
    pytest.importorskip(LIBRARIES[scheme])
    if scheme == "awq":
        from importlib.util import find_spec

        if find_spec("awq") is None:
            pytest.skip("autoawq is not installed")
    path = tmp_path / "again.safetensors"
    names = [name for name in CASES if name.startswith(f"{scheme}-")]
    write(path, names, seed=11, models=False)
    tensors, about = _read_file(path)
    assert names
    for name in names:
        quantised = quantised_by(json.loads(about["configs"])[name])
        assert quantised is not None
        parts = {n.split("/")[1]: w for n, w in tensors.items() if n.startswith(f"{name}/m.")}
        made, _ = quantised.assembled(parts)
        want = dequantize(tensors[f"{name}/="])
        np.testing.assert_array_equal(dequantize(made["m.weight"]).view(np.uint32), want.view(np.uint32), name)


@pytest.mark.parametrize(
    ("name", "library"),
    [("fp8-block", "transformers"), ("ct-int4-asym", "compressed_tensors"), ("bnb-nf4-nested", "bitsandbytes")],
)
def test_transformers_loads_the_folder_with_the_same_weights(name: str, library: str, tmp_path: Path) -> None:
    """As its own quantisers take a folder apart on a CPU."""
    pytest.importorskip(library)
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config

    path, _, _ = model(f"model {name}", tmp_path / "m")
    how: dict[str, Any] = {"dtype": torch.bfloat16, "local_files_only": True}
    if name.startswith("fp8"):
        how = {"dtype": torch.float32, "quantization_config": FineGrainedFP8Config(dequantize=True)}
    elif name.startswith("ct"):
        how["quantization_config"] = CompressedTensorsConfig(run_compressed=False)
    theirs = AutoModelForCausalLM.from_pretrained(path, **how)
    compared = 0
    for module, linear in theirs.named_modules():
        w = open_checkpoint(path).tensors.get(f"{module}.weight")
        if "proj" not in module or w is None:
            continue
        if library == "bitsandbytes":
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
        else:
            weight = linear.weight
        np.testing.assert_array_equal(weight.detach().float().numpy(), dequantize(w), module)
        compared += 1
    assert compared == 14
