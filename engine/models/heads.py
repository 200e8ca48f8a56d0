"""What stands behind the final norm: a row for each class of Transformers' that models of the page end in.

ForCausalLM has logits of the next token, Model nothing; the others score a text, at its last token or at each.
Transformers' modeling_layers.py has ForSequenceClassification and ForTokenClassification; ForRewardModel and
ForProcessRewardModel are Qwen's own code (Qwen2.5-Math-RM-72B, Qwen2.5-Math-PRM-7B): two products with a ReLU between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .architecture import Tensor
from .decoder import HEAD

LM, NONE = "ForCausalLM", "Model"
POOLINGS = ("last", "mean", "cls")  # of the final norm's rows: the last one, their mean, the first


@dataclass(frozen=True, slots=True)
class Head:
    """What a model's file says of its end.

    kind: a row of KINDS. pooling: of POOLINGS, or in its file's words what is not computed; "" where it says none.
    labels: of the scores, in their order. pad: the id of padding, behind which a text's last token is looked for.
    """

    kind: str = LM
    pooling: str = ""
    labels: tuple[str, ...] = ()
    pad: int | None = None


GENERATES = Head()


@dataclass(frozen=True, slots=True)
class Kind:
    """tensors: fields of Weights (engine/weights.py) and theirs. every: each token has scores, not the last alone."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    every: bool = False

    @property
    def scores(self) -> Tensor | None:
        """The matrix whose rows are the labels."""
        return self.tensors.get("score")


_SCORE = {"score": Tensor("score", "score.weight", "cls.output.weight", "C D")}
_BIAS = {"score_bias_C": Tensor("score_bias", "score.bias", "cls.output.bias", "C")}
# llama.cpp's two products of a classifier (cls.weight) have a tanh between: it has no names for these.
_PERCEPTRON = {
    field: Tensor(role, name, name, axes)
    for field, role, name, axes in (
        ("score_hidden", "score_hidden", "score.0.weight", "D D"),
        ("score_hidden_bias_D", "score_hidden_bias", "score.0.bias", "D"),
        ("score", "score", "score.2.weight", "C D"),
        ("score_bias_C", "score_bias", "score.2.bias", "C"),
    )
}
# How the name of Transformers' class ends, behind the architecture's title.
KINDS: Mapping[str, Kind] = {
    LM: Kind({"lm_head": HEAD}),
    NONE: Kind(),
    "ForSequenceClassification": Kind(_SCORE),
    "ForTokenClassification": Kind(_SCORE | _BIAS, every=True),
    "ForRewardModel": Kind(_PERCEPTRON),
    "ForProcessRewardModel": Kind(_PERCEPTRON, every=True),
}
SCORES = tuple(dict.fromkeys(t for kind in KINDS.values() for t in kind.tensors.values() if t is not HEAD))
