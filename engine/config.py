"""Config: the hyper-parameters by Hugging Face's names. Every value comes from the model's file; no defaults.

Here a file's untrusted values become typed ones: from_gguf, from_hf (config.json, and APR's metadata under its names).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NoReturn

import numpy as np

from ..errors import BadInput, blamed_on
from ..quant.tensor import QTensor
from . import rope, rope_gguf
from .config_keys import GGUF_BY_LAYER, GGUF_KEYS, brief
from .models import Architecture, find, meant_by_gguf
from .models.heads import GENERATES, KINDS, LM, NONE, Head
from .models.vision import GGUF_KEYS as VISION_KEYS
from .models.vision import TOKENS, find_vision
from .rope import LARGEST, SMALLEST, Scaling

ALL = (1 << 31) - 1  # a window that holds every position
MOST_LABELS = 1 << 16  # of a classifier; bounds what a hostile shape costs
GGUF_TYPES = {int: "an integer", float: "a float", bool: "true or false"}
GGUF_POOLINGS = {0: "", 1: "mean", 2: "cls", 3: "last", 4: "rank"}  # gguf-py's PoolingType; 0 is none


@dataclass(frozen=True, slots=True)
class Config:
    """A model's sizes and constants. Raises BadInput that names the field if one can not be.

    model_type: the architecture, by the name that it has in config.json.
    rms_norm_eps, rope_theta: as the file has them (float32 values widened).
    tie_word_embeddings: the head is the embedding; the file has no tensor of its own for it.
    rope_scaling: of RoPE's frequencies (engine/rope.py).
    windows: for each layer, how many positions a query sees, its own among them; 0 is all. Empty where all see all.
    dual_chunk: positions before the second chunk of dual chunk attention, which is not computed; 0 without it.
    causal: each position sees those up to its own; else every one sees all of the text.
    head: what stands behind the final norm (engine/models/heads.py).
    pictures: token ids that stand for pictures, of which only text is computed (engine/models/vision.py).
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    rope_scaling: Scaling = rope.UNSCALED
    windows: tuple[int, ...] = ()
    dual_chunk: int = 0
    causal: bool = True
    head: Head = GENERATES
    pictures: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        find(self.model_type)
        for field in fields(self):
            value = getattr(self, field.name)
            # Positions and ids are int32; whether sizes fit the file shows when each tensor's shape is checked (bind).
            if field.type == "int" and not (type(value) is int and (0 < value < 1 << 31 or value == field.default)):
                raise BadInput(f"{field.name} is {brief(value)}; it must be a whole number from 1 to 2^31 - 1")
            if field.type == "float" and not (type(value) is float and SMALLEST <= value <= LARGEST):
                raise BadInput(f"{field.name} is {brief(value)}; it must be a positive number that float32 holds")
            if field.type == "bool" and type(value) is not bool:
                raise BadInput(f"{field.name} is {brief(value)}; it must be true or false")
        if self.num_attention_heads % self.num_key_value_heads:
            heads = f"{self.num_attention_heads} query heads"
            raise BadInput(f"num_key_value_heads is {self.num_key_value_heads}, which does not divide {heads}")
        if self.head_dim % 2:
            raise BadInput(f"head_dim is {self.head_dim}; rotary embedding needs an even one")
        if self.windows and len(self.windows) != self.num_hidden_layers:
            raise BadInput(f"there are {len(self.windows)} attention windows for {self.num_hidden_layers} layers")
        if bad := [w for w in self.windows if type(w) is not int or not 0 <= w < 1 << 31]:
            raise BadInput(f"sliding_window is {brief(bad[0])}; it must be a whole number from 1 to 2^31 - 1")
        if self.windows and not self.causal:
            raise BadInput("attention that is not causal stands beside attention windows; that is not supported")
        if len({*self.windows} - {0}) > 1:
            raise BadInput(
                f"there are several attention windows, {brief(sorted({*self.windows} - {0}))}; one is supported"
            )
        if self.context / self.rope_theta > LARGEST:
            raise BadInput(f"rope_theta is {self.rope_theta}; the angles of the last position overflow")

    @property
    def context(self) -> int:
        """How many positions a session may have. YaRN is switched on in files whose max_position_embeddings stay as
        they were, as Qwen's own cards tell it; it reaches as far as its factor says."""
        far = max(self.max_position_embeddings, self.rope_scaling.reach)
        return min(far, self.dual_chunk) if self.dual_chunk else far

    @property
    def sliding(self) -> dict[str, Any]:
        """The windows as config.json has them, beside what an architecture says where there are none (hf_full)."""
        if not self.windows:
            return {}
        slides = [w > 0 for w in self.windows]
        first, kinds = slides.index(True), ("full_attention", "sliding_attention")
        where = {"max_window_layers": first} if all(slides[first:]) else {}  # all that Transformers 4 goes by
        said: dict[str, Any] = {"use_sliding_window": True, "sliding_window": max(self.windows), **where}
        said |= {"layer_types": [kinds[slide] for slide in slides]}
        return {name: value for name, value in said.items() if name in self.architecture.hf_keys.read}

    def window(self, layer: int) -> int:
        """How many positions a query of the layer sees."""
        return (self.windows[layer] if self.windows else 0) or ALL

    def room(self, prompt: int) -> tuple[int, str]:
        """How many positions a session may have that begins with so many, and why there are no more, for people.

        LongRoPE's frequencies are others beyond the original positions: a session with keys of both kinds would be
        neither.
        """
        length, s = self.rope_scaling.original_max_position_embeddings, self.rope_scaling
        if s.switches and prompt <= length < self.context:
            return length, "up to which longrope has its short factors; a longer prompt has the long ones"
        if s.rope_type == "dynamic":
            hint = "beyond it dynamic RoPE has other frequencies for every length; --rope-scaling yarn has one table"
            return self.context, hint
        if self.dual_chunk:
            return self.context, "where the second chunk of dual_chunk_attention_config begins, which is not computed"
        return self.context, ""

    def spelled(self) -> dict[str, Any]:
        """The fields by name, for people: RoPE's scaling as config.json has it (where Transformers 4 looks), and
        nothing of what is not there."""
        scaling = self.rope_scaling.spelled() if self.rope_scaling != rope.UNSCALED else None
        said = asdict(self) | {
            "rope_scaling": scaling,
            "windows": self.windows or None,
            "pictures": self.pictures or None,
            "dual_chunk": self.dual_chunk or None,
            "causal": None if self.causal else False,
            "head": {k: v for k, v in asdict(self.head).items() if v not in ("", (), None)},
        }
        if self.head == GENERATES:
            del said["head"]
        return {name: value for name, value in said.items() if value is not None}

    @property
    def architecture(self) -> Architecture:
        """The facts of its architecture (engine/models)."""
        return find(self.model_type)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by shape letter (engine/forward.py) that every prompt shares."""
        N, K, H = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        D, F, V = self.hidden_size, self.intermediate_size, self.vocab_size
        return {"D": D, "N": N, "K": K, "H": H, "E": (N + 2 * K) * H, "F": F, "V": V}


def from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, QTensor]) -> tuple[Config, list[str]]:
    """From a GGUF file's key/value pairs; its tensors tell the vocabulary's size, and whether the head is tied.

    Also notes on keys that nothing here knows. Raises BadInput that names the key for one that is missing or that asks
    for what is not computed here.
    """
    name = metadata.get("general.architecture")
    v = find_vision(name, by="gguf")
    a = find(name, by="gguf") if v is None else v.text
    prefix, keys = f"{name}.", a.gguf_keys if v is None else a.gguf_keys | VISION_KEYS
    version = metadata.get("general.quantization_version", 2)
    if type(version) is not int or version != 2:
        raise BadInput(f"key general.quantization_version is {brief(version)}; that is not supported, only 2 is")
    said = {key.removeprefix(prefix): metadata[key] for key in metadata if key.startswith(prefix)}
    notes = keys.look(said, f"{prefix}{{}}")

    def need(name: str, kind: type) -> Any:
        if name not in said:
            raise BadInput(f"key {prefix}{name} is missing, and nothing may be guessed for it")
        value = said[name]
        if name in GGUF_BY_LAYER and isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if type(value) is not kind:
            raise BadInput(f"key {prefix}{name} is {brief(value)}; it must be {GGUF_TYPES[kind]}")
        return _float32(value) if isinstance(value, float) else value

    embed = a.whole["embed"].ggml
    if embed not in tensors:
        raise BadInput(f"tensor {embed} is missing")
    found = {field: need(name, kind) for field, (name, kind) in GGUF_KEYS.items()}
    width, heads, V = found["hidden_size"], found["num_attention_heads"], tensors[embed].shape[0]
    if "attention.key_length" in said:
        head_dim = need("attention.key_length", int)
    elif heads and width % heads == 0:
        head_dim = width // heads
    else:
        raise BadInput(f"key {prefix}attention.head_count is {heads}, which does not divide {width}")
    same = {"attention.value_length": head_dim, "rope.dimension_count": head_dim, "vocab_size": V}
    for name, value in (same | {"embedding_length_out": width}).items():
        if name in said and need(name, int) != value:
            raise BadInput(f"key {prefix}{name} is {need(name, int)}; in this model it must be {value}")
    own = a.whole["lm_head"].ggml in tensors
    head = _head_of_gguf(said, tensors, own, f"{prefix}pooling_type")
    c = Config(
        model_type=a.model_type,
        head_dim=head_dim,
        vocab_size=V,
        tie_word_embeddings=head.kind == LM and not own,
        causal=need("attention.causal", bool) if "attention.causal" in said else True,
        head=head,
        pictures=() if v is None else _pictures(metadata),
        **found,
    )
    if v is not None:
        notes.append(f"general.architecture is {v.gguf}: run as {a.gguf}, which its text part is; no picture is read")
    scaling = rope_gguf.from_keys(said, tensors, c.rope_theta, head_dim, c.max_position_embeddings, prefix)
    c = replace(c, rope_scaling=scaling)
    if "attention.sliding_window" in said and 0 < (window := need("attention.sliding_window", int)) < c.context:
        windows = _of_pattern(window, said.get("attention.sliding_window_pattern"), prefix)
        c = replace(c, model_type=meant_by_gguf(a.gguf, bool(windows)).model_type, windows=windows)
    return c, notes


def _pictures(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of the tokens that stand for pictures."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    return tuple(tokens.index(text) for text in TOKENS if text in tokens) if isinstance(tokens, list) else ()


def _head_of_gguf(said: Mapping[str, Any], tensors: Mapping[str, QTensor], own: bool, where: str) -> Head:
    """What stands behind the final norm. A file that says how texts are pooled, and has no output matrix, is an
    embedding model: llama.cpp would take the embedding for its head. own: it has that matrix.

    Of a reranker, llama.cpp's converter keeps two rows of the head, and their labels.
    """
    kind = said.get("pooling_type", 0)
    if type(kind) is not int or kind not in GGUF_POOLINGS:
        raise BadInput(f"key {where} is {brief(kind)}; gguf-py's PoolingType has {brief([*GGUF_POOLINGS])}")
    pooling = GGUF_POOLINGS[kind]
    score = next((t for t in KINDS["ForSequenceClassification"].tensors.values() if t.ggml in tensors), None)
    if score is not None:
        rows, labels = tensors[score.ggml].shape[0], said.get("classifier.output_labels")
        labels = _unnamed(rows) if labels is None else labels
        if not isinstance(labels, list) or not all(isinstance(x, str) for x in labels) or len(labels) != rows:
            raise BadInput(f"key {where.replace('pooling_type', 'classifier.output_labels')} is not {rows} texts")
        return Head("ForSequenceClassification", labels=tuple(labels))
    return Head(LM if own or not pooling else NONE, pooling)


def _of_pattern(window: int, slides: Any, prefix: str) -> tuple[int, ...]:
    """The window of each layer in a GGUF file. Readers differ in what a window without a pattern is of."""
    if slides is None:
        raise BadInput(
            f"key {prefix}attention.sliding_window is {window}, and no attention.sliding_window_pattern says of which "
            "layers; take it out to attend to every position, as llama.cpp does, or add the pattern"
        )
    if not (isinstance(slides, np.ndarray) and slides.dtype == np.bool_ and slides.ndim == 1):
        where = f"key {prefix}attention.sliding_window_pattern"
        raise BadInput(f"{where} is {brief(slides)}; it must be true or false, once for each layer")
    return tuple(window if slide else 0 for slide in slides.tolist()) if slides.any() else ()


def _float32(value: float) -> float:
    """Rounded as the other containers hold it; what is too large becomes an infinity, which Config refuses."""
    return ctypes.c_float(value).value


def check_hf(data: Mapping[str, Any]) -> tuple[Architecture, list[str]]:
    """Whose config.json it is, and notes on its fields. Raises BadInput for one that asks for what is not computed."""
    a, classes = find(data.get("model_type")), data.get("architectures")
    if classes and classes not in ([f"{a.title}{kind}"] for kind in KINDS):
        _refuse("architectures", f"is {brief(classes)}; {a.title} with one of {', '.join(KINDS)} is supported")
    return a, a.hf_keys.look(data)


def kind_of(data: Mapping[str, Any]) -> str:
    """How the name of Transformers' class ends that a config.json asks for: a row of KINDS. Raises BadInput."""
    a, _ = check_hf(data)
    classes = data.get("architectures") or [a.hf_class]
    return str(classes[0]).removeprefix(a.title)


def from_hf(data: Mapping[str, Any], own_head: bool, pooling: str = "", labels: int = 0) -> tuple[Config, list[str]]:
    """From a config.json's content; Transformers 4 and 5 put RoPE's parameters in different places, and both are read.

    own_head: the file has an output matrix that is not the embedding. pooling: what the files say of it (heads.Head).
    labels: rows of the matrix that scores, where there is one. eps and theta are rounded to float32, as the other
    containers hold them. Also notes for the user. Raises BadInput that names the field for one that is missing or that
    asks for what is not computed here.
    """
    a, notes = check_hf(data)
    width, heads, layers = (_need(data, f) for f in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head_dim = _need(data, "head_dim") if a.own_head_dim else data.get("head_dim")
    if head_dim is None:
        if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
            _refuse("num_attention_heads", f"is {brief(heads)}, which does not divide hidden_size, {brief(width)}")
        head_dim = width // heads
    positions = _whole("max_position_embeddings", _need(data, "max_position_embeddings"))
    windows = _windows(data, a, _whole("num_hidden_layers", layers))
    if type(head_dim) is not int or head_dim < 2 or head_dim % 2:
        _refuse("head_dim", f"is {brief(head_dim)}; rotary embedding needs an even one")
    theta, scaling = _rope(data, head_dim, positions)
    limit = _before_second_chunk(data)
    if limit and scaling != rope.UNSCALED:
        _refuse("dual_chunk_attention_config", f"stands beside RoPE scaling of type {scaling.rope_type}; remove one")
    if 0 < limit < positions:
        notes.append(f"dual_chunk_attention_config is not computed; the context ends where it begins, at {limit}")
    else:
        limit = 0
    tied = data.get("tie_word_embeddings")
    if tied is not None and type(tied) is not bool:
        _refuse("tie_word_embeddings", f"is {brief(tied)}; it must be true or false")
    if tied and own_head:
        notes.append(
            "tie_word_embeddings is true, but lm_head.weight is another matrix than the embedding; it is used, as "
            "Transformers 5 does (4 takes the embedding)"
        )
    head = _head(data, own_head, bool(tied), pooling, labels)
    if head.kind == NONE and not tied and not pooling and kind_of(data) == LM:
        notes.append(
            f"tie_word_embeddings is {brief(tied)}, and there is no lm_head.weight: taken for an embedding model, "
            "which has no output head"
        )
    c = Config(
        model_type=a.model_type,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=_need(data, "num_key_value_heads"),
        head_dim=head_dim,
        intermediate_size=_need(data, "intermediate_size"),
        vocab_size=_need(data, "vocab_size"),
        max_position_embeddings=positions,
        rope_theta=theta,
        rms_norm_eps=_real("rms_norm_eps", _need(data, "rms_norm_eps")),
        tie_word_embeddings=head.kind == LM and not own_head,
        rope_scaling=scaling,
        windows=windows,
        dual_chunk=limit,
        causal=_causal(data),
        head=head,
    )
    if all(w == 0 or w >= c.context for w in windows):  # which no session leaves
        c = replace(c, windows=())
    return c, notes


def _causal(data: Mapping[str, Any]) -> bool:
    """Whether attention is causal, as Transformers 5.2 and later have it: null is not."""
    said = data.get("is_causal", True)
    if said is not None and type(said) is not bool:
        _refuse("is_causal", f"is {brief(said)}; it must be true or false")
    return bool(said)


def _head(data: Mapping[str, Any], own: bool, tied: bool, pooling: str, rows: int) -> Head:
    """What stands behind the final norm. Without a matrix of its own for the output, a folder that says how texts are
    pooled is an embedding model; one that says nothing of it has a head where that is tied to the embedding."""
    kind = kind_of(data)
    if KINDS[kind].scores is None:
        return Head(LM if own or (tied and not pooling) else NONE, pooling)
    names, pad = data.get("id2label"), data.get("pad_token_id")
    count = len(names) if isinstance(names, dict) else data.get("num_labels") or rows
    if rows and count != rows:
        _refuse("id2label" if names else "num_labels", f"has {brief(count)} labels; the head has {rows} rows")
    said = names if isinstance(names, dict) else {}
    labels = [said.get(str(i), name) for i, name in enumerate(_unnamed(rows))]
    if bad := next((x for x in labels if not isinstance(x, str)), None):
        _refuse("id2label", f"holds {brief(bad)}; labels are texts")
    if pad is not None and type(pad) is not int:
        _refuse("pad_token_id", f"is {brief(pad)}; it must be a token id")
    return Head(kind, pooling, tuple(labels), pad)


def _unnamed(rows: int) -> list[str]:
    """Transformers' names of labels where a file has none."""
    if rows > MOST_LABELS:
        raise BadInput(f"the matrix that scores has {rows} rows; {MOST_LABELS} labels are supported")
    return [f"LABEL_{i}" for i in range(rows)]


def with_rope(c: Config, said: Mapping[str, Any]) -> Config:
    """The configuration with another scaling of RoPE than its file has. said: as in config.json; "none" is a type too.

    Linear scaling reaches factor times as far, which nobody's fields say. What was the training's length before an
    earlier scaling still is. Raises BadInput as rope.read does.
    """
    before = c.rope_scaling.original_max_position_embeddings or None
    if said.get("rope_type") == "none":
        said = {"rope_type": "default"} | {k: v for k, v in said.items() if k != "rope_type"}
    if said.get("rope_type") == "yarn":
        said = {rope.LENGTH: before} | {k: v for k, v in said.items() if v is not None}
    scaling = rope.read(said, c.rope_theta, c.head_dim, c.max_position_embeddings)
    far = scaling.factor if scaling.rope_type == "linear" else 1
    return replace(c, rope_scaling=scaling, max_position_embeddings=int(c.max_position_embeddings * max(far, 1)))


def _refuse(field: str, why: str) -> NoReturn:
    raise BadInput(f"{field} {why}")


def _need(data: Mapping[str, Any], field: str) -> Any:
    if data.get(field) is None:
        _refuse(field, "is missing, and nothing may be guessed for it")
    return data[field]


def _whole(field: str, value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 31:
        _refuse(field, f"is {brief(value)}; it must be a whole number from 1 to 2^31 - 1")
    return int(value)


def _real(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not SMALLEST <= value <= LARGEST:
        _refuse(field, f"is {brief(value)}; it must be a positive number that float32 holds")
    return _float32(float(value))


def _rope(data: Mapping[str, Any], head_dim: int, positions: int) -> tuple[float, Scaling]:
    """RoPE's base and its scaling, from wherever they stand, where Transformers of every version finds the same."""
    both, scaling = (data.get(field) or {} for field in ("rope_parameters", "rope_scaling"))
    for field, place in (("rope_parameters", both), ("rope_scaling", scaling), ("", data)):
        if not isinstance(place, dict):
            _refuse(field, f"is {brief(place)}; it must be an object")
        if place is not data and (nested := [name for name, value in place.items() if isinstance(value, dict)]):
            _refuse(field, f"holds {brief(nested[0])}: parameters for each type of layer are not supported")
        if place.get("partial_rotary_factor", 1) not in (None, 1):
            _refuse("partial_rotary_factor", f"is {brief(place['partial_rotary_factor'])}; that is not supported")
    places = [place["rope_theta"] for place in (both, scaling, data) if place.get("rope_theta") is not None]
    thetas = {_real("rope_theta", theta) for theta in places}
    if len(thetas) > 1:
        _refuse("rope_theta", f"has two values, {sorted(thetas)}")
    if thetas and both and scaling and scaling.get("rope_theta") is data.get("rope_theta") is None:
        _refuse(
            "rope_scaling", "stands beside rope_parameters, whose rope_theta Transformers 5 then ignores; remove it"
        )
    theta = thetas.pop() if thetas else _real("rope_theta", _need(data, "rope_theta"))
    found = {}
    for field, place in (("rope_parameters", both), ("rope_scaling", scaling)):
        if place:
            with blamed_on(field):
                found[field] = rope.read(_with_original(place, data), theta, head_dim, positions)
    if len(set(found.values())) > 1:
        said = " and ".join(f"{field} asks for {s.rope_type}" for field, s in found.items())
        raise BadInput(f"{said}: different scalings of RoPE; remove one of them")
    return theta, next(iter(found.values()), rope.UNSCALED)


def _with_original(place: Mapping[str, Any], data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scaling's fields, with the original positions from beside them, where Phi-3 has them."""
    name, kind = "original_max_position_embeddings", place.get("rope_type", place.get("type"))
    if data.get(name) is None or kind not in ("llama3", "yarn", "longrope"):
        return place
    if place.get(name) not in (None, data[name]):
        _refuse(name, f"has two values, {brief(data[name])} and {brief(place[name])} in the scaling of RoPE")
    return {**place, name: data[name]}


def _windows(data: Mapping[str, Any], a: Architecture, layers: int) -> tuple[int, ...]:
    """The window of each layer, 0 for all positions, as Transformers' Qwen2Config works that out; empty where no layer
    has one. Raises BadInput for fields that are none, or that contradict each other."""
    on, first = (
        a.hf_defaults.get(field) if data.get(field) is None else data[field]
        for field in ("use_sliding_window", "max_window_layers")
    )
    window = data.get("sliding_window", a.hf_defaults.get("sliding_window"))  # null is none
    if on is not None and type(on) is not bool:
        _refuse("use_sliding_window", f"is {brief(on)}; it must be true or false")
    kinds = data.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            _refuse("layer_types", f"is {brief(kinds)}; it must be a list of {layers} types of attention")
        other = [kind for kind in kinds if kind not in ("full_attention", "attention")]
        if other and not (on and window and other == ["sliding_attention"] * len(other)):
            _refuse("layer_types", f"holds {brief(other[0])}; that is not supported, only full_attention is")
        if on and window and "max_window_layers" not in a.hf_keys.read and len(other) < layers:
            _refuse("layer_types", f"holds {brief(kinds)}; Transformers' {a.title} has the window in every layer")
    if not on or window is None:
        return ()
    _whole("sliding_window", window)
    if type(first) is not int:
        _refuse("max_window_layers", f"is {brief(first)}; it must be a whole number")
    slides = [i >= first if kinds is None else kinds[i] == "sliding_attention" for i in range(layers)]
    return tuple(window if one else 0 for one in slides) if any(slides) else ()


def _before_second_chunk(data: Mapping[str, Any]) -> int:
    """How many positions dual chunk attention leaves as they are (vLLM's dual_chunk_flash_attn: the first chunk); 0
    where there is none."""
    asked = data.get("dual_chunk_attention_config")
    if asked is None:
        return 0
    if not isinstance(asked, dict):
        _refuse("dual_chunk_attention_config", f"is {brief(asked)}; it must be an object")
    where = "dual_chunk_attention_config."
    chunk, local = (_whole(f"{where}{name}", asked.get(name)) for name in ("chunk_size", "local_size"))
    limits = [_whole(f"{where}chunk_size less local_size", chunk - local)]
    if asked.get("original_max_position_embeddings"):  # behind it, scores are scaled
        name = "original_max_position_embeddings"
        limits.append(_whole(f"{where}{name}", asked[name]))
    if asked.get("sparse_attention_config") or asked.get("sparse_attention_enabled"):
        limits.append(_whole(f"{where}sparse_attention_threshold", asked.get("sparse_attention_threshold", 32768)))
    return min(limits)
