"""Quantised checkpoints of Hugging Face's layout: each weight lies there in several tensors, and becomes one QTensor.

A scheme is a file of this folder. It has METHODS, its names in `quantization_config.quant_method`; PARTS, how the names
of a module's tensors end that are its weight; MARKS, those of them of which a quantised module has one; and
reader(asked), which checks what config.json says and gives what makes a weight of a module. UNREAD are parts that speak
of activations or of the cache, which stay as they are here.

Which modules are quantised, their tensors tell: lists of exceptions in config.json only have to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from ....errors import BadInput
from ....quant.tensor import QTensor
from ...config_keys import brief
from ..fields import Fields
from .module import Module

SCHEMES = ("gptq", "awq", "fp8", "compressed_tensors", "bitsandbytes", "mlx")
FIELDS = ("quantization_config", "compression_config", "quantization")  # of config.json
EXCEPTIONS = ("modules_to_not_convert", "llm_int8_skip_modules", "ignored_layers")


@dataclass(frozen=True, slots=True)
class Quantised:
    """What config.json says of quantised weights, and the scheme that it names."""

    asked: Fields
    scheme: ModuleType
    read: Callable[[Module], QTensor]

    def assembled(self, tensors: Mapping[str, QTensor]) -> tuple[dict[str, QTensor], list[str]]:
        """The tensors, each quantised module's weight in one piece, and notes.

        Raises BadInput that names the tensor: a part that is missing or does not fit, a scale that is not finite, an
        index out of range.
        """
        scheme, found, notes = self.scheme, dict[str, QTensor](), set[str]()
        used = {name: w for name, w in tensors.items() if not name.endswith(tuple(f".{p}" for p in scheme.UNREAD))}
        if len(used) < len(tensors) or _rounds_activations(self.asked):
            notes.add(f"{self.asked.where} wants activations or the cache quantised too; both stay as they are here")
        parted = {name: self._parted(name) for name in used}
        modules: dict[str, dict[str, QTensor]] = {}
        for name, (module, part) in parted.items():
            modules.setdefault(module, {})[part] = used[name]
        quantised = {name for name, parts in modules.items() if any(mark in parts for mark in scheme.MARKS)}
        if not quantised:
            marks = " or ".join(f".{mark}" for mark in scheme.MARKS)
            method = self.asked.values.get("quant_method", "mlx")
            raise BadInput(
                f"{self.asked.where} says that weights are quantised ({method}), but no tensor's name ends in {marks}"
            )
        self._check_exceptions(quantised)
        for name, (module, _) in parted.items():
            if module not in quantised:
                found[name] = used[name]
            elif (weight := f"{module}.weight") not in found:
                m = Module(module, modules[module])
                if weight in used and "weight" not in m.parts:
                    raise m.bad("weight", f"stands beside {name!r:.80}: which of them is the weight?")
                found[weight] = self.read(m)
                m.check_all_read()
                notes |= m.notes
        return found, sorted(notes)

    def _parted(self, name: str) -> tuple[str, str]:
        """A tensor's module, and which part of it it is; its own name and nothing for any other tensor."""
        part = next((p for p in self.scheme.PARTS if name.endswith(f".{p}")), "")
        return (name[: -len(part) - 1] if part else name), part

    def _check_exceptions(self, quantised: set[str]) -> None:
        """Raises BadInput for a module that config.json lists as not quantised."""
        for field in EXCEPTIONS:
            for excepted in self.asked.array(field) or ():
                for name in sorted(quantised):
                    if name == excepted or name.endswith(f".{excepted}"):
                        raise BadInput(f"{self.asked.where}: {field} holds {excepted!r:.60}, but {name} is quantised")


def quantised_by(config: Mapping[str, Any]) -> Quantised | None:
    """What a config.json says of quantised weights, None if nothing.

    Raises BadInput that names the field for an unknown method, or for a setting that is missing or not known.
    """
    asked = _asked(config)
    if asked is None:
        return None
    scheme = _scheme(asked)
    return Quantised(asked, scheme, scheme.reader(asked))


def _rounds_activations(asked: Fields) -> bool:
    """Whether the kernels that the file is for are to quantise what weights are multiplied with."""
    groups = asked.values.get("config_groups")
    told = (
        [g.get("input_activations") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    )
    return any(told) or asked.values.get("activation_scheme") is not None


def _asked(config: Mapping[str, Any]) -> Fields | None:
    """What config.json says of it, None if nothing. MLX has its own field, and puts a copy where others look."""
    for field in ("quantization", "compression_config", "quantization_config"):
        if (asked := config.get(field)) is not None:
            if not isinstance(asked, dict) or not asked:
                raise BadInput(f"{field} is {brief(asked)}; it must be an object that says how weights are quantised")
            return Fields(asked, field)
    return None


def _scheme(asked: Fields) -> ModuleType:
    schemes = [import_module(f".{name}", __package__) for name in SCHEMES]
    method = asked.values.get("quant_method")
    if method is None and {"bits", "group_size"} <= asked.values.keys():
        method = "mlx"
    for scheme in schemes:
        if isinstance(method, str) and method.lower() in scheme.METHODS:
            return scheme
    known = ", ".join(dict.fromkeys(m for scheme in schemes for m in scheme.METHODS))
    way_out = "give the model as it was before, or a GGUF file of it"
    raise BadInput(
        f"{asked.where} says that the weights are quantised ({brief(method)}), which is not supported; {known} are; "
        f"{way_out}"
    )
