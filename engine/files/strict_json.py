"""JSON from a file nobody vouches for: one BadInput for what is not JSON, is too deep, or says a thing twice."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from ...errors import BadInput

MAX_CONTAINERS = 1_000_000  # objects and lists, of which newer files have one per merge; bounds what parsing takes
MAX_DEPTH = 128  # of them one in another, as serde_json has it; whoever walks through the value recurses

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # one that never ends, too, or each quote looks for it


def parse_object(raw: bytes, where: str, *, repeats: bool = False) -> dict[str, Any]:
    """The JSON object in `raw`; otherwise as `parse`."""
    value = parse(raw, where, repeats=repeats)
    if not isinstance(value, dict):
        raise BadInput(f"{where}: a JSON object is needed, not {type(value).__name__}")
    return value


def parse(raw: bytes, where: str, *, repeats: bool = False) -> Any:
    """The JSON in `raw`, UTF-8, nothing but white space behind it.

    A key that stands twice is an error, because two readers then see two files; with `repeats` the last value wins.
    NaN and Infinity, which Python's json takes, are no JSON. Raises BadInput that begins with `where`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs) and not repeats:
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise BadInput(f"{where}: key {twice!r:.80} stands twice")
        return found

    def refuse(constant: str) -> NoReturn:
        raise BadInput(f"{where}: {constant} is no JSON number")

    def real(digits: str) -> float:
        if abs(value := float(digits)) == float("inf"):
            raise BadInput(f"{where}: {digits:.20} is larger than any float64")
        return value

    count = raw.count(b"{") + raw.count(b"[")
    if count > MAX_CONTAINERS:  # brackets inside strings do not count
        count = sum(part.count(b"{") + part.count(b"[") for part in _STRING.split(raw))
        if count > MAX_CONTAINERS:
            raise BadInput(f"{where}: {count} JSON objects and lists; no model needs more than {MAX_CONTAINERS}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=real)
    except RecursionError:
        raise BadInput(f"{where}: JSON nested too deep") from None
    except BadInput:  # of the functions above
        raise
    except ValueError as error:  # also an integer of more digits than Python converts
        raise BadInput(f"{where}: not JSON: {error}") from None
    if count > MAX_DEPTH and too_deep(value):
        raise BadInput(f"{where}: JSON nested too deep")
    if re.search(rb"\\u[dD][89a-fA-F]", raw):  # half of a surrogate pair is text that no UTF-8 can hold
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadInput(f"{where}: an escape stands for half of a surrogate pair, which is no text") from None
    return value


def too_deep(value: Any) -> bool:
    """Whether more than MAX_DEPTH objects and lists stand one in another."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = (x.values() if isinstance(x, dict) else x for x in level)
        level = [v for values in inside for v in values if type(v) in (dict, list)]
    return bool(level)
