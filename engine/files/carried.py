"""What of a model's tokenizer and configuration the next container has a place for, and what is lost on the way."""

from __future__ import annotations

from dataclasses import replace

from ...errors import BadInput
from ..config import Config
from ..models import meant_by_gguf
from ..models.heads import KINDS, LM, NONE, POOLINGS
from ..rope_gguf import Said, to_keys
from . import Checkpoint, sentencepiece
from .end_of_generation import by_text, stops, told, with_control
from .pre_tokenizers import PRE_TOKENIZERS, taken_whole
from .tokenizer_json import last_used, spell
from .vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, Vocabulary


def carried(source: Checkpoint, kind: str) -> tuple[Vocabulary | None, list[str]]:
    """The Vocabulary as a container of that kind can say it, and a line on each thing that it can not."""
    v = source.vocabulary()
    if v is None:
        return None, ["the source has no tokenizer, and so the result has none"]
    if kind == "gguf" and source.container.startswith("GGUF"):
        return v, []  # its keys are copied as they are
    lost = list(v.notes)
    if v.spaces and (why := _no_place(source, kind)):
        return None, [f"the tokenizer, SentencePiece's BPE: {why}"]
    if v.spaces and kind == "gguf":
        v = _in_scores(v, lost)
    elif kind != "safetensors" and v.pre in PRE_TOKENIZERS and taken_whole(v.pre) != v.whole:
        lost.append(f"that pieces are {'' if v.whole else 'not '}taken whole (ignore_merges): {kind} has no key for it")
        v = replace(v, whole=not v.whole)
    if v.other_templates:
        lost.append(f"chat templates besides the default: {', '.join(v.other_templates)}")
    if kind == "safetensors" and v.pre not in PRE_TOKENIZERS and not v.spaces:
        return None, [f"the tokenizer: of pre-tokenizer {v.pre:.80}, which nobody writes here"]
    if kind == "safetensors":
        return _for_safetensors(v, lost), lost

    # Two switches say what is put round a prompt; the ids are BOS and EOS.
    bos = v.prefix[0] if len(v.prefix) == 1 and v.bos_id is None else v.bos_id
    eos = v.eos_ids[0] if v.eos_ids else None
    prefix, suffix = v.prefix if v.prefix == (bos,) else (), v.suffix if v.suffix == (eos,) else ()
    for where, ids, kept, name, one in (
        ("before", v.prefix, prefix, "BOS", bos),
        ("behind", v.suffix, suffix, "EOS", eos),
    ):
        if ids != kept:
            lost.append(f"ids {', '.join(map(str, ids))} {where} a prompt: {kind} can say {name} ({one}), or nothing")
    whole = (prefix, suffix) == (v.prefix, v.suffix)
    v = replace(v, bos_id=bos, prefix=prefix, suffix=suffix)
    types = with_control(v.types, by_text(v.tokens), () if v.spaces else v.merges)
    if types != v.types:
        changed = [v.tokens[i] for i, t in enumerate(types) if t != v.types[i]]
        lost.append(f"that {', '.join(changed)} is ordinary text: readers of {kind} take it for a control token")
        v = replace(v, types=types)
    if v.flags and (kind == "apr" or not whole):
        lost.append(f"how added tokens are found ({', '.join(sorted(set().union(*v.flags.values())))})")
        v = replace(v, flags={})
    if kind == "apr":
        return replace(v, tokenizer_json=None), lost
    # The whole tokenizer.json goes along where it agrees with the other keys.
    v = replace(v, tokenizer_json=None if not whole else spell(v) if v.flags else v.tokenizer_json)
    if v.flags:
        lost.append("for llama.cpp, how added tokens are found: only tokenizer.huggingface.json says it")
    if over := told(v)[3:]:
        lost.append(f"that answers end at {', '.join(map(str, over))}: GGUF has keys for three ids")
    return replace(v, eos_ids=tuple(i for i in v.eos_ids if i not in over)), lost


def _no_place(source: Checkpoint, kind: str) -> str | None:
    """Why a container of that kind, of such a model, has no place for SentencePiece's BPE."""
    if kind == "apr":
        return "apr has only byte-level ones"
    if kind == "safetensors" and source.config.model_type not in ("llama", "mistral"):
        return f"Transformers reads none for {source.config.architecture.title}"
    return None


def _in_scores(v: Vocabulary, lost: list[str]) -> Vocabulary:
    """As GGUF has SentencePiece's BPE: a score for each token, and one way with spaces."""
    row, (merges, same) = sentencepiece.SPACES[v.spaces], sentencepiece.in_scores(v.tokens, v.merges, v.types)
    spaces, strip = row.gguf, row.gguf == "prepend"
    if not same:
        lost.append("the order of merges: gguf has a score for each token, and so one for all ways to make it")
    elif merges != v.merges:
        lost.append("the order of merges among the ways to make one token: gguf has a score for each token")
    if v.whole:
        lost.append("that pieces are taken whole (ignore_merges): gguf has no key for it")
    if not row.same:
        what = row.pre_tokenizer[0]["prepend_scheme"]
        told = "llama.cpp puts one before every text, also where one is, and behind every control token"
        lost.append(f"how a space is put before text (Metaspace, {what}): {told}")
    if v.strip != strip:
        ways = ("kept", "left out")
        lost.append(f"that the first space of decoded text is {ways[v.strip]}: in gguf it is {ways[strip]}")
    said = replace(v, spaces=spaces, strip=strip, merges=merges, whole=False)
    return said if said == v else replace(said, tokenizer_json=None)


def _for_safetensors(v: Vocabulary, lost: list[str]) -> Vocabulary:
    """tokenizer.json knows added tokens, special or not, and ordinary ones; tokenizer_config.json's are special."""
    used = last_used(v) + 1
    types = [{UNKNOWN: CONTROL, UNUSED: NORMAL}.get(t, t) for t in v.types[:used]]
    named = {i for i in (*v.prefix, *stops(v)[:1], v.pad_id) if i is not None and i < used and types[i] != CONTROL}
    if named:
        texts = ", ".join(v.tokens[i] for i in sorted(named))
        lost.append(f"that {texts} is ordinary text: what tokenizer_config.json names is a control token")
        types = [CONTROL if i in named else t for i, t in enumerate(types)]
    if v.spaces:
        as_bytes = sentencepiece.with_bytes(v.tokens[:used], types)
        if as_bytes != types:
            lost.append("that <0x00> to <0xFF> are texts: in a tokenizer.json they are bytes")
        types = as_bytes
    elif count := types.count(BYTE):
        lost.append(f"{count} tokens stand for single bytes in GGUF alone, and become ordinary text")
        types = [NORMAL if t == BYTE else t for t in types]
    return replace(v, types=types + v.types[used:])


def held(source: Checkpoint, kind: str) -> Config:
    """The configuration as it is read back from a container of that kind."""
    c = source.config
    if c.dual_chunk and not (kind == source.container == "safetensors"):
        c = replace(c, max_position_embeddings=c.context, dual_chunk=0)
    c = replace(c, head=replace(c.head, pooling=_pooling_in(c, kind)))
    if not (kind == "gguf" and source.container.startswith("GGUF")):
        c = replace(c, pictures=())
    if kind != "gguf":
        return c
    name = meant_by_gguf(c.architecture.gguf, bool(c.windows)).model_type
    return replace(c, model_type=name, rope_scaling=rope_in_gguf(c).back)


def _pooling_in(c: Config, kind: str) -> str:
    """The pooling that such a container says. Of a model without a head, GGUF must say one, or the embedding would be
    taken for its head: the last row, which stands for none."""
    said = c.head.pooling if c.head.pooling in POOLINGS and kind != "apr" else ""
    return said or ("last" if kind == "gguf" and c.head.kind == NONE else "")


def check_head(source: Checkpoint, kind: str) -> None:
    """Raises BadInput if such a container has no place for what stands behind the final norm."""
    head, a = source.config.head, source.config.architecture
    scores = KINDS[head.kind].scores is not None and not (kind == "gguf" and source.container.startswith("GGUF"))
    if kind == "apr" and not source.config.causal:
        raise BadInput("apr has no place for attention that is not causal; convert to a .gguf file or a folder")
    if head.kind != LM and (kind == "apr" or (kind == "gguf" and scores)):
        what = "scores" if scores else "no output head"
        ways = "" if scores else "a .gguf file or "
        raise BadInput(f"{kind} has no place for {a.title}{head.kind}, which has {what}; convert to {ways}a folder")


def lost_beside_text(source: Checkpoint, kind: str) -> list[str]:
    """A line on what such a container does not say of pooling, of the scaling of RoPE and of attention."""
    c, lost = source.config, []
    if c.head.pooling not in ("", held(source, kind).head.pooling):
        lost.append(f"how a text's rows are pooled: {c.head.pooling}")
    if held(source, kind).pictures != c.pictures:
        ids = " and ".join(map(str, c.pictures))
        lost.append(f"that it sees, and that {ids} stand for pictures: it becomes a model of text alone")
    if held(source, kind).dual_chunk != c.dual_chunk:
        lost.append(f"dual_chunk_attention_config: the context ends where its second chunk begins, at {c.dual_chunk}")
    if kind == "gguf":
        rope = rope_in_gguf(c)
        lost += rope.lost
        name, read = c.architecture.gguf, c.architecture.llama_cpp_reads
        if rope.tensors and "divisors" not in read:
            lost.append(f"for llama.cpp, the scaling of RoPE: it reads no divisors (rope_freqs.weight) of {name}")
        if any("yarn_beta" in key for key, _, _ in rope.keys) and "betas" not in read:
            lost.append(
                f"for llama.cpp, YaRN's betas: in {name} it takes --yarn-beta-fast and --yarn-beta-slow for them"
            )
        if "output bias" not in read and "attn_out_bias_D" in c.architecture.found(source.tensors):
            lost.append(f"for llama.cpp, attention's output bias: it has none in {name}, and refuses the file")
        if c.windows and "windows" not in read:
            lost.append(f"for llama.cpp, the attention windows: it has none in {name}")
        if meant_by_gguf(name, bool(c.windows)) is not c.architecture:
            lost.append(f"that it is {c.architecture.title}: GGUF has it as {name}")
    return lost


def rope_in_gguf(c: Config) -> Said:
    """The scaling of RoPE as a GGUF file has it."""
    return to_keys(c.rope_scaling, c.rope_theta, c.head_dim, c.max_position_embeddings)


def left_out(source: Checkpoint, kind: str) -> list[str]:
    """A line on what somebody may miss in the new file: fields that nothing here knows, and how to sample."""
    m, a = source.metadata, source.config.architecture
    if source.container == "safetensors":
        if kind == "safetensors":
            return []
        advice = {k: x for k, x in m["generation_config"].items() if not k.endswith(("_token_id", "version"))}
        said = [f"generation_config.json's {k}" for k, x in advice.items() if x]
        said += [f"config.json's {k}" for k, x in m["config"].items() if k not in a.hf_keys.known() and x is not None]
    elif source.container.startswith("GGUF"):
        prefix = f"{m['general.architecture']}."
        strange = [k for k in m if k.startswith(prefix) and k.removeprefix(prefix) not in a.gguf_keys.known()]
        sampling = [k for k in m if k.startswith("general.sampling.") and kind == "safetensors"]
        said = [] if kind == "gguf" else strange + sampling
    else:
        said = []
    names = said[:8] + (["..."] if len(said) > 8 else [])
    return [f"left out, with no place in {kind}: {', '.join(names)}"] if said else []
