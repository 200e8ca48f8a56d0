"""A tap is an identity: the forward pass hands it every stage, and gets the same value back."""

from __future__ import annotations

from typing import Any, Protocol

from .kernels import Kernels


class At(Protocol):
    """Takes a stage and its value and returns that value. It may read it now; it must not keep or change it."""

    def __call__(self, stage: str, value: Any) -> Any: ...


class Tap(Protocol):
    """What the forward pass talks to: one At per layer, and one for the stages of the whole model."""

    def layer(self, index: int) -> At: ...

    def whole(self, stage: str, value: Any) -> Any: ...


def biased(at: At, stage: str, ops: Kernels, x_TD: Any, bias_D: Any) -> Any:
    """x + bias, which is the stage; x where the model does not have this bias, and then there is no such stage."""
    return x_TD if bias_D is None else at(stage, ops.add(x_TD, bias_D))


def _pass(stage: str, value: Any) -> Any:
    return value


class Silent:
    """The tap that looks at nothing."""

    def layer(self, index: int) -> At:
        return _pass

    def whole(self, stage: str, value: Any) -> Any:
        return value


SILENT = Silent()


class Both:
    """Two taps at one place."""

    def __init__(self, a: Tap, b: Tap) -> None:
        self.a, self.b = a, b

    def layer(self, index: int) -> At:
        a, b = self.a.layer(index), self.b.layer(index)
        return lambda stage, value: b(stage, a(stage, value))

    def whole(self, stage: str, value: Any) -> Any:
        return self.b.whole(stage, self.a.whole(stage, value))
