"""engine import: takes in what another tool has dumped, as APRT files that diff and verify read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.config import Config
from ..errors import BadInput
from ..facts import model_facts, run_facts
from ..quant.tensor import format_of
from ..trace import npy
from ..trace.axes import Array, arranged, lengths
from ..trace.stages import NAMES, STAGES, by_name
from ..trace.store import DumpWriter, check_target
from .import_map import PARTS, Rule, letters_of, read_map, rule
from .leftovers import written_down
from .load import open_weights
from .prompt import parse_tokens
from .terminal import on_stderr, one_line

SHOWN = 10  # names in a message

# What model_addition_debugger_context(use_repr=False) writes, a safetensors file for each input and output of a module.
# `inputs_args_0` of the next module is a stage where no module's output is.
SIDES = {"output": "outputs", "input": "inputs_args_0"}
DEBUGGER = [
    replace(rule(f"*{m.pattern}_{SIDES[m.side]}", s.name if len(s.hf) == 1 else m.part), later=m.later)
    for s in STAGES
    for m in s.hf_too or s.hf
]
ARRAYS = [
    rule(name, "{stage}")
    for name in ("layer-{layer}/{stage}", "layer-{layer}.{stage}", "{stage}.{layer}", "{stage}-{layer}", "{stage}")
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """Writes an APRT dump from what another tool has left in a folder:
  - Hugging Face's model_addition_debugger_context(model, debug_path=..., use_repr=False): safetensors files
  - .npy files, named after the stages (layer-3/attn_norm.npy, attn_norm.3.npy, lm_head.npy) or by --map
What no name maps to is listed on stderr. Stages that are not there are absent; verify judges the rest.
llama.cpp's eval-callback text is not read: it holds 4 decimals and 6 values of a row. Use engine dump-llamacpp."""
    parser.epilog = """a map is JSON, file name (without .npy) -> stage; * is anything, {layer} a number:
  {"blk{layer}_norm1": "attn_norm", "blk{layer}_kq": {"stage": "attn_scores", "axes": "N S T", "scale": 0.125},
   "blk{layer}_q": "q_proj", "blk{layer}_k": "k_proj", "blk{layer}_v": "v_proj"}
q_proj, k_proj and v_proj, after the bias, make qkv_bias together. Axes of length 1 are dropped. Another order of axes,
[D, T] or [N, T, H], is told by the sizes; where these leave a choice it is asked for. Scores have queries before keys.
examples:
  engine import debugger-output/ dump/ -m model.gguf
  engine import arrays/ dump/ -m model.gguf --map names.json --tokens 3838,374,220"""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder of arrays")
    parser.add_argument("directory", metavar="DIR", help="where the dump goes")
    parser.add_argument("-m", "--model", metavar="MODEL", help="the model that was run (default: the 0.5B)")
    parser.add_argument("--map", metavar="FILE", type=Path, help="JSON: file names -> stages")
    parser.add_argument("--tokens", metavar="IDS", help="the token ids that were run, a comma list, if known")


def main(args: argparse.Namespace) -> int:
    check_target(Path(args.directory))
    files = arrays_in(args.source)
    debugger = all(f.suffix == ".safetensors" for f in files.values())
    if args.map is not None and debugger:
        raise BadInput(f"--map is for .npy files; {args.source} holds safetensors")
    names = read_map(args.map) if args.map else DEBUGGER if debugger else ARRAYS
    checkpoint, _ = open_weights(args.model)
    c = checkpoint.config
    stages, unmapped = assign(files, names, c)
    ids = parse_tokens(args.tokens) if args.tokens else tokens_of(files) if debugger else []
    if not stages:
        raise BadInput(f"{args.source}: no file is named as a stage is ({listed(unmapped)}); say which are with --map")
    with written_down(Path(args.directory)), DumpWriter(args.directory, {}, c.sizes) as writer:
        written, turned = write(writer, stages, c)
        writer.run.update(run_facts(checkpoint, "imported", "unknown", ids, []), model=model_facts(checkpoint))
        writer.run.update(engine="Transformers" if debugger else "unknown", imported_from=str(args.source))
        writer.run["absent"] = {s.name: "not in what was imported" for s in STAGES if s.name not in written}
    for what, which in ((f"not imported, {len(unmapped)} files", unmapped), ("read by their axes", turned)):
        if which:
            on_stderr(f"{what}: {listed(which)}")
    stages_said = ", ".join(n for n in NAMES if n in written)
    print(one_line(f"{len(writer.files)} stage files in {args.directory}: {stages_said}"))
    return 0


def arrays_in(folder: Path) -> dict[str, Path]:
    """The folder's arrays by name, without suffix. Raises BadInput if there are none, or only what cannot be used."""
    if not folder.is_dir():
        first = folder.read_bytes()[:4096] if folder.is_file() else b""
        if b"ggml_debug:" in first or b"cb_eval:" in first:
            raise BadInput(
                f"{folder}: llama.cpp's eval-callback text has 4 decimals and 6 values of a row, which is not enough "
                "for any stage; make the dump with engine dump-llamacpp"
            )
        raise BadInput(f"{folder}: not a folder of arrays")
    found = {s: sorted(folder.rglob(f"*{s}")) for s in (".safetensors", ".npy")}
    if all(found.values()):
        raise BadInput(f"{folder}: holds both .npy and .safetensors files; import one kind")
    files = found[".safetensors"] or found[".npy"]
    if not files:
        if any(folder.glob("*debug_tree_FULL_TENSORS.json")):
            raise BadInput(f"{folder}: its values are only printed, not saved; run the debugger with use_repr=False")
        raise BadInput(f"{folder}: no .npy and no .safetensors file in it")
    return {f.relative_to(folder).with_suffix("").as_posix(): f for f in files}


Found = dict[tuple[int | None, str], tuple[Path, Rule]]


def assign(files: Mapping[str, Path], rules: list[Rule], c: Config) -> tuple[Found, list[str]]:
    """Which file is which stage of which layer, and the files that are none. Raises BadInput where two are the same."""
    found: Found = {}
    unmapped = []
    for name, path in files.items():
        m, r = next(((m, r) for r in rules if (m := r.name.fullmatch(name))), (None, None))
        if m is None or r is None:
            unmapped.append(name)
            continue
        told = m.groupdict()
        layer = int(told["layer"]) if told.get("layer") else None
        stage = told.get("stage") or r.stage
        scope = "layer" if stage in PARTS else by_name(stage).scope
        if r.later:  # a layer before it, or the last one, has put it out
            layer = (c.num_hidden_layers if layer is None else layer) - r.later
            if layer < 0:
                unmapped.append(name)
                continue
        layer = {"first": 0, "whole": None}.get(scope, layer)
        if scope == "layer" and (layer is None or layer >= c.num_hidden_layers):
            raise BadInput(f"{path}: {stage} of layer {layer}; the model has layers 0 to {c.num_hidden_layers - 1}")
        if (layer, stage) in found:
            raise BadInput(f"{path}: {stage} of layer {layer} is also in {found[layer, stage][0]}")
        found[layer, stage] = (path, r)
    return found, unmapped


def write(writer: DumpWriter, found: Found, c: Config) -> tuple[set[str], list[str]]:
    """Writes every stage; returns their names, and what was read in another order of axes than the stage has.

    Raises BadInput where sizes do not fit the model or one another.
    """
    T, told = positions_of(found, c.sizes)
    written, turned = set[str](), list[str]()

    def stage(layer: int | None, name: str) -> Array:
        path, r = found[layer, name]
        values = load(path)
        known = lengths(values.shape, letters_of(name), c.sizes, T)
        if known is None or known["T"] not in ((1, T) if name == "lm_head" else (T,)):
            why = f"; {told} has {T} positions" if told else ""
            raise BadInput(f"{path}: shape {values.shape} does not fit {name} ({spelled(name, c.sizes)}){why}")
        try:
            ordered, axes = arranged(values, letters_of(name), {**c.sizes, **known}, r.axes)
        except BadInput as error:
            raise BadInput(f"{path}: as {name}: {error}") from None
        if not r.axes and axes != letters_of(name):
            turned.append(f"{path.name} ({' '.join(axes)})")
        return ordered * r.scale if r.scale != 1 else ordered

    for layer, name in found:
        if name in PARTS:
            if name != next(p for p in PARTS if (layer, p) in found):
                continue
            if missing := [p for p in PARTS if (layer, p) not in found]:
                path = found[layer, name][0]
                raise BadInput(f"{path}: {', '.join(missing)} of layer {layer} are missing; qkv_bias needs all three")
            values = np.concatenate([stage(layer, p).reshape(T, -1) for p in PARTS], axis=1)
        else:
            values = stage(layer, name)[-1] if name == "lm_head" else stage(layer, name)
        kept = "qkv_bias" if name in PARTS else name
        writer.put(kept, layer, values, range(T) if name != "lm_head" else [T - 1])
        written.add(kept)
    return written, turned


def spelled(name: str, sizes: Mapping[str, int]) -> str:
    return " ".join(f"{letter}={sizes[letter]}" if letter in sizes else letter for letter in letters_of(name))


def positions_of(found: Found, sizes: Mapping[str, int]) -> tuple[int, Path | None]:
    """How many positions the arrays have, and the file that told it.

    Scores are asked after the others, for they may be square; the logits last, for they may be of the last position.
    """
    for key in sorted(found, key=lambda key: (key[1] == "lm_head", "S" in letters_of(key[1]))):
        path, name = found[key][0], key[1]
        if known := lengths(load(path).shape, letters_of(name), sizes, None):
            return known["T"], path
    return 1, None


def load(path: Path) -> Array:
    """The floats of a .npy or one-tensor safetensors file. Raises BadInput for anything else; nothing is unpickled."""
    if path.suffix == ".npy":
        values = npy.read(path)
    else:
        held = list(tensors(path))
        if len(held) != 1:
            raise BadInput(f"{path}: {len(held)} tensors, of which none says what it is; a file for each is read")
        tensor = held[0]
        if tensor["dtype"] not in ("F16", "BF16", "F32"):
            raise BadInput(f"{path}: values of {tensor['dtype']}; F16, BF16 or F32 are wanted")
        form = format_of(tensor["dtype"])
        data = np.frombuffer(tensor["data"], np.uint8)
        values = form.decode(data.reshape(-1, form.bytes)).reshape(tensor["shape"])
        if not values.size:
            raise BadInput(f"{path}: an array of shape {values.shape} holds no value")
    return values if values.dtype.itemsize > 2 else values.astype(np.float32)


def tensors(path: Path) -> Iterator[dict[str, Any]]:
    """dtype, shape and data of each tensor of a safetensors file."""
    from safetensors import SafetensorError, deserialize

    try:
        for _, tensor in deserialize(path.read_bytes()):
            yield tensor
    except SafetensorError as error:
        raise BadInput(f"{path}: not a safetensors file: {error}") from None


def tokens_of(files: Mapping[str, Path]) -> list[int]:
    """The input ids that the debugger has saved; none if it has not, or if they are those of several prompts."""
    path = next((p for name, p in files.items() if name.endswith("_inputs_kwargs_input_ids")), None)
    held = [t for t in tensors(path) if t["dtype"] == "I64"] if path else []
    if len(held) != 1 or any(n != 1 for n in held[0]["shape"][:-1]):
        return []
    return np.frombuffer(held[0]["data"], "<i8").tolist()


def listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return json.dumps(names[:SHOWN])[1:-1] + more
