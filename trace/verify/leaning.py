"""Whether an error leans to a side: roundings have none, a wrong constant in the weights has.

What leaves much open (sums kept in halves) bounds each element by 13 standard deviations, and would excuse any mistake
that is smaller. But roundings are as often up as down, whatever the weights stand for. A mistake that adds a constant
to the weights (a zero point that is off, a minimum that is lost) makes an error that goes with the activations' own
sums, of the same sign in every row of the matrix.

The errors of a row of the matrix, at all positions, times what such a mistake would make of them, are added to one
number g of that row. If signs are by chance, sum(g) / sqrt(sum(g^2)) is beyond z with a chance below 2 exp(-z^2 / 2),
however the sizes are distributed (Hoeffding's bound for sums of signs, given the sizes): once in 1e9 for 6.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formulas import flat, input_of
from .recipes.matrix import FileMatrix, group_sums
from .site import Site
from .span import Array

MOST = 6.5


def leaning(product: Site, error_TO: Array, got_TO: NDArray[np.floating[Any]]) -> float:
    """How many standard deviations of chance the error of a product leans by, in the direction that it leans most.

    Rows of one result count once: those of a vocabulary's unused tokens are one another's copies, and so are their
    errors.
    """
    x = flat(input_of(product))
    if error_TO.shape[0] != len(x.mid) or not np.isfinite(error_TO).all():
        return 0.0
    _, one_of_each = np.unique(got_TO[-1], return_index=True)
    most = 0.0
    for made_TO in directions(x.mid, product.matrices()):
        g_O = np.einsum("to,to->o", error_TO, np.broadcast_to(made_TO, error_TO.shape))[one_of_each]
        size = float(np.sqrt(np.square(g_O).sum()))
        most = max(most, abs(float(g_O.sum())) / size if size else 0.0)
    return most


def directions(x_TI: Array, matrices: list[FileMatrix]) -> Iterator[Array]:
    """What constants in the weights make of a product: the same for all of them, or a step of each group's codes."""
    yield x_TI.sum(1, keepdims=True)
    made = []
    for m in matrices:
        step_OI = m.steps(0, m.shape[0])
        if step_OI is None:
            return
        made.append(group_sums(x_TI, m.facts.group) @ step_OI[:, :: m.facts.group].T)
    yield np.concatenate(made, 1)
