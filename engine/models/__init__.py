"""Architectures: a file of facts each, and a row here. Found by the name that a container has for it."""

from __future__ import annotations

from typing import Literal

from ...errors import BadInput
from ..config_keys import brief
from . import llama, mistral, qwen2, qwen3
from .architecture import Architecture

ARCHITECTURES: tuple[Architecture, ...] = tuple(
    a.ARCHITECTURE
    for a in (qwen2, qwen3, llama, mistral)  # GGUF has one name of the last two, and means the first
)


def find(name: object, by: Literal["model_type", "gguf"] = "model_type") -> Architecture:
    """The architecture that config.json (or GGUF) calls so. Raises BadInput that says which there are."""
    for a in ARCHITECTURES:
        if isinstance(name, str) and name == getattr(a, by):
            return a
    supported = "; ".join(f"{a.model_type} is ({a.models})" for a in ARCHITECTURES)
    raise BadInput(f"architecture {brief(name)} is not supported; {supported}; llama.cpp and Transformers run others")


def meant_by_gguf(name: object, windows: bool) -> Architecture:
    """The architecture of a GGUF file: one that may have windows, where the file has some. Raises BadInput."""
    first = find(name, by="gguf")
    return next((a for a in ARCHITECTURES if a.gguf == first.gguf and (a.windowed or not windows)), first)


def meant(name: object) -> Architecture | None:
    """The architecture that an APR file means: importers write model_type or Transformers' class, in any case."""
    said = name.lower() if isinstance(name, str) else None
    return next((a for a in ARCHITECTURES if said in (a.model_type, a.hf_class.lower())), None)
