"""The scaling of RoPE as a GGUF file says it: keys, and tensors of divisors; read as llama.cpp reads it, and written.

llama.cpp divides the angle of each pair by its divisor, or by the factor, or ramps between (yarn), and multiplies
cosine and sine by a magnitude: for yarn the one that follows from the factor, times rope.scaling.attn_factor. Divisors
with a magnitude are what config.json calls longrope.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from ..quant.tensor import QTensor, dequantize
from .config_keys import brief
from .rope import LARGEST, LENGTH, SMALLEST, UNSCALED, Scaling, frequencies, read, yarn_magnitude

ONE, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
DIVISORS = (ONE, SHORT, LONG)  # tensors that are read here, and have no role in a model
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
KINDS = ("none", "linear", "yarn", "longrope")


def from_keys(
    said: Mapping[str, Any],
    tensors: Mapping[str, QTensor],
    theta: float,
    head_dim: int,
    positions: int,
    prefix: str = "",
) -> Scaling:
    """said: keys behind the architecture's name, which is the prefix. Raises BadInput that names the key or tensor that
    can not be."""

    def refuse(why: str) -> NoReturn:
        raise BadInput(f"key {prefix}rope.scaling.{why}")

    def number(name: str, unsaid: float) -> float:
        value = said.get(f"rope.scaling.{name}", unsaid)
        if type(value) is not float or not abs(value) <= LARGEST:
            refuse(f"{name} is {brief(value)}; it must be a float that float32 holds")
        return _f32(value)

    def positive(name: str, unsaid: float) -> float:
        if (value := number(name, unsaid)) < SMALLEST:
            refuse(f"{name} is {value:g}; it must be positive")
        return value

    kind = said.get("rope.scaling.type", "linear")
    if kind not in KINDS:
        refuse(f"type is {brief(kind)}; that is not supported, {', '.join(KINDS)} are")
    factor, magnitude = 1.0, positive("attn_factor", 1.0)
    if kind != "none" and number("factor", 0.0) != 0:  # 0 is unsaid
        factor = positive("factor", 1.0)
    elif kind != "none" and (older := said.get("rope.scale_linear", 0)) != 0:
        if type(older) is not float or not SMALLEST <= older <= LARGEST:
            raise BadInput(f"key {prefix}rope.scale_linear is {brief(older)}; it must be a positive float")
        factor = older
    length = said.get("rope.scaling.original_context_length") or positions
    if type(length) is not int or not 0 < length < 1 << 31:
        refuse(f"original_context_length is {brief(length)}; it must be a whole number from 1 to 2^31 - 1")
    usual = 1.0 if kind == "yarn" else 0.0
    if factor != 1 and number("yarn_ext_factor", usual) not in (usual, -1.0):
        refuse(f"yarn_ext_factor is {number('yarn_ext_factor', usual):g}; that is not supported, only {usual:g} is")

    h = head_dim // 2
    found = {name: _divisors(tensors[name], h) for name in DIVISORS if name in tensors}
    if found:
        short, long = (found.get(ONE, found.get(name)) for name in (SHORT, LONG))
        if short is None or long is None:
            raise BadInput(f"tensor {next(iter(found))} has no partner; {SHORT} and {LONG} belong together")
        if factor != 1:
            refuse(f"factor is {factor:g}, and the file has {next(iter(found))} too; that is not supported")
        fields = _longrope(short, long, magnitude, length)
    elif kind == "longrope" and factor != 1:
        refuse(f"type is longrope, but there is no tensor {LONG}")
    elif factor == 1 and magnitude == 1:
        return UNSCALED
    elif kind == "yarn":
        if (more := number("yarn_log_multiplier", 0.0)) != 0:
            refuse(f"yarn_log_multiplier is {more:g}; that is not supported, only 0 is")
        betas = {name: positive(f"yarn_{name}", value) for name, value in BETAS.items()}
        fields = {"rope_type": kind, "factor": factor, LENGTH: length, **betas}
        fields["attention_factor"] = yarn_magnitude(factor) * magnitude
    elif magnitude == 1:
        fields = {"rope_type": "linear", "factor": factor}
    else:
        fields = _longrope((factor,) * h, (factor,) * h, magnitude, length)
    return read(fields, theta, head_dim, positions)


def _longrope(short: tuple[float, ...], long: tuple[float, ...], magnitude: float, length: int) -> dict[str, Any]:
    both = {"short_factor": short, "long_factor": long}
    return {"rope_type": "longrope", "attention_factor": magnitude, LENGTH: length, **both}


def _divisors(t: QTensor, h: int) -> tuple[float, ...]:
    if t.format not in ("F32", "F16", "BF16") or t.shape != (h,):
        raise BadInput(
            f"tensor {t.name} is {t.format} of shape {t.shape}; it must hold a divisor for each of {h} pairs"
        )
    return tuple(map(float, dequantize(t)))


@dataclass(frozen=True, slots=True)
class Said:
    """A scaling as a GGUF file has it: keys behind the architecture's name, with their types; tensors of divisors; what
    is read back; and a line for people if that is not the same."""

    keys: tuple[tuple[str, str, Any], ...]
    tensors: dict[str, NDArray[np.float32]]
    back: Scaling
    lost: tuple[str, ...] = ()


def to_keys(s: Scaling, theta: float, head_dim: int, positions: int) -> Said:
    """What llama.cpp has no key for becomes divisors, as its converter has them for Llama 3."""
    keys: dict[str, tuple[str, Any]] = {}
    tensors: dict[str, NDArray[np.float32]] = {}
    magnitude = s.attention_factor
    if s.rope_type == "linear":
        keys = {"type": ("str", "linear"), "factor": ("f32", _f32(s.factor))}
    elif s.rope_type == "yarn" and s.truncate:
        keys = {"type": ("str", "yarn"), "factor": ("f32", _f32(s.factor))}
        keys["original_context_length"] = ("u32", s.original_max_position_embeddings)
        magnitude = s.attention_factor / yarn_magnitude(_f32(s.factor))
        for name, usual in BETAS.items():
            if (beta := getattr(s, name)) != usual:
                keys[f"yarn_{name}"] = ("f32", _f32(beta))
    elif s.rope_type == "longrope" and s.switches:
        keys = {"type": ("str", "longrope"), "original_context_length": ("u32", s.original_max_position_embeddings)}
        tensors = {SHORT: np.array(s.short_factor, np.float32), LONG: np.array(s.long_factor, np.float32)}
    elif s.rope_type == "longrope":
        tensors = {ONE: np.array(s.short_factor, np.float32)}
    elif s.rope_type not in ("default", "dynamic"):  # which is plain as far as it is computed
        plain_h = frequencies(theta, head_dim, UNSCALED, dtype=np.float64)
        tensors = {ONE: (plain_h / frequencies(theta, head_dim, s)).astype(np.float32)}
    if _f32(magnitude) != 1:
        keys["attn_factor"] = ("f32", _f32(magnitude))
    said = {f"rope.scaling.{name}": value for name, (_, value) in keys.items()}
    held = {name: QTensor("F32", x.shape, x.view(np.uint8), name) for name, x in tensors.items()}
    back = from_keys(said, held, theta, head_dim, positions)
    spelled = tuple((f"rope.scaling.{name}", kind, value) for name, (kind, value) in keys.items())
    return Said(spelled, tensors, back, tuple(_lost(s, back)))


def _lost(s: Scaling, back: Scaling) -> list[str]:
    if s == back:
        return []
    if s.rope_type == "dynamic":
        return [
            f"that RoPE is scaled beyond the context (dynamic, factor {s.factor:g}), where neither computes it here"
        ]
    if s.rope_type != back.rope_type:
        return [f"RoPE scaling of type {s.rope_type}: its frequencies become divisors, to a float32's rounding"]
    return ["digits of the RoPE scaling: GGUF holds its numbers as float32"]


def _f32(value: float) -> float:
    return ctypes.c_float(value).value
