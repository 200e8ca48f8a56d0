"""Evidence: a dump, the model that judges it, and where each file's rows stand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.config import ALL, Config
from ...engine.kernels.reference import hidden
from ...engine.weights import Weights, parts
from ...quant.tensor import dequantize
from ..dump import Dump, Entry
from ..stages import Stage, of_pieces
from .facts import Key
from .recipes.matrix import FileMatrix, matrix_of
from .recipes.rope import Rotation, rotations
from .span import BFLOAT16, FLOAT16, FLOAT32, Array, Float

OPENED = 32 << 20  # bytes of files: each arithmetic that is tried on a stage looks at the same few


def begin(e: Entry) -> tuple[int, bytes]:
    """How many values an entry has, and the first of them."""
    values = e.values().reshape(-1)
    return values.size, values[:16].tobytes()


@dataclass
class Evidence:
    """A dump, and the model that it is judged by.

    tokens: ids by absolute position, None where neither manifest nor embedding told them.
    rotations: RoPE's angles by the recipe's name, fitted to the dump. codes: see formulas.codes. formats: see
    stored_as.
    rows: the positions of each phase. held: see matrices. opened: what was looked at last.
    batch: the other prompts of a batch, by row, as far as they were asked for (hypotheses/batch.py).
    distrusted: files that a later stage was found not to have been computed from; they count as missing.
    """

    dump: Dump
    weights: Weights
    tokens: tuple[int, ...] | None = None
    distrusted: set[Key] = field(default_factory=set)
    rotations: dict[str, Rotation] = field(default_factory=dict)
    codes: dict[Any, int | str] = field(default_factory=dict)
    formats: dict[tuple[str, str], Float] = field(default_factory=dict)
    rows: dict[int, tuple[int, ...]] = field(default_factory=dict)
    held: dict[tuple[int | None, str], list[FileMatrix]] = field(default_factory=dict)
    batch: dict[int, Evidence] = field(default_factory=dict)
    opened: OrderedDict[int, tuple[Entry, NDArray[np.float32]]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        for phase in self.phases:
            self.rows[phase] = self._rows([e for e in self.dump.entries if e.phase == phase])
        if not self.rotations:
            c, session = self.config, 1 + max((p for rows in self.rows.values() for p in rows), default=0)
            table = np.asarray(self.weights.frequencies(session), np.float32)
            self.rotations = rotations(c.rope_theta, table, c.rope_scaling, c.rope_scaling.beyond(session))

    def _rows(self, entries: list[Entry]) -> tuple[int, ...]:
        """The positions of a phase: as the manifest has them, or else from the shapes, behind the phase before."""
        told = [e.positions for e in entries if e.positions is not None]
        if told:
            return max(told, key=len)
        T = max((e.shape[e.stage.letters.index("T")] for e in entries if "T" in e.stage.letters), default=1)
        past = max((rows[-1] + 1 for rows in self.rows.values()), default=0)
        S = max((e.shape[2] for e in entries if "S" in e.stage.letters), default=past + T)
        return tuple(range(S - T, S))

    @property
    def config(self) -> Config:
        return self.weights.config

    @cached_property
    def begun(self) -> dict[tuple[int, bytes], list[Entry]]:
        """The dump's entries by how they begin: those of one file that stands twice are together."""
        found: dict[tuple[int, bytes], list[Entry]] = {}
        for e in self.dump.entries:
            found.setdefault(begin(e), []).append(e)
        return found

    @cached_property
    def stages(self) -> Mapping[str, Stage]:
        """Those that this model has, by name: their inputs are among them."""
        return of_pieces(self.weights.pieces)

    def stage(self, name: str) -> Stage:
        return self.stages[name]

    @cached_property
    def biased(self) -> Mapping[str, str]:
        """The products that a bias is added to, and the stages that hold the sums."""
        return {s.inputs[0]: s.name for s in self.stages.values() if s.kind == "bias"}

    @property
    def valued(self) -> str:
        """The stage that holds the values that attention mixes, beside queries and keys."""
        return self.stage("attention").inputs[1]

    @property
    def phases(self) -> list[int]:
        return sorted({e.phase for e in self.dump.entries})

    def positions(self, e: Entry) -> tuple[int, ...]:
        """Absolute positions of an entry's rows. Without a manifest: a phase follows the one before it, and a file with
        fewer rows than its phase has the last ones (llama.cpp's last layer computes only the output row)."""
        if e.positions is not None:
            return e.positions
        rows = self.rows[e.phase]
        return rows[-e.shape[e.stage.letters.index("T")] :] if "T" in e.stage.letters else rows[-1:]

    def entering(self, layer: int | None) -> tuple[int, str]:
        """Layer and stage of the residual that enters a layer, or for None the final norm."""
        last = self.config.num_hidden_layers - 1 if layer is None else layer - 1
        return (0, "embedding") if last < 0 else (last, "post_ffn_residual")

    def stored(self, key: Key) -> Entry | None:
        phase, layer, name = key
        return None if key in self.distrusted else self.dump.get(name, layer, phase)

    def values(self, e: Entry) -> NDArray[np.float32]:
        """What a file holds of its stage. Above the diagonal of scores and before a window each source has its own (raw
        products, -inf, a large negative number, NaN, nothing), which no later stage reads: 0 stands for it."""
        if id(e) not in self.opened:
            self.opened[id(e)] = e, self._values(e)
            while len(self.opened) > 1 and sum(v.nbytes for _, v in self.opened.values()) > OPENED:
                self.opened.popitem(last=False)
        self.opened.move_to_end(id(e))
        return self.opened[id(e)][1]

    def _values(self, e: Entry) -> NDArray[np.float32]:
        values = e.values()
        if e.stage.kind != "scores":
            return values
        unseen_TS = hidden(self.sees(e.phase, self.positions(e)), values.shape[2], self.window(e.layer))
        return np.where(unseen_TS, np.float32(0), values)

    def sees(self, phase: int, positions: tuple[int, ...]) -> NDArray[np.int32]:
        """[T]: the last position that each of these sees: its own, or, where attention is not causal, its phase's
        last."""
        own_T = np.array(positions, np.int32)
        return own_T if self.config.causal else np.full_like(own_T, self.rows[phase][-1])

    def window(self, layer: int | None) -> int:
        return ALL if layer is None else self.config.window(layer)

    def stored_as(self, stage: str, usual: Float) -> Float:
        """The format in which the dump holds this stage: the usual one, if its values are of that or it has none."""
        key = stage, usual.name
        if key not in self.formats:
            held = [e for e in self.dump.entries if e.stage.name == stage][:3]
            fits = (f for f in (usual, FLOAT16, BFLOAT16) if all(f.holds(self.values(e)) for e in held))
            self.formats[key] = next(fits, FLOAT32)
        return self.formats[key]

    def gain(self, layer: int | None, name: str) -> Array:
        """A norm's gain or a bias, as the file decodes."""
        leaf = getattr(self.weights if layer is None else self.weights.layers[layer], name)
        return np.concatenate([dequantize(p) for p in parts(leaf)]).astype(np.float64)

    def matrices(self, layer: int | None, name: str) -> list[FileMatrix]:
        """The matrices of a product stage, in the order of its columns."""
        key = layer, name
        if key not in self.held:
            self.held[key] = self._matrices(layer, name)
        return self.held[key]

    def _matrices(self, layer: int | None, name: str) -> list[FileMatrix]:
        stage = self.stage(name)
        tensors = parts(getattr(self.weights if layer is None else self.weights.layers[layer], stage.weight or ""))
        return [matrix_of(p) for p in (tensors if stage.part is None else tensors[stage.part : stage.part + 1])]
