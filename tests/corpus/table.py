"""The corpus as docs/corpus.md has it."""

from __future__ import annotations

from collections import Counter
from typing import Any

HEAD = """# A corpus of model files that other tools made

{count} small Qwen2 models, {runs} to run and {refused} to refuse, made by
{makers}.

`tests/engine/files/test_corpus.py` unpacks them (`tests/corpus/models.tar.xz`) and holds the engine to what their
makers said (`tests/corpus/expected.json`). It opens each, finds the maker's token ids of {texts} texts and of a chat,
answers with the maker's own greedy ids, inspects it with `--check`, finds the maker's configuration, and converts it to
GGUF, APR, safetensors and GGUF again without a change of any id. Of a model that does not end in logits the rows or
scores are compared instead. Those to refuse end in one line, exit status 2.

Weights are random but seeded, of a size that attention and rotary embedding decide the answer. An id counts only where
the maker is sure: its two largest logits are at least {gap} apart in float32. The judge of a file is the tool that
made it.
- Of GGUF it is llama.cpp, as far as Transformers in float32, on the weights that gguf-py decodes, answers the same:
  llama.cpp rounds activations, `--precision f32` does not. llama.cpp has no Unicode normaliser, so the one text that
  NFC changes is asked of Transformers and MLX alone.
- Transformers 5 has the last word on the folders of Transformers 4 where the two do not find the same ids.
- An answer is followed up to the first token that ends it for one tool and not for another, such as `<|endoftext|>`,
  which ends it for llama.cpp wherever it is, for Transformers where generation_config.json says so.

`python tests/corpus/make.py` makes all of it anew, this page too; it says which tools it needs.

| model | made by | what is special | bytes | result |
|---|---|---|---:|---|
"""


def result(m: dict[str, Any]) -> str:
    if "refused" in m:
        return "refused: " + ", ".join(f"`{word}`" for word in m["refused"]).replace("|", "` or `")
    if "rows" in m:
        return f"{len(m['rows'])} vectors of {len(m['rows'][0]['values'])} values"
    ids = sum(len(run["ids"]) for run in m["runs"])
    return f"{ids} ids" + (f" in {len(m['runs'])} answers" if len(m["runs"]) > 1 else " in one answer")


def special(m: dict[str, Any]) -> str:
    return m["what"] + (f"; {', '.join(m['formats'])}" if "formats" in m else "")


def render(expected: dict[str, Any]) -> str:
    """The page, from expected.json."""
    models = expected["models"]
    makers = Counter(m["maker"].split(" --")[0] for m in models)
    refused = sum("refused" in m for m in models)
    head = HEAD.format(
        count=len(models), runs=len(models) - refused, refused=refused, texts=len(expected["texts"]) + 1,
        makers=",\n".join(f"{maker} ({n})" for maker, n in sorted(makers.items())), gap=expected["gap"],
    )  # fmt: skip
    rows = (f"| {m['name']} | {m['maker']} | {special(m)} | {m['bytes']:,} | {result(m)} |\n" for m in models)
    return head + "".join(rows)
