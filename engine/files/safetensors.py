"""safetensors, Hugging Face's container: a folder as `save_pretrained` leaves it, or a file with config.json beside it.

Every tensor is a view of its file's memory map.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import BadInput, blamed_on
from ...quant.tensor import QTensor
from ..config import check_hf, from_hf, kind_of
from ..models import Architecture, decoder
from ..models.heads import KINDS, NONE, SCORES
from ..models.vision import text_config, text_tensors
from . import Checkpoint, same_values
from .foreign import check_adapter, folder_kind
from .hf_tokenizer import read_generation_config, read_object, read_vocabulary
from .mapped import read_head
from .quantised import FIELDS, Quantised, quantised_by
from .safetensors_header import read_tensors
from .sentence_transformers import read_pooling

# What torch.compile, FSDP and activation checkpointing put into a name, wherever the module was that they wrapped.
WRAPPER = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
EMBED, HEAD = decoder.EMBED.hf, decoder.HEAD.hf
ENDS = frozenset(t.hf for t in (decoder.HEAD, *SCORES))  # of a model with a head, which has its decoder in "model."
FLOATS = ("F32", "F16", "BF16")
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1}
INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"


def recognises(path: Path, head: bytes) -> bool:
    """A folder with config.json, an index or weights; a file by its suffix, or a small header length and a brace."""
    if path.is_dir():
        return any((path / name).exists() for name in (SINGLE, INDEX, CONFIG)) or any(path.glob("*.safetensors"))
    return path.suffix == ".safetensors" or path.name == INDEX or (head[8:9] == b"{" and head[4:8] == bytes(4))


def open(path: Path) -> Checkpoint:
    """A Checkpoint of the folder or file. Raises BadInput that names the file and what is wrong with it."""
    folder = path if path.is_dir() else path.parent
    whole = path.is_dir() or path.name == INDEX
    check_adapter(folder, read_object)
    shards: dict[Path, set[str] | None] = _shards(folder) if whole else {path: None}
    config, pictures, quantised = _read_config(folder) if (folder / CONFIG).exists() else (None, None, None)
    if whole:
        tensors, about = _read_shards(folder, shards)
    else:
        tensors, about = _read_file(path)
        if re.search(r"-\d{5}-of-\d{5}$", path.stem) and (folder / INDEX).exists():
            raise BadInput(f"{path}: one shard of several; give the folder {folder}")
    if config is None:
        raise BadInput(
            f"{folder / CONFIG}: no such file; safetensors hold no hyper-parameters, so it must lie beside them"
        )
    notes: list[str] = []
    if pictures is not None:
        with blamed_on(path):
            tensors, notes = _of_text(tensors, path, config["model_type"])
    kind = kind_of(config)
    tensors, said = _plain_names(tensors, path, kind)
    notes += said
    if quantised is not None:
        with blamed_on(path):
            tensors, said = quantised.assembled(tensors)
        notes += [f"{path}: {note}" for note in said]
    for name, w in tensors.items():
        if w.format in BYTES and w.format not in FLOATS:
            raise BadInput(f"{path}: tensor {name!r:.80}: dtype {w.format!r} is not supported; {', '.join(FLOATS)} are")
    if HEAD in tensors and EMBED not in tensors and config.get("tie_word_embeddings") is True:
        tensors[EMBED] = replace(tensors.pop(HEAD), name=EMBED)  # Transformers 5 ties them in either direction
    # A tied model may have been saved with a copy of the embedding as its head; it is tied if the copy is one.
    tied = config.get("tie_word_embeddings") is True and EMBED in tensors and HEAD in tensors
    own_head = HEAD in tensors and not (tied and same_values(tensors[HEAD], tensors[EMBED]))
    pooling, said = read_pooling(folder)
    notes += said
    with blamed_on(folder / CONFIG):
        score = KINDS[kind].scores
        rows = tensors[score.hf].shape[:1] if score is not None and score.hf in tensors else ()
        c, more = from_hf(config, own_head, pooling, *rows)
        c = replace(c, pictures=pictures or ())
    if quantised is not None:
        tensors, said = _without_added_biases(tensors, c.architecture, config)
        notes += [f"{path}: {note}" for note in said]
    with blamed_on(folder / CONFIG):
        _check_optional(tensors, c.architecture, config)
    metadata = {
        "config": config,
        "generation_config": read_generation_config(folder),
        "metadata": about,
    }
    return Checkpoint(
        path=path,
        files=tuple(shards),
        container="safetensors",
        config=c,
        tensors=c.architecture.unstacked(tensors, c.sizes),
        metadata=metadata,
        vocabulary=lambda: read_vocabulary(folder, config, c.vocab_size),
        notes=(*notes, *(f"{folder / CONFIG}: {note}" for note in more)),
    )


def _read_config(folder: Path) -> tuple[dict[str, Any], tuple[int, ...] | None, Quantised | None]:
    """config.json, with nothing in it that is not computed; apart from it, of a model that sees, the ids that stand for
    pictures, and what it says of quantised weights; what it says of weights explains what they look like."""
    path = folder / CONFIG
    config = read_object(path)
    with blamed_on(path):
        config, pictures = text_config(config)
        quantised = quantised_by(config)
        config = {field: value for field, value in config.items() if field not in FIELDS}
        check_hf(config)
    return config, pictures, quantised


def _of_text(tensors: dict[str, QTensor], path: Path, text: str) -> tuple[dict[str, QTensor], list[str]]:
    """What reads text, of the tensors of a model that sees, by the names of the architecture `text`; and a note."""
    found, seeing = text_tensors(tensors)
    many = f"{seeing[0]!r:.80} and {len(seeing) - 1} more tensors are not used: " if seeing else ""
    note = f"{path}: {many}run as {text}, which the text part is; no picture is read"
    return {name: replace(tensors[old], name=name) for name, old in found.items()}, [note]


def _plain_names(tensors: dict[str, QTensor], path: Path, kind: str) -> tuple[dict[str, QTensor], list[str]]:
    """Names as Qwen2ForCausalLM has them, where the file's differ by wrappers or by one prefix; and a note if so.

    Transformers reads the names of a bare Qwen2Model, which lack "model."; it makes up weights for the other ones.
    kind: of models/heads.KINDS; of a bare model such names are its own.
    """
    named = {WRAPPER.sub("", name): name for name in tensors}
    if len(named) != len(tensors):
        raise BadInput(f"{path}: two tensors have the same name but for what torch.compile or FSDP puts into it")
    if peft := next((name for name in named if ".lora_A." in name or ".base_layer." in name), None):
        raise BadInput(
            f"{path}: tensor {peft!r:.80} is of a LoRA adapter (PEFT) that is not merged; merge_and_unload()"
        )
    anchors = [name for name in named if name == EMBED[6:] or name.endswith("." + EMBED[6:])]
    outer = anchors[0][: -len(EMBED[6:])] if len(anchors) == 1 else "model."
    if outer == "":  # a bare Qwen2Model
        named = {name if name in ENDS else f"model.{name}": old for name, old in named.items()}
    elif outer != "model." and outer.endswith("model.") and all(name.startswith(outer[:-6]) for name in named):
        named = {name[len(outer) - 6 :]: old for name, old in named.items()}
    if all(name == old for name, old in named.items()):
        return tensors, []
    name, old = next((name, old) for name, old in named.items() if name != old)
    found = {name: replace(tensors[old], name=name) for name, old in named.items()}
    own = kind == NONE and outer == "" and WRAPPER.search(old) is None
    return found, [] if own else [f"{path}: {old!r:.80} is taken for {name}, and so on for names like it"]


def _check_optional(tensors: dict[str, QTensor], a: Architecture, config: dict[str, Any]) -> None:
    """Raises BadInput where config.json asks for other pieces than are there: Transformers goes by config.json, and
    makes up what is missing."""
    found = a.found(tensors)
    for field, pieces in a.optional.items():
        said = config.get(field)
        if said is not None and type(said) is not bool:
            raise BadInput(f"{field} is {said!r:.80}; it must be true or false")
        for piece, stacked in pieces.items():
            if said and piece not in found:
                name = stacked[0].hf.format(0)
                raise BadInput(f"{field} is true, and there is no tensor {name}; add it, as zeros if it has no effect")
            if not said and piece in found:
                raise BadInput(
                    f"{field} is {'false' if said is False else 'not there'}, so that Transformers leaves out tensor "
                    f"{found[piece][0]}; make it true, or take the tensor out"
                )


def _without_added_biases(
    tensors: dict[str, QTensor], a: Architecture, config: dict[str, Any]
) -> tuple[dict[str, QTensor], list[str]]:
    """The tensors without biases of zeros that have no role: AutoGPTQ gave one to every module. And a note if so."""

    def is_added(name: str) -> bool:
        piece = next(iter(a.found([name]).values()), None)
        return a.renamed(name, "hf") is None or (piece is not None and config.get(piece[1]) is not True)

    added = [n for n, w in tensors.items() if n.endswith(".bias") and is_added(n) and not w.data.any()]
    if not added:
        return tensors, []
    kept = dict(tensors)
    for name in added:
        del kept[name]
    return kept, [f"{added[0]!r:.80} and {len(added) - 1} more biases have no place, and are zero"]


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """The files that hold the weights, as Transformers looks for them, and the tensors of each by the index.

    All of them are there. Raises BadInput that says what the folder is, if it holds no weights.
    """
    if (folder / SINGLE).exists():
        return {folder / SINGLE: None}
    path = folder / INDEX
    if not path.exists():
        found = sorted(p.name for p in folder.glob("*.safetensors"))
        if len(found) == 1:
            raise BadInput(f"{folder}: {SINGLE} is not there; give the file itself: {folder / found[0]}")
        if found:
            raise BadInput(f"{folder}: {found[0]} and {len(found) - 1} more, but no {INDEX}; download it too")
        if kind := folder_kind(folder):
            raise BadInput(f"{folder}/{kind}")
        raise BadInput(f"{folder}: neither {SINGLE} nor {INDEX} is there")
    shards = {folder / file: names for file, names in shard_names(path).items()}
    for number, shard in enumerate(sorted(shards)):
        try:
            read_head(shard, 0)  # a missing shard is to be named before the first is read
        except BadInput as error:
            raise BadInput(f"{error}; it is {number + 1} of {len(shards)} shards; is the download complete?") from None
    return {shard: shards[shard] for shard in sorted(shards)}


def shard_names(index: Path) -> dict[str, set[str]]:
    """The files that an index names, and the tensors of each. Raises BadInput for what is no index."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(f"{index}: weight_map must be an object that names a file for each tensor")
    shards: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        # A plain name only. The file itself may be a link: the hub's cache consists of them.
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\:\0]+\.safetensors", file):
            raise BadInput(
                f"{index}: weight_map[{name!r:.80}] is {file!r:.80}; it must be a .safetensors file of this folder"
            )
        shards.setdefault(file, set()).add(name)
    return shards


def _read_shards(folder: Path, shards: dict[Path, set[str] | None]) -> tuple[dict[str, QTensor], dict[str, str]]:
    """Tensors and metadata of all shards. Raises BadInput unless each holds what the index says."""
    tensors: dict[str, QTensor] = {}
    about: dict[str, str] = {}
    home = {name: shard.name for shard, names in shards.items() for name in names or ()}
    for shard, names in shards.items():
        found, said = _read_file(shard)
        about |= said
        for name in found if names is not None else ():
            if home.get(name) != shard.name:
                says = f"in {home[name]!r:.80}" if name in home else "nowhere"
                raise BadInput(f"{shard}: holds tensor {name!r:.80}, which {INDEX} says is {says}")
        if lost := (names or set()) - found.keys():
            raise BadInput(f"{shard}: has no tensor {min(lost)!r:.80}, which {INDEX} says is there")
        tensors |= found
    return tensors, about


def _read_file(path: Path) -> tuple[dict[str, QTensor], dict[str, str]]:
    """Tensors and metadata of a file."""
    held, about = read_tensors(path, BYTES)
    return {name: QTensor(dtype, shape, data, name) for name, (dtype, shape, data) in held.items()}, about
