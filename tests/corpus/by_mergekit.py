"""Models that mergekit makes of the folders of hf.py.

    python by_mergekit.py FOLDER

Runs beside the Transformers 4 that made those: from 4.57 on, a merge with another number of layers keeps `layer_types`
of the old number, and Transformers itself refuses it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from ground import record
from hf import judged

MAKER = f"mergekit {version('mergekit')}"
A, B = "t446-bf16-sharded", "t446-seed-1"

MERGES = {
    "merge-passthrough": ("layers 0, 1, 0, 1: passthrough", [], f"""
merge_method: passthrough
dtype: bfloat16
slices:
  - sources: [{{model: {A}, layer_range: [0, 2]}}]
  - sources: [{{model: {A}, layer_range: [0, 2]}}]
"""),
    "merge-slerp": ("slerp of two, in float32", [], f"""
merge_method: slerp
dtype: float32
base_model: {A}
parameters: {{t: 0.3}}
slices:
  - sources: [{{model: {A}, layer_range: [0, 2]}}, {{model: {B}, layer_range: [0, 2]}}]
"""),
    "merge-linear-f16": ("linear, float16", [], f"""
merge_method: linear
base_model: {A}
dtype: float16
models:
  - {{model: {A}, parameters: {{weight: 0.75}}}}
  - {{model: {B}, parameters: {{weight: 0.25}}}}
"""),
    "merge-ties-sharded": ("TIES, in shards of mergekit's own", ["--out-shard-size", "30K"], f"""
merge_method: ties
dtype: bfloat16
base_model: {A}
models:
  - {{model: {B}, parameters: {{weight: 0.5, density: 0.5}}}}
"""),
    "merge-one-layer": ("one layer of two", [], f"""
merge_method: passthrough
dtype: bfloat16
slices:
  - sources: [{{model: {B}, layer_range: [1, 2]}}]
"""),
    "merge-tokenizer-union": ("linear, tokenizer_source union, rows padded to a multiple of 48", [], f"""
merge_method: linear
base_model: {A}
dtype: bfloat16
tokenizer: {{source: union, pad_to_multiple_of: 48}}
models:
  - {{model: {A}, parameters: {{weight: 0.5}}}}
  - {{model: t446-added-tokens, parameters: {{weight: 0.5}}}}
"""),
    "merge-task-arithmetic": ("task arithmetic", [], f"""
merge_method: task_arithmetic
dtype: bfloat16
base_model: {A}
models:
  - {{model: {B}, parameters: {{weight: 0.25}}}}
"""),
}  # fmt: skip


def main() -> None:
    root = Path(sys.argv[1])
    for name, (what, arguments, text) in MERGES.items():
        recipe = root / f"{name}.yml"
        recipe.write_text(text)
        command = [Path(sys.executable).with_name("mergekit-yaml"), recipe.name, name, "--no-write-model-card"]
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        subprocess.run([*command, *arguments], check=True, cwd=root, env=offline, stdout=subprocess.DEVNULL)
        recipe.unlink()
        record(root, name, maker=MAKER, what=what, path=name, **judged(root / name))


if __name__ == "__main__":
    main()
