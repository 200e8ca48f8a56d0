"""What a model file says about text, whatever the container."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama_token_type


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a file says about text: a byte-level BPE, or SentencePiece's.

    tokens: by id, spelled in GPT-2's byte alphabet ("Ġthe"), or SentencePiece's way ("▁the", "<0x0A>");
    merges: "left right", best first, none twice; types: ggml's token types by id, as above;
    model, pre: ggml's names of the algorithm ("gpt2", "llama") and of the pre-tokenizer ("qwen2", pre_tokenizers.py);
    spaces: of SentencePiece, where a space is put before text (a key of sentencepiece.py's SPACES), else "";
    strip: of SentencePiece, whether decoded text loses its first space;
    whole: a piece that is a token is taken as it stands, without merging it (Hugging Face's ignore_merges);
    eos_ids: every id that ends an answer, the tokenizer's own first; eos_from: how each came;
    prefix, suffix: the ids that a raw prompt has before and behind those of its text;
    flags: of added tokens, by id: which of Hugging Face's lstrip, rstrip, single_word, normalized are true;
    tokenizer_json: Hugging Face's own file, where the model has one, as it is written: all that it says is above;
    other_templates: chat templates besides the default, by name; notes: a line each on what was not used.
    """

    tokens: list[str]
    merges: list[str]
    types: list[int]
    model: str
    pre: str
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    chat_template: str | None
    whole: bool = False
    spaces: str = ""
    strip: bool = False
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    eos_from: tuple[str, ...] = ()
    flags: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    tokenizer_json: str | None = None
    other_templates: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def template(self, tools: bool) -> str | None:
        """The chat template: of several, tool_use where there are tools, as Transformers chooses."""
        return self.other_templates.get("tool_use", self.chat_template) if tools else self.chat_template
