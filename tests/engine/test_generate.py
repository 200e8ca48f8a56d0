"""Prefill and decode on a synthetic model: stopping, limits, chunks."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qwenref.engine import generate as generation
from qwenref.engine.forward import forward
from qwenref.engine.kernels import backend
from qwenref.engine.nonfinite import NotFinite
from qwenref.engine.sample import Sampling
from qwenref.engine.tap import SILENT
from qwenref.engine.weights import Weights
from qwenref.errors import BadInput
from qwenref.quant.tensor import QTensor, dequantize

from ..tiny import tiny_weights

K = backend("reference")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return K.prepare(tiny_weights(), "f64")


def greedy_without_cache(ids: list[int], w: Weights, count: int) -> list[int]:
    """The definition: the whole sequence anew for each token."""
    made: list[int] = []
    for _ in range(count):
        seen = np.array(ids + made, np.int32)
        logits_V = forward(seen, w, K.new_cache(w.config, len(seen), "f64"), K, SILENT)
        made.append(int(np.argmax(logits_V)))
    return made


def test_greedy_equals_the_definition(weights: Weights) -> None:
    ids = [5, 17, 200, 3]
    assert list(generation.generate(ids, weights, K, "f64", 12)) == greedy_without_cache(ids, weights, 12)


def test_chunks_give_what_one_pass_gives(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(range(40))
    whole = list(generation.generate(ids, weights, K, "f64", 8))
    monkeypatch.setattr(K, "CHUNK", 7)
    seen: list[int] = []
    assert list(generation.generate(ids, weights, K, "f64", 8, progress=seen.append)) == whole
    assert seen == [7, 14, 21, 28, 35, 40]


def test_a_stop_id_is_the_last(weights: Weights) -> None:
    ids = [5, 17, 200, 3]
    made = list(generation.generate(ids, weights, K, "f64", 12))
    stop = made[4]
    assert list(generation.generate(ids, weights, K, "f64", 12, stop=[stop])) == made[: made.index(stop) + 1]


@pytest.mark.parametrize(
    ("ids", "count", "says"),
    [
        ([], 1, "empty"),
        ([259], 1, "259"),
        ([-1], 1, "-1"),
        (list(range(9)), 1, "9 tokens"),
        (list(range(8)), 1, "shorten the prompt"),
        ([1], 8, "at most 7"),
    ],
)
def test_what_does_not_fit_is_refused(weights: Weights, ids: list[int], count: int, says: str) -> None:
    small = replace(weights, config=replace(weights.config, max_position_embeddings=8))
    with pytest.raises(BadInput, match=says):
        list(generation.generate(ids, small, K, "f64", count))


def test_a_full_context_is_used(weights: Weights) -> None:
    small = replace(weights, config=replace(weights.config, max_position_embeddings=8))
    assert len(list(generation.generate([1, 2, 3], small, K, "f64", 5))) == 5


# -- numbers that leave the finite ------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
Change = Callable[[np.ndarray], None]


def put(index: tuple[int, ...], value: float) -> Change:
    return lambda x: x.__setitem__(index, value)


def spoilt(w: Weights, role: str, change: Change, layer: int | None = None, part: int | None = None) -> Weights:
    """The model with one tensor changed. part: of the tensors of a stacked role."""
    owner = w if layer is None else w.layers[layer]
    leaf = getattr(owner, role)
    old: QTensor = leaf if part is None else leaf[part]
    x = dequantize(old).copy()
    change(x)
    new = replace(old, data=x.view(np.uint8).reshape(-1))
    value = new if part is None else (*leaf[:part], new, *leaf[part + 1 :])
    if layer is None:
        return replace(w, **{role: value})
    layers = list(w.layers)
    layers[layer] = replace(layers[layer], **{role: value})
    return replace(w, layers=tuple(layers))


# What is changed, and where the first value that is not finite must be: by the page, a weight w[o, i] enters element o.
ORIGINS: dict[str, tuple[tuple[object, ...], str]] = {
    "embedding": (("embed", put((200, 7), INF)), "an infinity in embedding of layer 0, position 2, index 7: "
                  "tensor token_embd.weight has an infinity at row 200, column 7"),
    "norm": (("attn_norm_D", put((5,), NAN), 1), "a NaN in attn_norm of layer 1, position 0, index 5: "
             "tensor blk.1.attn_norm.weight has a NaN at element 5"),
    "v": (("qkv", put((3, 60), NAN), 0, 2), f"a NaN in qkv_matmul of layer 0, position 0, index {64 + 32 + 3}: "
          "tensor blk.0.attn_v.weight has a NaN at row 3, column 60"),
    "bias": (("qkv_bias_E", put((31,), -INF), 1, 1), "an infinity in qkv_bias of layer 1, position 0, index 95: "
             "tensor blk.1.attn_k.bias has an infinity at element 31"),
    "o": (("attn_out", put((63, 0), NAN), 0), "a NaN in attn_out of layer 0, position 0, index 63: "
          "tensor blk.0.attn_output.weight has a NaN at row 63, column 0"),
    "gate": (("gate_up", put((95, 1), NAN), 0, 0), "a NaN in ffn_gate of layer 0, position 0, index 95: "
             "tensor blk.0.ffn_gate.weight has a NaN at row 95, column 1"),
    "up": (("gate_up", put((0, 1), NAN), 1, 1), "a NaN in ffn_up of layer 1, position 0, index 0: "
           "tensor blk.1.ffn_up.weight has a NaN at row 0, column 1"),
    "down": (("ffn_down", put((9, 95), NAN), 1), "a NaN in ffn_out of layer 1, position 0, index 9: "
             "tensor blk.1.ffn_down.weight has a NaN at row 9, column 95"),
    "output bias": (("attn_out_bias_D", put((9,), NAN), 1), "a NaN in attn_out_bias of layer 1, position 0, index 9: "
                    "tensor blk.1.attn_output.bias has a NaN at element 9"),
    "up's bias": (("up_bias_F", put((95,), INF), 0), "an infinity in ffn_up_bias of layer 0, position 0, index 95: "
                  "tensor blk.0.ffn_up.bias has an infinity at element 95"),
    "final norm": (("final_norm_D", put((8,), NAN)), "a NaN in final_norm, position 0, index 8: "
                   "tensor output_norm.weight has a NaN at element 8"),
    "head": (("lm_head", put((258, 2), -INF)), "an infinity in lm_head, position 3, index 258: "
             "tensor output.weight has an infinity at row 258, column 2"),
    "overflow": (("lm_head", lambda x: x.__imul__(np.float32(3e38))), " in lm_head, position 3, index"),
    "overflow of attention": (("qkv_bias_E", lambda x: x.__imul__(np.float32(3e38)), 0, 0), "attn_scores of layer 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", ORIGINS)
@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_where_the_numbers_leave_the_finite(name: str, engine: str, temperature: float) -> None:
    """One weight is spoilt: it is named, with the element that it enters. Where none is, it is the arithmetic."""
    change, says = ORIGINS[name]
    biases = {"model_type": "llama", "asked": ("attention_bias", "mlp_bias")} if name.endswith(" bias") else {}
    w, k = spoilt(tiny_weights(**biases), *change), backend(engine)  # type: ignore[arg-type]
    with pytest.raises(NotFinite) as error:
        list(generation.generate([5, 17, 200, 3], k.prepare(w, "f32"), k, "f32", 3, sampling=Sampling(temperature)))
    said = error.value.traced_to(w)
    # A score of -inf is a probability of 0: which of attention's numbers overflow, and when, is the backend's own.
    after = "[34]" if name == "overflow of attention" else "3"
    assert re.match(f"the logits after position {after} are not finite; the first such value is ", said)
    assert says in said and "\n" not in said
    if name.startswith("overflow"):
        assert said.endswith("no weight makes it so, the arithmetic overflowed")
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # engine bench sends it to its parent


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_a_token_on_the_way_whose_row_is_broken(engine: str) -> None:
    """Decoding comes upon it: what was made before is yielded, and the position is that of the step."""
    w, k = tiny_weights(), backend(engine)
    made = list(generation.generate([5, 17, 200, 3], k.prepare(w, "f32"), k, "f32", 8))
    at = next(i for i in range(2, 7) if made[i] not in (5, 17, 200, 3, *made[:i]))
    w = spoilt(w, "embed", put((made[at], 4), NAN))
    seen: list[int] = []
    with pytest.raises(NotFinite) as error:
        for token in generation.generate([5, 17, 200, 3], k.prepare(w, "f32"), k, "f32", 8):
            seen.append(token)
    assert seen == made[: at + 1]
    assert f"position {4 + at}, index 4: tensor token_embd.weight has a NaN at row {made[at]}, column 4" in (
        error.value.traced_to(w)
    )


def test_of_a_prompt_in_chunks_the_first_place_is_found(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second chunk's logits tell that something is wrong; it is the first chunk's token."""
    monkeypatch.setattr(K, "CHUNK", 3)
    w = spoilt(tiny_weights(), "embed", put((17, 0), NAN))
    with pytest.raises(NotFinite, match=r"the logits after position 4 .* embedding of layer 0, position 1, index 0"):
        list(generation.generate([5, 17, 200, 3, 9], K.prepare(w, "f64"), K, "f64", 1))
