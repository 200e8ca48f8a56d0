"""Models that Hugging Face's tools make: Transformers 4 and 5, PEFT, torch.compile, safetensors; and edits by hand.

    python hf.py FOLDER [NAME ...]
    python hf.py FOLDER --again

Runs in the Python of whichever Transformers is to make them, and makes the recipes meant for that version; 5 first, for
it trains the tokenizer. Each model is then loaded from disk by that same Transformers, in float32 and eager, which
gives the ids it is held to. --again: Transformers 5 reads what 4 has made; where they disagree, 5 is right.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}

import torch
import transformers
from ground import CHAT, ENDS, NFD, PROMPTS, SENTENCES, STEPS, TEMPLATE, TEXTS, record, runs, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

VERSION = transformers.__version__
FIVE = VERSION.startswith("5.")
MAKER = f"Transformers {VERSION}"

SIZES = {
    "vocab_size": 352, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False, "rope_theta": 10000.0,
    "eos_token_id": 329,
}  # fmt: skip
FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip


def config(**more: Any) -> Qwen2Config:
    """Qwen2's configuration at SIZES, but for what is said; rope_theta where this version has it."""
    said = SIZES | more
    if FIVE:
        theta = said.pop("rope_theta")
        said.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": theta})
    return Qwen2Config(**said)


def filled(m: Any, kind: str = "coarse", seed: int = 0) -> Any:
    """The model with the weights of ground.weights."""
    with torch.no_grad():
        for name, p in m.named_parameters():
            p.copy_(torch.from_numpy(weights(name if "." in name else f"{name}.x", p.shape, kind, seed)))
    return m.float().eval()


def model(kind: str = "coarse", seed: int = 0, **more: Any) -> Any:
    """A Qwen2ForCausalLM in float32."""
    return filled(Qwen2ForCausalLM(config(**more)), kind, seed)


def train(folder: Path) -> None:
    """vocab.json and merges.txt of 329 tokens, by the tokenizer's own training; special tokens come behind them."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    new = transformers.Qwen2Tokenizer(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    trained = json.loads(new.train_new_from_iterator(SENTENCES, vocab_size=330).backend_tokenizer.to_str())["model"]
    tokens = [*alphabet, *dict.fromkeys(a + b for a, b in trained["merges"])]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    merges = "".join(f"{a} {b}\n" for a, b in trained["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")


@dataclass
class Kitchen:
    """What a recipe works with."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """Where the model goes."""
        return self.root / self.name

    def tokenizer(self, fast: bool = True, **more: Any) -> Any:
        """Qwen2's own class over the trained vocabulary: 329 <|im_end|>, 330 <|endoftext|>, 331 <|im_start|>, then two
        that are not special."""
        said: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | more
        files = [str(self.root / "base" / name) for name in ("vocab.json", "merges.txt")]
        chat = said.pop("chat_template", TEMPLATE)
        added = said.pop("added", ["<tool_call>", "</tool_call>"])
        if FIVE:
            vocab = json.loads(Path(files[0]).read_text(encoding="utf-8"))
            lines = Path(files[1]).read_text(encoding="utf-8").splitlines()[1:]
            said |= {"vocab": vocab, "merges": [tuple(line.split(" ")) for line in lines]}
            cls, first = transformers.Qwen2Tokenizer, "extra_special_tokens"
        else:
            said |= {"vocab_file": files[0], "merges_file": files[1]}
            cls = transformers.Qwen2TokenizerFast if fast else transformers.Qwen2Tokenizer
            first = "additional_special_tokens"
        t = cls(**{first: ["<|im_start|>"]} | said)
        t.add_tokens([transformers.AddedToken(x, normalized=False) if isinstance(x, str) else x for x in added])
        t.chat_template = chat
        return t

    def save(self, m: Any, t: Any = "the usual", dtype: Any = None, save: dict[str, Any] | None = None) -> Path:
        """save_pretrained of a model and a tokenizer, which agree about the end."""
        (m.to(dtype) if dtype else m).save_pretrained(self.folder, **(save or {}))
        if t is not None:
            t = self.tokenizer() if t == "the usual" else t
            assert m.config.eos_token_id == t.eos_token_id, (self.name, m.config.eos_token_id, t.eos_token_id)
            t.save_pretrained(self.folder)
        return self.folder

    def edit(self, file: str, **more: Any) -> None:
        """Fields of a JSON file set; None takes one away."""
        path = self.folder / file
        data = json.loads(path.read_text(encoding="utf-8")) | more
        data = {key: value for key, value in data.items() if value is not None}
        path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Recipe:
    """A model's name, what is special about it, how it is made; refused: what the one line must hold, if it must not
    run. make: returns what was judged before Transformers could no longer open it; None has it judged from disk."""

    name: str
    what: str
    make: Callable[[Kitchen], dict[str, Any] | None]
    refused: tuple[str, ...] = ()
    path: str = ""
    maker: str = ""


RECIPES: list[Recipe] = []


def recipe(name: str, what: str, **more: Any) -> Callable[[Callable[[Kitchen], Any]], Any]:
    return lambda make: RECIPES.append(Recipe(name, what, make, **more))


# -------------------------------------------------------------------------------------------------- judged from disk


def continuation(m: Any) -> Callable[[list[int]], tuple[list[int], list[float]]]:
    """`generate` of Transformers, greedy, with the distances of the two largest logits."""

    def go_on(prompt: list[int]) -> tuple[list[int], list[float]]:
        made = m.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=STEPS, return_dict_in_generate=True, output_logits=True, pad_token_id=0,
            temperature=None, top_p=None, top_k=None,
        )  # fmt: skip
        tops = [logits[0].float().topk(2).values for logits in made.logits]
        return made.sequences[0, len(prompt) :].tolist(), [float(top[0] - top[1]) for top in tops]

    return go_on


def ids_of(t: Any, text: str) -> list[int]:
    return list(t(text)["input_ids"])


def theta_of(c: Any) -> float:
    return float((getattr(c, "rope_parameters", None) or {}).get("rope_theta") or c.rope_theta)


def judged(folder: Path, borrowed: Any = None) -> dict[str, Any]:
    """What this Transformers makes of a folder: configuration, ids of texts, of a chat, of continuations.

    borrowed: the tokenizer that prompts are made with where the folder has none.
    """
    m = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", **{"dtype" if FIVE else "torch_dtype": torch.float32}
    ).eval()
    assert m.dtype == torch.float32
    t = None if borrowed else AutoTokenizer.from_pretrained(folder)
    c, vocabulary = m.config, (t or borrowed).get_vocab()
    facts: dict[str, Any] = {
        "judge": f"{MAKER}, float32, eager",
        "config": {name: getattr(c, name) for name in FIELDS}
        | {
            "head_dim": getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
            "rope_theta": theta_of(c),
            "tied": m.get_output_embeddings().weight.data_ptr() == m.get_input_embeddings().weight.data_ptr(),
        },
        "runs": runs(
            lambda text: ids_of(t or borrowed, text), continuation(m), {vocabulary[x] for x in ENDS if x in vocabulary}
        ),
    }
    if t is not None:
        facts["texts"] = [ids_of(t, text) for text in TEXTS]
        facts["nfd"] = ids_of(t, NFD)
        if t.chat_template:
            chat = t.apply_chat_template(list(CHAT), tokenize=False, add_generation_prompt=True)
            facts["chat"] = t(chat, add_special_tokens=False)["input_ids"]
    return facts


def rows(folder: Path) -> dict[str, Any]:
    """What this Transformers makes of a folder without logits of a next token: of each of two prompts the last row of
    the final norm, or the scores."""
    classes = transformers.AutoConfig.from_pretrained(folder).architectures
    scored = classes[0].endswith("ForSequenceClassification")
    auto = transformers.AutoModelForSequenceClassification if scored else transformers.AutoModel
    m, t = auto.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in PROMPTS[:2]:
        with torch.no_grad():
            out = m(torch.tensor([ids_of(t, text)]))
        row = out.logits[0] if scored else out.last_hidden_state[0, -1]
        values = [float(f"{x:.9g}") for x in row.tolist()]
        found.append({"text": text, "prompt_ids": ids_of(t, text), "values": values})
    return {"judge": f"{MAKER}, float32", "rows": found}


def make(root: Path, r: Recipe) -> None:
    k = Kitchen(root, r.name)
    k.folder.mkdir(parents=True)
    found = r.make(k)
    facts: dict[str, Any] = {"maker": r.maker or MAKER, "what": r.what, "path": r.path or r.name}
    if r.refused:
        facts["refused"] = list(r.refused)
    else:
        folder = root / facts["path"]
        has = any((folder / n).exists() for n in ("tokenizer.json", "vocab.json"))
        facts |= found or judged(folder, None if has else k.tokenizer())
    record(root, r.name, **facts)


def again(root: Path) -> None:
    """What this Transformers makes of the others' folders, in place of their own word where it is not the same."""
    for path in sorted(root.glob("*.expected.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        folder = root / facts["path"]
        if (
            facts["maker"] == MAKER
            or not facts["maker"].startswith("Transformers")
            or not facts.keys().isdisjoint({"refused", "rows"})
        ):
            continue
        mine = judged(folder)
        if any(mine.get(key) != facts.get(key) for key in ("texts", "nfd", "chat", "config", "runs")):
            record(root, **facts | mine | {"judge": f"{mine['judge']}; {facts['maker']} finds other ids"})


def main() -> None:
    import hf_recipes  # its decorators fill RECIPES

    assert hf_recipes
    root, *names = sys.argv[1:]
    folder = Path(root)
    if names == ["--again"]:
        return again(folder)
    if FIVE and not (folder / "base").exists():
        train(folder / "base")
    for r in RECIPES:
        if not names or r.name in names:
            make(folder, r)


if __name__ == "__main__":
    sys.modules["hf"] = sys.modules["__main__"]
    main()
