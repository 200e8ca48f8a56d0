"""A float model in GPTQ's layout, version 1, its weights rounded to the nearest of a group's steps: what speed and
memory can be measured with where the published file is out of reach. No calibration: answers are worse than GPTQ's own.

    engine convert qwen2.5-coder-0.5b-instruct-q4_k_m floats/ --quantize f16
    python -m qwenref.tools.dev.gptq_model floats/ gptq/ --bits 4 --group 128 --act-order
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.files import open_checkpoint
from ...engine.files.safetensors_writer import write_safetensors
from ...engine.files.writing import Planned
from ...quant.codes import pack
from ...quant.tensor import QTensor, dequantize


def parts(w: QTensor, bits: int, group: int, act_order: bool) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """Of a weight [O, I]: how the names of its tensors end, their dtypes, and what they hold (engine/files/quantised/
    gptq.py). Codes reach from a group's smallest value to its largest; zero points are at least 1, less 1. In act order
    the columns are grouped by the size of their weights, as nothing is known of activations."""
    O, I = w.shape
    floats = dequantize(w)
    order = np.argsort(-np.square(floats).sum(0), kind="stable") if act_order else np.arange(I)
    values = floats[:, order].reshape(O, -1, group)
    low, high = values.min(-1).clip(max=0), values.max(-1).clip(min=0)
    top = (1 << bits) - 1
    scale = np.maximum((high - low) / top, np.float32(2**-24)).astype(np.float16)
    zero = np.rint(-low / scale.astype(np.float32)).clip(1, top)
    grouped = np.rint(values / scale.astype(np.float32)[..., None] + zero[..., None]).clip(0, top).astype(np.uint8)
    codes = np.empty((O, I), np.uint8)
    codes[:, order] = grouped.reshape(O, I)
    yield "qweight", "I32", pack(codes, bits).view("<i4").T
    yield "qzeros", "I32", pack(np.ascontiguousarray(zero.astype(np.uint8).T) - np.uint8(1), bits).view("<i4")
    yield "scales", "F16", scale.T
    group_I = np.empty(I, "<i4")
    group_I[order] = np.arange(I) // group
    yield "g_idx", "I32", group_I


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--bits", type=int, choices=(2, 3, 4, 8), default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--act-order", action="store_true", help="columns in groups of any of them (desc_act)")
    args = parser.parse_args()
    args.target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        copyfile(args.source / name, args.target / name)
    config = json.loads((args.source / "config.json").read_text())
    how = {
        "quant_method": "gptq",
        "bits": args.bits,
        "group_size": args.group,
        "desc_act": args.act_order,
        "sym": False,
    }
    (args.target / "config.json").write_text(json.dumps(config | {"quantization_config": how}, indent=2))
    planned = []

    def plan(name: str, dtype: str, values: NDArray[Any], shape: tuple[int, ...]) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        planned.append(Planned(name, dtype, shape, data.size, lambda: iter([data])))

    for name, w in open_checkpoint(args.source).tensors.items():
        if name.endswith("_proj.weight"):
            for part, dtype, values in parts(w, args.bits, args.group, args.act_order):
                plan(f"{name.removesuffix('weight')}{part}", dtype, values, values.shape)
        else:
            plan(name, w.format, w.data, w.shape)
    with (args.target / "model.safetensors").open("xb") as file:
        write_safetensors(file, {"format": "pt"}, planned, lambda count: None)


if __name__ == "__main__":
    main()
