"""Drafts change no token and no bit of a logit: what is right of them stays, what is wrong leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from qwenref.engine import generate as generation
from qwenref.engine.drafts import LIMIT, MOST, SLOWER, Drafts
from qwenref.engine.generate import drafts_for, generate
from qwenref.engine.kernels import backend
from qwenref.engine.sample import Sampling
from qwenref.engine.weights import Weights
from qwenref.errors import BadInput

from ..tiny import tiny_weights

CPU = backend("cpu")
FORMATS = {"q": "Q4_0", "ffn_down": "Q8_0", "lm_head": "Q4_0"}  # F32 the others
LOOPS, ONCE = [5, 17, 200, 3, 91, 44] * 4, list(range(60, 84))


@pytest.fixture(scope="module")
def prepared() -> dict[str, Weights]:
    w = tiny_weights(formats=FORMATS)
    return {precision: CPU.prepare(w, precision) for precision in CPU.PRECISIONS}


class Told(Drafts):
    """Drafts of what is to come, wrong from the token on that a pattern of lengths says."""

    def __init__(self, most: int, to_come: list[int], right: list[int]) -> None:
        super().__init__(most)
        self.to_come, self.right = to_come, right

    def draft(self, room: int) -> list[int]:
        at = len(self._seen)
        text, right = self.to_come[at : at + self.most], self.right[self.passes % len(self.right)]
        return text[:right] + [(t + 1) % 259 for t in text[right:]]


Made = tuple[list[int], list[bytes]]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bits of the logits that every token is chosen by."""
    seen: list[bytes] = []
    choose = generation.sample

    def look(logits_V: np.ndarray, *rest: object) -> int:
        seen.append(logits_V.tobytes())
        return choose(logits_V, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(generation, "sample", look)
    return seen


def run(
    w: Weights, precision: str, ids: list[int], count: int, drafts: Drafts, looked_at: list[bytes], **more: object
) -> Made:
    looked_at.clear()
    made = list(generate(ids, w, CPU, precision, count, drafts=drafts, **more))  # type: ignore[arg-type]
    return made, list(looked_at)


@pytest.mark.parametrize("precision", CPU.PRECISIONS)
@pytest.mark.parametrize("ids", [LOOPS, ONCE], ids=["repeats", "does not"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.05, seed=7), Sampling(0.9, top_p=0.9, seed=3)], ids=str)
def test_an_answer_is_that_of_no_drafts(
    precision: str, ids: list[int], sampling: Sampling, prepared: dict[str, Weights], looked_at: list[bytes]
) -> None:
    w = prepared[precision]
    want = run(w, precision, ids, 40, Drafts(0), looked_at, sampling=sampling)
    to_come = ids + want[0]
    told = (1, [1]), (3, [3, 0, 2]), (7, [7, 7, 1, 0, 4]), (12, [0, 11])
    for drafts in (Drafts(1), Drafts(3), Drafts(), *(Told(most, to_come, right) for most, right in told)):
        assert run(w, precision, ids, 40, drafts, looked_at, sampling=sampling) == want
        assert drafts.made == 39
        if isinstance(drafts, Told):
            assert drafts.passes < 30 and drafts.tokens_per_pass > 1.3


@pytest.mark.parametrize("precision", CPU.PRECISIONS)
def test_what_repeats_takes_fewer_passes(precision: str, prepared: dict[str, Weights], looked_at: list[bytes]) -> None:
    """A model that says one token for ever."""
    w = prepared[precision]
    w = replace(w, final_norm_D=w.final_norm_D * 0)  # all logits are alike: the first is chosen
    want = run(w, precision, ONCE, 60, Drafts(0), looked_at)
    assert want[0] == [want[0][0]] * 60
    drafts = Drafts()
    assert run(w, precision, ONCE, 60, drafts, looked_at) == want
    assert drafts.made == 59 and drafts.passes <= 16


@pytest.mark.parametrize("end", range(1, 9))
def test_an_end_inside_a_draft_is_the_last(end: int, prepared: dict[str, Weights], looked_at: list[bytes]) -> None:
    w = prepared["f32"]
    whole, _ = run(w, "f32", ONCE, 16, Drafts(0), looked_at)
    stop = whole[end]
    told = Told(7, ONCE + whole, [7])
    assert run(w, "f32", ONCE, 16, told, looked_at, stop=[stop])[0] == whole[: whole.index(stop) + 1]


@pytest.mark.parametrize("room", range(1, 12))
def test_a_draft_ends_with_the_context(room: int, prepared: dict[str, Weights], looked_at: list[bytes]) -> None:
    """As many tokens as were asked for and the context holds, with drafts that would go on."""
    w = prepared["int8"]
    small = replace(w, config=replace(w.config, max_position_embeddings=len(ONCE) + room))
    want = run(small, "int8", ONCE, room, Drafts(0), looked_at)
    assert len(want[0]) == room
    for right in ([7], [2]):
        assert run(small, "int8", ONCE, room, Told(7, ONCE + want[0] + [1] * 9, right), looked_at) == want


def test_where_several_tokens_have_other_bits_there_are_no_drafts() -> None:
    reference = backend("reference")
    assert drafts_for(CPU, "cpu", Sampling(), None).most == MOST
    for asked in (None, 0):
        assert drafts_for(reference, "reference", Sampling(), asked).most == 0
    with pytest.raises(BadInput, match="backend reference computes several tokens with other bits"):
        drafts_for(reference, "reference", Sampling(), 3)
    assert drafts_for(CPU, "cpu", Sampling(0.5), None).most == 0
    assert drafts_for(CPU, "cpu", Sampling(0.5), 4).most == 4
    for count in (-1, LIMIT + 1):
        with pytest.raises(BadInput, match=f"drafts of {count} tokens: give 1 to {LIMIT}, or off"):
            drafts_for(CPU, "cpu", Sampling(), count)


# -- what is drafted --------------------------------------------------------------------------------------------------


def forecasts(text: list[int], drafts: Drafts, room: int = 99) -> Iterator[tuple[int, list[int]]]:
    """(position, the tokens drafted for it) of each prefix."""
    for at, token in enumerate(text):
        yield at, drafts.draft(room)
        drafts.extend([token])


def measured(costs: dict[int, float]) -> Drafts:
    """Where a pass of so many tokens took so long, in times of one token's."""
    drafts = Drafts()
    for _ in range(99):  # as often as it takes to be believed
        for width, seconds in {1: 1.0, **costs}.items():
            drafts.took(width, seconds)
    return drafts


def test_a_copy_is_drafted_to_its_end() -> None:
    text = list(range(100, 160))
    made = list(forecasts([*text, 7, 8, *text], Drafts()))
    hits = [draft == text[at - 62 : at - 62 + len(draft)] for at, draft in made if draft]
    assert all(hits[: -MOST - 3]) and len(hits) > 50
    assert max(len(draft) for _, draft in made) == MOST


def test_a_loop_is_drafted_beyond_what_there_is() -> None:
    loop = [5, 6, 7]
    _, draft = list(forecasts(loop * 20, Drafts()))[-1]
    assert len(draft) == MOST and draft == (loop * 7)[2 : 2 + MOST]


@pytest.mark.parametrize("room", range(MOST + 2))
def test_no_more_is_drafted_than_there_is_room_for(room: int) -> None:
    made = [draft for _, draft in forecasts([5, 6, 7] * 20, Drafts(), room)]
    assert max(map(len, made)) == max(n - 1 for n in Drafts().widths() if n <= room + 1)


def test_a_copy_goes_on_behind_a_word_that_was_replaced() -> None:
    """Its next token stands in two places, and the one behind the copy is right, not the latest."""
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 5, 99, 98, 97]
    drafts = Drafts()
    drafts.extend([*text, 1, 2, 3, 40, 5])
    assert drafts.draft(1) == [6]


def test_what_the_model_said_after_a_token_is_a_forecast() -> None:
    """Behind a wrong draft, too: the token was never part of the text."""
    drafts = Drafts(1)
    drafts.extend([1, 2, 3])
    assert drafts.draft(1) == []
    drafts.said([3, 50], np.eye(64)[[4, 51]])
    drafts.extend([4])
    assert drafts.draft(1) == []
    drafts.extend([50])
    assert drafts.draft(1) == [51]


def test_what_comes_once_is_not_drafted() -> None:
    rng = np.random.default_rng(0)
    assert not any(draft for _, draft in forecasts(rng.permutation(5000).tolist(), Drafts()))


def test_words_that_return_before_others_are_soon_left_alone() -> None:
    """A phrase of four tokens, each time with another token behind it: the look-up is always wrong."""
    text = [t for i in range(200) for t in (1, 2, 3, 4, 1000 + i, 2000 + i)]
    made = list(forecasts(text, measured({2: 1.1, 4: 1.3, 8: 1.8, 16: 3})))
    assert not any(draft[:1] != [text[at]] for at, draft in made[300:] if draft)
    assert sum(draft[:1] == [text[at]] for at, draft in made[300:]) == 3 * 150  # 2, 3 and 4


def test_as_much_is_drafted_as_pays_for_its_time() -> None:
    """Of a copy that was right so far; where the measured time of a pass grows with its tokens, nothing pays."""
    text = list(range(100, 160))
    for costs, longest in (
        ({2: 1.0, 4: 1.1, 8: 1.7, 16: 2.8}, 15),
        ({2: 1.0, 4: 1.1, 8: 2.5, 16: 9}, 3),
        ({2: 1.1, 4: 3.0, 8: 9.0, 16: 20}, 1),
        ({2: 2.1, 4: 4.1, 8: 8.1, 16: 16.1}, 0),
    ):
        drafts = measured(costs)
        assert max(len(draft) for _, draft in forecasts([*text, 7, 8, *text], drafts)) == longest


def test_one_slow_pass_is_not_believed_and_the_next_right_one_is() -> None:
    drafts = measured({2: 1.1, 4: 1.2})
    before = drafts._cost(4)
    drafts.took(4, 100.0)
    assert before < drafts._cost(4) <= before * SLOWER
    drafts.took(4, 1.2)
    assert drafts._cost(4) == before == 1.2


def test_a_wide_pass_is_not_tried_where_a_narrow_one_was_dear() -> None:
    drafts = measured({2: 1.9})
    assert drafts._cost(16) > 14
