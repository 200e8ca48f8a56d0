"""Makes tests/golden/sentencepiece.json.gz: a small SentencePiece vocabulary, and what three libraries make of it.

    python -m qwenref.tools.dev.golden_sentencepiece tests/golden/sentencepiece.json.gz             (Transformers)
    python -m qwenref.tools.dev.golden_sentencepiece tests/golden/sentencepiece.json.gz --llama-cpp

The first needs Transformers, sentencepiece and protobuf, and trains the vocabulary; the second needs llama-cpp-python
and gguf, and adds to the file. Of each folder and each GGUF: the ids of texts as a prompt and as a message (where
control tokens are text), and the texts of the former.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

SPACE = "\u2581"
TRAINED_ON = (
    "the quick brown fox jumps over the lazy dog; the dog sleeps, and the fox is quick again",
    "def add(a, b):\n    return a + b  # adds two numbers\n",
    "Ünïcödé: straße, école, naïve café; 你好，世界; здравствуй, мир",
    "Hello world! Hello there, how are you doing? I'm fine, thanks; what's 12 + 345?",
    "                ", "abababababab aaaaaaaa ------- ======= ....",
    "[INST] what is the answer to the question [/INST] the answer is in the question",
)  # fmt: skip
TEXTS = (
    "", " ", "  ", "   \n", "Hello", " Hello", "  Hello  world  ", "Hello world!\n", "a\n\n b\tc\r\n", "\n", "\t",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 ok", "caf\u00e9 cafe\u0301 \u212b",
    "\u4f60\u597d\u754c \u1234",
    "\x00\x01\x7f", f"{SPACE}{SPACE}already {SPACE}", "<0x41> <0x0A>", "<s> a</s>b <s>", "<s>", " <s>  x", "<unk> </s",
    "[INST] the question [/INST] the answer", "[INST]a[/INST]", "<tool> <tool>x a <tool>\n", "<tool>", "a" * 300,
    " " * 65, "\n" * 40, "ab" * 50 + "a", "aba" * 30, "=" * 33 + "-" * 31, "\U0010ffff \ufffd", "x" + " " * 7 + "y",
)  # fmt: skip
KEEP = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ],
}
BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


def train() -> Any:
    """A model as Llama's and Mistral's are: BPE, bytes, no normalization, a space before the text."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINED_ON * 4),
        model_writer=written,
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        control_symbols=["[INST]", "[/INST]"],
        character_coverage=0.99,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue()), written.getvalue()


def file(golden: dict[str, Any], said: dict[str, Any], order: str) -> dict[str, Any]:
    """A tokenizer.json: said, and the vocabulary with its merges in one of two orders."""
    vocab = {token: i for i, token in enumerate(golden["tokens"])}
    return said | {"model": said["model"] | {"vocab": vocab, "merges": golden["merges"][order]}}


def published(normalizer: Any, pre_tokenizer: Any, strip: bool = True, **flags: bool) -> dict[str, Any]:
    """A tokenizer.json without its vocabulary. flags: of <s> and <tool>."""
    named = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 480: "<tool>"}
    replace = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    stripping = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if strip else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "special": i < 480} | KEEP | (flags if i in (1, 480) else {})
            for i, token in named.items()
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": BOS,
        "decoder": {
            "type": "Sequence",
            "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, *stripping],
        },
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
    }


def folders() -> dict[str, tuple[str, dict[str, Any], dict[str, Any], str]]:
    """name -> (model type, tokenizer_config.json, tokenizer.json without vocabulary, order of its merges)."""
    usual = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    fast, llama = {"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": "LlamaTokenizer"}
    legacy = published(PREPEND, None)
    found = {
        # As meta-llama/Llama-2-7b-chat-hf, TinyLlama-1.1B-Chat-v1.0 and Mistral-7B-Instruct v0.1 to v0.3 publish them.
        "Llama 2": ("llama", usual | llama | {"legacy": False}, legacy, "score"),
        "Llama 2, legacy": ("llama", usual | llama | {"legacy": True}, legacy, "score"),
        "TinyLlama": ("llama", usual | {"tokenizer_class": "LlamaTokenizerFast"}, legacy, "score"),
        "Mistral, legacy": ("mistral", usual | llama | {"legacy": True}, legacy, "score"),
        "Mistral": ("mistral", usual | llama | {"legacy": False}, published(None, metaspace("first")), "id"),
        "add_prefix_space": ("llama", usual | llama | {"add_prefix_space": False}, legacy, "id"),
        "Llama as it stands": ("llama", usual | fast, legacy, "score"),
        "no class": ("llama", usual, legacy, "id"),
        "Metaspace always": ("llama", usual | fast, published(None, metaspace("always")), "score"),
        "Metaspace never": ("llama", usual | fast, published(None, metaspace("never"), strip=False), "score"),
        "Replace alone": ("llama", usual | fast, published(PREPEND["normalizers"][1], None, strip=False), "score"),
    }
    for flag in ("lstrip", "rstrip", "normalized"):
        flagged = published(PREPEND, None, **{flag: True})
        found[f"{flag}, as it stands"] = ("llama", usual | fast, flagged, "score")
        found[f"{flag}, LlamaTokenizer"] = ("llama", usual | llama, flagged, "score")
    decoder = {"2": {"content": "</s>", "special": True} | KEEP, "480": {"content": "<tool>", "special": False} | KEEP}
    found["added_tokens_decoder"] = ("llama", usual | llama | {"added_tokens_decoder": decoder}, legacy, "score")
    return found


def models() -> dict[str, tuple[str, dict[str, Any]]]:
    """name -> (model type, tokenizer_config.json) of folders that have no tokenizer.json."""
    llama = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}
    found: dict[str, tuple[str, dict[str, Any]]] = {
        f"{kind}, legacy {legacy}": (kind, llama | ({} if legacy is None else {"legacy": legacy}))
        for kind in ("llama", "mistral")
        for legacy in (None, True, False)
    }
    for kind in ("llama", "mistral"):
        found[f"{kind}, add_bos_token"] = (kind, llama | {"add_bos_token": True, "add_eos_token": True})
        decoder = {"480": {"content": "<tool>", "special": False} | KEEP}
        found[f"{kind}, added_tokens_decoder"] = (kind, llama | {"added_tokens_decoder": decoder})
        found[f"{kind}, add_prefix_space"] = (kind, llama | {"add_prefix_space": False})
    found["llama, add no class"] = ("llama", {"add_bos_token": True})
    return found


def asked(hf: Any) -> dict[str, Any]:
    """What a tokenizer of Transformers makes of the texts."""
    prompts = [hf(text).input_ids for text in TEXTS]
    messages = [hf.encode(t, add_special_tokens=False, split_special_tokens=True) for t in TEXTS]
    return {"prompts": prompts, "decoded": [hf.decode(p) for p in prompts], "messages": messages}


def ask_transformers(golden: dict[str, Any]) -> None:
    import sentencepiece
    import tokenizers
    import transformers
    from transformers.tokenization_utils_base import generate_merges

    processor, model = train()
    size = processor.get_piece_size()
    tokens = [processor.id_to_piece(i) for i in range(size)]
    kinds = ((processor.is_unknown, 2), (processor.is_control, 3), (processor.is_unused, 5), (processor.is_byte, 6))
    golden["tokens"] = tokens
    golden["scores"] = [processor.get_score(i) for i in range(size)]
    golden["types"] = [next((kind for is_it, kind in kinds if is_it(i)), 1) for i in range(size)]
    ids = {token: i for i, token in enumerate(tokens)}
    golden["merges"] = {
        "score": [" ".join(m) for m in generate_merges(ids, dict(zip(tokens, golden["scores"], strict=True)))],
        "id": [" ".join(m) for m in generate_merges(ids)],
    }
    golden["by_sentencepiece"] = [processor.encode(text) for text in TEXTS]
    said = {name: (m, settings, file(golden, said, order)) for name, (m, settings, said, order) in folders().items()}
    golden["model"] = base64.b64encode(model).decode()
    golden["models"] = []
    for name, (kind, settings) in models().items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tokenizer.model").write_bytes(model)
            write_folder(Path(folder), kind, settings, None)
            hf = transformers.AutoTokenizer.from_pretrained(folder)
            golden["models"].append({"name": name, "model_type": kind, "settings": settings} | asked(hf))
            if "add" in name:
                continue
            hf.save_pretrained(folder)
            written = [json.loads((Path(folder) / f"{n}.json").read_text()) for n in ("tokenizer_config", "tokenizer")]
            said[f"{name}, written by Transformers"] = (kind, *written)
    golden["folders"] = []
    for name, (kind, settings, whole) in said.items():
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), kind, settings, whole)
            hf = transformers.AutoTokenizer.from_pretrained(folder)
        vocab, merges = (
            whole["model"].pop("vocab"),
            [" ".join(m.split(" ") if isinstance(m, str) else m) for m in whole["model"].pop("merges")],
        )
        assert vocab == ids
        order = next(order for order, theirs in golden["merges"].items() if theirs == merges)
        golden["folders"].append(
            {"name": name, "model_type": kind, "settings": settings, "tokenizer": whole, "merges": order} | asked(hf)
        )
    golden["versions"] = {m.__name__: m.__version__ for m in (transformers, tokenizers, sentencepiece)}


def write_folder(folder: Path, model_type: str, settings: dict[str, Any], tokenizer: dict[str, Any] | None) -> None:
    files = {"config.json": {"model_type": model_type}, "tokenizer_config.json": settings, "tokenizer.json": tokenizer}
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def ggufs() -> dict[str, tuple[dict[str, int | bool], dict[str, int]]]:
    """name -> (keys of tokenizer.ggml, more tokens with their types)."""
    usual: dict[str, int | bool] = {"bos_token_id": 1, "eos_token_id": 2, "add_bos_token": True, "add_eos_token": False}
    tool = {"<tool>": 4, "<|im_start|>": 3}
    return {
        "usual": (usual, tool),
        "nothing said": ({}, tool),
        "no types": ({}, {}),
        "no space": (usual | {"add_space_prefix": False}, tool),
        "a space": (usual | {"add_space_prefix": True}, tool),
        "both": (usual | {"add_eos_token": True}, tool),
        "neither": (usual | {"add_bos_token": False}, tool),
        "remove_extra_whitespaces": (usual | {"remove_extra_whitespaces": True}, tool),
        "unused": (usual, tool | {"the answer": 5, "[PAD483]": 5}),
        "no id": ({"bos_token_id": -1}, tool),
    }


def write_gguf(path: Path, golden: dict[str, Any], keys: dict[str, int | bool], more: dict[str, int]) -> None:
    """A GGUF file without weights, by gguf-py; without types where there are no more tokens."""
    import gguf

    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(64)
    w.add_embedding_length(32)
    w.add_block_count(1)
    w.add_feed_forward_length(32)
    w.add_head_count(1)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_dimension_count(32)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([*golden["tokens"], *more])
    w.add_token_scores([*golden["scores"], *[-1000.0] * len(more)])
    if more:
        w.add_token_types([*golden["types"], *more.values()])
    for key, value in keys.items():
        if isinstance(value, bool):
            w.add_bool(f"tokenizer.ggml.{key}", value)
        else:
            w.add_uint32(f"tokenizer.ggml.{key}", 0xFFFFFFFF if value < 0 else value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def ask_llama_cpp(golden: dict[str, Any]) -> None:
    import ctypes

    import llama_cpp

    golden["ggufs"] = []
    for name, (keys, more) in ggufs().items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocabulary.gguf"
            write_gguf(path, golden, keys, more)
            llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        vocab = llama_cpp.llama_model_get_vocab(llama.model)

        def text(ids: list[int], vocab: Any = vocab) -> str:
            room = ctypes.create_string_buffer(4096)
            given = (llama_cpp.llama_token * len(ids))(*ids)
            size = llama_cpp.llama_detokenize(vocab, given, len(ids), room, len(room), False, True)
            return room.raw[:size].decode()

        prompts = [llama.tokenize(t.encode(), add_bos=True, special=True) for t in TEXTS]
        golden["ggufs"].append({
            "name": name, "keys": keys, "more": more, "prompts": prompts, "decoded": [text(p) for p in prompts],
            "messages": [llama.tokenize(t.encode(), add_bos=False, special=False) for t in TEXTS],
        })  # fmt: skip
    golden["versions"]["llama_cpp"] = llama_cpp.__version__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", type=Path)
    parser.add_argument("--llama-cpp", action="store_true")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"

    golden: dict[str, Any] = {}
    if args.llama_cpp:
        golden = json.loads(gzip.decompress(args.golden.read_bytes()))
        ask_llama_cpp(golden)
    else:
        ask_transformers(golden)
    command = "python -m qwenref.tools.dev.golden_sentencepiece tests/golden/sentencepiece.json.gz"
    golden |= {"commands": [command, f"{command} --llama-cpp"], "texts": TEXTS}
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    args.golden.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(golden['folders'])} folders, {len(golden.get('ggufs', []))} GGUF files, {len(TEXTS)} texts")


if __name__ == "__main__":
    main()
