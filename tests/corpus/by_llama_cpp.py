"""GGUF files that llama.cpp makes: its converter on the folders of hf.py, its quantiser on one wide model.

    python by_llama_cpp.py FOLDER LLAMA_CPP

LLAMA_CPP: a folder with convert_hf_to_gguf.py (the source distribution of llama-cpp-python has one).
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}

import llama_cpp
import numpy as np
from by_gguf_py import tensors, write
from llama import expect, lib

QUANTIZER = f"llama_model_quantize of llama-cpp-python {llama_cpp.__version__}"
CONVERTER = f"convert_hf_to_gguf.py of llama-cpp-python {llama_cpp.__version__}"

# folder, arguments, what is special
CONVERTED: dict[str, tuple[str, list[str], str]] = {
    "conv-f32": ("t5-f32-tied", ["--outtype", "f32"], "float32 from Transformers 5, tied"),
    "conv-fine-f32": ("t5-f32-fine-untied", ["--outtype", "f32"], "float32 with all bits of the mantissa"),
    "conv-f16": ("t446-bf16-sharded", ["--outtype", "f16"], "float16 from bfloat16 shards of Transformers 4"),
    "conv-bf16": ("t457-bf16-tied", ["--outtype", "bf16"], "bfloat16, tied"),
    "conv-auto": ("t446-f16-untied", ["--outtype", "auto"], "the type found by itself"),
    "conv-q8_0": ("t5-bf16-sharded", ["--outtype", "q8_0"], "Q8_0 straight from the converter"),
    "conv-slow-tokenizer": ("t446-slow-tokenizer", ["--outtype", "f16"], "from vocab.json and merges.txt"),
    "conv-deepseek": ("t446-deepseek-tokenizer", ["--outtype", "f16"], "an R1 distill's tokenizer: BOS first"),
    "conv-added-tokens": ("t457-added-tokens", ["--outtype", "f16"], "added tokens that overlap one another"),
    "conv-odd": ("t5-odd-sizes", ["--outtype", "f16"], "odd sizes"),
    "conv-ends": ("t5-ends", ["--outtype", "f16"], "from a folder with a list of ends"),
    "conv-bos": ("t5-bos-template", ["--outtype", "f16"], "from a folder whose post-processor puts BOS first"),
    "conv-window": ("t446-window-unused", ["--outtype", "f16"], "from a folder with an unused window"),
    "conv-tied-kept": ("t446-tied-head-kept", ["--outtype", "f16"], "from a tied folder that holds both names"),
    "conv-untied-rows": ("t5-resized", ["--outtype", "f16"], "from a folder with resized embeddings"),
    "conv-split": ("t5-mha", ["--outtype", "f16", "--split-max-tensors", "8"], "split by the converter"),
    "conv-fused-qkv": ("t5-mha", ["--outtype", "f16", "--fuse-qkv"], "with --fuse-qkv"),
    "conv-peft": ("peft-merged", ["--outtype", "f16"], "from a merged LoRA"),
    "conv-vocab-only": ("t5-bf16-tied", ["--vocab-only"], "a tokenizer without weights"),
    "conv-mixed": ("t5-mixed-dtypes", ["--outtype", "auto"], "from a folder of two dtypes"),
}  # fmt: skip


def convert(root: Path, llama_cpp_folder: str) -> None:
    jobs, paths = [], {}
    for name, (folder, arguments, _) in CONVERTED.items():
        split = "--split-max-tensors" in arguments
        target = root / name / "m.gguf" if split else root / f"{name}.gguf"
        target.parent.mkdir(exist_ok=True)
        pre = "deepseek-r1-qwen" if name == "conv-deepseek" else "qwen2"
        jobs.append([pre, [str(root / folder), "--outfile", str(target), *arguments, "--model-name", name]])
        paths[name] = target
    list_ = root / "jobs.json"
    list_.write_text(json.dumps(jobs))
    subprocess.run([sys.executable, Path(__file__).with_name("converter.py"), llama_cpp_folder, list_], check=True)
    list_.unlink()
    lora = [f"{llama_cpp_folder}/convert_lora_to_gguf.py", "--base", "t5-bf16-sharded", "--outfile", "conv-lora.gguf"]
    subprocess.run([sys.executable, *lora, "peft-adapter"], check=True, cwd=root, capture_output=True)
    expect(root, "conv-lora", CONVERTER.replace("hf", "lora", 1), "a LoRA adapter", refused=["adapter|LoRA", "merge"])
    for name, (folder, arguments, what) in CONVERTED.items():
        if "--vocab-only" in arguments:
            expect(root, name, CONVERTER, what, refused=["vocabulary|token_embd"])
            continue
        parts = sorted((root / name).glob("*.gguf")) if paths[name].parent != root else []
        path = str(parts[0].relative_to(root)) if parts else None
        expect(root, name, f"{CONVERTER} {' '.join(arguments)}", f"{what} ({folder})", path)


def imatrix(layers: int) -> Any:
    """An importance for each column of each matrix, from 1 to 2: the searched types ask for one."""
    shapes = {n: s for n, s in tensors(256, 256, 352, layers, 128, True).items() if len(s) > 1}
    kept = [(1 + np.arange(s[1]) % 7 / 7).astype(np.float32) for s in shapes.values()]
    rows = (lib.llama_model_imatrix_data * (len(shapes) + 1))()
    for row, name, x in zip(rows, shapes, kept, strict=False):
        row.name, row.size = name.encode(), x.size
        row.data = x.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return rows, kept


TYPES = {
    "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13,
    "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "q2_k_s": 21,
    "iq3_xs": 22, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq3_m": 27, "iq2_s": 28, "iq2_m": 29,
    "iq4_xs": 30, "iq1_m": 31, "bf16": 32, "tq1_0": 36, "tq2_0": 37, "mxfp4_moe": 38,
}  # fmt: skip


def quantize(source: Path, target: Path, ftype: int, matrix: Any = None, **settings: Any) -> None:
    p = lib.llama_model_quantize_default_params()
    p.ftype, p.nthread = ftype, 1
    if matrix is not None:
        p.imatrix = ctypes.cast(matrix[0], type(p.imatrix))
    for key, value in settings.items():
        setattr(p, key, value)
    assert lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(p)) == 0, target


def main() -> None:
    root, llama_cpp_folder = Path(sys.argv[1]), sys.argv[2]
    convert(root, llama_cpp_folder)

    for name, number in TYPES.items():
        layers = 2 if name.endswith(("_s", "_m", "_l")) and name[0] == "q" else 1  # those mix types by layer
        wide, target = root / f"quant-f32-{layers}.gguf", root / f"quant-{name}.gguf"
        if not wide.exists():
            write(root, wide.stem, "F32", kind="sparse", width=256, mlp=256, head=128, layers=layers, tied=True)
        searched = name.startswith(("iq1", "iq2", "iq3", "q2_k_s"))
        quantize(wide, target, number, imatrix(layers) if searched else None)
        expect(root, f"quant-{name}", QUANTIZER, f"{name.upper()}{', with an importance matrix' if searched else ''}")
    for path in root.glob("quant-f32-?.gguf"):
        path.unlink()
    narrow = write(root, "narrow", "F32", layers=3)

    def made(name: str, what: str, ftype: int, source: Path = narrow, path: str | None = None, **settings: Any) -> None:
        target = root / (path or f"{name}.gguf")
        target.parent.mkdir(exist_ok=True)
        to = target if "keep_split" not in settings else Path(str(target).split("-00001-of")[0])
        quantize(source, to, ftype, **settings)
        expect(root, name, QUANTIZER, what, path)

    made("quant-narrow-q4_k_m", "Q4_K_M asked of rows of 64 and 96: all fall back", 15)
    made("quant-pure", "Q4_0, pure: embedding and head too", 2, pure=True)
    made("quant-ends-q8_0", "embedding and head Q8_0, the rest Q5_1", 9, output_tensor_type=lib.GGML_TYPE_Q8_0,
         token_embedding_type=lib.GGML_TYPE_Q8_0)  # fmt: skip
    made("quant-head-kept", "the head left as it is, F32", 7, quantize_output_tensor=False)
    split = write(root, "parts/m", "F32", split_max_tensors=10) and root / "parts/m-00001-of-00003.gguf"
    made("quant-split", "Q8_0 of parts, in parts", 7, source=split, path="quant-split/m-00001-of-00003.gguf",
         keep_split=True)  # fmt: skip
    made("quant-joined", "parts copied into one file", 0, source=split, only_copy=True)
    prune = (ctypes.c_int32 * 2)(1, -1)
    made("quant-pruned", "the middle one of three layers left out", 8,
         prune_layers=ctypes.cast(prune, type(lib.llama_model_quantize_default_params().prune_layers)))  # fmt: skip
    for path in (narrow, *sorted((root / "parts").iterdir())):
        path.unlink()
    (root / "parts").rmdir()


if __name__ == "__main__":
    main()
