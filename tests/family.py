"""Which models open from which containers, and how near Transformers they then are: docs/family.md.

    python -P -m qwenref.tests.family docs/family.md
    python -P -m qwenref.tests.family - 'qwen2, tied' llama

(the second prints the rows of some models) needs torch and transformers (`make oracle`): each architecture's small
random model is run by Transformers as it is installed, and by this engine out of each container. Quantised folders come
from tests/golden/quantised.safetensors, with what Transformers computed of them then.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qwenref import load
from qwenref.engine.config import kind_of
from qwenref.engine.files import open_checkpoint
from qwenref.engine.generate import generate
from qwenref.engine.kernels import backend
from qwenref.engine.load import open_weights
from qwenref.engine.models.heads import NONE, POOLINGS
from qwenref.engine.models.vision import find_vision
from qwenref.tools.dev.golden_config import IDS
from qwenref.tools.dev.golden_embed import IDS as TEXT
from qwenref.tools.dev.golden_embed import MODELS as HEADS
from qwenref.tools.dev.golden_embed import asked, write_model
from qwenref.tools.dev.golden_family import MODELS, PASSES, SIZES, loaded, write_family
from qwenref.tools.main import main as engine
from qwenref.trace.sources import open_dump
from qwenref.trace.verify.finding import EXACT, REPRODUCED
from qwenref.trace.verify.verify import verify

from .engine.files.test_quantised import MODELS as QUANTISED
from .engine.files.test_quantised import model
from .oracle.test_family import by_gguf_py
from .tiny import collect, relative

QWEN2 = SIZES | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
RELEASES: Mapping[str, str] = {
    "qwen2": "Qwen2, Qwen2.5, Qwen2.5-Coder, QwQ, DeepSeek-R1-Distill-Qwen",
    "qwen3": "Qwen3, dense",
    "llama": "Llama 2 and 3, TinyLlama, SmolLM2, DeepSeek-R1-Distill-Llama",
    "mistral": "Mistral 7B, Mistral Nemo",
    "qwen2_vl": "Qwen2-VL, its text part",
    "qwen2_5_vl": "Qwen2.5-VL, its text part",
    "qwen3_vl": "Qwen3-VL, its text part",
}
OWN = ("ForRewardModel", "ForProcessRewardModel")  # by code of Qwen's, which Transformers has not
ENDS = {
    NONE: "gte-Qwen2, Qwen3-Embedding",
    "ForSequenceClassification": "classifiers, rerankers, reward models",
    "ForTokenClassification": "taggers, process reward models of TRL's",
    "ForRewardModel": "Qwen2.5-Math-RM",
    "ForProcessRewardModel": "Qwen2.5-Math-PRM",
}
CONTAINERS = ("safetensors", "GGUF", "APR")
DUMPS = {"float32": (), "bfloat16": (), "bfloat16, hooks": ("--hooks-only",)}
COUNT = 12  # ids of an answer


@dataclass(frozen=True)
class Row:
    """ids: how many of an answer are Transformers'. stages: the worst relative error of one in float64, and how many
    there are. judged: stages of Transformers' dumps that are explained, of those that are judged."""

    release: str
    model: str
    container: str
    ids: str
    stages: str
    judged: str

    @property
    def line(self) -> str:
        cells = (self.release, self.model, self.container, self.ids, self.stages, self.judged, f"`- '{self.model}'`")
        return f"| {' | '.join(cells)} |"


def said(*words: str | Path) -> None:
    """A command, quiet; it must end well."""
    with contextlib.redirect_stderr(io.StringIO()) as why, contextlib.redirect_stdout(io.StringIO()):
        status = engine([str(w) for w in words])
    if status:
        raise SystemExit(f"{words}: {why.getvalue()}")


def truth(folder: Path) -> tuple[list[int], list[Any]]:
    """Transformers' greedy answer in float32, and every stage of the passes in float64."""
    import torch

    from qwenref.tools.dev.golden_rope import exact_powers, stages_of
    from qwenref.tools.dump_hf import cast_weights

    with exact_powers():
        it, text = loaded(folder)
        ids = it.generate(torch.tensor([IDS]), max_new_tokens=COUNT, do_sample=False, eos_token_id=None)
        cast_weights(it, "float64")
        return ids[0, len(IDS) :].tolist(), stages_of(text, *PASSES)


def in_containers(folder: Path, place: Path) -> Iterator[tuple[str, Path]]:
    """The model as each container has it, by `engine convert`; one that sees also in GGUF by gguf-py, as llama.cpp's
    converter names it."""
    yield "safetensors", folder
    sees = find_vision(json.loads((folder / "config.json").read_text("utf-8"))["model_type"])
    if sees is not None:
        yield f"GGUF, {sees.gguf}", by_gguf_py(folder, place / "sees.gguf")
    for name in ("gguf", "apr"):
        made = place / f"made.{name}"
        said("convert", folder, made)
        yield name.upper(), made


def of_architectures(wanted: Collection[str]) -> Iterator[Row]:
    from qwenref.tools.dev.golden_stages import key

    models = {"qwen2": QWEN2, "qwen2, tied": QWEN2 | {"tie_word_embeddings": True}} | MODELS
    for name, config in models.items():
        if wanted and name not in wanted:
            continue
        with TemporaryDirectory() as at:
            place = Path(at)
            (place / "model").mkdir()
            write_family(place / "model", config)
            ids, stages = truth(place / "model")
            dumps = []
            for dtype, words in DUMPS.items():
                dump = place / f"dump {dtype}"
                what = ("--tokens", ",".join(map(str, IDS)), "--dtype", dtype.split(",")[0], "--decode-steps", "2")
                said("dump-hf", place / "model", dump, *what, *words)
                dumps.append(dump)
            for container, path in in_containers(place / "model", place):
                w = open_weights(path).weights
                k = backend("cpu")
                own = list(generate(IDS, k.prepare(w, "f32"), k, "f32", COUNT))
                found = {
                    f"{n}/{key(layer, stage)}": x
                    for n, kept in enumerate(collect(w, "reference", "f64", *PASSES))
                    for (stage, layer), x in kept.items()
                }
                if found.keys() != stages.keys():
                    raise SystemExit(f"{name}: other stages: {found.keys() ^ stages.keys()}")
                worst = max(relative(stages[at], found[at].reshape(stages[at].shape)) for at in stages)
                verdicts = [f.verdict for dump in dumps for f in verify(open_dump(dump), w).findings]
                good = sum(v in (EXACT, REPRODUCED) for v in verdicts)
                same = sum(a == b for a, b in zip(own, ids, strict=True))
                release = RELEASES[config["model_type"]]
                yield Row(
                    release, name, container, f"{same} of {COUNT}", f"{worst:.0e} of {len(stages)}",
                    f"{good} of {len(verdicts)}",
                )  # fmt: skip


def of_other_heads(wanted: Collection[str]) -> Iterator[Row]:
    """Embedding models, classifiers and reward models. stages: the worst error of vectors and scores."""
    for name, config in HEADS.items():
        if wanted and name not in wanted:
            continue
        with TemporaryDirectory() as at:
            place = Path(at)
            (place / "model").mkdir()
            write_model(place / "model", config)
            kind = kind_of(config)
            true, dumps = asked(place / "model", kind), []
            for dtype, words in DUMPS.items() if kind not in OWN else ():
                what = ("--tokens", ",".join(map(str, TEXT)), "--dtype", dtype.split(",")[0])
                said("dump-hf", place / "model", place / dtype, *what, *words)
                dumps.append(place / dtype)
            paths = {"safetensors": place / "model"}
            if kind == NONE:
                said("convert", place / "model", place / "made.gguf")
                paths["GGUF"] = place / "made.gguf"
            for container, path in paths.items():
                m = load(path, backend="reference", precision="f64")
                found = {way: m.embed(list(TEXT), pooling=way) for way in POOLINGS}
                if kind != NONE:
                    found["scores"] = m.score(list(TEXT))
                worst = max(relative(true[what], x) for what, x in found.items())
                verdicts = [f.verdict for dump in dumps for f in verify(open_dump(dump), m.opened.weights).findings]
                good = sum(v in (EXACT, REPRODUCED) for v in verdicts)
                judged = f"{good} of {len(verdicts)}" if verdicts else ""
                yield Row(ENDS[kind], name, container, "", f"{worst:.0e} ({', '.join(found)})", judged)


def of_quantised(wanted: Collection[str]) -> Iterator[Row]:
    for name in QUANTISED:
        if wanted and name.removeprefix("model ") not in wanted:
            continue
        with TemporaryDirectory() as at:
            path, logits_TV, tokens = model(name, Path(at) / "m")
            w = open_weights(path).weights
            (exact,) = collect(w, "reference", "f64", tokens)
            (fast,) = collect(w, "cpu", "f32", tokens)
            same = int(fast["lm_head", None].argmax()) == int(logits_TV[-1].argmax())
            off = relative(logits_TV[-1], exact["lm_head", None])
            yield Row(
                RELEASES["qwen2"], name.removeprefix("model "), open_checkpoint(path).container,
                f"{int(same)} of 1", f"{off:.0e} (logits)", "",
            )  # fmt: skip


HEAD = """# The family: releases and containers

Each architecture's small random model, run by Transformers {transformers} (torch {torch}) and by this engine out of
each container, into which `engine convert` brought it; of one that sees also in GGUF as gguf-py names it. Quantised
folders are as their own libraries wrote them (tools/dev/golden_quantised.py). Written by `python -P -m
qwenref.tests.family docs/family.md`; a row again by that command with what its last column says in place of the file.
Without torch, from golden files: `pytest tests/engine/test_family.py -k NAME`, of a quantised one
`pytest tests/engine/files/test_quantised.py -k NAME`, where each of 40 kinds of quantised weights is also brought into
GGUF and back by `engine convert`, and found the same by `engine diff --weights`.

Ids: how many of a greedy answer are Transformers', on the CPU backend. Stages: the worst relative error of one, in
float64, of all stages of a prompt and two steps; of a model without logits, of its vectors (by the last row, the mean,
the first) and scores (`pytest tests/engine/test_embed.py`). Judged: stages of Transformers' own dumps (float32,
bfloat16, and bfloat16 by plain hooks) that `engine verify` explains with this file as the model. Two figures are not
the smallest: Qwen's eps of 1e-6 is no float32 number, and Transformers adds another one in float64; Llama 3's scaling
goes into GGUF as divisors in float32, as llama.cpp has it.

| releases | model | container | ids | stages | judged | command |
|---|---|---|---|---|---|---|
"""


def page(rows: list[Row]) -> str:
    import torch
    import transformers

    head = HEAD.format(transformers=transformers.__version__, torch=torch.__version__.split("+")[0])
    return head + "".join(f"{row.line}\n" for row in rows)


def main() -> None:
    to, *wanted = sys.argv[1:]
    rows = []
    for rows_of in (of_architectures, of_other_heads, of_quantised):
        for row in rows_of(wanted):
            print(row.line, file=sys.stderr, flush=True)
            rows.append(row)
    if to != "-":
        Path(to).write_text(page(rows))
    elif not rows:
        raise SystemExit(f"there is no model {' or '.join(wanted)}; docs/family.md has their names")


if __name__ == "__main__":
    main()
