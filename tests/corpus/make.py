"""Makes the corpus of model files: tests/corpus/models.tar.xz, tests/corpus/expected.json and docs/corpus.md.

    python tests/corpus/make.py WORK --llama-cpp FOLDER --transformers-5 PYTHON --transformers-4.46 PYTHON \\
        --transformers-4.57 PYTHON --mergekit PYTHON --mlx PYTHON

Each PYTHON is one with the maker installed, beside torch:
    transformers-5     transformers 5, peft, llama-cpp-python, gguf
    transformers-4.46  transformers 4.46
    transformers-4.57  transformers 4.57
    mergekit           mergekit 0.1.4 with transformers 4.46
    mlx                mlx[cpu], mlx-lm
and --llama-cpp a folder with convert_hf_to_gguf.py: vendor/llama.cpp in llama-cpp-python's source distribution.
Weights, texts and prompts are seeded (ground.py): the same versions of the makers make the same bytes. With --keep,
what WORK holds already is only packed.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from ground import CHAT, GAP, NFD, TEXTS
from table import render

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MAKERS = ("transformers-5", "transformers-4.46", "transformers-4.57", "mergekit", "mlx")


def run(python: str, script: str, *arguments: str) -> None:
    print(f"--- {script}: {python}", flush=True)
    settled = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}  # the order of additions, and of sets that are written
    subprocess.run([python, HERE / script, *arguments], check=True, env=os.environ | settled)


def collect(work: Path) -> dict[str, Any]:
    """The makers' expectations, each tokenizer's once."""
    models, tokenizers = [], list[dict[str, Any]]()
    for path in sorted(work.glob("*.expected.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        place = work / facts["path"]
        parts = sorted(place.parent.glob("*-of-*.gguf")) if "-of-" in place.name else [place]
        files = [f for p in parts for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()]
        facts["bytes"] = sum(f.stat().st_size for f in files)
        tokenizer = {key: facts.pop(key) for key in ("texts", "nfd", "chat") if key in facts}
        if tokenizer:
            if tokenizer not in tokenizers:
                tokenizers.append(tokenizer)
            facts["tokenizer"] = tokenizers.index(tokenizer)
        models.append(facts)
    return {"gap": GAP, "texts": TEXTS, "nfd": NFD, "chat": CHAT, "tokenizers": tokenizers, "models": models}


def pack(work: Path, expected: dict[str, Any]) -> bytes:
    """A tar of the models, compressed as one: most of them share tensors."""
    file = io.BytesIO()
    wanted = sorted({Path(m["path"]).parts[0] for m in expected["models"]})
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in (p for top in wanted for p in (work / top, *sorted((work / top).rglob("*")))):
            info = tar.gettarinfo(path, str(path.relative_to(work)))
            info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
            info.mode = 0o755 if info.isdir() else 0o644
            if info.isreg():
                with path.open("rb") as source:
                    tar.addfile(info, source)
            else:
                tar.addfile(info)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]
    return lzma.compress(file.getvalue(), lzma.FORMAT_XZ, filters=filters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="an empty folder to work in")
    parser.add_argument("--llama-cpp", default="")
    parser.add_argument("--keep", action="store_true")
    for name in MAKERS:
        parser.add_argument(f"--{name}", default=sys.executable)
    args = vars(parser.parse_args())
    work: Path = args["work"].resolve()
    work.mkdir(exist_ok=True)
    if not args["keep"]:
        for name in MAKERS[:3]:
            run(args[name.replace("-", "_")], "hf.py", str(work))
        run(args["transformers_5"], "hf.py", str(work), "--again")
        run(args["mlx"], "by_mlx.py", str(work))
        run(args["mergekit"], "by_mergekit.py", str(work))
        run(args["transformers_5"], "by_gguf_py.py", str(work))
        run(args["transformers_5"], "by_llama_cpp.py", str(work), args["llama_cpp"])
    expected = collect(work)
    packed = pack(work, expected)
    (HERE / "models.tar.xz").write_bytes(packed)
    lines = {key: json.dumps(value, ensure_ascii=False) for key, value in expected.items()}
    for key in ("tokenizers", "models"):
        rows = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in expected[key])
        lines[key] = f"[\n{rows}\n]"
    text = ",\n".join(f'"{key}": {value}' for key, value in lines.items())
    (HERE / "expected.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
    (ROOT / "docs" / "corpus.md").write_text(render(expected), encoding="utf-8")
    print(f"{len(expected['models'])} models, {len(packed)} bytes")


if __name__ == "__main__":
    main()
