"""RoPE as data: the inverse frequencies of each type of scaling, and the magnitude of cosine and sine.

One function and one row of TYPES a type. The arithmetic is that of Transformers 5 (modeling_rope_utils.py), one float32
operation after the other; where it takes a power, whose last bit differs between C libraries and even between the
vector units that torch finds, the power here is the correctly rounded one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, localcontext
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .config_keys import brief

LARGEST, SMALLEST = 3.4e38, 2.0**-126  # of normal float32 numbers

Table = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a model's RoPE is scaled, by the names that config.json has; a field that its type has not is as here.

    Nothing is left to be derived: what a file leaves out has become the number that Transformers takes for it.

    attention_factor: the magnitude, by which cosine and sine are multiplied.
    original_max_position_embeddings: positions of the training before the scaling.
    beta_fast, beta_slow: turns within these positions, from which on a frequency stays, and up to which it is divided
    by the factor (yarn); truncate: whether the pairs where that begins and ends are rounded outwards to whole ones.
    low_freq_factor, high_freq_factor: the same in llama3.
    short_factor, long_factor: a divisor for each of the H / 2 frequencies (longrope), for sessions within the original
    positions and beyond.
    """

    rope_type: str = "default"
    factor: float = 1.0
    attention_factor: float = 1.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    truncate: bool = True
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def spelled(self) -> dict[str, Any]:
        """As it stands in config.json, beside rope_theta."""
        said = {name: getattr(self, name) for name in TYPES[self.rope_type].holds}
        return {"rope_type": self.rope_type} | {k: list(v) if isinstance(v, tuple) else v for k, v in said.items()}

    @property
    def switches(self) -> bool:
        """Whether longer sessions have other frequencies than short ones."""
        return self.short_factor != self.long_factor

    def beyond(self, positions: int) -> bool:
        """Whether a session of so many positions has the frequencies of long ones."""
        return self.switches and positions > self.original_max_position_embeddings

    @property
    def reach(self) -> int:
        """Positions that the scaling says the model is good for; 0 where it does not say it."""
        return int(self.factor * self.original_max_position_embeddings) if self.rope_type == "yarn" else 0


UNSCALED = Scaling()


@dataclass(frozen=True, slots=True)
class Type:
    """A type of scaling.

    table: (theta, H, scaling, beyond, float type) -> inverse frequencies [H / 2]; beyond: the session is longer than
    the original positions. holds: the fields of Scaling that it has.
    may: what else Transformers reads or lets stand there. complete: a file's fields, numbers and lists by now -> with
    those that Transformers derives; may refuse them.
    """

    table: Callable[[float, int, Scaling, bool, Any], Table]
    holds: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    complete: Callable[[dict[str, Any], int], dict[str, Any]] = field(default=lambda said, positions: said)


def frequencies(theta: float, H: int, scaling: Scaling, beyond: bool = False, dtype: Any = np.float32) -> Table:
    """Inverse frequencies [H / 2] of a session; in float32 as the models were trained and run, in float64 unrounded."""
    return TYPES[scaling.rope_type].table(theta, H, scaling, beyond, dtype)


# ------------------------------------------------------------------------------------------------------ the arithmetic


def powers(theta: float, H: int, dtype: Any, exponents: Any = None) -> Table:
    """theta^(2j/H) for j < H/2, each correctly rounded to dtype. exponents: by default the exact 2j/H.

    Exact decimal powers keep the C library's pow, which differs between machines in the last bit, out of the model.
    """
    with localcontext(prec=40):
        base = Decimal(theta)
        if exponents is None:
            each = [Decimal(2 * j) / H for j in range(H // 2)]
        else:
            each = [Decimal(float(e)) for e in exponents]
        return np.array([dtype(float(base**e)) for e in each], dtype)


def rounded_powers(theta: float, H: int, dtype: Any) -> Table:
    """The same as Transformers' tensors have them: base and exponent are numbers of that type, too."""
    return powers(float(dtype(theta)), H, dtype, np.arange(0, H, 2, dtype=dtype) / dtype(H))


def plain(theta: float, H: int, scaling: Scaling, beyond: bool, dtype: Any) -> Table:
    """theta^(-2j/H), as the models were trained: the power and its reciprocal each rounded."""
    return dtype(1) / powers(theta, H, dtype)


def linear(theta: float, H: int, scaling: Scaling, beyond: bool, dtype: Any) -> Table:
    """Position interpolation (Chen et al. 2023): every frequency divided by the factor."""
    return dtype(1) / rounded_powers(theta, H, dtype) / dtype(scaling.factor)


def dynamic(theta: float, H: int, scaling: Scaling, beyond: bool, dtype: Any) -> Table:
    """Dynamic NTK within the trained positions, where the base is stretched to itself. Beyond them Transformers makes
    another table for every length, which no cache of rotated keys agrees with; those sessions are refused."""
    length = scaling.original_max_position_embeddings
    stretch = scaling.factor * length / length - (scaling.factor - 1)
    return dtype(1) / rounded_powers(theta * stretch ** (H / (H - 2)), H, dtype)


def yarn(theta: float, H: int, scaling: Scaling, beyond: bool, dtype: Any) -> Table:
    """YaRN (Peng et al. 2023): slow frequencies divided by the factor, fast ones left, a ramp between."""

    def pair(turns: float) -> float:
        """The pair, a fraction between two, that turns so often within the original positions."""
        length = scaling.original_max_position_embeddings
        return H * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, H - 1)
    if low == high:
        high += 0.001
    one, power_h = dtype(1), rounded_powers(theta, H, dtype)
    ramp_h = np.clip((np.arange(H // 2, dtype=dtype) - dtype(low)) / dtype(high - low), dtype(0), one)
    kept_h = one - ramp_h
    return one / (dtype(scaling.factor) * power_h) * (one - kept_h) + one / power_h * kept_h


def llama3(theta: float, H: int, scaling: Scaling, beyond: bool, dtype: Any) -> Table:
    """Llama 3.1: by wavelength against the original positions; long waves divided by the factor, a ramp to short.

    torch divides a number by a tensor by way of the reciprocal, which is rounded too.
    """
    low = dtype(scaling.low_freq_factor)
    length, factor, one = scaling.original_max_position_embeddings, dtype(scaling.factor), dtype(1)
    inv_h = one / rounded_powers(theta, H, dtype)
    wave_h = one / inv_h * dtype(2 * math.pi)
    long_h = wave_h > dtype(length / scaling.low_freq_factor)
    short_h = wave_h < dtype(length / scaling.high_freq_factor)
    smooth_h = (one / wave_h * dtype(length) - low) / dtype(scaling.high_freq_factor - scaling.low_freq_factor)
    ramp_h = (one - smooth_h) * inv_h / factor + smooth_h * inv_h
    return np.where(long_h, inv_h / factor, np.where(short_h, inv_h, ramp_h))


def longrope(theta: float, H: int, scaling: Scaling, beyond: bool, dtype: Any) -> Table:
    """LongRoPE (Ding et al. 2024): a divisor for each frequency, one list for short sessions and one for long ones."""
    divisor_h = np.array(scaling.long_factor if beyond else scaling.short_factor, dtype)
    return dtype(1) / (divisor_h * rounded_powers(theta, H, dtype))


# ----------------------------------------------------------------------------------------------- what a file leaves out


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's magnitude for a factor (the paper's sqrt(1/t))."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _refuse(why: str) -> NoReturn:
    raise BadInput(f"RoPE scaling {why}")


def _length(said: dict[str, Any], positions: int) -> int:
    return int(said.get("original_max_position_embeddings") or positions)


def _complete_dynamic(said: dict[str, Any], positions: int) -> dict[str, Any]:
    return {"factor": said["factor"], "original_max_position_embeddings": positions}


def _complete_yarn(said: dict[str, Any], positions: int) -> dict[str, Any]:
    length = _length(said, positions)
    factor = said.get("factor") or positions / length
    magnitude, scale, of_all = (said.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if magnitude is None:
        magnitude = yarn_magnitude(factor)
        if scale and of_all:
            magnitude = yarn_magnitude(factor, scale) / yarn_magnitude(factor, of_all)
    fast, slow = said.get("beta_fast") or 32.0, said.get("beta_slow") or 1.0
    if fast < slow:
        _refuse(f"has beta_fast {fast:g} below beta_slow {slow:g}; the frequencies that stay turn faster")
    return {
        "factor": factor,
        "attention_factor": magnitude,
        "original_max_position_embeddings": length,
        "beta_fast": fast,
        "beta_slow": slow,
        "truncate": said.get("truncate", True),
    }


def _complete_llama3(said: dict[str, Any], positions: int) -> dict[str, Any]:
    low, high = said["low_freq_factor"], said["high_freq_factor"]
    if low >= high:
        _refuse(f"has low_freq_factor {low:g} and high_freq_factor {high:g}; the second must be larger")
    return said | {"original_max_position_embeddings": _length(said, positions)}


def _complete_longrope(said: dict[str, Any], positions: int) -> dict[str, Any]:
    length = _length(said, positions)
    factor = said.pop("factor", None) or positions / length
    if said.get("attention_factor") is None:
        if factor > 1 and length < 2:
            _refuse("has original_max_position_embeddings 1, which no attention_factor follows from; state it")
        said["attention_factor"] = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))
    return said | {"original_max_position_embeddings": length}


LENGTH = "original_max_position_embeddings"
TYPES: dict[str, Type] = {
    "default": Type(plain),
    "linear": Type(linear, holds=("factor",)),
    "dynamic": Type(dynamic, holds=("factor",), may=(LENGTH,), complete=_complete_dynamic),
    "yarn": Type(
        yarn,
        holds=("factor", "attention_factor", LENGTH, "beta_fast", "beta_slow", "truncate"),
        may=("mscale", "mscale_all_dim"),
        complete=_complete_yarn,
    ),
    "llama3": Type(llama3, holds=("factor", LENGTH, "low_freq_factor", "high_freq_factor"), complete=_complete_llama3),
    "longrope": Type(
        longrope,
        holds=("attention_factor", LENGTH, "short_factor", "long_factor"),
        may=("factor",),
        complete=_complete_longrope,
    ),
}
# What Transformers derives where a file does not say it; all else that a type holds must be said.
DERIVED = {"attention_factor", LENGTH, "beta_fast", "beta_slow", "truncate"}
UNSAID_BY_0 = {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}


def read(said: Mapping[str, Any], theta: float, head_dim: int, positions: int) -> Scaling:
    """A file's fields, by config.json's names -> Scaling. positions: max_position_embeddings.

    Raises BadInput for a type that is not known, a field that it has not or that is missing, and a value that is none.
    """
    kind = said.get("rope_type", said.get("type")) or "default"
    known = TYPES.get(kind) if isinstance(kind, str) else None
    if known is None:
        _refuse(f"of type {brief(kind)} is not supported; {', '.join(TYPES)} are")
    other = said.get("type", kind)
    if other not in (kind, None):
        _refuse(f"has two types, rope_type {brief(kind)} and type {brief(other)}; take one out")
    ignored = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    given = {name: value for name, value in said.items() if value is not None and name not in ignored}
    given = {name: value for name, value in given.items() if name not in UNSAID_BY_0 or value != 0}
    # These say nothing that could be computed otherwise: no scaling is by 1, and magnitude 1 changes none.
    neutral = {name for name in ("factor", "attention_factor") if given.get(name) == 1} - {*known.holds, *known.may}
    found = {name: _value(kind, name, value, head_dim) for name, value in given.items() if name not in neutral}
    if strange := [name for name in found if name not in (*known.holds, *known.may)]:
        _refuse(f"of type {kind} holds {brief(strange)}, which that type has not; take it out")
    optional = DERIVED | ({"factor"} & said.keys())  # null is yarn's ratio of the context to the original positions
    if missing := [name for name in known.holds if name not in found and name not in optional]:
        _refuse(f"of type {kind} has no {missing[0]}, and nothing may be guessed for it")
    if kind == "yarn" and theta <= 1:
        _refuse(f"of type yarn needs a rope_theta above 1, and it is {theta:g}")
    if kind == "dynamic" and head_dim < 4:
        _refuse(f"of type dynamic needs heads of at least 4 values, and head_dim is {head_dim}")
    if kind == "linear" and found["factor"] == 1:
        return UNSCALED
    scaling = Scaling(kind, **known.complete(found, positions))
    table = frequencies(theta, head_dim, scaling)
    if not (np.isfinite(table).all() and (table >= 0).all()):
        _refuse(f"of type {kind} gives frequencies that are no numbers: {brief(scaling.spelled())}")
    return scaling


def _value(kind: str, name: str, value: Any, head_dim: int) -> Any:
    """A field's value in its type. Raises BadInput if it can not be one."""
    kinds = {f.name: f.type for f in fields(Scaling)}
    where = f"of type {kind} has {name} {brief(value)}"
    if kinds.get(name) == "bool":
        if type(value) is not bool:
            _refuse(f"{where}; it must be true or false")
        return value
    if kinds.get(name) == "int":
        if type(value) is not int or not 0 < value < 1 << 31:
            _refuse(f"{where}; it must be a whole number from 1 to 2^31 - 1")
        return value
    if kinds.get(name, "").startswith("tuple"):
        if not isinstance(value, list | tuple) or len(value) != head_dim // 2:
            _refuse(f"{where}; it must be a list of {head_dim // 2} numbers, one for each pair of a head")
        return tuple(_number(f"{where}, in which {brief(x)} stands", x) for x in value)
    return _number(where, value) if name in kinds or name in ("mscale", "mscale_all_dim") else value


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not SMALLEST <= value <= LARGEST:
        _refuse(f"{where}; it must be a positive number that float32 holds")
    return float(value)
