"""The ids that end an answer: those that the files name, and those whose text says so.

A file has room for one or two, and models are published with an <|endoftext|> that their chat template never writes.
llama.cpp therefore goes by the tokens' texts as well (llama-vocab.cpp, special_eog_ids); so does this. Two of its
habits are left out: to take Qwen2's </s>, which its merges make, for a control token in a prompt's text too, where
Transformers reads letters; and to take GPT-2's ids for a file that names none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .vocabulary import CONTROL, NORMAL, USER_DEFINED, Vocabulary

TEXT = "its text"

ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
})  # fmt: skip

# Of fill-in-the-middle: padding, the next repository, the next file. By the names of the keys that GGUF has for them.
FILL_IN = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
# The other tokens that llama.cpp takes for control tokens by their text.
FILL_IN_PARTS = frozenset({
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "<|code_prefix|>", "<|prefix|>",
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "<|code_suffix|>", "<|suffix|>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "<|code_middle|>", "<|middle|>",
})  # fmt: skip
CONTROL_TEXTS = ENDS.union(FILL_IN_PARTS, *FILL_IN.values())


def by_text(tokens: Sequence[str]) -> dict[str, int]:
    """The tokens whose text says that they are control tokens, whatever type the file gives them: text -> id."""
    return {token: i for i, token in enumerate(tokens) if token in CONTROL_TEXTS}


def with_control(types: Sequence[int], found: Mapping[str, int], merges: Sequence[str]) -> list[int]:
    """The types, those of `by_text` made control tokens: in a user's message they are text. Not what merges make."""
    plain = {token for token, i in found.items() if types[i] == NORMAL}
    # What each of them would be merged of: to join all the merges took a tenth of a second.
    of = {f"{t[:i]} {t[i:]}": t for t in plain for i in range(len(t) + 1) if " " not in t[:i]}
    made = {of[merge] for merge in merges if merge in of} if of else set()
    changed = list(types)
    for token, i in found.items():
        if changed[i] in (NORMAL, USER_DEFINED) and token not in made:
            changed[i] = CONTROL
    return changed


def ends(named: Iterable[tuple[str, int]], found: Mapping[str, int], fill_in: Mapping[str, int]) -> dict[int, str]:
    """id -> how it came, the file's own first. named: (how, id); found: of by_text; fill_in: ids by FILL_IN's keys."""
    result: dict[int, str] = {}
    for how, i in named:
        result.setdefault(i, how)
    texts = set(ENDS)
    # o200k_harmony and solar-open go on behind <|end|>.
    if {"<|return|>", "<|call|>"} <= found.keys() or {"<|calls|>", "<|flush|>"} <= found.keys():
        texts.discard("<|end|>")
    for text in (t for t in found if t in texts):
        result.setdefault(found[text], TEXT)
    for key, names in FILL_IN.items():
        if key in fill_in:
            result.setdefault(fill_in[key], f"{key}_token_id")
        elif (name := next((name for name in names if name in found), None)) is not None:
            result.setdefault(found[name], f"{TEXT} ({key})")
    return result


def told(v: Vocabulary) -> list[int]:
    """The ids that end an answer and that a GGUF must name: the first, and all that their texts do not tell."""
    texts = _texts(v)
    return [i for n, i in enumerate(v.eos_ids) if n == 0 or i not in texts]


def stops(v: Vocabulary) -> list[int]:
    """Those that generation_config.json names: Transformers does not go by texts. Not those of fill-in-the-middle."""
    texts = _texts(v)
    return [i for n, i in enumerate(v.eos_ids) if n == 0 or texts.get(i, TEXT) == TEXT]


def _texts(v: Vocabulary) -> dict[int, str]:
    return ends([], by_text(v.tokens), {})
