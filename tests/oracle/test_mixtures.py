"""llama-quantize's mixtures of the 0.5B, and each of ggml's types in it: the first token is llama.cpp's, and every
stage that llama.cpp dumps is explained.

896 values to a row are no whole number of blocks of 256, so of most tensors llama-quantize makes another type than the
mixture's name says: that is what users have. Only ffn_down, 4,864 wide, holds K-quants, IQ and TQ types.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (README: make oracle)")

from qwenref.engine.files import open_checkpoint  # noqa: E402
from qwenref.quant.ggml import NAMES, NUMBERS  # noqa: E402
from qwenref.quant.tensor import format_of  # noqa: E402
from qwenref.tools.load import open_tokenizer, open_weights  # noqa: E402
from qwenref.tools.main import main  # noqa: E402
from qwenref.trace.verify.finding import EXACT, REPRODUCED, VERDICTS  # noqa: E402

from .. import tiny  # noqa: E402

pytestmark = [pytest.mark.oracle, pytest.mark.model]
TEXT = "def add(a, b):\n    return a + b\n\nThe quick brown fox jumps over the lazy dog. What is 2+2?"
WHOLE = (
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M",
    "Q6_K", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4_MOE", "F16", "BF16",
)  # fmt: skip
# Minutes of search for the whole model: its first layers do.
SEARCHED = (
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL",
    "IQ4_XS",
)  # fmt: skip
LAYERS = 2
INPUTS = {
    "attn_q": "attn_norm", "attn_k": "attn_norm", "attn_v": "attn_norm", "attn_output": "attention",
    "ffn_gate": "ffn_norm", "ffn_up": "ffn_norm", "ffn_down": "ffn_swigl",
}  # fmt: skip
lib = llama_cpp.llama_cpp


@cache
def importance(model: Path) -> dict[str, np.ndarray]:
    """The importance matrix of llama.cpp's imatrix tool: mean squares of what each matrix of the first layers meets."""
    checkpoint, w = open_weights(str(model))
    ids = open_tokenizer(checkpoint)[0].encode(TEXT)
    (stages,) = tiny.collect(w, "cpu", "f32", ids)
    return {
        f"blk.{i}.{name}.weight": np.square(stages[stage, i].reshape(len(ids), -1)).mean(0).astype(np.float32)
        for i in range(LAYERS)
        for name, stage in INPUTS.items()
    }


def quantised(model: Path, to: Path, mixture: str, layers: int | None = None, ffn_down: str = "") -> Path:
    """llama-quantize's file of a mixture, of the first layers where so many are told, ffn_down of the type told."""
    count = open_checkpoint(model).config.num_hidden_layers
    p = lib.llama_model_quantize_default_params()
    p.ftype, p.allow_requantize = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{mixture}"), True
    if layers is not None:
        table = importance(model)
        p.imatrix = (lib.llama_model_imatrix_data * (len(table) + 1))(
            *((name.encode(), x.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), x.size) for name, x in table.items())
        )
        p.prune_layers = (ctypes.c_int32 * (count - layers + 1))(*range(layers, count), -1)
    if ffn_down:
        p.tt_overrides = (lib.llama_model_tensor_override * 2)((b"ffn_down", NUMBERS[ffn_down]))
    assert lib.llama_model_quantize(str(model).encode(), str(to).encode(), ctypes.byref(p)) == 0
    return to


def judged(path: Path, tmp: Path, capsys: pytest.CaptureFixture[str], score: Callable[..., None], row: str) -> None:
    """llama.cpp's dump of the file is explained, and its first token is ours in f32 and int8."""

    def told(*words: str) -> Any:
        capsys.readouterr()
        assert main(list(words)) == 0, capsys.readouterr().out[:2000]
        return json.loads(capsys.readouterr().out)

    prompt = ["-p", "What is 2+2?"]
    assert main(["dump-llamacpp", str(path), str(tmp / "dump"), *prompt]) == 0
    theirs = json.loads((tmp / "dump" / "manifest.json").read_text())["run"]["next"][0]["id"]
    report = told("verify", str(tmp / "dump"), "-m", str(path), "--json")
    score(
        "llama.cpp's dumps of the 0.5B in other types", row, stages=len(report["stages"]),
        **{v.replace(" ", "_"): report["counts"].get(v, 0) for v in VERDICTS},
    )  # fmt: skip
    assert report["counts"].keys() <= {EXACT, REPRODUCED} and report["recipe"] == "ggml int8, 16-bit KV"
    for precision in ("f32", "int8"):
        ours = told("trace", str(path), "--payload", "--json", "--precision", precision, *prompt)
        assert ours["next"][0][0]["id"] == theirs, precision


@pytest.mark.parametrize("mixture", WHOLE)
def test_mixture(
    mixture: str, model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], score: Callable[..., None]
) -> None:
    judged(quantised(model_path, tmp_path / "m.gguf", mixture), tmp_path, capsys, score, mixture)


@pytest.mark.parametrize("mixture", SEARCHED)
def test_searched_mixture(
    mixture: str, model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], score: Callable[..., None]
) -> None:
    path = quantised(model_path, tmp_path / "m.gguf", mixture, LAYERS)
    judged(path, tmp_path, capsys, score, f"{mixture}, {LAYERS} layers")


@pytest.mark.parametrize("name", tiny.TYPES)
def test_type(
    name: str, model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], score: Callable[..., None]
) -> None:
    """The type itself, in ffn_down."""
    path = quantised(model_path, tmp_path / "m.gguf", "Q8_0", LAYERS, name)
    assert open_checkpoint(path).tensors["blk.1.ffn_down.weight"].format == name
    judged(path, tmp_path, capsys, score, f"ffn_down {name}, {LAYERS} layers")


def test_activations_are_ggmls_own_choice() -> None:
    """What each Format says against ggml's table."""

    class Traits(ctypes.Structure):
        _fields_ = (
            ("from_float", ctypes.c_void_p),
            ("vec_dot", ctypes.c_void_p),
            ("vec_dot_type", ctypes.c_int),
            ("nrows", ctypes.c_int64),
        )

    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = ctypes.CDLL(str(next(p for p in sorted(folder.iterdir()) if "ggml-cpu" in p.name)))
    ggml.ggml_get_type_traits_cpu.restype = ctypes.POINTER(Traits)
    found = {name: ggml.ggml_get_type_traits_cpu(NUMBERS[name]).contents for name in tiny.TYPES}
    assert all(t.vec_dot for t in found.values())
    meets = {name: NAMES[t.vec_dot_type] for name, t in found.items()}
    assert meets == {name: format_of(name).activations for name in tiny.TYPES}
