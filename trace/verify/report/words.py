"""Every fact in words."""

from __future__ import annotations

from collections.abc import Sequence

from ...plural import plural
from ...stages import layer_name
from ..facts import (
    CapturedElsewhere,
    FilesIgnored,
    FilesMissing,
    FileWrong,
    First,
    FirstNotFinite,
    FormatWrong,
    FrequenciesUntold,
    FromTokens,
    IdsFromEmbedding,
    IdsUnknown,
    KeysMissing,
    NextToken,
    NotAllTried,
    Note,
    NotFinite,
    NoTokenIds,
    OtherModel,
    OtherShape,
    OtherTokens,
    OutsideVocabulary,
    PositionsMissing,
    Reason,
    Recomputed,
    Remark,
    Spot,
    TooMuchMissing,
    WithoutFile,
)


def words(fact: Reason | Note | First | Remark) -> str:
    """A clause without a full stop; of First, whole sentences."""
    match fact:
        case NoTokenIds():
            return "no token ids are known: the manifest has none, and no row of the embedding matches"
        case OutsideVocabulary(token, rows):
            return f"token {token} is outside the vocabulary of {rows}"
        case TooMuchMissing((layer, stage)):
            return f"too much is missing: {stage} of {layer_name(layer)} and of the layer after it"
        case PositionsMissing(what, stage, first, last):
            where = f"positions {first} to {last}" if first < last else f"position {first}"
            return f"the {what} of {where} are not in the dump ({stage})"
        case KeysMissing((layer, stage), held, position):
            return f"{stage} of {layer_name(layer)} has {plural(held, 'key')}, and position {position} more"
        case OtherShape(got, wanted):
            return f"its shape is {got}; from its inputs it must be {wanted}"
        case CapturedElsewhere(capture):
            said = ", ".join(f"{name}: {value}" for name, value in capture)
            return f"the manifest says that it was captured elsewhere ({said})"
        case NotFinite(count, inputs):
            return f"{count} value{'s are' if count > 1 else ' is'} NaN or infinite{', as its inputs are' * inputs}"
        case Recomputed(layer, used, missing):
            return f"recomputed from {_spots(used, layer) or 'the tokens'}; missing: {_spots(missing, layer)}"
        case NextToken():
            return _next_token(fact)
        case FromTokens():
            return _from_tokens(fact)
        case FileWrong(follower):
            return f"{follower} was not computed from it, but from the right value: the file is wrong, not the engine"
        case WithoutFile((layer, stage)):
            return f"recomputed without {stage} of {layer_name(layer)}, whose file is wrong"
        case NotAllTried(stage, before):
            return f"not every hypothesis was tried: {before} {stage} before it were wrong too"
        case OtherTokens(ids):
            tokens = " ".join(map(str, ids))
            return f"The embedding already differs, the products do not: other tokens were run ({tokens})."
        case OtherModel():
            return "The embedding already differs: this dump is of another model, or of other tokens."
        case FirstNotFinite((phase, layer, stage)):
            step = f" of decode step {phase}" if phase else ""
            return f"Values that are NaN or infinite first appear in {stage} of {layer_name(layer)}{step}."
        case FormatWrong(name, stages, phases):
            only = f" in {_phases(phases)}" if phases else ""
            return (
                f"Every product with weights in {name} is wrong{only} ({plural(stages, 'stage')}), and nothing else is."
            )
        case FilesMissing(files):
            return f"the manifest lists, and the dump lacks: {_few(files)}"
        case FilesIgnored(files):
            return f"left out, as their names are no stage's: {_few(files)}"
        case IdsFromEmbedding():
            return "the token ids are those whose embedding rows the dump holds (it has no manifest that tells them)"
        case IdsUnknown(partial):
            if partial:
                return "no token ids: the embedding has rows of some positions only"
            return "no token ids: the dump has neither a manifest that tells them nor an embedding"
        case FrequenciesUntold(mistake):
            told = f"its own explain attention, and so does this mistake: {mistake}"
            return f"RoPE's frequencies cannot be told from this dump ({told}): dump q_post_rope and k_post_rope"


def _spots(spots: Sequence[Spot], layer: int | None) -> str:
    """Stages, each with its layer where that is another."""
    return ", ".join(stage if at == layer else f"{stage} of {layer_name(at)}" for at, stage in spots)


def _few(files: Sequence[str]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _from_tokens(n: FromTokens) -> str:
    gap = f"{n.gap:.3g}, " + (f"{n.gap / n.noise:.2g} times the RMS error of the logits" if n.noise else "no error")
    size = f"relative error {n.relative:.1e}, KL {n.divergence:.1e} nats"
    if n.like is not None:
        return n.like
    if n.agrees:
        return f"token {n.token}, as float64 has it from the same tokens (gap to the second: {gap}; {size})"
    return (
        f"token {n.token} is float64's number {n.rank} from the same tokens; "
        f"float64 takes {n.best} (top-2 gap: {gap}; {size})"
    )


def _next_token(n: NextToken) -> str:
    gap = f"{n.gap:.3g}, " + (f"{n.gap / n.noise:.2g} times the logits' noise" if n.noise else "no noise")
    if n.token == n.best:
        return f"next token {n.token}, as float64 has it from the same input (gap to the second: {gap})"
    rank = f"next token {n.token} is float64's number {n.rank} from the same input"
    return f"{rank}; float64 takes {n.best} (top-2 gap: {gap})"


def _phases(phases: tuple[int, ...]) -> str:
    return "the prompt" if phases == (0,) else "some passes" if 0 in phases else "decode steps"
