"""What a fact of an engine's arithmetic is: one independent choice, which shows in some kinds of stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....stages import Stage
from ...span import Float


def silent(value: Any, result: Float) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Fact:
    """field: of Recipe. values: what it may be for a stage whose results are stored so, the commonest first; () where
    it does not show. words: of a value in an engine that stores most of its results so; "" for what goes without
    saying. wide: values that leave so much open that they might explain a mistake, each with the value that its
    span is measured by: they are tried last, and said with how much more they allow. amounts: what a value comes to
    where weights have these formats, if that is another.
    """

    field: str
    values: Callable[[Stage, Float], Sequence[Any]]
    words: Callable[[Any, Float], str] = silent
    wide: Mapping[Any, Any] = dataclasses.field(default_factory=dict)
    amounts: Callable[[Any, Collection[str]], Any] = lambda value, formats: value
