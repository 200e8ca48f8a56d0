"""Makes tests/golden/auto_tokenizer.json.gz: small folders of tokenizer files, with the ids that AutoTokenizer gives.

    python -m qwenref.tools.dev.golden_auto_tokenizer tests/golden/auto_tokenizer.json.gz

Every folder has a byte-level BPE of 261 tokens and more; what differs is what Transformers reads to find out which
tokens are put round a prompt, which are found in it, and what is done to the text first.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import Any

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MERGES = ["l o", "lo w", "Ġ t", "Ġt h", "Ã ©"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
TEXTS = [
    "", "low the lowest", "e\u0301 é \u212b", " <|im_start|> x", "a<s> <s>b</s> c", "<|endoftext|>",
    "the<tool>the <tool> x", "  <tool>\n<|im_end|>  y", "<tool>\u0338<s>\u0338",
    "x<pad><extra>12 it's\r\n\r\n <unk>",
]  # fmt: skip

Files = dict[str, Any]  # name -> JSON, or text


def alphabet() -> list[str]:
    printable = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    return [chr(b) for b in printable] + [chr(0x100 + n) for n in range(256 - len(printable))]


NORMAL = [*alphabet(), *(m.replace(" ", "") for m in MERGES)]
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>", "<tool>"]
IDS = {token: len(NORMAL) + n for n, token in enumerate(ADDED)}
VOCAB = {token: n for n, token in enumerate(NORMAL)}


def added(**flags: dict[str, bool]) -> list[dict[str, Any]]:
    """added_tokens; flags: of <tool>, of <s> (which is named as bos_token) and of <|im_start|>, by short names."""
    short = {"<tool>": "tool", "<s>": "s", "<|im_start|>": "start"}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": token} | plain | {"special": token != "<tool>"} | flags.get(short.get(token, ""), {})
        for token, i in IDS.items()
    ]


def tokenizer(**changes: Any) -> dict[str, Any]:
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
             "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False}  # fmt: skip
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added(),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]},
        "post_processor": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": model | {"vocab": VOCAB, "merges": MERGES} | changes.pop("model", {}),
    } | changes


def template(*pieces: str) -> dict[str, Any]:
    """A TemplateProcessing; $A is the text, all else a special token."""

    def piece(name: str, type_id: int) -> dict[str, Any]:
        if name == "$A":
            return {"Sequence": {"id": "AB"[type_id], "type_id": type_id}}
        return {"SpecialToken": {"id": name, "type_id": type_id}}

    names = sorted({name for name in pieces if name != "$A"})
    return {
        "type": "TemplateProcessing",
        "single": [piece(name, 0) for name in pieces],
        "pair": [piece(name, i) for i in (0, 1) for name in pieces],
        "special_tokens": {name: {"id": name, "ids": [IDS[name]], "tokens": [name]} for name in names},
    }


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "processors": list(steps)}


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
        "unk_token": None,
    } | changes  # fmt: skip


def cases() -> dict[str, Files]:
    """name -> the files of the folder."""
    found: dict[str, Files] = {}

    def case(name: str, said: dict[str, Any] | None = None, files: Files | None = None, **changes: Any) -> None:
        beside = {} if said is None else {"tokenizer_config.json": said}
        found[name] = {"tokenizer.json": tokenizer(**changes)} | beside if files is None else files | beside

    both = template("<s>", "$A", "</s>")
    two = template("<s>", "$A")
    two["special_tokens"]["<s>"] |= {"ids": [IDS["<s>"], IDS["<pad>"]], "tokens": ["<s>", "<pad>"]}
    processors = {
        "none": None,
        "ByteLevel": BYTE_LEVEL,
        "BOS": template("<s>", "$A"),
        "EOS": template("$A", "</s>"),
        "BOS and EOS": both,
        "BOS twice": template("<s>", "<s>", "$A"),
        "two before, two behind": template("<s>", "<|im_start|>", "$A", "<|im_end|>", "</s>"),
        "two ids for one token": two,
        "ByteLevel, then BOS": sequence(BYTE_LEVEL, template("<s>", "$A")),
        "BOS, then ByteLevel": sequence(template("<s>", "$A"), BYTE_LEVEL),
        "a sequence of one": sequence(both),
        "a sequence of none": sequence(),
        "a template of the text alone": template("$A"),
        "Roberta": {"type": "RobertaProcessing", "sep": ["</s>", IDS["</s>"]], "cls": ["<s>", IDS["<s>"]],
                    "trim_offsets": True, "add_prefix_space": False},
        "Bert": {"type": "BertProcessing", "sep": ["</s>", IDS["</s>"]], "cls": ["<s>", IDS["<s>"]]},
    }  # fmt: skip
    for name, processor in processors.items():
        for asked in (None, True, False):
            options = {} if asked is None else {"add_bos_token": asked, "add_eos_token": asked}
            case(f"{name}, add_bos_token and add_eos_token {asked}", settings(**options), post_processor=processor)
    for kind in ("Qwen2TokenizerFast", "LlamaTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast", None):
        said = settings(tokenizer_class=kind, add_bos_token=True)
        if kind is None:
            del said["tokenizer_class"]
        case(f"class {kind}", said, post_processor=both, normalizer=None)
    case("no tokenizer_config.json", None, post_processor=both)
    for name, normalizer in {
        "none": None,
        "a sequence of none": {"type": "Sequence", "normalizers": []},
        "a sequence of NFC": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    }.items():
        case(f"normalizer {name}", settings(), normalizer=normalizer)
    for flag in ("lstrip", "rstrip", "single_word", "normalized"):
        case(f"{flag} tool", settings(), added_tokens=added(tool={flag: True}))
        case(f"{flag} <s>", settings(), added_tokens=added(s={flag: True}))
        case(f"{flag} <|im_start|>", settings(), added_tokens=added(start={flag: True}))
        decoder = {str(a.pop("id")): a for a in added(tool={flag: True}, s={flag: True}, start={flag: True})}
        case(f"{flag} in added_tokens_decoder", settings(added_tokens_decoder=decoder))
    case("lstrip and rstrip", settings(), added_tokens=added(tool={"lstrip": True, "rstrip": True}))
    more = {str(a.pop("id")): a for a in added()} | {
        str(len(NORMAL) + len(ADDED)): {"content": "<extra>", "special": True}
    }
    case("one more in added_tokens_decoder", settings(added_tokens_decoder=more))
    case("a repeated merge", settings(), model={"merges": ["lo w", *MERGES, "l o"]})
    case("merges as pairs", settings(), model={"merges": [m.split(" ") for m in MERGES]})
    case("unk_token and byte_fallback", settings(), model={"unk_token": "<pad>", "byte_fallback": True})
    vocab = VOCAB | IDS
    case("special tokens in the vocabulary", settings(), model={"vocab": vocab}, added_tokens=added()[-1:])
    case("a special token as an object", settings(bos_token=added(s={"lstrip": True})[3] | {"__type": "AddedToken"}),
         model={"vocab": vocab}, added_tokens=[])  # fmt: skip
    for n, extra in enumerate(
        (["<tool>", "<|im_start|>"], [added(tool={"lstrip": True})[-1] | {"__type": "AddedToken"}])
    ):
        case(f"additional_special_tokens {n}", settings(additional_special_tokens=extra),
             model={"vocab": vocab}, added_tokens=[])  # fmt: skip
        case(f"additional_special_tokens {n}, of tokenizer.json", settings(additional_special_tokens=extra),
             added_tokens=added(tool={"rstrip": True}, start={"rstrip": True}))  # fmt: skip
    case("no pad_token, which is <|endoftext|> then", {"eos_token": "</s>"}, model={"vocab": vocab}, added_tokens=[])

    merges = "#version: 0.2\n" + "\n".join(MERGES) + "\n"
    parts: Files = {"vocab.json": VOCAB, "merges.txt": merges}
    decoder = {str(a.pop("id")): a for a in added()}
    case("parts: added_tokens_decoder", settings(added_tokens_decoder=decoder), parts)
    case("parts: added_tokens.json", settings(), parts | {"added_tokens.json": IDS})
    stripping = {"content": "<s>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    spelled = {"bos_token": stripping, "eos_token": "</s>", "pad_token": "<pad>"}
    spelled |= {"additional_special_tokens": ["<|im_end|>"]}
    case("parts: special_tokens_map.json", {"tokenizer_class": "Qwen2Tokenizer"},
         parts | {"added_tokens.json": IDS, "special_tokens_map.json": spelled})  # fmt: skip
    case("parts: everything in vocab.json", settings(), {"vocab.json": vocab, "merges.txt": merges})
    case("parts: no tokenizer_config.json", None, {"vocab.json": vocab, "merges.txt": merges})
    for bos in (True, False):
        for eos in (True, False):
            said = settings(added_tokens_decoder=decoder, add_bos_token=bos, add_eos_token=eos)
            case(f"parts: add_bos_token {bos}, add_eos_token {eos}", said, parts)
    case("parts: add_bos_token without a bos_token",
         settings(added_tokens_decoder=decoder, add_bos_token=True, bos_token=None), parts)  # fmt: skip
    return found


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", type=Path)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"

    import tokenizers
    import transformers

    asked = []
    for name, files in cases().items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), files | {"config.json": {"model_type": "qwen2"}})
            hf = transformers.AutoTokenizer.from_pretrained(folder)
        ids = [hf(text).input_ids for text in TEXTS]
        special = {key: hf.convert_tokens_to_ids(token) for key, token in hf.special_tokens_map.items() if token in IDS}
        asked.append({"name": name, "files": files, "ids": ids, "special": special})
    golden = {
        "command": "python -m qwenref.tools.dev.golden_auto_tokenizer tests/golden/auto_tokenizer.json.gz",
        "versions": {m.__name__: m.__version__ for m in (transformers, tokenizers)},
        "texts": TEXTS,
        "cases": asked,
    }
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    args.golden.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(asked)} folders, {len(TEXTS)} texts")


if __name__ == "__main__":
    main()
