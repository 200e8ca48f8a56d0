"""A conversation's kept keys and values: the ids of every answer are those of a prompt fed anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from qwenref.engine.drafts import Drafts
from qwenref.engine.generate import generate
from qwenref.engine.kernels import backend
from qwenref.engine.session import Session
from qwenref.engine.weights import Weights

from ..tiny import tiny_weights


class Answers:
    """Of one model."""

    def __init__(self, name: str, precision: str) -> None:
        self.k, self.precision, w = backend(name), precision, tiny_weights()
        self.w: Weights = self.k.prepare(w, precision)
        self.vocabulary = w.config.vocab_size

    def __call__(self, ids: Sequence[int], session: Session | None, most: int = 7, drafts: int = 0) -> list[int]:
        how: dict[str, Any] = {"drafts": Drafts(drafts), "session": session}
        return list(generate(ids, self.w, self.k, self.precision, most, **how))


@pytest.mark.parametrize("drafts", [0, 7])
@pytest.mark.parametrize(("name", "precision"), [("cpu", "f32"), ("cpu", "int8"), ("reference", "f64")])
def test_answers_are_those_of_prompts_fed_anew(name: str, precision: str, drafts: int) -> None:
    model, session, random = Answers(name, precision), Session(), np.random.default_rng(1)
    drafts = drafts if model.k.ALIKE else 0
    said: list[int] = []
    for turn in range(4):
        said += random.integers(0, model.vocabulary, 5).tolist()
        if turn == 2:
            said[3] = (said[3] + 1) % model.vocabulary  # the template has changed what was before
        answer = model(said, session, drafts=drafts)
        assert answer == model(said, None)
        assert session.ids == [*said, *answer][:-1]
        said += answer


def test_only_what_is_new_is_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    import qwenref.engine.generate as module

    fed: list[int] = []
    whole = module.prefill
    monkeypatch.setattr(module, "prefill", lambda ids, *rest: fed.append(len(ids)) or whole(ids, *rest))
    model, session = Answers("cpu", "f32"), Session()
    first = [3, 1, 4, 1, 5]
    answer = model(first, session, 3)
    model([*first, *answer, 9, 2], session, 3)  # all but the last of the answer, which was never fed back
    model([*first, *answer, 9, 2], session, 3)  # the same again: its last one is
    model([7, *first], session, 3)
    assert fed == [5, 3, 1, 6]


def test_an_answer_that_is_broken_off_keeps_what_was_said() -> None:
    model, session = Answers("cpu", "f32"), Session()
    made = generate([3, 1, 4], model.w, model.k, "f32", 9, drafts=Drafts(7), session=session)
    begun = [next(made), next(made), next(made)]
    made.close()
    assert session.ids == [3, 1, 4, *begun[:2]]
    more = [3, 1, 4, *begun, 8]
    assert model(more, session) == model(more, None)
