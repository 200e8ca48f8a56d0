"""Which axis of another tool's array is which letter of a stage: told by the sizes, or asked for, never guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isqrt, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput

Array = NDArray[np.floating[Any]]
Letters = tuple[str, ...]


def lengths(shape: Sequence[int], letters: Letters, sizes: Mapping[str, int], T: int | None) -> dict[str, int] | None:
    """T, and S where it is among the letters, of an array of that shape in any order of axes; None if it has neither.

    T: if another array told it. S is never smaller: without one, scores that are not square tell T by that.
    """
    rest, odd = divmod(prod(shape), prod(sizes[letter] for letter in letters if letter in sizes))
    if odd or not rest:
        return None
    if "S" not in letters:
        return {"T": rest}
    if T is None:
        own = (n for n in sorted({1, *shape}, reverse=True) if n * n <= rest == n * (rest // n) and rest // n in shape)
        T = next(own, isqrt(rest))
    return {"T": T, "S": rest // T} if rest % T == 0 and rest // T >= T else None


def orders(letters: Letters) -> Iterator[Letters]:
    """The stage's own order, then the first letter further behind: [D, T], [N, T, H]. No engine has others."""
    first, *rest = letters
    for i in range(len(letters)):
        yield (*rest[:i], first, *rest[i:])


def fits(shape: Sequence[int], order: Letters, sizes: Mapping[str, int], alone: str | None) -> bool:
    """Whether the axes are the letters in that order, where neighbours may be one axis. alone: a letter that may not.

    Axes of length 1 hold nothing apart: a batch of one, a single position.
    """
    dims = [n for n in shape if n != 1]
    held, letters = 1, Letters()
    for letter in order:
        held, letters = held * sizes[letter], (*letters, *([letter] * (sizes[letter] != 1)))
        if dims and held == dims[0] and held > 1:
            if alone in letters and len(letters) > 1:
                return False
            dims, held, letters = dims[1:], 1, Letters()
    return not dims and held == 1


def arranged(values: Array, letters: Letters, sizes: Mapping[str, int], axes: Letters | None) -> tuple[Array, Letters]:
    """The values with the letters' axes, and the order that they were in. sizes: of every letter, T and S among them.

    axes: the order, if the user has told it. Raises BadInput if no order fits, or several do. T stands before S.
    """
    known = [axes] if axes else list(orders(letters))
    fitting = [o for o in known if fits(values.shape, o, sizes, letters[0] if o not in (letters, axes) else None)]
    distinct = {tuple(letter for letter in o if sizes[letter] != 1): o for o in reversed(fitting)}
    spelled = " ".join(f"{letter}={sizes[letter]}" for letter in axes or letters)
    if not distinct:
        raise BadInput(f"shape {values.shape} does not fit {spelled}")
    if len(distinct) > 1:
        both = " or ".join(" ".join(o) for o in fitting)
        raise BadInput(f"shape {values.shape} may be {both}; say which with axes, in a --map")
    (order,) = distinct.values()
    whole = values.reshape([sizes[letter] for letter in order])
    return np.transpose(whole, [order.index(letter) for letter in letters]), order
