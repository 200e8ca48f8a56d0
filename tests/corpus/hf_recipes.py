"""The recipes of hf.py, by the version of Transformers that they are for."""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers
from hf import FIVE, STEPS, VERSION, Kitchen, config, continuation, filled, ids_of, judged, model, recipe, rows
from safetensors.torch import load_file, save_file

BF16, F16 = torch.bfloat16, torch.float16


def with_ends(k: Kitchen, m: Any) -> list[int]:
    """<|im_end|> and the fourth id that the model answers with, so that a list of ends is seen to end something."""
    made, _ = continuation(m)(ids_of(k.tokenizer(), "The engine runs"))
    assert len(made) == STEPS
    return [329, made[3]]


def ends_of(t: Any) -> dict[str, int]:
    """A configuration's ids of BOS and EOS, which move when a tokenizer has both."""
    return {"bos_token_id": t.bos_token_id, "eos_token_id": t.eos_token_id}


def generation(m: Any, **more: Any) -> Any:
    m.generation_config = transformers.GenerationConfig(**more)
    return m


def shapes(prefix: str) -> None:
    """The same shapes from each version, for it is the layout of config.json that differs."""

    @recipe(f"{prefix}-f32-fine-untied", "float32 with all bits of the mantissa")
    def _(k: Kitchen) -> None:
        k.save(model("fine", hidden_size=32, intermediate_size=48, num_hidden_layers=1))

    @recipe(f"{prefix}-bf16-tied", "bfloat16, tied head")
    def _(k: Kitchen) -> None:
        k.save(model(tie_word_embeddings=True), dtype=BF16)

    @recipe(f"{prefix}-f16-untied", "float16")
    def _(k: Kitchen) -> None:
        k.save(model(), dtype=F16)

    @recipe(f"{prefix}-theta-1000000", "rope_theta 1000000, as Qwen2.5 has it")
    def _(k: Kitchen) -> None:
        k.save(model(rope_theta=1000000.0), dtype=BF16)

    @recipe(f"{prefix}-bf16-sharded", "four shards and an index")
    def _(k: Kitchen) -> None:
        k.save(model(), dtype=BF16, save={"max_shard_size": "60KB"})


if FIVE:
    shapes("t5")

    @recipe("t5-f32-tied", "float32, tied head")
    def _(k: Kitchen) -> None:
        k.save(model(tie_word_embeddings=True))

    @recipe("t5-f32-tied-sharded", "shards of float32, tied head")
    def _(k: Kitchen) -> None:
        k.save(model(tie_word_embeddings=True), save={"max_shard_size": "100KB"})

    @recipe("t5-theta-500", "rope_theta 500 as an integer")
    def _(k: Kitchen) -> None:
        k.save(model(rope_theta=500), dtype=BF16)
        said = json.loads((k.folder / "config.json").read_text())["rope_parameters"]
        k.edit("config.json", rope_parameters=said | {"rope_theta": 500})

    @recipe("t5-head-dim-24", "head_dim 24 beside 64 / 4 = 16")
    def _(k: Kitchen) -> None:
        k.save(model(head_dim=24), dtype=BF16)

    @recipe("t5-heads-8-of-4", "eight heads of 4 values on hidden 32, one key/value head")
    def _(k: Kitchen) -> None:
        k.save(model(hidden_size=32, num_attention_heads=8, num_key_value_heads=1), dtype=BF16)

    @recipe("t5-mha", "as many key/value heads as query heads")
    def _(k: Kitchen) -> None:
        k.save(model(num_key_value_heads=4), dtype=BF16)

    @recipe("t5-gqa-6-on-2", "six query heads on two")
    def _(k: Kitchen) -> None:
        k.save(model(hidden_size=48, num_attention_heads=6), dtype=BF16)

    @recipe("t5-odd-sizes", "hidden 52, mlp 75, 343 rows, three layers: nothing a multiple of 8")
    def _(k: Kitchen) -> None:
        odd = {"hidden_size": 56, "intermediate_size": 75, "vocab_size": 343, "num_hidden_layers": 3}
        k.save(model(**odd | {"hidden_size": 52, "num_attention_heads": 2, "num_key_value_heads": 1}), dtype=BF16)

    @recipe("t5-five-layers", "five layers of 32")
    def _(k: Kitchen) -> None:
        k.save(model(num_hidden_layers=5, hidden_size=32, intermediate_size=48), dtype=BF16)

    @recipe("t5-eps-1e-5", "rms_norm_eps 1e-5")
    def _(k: Kitchen) -> None:
        k.save(model(rms_norm_eps=1e-5), dtype=BF16)

    @recipe("t5-eps-half", "rms_norm_eps 0.5, large enough to change ids")
    def _(k: Kitchen) -> None:
        k.save(model(rms_norm_eps=0.5), dtype=BF16)

    @recipe("t5-window-unused", "use_sliding_window false beside a window of 16")
    def _(k: Kitchen) -> None:
        k.save(model(), dtype=BF16)
        k.edit("config.json", sliding_window=16, use_sliding_window=False, max_window_layers=1)

    @recipe("t5-window-no-layer", "use_sliding_window true, and max_window_layers past the last layer")
    def _(k: Kitchen) -> None:
        k.save(model(use_sliding_window=True, sliding_window=8, max_window_layers=2), dtype=BF16)

    @recipe("t5-window-active", "an active sliding window")
    def _(k: Kitchen) -> None:
        k.save(model(use_sliding_window=True, sliding_window=8, max_window_layers=1), dtype=BF16)

    @recipe("t5-yarn", "RoPE scaling of type yarn")
    def _(k: Kitchen) -> None:
        rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
        k.save(model(rope_parameters=rope), dtype=BF16)

    @recipe("t5-no-layer-types", "config.json without layer_types")
    def _(k: Kitchen) -> None:
        k.save(model(), dtype=BF16)
        k.edit("config.json", layer_types=None)

    @recipe("t5-both-thetas", "rope_parameters, and rope_theta of the same value beside it")
    def _(k: Kitchen) -> None:
        k.save(model(), dtype=BF16)
        k.edit("config.json", rope_theta=10000.0)

    @recipe("t5-no-tokenizer", "weights and config.json alone")
    def _(k: Kitchen) -> None:
        k.save(model(), None, BF16)

    @recipe("t5-no-generation-config", "generation_config.json taken away")
    def _(k: Kitchen) -> None:
        k.save(model(), dtype=BF16)
        (k.folder / "generation_config.json").unlink()

    @recipe("t5-ends", "a list of two ends in generation_config.json, one of which the model answers with")
    def _(k: Kitchen) -> None:
        m = model()
        k.save(generation(m, eos_token_id=with_ends(k, m), pad_token_id=330, do_sample=True, top_p=0.8), dtype=BF16)

    @recipe("t5-ends-in-config", "a list of two ends in config.json, no generation_config.json")
    def _(k: Kitchen) -> None:
        m = model()
        k.save(m, dtype=BF16)
        k.edit("config.json", eos_token_id=with_ends(k, m))
        (k.folder / "generation_config.json").unlink()

    @recipe("t5-resized", "three tokens added, resize_token_embeddings to 355")
    def _(k: Kitchen) -> None:
        m, t = model(vocab_size=334), k.tokenizer()
        t.add_tokens(["<think>", "</think>"])
        t.add_tokens([transformers.AddedToken("<|fim|>", special=True)], special_tokens=True)
        m.resize_token_embeddings(len(t), mean_resizing=False)
        k.save(filled(m), t, BF16)

    @recipe("t5-resized-to-128", "resize_token_embeddings with pad_to_multiple_of 128")
    def _(k: Kitchen) -> None:
        m = model(vocab_size=334)
        m.resize_token_embeddings(334, pad_to_multiple_of=128, mean_resizing=False)
        k.save(filled(m), dtype=BF16)

    @recipe("t5-exact-rows", "as many rows as tokens")
    def _(k: Kitchen) -> None:
        k.save(model(vocab_size=334), dtype=BF16)

    @recipe("t5-bos-template", "a tokenizer whose post-processor puts BOS first")
    def _(k: Kitchen) -> None:
        from tokenizers.processors import TemplateProcessing

        t = k.tokenizer(bos_token="<|endoftext|>")
        t.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", pair=None, special_tokens=[("<|endoftext|>", t.bos_token_id)]
        )
        k.save(model(**ends_of(t)), t, BF16)

    @recipe("t5-bos-eos-template", "a post-processor that puts BOS first and EOS last")
    def _(k: Kitchen) -> None:
        from tokenizers.processors import TemplateProcessing

        t = k.tokenizer(bos_token="<|endoftext|>")
        t.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A <|im_end|>", pair=None,
            special_tokens=[("<|endoftext|>", t.bos_token_id), ("<|im_end|>", t.eos_token_id)],
        )  # fmt: skip
        k.save(model(**ends_of(t)), t, BF16)

    @recipe("t5-add-bos-said", "add_bos_token true in tokenizer_config.json, nothing in tokenizer.json")
    def _(k: Kitchen) -> None:
        t = k.tokenizer(bos_token="<|endoftext|>")
        k.save(model(**ends_of(t)), t, BF16)
        k.edit("tokenizer_config.json", add_bos_token=True)

    @recipe("t5-chat-in-config", "the chat template inside tokenizer_config.json")
    def _(k: Kitchen) -> None:
        t = k.tokenizer()
        k.save(model(), None, BF16)
        t.save_pretrained(k.folder, save_jinja_files=False)

    @recipe("t5-mixed-dtypes", "norms and biases float32, matrices bfloat16")
    def _(k: Kitchen) -> None:
        m = k.save(model(), dtype=BF16) / "model.safetensors"
        tensors = {n: (w.float() if w.dim() == 1 else w) for n, w in load_file(m).items()}
        save_file(tensors, m, {"format": "pt"})

    @recipe("t5-no-metadata", "safetensors' save_file without __metadata__", maker="safetensors")
    def _(k: Kitchen) -> None:
        m = k.save(model(), dtype=BF16) / "model.safetensors"
        save_file(load_file(m), m)

    @recipe("t5-old-inv-freq", "rotary tables of old conversions stored beside the weights", maker="safetensors")
    def _(k: Kitchen) -> None:
        m = k.save(model(), dtype=BF16) / "model.safetensors"
        table = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
        more = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": table.clone() for i in (0, 1)}
        save_file(load_file(m) | more, m, {"format": "pt"})

    @recipe("t5-tied-head-stored", "a tied head stored as a second tensor of the same bytes", maker="safetensors")
    def _(k: Kitchen) -> None:
        m = k.save(model(tie_word_embeddings=True), dtype=BF16) / "model.safetensors"
        tensors = load_file(m)
        save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, m, {"format": "pt"})

    @recipe("t5-tied-head-f32", "a tied head stored again in float32 beside bfloat16", maker="safetensors")
    def _(k: Kitchen) -> None:
        m = k.save(model(tie_word_embeddings=True), dtype=BF16) / "model.safetensors"
        tensors = load_file(m)
        save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].float()}, m, {"format": "pt"})

    @recipe("t5-other-names", "weights in shards of other names, the index in another order", maker="safetensors")
    def _(k: Kitchen) -> None:
        m = k.save(model(), dtype=BF16) / "model.safetensors"
        tensors = sorted(load_file(m).items(), reverse=True)
        m.unlink()
        parts = {"a.safetensors": dict(tensors[::2]), "b b.safetensors": dict(tensors[1::2])}
        for name, part in parts.items():
            save_file(part, k.folder / name, {"format": "pt"})
        index = {n: name for name, part in parts.items() for n in part}
        (k.folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))

    @recipe("t5-hub-cache", "the hub's cache: links into blobs", path="models--q--t5-hub-cache/snapshots/0123abcd")
    def _(k: Kitchen) -> None:
        k.save(model(), dtype=BF16)
        cache = k.root / "models--q--t5-hub-cache"
        (cache / "blobs").mkdir(parents=True)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("0123abcd")
        snapshot = cache / "snapshots" / "0123abcd"
        snapshot.mkdir(parents=True)
        for n, file in enumerate(sorted(k.folder.iterdir())):
            file.rename(cache / "blobs" / f"{n:040x}")
            (snapshot / file.name).symlink_to(f"../../blobs/{n:040x}")
        k.folder.rmdir()

    @recipe("t5-hub-cache-above", "the folder above its one snapshot", path="models--q--t5-hub-cache")
    def _(k: Kitchen) -> dict[str, Any]:
        k.folder.rmdir()
        return judged(k.root / "models--q--t5-hub-cache" / "snapshots" / "0123abcd")

    @recipe(
        "t5-compiled", "the state dict of a model under torch.compile: `_orig_mod.`", maker="torch.compile, safetensors"
    )
    def _(k: Kitchen) -> dict[str, Any]:
        m = model().to(BF16)
        facts = judged(k.save(m))
        compiled = torch.compile(m)
        save_file({n: w.contiguous() for n, w in compiled.state_dict().items()}, k.folder / "model.safetensors")
        return facts

    @recipe("t5-base-model", "Qwen2Model, without a head")
    def _(k: Kitchen) -> dict[str, Any]:
        return rows(k.save(filled(transformers.Qwen2Model(config())), dtype=BF16))

    @recipe("t5-classifier", "Qwen2ForSequenceClassification")
    def _(k: Kitchen) -> dict[str, Any]:
        m = transformers.Qwen2ForSequenceClassification(config(num_labels=2))
        with torch.no_grad():
            m.score.weight.fill_(0.5)
        m.model = filled(m.model)
        return rows(k.save(m, dtype=BF16))

    def peft_model(m: Any, **more: Any) -> Any:
        """A LoRA of rank 4 whose factors are not zero."""
        import peft

        wrapped = peft.get_peft_model(m, peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **more))
        with torch.no_grad():
            for name, p in wrapped.named_parameters():
                if "lora_" in name:
                    ramp = torch.arange(p.numel()).reshape(p.shape)
                    p.copy_(((ramp * 7919 % 13) - 6) / 64)
        return wrapped

    def peft_version() -> str:
        import peft

        return f"PEFT {peft.__version__}"

    LORA = {"target_modules": ["q_proj", "v_proj", "down_proj"]}

    @recipe("peft-merged", "merge_and_unload of a LoRA", maker=peft_version())
    def _(k: Kitchen) -> None:
        k.save(peft_model(model(), **LORA).merge_and_unload(), dtype=BF16)

    @recipe("peft-merged-saved-modules", "a LoRA with its own embedding and head, merged", maker=peft_version())
    def _(k: Kitchen) -> None:
        wrapped = peft_model(model(), **LORA, modules_to_save=["embed_tokens", "lm_head"])
        with torch.no_grad():
            wrapped.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
        k.save(wrapped.merge_and_unload(), dtype=BF16)

    @recipe("peft-adapter", "the adapter alone", maker=peft_version(), refused=("adapter|LoRA", "merge"))
    def _(k: Kitchen) -> None:
        m = model().to(BF16)
        m.config._name_or_path = m.name_or_path = "base-model"
        peft_model(m, **LORA).save_pretrained(k.folder)
        k.tokenizer().save_pretrained(k.folder)

    @recipe("peft-unmerged", "a state dict with the LoRA still beside its weights", maker=peft_version(),
            refused=("lora|LoRA", "merge"))  # fmt: skip
    def _(k: Kitchen) -> None:
        m = model().to(BF16)
        k.save(m)
        state = peft_model(m, **LORA).state_dict()
        save_file({n: w.contiguous() for n, w in state.items()}, k.folder / "model.safetensors", {"format": "pt"})

else:
    four = "t446" if VERSION.startswith("4.46") else "t457"
    shapes(four)

    @recipe(f"{four}-slow-tokenizer", "vocab.json and merges.txt, no tokenizer.json")
    def _(k: Kitchen) -> None:
        k.save(model(), k.tokenizer(fast=False), BF16)
        assert not (k.folder / "tokenizer.json").exists()

    @recipe(f"{four}-seed-1", "other weights of the same shapes")
    def _(k: Kitchen) -> None:
        k.save(model(seed=1), dtype=BF16)

    @recipe(f"{four}-legacy-format", "the fast tokenizer saved with legacy_format: vocab.json and merges.txt")
    def _(k: Kitchen) -> None:
        k.save(model(), None, BF16)
        k.tokenizer().save_pretrained(k.folder, legacy_format=True)

    @recipe(f"{four}-tied-head-kept", "a tied model saved from a state dict that holds both names")
    def _(k: Kitchen) -> None:
        m = model(tie_word_embeddings=True).to(BF16)
        k.save(m)
        save_file({n: w.clone() for n, w in m.state_dict().items()}, k.folder / "model.safetensors", {"format": "pt"})

    @recipe(f"{four}-deepseek-tokenizer", "LlamaTokenizerFast over Qwen2's vocabulary, as the R1 distills have it")
    def _(k: Kitchen) -> None:
        distilled(k)

    def distilled(k: Kitchen) -> None:
        names = [f"<｜{x}｜>" for x in ("end▁of▁sentence", "User", "Assistant", "begin▁of▁sentence")]
        qwen = k.tokenizer(
            eos_token=names[0], pad_token=names[0], unk_token=None, additional_special_tokens=[names[3]],
            added=[*names[1:3], "<think>", "</think>"], chat_template=None,
        )  # fmt: skip
        qwen.save_pretrained(k.folder)
        for file in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
            (k.folder / file).unlink(missing_ok=True)
        chat = (
            "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
            "{% elif m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'] + '<｜end▁of▁sentence｜>' }}"
            "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
        )
        token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        settings = {
            "add_bos_token": True, "add_eos_token": False, "bos_token": token | {"content": names[3]},
            "clean_up_tokenization_spaces": False, "eos_token": token | {"content": names[0]}, "legacy": True,
            "model_max_length": 16384, "pad_token": token | {"content": names[0]}, "sp_model_kwargs": {},
            "unk_token": None, "tokenizer_class": "LlamaTokenizerFast", "chat_template": chat,
        }  # fmt: skip
        (k.folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False))
        bos = qwen.convert_tokens_to_ids(names[3])
        end = qwen.convert_tokens_to_ids(names[0])
        k.save(model(bos_token_id=bos, eos_token_id=end), None, BF16)

    @recipe(f"{four}-deepseek-resaved", "the same after AutoTokenizer.from_pretrained and save_pretrained")
    def _(k: Kitchen) -> None:
        distilled(k)
        t = transformers.AutoTokenizer.from_pretrained(k.folder)
        t.save_pretrained(k.folder)

    @recipe(f"{four}-added-tokens", "added tokens, special and not, that overlap one another")
    def _(k: Kitchen) -> None:
        special = transformers.AddedToken("<|fim_prefix|>", special=True, normalized=False)
        added = ["<tool_call>", "</tool_call>", "<tool", special, "the-end", "<|not_special|>"]
        k.save(model(), k.tokenizer(added=added), BF16)

    @recipe(f"{four}-ends", "a list of two ends in generation_config.json, one of which the model answers with")
    def _(k: Kitchen) -> None:
        m = model()
        more = {"do_sample": True, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.0}
        k.save(generation(m, eos_token_id=with_ends(k, m), bos_token_id=330, pad_token_id=330, **more), dtype=BF16)

    @recipe(f"{four}-window-unused", "use_sliding_window false beside sliding_window and max_window_layers")
    def _(k: Kitchen) -> None:
        k.save(model(use_sliding_window=False, sliding_window=16, max_window_layers=1), dtype=BF16)

    @recipe(f"{four}-pickled", "pytorch_model.bin", refused=("pytorch_model.bin", "convert it to safetensors"))
    def _(k: Kitchen) -> None:
        k.save(model(hidden_size=32, intermediate_size=32), dtype=BF16, save={"safe_serialization": False})

    @recipe(f"{four}-yarn", "rope_scaling of type yarn")
    def _(k: Kitchen) -> None:
        scaling = {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
        k.save(model(rope_scaling=scaling), dtype=BF16)

    @recipe(f"{four}-two-templates", "chat templates by name, the one named default among them")
    def _(k: Kitchen) -> None:
        t = k.tokenizer()
        t.chat_template = {"default": t.chat_template, "tool_use": "{{ messages[0].content }}"}
        k.save(model(), t, BF16)

    @recipe(f"{four}-no-template", "a tokenizer without a chat template, ends with <|endoftext|>")
    def _(k: Kitchen) -> None:
        t = k.tokenizer(eos_token="<|endoftext|>", chat_template=None)
        k.save(model(**ends_of(t) | {"bos_token_id": t.eos_token_id}), t, BF16)
