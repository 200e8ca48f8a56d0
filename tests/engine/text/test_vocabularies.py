"""The tokenizer of each container: ids of Transformers and llama.cpp (golden files), through convert, and bad files.

tests/golden/auto_tokenizer.json.gz and llama_vocab.json.gz hold the files themselves, and the commands that asked.
"""

from __future__ import annotations

import base64
import copy
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwenref.engine.files import Checkpoint, Vocabulary, open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.files.gguf import vocabulary as gguf_vocabulary
from qwenref.engine.files.gguf_header import read_header
from qwenref.engine.files.hf_tokenizer import read_vocabulary
from qwenref.engine.text.tokenizer import Tokenizer
from qwenref.errors import BadInput
from qwenref.tools.main import main

from ...gguf_builder import ARR, BOOL, F32, I32, STR, U8, U32, Gguf, array
from ...models import model
from ...models import vocabulary as small

GOLDEN = Path(__file__).parents[2] / "golden"
ROWS = 400


def golden(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(gzip.decompress((GOLDEN / name).read_bytes()))
    return loaded


AUTO, LLAMA = golden("auto_tokenizer.json.gz"), golden("llama_vocab.json.gz")
BY_NAME = {case["name"]: case for case in AUTO["cases"]}


def write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def folder_vocabulary(folder: Path, config: dict[str, Any] | None = None) -> Vocabulary:
    v = read_vocabulary(folder, config or {}, ROWS)
    assert v is not None
    return v


def prompts(v: Vocabulary) -> list[list[int]]:
    t = Tokenizer.from_vocabulary(v, ROWS)
    return [t.prompt_ids(text) for text in AUTO["texts"]]


# -- Transformers 5's AutoTokenizer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", AUTO["cases"], ids=lambda case: case["name"])
def test_ids_are_auto_tokenizers(tmp_path: Path, case: dict[str, Any]) -> None:
    v = folder_vocabulary(write(tmp_path, case["files"]))
    assert prompts(v) == case["ids"]
    ours = {"bos_token": v.bos_id, "eos_token": v.eos_ids[0], "pad_token": v.pad_id}
    assert {name: ours[name] for name in ours.keys() & case["special"].keys()} == {
        name: i for name, i in case["special"].items() if name in ours
    }


def test_the_cases_differ() -> None:
    """The golden file holds what it is there for: prompts that begin, that end, that do neither, that lose spaces."""
    seen = {tuple(case["ids"][0]) for case in AUTO["cases"]}
    assert len(seen) >= 7 and () in seen
    assert len({json.dumps(case["ids"]) for case in AUTO["cases"]}) >= 20
    by_flag = [BY_NAME[f"BOS, add_bos_token and add_eos_token {said}"]["ids"] for said in (None, True)]
    assert by_flag[0] == by_flag[1]  # with tokenizer.json, Transformers 5 does not ask add_bos_token


# -- llama.cpp --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LLAMA["cases"], ids=lambda case: case["name"])
def test_vocabularies_are_llama_cpps(case: dict[str, Any]) -> None:
    """The ids that end an answer, prompts, messages and spellings. Of </s>, which Qwen2's merges make, see below."""
    raw = base64.b64decode(case["file"])
    v = gguf_vocabulary(read_header(Path("x.gguf"), memoryview(raw)).metadata, ROWS)
    assert v is not None
    t = Tokenizer.from_vocabulary(v, ROWS)
    assert set(v.eos_ids) == set(case["ends"]) and len(v.eos_from) == len(v.eos_ids)
    assert [t.encode(text) for text in LLAMA["texts"]] == case["messages"]
    assert [t.token_bytes(i) for i in range(len(v.tokens))] == [base64.b64decode(d) for d in case["decoded"]]
    for text, theirs in zip(LLAMA["texts"], case["prompts"], strict=True):
        if "</s>" not in text:
            assert t.prompt_ids(text) == theirs
        else:  # llama.cpp takes it for a control token in a prompt; for Transformers it is text
            end, ours = v.tokens.index("</s>"), t.prompt_ids(text)
            assert end in theirs and end not in ours and t.decode(ours) == t.decode(theirs)
            at = theirs.index(end)
            assert ours[:at] == theirs[:at] and ours[at + len(ours) - len(theirs) + 1 :] == theirs[at + 1 :]


def test_the_same_ends_from_every_container(tmp_path: Path) -> None:
    """A folder whose eos is <|endoftext|> stops where its chat template does, as its GGUF and APR do."""
    convert(model(), tmp_path / "hf")
    settings = tmp_path / "hf" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": "<|endoftext|>"}))
    for name, ids in (("generation_config.json", {}), ("config.json", {"eos_token_id": 261})):
        path = tmp_path / "hf" / name
        said = {k: x for k, x in json.loads(path.read_text()).items() if k != "eos_token_id"}
        path.write_text(json.dumps(said | ids))
    source = open_checkpoint(tmp_path / "hf")
    convert(source, tmp_path / "m.gguf")
    convert(source, tmp_path / "m.apr")
    for m in (source, open_checkpoint(tmp_path / "m.gguf"), open_checkpoint(tmp_path / "m.apr")):
        v = m.vocabulary()
        assert v is not None and v.eos_ids == (261, 263)


# -- convert carries it -----------------------------------------------------------------------------------------------


def with_vocabulary(v: Vocabulary) -> Checkpoint:
    source = model(vocab=ROWS)
    return replace(source, vocabulary=lambda: v)


CARRIED = [name for name in BY_NAME if "add_bos_token and add_eos_token None" in name or "parts" in name]


def lost(source: Checkpoint, destination: Path) -> str:
    """What is said to be lost, a line each."""
    lines: list[str] = []
    convert(source, destination, lost=lines.append)
    return "\n".join(lines)


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.parametrize("destination", ["m.gguf", "m.apr", "hf"])
def test_convert_carries_what_is_put_round_a_prompt(tmp_path: Path, name: str, destination: str) -> None:
    """The same ids after it, and from there in a folder again; or a line on what does not fit, and none of it."""
    v = folder_vocabulary(write(tmp_path / "tokenizer", BY_NAME[name]["files"]))
    said = lost(with_vocabulary(v), tmp_path / destination)
    read = open_checkpoint(tmp_path / destination).vocabulary()
    assert read is not None
    exact = prompts(read) == BY_NAME[name]["ids"]
    if destination != "hf" and (len(v.prefix) > 1 or len(v.suffix) > 1):
        assert f"not in {destination}: ids " in said and len(read.prefix) < 2 > len(read.suffix) and not exact
    else:  # lost is only that a token which looks like one is no control token, and how one is found
        assert exact or (destination != "hf" and "not in" in said)
    convert(open_checkpoint(tmp_path / destination), tmp_path / "again")
    again = open_checkpoint(tmp_path / "again").vocabulary()
    assert again is not None and prompts(again) == prompts(read) and set(again.eos_ids) == set(read.eos_ids)


@pytest.mark.parametrize(("destination", "carried"), [("m.gguf", True), ("m.apr", False), ("hf", True)])
def test_convert_carries_how_added_tokens_are_found(tmp_path: Path, destination: str, carried: bool) -> None:
    case = BY_NAME["lstrip and rstrip"]
    told = lost(with_vocabulary(folder_vocabulary(write(tmp_path / "t", case["files"]))), tmp_path / destination)
    read = open_checkpoint(tmp_path / destination).vocabulary()
    assert read is not None and (prompts(read) == case["ids"]) is carried
    said = {"m.gguf": "llama.cpp", "m.apr": "lstrip, rstrip", "hf": ""}[destination]
    assert said in told


def test_convert_loses_what_needs_the_whole_file(tmp_path: Path) -> None:
    """Two ids before a prompt, which GGUF can not say: a tokenizer.json would contradict it, and is left out."""
    v = replace(small(272), prefix=(261, 262), flags={264: ("lstrip",)})
    said = lost(replace(model(), vocabulary=lambda: v), tmp_path / "m.gguf")
    assert "ids 261, 262 before a prompt" in said and "lstrip" in said
    read = open_checkpoint(tmp_path / "m.gguf").vocabulary()
    assert read is not None and (read.prefix, read.flags, read.tokenizer_json, read.notes) == ((), {}, None, ())


def test_convert_says_what_is_lost(tmp_path: Path) -> None:
    def said(v: Vocabulary | None, name: str) -> str:
        told = lost(replace(model(), vocabulary=lambda: v), tmp_path / name)
        assert all(line.startswith(f"not in {name}: ") for line in told.splitlines())
        return told

    assert "no tokenizer" in said(None, "a.gguf")
    assert "tool_use" in said(small(272, other_templates={"tool_use": "x"}), "b")
    assert "263 is" not in said(small(272), "d.gguf") == ""
    assert "answers end at 9" in said(small(272, eos_ids=(3, 4, 5, 9, 263, 261)), "e.gguf")
    assert said(small(272, eos_ids=(3, 4, 5, 9, 263, 261)), "f.apr") == ""


# -- what changes nothing opens, and GGUF's other tokenizer -----------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["", "{}", '{"eos_token_id": null}', '{"eos_token_id": []}', '{"eos_token_id": -1}']
)
def test_a_generation_config_that_says_nothing(tmp_path: Path, content: str) -> None:
    """Transformers takes a file without a byte for none; config.json's ids are used where it names none."""
    folder = write(tmp_path, BY_NAME["no tokenizer_config.json"]["files"] | {"generation_config.json": content})
    v = folder_vocabulary(folder, {"eos_token_id": 7, "bos_token_id": -1, "pad_token_id": -1})
    assert v.eos_ids[:2] == (261, 7) and v.bos_id is None and v.pad_id == 261


def test_another_tokenizer_inside_a_gguf_is_not_used_in_silence(tmp_path: Path) -> None:
    """llama.cpp reads the other keys; so does this, and says so."""
    convert(model(), tmp_path / "hf")
    convert(open_checkpoint(tmp_path / "hf"), tmp_path / "m.gguf")
    good = open_checkpoint(tmp_path / "m.gguf").vocabulary()
    assert good is not None and good.tokenizer_json is not None and good.notes == ()
    key, file = "tokenizer.huggingface.json", json.loads(good.tokenizer_json)
    reordered = copy.deepcopy(file)
    reordered["model"]["merges"].reverse()
    bos = copy.deepcopy(file) | {"post_processor": BY_NAME["BOS, add_bos_token and add_eos_token None"]["files"]
                                 ["tokenizer.json"]["post_processor"]}  # fmt: skip
    for other, word in ((reordered, "merges"), (bos, "post-processor"), ({}, "no model"), ("x", "not JSON")):
        text = other if isinstance(other, str) else json.dumps(other)
        raw = (tmp_path / "m.gguf").read_bytes()
        at = raw.index(good.tokenizer_json.encode())
        (tmp_path / "n.gguf").write_bytes(raw[: at - 8] + len(text).to_bytes(8, "little") + text.encode())
        metadata = read_header_of(tmp_path / "n.gguf", raw, at, good.tokenizer_json, text)
        v = gguf_vocabulary(metadata, 272)
        assert v is not None and v.merges == good.merges and v.prefix == () and v.tokenizer_json is None
        assert len(v.notes) == 1 and word in v.notes[0] and key in v.notes[0]


def read_header_of(path: Path, raw: bytes, at: int, old: str, new: str) -> Any:
    """The metadata of a GGUF with another text in the place of one."""
    return read_header(path, memoryview(raw[: at - 8] + len(new.encode()).to_bytes(8, "little") + new.encode()
                                        + raw[at + len(old.encode()) :])).metadata  # fmt: skip


# -- bad files: BadInput or success, nothing else ---------------------------------------------------------------------

ODD = [None, True, False, 0, -1, 2**31, 2**70, 1.5, "", "x", "a b", "\ud800", [], {}, [[]], [None], [1, 2], ["a", "b"],
       {"id": "A"}, {"content": 1}, {"": None}, [["a"]], "\0", "é"]  # fmt: skip


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one part of it replaced, dropped or doubled."""
    value = copy.deepcopy(value)
    spot: Any = value
    while True:
        keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
        if not keys:
            return rng.choice(ODD)
        key = rng.choice(keys)
        if not isinstance(spot[key], dict | list) or not spot[key] or rng.random() < 0.3:
            break
        spot = spot[key]
    what = rng.random()
    if what < 0.6:
        spot[key] = rng.choice(ODD)
    elif what < 0.8:
        del spot[key]
    elif isinstance(spot, list):
        spot.append(spot[key])
    else:
        spot[rng.choice([*keys, "x"])] = spot[key]
    return value


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Bytes cut off, replaced or put in."""
    at = rng.randrange(len(raw) + 1)
    return rng.choice([raw[:at], raw[:at] + b"\xff" + raw[at:], raw[:at] + raw[at + 1 :], b"", b"\xef\xbb\xbf" + raw,
                       raw[:at] + b"\\ud800" + raw[at:], raw * 2, b"[" * 3000])  # fmt: skip


def survives(read: Callable[[], Vocabulary | None]) -> bool:
    """Whether it opens; raises for whatever is neither a vocabulary that works nor one line."""
    try:
        v = read()
        if v is None:
            return True
        t = Tokenizer.from_vocabulary(v, ROWS)
        ids = t.prompt_ids("low <s> the<tool> é")
        t.decode([*ids, *range(len(v.tokens))])
        list(t.split("low <s> the<tool> é"))
    except BadInput as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return False
    return True


@pytest.mark.parametrize(
    "name",
    ["two before, two behind, add_bos_token and add_eos_token True", "Roberta, add_bos_token and add_eos_token None",
     "lstrip in added_tokens_decoder", "additional_special_tokens 1", "parts: special_tokens_map.json",
     "parts: add_bos_token True, add_eos_token True"],
)  # fmt: skip
def test_mutated_folders(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    files = BY_NAME[name]["files"] | {"generation_config.json": {"eos_token_id": [3, 4], "pad_token_id": 3}}
    config = {"eos_token_id": 3, "bos_token_id": 4, "pad_token_id": None}
    opened = 0
    for _ in range(250):
        write(tmp_path, files)
        said, file = config, rng.choice([*files, "config"])
        if file == "config":
            said = mutated(config, rng)
        elif isinstance(files[file], str) or rng.random() < 0.2:
            (tmp_path / file).write_bytes(damaged((tmp_path / file).read_bytes(), rng))
        else:
            (tmp_path / file).write_text(json.dumps(mutated(files[file], rng)))
        opened += survives(lambda said=said: read_vocabulary(tmp_path, said, ROWS))  # type: ignore[misc]
    assert 25 < opened < 225  # it is a test of both


def test_mutated_gguf_keys(tmp_path: Path) -> None:
    rng, v, whole = random.Random(7), small(272), Gguf()
    for key, kind, values in (("tokens", STR, v.tokens), ("merges", STR, v.merges), ("token_type", I32, v.types)):
        whole = whole.put(f"tokenizer.ggml.{key}", ARR, array(kind, values))
    numbers: list[tuple[int, Any]] = [(U8, 1), (U32, 5), (U32, 2**32 - 1), (I32, -1), (I32, -5), (F32, 0.5), (BOOL, 1)]
    arrays = [array(U8, []), array(STR, []), array(I32, []), array(F32, [0.0]), array(STR, [""] * 8),
              array(STR, ["a", "a"]), array(I32, [3] * 272), array(STR, v.tokens[::-1])]  # fmt: skip
    odd = [*numbers, (STR, ""), (STR, "gpt2"), (STR, "{}"), *((ARR, one) for one in arrays)]
    names = ["model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id", "eot_token_id",
             "padding_token_id", "fim_pad_token_id", "add_bos_token", "add_eos_token", "add_space_prefix"]  # fmt: skip
    keys = [f"tokenizer.ggml.{name}" for name in names]
    keys += ["tokenizer.chat_template", "tokenizer.chat_template.tool", "tokenizer.huggingface.json"]
    opened = 0
    for _ in range(400):
        file = whole
        for key in rng.sample(keys, rng.choice([1, 1, 2])):
            file = file.drop(key) if rng.random() < 0.1 else file.put(key, *rng.choice(odd))
        raw = file.build()
        opened += survives(lambda raw=raw: gguf_vocabulary(read_header(tmp_path, memoryview(raw)).metadata, ROWS))  # type: ignore[misc]
    assert 40 < opened < 360


# -- without a tokenizer: run --tokens --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("bare") / "hf"
    convert(replace(model(), vocabulary=lambda: None), folder)
    return folder


def test_run_takes_ids(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Separated by spaces or commas, or in a file; the answer is ids where nothing spells them."""
    (tmp_path / "ids").write_text("3, 200\n17 9\n")
    answers = []
    for given in ("3 200 17 9", "3,200,17,9", f"@{tmp_path / 'ids'}"):
        assert main(["run", str(bare), "--tokens", given, "-n", "3", "--backend", "reference"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2]
    ids = [int(word) for word in answers[0].split()]
    assert len(ids) == 3
    assert main(["run", str(bare), "--tokens", "3 200 17 9", "-n", "3", "--backend", "reference", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["prompt_ids"], report["ids"], report["text"]) == ([3, 200, 17, 9], ids, None)
    config = json.loads((bare / "config.json").read_text())
    (bare / "generation_config.json").write_text(json.dumps({"eos_token_id": [ids[0]]}))
    assert main(["run", str(bare), "--tokens", "3 200 17 9", "-n", "3", "--backend", "reference"]) == 0
    assert capsys.readouterr().out.split() == [str(ids[0])] and "eos_token_id" not in config
    (bare / "generation_config.json").unlink()


def test_run_says_what_would_do(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, word in (
        (["-p", "hi"], "--tokens"),
        (["--tokens", "3,x"], "'x' is no token id"),
        (["--tokens", ""], "is no token id"),
        (["--tokens", "@/no/such"], "No such file"),
        (["--tokens", "3", "--chat"], "--chat wraps text"),
        (["--tokens", "999"], "outside the vocabulary"),
    ):
        assert main(["run", str(bare), "--backend", "reference", *args]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and word in err


def test_ids_do_not_need_a_tokenizer_that_can_be_read(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bare / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    try:
        assert main(["run", str(bare), "--tokens", "3 200", "-n", "2", "--backend", "reference"]) == 0
    finally:
        (bare / "tokenizer.json").unlink()
    out, err = capsys.readouterr()
    assert len(out.split()) == 2 and "Unigram" in err.splitlines()[0]


# -- chat templates by name -------------------------------------------------------------------------------------------


def with_templates(folder: Path, where: str) -> Path:
    """A folder whose default template says d, and whose tool_use says t, in one of the two places for it."""
    write(folder, AUTO["cases"][0]["files"])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    if where == "tokenizer_config.json":
        settings["chat_template"] = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    else:
        settings.pop("chat_template", None)
        (folder / "chat_template.jinja").write_text("d")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("t")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("where", ["tokenizer_config.json", "additional_chat_templates"])
def test_tools_have_a_template_of_their_own(tmp_path: Path, where: str) -> None:
    """As `get_chat_template` of Transformers' tokenizers chooses (tests/oracle/test_templates.py asks it)."""
    v = folder_vocabulary(with_templates(tmp_path, where))
    assert (v.template(tools=False), v.template(tools=True)) == ("d", "t")


def test_one_template_serves_tools_too() -> None:
    v = small(272, chat_template="d")
    assert (v.template(tools=False), v.template(tools=True)) == ("d", "d")
