"""One page: what `engine verify` says of engines as they are, one small random model in all of them, a line for each.

    python -P -m qwenref.tests.oracle.one_page [FOLDER]

An engine that is not installed is left out, and said. No map of names is written for any. What a user would write into
MLX, JAX or ONNX Runtime is taken from docs/dumps.md.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import qwenref
from qwenref.engine.files.convert import convert
from qwenref.engine.load import open_weights
from qwenref.tools.main import main as engine
from qwenref.writers import qwenref_dump

from ..models import model
from ..writers.test_writers import IDS, toy
from . import other_engines

PAPER = Path(__file__).parents[2] / "docs" / "dumps.md"
SIZES = {"layers": 3, "hidden": 64, "mlp": 96}


@dataclass(frozen=True)
class Engine:
    """needs: modules or programs without which it can not run. dump: writes one, given the folder of the model in both
    containers (hf/, m.gguf) to work in, and returns where it lies."""

    name: str
    needs: tuple[str, ...]
    dump: Callable[[Path], Path]

    @property
    def missing(self) -> list[str]:
        return [n for n in self.needs if importlib.util.find_spec(n) is None and shutil.which(n) is None]


def models(folder: Path) -> Path:
    """The model, in both containers; bfloat16, so that every engine has the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    m = model("BF16", **SIZES)
    convert(m, folder / "hf")
    convert(m, folder / "m.gguf")
    return folder


def lines(word: str) -> str:
    """The Python of the page that has this word."""
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", PAPER.read_text("utf-8"))
    (found,) = [b for b in blocks if word in b]
    return str(found)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """The writer's own switch, and a copy of it beside the engine, as its users have it."""
    at = path.parent / "copied"
    at.mkdir(exist_ok=True)
    shutil.copy(str(qwenref_dump.__file__), at)
    sys.path.insert(0, str(at))
    os.environ["QWENREF_DUMP"] = str(path)
    try:
        yield path
    finally:
        sys.modules.pop("qwenref_dump", None)
        sys.path.remove(str(at))
        del os.environ["QWENREF_DUMP"]


# -- the engines ------------------------------------------------------------------------------------------------------


def transformers(folder: Path, attention: str, dtype: str) -> Any:
    import transformers as library

    return library.Qwen2ForCausalLM.from_pretrained(folder / "hf", attn_implementation=attention, dtype=dtype).eval()


def hooked(attention: str, dtype: str) -> Callable[[Path], Path]:
    def dump(folder: Path) -> Path:
        import torch

        at = folder / f"{attention}-{dtype}"
        at.mkdir()
        given = {"input_ids": torch.tensor([IDS]), "do_sample": False}
        with contextlib.chdir(at):
            exec(lines("model.generate("), {"model": transformers(folder, attention, dtype), "inputs": given})
        return at / "dump.safetensors"

    return dump


def llama_cpp(folder: Path) -> Path:
    words = ["dump-llamacpp", folder / "m.gguf", folder / "llama.cpp", f"--tokens={','.join(map(str, IDS))}"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert engine([*map(str, words), "--decode-steps=2"]) == 0
    return folder / "llama.cpp"


def mlx(dtype: str) -> Callable[[Path], Path]:
    def dump(folder: Path) -> Path:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache
        from mlx_lm.utils import load_model

        m, _ = load_model(folder / "hf")
        m.set_dtype(getattr(mx, dtype))
        cache, ids = make_prompt_cache(m), mx.array([IDS])
        with writing(folder / f"mlx-{dtype}.safetensors") as path:
            exec(lines("mlx.core"), {"model": m})
            for _ in range(3):
                ids = m(ids, cache=cache)[:, -1:].argmax(-1)
        return path

    return dump


def jax(dtype: str, jitted: bool) -> Callable[[Path], Path]:
    def dump(folder: Path) -> Path:
        w = open_weights(str(folder / "m.gguf")).weights
        with writing(folder / f"jax-{dtype}-{jitted}.safetensors") as path:
            names: dict[str, Any] = {}
            exec(lines("jax.debug"), names)
            names["q"].dump("tokens", None, np.array(IDS))
            other_engines.jax(w, IDS, dtype, jitted, show=names["show"])
            names["jax"].effects_barrier()
        return path

    return dump


def onnx_runtime(folder: Path) -> Path:
    import torch

    m = transformers(folder, "eager", "float32")
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()):
        exec(lines("torch.onnx"), {"model": m, "ids": torch.tensor([IDS])})
    return folder / "ort.npz"


def compiled(language: str) -> Callable[[Path], Path]:
    def dump(folder: Path) -> Path:
        at = folder / language
        at.mkdir()
        return toy(at, language, m=model("BF16", **SIZES))[0]

    return dump


ENGINES = (
    Engine("Transformers, eager, float32", ("torch", "transformers"), hooked("eager", "float32")),
    Engine("Transformers, sdpa, bfloat16", ("torch", "transformers"), hooked("sdpa", "bfloat16")),
    Engine("Transformers, sdpa, float16", ("torch", "transformers"), hooked("sdpa", "float16")),
    Engine("llama.cpp, CPU, BF16 weights", ("llama_cpp",), llama_cpp),
    Engine("mlx-lm, float32", ("mlx_lm",), mlx("float32")),
    Engine("mlx-lm, bfloat16", ("mlx_lm",), mlx("bfloat16")),
    Engine("JAX, float32, op by op", ("jax",), jax("float32", False)),
    Engine("JAX, bfloat16, jitted", ("jax",), jax("bfloat16", True)),
    Engine("ONNX Runtime, CPU, torch's export", ("torch", "transformers", "onnx", "onnxruntime"), onnx_runtime),
    Engine("a toy in C, qwenref_dump.h", ("gcc",), compiled("c")),
    Engine("a toy in Rust, qwenref_dump.rs", ("rustc",), compiled("rs")),
)


WIDTH = max(len(e.name) for e in ENGINES)
PROMPTS = (IDS, [7, 100, 3], [42, 8, 15, 16, 23, 99, 4])


def batch(folder: Path) -> Path:
    """Three prompts padded on the left, by the lines of the page."""
    import torch

    width = max(map(len, PROMPTS))
    padded = [([0] * (width - len(p)) + p, [0] * (width - len(p)) + [1] * len(p)) for p in PROMPTS]
    ids, mask = (torch.tensor(x) for x in zip(*padded, strict=True))
    given = {"model": transformers(folder, "sdpa", "bfloat16"), "ids": ids, "mask": mask}
    with contextlib.chdir(folder):
        exec(lines("batch.safetensors"), {**given, "torch": torch, "qwenref": qwenref})
    return folder / "batch.safetensors"


# -- the page ---------------------------------------------------------------------------------------------------------


def verdict(dump: Path, model: Path, *more: str) -> dict[str, Any]:
    """What `engine verify --json` says."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        status = engine(["verify", str(dump), str(model), "--json", *more])
    return {"status": status, **json.loads(out.getvalue())}


def line(name: str, said: dict[str, Any]) -> None:
    words = said["recipe_words"].removeprefix("The engine computes with: ")
    print(f"{name:{WIDTH}}  {said['sentence']} {words}.", flush=True)


def main() -> None:
    with TemporaryDirectory() as held:
        folder = models(Path(sys.argv[1] if sys.argv[1:] else held))
        for e in ENGINES:
            if e.missing:
                print(f"{e.name:{WIDTH}}  not here: {', '.join(e.missing)} is not installed")
            else:
                line(e.name, verdict(e.dump(folder), folder / "m.gguf"))
        if not ENGINES[0].missing:
            path = batch(folder)
            for row, prompt in enumerate(PROMPTS):
                said = verdict(path, folder / "m.gguf", f"--row={row}")
                line(f"a batch padded left, row {row}: {len(prompt)} ids", said)


if __name__ == "__main__":
    main()
