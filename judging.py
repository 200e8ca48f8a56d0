"""A dump judged by a model: what `engine verify` prints."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .engine.load import Opened, open_weights
from .model import Model
from .trace.dump import Dump
from .trace.sources import AS_IT_IS, Asked, open_dump
from .trace.verify.report.report import Report
from .trace.verify.verify import verify as judge

AnyModel = Model | str | os.PathLike[str]


def verify(
    dump: Dump | str | os.PathLike[str],
    model: AnyModel,
    *,
    against: AnyModel | None = None,
    asked: Asked = AS_IT_IS,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Recomputes every stage of a dump in float64 from the dump's own inputs, and says what explains it.

    dump: opened, or the path of what holds one (docs/dumps.md). model: loaded, or a path or alias: no backend is
    needed. against: a second model that the engine may have run. asked: which prompt of a batch, and what else is to be
    said of another tool's arrays. progress: told how many stages are judged.
    Raises BadInput if the dump cannot be one of this model's shape, or is not what its manifest says.
    """
    second = None if against is None else _opened(against)
    opened = _opened(model)
    return judged(opened_for(dump, opened, asked), opened, second, progress)


def judged(
    dump: Dump | str | os.PathLike[str],
    model: Opened,
    against: Opened | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """`verify`, of models that are open."""
    checkpoint, weights = model
    dump = opened_for(dump, model)
    dump.check_digests()
    found = judge(dump, weights, against=None if against is None else against.weights, done=progress)
    for used in (model, against):
        if used is not None:
            used.checkpoint.check_unchanged()
    return Report.of(found, dump.path.absolute().name, checkpoint.path.name)


def opened_for(dump: Dump | str | os.PathLike[str], model: Opened, asked: Asked = AS_IT_IS) -> Dump:
    """The dump, which the model gives its sizes if nothing else does. Files may be missing."""
    if isinstance(dump, Dump) and dump.sizes is not None:
        return dump
    path = dump.path if isinstance(dump, Dump) else Path(dump)
    c = model.checkpoint.config
    return open_dump(path, c.sizes, layers=c.num_hidden_layers, incomplete=True, asked=asked)


def _opened(model: AnyModel) -> Opened:
    return model.opened if isinstance(model, Model) else open_weights(model)
