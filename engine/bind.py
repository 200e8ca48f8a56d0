"""A checkpoint's tensors -> their roles, by the names that its architecture has for them (engine/models)."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import BadInput
from ..quant.tensor import QTensor, format_of_tensor
from .config import Config
from .models.architecture import Tensor
from .models.heads import KINDS
from .rope import frequencies
from .weights import Layer, Weights


def bind(c: Config, tensors: Mapping[str, QTensor]) -> Weights:
    """Weights of a checkpoint. Raises BadInput for a tensor that is missing, has not its role's shape, has no role, or
    is of a format that nobody decodes here.

    A tensor that nothing here reads (a query norm, a rotary table, a layer too many) would be a model computed wrong.
    """
    a, sizes = c.architecture, c.sizes | {"C": len(c.head.labels)}
    used: set[str] = set()

    def get(t: Tensor, i: int | None = None) -> QTensor:
        spelled = [name.format(i) for name in (t.hf, t.ggml)]
        name = next((n for n in spelled if n in tensors), None)
        if name is None:
            has = f"; there is {next(iter(tensors))!r:.80}" if tensors else ", and there is no other"
            raise BadInput(f"tensor {' or '.join(spelled)} is missing{has}")
        used.add(name)
        w, shape = tensors[name], t.shape(sizes)
        if w.shape != shape:
            raise BadInput(f"tensor {w.name or spelled[0]} has shape {w.shape}; as {t.role} it must have {shape}")
        format_of_tensor(w)
        return a.in_order(w, "hf", sizes)

    pieces = a.layer.keys() | a.found(tensors).keys()

    def layer(i: int) -> Layer:
        leaves = {field: tuple(get(t, i) for t in stacked) for field, stacked in a.pieces.items() if field in pieces}
        return Layer(**{field: leaf if len(leaf) > 1 else leaf[0] for field, leaf in leaves.items()})

    embed, head = get(a.whole["embed"]), a.whole["lm_head"]
    ends = KINDS[c.head.kind].tensors
    weights = Weights(
        config=c,
        embed=embed,
        layers=tuple(layer(i) for i in range(c.num_hidden_layers)),
        final_norm_D=get(a.whole["final_norm_D"]),
        **{field: embed if t is head and c.tie_word_embeddings else get(t) for field, t in ends.items()},
        inv_freq_h=frequencies(c.rope_theta, c.head_dim, c.rope_scaling),
        long_inv_freq_h=(
            frequencies(c.rope_theta, c.head_dim, c.rope_scaling, beyond=True) if c.rope_scaling.switches else None
        ),
        magnitude=c.rope_scaling.attention_factor,
    )
    if c.tie_word_embeddings:  # some files hold the tied head once more
        used.update((head.hf, head.ggml))
    if unused := [name for name in tensors if name not in used and not name.endswith(a.unread)]:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        of = f"a {a.title} model of {c.num_hidden_layers} layers"
        raise BadInput(f"tensor {unused[0]!r}{more}: {of} has no use for it")
    return weights
