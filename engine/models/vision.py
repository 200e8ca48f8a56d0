"""Models that see, too, and whose text part is an architecture of the page: a row for each.

Their positions have three parts: time, height and width (M-RoPE; Qwen2-VL, arXiv:2409.12191). A text's three are the
same, so its rotation is the plain one, and what reads text is Qwen2 or Qwen3 by other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import BadInput
from ..config_keys import Keys, brief
from . import qwen2, qwen3
from .architecture import Architecture

CLASS = "ForConditionalGeneration"  # how the name of Transformers' class ends, behind the title
IDS = ("image_token_id", "video_token_id")  # of tokens in whose places a picture's rows come
TOKENS = ("<|image_pad|>", "<|video_pad|>")  # what Qwen's tokenizers call them
# Fields of the whole model. Of those of the text that stand beside text_config, Transformers looks at none.
WHOLE = {
    "text_config", "vision_config", "vision_start_token_id", "vision_end_token_id", "vision_token_id", *IDS,
}  # fmt: skip
OWN = {"architectures", "model_type", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"}
SEES = re.compile(r"(?:model\.)?visual\.|vision_tower\.")  # tensors, as Transformers and MLX call them
INNER = "model.language_model."  # Transformers 4.52 and later, inside; published files have "model."
GGUF_KEYS = Keys(inert={"of pictures": ("rope.dimension_sections", "n_deepstack_layers")})


@dataclass(frozen=True, slots=True)
class Vision:
    """model_type, gguf, title: as those of an Architecture. text: that of its text part."""

    model_type: str
    gguf: str
    title: str
    text: Architecture


VISIONS = (
    Vision("qwen2_vl", "qwen2vl", "Qwen2VL", qwen2.ARCHITECTURE),
    Vision("qwen2_5_vl", "qwen2vl", "Qwen2_5_VL", qwen2.ARCHITECTURE),
    Vision("qwen3_vl", "qwen3vl", "Qwen3VL", qwen3.ARCHITECTURE),
)


def find_vision(name: object, by: Literal["model_type", "gguf"] = "model_type") -> Vision | None:
    """The row that config.json (or GGUF) calls so."""
    return next((v for v in VISIONS if name == getattr(v, by)), None)


def text_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, ...] | None]:
    """A config.json as that of the text alone, and the ids that stand for pictures; None of a model that sees none.

    Published files have all fields side by side; Transformers 5 writes the text's into text_config, and 4.52 both.
    Raises BadInput for a class that ends in something else, and for fields that contradict each other.
    """
    v = find_vision(config.get("model_type"))
    if v is None:
        return dict(config), None
    classes, inner = config.get("architectures"), config.get("text_config") or {}
    if classes and classes != [f"{v.title}{CLASS}"]:
        raise BadInput(f"architectures is {brief(classes)}; of {v.title}, only {v.title}{CLASS} is supported")
    if not isinstance(inner, dict):
        raise BadInput(f"text_config is {brief(inner)}; it must be an object")
    outer, inner = (
        {field: _plain_rope(x) if field in ("rope_scaling", "rope_parameters") else x for field, x in side.items()}
        for side in (config, inner)
    )
    for field in (outer.keys() & inner.keys() & v.text.hf_keys.read) - OWN:
        if outer[field] != inner[field]:
            said = f"is {brief(outer[field])}, and {brief(inner[field])} in text_config"
            raise BadInput(f"{field} {said}, by which Transformers goes; take one out")
    text = {field: x for field, x in {**outer, **inner}.items() if field not in WHOLE}
    ties = [side["tie_word_embeddings"] for side in (outer, inner) if side.get("tie_word_embeddings") is not None]
    text |= {"tie_word_embeddings": next((x for x in ties if x is not False), False)} if ties else {}
    text |= {"model_type": v.text.model_type, "architectures": [v.text.hf_class]}
    ids = [config[field] for field in IDS if config.get(field) is not None]
    if bad := next((i for i in ids if type(i) is not int), None):
        raise BadInput(f"{' or '.join(IDS)} is {brief(bad)}; it must be a token id")
    return text, tuple(ids)


def _plain_rope(said: Any) -> Any:
    """RoPE's parameters without those of a picture's positions."""
    if not isinstance(said, dict):
        return said
    found = {field: x for field, x in said.items() if field not in ("mrope_section", "mrope_interleaved")}
    kind = found.pop("rope_type", None) or found.get("type") or "default"
    found.pop("type", None)
    return found | {"rope_type": "default" if kind == "mrope" else kind}


def text_tensors(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The text's tensors, by their names in its own architecture, and those that see. Raises BadInput if two have one
    name."""
    seeing, found = [], dict[str, str]()
    for name in names:
        if SEES.match(name):
            seeing.append(name)
            continue
        plain = f"model.{name.removeprefix(INNER)}" if name.startswith(INNER) else name
        if plain in found:
            raise BadInput(f"tensors {found[plain]!r:.80} and {name!r:.80} are the same one; take one out")
        found[plain] = name
    return found, seeing
