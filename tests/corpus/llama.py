"""llama.cpp, through llama-cpp-python, as the judge of a GGUF file: ids of texts and of continuations.

Its own arithmetic rounds activations (to Q8_0 or Q8_K for quantised weights, to 16 bits for 16-bit weights), the engine
under test in f32 does not. So each continuation is followed by Transformers in float32 too, on the weights as gguf-py
decodes them: it is kept as far as both choose the same id, and Transformers without a tie.
"""

from __future__ import annotations

import ctypes
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from ground import ENDS, STEPS, TEXTS, record, runs
from llama_cpp import llama_cpp as lib

JUDGE = (
    f"llama.cpp of llama-cpp-python {llama_cpp.__version__}, key/value cache F32; and Transformers "
    f"{version('transformers')}, float32, on the weights as gguf-py {version('gguf')} decodes them"
)
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_qkv": "qkv",
}  # fmt: skip


def hugging_face(name: str) -> str:
    """A tensor's name as Transformers has it."""
    *block, role, kind = name.split(".")
    return ".".join(([f"model.layers.{block[1]}"] if block else []) + [NAMES[role], kind])


LOG: list[str] = []
_silent = lib.llama_log_callback(lambda _level, text, _data: LOG.append(text.decode(errors="replace").strip()))
lib.llama_log_set(_silent, ctypes.c_void_p(0))
lib.llama_backend_init()


class Llama:
    """A model in llama.cpp on the CPU."""

    def __init__(self, path: Path, exact: Any) -> None:
        self.exact = exact
        settings = lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(str(path).encode(), settings)
        assert self.model, f"llama.cpp refuses {path}: {[line for line in LOG if line][-3:]}"
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.rows = lib.llama_vocab_n_tokens(self.vocab)

    def encode(self, text: str) -> list[int]:
        data, room = text.encode(), 512
        ids = (lib.llama_token * room)()
        n = lib.llama_tokenize(self.vocab, data, len(data), ids, room, True, True)
        assert n >= 0
        return list(ids[:n])

    def context(self) -> Any:
        p = lib.llama_context_default_params()
        p.n_ctx = p.n_batch = p.n_ubatch = 128
        p.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        p.type_k = p.type_v = 0
        p.n_threads = p.n_threads_batch = 1
        return lib.llama_init_from_model(self.model, p)

    def logits(self, context: Any, ids: list[int], past: int) -> np.ndarray:
        """[V] of the last of the ids."""
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, past + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i + 1 == len(ids)
        status = lib.llama_decode(context, batch)
        lib.llama_batch_free(batch)
        assert not status
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (self.rows,)).copy()

    def go_on(self, prompt: list[int]) -> tuple[list[int], list[float]]:
        """Greedy, until one of llama.cpp's ends of generation; how sure `exact` is of the same ids, 0 if it is not."""
        import torch

        context, past, step = self.context(), 0, prompt
        ids, gaps = list[int](), list[float]()
        while len(ids) < STEPS:
            logits = self.logits(context, step, past)
            past += len(step)
            with torch.no_grad():
                top = self.exact(torch.tensor([prompt + ids])).logits[0, -1].topk(2)
            ids.append(int(logits.argmax()))
            gaps.append(float(top.values[0] - top.values[1]) if int(top.indices[0]) == ids[-1] else 0.0)
            if lib.llama_vocab_is_eog(self.vocab, ids[-1]):
                break
            step = ids[-1:]
        lib.llama_free(context)
        return ids, gaps

    def meta(self, key: str) -> str:
        room = ctypes.create_string_buffer(256)
        assert lib.llama_model_meta_val_str(self.model, key.encode(), room, 256) >= 0, key
        return room.value.decode()


def exact(files: list[Path]) -> Any:
    """Transformers in float32 with the weights as gguf-py decodes them."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    readers = [gguf.GGUFReader(path) for path in files]
    state, said = {}, {}
    for reader in readers:
        said |= {key: field.contents() for key, field in reader.fields.items() if key.startswith("qwen2.")}
        for t in reader.tensors:
            values = gguf.quants.dequantize(t.data, t.tensor_type)
            state[hugging_face(t.name)] = torch.from_numpy(np.array(values, np.float32))
    heads, width = said["qwen2.attention.head_count"], said["qwen2.embedding_length"]
    kv = said["qwen2.attention.head_count_kv"]
    for name in [n for n in state if ".qkv." in n]:
        head = len(state[name]) // (heads + 2 * kv)
        parts = state.pop(name).split([heads * head, kv * head, kv * head])
        state |= {name.replace(".qkv.", f".self_attn.{x}_proj."): part for x, part in zip("qkv", parts, strict=True)}
    tied = "lm_head.weight" not in state
    config = Qwen2Config(
        vocab_size=len(state["model.embed_tokens.weight"]), hidden_size=width, num_attention_heads=heads,
        intermediate_size=said["qwen2.feed_forward_length"], num_hidden_layers=said["qwen2.block_count"],
        num_key_value_heads=kv, tie_word_embeddings=tied,
        head_dim=said.get("qwen2.attention.key_length", width // heads),
        max_position_embeddings=said["qwen2.context_length"], attn_implementation="eager",
        rms_norm_eps=said["qwen2.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": said["qwen2.rope.freq_base"]},
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).float().eval()
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


def judged(files: list[Path]) -> dict[str, Any]:
    """What llama.cpp makes of a GGUF file, or of the parts of one."""
    reference = exact(files)
    m = Llama(files[0], reference)
    special = {i for i in range(m.rows) if lib.llama_vocab_get_attr(m.vocab, i) & lib.LLAMA_TOKEN_ATTR_CONTROL}
    tensors = {t.name: t.tensor_type.name for path in files for t in gguf.GGUFReader(path).tensors}
    keys = {
        "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "max_position_embeddings": "context_length",
    }  # fmt: skip
    config: dict[str, Any] = {name: int(m.meta(f"qwen2.{key}")) for name, key in keys.items()}
    config |= {
        "vocab_size": m.rows,
        "head_dim": reference.config.head_dim,
        "rms_norm_eps": float(m.meta("qwen2.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(m.meta("qwen2.rope.freq_base")),
        "tied": "output.weight" not in tensors,
    }
    return {
        "judge": JUDGE,
        "formats": sorted(set(tensors.values())),
        "config": config,
        "texts": [m.encode(text) for text in TEXTS],
        "runs": runs(m.encode, m.go_on, {m.encode(x)[-1] for x in ENDS if m.encode(x)[-1] in special}),
    }


def expect(root: Path, name: str, maker: str, what: str, path: str | None = None, **more: Any) -> None:
    """Judges a GGUF file (a folder's: all its parts) and records it."""
    place = root / (path or f"{name}.gguf")
    facts: dict[str, Any] = {"maker": maker, "what": what, "path": str(place.relative_to(root))}
    if "refused" not in more:
        parts = sorted(place.parent.glob("*-of-*.gguf")) if "-of-" in place.name else [place]
        facts |= judged(parts)
    record(root, name, **facts | more)


def base(root: Path) -> tuple[list[str], list[int], list[str]]:
    """Tokens, types and merges of the trained tokenizer, its special tokens behind the others."""
    vocab = json.loads((root / "base" / "vocab.json").read_text(encoding="utf-8"))
    merges = (root / "base" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    more = {"<|im_end|>": 3, "<|endoftext|>": 3, "<|im_start|>": 3, "<tool_call>": 4, "</tool_call>": 4}
    return [*vocab, *more], [1] * len(vocab) + list(more.values()), merges
