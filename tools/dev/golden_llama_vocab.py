"""Makes tests/golden/llama_vocab.json.gz: small GGUF vocabularies, and what llama.cpp makes of them.

    python -m qwenref.tools.dev.golden_llama_vocab tests/golden/llama_vocab.json.gz

Of each: the file's bytes (gguf-py wrote them), the ids that end an answer (llama_vocab_is_eog), and the ids of texts as
a prompt (BOS and EOS as the file asks) and as a message (control tokens are text).
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from .golden_auto_tokenizer import NORMAL

MERGES = ["l o", "lo w", "Ġ t", "Ġt h", "Ã ©", "< /", "</ s", "</s >"]
USUAL = {"<|endoftext|>": 3, "<|im_start|>": 3, "<|im_end|>": 3, "<tool>": 4}
TEXTS = ["low the lowest é", "a<|im_end|>b", "<tool><|im_start|><unk>€ </s> <0x0A><EOT>", "<|fim_pad|> [EOS]"]


def cases() -> dict[str, tuple[dict[str, int], dict[str, int | bool], list[str]]]:
    """name -> (added tokens with their types, keys of tokenizer.ggml, more merges); an id is counted from the added."""
    eos: dict[str, int | bool] = {"eos_token_id": 2, "bos_token_id": 0, "padding_token_id": 0}
    fim = {"<|fim_prefix|>": 3, "<|fim_pad|>": 3, "<|repo_name|>": 3, "<|file_sep|>": 3}
    harmony = {"<|end|>": 3, "<|return|>": 3, "<|call|>": 3}
    return {
        "usual": (USUAL, eos, []),
        "eos is endoftext": (USUAL, eos | {"eos_token_id": 0}, []),
        "im_end of type 4": (USUAL | {"<|im_end|>": 4}, eos | {"eos_token_id": 0}, []),
        "im_end of type 1": (USUAL | {"<|im_end|>": 1}, eos | {"eos_token_id": 0}, []),
        "no types": ({}, eos, []),
        "eot and eom": (USUAL | {"<e>": 3, "<f>": 3}, eos | {"eot_token_id": 4, "eom_token_id": 5}, []),
        "fill in": (USUAL | fim, eos, []),
        "fill in of type 4": (USUAL | dict.fromkeys(fim, 4), eos, []),
        "fill in by keys": (
            USUAL | fim,
            eos | {"fim_pad_token_id": 4, "fim_rep_token_id": 1, "fim_sep_token_id": 3},
            [],
        ),
        "two of one kind": (USUAL | {"<|fim_pad|>": 3, "<|eot_id|>": 3, "<EOT>": 3, "[EOS]": 1, "<eos>": 4}, eos, []),
        "end that goes on": (USUAL | harmony, eos, []),
        "end that ends": (USUAL | {"<|end|>": 3, "<|call|>": 3}, eos, []),
        "add both": (USUAL, eos | {"add_bos_token": True, "add_eos_token": True}, []),
        "add BOS": (USUAL, eos | {"add_bos_token": True, "add_eos_token": False}, []),
        "add EOS": (USUAL, eos | {"add_eos_token": True}, []),
        "add a space": (USUAL, eos | {"add_space_prefix": True}, []),
        "no ids": (USUAL, eos | {"padding_token_id": -1, "eot_token_id": -1}, []),
        "unknown, unused and byte": (USUAL | {"<unk>": 2, "<pad>": 5, "<0x0A>": 6}, eos, []),
        "one character": (USUAL | {"€": 3}, eos, []),
        "a repeated merge": (USUAL, eos, ["lo w", "l o", "w e", "o w"]),
    }


def write(path: Path, added: dict[str, int], keys: dict[str, int | bool], merges: list[str]) -> int:
    """The GGUF file of a vocabulary without weights; returns the number of its tokens."""
    import gguf

    tokens = [*NORMAL, "</", "</s", "</s>", "we", "ow", *(added or USUAL)]
    first = tokens.index("<|endoftext|>")
    file = gguf.GGUFWriter(path, "qwen2")
    file.add_context_length(64)
    file.add_embedding_length(32)
    file.add_block_count(1)
    file.add_feed_forward_length(32)
    file.add_head_count(1)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("qwen2")
    file.add_token_list(tokens)
    if added:
        file.add_token_types([1] * first + list(added.values()))
    file.add_token_merges([*MERGES, *merges])
    for key, value in keys.items():
        if isinstance(value, bool):
            file.add_bool(f"tokenizer.ggml.{key}", value)
        else:
            file.add_uint32(f"tokenizer.ggml.{key}", 0xFFFFFFFF if value < 0 else first + value)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return len(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", type=Path)
    args = parser.parse_args()

    import llama_cpp

    asked: list[dict[str, Any]] = []
    for name, case in cases().items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocabulary.gguf"
            count = write(path, *case)
            llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
            vocab = llama_cpp.llama_model_get_vocab(llama.model)
            texts = [text.encode() for text in TEXTS]
            asked.append({
                "name": name,
                "file": base64.b64encode(path.read_bytes()).decode(),
                "ends": [i for i in range(count) if llama_cpp.llama_vocab_is_eog(vocab, i)],
                "prompts": [llama.tokenize(text, add_bos=True, special=True) for text in texts],
                "messages": [llama.tokenize(text, add_bos=False, special=False) for text in texts],
                "decoded": [base64.b64encode(llama.detokenize([i], special=True)).decode() for i in range(count)],
            })  # fmt: skip
    golden = {
        "command": "python -m qwenref.tools.dev.golden_llama_vocab tests/golden/llama_vocab.json.gz",
        "versions": {"llama_cpp": llama_cpp.__version__},
        "texts": TEXTS,
        "cases": asked,
    }
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    args.golden.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(asked)} vocabularies")


if __name__ == "__main__":
    main()
