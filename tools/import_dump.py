"""engine import: takes in what another tool has dumped, as APRT files that diff and verify read."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.config import Config
from ..engine.files.strict_json import parse_object
from ..quant.errors import BadInput
from ..quant.tensor import format_module
from ..trace.stages import NAMES, STAGES, by_name, shape_of_count
from ..trace.store import DumpWriter, check_target
from .facts import model_facts, run_facts
from .leftovers import written_down
from .load import open_weights
from .prompt import parse_tokens

Array = NDArray[np.floating[Any]]
PARTS = ("q_proj", "k_proj", "v_proj")  # in a map: a third of qkv_bias each
SHOWN = 10  # names in a message

# What model_addition_debugger_context(use_repr=False) writes, a safetensors file for each input and output of a module.
# `inputs_args_0` of the next module is a stage where no module's output is.
LAYER, ATTN, MLP = "*model.layers.{layer}", "*model.layers.{layer}.self_attn", "*model.layers.{layer}.mlp"
DEBUGGER = {
    "*model.embed_tokens_outputs": "embedding",
    f"{LAYER}.input_layernorm_outputs": "attn_norm",
    **{f"{ATTN}.{part}_outputs": part for part in PARTS},
    f"{ATTN}.o_proj_inputs_args_0": "attention",
    f"{ATTN}.o_proj_outputs": "attn_out",
    f"{LAYER}.post_attention_layernorm_inputs_args_0": "post_attn_residual",
    f"{LAYER}.post_attention_layernorm_outputs": "ffn_norm",
    f"{MLP}.gate_proj_outputs": "ffn_gate",
    f"{MLP}.up_proj_outputs": "ffn_up",
    f"{MLP}.act_fn_outputs": "ffn_silu",
    f"{MLP}.down_proj_inputs_args_0": "ffn_swigl",
    f"{MLP}.down_proj_outputs": "ffn_out",
    f"{LAYER}_inputs_args_0": "input of the layer",
    "*model.norm_inputs_args_0": "input of the norm",
    "*model.norm_outputs": "final_norm",
    "*lm_head_outputs": "lm_head",
}
ARRAYS = {
    "layer-{layer}/{stage}": "{stage}",
    "layer-{layer}.{stage}": "{stage}",
    "{stage}.{layer}": "{stage}",
    "{stage}-{layer}": "{stage}",
    "{stage}": "{stage}",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """Files of this name hold that stage. axes: the stage's letters in the file's order; scale: times the values."""

    name: re.Pattern[str]
    stage: str
    axes: tuple[str, ...] | None = None
    scale: float = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """Writes an APRT dump from what another tool has left in a folder:
  - Hugging Face's model_addition_debugger_context(model, debug_path=..., use_repr=False): safetensors files
  - .npy files, named after the stages (layer-3/attn_norm.npy, attn_norm.3.npy, lm_head.npy) or by --map
What no name maps to is listed on stderr. Stages that are not there are absent; verify judges the rest.
llama.cpp's eval-callback text is not read: it holds 4 decimals and 6 values of a row. Use engine dump-llamacpp."""
    parser.epilog = """a map is JSON, file name (without .npy) -> stage; * is anything, {layer} a number:
  {"blk{layer}_norm1": "attn_norm", "blk{layer}_kq": {"stage": "attn_scores", "axes": "N S T", "scale": 0.125},
   "blk{layer}_q": "q_proj", "blk{layer}_k": "k_proj", "blk{layer}_v": "v_proj"}
q_proj, k_proj and v_proj, after the bias, make qkv_bias together.
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
    names = read_map(args.map) if args.map else [rule(n, s) for n, s in (DEBUGGER if debugger else ARRAYS).items()]
    checkpoint, _ = open_weights(args.model)
    c = checkpoint.config
    stages, unmapped = assign(files, names, c)
    ids = parse_tokens(args.tokens) if args.tokens else tokens_of(files) if debugger else []
    if not stages:
        raise BadInput(f"{args.source}: no file is named as a stage is ({listed(unmapped)}); say which are with --map")
    with written_down(Path(args.directory)), DumpWriter(args.directory, {}, c.sizes) as writer:
        written = write(writer, stages, c)
        writer.run.update(run_facts(checkpoint, "imported", "unknown", ids, []), model=model_facts(checkpoint))
        writer.run.update(engine="Transformers" if debugger else "unknown", imported_from=str(args.source))
        writer.run["absent"] = {s.name: "not in what was imported" for s in STAGES if s.name not in written}
    if unmapped:
        print(f"not imported, {len(unmapped)} files: {listed(unmapped)}", file=sys.stderr)
    print(f"{len(writer.files)} stage files in {args.directory}: {', '.join(n for n in NAMES if n in written)}")
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


def rule(name: str, stage: str, axes: tuple[str, ...] | None = None, scale: float = 1.0) -> Rule:
    pattern = re.escape(name).replace(r"\*", ".*").replace(r"\{layer\}", r"(?P<layer>\d{1,9})")
    return Rule(re.compile(pattern.replace(r"\{stage\}", f"(?P<stage>{'|'.join(NAMES)})")), stage, axes, scale)


def read_map(path: Path) -> list[Rule]:
    """The rules of a map. Raises BadInput that names the entry which cannot be understood."""
    try:
        told = parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if not told:
        raise BadInput(f"{path}: a map is a JSON object, file name -> stage")
    rules = []
    for name, what in told.items():
        entry = {"stage": what} if isinstance(what, str) else what
        stage, axes, scale = (
            (entry.get(k) for k in ("stage", "axes", "scale")) if isinstance(entry, dict) else (0, 0, 0)
        )
        if stage not in (*NAMES, *PARTS):
            raise BadInput(f"{path}: {name!r}: {stage!r} is no stage; the stages are {', '.join((*NAMES, *PARTS))}")
        letters = None if axes is None else tuple(str(axes).split())
        if letters and (stage in PARTS or sorted(letters) != sorted(by_name(stage).letters)):
            raise BadInput(f"{path}: {name!r}: axes {axes!r} are not those of {stage} in another order")
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
            raise BadInput(f"{path}: {name!r}: scale {scale!r} is no number")
        rules.append(rule(name, stage, letters, 1.0 if scale is None else float(scale)))
    return rules


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
        if stage.startswith("input of"):  # the layer before it, or the last one, has put it out
            layer, stage = (c.num_hidden_layers if layer is None else layer) - 1, "post_ffn_residual"
            if layer < 0:
                unmapped.append(name)
                continue
        scope = "layer" if stage in PARTS else by_name(stage).scope
        layer = {"first": 0, "whole": None}.get(scope, layer)
        if scope == "layer" and (layer is None or layer >= c.num_hidden_layers):
            raise BadInput(f"{path}: {stage} of layer {layer}; the model has layers 0 to {c.num_hidden_layers - 1}")
        if (layer, stage) in found:
            raise BadInput(f"{path}: {stage} of layer {layer} is also in {found[layer, stage][0]}")
        found[layer, stage] = (path, r)
    return found, unmapped


def write(writer: DumpWriter, found: Found, c: Config) -> set[str]:
    """Writes every stage; returns their names. Raises BadInput where sizes do not fit the model or one another."""
    T: int | None = None
    # First what tells the number of positions: scores may be N T S for several T and S, the head is of the last one.
    order = sorted(found, key=lambda k: k[1] in ("attn_scores", "attn_softmax", "lm_head"))
    written = set[str]()
    for layer, name in order:
        path, r = found[layer, name]
        if name in PARTS:
            if name != "q_proj" and (layer, "q_proj") in found:
                continue
            missing = [p for p in PARTS if (layer, p) not in found]
            if missing:
                raise BadInput(f"{path}: {', '.join(missing)} of layer {layer} are missing; qkv_bias needs all three")
            values = np.concatenate([rows(*found[layer, p]) for p in PARTS], axis=-1)
            name = "qkv_bias"  # noqa: PLW2901
        else:
            values = load(path) * r.scale if r.scale != 1 else load(path)
        s = by_name(name)
        if r.axes:
            values = np.transpose(unbatched(values, len(r.axes), path), [r.axes.index(letter) for letter in s.letters])
        if name == "lm_head":
            values = values.reshape(-1)[-c.vocab_size :]
        shape = shape_of_count(s, c.sizes, values.size, T)
        if shape is None or ("T" in s.letters and T not in (None, shape[s.letters.index("T")])):
            raise BadInput(f"{path}: shape {values.shape} does not fit {name} ({s.shape}, {c.sizes}, T = {T})")
        if "T" in s.letters:
            T = shape[s.letters.index("T")]
        positions = range(T or 1) if "T" in s.letters else range((T or 1) - 1, T or 1)
        writer.put(name, layer, values.reshape(shape), positions)
        written.add(name)
    return written


def rows(path: Path, r: Rule) -> Array:
    """Positions by values, whatever the batch and head axes are."""
    values = load(path)
    flat = values[0] if values.ndim > 2 and len(values) == 1 else values
    return flat.reshape(len(flat), -1) * r.scale


def unbatched(values: Array, axes: int, path: Path) -> Array:
    """Without the axis of a batch of one."""
    if values.ndim == axes + 1 and len(values) == 1:
        return values[0]
    if values.ndim != axes:
        raise BadInput(f"{path}: {values.ndim} axes; its map names {axes}")
    return values


def load(path: Path) -> Array:
    """The floats of a .npy or one-tensor safetensors file. Raises BadInput for anything else; nothing is unpickled."""
    try:
        if path.suffix == ".npy":
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            (tensor,) = tensors(path)
            form = format_module(tensor["dtype"])
            data = np.frombuffer(tensor["data"], np.uint8)
            values = form.decode(data.reshape(-1, form.BYTES)).reshape(tensor["shape"])
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path}: not an array that can be read: {str(error).splitlines()[0][:200]}") from None
    if values.dtype.kind != "f" or values.dtype.itemsize > 8 or not values.size:
        raise BadInput(f"{path}: {values.size} values of {values.dtype}; floats of 16, 32 or 64 bits are wanted")
    batch_free: Array = values[0] if values.ndim > 1 and len(values) == 1 and path.suffix != ".npy" else values
    return batch_free if batch_free.dtype.itemsize > 2 else batch_free.astype(np.float32)


def tensors(path: Path) -> Iterator[dict[str, Any]]:
    """dtype, shape and data of each tensor of a safetensors file."""
    from safetensors import SafetensorError, deserialize

    try:
        for _, tensor in deserialize(path.read_bytes()):
            yield tensor
    except SafetensorError as error:
        raise BadInput(f"{path}: not a safetensors file: {error}") from None


def tokens_of(files: Mapping[str, Path]) -> list[int]:
    """The input ids that the debugger has saved; none if it has not."""
    path = next((p for name, p in files.items() if name.endswith("_inputs_kwargs_input_ids")), None)
    ids = [t for t in tensors(path) if t["dtype"] == "I64"] if path else []
    return np.frombuffer(ids[0]["data"], "<i8").tolist() if ids else []


def listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return json.dumps(names[:SHOWN])[1:-1] + more
