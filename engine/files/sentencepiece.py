"""SentencePiece's BPE (Llama 2, TinyLlama, Mistral 7B), as GGUF and tokenizer.json say it.

Its tokens are text with U+2581 for a space, and 256 tokens <0x00> to <0xFF> for what has none. Three things have to be
said beside the tokens: where a space is put before a text, whether the first one is taken away again, and in which
order tokens are merged. A tokenizer.json spells the order out; a GGUF has a score for each token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import BadInput
from .vocabulary import BYTE, CONTROL, UNKNOWN

MODEL, PRE = "llama", "default"  # ggml's names of the algorithm, and of the pre-tokenizer that it does not have
SPACE = "\u2581"
BYTES = tuple(f"<0x{b:02X}>" for b in range(256))
LONGEST = 512  # characters of a token that merges make; SentencePiece's own limit is 16 unless told otherwise
MOST = 1_000_000  # merges; Llama 2's vocabulary has 61,249

Step = dict[str, Any]

_REPLACE: Step = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_DOUBLED: Step = {"type": "Replace", "pattern": {"Regex": f"\\A{SPACE}"}, "content": 2 * SPACE}
_UNDO: tuple[Step, ...] = (
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
)
_STRIP: Step = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _metaspace(scheme: str) -> Step:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


@dataclass(frozen=True, slots=True)
class Spaces:
    """Where a space is put before text, as a tokenizer.json says it: steps of its normalizer and pre-tokenizer.

    said: the same in words; gguf: as a GGUF can say it, or what comes closest, "prepend" or "plain"; same: whether that
    is the same; inner: what is done to a text that goes on behind a control token, where that is another row's way.
    """

    normalizer: tuple[Step, ...]
    pre_tokenizer: tuple[Step, ...]
    said: str
    gguf: str
    same: bool = True
    inner: str | None = None


EVERY, ALONE = "before the text and behind added tokens", "before the text"
NO_OTHER, NOWHERE = ", where none is", "nowhere"
SPACES: Mapping[str, Spaces] = {
    # llama.cpp's way, and that of files of LlamaTokenizer's legacy
    "prepend": Spaces(({"type": "Prepend", "prepend": SPACE}, _REPLACE), (), EVERY, "prepend"),
    # as Transformers 5 writes it for a tokenizer.model of a class that it does not know
    "doubled": Spaces((_REPLACE, _DOUBLED), (_metaspace("always"),), EVERY, "prepend"),
    "always": Spaces((), (_metaspace("always"),), EVERY + NO_OTHER, "prepend", same=False),
    "first": Spaces((), (_metaspace("first"),), ALONE + NO_OTHER, "prepend", same=False, inner="never"),
    "replaced first": Spaces(
        (_REPLACE,), (_metaspace("first"),), ALONE + NO_OTHER, "prepend", same=False, inner="plain"
    ),
    "never": Spaces((), (_metaspace("never"),), NOWHERE, "plain"),
    "plain": Spaces((_REPLACE,), (), NOWHERE, "plain"),
}


def recognised(normalizer: Sequence[Step], pre_tokenizer: Sequence[Step]) -> str | None:
    """The key of SPACES that does this. Older files say add_prefix_space beside prepend_scheme."""
    said = (
        list(normalizer),
        [{k: x for k, x in s.items() if (k, x) != ("add_prefix_space", True)} for s in pre_tokenizer],
    )
    return next((name for name, s in SPACES.items() if (list(s.normalizer), list(s.pre_tokenizer)) == said), None)


def strips(decoder: Sequence[Step]) -> bool | None:
    """Whether the decoder takes the first space away; None where it does something else, too."""
    return next((strip for strip in (False, True) if _decoders(strip) == list(decoder)), None)


def _decoders(strip: bool) -> list[Step]:
    return [*_UNDO, _STRIP] if strip else [*_UNDO]


def normalizer(spaces: str) -> Step | None:
    """As a tokenizer.json has it."""
    steps = SPACES[spaces].normalizer
    return None if not steps else steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": [*steps]}


def pre_tokenizer(spaces: str) -> Step | None:
    """As a tokenizer.json has it."""
    return next(iter(SPACES[spaces].pre_tokenizer), None)


def decoder(strip: bool) -> Step:
    """As a tokenizer.json has it."""
    return {"type": "Sequence", "decoders": _decoders(strip)}


def with_bytes(tokens: Sequence[str], types: Sequence[int]) -> list[int]:
    """The types, <0x00> to <0xFF> made byte tokens: a tokenizer.json knows them by their spelling."""
    spelled = frozenset(BYTES)
    return [BYTE if token in spelled else type_ for token, type_ in zip(tokens, types, strict=True)]


def merges_of(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[str]:
    """The merges that scores stand for, best first: every way to make a token of two, by the token's score.

    As Transformers makes them (convert_slow_tokenizer.py, generate_merges), but no merge makes a control token or a
    byte: what is text stays text. Of the ways to make one token, those with the longer left part go first.
    """
    usable = {
        token: score
        for token, score, type_ in zip(tokens, scores, types, strict=True)
        if type_ not in (UNKNOWN, CONTROL, BYTE) and token and " " not in token
    }
    found = [(-usable[left + right], -len(left), -len(right), left, right) for left, right in _ways(usable)]
    found.sort(key=lambda merge: merge[:3])
    return [f"{left} {right}" for *_, left, right in found]


def merges_in(order: Iterable[str]) -> list[str]:
    """Every way to make a token of two others: the tokens in this order, of each the shorter left part first."""
    usable = dict.fromkeys(token for token in order if token and " " not in token)
    return [f"{left} {right}" for left, right in _ways(usable)]


def _ways(tokens: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Of each token in its turn, the pairs of others that it is made of, the shorter left part first.

    Raises BadInput for more than MOST of them, which no vocabulary that was trained has. Longer tokens than LONGEST
    are made of none.
    """
    lengths, found = sorted({len(token) for token in tokens if len(token) < LONGEST}), 0
    for token in tokens:
        for n in lengths:
            if n >= len(token) or len(token) > LONGEST:
                break
            left, right = token[:n], token[n:]
            if left in tokens and right in tokens:
                found += 1
                if found > MOST:
                    raise BadInput(f"tokenizer: more than {MOST} ways to make one of its tokens of two others")
                yield left, right


def tied(tokens: Sequence[str], scores: Sequence[float], merges: Sequence[str]) -> list[str]:
    """Tokens that merges make and that have the score of another such.

    llama.cpp merges the leftmost pair of them first, and merges with an order can not. Runs of one character do not
    count: of these the longer left part first comes to the same.
    """
    made = {merge.replace(" ", "", 1) for merge in merges}
    score = {t: s for t, s in zip(tokens, scores, strict=True) if t in made and len(set(t)) > 1}
    times = Counter(score.values())
    return [token for token, s in score.items() if times[s] > 1]


def scores_of(tokens: Sequence[str], merges: Sequence[str], types: Sequence[int]) -> list[float]:
    """Scores by which the tokens are merged in the order of the merges: 0 for the first that is made, then -1, -2, ...

    As SentencePiece numbers them: behind those that merges make come the single characters, by their ids; control
    tokens and bytes have 0.
    """
    order = {made: n for n, made in enumerate(dict.fromkeys(merge.replace(" ", "", 1) for merge in merges))}
    for token, type_ in zip(tokens, types, strict=True):
        if type_ not in (UNKNOWN, CONTROL, BYTE):
            order.setdefault(token, len(order))
    return [-float(order.get(token, 0)) for token in tokens]


def in_scores(tokens: Sequence[str], merges: Sequence[str], types: Sequence[int]) -> tuple[list[str], bool]:
    """The merges as they come back from `scores_of`, and whether these say all that the merges do.

    Scores say nothing of the order among the ways to make one token.
    """
    again = merges_of(tokens, scores_of(tokens, merges, types), types)

    def by_token(merges: Sequence[str]) -> list[tuple[str, list[str]]]:
        ways: list[tuple[str, list[str]]] = []
        for merge in merges:
            made = merge.replace(" ", "", 1)
            if not ways or ways[-1][0] != made:
                ways.append((made, []))
            ways[-1][1].append(merge)
        return [(made, sorted(each)) for made, each in ways]

    return again, by_token(again) == by_token(merges)


def bad_scores(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> str | None:
    """What is wrong with the tokens and scores of a file, as the end of a sentence on the scores."""
    for i, (token, score, type_) in enumerate(zip(tokens, scores, types, strict=True)):
        if not math.isfinite(score):
            return f"holds {score} for token {i} {token!r:.40}; scores are numbers"
        if len(token) > LONGEST and type_ not in (UNKNOWN, CONTROL, BYTE):
            return f"is for a token {i} of {len(token)} characters; up to {LONGEST} are merged"
    return None
