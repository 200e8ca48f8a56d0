"""What the judge has to say beside numbers: facts, typed and immutable. report/words.py puts each into words."""

from __future__ import annotations

from dataclasses import dataclass

from ..stages import Key

Spot = tuple[int | None, str]  # layer, stage

# -- why a stage cannot be judged -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoTokenIds:
    """The stage needs ids, and none are known."""


@dataclass(frozen=True, slots=True)
class OutsideVocabulary:
    token: int
    rows: int


@dataclass(frozen=True, slots=True)
class TooMuchMissing:
    """On the way to a stage, this one and the layer after it are not in the dump."""

    spot: Spot


@dataclass(frozen=True, slots=True)
class PositionsMissing:
    """Keys or values (what) of positions first to last, which a dump holds as `stage`."""

    what: str
    stage: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class KeysMissing:
    """A file of scores or probabilities holds fewer keys than this position has."""

    spot: Spot
    held: int
    position: int


@dataclass(frozen=True, slots=True)
class OtherShape:
    """The file has one shape; from its inputs it must have another."""

    got: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CapturedElsewhere:
    """The manifest's facts of capture that are not the stage's."""

    capture: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class NotFinite:
    """So many values are NaN or infinite. inputs: so are the stage's inputs, and then it says nothing of the stage."""

    count: int
    inputs: bool


Reason = (
    NoTokenIds
    | OutsideVocabulary
    | TooMuchMissing
    | PositionsMissing
    | KeysMissing
    | OtherShape
    | CapturedElsewhere
    | NotFinite
)


class Unjudgeable(Exception):  # noqa: N818  (a reason, not a fault)
    """A stage cannot be recomputed."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


# -- what is to be known of a judged stage ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recomputed:
    """Inputs that the dump lacks were recomputed from others. layer: of the stage itself."""

    layer: int | None
    used: tuple[Spot, ...]
    missing: tuple[Spot, ...]


@dataclass(frozen=True, slots=True)
class NextToken:
    """The dump's first choice against float64's from the same input.

    rank: of the dump's choice in float64, from 1; gap: float64's first logit less its second; noise: RMS of the
    logits' error.
    """

    token: int
    best: int
    rank: int
    gap: float
    noise: float


@dataclass(frozen=True, slots=True)
class FromTokens:
    """The dump's first choice against float64's from the same tokens, through all layers: logits by themselves.

    rank, gap, noise: as of NextToken. relative: RMS of the logits' error over theirs. divergence: KL(float64 || dump),
    in nats, of what the two soft-max distributions say. like: what the logits are instead, where they are not those of
    the last position (likeness.py).
    """

    token: int
    best: int
    rank: int
    gap: float
    noise: float
    relative: float
    divergence: float
    like: str | None = None

    @property
    def agrees(self) -> bool:
        return self.token == self.best and self.like is None


@dataclass(frozen=True, slots=True)
class FileWrong:
    """The stage that follows was computed from the right value: the file is wrong, not the engine."""

    follower: str


@dataclass(frozen=True, slots=True)
class WithoutFile:
    """The stage is right once this file, which is wrong, is recomputed."""

    spot: Spot


@dataclass(frozen=True, slots=True)
class NotAllTried:
    """Not every hypothesis was tried, since so many of the same stage were wrong before."""

    stage: str
    before: int


Note = Recomputed | NextToken | FromTokens | FileWrong | WithoutFile | NotAllTried | NotFinite

# -- what is to be known of the whole dump ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OtherTokens:
    """The embedding differs, the products do not; its rows are nearest to those of these ids."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OtherModel:
    """The embedding differs, and so do the products."""


@dataclass(frozen=True, slots=True)
class FirstNotFinite:
    key: Key


@dataclass(frozen=True, slots=True)
class FormatWrong:
    """Every stage with a product by weights of a format is wrong, without a name, and no stage without one. phases: the
    only ones in which that is so; empty for all."""

    format: str
    stages: int
    phases: tuple[int, ...] = ()


First = OtherTokens | OtherModel | FirstNotFinite | FormatWrong


@dataclass(frozen=True, slots=True)
class FilesMissing:
    """Files that the manifest lists and the dump lacks."""

    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FilesIgnored:
    """Files whose names are no stage's."""

    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IdsFromEmbedding:
    """The token ids are those whose rows the dump's embedding holds."""


@dataclass(frozen=True, slots=True)
class IdsUnknown:
    """partial: the embedding has rows of some positions only; else there is none."""

    partial: bool


@dataclass(frozen=True, slots=True)
class FrequenciesUntold:
    """Attention is explained by RoPE's own frequencies under an arithmetic that leaves much open, and by a mistake in
    them as well (rivals.py)."""

    mistake: str


Remark = FilesMissing | FilesIgnored | IdsFromEmbedding | IdsUnknown | FrequenciesUntold
