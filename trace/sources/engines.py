"""The names that engines have for the stages, as rules; whose they are is told by which engine's names fit most arrays.

The names themselves stand in the table of the stages (trace/stages.py). A row of ENGINES is a way to spell them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..stages import ALIASES, NAMES, STAGES, Module, Stage
from .names import PARTS, Rule

NUMBER, SEPARATOR = r"(?P<layer>\d{1,9})", "[./_-]"
INSIDE = "(?:.*[./_])?"  # what a dumper puts before a module's path
ALONE = r"(?:.*/)?(?:model\.)?"  # before a plain word: `norm` ends many names, `output` is behind a path its side
OUTPUT, INPUT = r"(?:[./_]out(?:puts?)?)?", r"[./_]in(?:puts?)?(?:_args)?(?:[./_]0)?"

# Facts are called alike everywhere. embed_tokens is none: an underscore ends what stands before a longer name only.
TOLD = {
    "tokens": "tokens|token_ids|inp_tokens|(?:.*_)?input_ids",
    "positions": "positions|inp_pos|(?:.*_)?position_ids",
    "attention_mask": "(?:.*_)?attention_mask",
    "seq_lens": "seq_lens|seqlens|sequence_lengths",
    "cu_seqlens": "cu_seqlens|cu_seqlens_q|cu_seq_lens|query_start_loc",
}
FACT_RULES = tuple(
    Rule(re.compile(f"(?:.*[./])?(?:{names})(?:{SEPARATOR}{NUMBER})?"), (fact,)) for fact, names in TOLD.items()
)
ROTATED = {s.name: (s.letters[1], s.letters[0], s.letters[2]) for s in STAGES if s.kind == "rotation"}  # heads first


@dataclass(frozen=True, slots=True)
class Engine:
    """name: whose names these are, for people. ordered: whether its arrays have the axes of their stages in order, a
    batch before them; a name of ours may be anybody's."""

    name: str
    rules: tuple[Rule, ...]
    ordered: bool = True


def _module(m: Module) -> re.Pattern[str]:
    """A module's boundary, in the ways in which dumpers spell its path, its side and which output it is."""
    path = m.pattern.removeprefix("model.") if m.path.startswith(".") else m.path
    words = re.escape(path).replace(r"\{layer\}", NUMBER).replace(r"\.", SEPARATOR)
    item = "(?:/0)?" if m.item is None else f"/{m.item}"
    inside = ALONE if path.isalpha() else INSIDE
    return re.compile(inside + words + (INPUT if m.side == "input" else OUTPUT + item))


def _modules(*columns: Callable[[Stage], tuple[Module, ...]]) -> tuple[Rule, ...]:
    """Rules for the modules that columns of the table name, the first column preferred. Where a stage has several
    modules each holds a part of it; where several stages have one module it holds all, side by side."""
    found: list[Rule] = []
    for level, column in enumerate(columns):
        holds: dict[Module, list[str]] = {}
        for s in STAGES:
            parts = [p for p, (_, stage, _) in PARTS.items() if stage == s.name]
            modules = column(s)
            for i, m in enumerate(modules):
                holds.setdefault(m, []).append(parts[i] if level == 0 and len(modules) > 1 else s.name)
        found += [Rule(_module(m), tuple(t), later=m.later, level=level) for m, t in holds.items()]
    return tuple(found)


def _heads_first(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The same of an engine that has heads before positions where it computes attention."""
    return tuple(replace(r, axes=ROTATED.get(r.targets[0])) for r in rules)


def _fused() -> tuple[Rule, ...]:
    """SGLang, vLLM and nano-vllm make one rotary module for all layers. SGLang's tied head is the embedding by a second
    name: what that puts out is no logits."""
    found = []
    for r in _modules(lambda s: s.fused, lambda s: s.fused_too):
        found.append(replace(r, last=("V",) if r.targets == ("lm_head",) else (), shared=r.targets[0] in ROTATED))
    return (*found, Rule(re.compile(f"{INSIDE}lm_head"), ()))


def _own() -> tuple[Rule, ...]:
    """Our own names, the layer before or behind: layer-3/attn_norm, blk.3.attn_norm, attn_norm.3, lm_head."""
    before = f"(?:.*/)?(?:(?:layers?|blocks?|blk|l){SEPARATOR}?)?{NUMBER}{SEPARATOR}"
    behind = f"(?:{SEPARATOR}(?:layer{SEPARATOR}?)?{NUMBER})?"
    spelled = {n: n for n in (*NAMES, *PARTS)} | dict(ALIASES) | {"logits": "lm_head"}
    return tuple(
        Rule(re.compile(pattern), (target,), level=int(name == "logits"))  # an lm_head may stand beside it
        for name, target in spelled.items()
        for pattern in (before + name, f"(?:.*/)?{name}{behind}")
    )


def _graph() -> tuple[Rule, ...]:
    """What llama.cpp's callbacks are told (llama.cpp, src/llama-graph.cpp and src/models/qwen2.cpp).

    Qcur is three nodes of one name, of which a dumper keeps the last or the first: the shape tells heads, which come
    with the rotation. kq holds the products before they are scaled.
    """

    def named(name: str) -> re.Pattern[str]:
        return re.compile(f"(?:.*/)?{name}(?:-{NUMBER})?")

    found = []
    for s in (s for s in STAGES if s.graph):
        heads = {"rotation": ("H",)}.get(s.kind, ())
        found.append(Rule(named(s.graph), (s.name,), last=heads, unscaled=s.kind == "scores"))
    found += [Rule(named(f"{x}cur"), (f"{x.lower()}_proj",), last=(n, "H")) for x, n in ("QN", "KK", "VK")]
    return (*found, Rule(named("Vcur"), ("v_proj",), last=("H",)))


def _export() -> tuple[Rule, ...]:
    """The values of an ONNX export that keeps the modules' names (torch.onnx with dynamo=False, which Optimum uses):
    `/model/layers.3/mlp/Mul_output_0`, node by node. Heads stand before positions there. ONNX Runtime's files have
    every sign as `_`. Scores are left out: by their names it cannot be told whether they were scaled before."""
    found = []
    for s in STAGES:
        axes = (s.letters[1], s.letters[0], *s.letters[2:]) if s.kind in ("rotation", "mix") else None
        parts = [p for p, (_, stage, _) in PARTS.items() if stage == s.name]
        for i, node in enumerate(s.onnx):
            words = re.split("[/._]", node.replace("*", "model/layers/@"))
            spelled = SEPARATOR.join(map(re.escape, words)).replace("@", NUMBER)
            target = parts[i] if len(s.onnx) > 1 else s.name
            found.append(Rule(re.compile(f"(?:.*[./_])?{spelled}{SEPARATOR}output{SEPARATOR}0"), (target,), axes=axes))
    return (*found, Rule(re.compile("(?:.*[./])?logits"), ("lm_head",)))


OWN = Engine("the stages' own", _own(), ordered=False)
ENGINES = (
    OWN,
    Engine("Transformers' modules, or candle's", _modules(lambda s: s.hf, lambda s: s.hf_too)),
    Engine("mlx-lm's modules", _heads_first(_modules(lambda s: s.hf, lambda s: s.hf_too, lambda s: s.mlx))),
    Engine("the fused modules of SGLang, vLLM and nano-vllm", _fused()),
    Engine("the tensors of a GGUF file, as modules (candle's quantized models)", _modules(lambda s: s.gguf)),
    Engine("Meta's modules", _modules(lambda s: s.meta)),
    Engine("TensorRT-LLM's modules", _modules(lambda s: s.trt)),
    Engine("llama.cpp's graph", _graph()),
    Engine("an ONNX export's nodes", _export()),
)


def engine_of(names: Sequence[str]) -> Engine:
    """The one whose rules know most of these names; of equals the first."""
    return max(ENGINES, key=lambda e: sum(any(r.name.fullmatch(n) for r in e.rules) for n in names))
