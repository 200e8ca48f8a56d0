"""Every stage of a torch model that runs where it is: what its modules put out, in one file for `engine verify`.

Nothing is patched and no other path is chosen: forward hooks look at what the modules exchange. What an engine fuses
(scores inside of attention) has no module, and is absent. torch is not imported; the tensors bring it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BadInput
from .trace.stages import STAGES
from .writers.qwenref_dump import KINDS, Writer

# What a model is called with and that says which rows there are, as keywords and in the order in which vLLM and SGLang
# give them without.
FACTS = ("input_ids", "positions", "position_ids", "attention_mask")
ORDER = ("input_ids", "positions")
# Modules whose input is a stage where no module's output is, by the last words of their paths.
INPUTS = {m.path.rpartition(".")[2] for s in STAGES for m in s.hf if m.side == "input"}
# Modules that are stages whatever is inside of them: PEFT puts adapters beside a product, or a look-up, in a module
# around both.
WHOLE = {
    m.path.rpartition(".")[2]
    for s in STAGES
    if s.kind in ("look-up", "product", "bias")
    for m in (*s.hf, *s.fused)
    if m.side != "input"
}


@contextmanager
def hooks(model: Any, path: str | os.PathLike[str], **facts: str) -> Iterator[None]:
    """In here every forward pass of the model (a torch.nn.Module: Transformers', vLLM's, SGLang's) goes to the file.

        with qwenref.hooks(model, "dump.safetensors"):
            model.generate(**tokenizer("What is 2+2?", return_tensors="pt"), max_new_tokens=3)

    path: a new file, or an older dump of this kind, which goes. facts: text for `engine verify` to show. Tensors are
    moved to the host as they come, in their own type where NumPy or safetensors has it, else as float32.
    Raises BadInput for a file that is no dump, and at the end if no pass has run.
    """
    target = Path(path)
    _check(target)
    writer = Writer(os.fspath(target), **{"producer": f"qwenref.hooks({type(model).__name__})", **facts})
    taken = set[str]()

    def keep(name: str, value: Any) -> None:
        """A tensor, or the first two of a tuple of them: the second of a norm is the residual."""
        if isinstance(value, tuple | list):
            for i, x in enumerate(value[:2]):
                if hasattr(x, "detach"):
                    keep(f"{name}/{i}" if len(value) > 1 else name, x)
        elif hasattr(value, "detach") and name not in taken:  # a module that is called twice shows its first call
            taken.add(name)
            writer.dump_bytes(name, *_plain(value))

    def begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taken.clear()
        writer.next_pass()
        told = {n: x for n, x in zip(ORDER, args, strict=False) if _whole(x)} | kwargs
        for name in FACTS:
            x = told.get(name)
            if x is not None and _whole(x) and x.dim() <= 2:
                keep(name, x)

    def before(name: str) -> Callable[..., None]:
        def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if len(args) < 2:  # a norm that is given the residual too adds it itself, and puts it out
                keep(f"{name}.input", args[0] if args else kwargs.get("hidden_states"))

        return look

    def after(name: str) -> Callable[..., None]:
        names = of_module[modules[name]]  # of a module that layers share, as vLLM's rotary_emb: each calls it once

        def look(module: Any, args: tuple[Any, ...], output: Any) -> None:
            mine = next((n for n in names if n not in taken and f"{n}/0" not in taken), name)
            keep(mine, getattr(output, "logits", output))

        return look

    modules = dict(model.named_modules(remove_duplicate=False))
    of_module: dict[Any, list[str]] = {}
    for name, module in modules.items():
        of_module.setdefault(module, []).append(name)
    handles = [model.register_forward_pre_hook(_aside(begin), with_kwargs=True)]
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        angles = last == "rotary_emb" and not any(word.isdigit() for word in name.split("."))  # of the whole model
        if any(word in WHOLE for word in name.split(".")[:-1]):
            continue
        leaf = last in WHOLE or not any(True for _ in module.children())
        if name and not angles and (last.isdigit() or leaf):
            handles.append(module.register_forward_hook(_aside(after(name))))
        if last in INPUTS:
            handles.append(module.register_forward_pre_hook(_aside(before(name)), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        writer.file.close()
        if not writer.bytes:
            target.unlink()
    if not writer.bytes:
        raise BadInput(f"{target}: no forward pass of the model ran, and nothing was dumped")


def _aside(look: Callable[..., None]) -> Callable[..., None]:
    """The same, kept out of what torch.compile makes of a module: it would trace the copy to the host, too."""
    compiler = getattr(sys.modules.get("torch"), "compiler", None)
    return look if compiler is None else compiler.disable(look)


def _check(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path}: no such folder")
    if path.exists():
        with path.open("rb") as file:
            if b'"qwenref-dump-1"' not in file.read(256):
                raise BadInput(f"{path}: is there, and is no dump of this kind; give another name")


def _whole(x: Any) -> bool:
    """A tensor of whole numbers."""
    return hasattr(x, "detach") and not x.is_floating_point() and str(x.dtype) != "torch.bool"


def _plain(tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
    """(kind, shape, bytes) of a tensor."""
    kind = str(tensor.dtype).rpartition(".")[2]
    x = tensor.detach().to("cpu").contiguous()
    if kind == "bfloat16":  # the upper half of a float32
        data = (x.float().numpy().view(np.uint32) >> 16).astype("<u2").tobytes()
    elif kind in KINDS:
        data = x.numpy().tobytes()
    else:
        kind, data = "float32", x.float().numpy().tobytes()
    return KINDS[kind], tuple(x.shape), data
