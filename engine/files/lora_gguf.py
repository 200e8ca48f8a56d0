"""LoRA adapters as llama.cpp has them: GGUF files of general.type adapter (convert_lora_to_gguf.py, llama-adapter.cpp).

Each matrix NAME of the base has NAME.lora_a [r, I] and NAME.lora_b [O, r]; the embedding's are [V, r] and [D, r]. What
is added is alpha / r times their product, or the product itself where alpha is 0.
"""

from __future__ import annotations

import re
from hashlib import file_digest
from pathlib import Path

from ...errors import BadInput
from ...quant.tensor import QTensor, transposed
from ..models.decoder import EMBED
from .gguf import tensors_of
from .gguf_header import read_header
from .lora import Lora, Pair, as_f32
from .mapped import map_file

HALF = re.compile(r"(.+)\.weight\.lora_([ab])")
TOLD = {"adapter.type", "adapter.lora.alpha", "adapter.lora.task_name", "adapter.lora.prompt_prefix"}


def read_gguf_lora(path: Path, factor: float) -> Lora:
    """The adapter of a file; its scale times `factor`. Raises BadInput that names the key or tensor that is wrong."""
    file = map_file(path)
    header = read_header(path, file.data)
    m = header.metadata
    if m.get("general.type") != "adapter":
        raise m.bad("general.type", f"is {m.get('general.type')!r:.80}; that of an adapter is adapter")
    if (kind := m.get("adapter.type")) != "lora":
        raise m.bad("adapter.type", f"is {kind!r:.80}; only lora is computed")
    if strange := next((key for key in m if key.startswith("adapter.") and key not in TOLD), None):
        raise m.bad(strange, "is not known here, and may change the result; merge the adapter")
    alpha, architecture = m.get("adapter.lora.alpha"), m.get("general.architecture")
    if type(alpha) is not float or not 0 <= alpha < 1e6:
        raise m.bad("adapter.lora.alpha", f"is {alpha!r:.80}; it must be a number")
    if type(architecture) is not str:
        raise m.bad("general.architecture", f"is {architecture!r:.80}; it must be the base's")
    halves: dict[str, dict[str, QTensor]] = {}
    for name, w in tensors_of(path, header, file, []).items():
        part = HALF.fullmatch(name)
        if part is None:
            raise BadInput(f"{path}: tensor {name!r:.120} is not lora_a or lora_b of a matrix")
        halves.setdefault(part[1], {})[part[2]] = w
    if not halves:
        raise BadInput(f"{path}: holds no tensor")
    modules = {}
    for module, half in halves.items():
        if len(half) != 2:
            raise BadInput(f"{path}: {module}: lora_{'b' if 'a' in half else 'a'} is missing")
        down, up = half["a"], half["b"]
        shapes = f"{path}: {module}: lora_a and lora_b are {list(down.shape)} and {list(up.shape)}"
        if any(len(w.shape) != 2 or 0 in w.shape for w in (down, up)):
            raise BadInput(f"{shapes}; they must be matrices")
        if module == EMBED.ggml.removesuffix(".weight"):
            down, up = transposed(up), down
        if down.shape[0] != up.shape[1]:
            raise BadInput(f"{shapes}: of two ranks")
        modules[module] = Pair(as_f32(down), as_f32(up), factor * (alpha / down.shape[0] if alpha else 1.0))
    with path.open("rb") as raw:
        return Lora(path, modules, {}, factor, file_digest(raw, "sha256").hexdigest(), architecture=architecture)
