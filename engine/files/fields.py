"""A JSON object out of a file nobody vouches for, whose values come out with the type that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import BadInput


class Fields:
    """The fields of an object. Each getter raises BadInput, naming file and field, for a value of another type.

    null is absent, as in Hugging Face's readers. where: the file, and the way to the object in it.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def bad(self, name: str, must: str) -> BadInput:
        """The error for a field that is not what it must be."""
        return BadInput(f"{self.where}: {name} is {self.values.get(name)!r:.60}, and must be {must}")

    def _get(self, name: str, kind: type, must: str) -> Any:
        value = self.values.get(name)
        if value is not None and type(value) is not kind:
            raise self.bad(name, must)
        return value

    def text(self, name: str) -> str | None:
        found: str | None = self._get(name, str, "text")
        return found

    def flag(self, name: str) -> bool | None:
        found: bool | None = self._get(name, bool, "true or false")
        return found

    def whole(self, name: str) -> int | None:
        found: int | None = self._get(name, int, "a whole number")
        return found

    def object(self, name: str) -> Fields | None:
        value = self._get(name, dict, "an object")
        return None if value is None else Fields(value, f"{self.where}: {name}")

    def array(self, name: str) -> list[Any] | None:
        found: list[Any] | None = self._get(name, list, "a list")
        return found

    def objects(self, name: str) -> list[Fields]:
        """A list of objects; empty where there is none."""
        found = self.array(name) or []
        return [one(value, f"{self.where}: {name}[{n}]") for n, value in enumerate(found)]

    def ids(self, name: str) -> list[int]:
        """A whole number or a list of them. A negative one is nobody's id and means that there is none."""
        value = self.values.get(name)
        found = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int for i in found):
            raise self.bad(name, "a token id or a list of them")
        return [i for i in found if i >= 0]

    def id(self, name: str) -> int | None:
        """A token id; None for a negative one too."""
        value = self.whole(name)
        return None if value is None or value < 0 else value


def one(value: Any, where: str) -> Fields:
    """A value that must be an object."""
    if not isinstance(value, dict):
        raise BadInput(f"{where} is {value!r:.60}, and must be an object")
    return Fields(value, where)
