"""Architectures: a file of facts each, and a row here. Found by the name that a container has for it."""

from __future__ import annotations

from typing import Literal

from ...quant.errors import BadInput
from ..config_keys import brief
from . import qwen2
from .architecture import Architecture

ARCHITECTURES: tuple[Architecture, ...] = (qwen2.ARCHITECTURE,)


def find(name: object, by: Literal["model_type", "gguf"] = "model_type") -> Architecture:
    """The architecture that config.json (or GGUF) calls so. Raises BadInput that says which there are."""
    for a in ARCHITECTURES:
        if isinstance(name, str) and name == getattr(a, by):
            return a
    supported = "; ".join(f"{a.model_type} is ({a.models})" for a in ARCHITECTURES)
    raise BadInput(f"architecture {brief(name)} is not supported; {supported}; llama.cpp and Transformers run others")
