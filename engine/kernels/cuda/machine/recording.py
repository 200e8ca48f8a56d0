"""A decode step recorded once as a CUDA graph, then replayed: launches from Python take longer than most kernels.

What changes from step to step lives on the card: the token in a word of its own, the position in the cache's. So the
first step runs as always but with room for every position (and compiles what is not compiled), the second is recorded
while the same page runs, and from then on the recording is launched. Same kernels, same sums, same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from ..cache import KVCache
from .memory import Arena, Queue, Rows
from .ptx import SIMULATED


class Recorded:
    """A decode step, token [1] -> logits [V]; the logits are good until the next step.

    step: takes a queue, where its buffers come from and its launches go, and the token on the card.
    """

    def __init__(self, step: Callable[[Queue, Any], Rows], cache: KVCache) -> None:
        self.step, self.cache, self.arena = step, cache, Arena()
        self.token = cuda.to_device(np.zeros(1, np.int32))
        self.warm = False
        self.graph: Callable[[], None] | None = None
        self.logits_V: Rows | None = None
        self.host: Any = None  # pinned memory for the logits

    def __call__(self, token_T: NDArray[np.integer[Any]]) -> Rows:
        self.cache.positions(1)
        self.token.copy_to_device(np.asarray(token_T, np.int32))
        if self.graph is None and (SIMULATED or not self.warm):
            self.logits_V, self.warm = None, True
            self._run(0)
        else:
            if self.graph is None:
                self.logits_V = None  # its memory is the recording's too
                self.graph = graph_of(self._run)
            else:
                self.cache.length += 1
            self.graph()
        assert self.logits_V is not None
        if self.host is None:
            self.host = cuda.pinned_array(self.logits_V.shape, np.float32)
        self.logits_V.host = self.host
        return self.logits_V

    def _run(self, stream: Any) -> None:
        self.logits_V = self.step(Queue(self.arena, stream), self.token)


def graph_of(work: Callable[[Any], Any]) -> Callable[[], None]:
    """What `work` launches, on the stream that it is given, as one launch. Nothing of it runs yet.

    It must not touch memory from the host, and every kernel must have been compiled before.
    """
    from cuda.core import Device, Stream

    device = Device(cuda.get_current_device().id)
    device.set_current()
    builder = device.create_graph_builder()
    with cuda.defer_cleanup():
        builder.begin_building(mode="relaxed")
        work(builder)
        graph = builder.end_building().complete()
    stream = Stream.from_handle(0)  # where launches and copies go that name no stream
    return lambda: graph.launch(stream)
