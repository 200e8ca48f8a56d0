"""Ways to make a good thing bad, one at a time: bytes, text, numbers, JSON. All draw from a `random.Random`.

What knows nothing of a format only finds its first check. So most of it is typed: a value of another type, of another
size, nested too deep, there twice; and what is valid but not true is made where the format is known (hostile_*.py).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np

from .judged import FORGED

NAMES = (
    "",
    " ",
    "a",
    "\n" + FORGED,
    f"a\r\n{FORGED} all is well",
    f"<b>{FORGED}</b><script>alert(1)</script>",
    "\x7f\x1b[2J\x1b]0;title\x07",
    "\x9b31m\x85",
    "\u202egnp.fugg\u2066\u2028\u2029",
    "x" * 300,
    "\N{LATIN SMALL LETTER E WITH ACUTE}\U0001f600\u0301",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "CON",
    "%s%n{0}{layer}",
    "'\"\\",
    "__proto__",
    "NaN",
)

WHOLE = (
    0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 64, 255, 256, 257, 1000, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 31), -(1 << 63), -2,
    10**18, 10**400,
)  # fmt: skip
REAL = (0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-6, 1e-38, 1e-45, 5e-324, 1e30, 3.4e38, 1e39, 1e308, -1e308, 0.1, 1e6)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


def raw(text: str) -> str:
    """A value that `spelled` writes as this text, unquoted."""
    return f"\ue000{text.encode().hex()}\ue001"


DEEP = 100_000
RAWS = (
    "NaN", "-Infinity", "1e999", "-0", "00", "1.", "0x10", "nul", "'a'", "{1: 2}", "[1,]", "9" * 5000, '"\\ud800"',
    '"\\udc00x"', '"\x01"', '"\\u0000"', '"', "[" * DEEP, '{"a":' * DEEP, "[" * 900 + "]" * 900,
    '{"a":' * 500 + "1" + "}" * 500, "", "1 2", "//", "\ufeff1",
)  # fmt: skip


def odd(r: Random) -> Any:
    """A value that JSON can hold, most often where it should not."""
    kind = r.randrange(12)
    if kind < 3:
        return r.choice(WHOLE)
    if kind == 3:
        return r.choice(REAL)
    if kind < 6:
        return r.choice(NAMES)
    if kind == 6:
        return r.choice((None, True, False))
    if kind == 7:
        return raw(r.choice(RAWS))
    if kind == 8:
        return r.choice(([], [[]], [None], {}, {"a": []}, {"": 1}, [{}], "x" * 9000, [0] * 300, ["a"] * 300))
    if kind == 9:
        return [odd(r) for _ in range(r.randrange(4))]
    if kind == 10:
        return {r.choice(NAMES): odd(r) for _ in range(r.randrange(3))}
    return str(r.choice(WHOLE))[:40]


def spelled(value: Any, r: Random | None = None) -> bytes:
    """JSON, but for what `raw` and keys that stand twice ("\\ue002" behind them) ask for."""
    text = json.dumps(value, ensure_ascii=bool(r and r.random() < 0.2))
    for mark in "\ue000\ue001\ue002":
        text = text.replace(f"\\u{ord(mark):04x}", mark)
    first, *rest = text.split('"\ue000')
    for part in rest:
        inside, _, behind = part.partition('\ue001"')
        with suppress(ValueError):  # another change may have cut it
            inside = bytes.fromhex(inside).decode()
        first += inside + behind
    return first.replace("\ue002", "").encode("utf-8", "surrogatepass")


def in_json(r: Random, value: Any, more: Sequence[str] = ()) -> Any:
    """A copy with one thing changed, at any depth. more: keys that may be added at the top."""
    value = json.loads(json.dumps(value)) if isinstance(value, dict | list) else value
    if not isinstance(value, dict | list) or r.random() < 0.02:
        return odd(r)
    if more and isinstance(value, dict) and r.random() < 0.25:
        value[r.choice(more)] = odd(r)
        return value
    place, key = value, key_of(r, value)
    while key is not None and isinstance(place[key], dict | list) and place[key] and r.random() < 0.7:
        place = place[key]
        key = key_of(r, place)
    change_one(r, place, key)
    return value


def key_of(r: Random, place: Any) -> Any:
    """One of the keys or places; the first ones of a long list more often."""
    if not place:
        return None
    return r.choice(list(place)) if isinstance(place, dict) else r.randrange(min(len(place), r.choice((4, 1 << 30))))


def change_one(r: Random, place: Any, key: Any) -> None:
    """Something in a dict or a list, at a key that it has (None: it is empty)."""
    kind = r.randrange(10)
    if key is None or kind == 0:
        new = odd(r)
        if isinstance(place, dict):
            place[r.choice(NAMES)] = new
        else:
            place.insert(r.randrange(len(place) + 1), new)
    elif kind == 1:
        del place[key]
    elif kind == 2:  # there twice
        if isinstance(place, dict):
            place[f"{key}\ue002"] = place[key] if r.random() < 0.5 else odd(r)
        else:
            place.insert(key, place[key])
    elif kind == 3 and isinstance(place, dict):
        place[r.choice((*NAMES, f"{key} ", key.upper()))] = place.pop(key)
    elif kind == 4:
        place[key] = r.choice(([place[key]], {"a": place[key]}, str(place[key])[:99], [place[key]] * 3))
    elif kind == 5 and type(place[key]) in (int, float) and abs(place[key]) < 1 << 80:
        place[key] = r.choice((place[key] + 1, place[key] - 1, -place[key], place[key] * 2, float(place[key]) + 0.5))
    elif kind == 6 and isinstance(place[key], str):
        place[key] = in_text(r, place[key])
    elif kind == 7 and len(place) > 1:
        other = key_of(r, place)
        place[key], place[other] = place[other], place[key]
    else:
        place[key] = odd(r)


def in_text(r: Random, text: str) -> str:
    """One thing about it changed."""
    at = r.randrange(len(text) + 1)
    return r.choice(
        (
            text[:at],
            text[:at] + r.choice(NAMES) + text[at:],
            text + r.choice(NAMES),
            text[:at] + "\ud800" + text[at:],
            text.upper(),
            text * r.choice((2, 50)),
            text[at:] + text[:at],
        )
    )


def json_file(r: Random, value: Any, more: Sequence[str] = ()) -> bytes:
    """The bytes of a JSON file of which up to three things were changed, or its bytes."""
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        value = in_json(r, value, more)
    text = spelled(value, r)
    return in_bytes(r, text) if r.random() < 0.15 else text


def in_bytes(r: Random, data: bytes) -> bytes:
    """One to four changes that know nothing of what the bytes mean; the first 4 KiB, where headers are, more often."""
    for _ in range(r.choice((1, 1, 1, 2, 4))):
        length = len(data)
        at = r.randrange(min(length, r.choice((16, 128, 4096, 1 << 40))) + 1)
        size = min(r.choice((1, 1, 2, 4, 8, 8, 64)), length - at)
        kind = r.randrange(9)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + data[at + size :]
        elif kind == 2:
            data = data[:at] + noise(r, r.choice((1, 4, 8, 64))) + data[at:]
        elif kind == 3:
            data = data[: at + size] + data[at:]
        elif kind == 4:
            number = struct.pack("<Q", r.choice(WHOLE) & (1 << 64) - 1)[: r.choice((1, 2, 4, 8))]
            data = data[:at] + number + data[at + len(number) :]
        elif kind == 5:
            data = data[:at] + bytes([r.choice((0, 255, 0x7F, 0x80))]) * size + data[at + size :]
        elif kind == 6:
            data = data + noise(r, r.choice((1, 3, 64)))
        elif kind == 7 and length > at:
            data = data[:at] + bytes([data[at] ^ 1 << r.randrange(8)]) + data[at + 1 :]
        else:
            data = data[:at] + noise(r, size) + data[at + size :]
    return data


def noise(r: Random, size: int) -> bytes:
    return r.getrandbits(8 * size).to_bytes(size, "little") if size else b""


def not_utf8(r: Random) -> bytes:
    return r.choice((b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xf8\x88\x80\x80\x80", b"\xe2\x28\xa1", b"\x80"))


def in_values(r: Random, values: np.ndarray) -> np.ndarray:
    """A copy with one, some or all values odd, or the whole of another scale. float32 or float64."""
    x = np.array(values)
    flat = x.reshape(-1)
    if not flat.size:
        return x
    with np.errstate(all="ignore"):
        which = r.randrange(7)
        if which == 0:
            flat *= x.dtype.type(r.choice((0.0, -1.0, 1.001, 1e-30, 1e30, 1e38)))
        elif which == 1:
            flat[:] = x.dtype.type(r.choice((*REAL, *NOT_FINITE)))
        elif which == 2 and x.ndim > 1:
            flat[:] = np.roll(x, 1, r.randrange(x.ndim)).reshape(-1)
        else:
            for _ in range(r.choice((1, 1, 3))):
                value = r.choice((*REAL, *NOT_FINITE, *NOT_FINITE))
                flat[r.randrange(flat.size)] = x.dtype.type(value)
    return x


def some(r: Random, changes: Sequence[Callable[[], None]], most: int = 3) -> None:
    """Makes one of the changes, or a few."""
    for _ in range(r.choice((1, 1, 1, 2, most))):
        r.choice(changes)()
