"""Fields of config.json and names of tensors, one changed at a time: computed as Transformers does, or refused by name.

tests/golden/config.json has Transformers' logits; tools/dev/golden_config.py has the cases, and made it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine.bind import bind
from qwenref.engine.config_keys import GGUF, Keys
from qwenref.engine.files import Checkpoint, open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.generate import check_prompt
from qwenref.engine.load import check_generates
from qwenref.engine.models import ARCHITECTURES
from qwenref.engine.models.qwen2 import ARCHITECTURE as QWEN2
from qwenref.errors import BadInput
from qwenref.tools.dev.golden_config import CASES, CONFIG, IDS, write_case

from ..models import logits

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "config.json").read_text())["cases"]

# What is refused, and a word of the line that says so. Transformers refuses it too, makes up weights, computes what is
# not computed here, or ignores what the file asks for.
REFUSED = {
    "theta in both, another": "rope_theta has two values",
    "no theta": "rope_theta is missing",
    "rope_scaling beside rope_parameters": "rope_scaling stands beside rope_parameters",
    "rope_parameters by layer type": "full_attention",
    "mrope": "'mrope'",
    "partial_rotary_factor 0.5": "partial_rotary_factor is 0.5",
    "partial_rotary_factor 0.5, linear": "partial_rotary_factor is 0.5",
    "window off, layer_types sliding": "'sliding_attention'",
    "layer_types too short": "layer_types",
    "num_key_value_heads null": "num_key_value_heads is missing",
    "num_key_value_heads missing": "num_key_value_heads is missing",
    "attention_chunk_size": "attention_chunk_size is 4",
    "hidden_act gelu": "hidden_act is 'gelu'",
    "logit_scale": "logit_scale is 0.5",
    "embedding_multiplier": "embedding_multiplier is 12.0",
    "final_logit_softcapping": "final_logit_softcapping is 0.1",
    "use_qk_norm": "use_qk_norm is True",
    "use_logn_attn": "use_logn_attn is True",
    "pruned_heads": "pruned_heads",
    "add_cross_attention": "add_cross_attention is True",
    "is_encoder_decoder": "is_encoder_decoder is True",
    "tie_encoder_decoder": "tie_encoder_decoder is True",
    "per_layer_config": "per_layer_config",
    "text_config": "text_config",
    "a norm of heads": "q_norm",
    "o_proj.bias": "o_proj.bias",
    "a layer more": "model.layers.2.",
    "a layer less": "model.layers.1.",
    "no q bias": "q_proj.bias",
}
# Opened without a head, which Transformers makes up.
HEADLESS = {"tie_word_embeddings missing, no head", "not tied, no head", "no prefix, not tied, no head"}
# Opened, although Transformers makes up weights or ends in a TypeError: nothing has to be guessed.
BETTER = {
    "prefix _orig_mod.": "as it is",
    "_orig_mod. in each layer": "as it is",
    "prefix module.": "as it is",
    "prefix base_model.model.": "as it is",
    "prefix transformer.": "as it is",
    "head_dim null": "as it is",
}
NOTED = {
    "dual_chunk_attention_config": "the context ends where it begins, at 24",
    "auto_map": "which is not run",
    "something new": "something_new is not known here",
    "tied, another head": "another matrix than the embedding",
    "tied, a copy in BF16 of an embedding in F32": "another matrix than the embedding",
    "prefix _orig_mod.": "'_orig_mod.",
    "_orig_mod. in each layer": "_orig_mod.",
    "prefix module.": "'module.",
    "prefix base_model.model.": "'base_model.model.",
    "prefix transformer.": "'transformer.",
    "prefix model.": "'model.",
    "no prefix, tied": "'embed_tokens.weight' is taken for model.embed_tokens.weight",
    "no prefix, not tied, a head": "is taken for",
}


def use(path: Path) -> Checkpoint:
    m = open_checkpoint(path)
    bind(m.config, m.tensors)
    return m


def near(m: Checkpoint, want: list[float]) -> None:
    """Within what float32 leaves of logits of this size: the largest difference seen is 3e-6 of the largest logit."""
    assert np.abs(logits(m, IDS) - np.array(want)).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", CASES)
def test_as_transformers_or_refused(tmp_path: Path, name: str) -> None:
    write_case(tmp_path, name)
    if name in REFUSED:
        with pytest.raises(BadInput) as error:
            use(tmp_path)
        assert REFUSED[name] in str(error.value) and "\n" not in str(error.value)
        return
    m = use(tmp_path)
    if name in HEADLESS:
        assert GOLDEN[name]["missing_keys"] == ["lm_head.weight"] and m.config.head.kind == "Model"
        assert bind(m.config, m.tensors).lm_head is None and "there is no lm_head.weight" in m.notes[-1]
        with pytest.raises(BadInput, match="no output head; engine embed gives its vectors"):
            check_generates(m)
        return
    near(m, GOLDEN[BETTER.get(name, name)]["logits"])
    said = " ".join(m.notes)
    assert NOTED.get(name, "") in said and (name in NOTED or not said)


def test_the_golden_file_is_of_these_cases() -> None:
    assert GOLDEN.keys() == CASES.keys()
    assert REFUSED.keys() <= CASES.keys() and NOTED.keys() <= CASES.keys() - REFUSED.keys()
    assert {name for name, said in GOLDEN.items() if "logits" not in said} <= REFUSED.keys() | BETTER.keys() | HEADLESS


@pytest.mark.parametrize("suffix", [".gguf", ".apr", ""])
@pytest.mark.parametrize("name", sorted(CASES.keys() - REFUSED.keys() - HEADLESS))
def test_conversion_keeps_it(tmp_path: Path, name: str, suffix: str) -> None:
    """Whatever a field or a name was, the converted model computes the same, and is not noted for it again.

    What GGUF has no key for is told, and is the same to the rounding of a float32 frequency.
    """
    source = tmp_path / "source"
    source.mkdir()
    write_case(source, name)
    m = use(source)
    lost: list[str] = []
    if suffix == ".apr" and not m.config.causal:
        with pytest.raises(BadInput, match="apr has no place for attention that is not causal"):
            convert(m, tmp_path / "to.apr")
        return
    convert(m, tmp_path / f"to{suffix}", lost=lost.append)
    again = use(tmp_path / f"to{suffix}")
    if any("dual_chunk" in line for line in lost):
        assert again.config == replace(m.config, max_position_embeddings=m.config.dual_chunk, dual_chunk=0)
        return
    if told := [line for line in lost if "RoPE" in line]:
        assert suffix == ".gguf" and name.split(",", maxsplit=1)[0] in ("dynamic", "yarn", "llama3"), told
        assert replace(again.config, rope_scaling=m.config.rope_scaling) == m.config
        near(again, [float(x) for x in logits(m, IDS)])
        return
    assert again.config == m.config
    assert np.array_equal(logits(again, IDS), logits(m, IDS))
    assert not again.notes or not suffix


def config_with(folder: Path, **changes: Any) -> Path:
    write_case(folder, "as it is")
    config = {k: v for k, v in (CONFIG | changes).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_temperature_tuning", True),
        ("rope_local_base_freq", 1e4),
        ("residual_multiplier_new", 2),
        ("my_softcap", 30.0),
        ("num_experts_of_mine", 8),
        ("window", 4096),
        ("embedding_norm", "yes"),
        ("clip_something", 1),
    ],
)
def test_unknown_fields_that_sound_like_a_change(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(BadInput, match=f"{field} is .* sounds as if it changed the result; .* take it out"):
        use(config_with(tmp_path, **{field: value}))
    for off in (None, False, [], {}, ""):
        assert use(config_with(tmp_path, **{field: off})).notes == (
            () if off is not False else (f"{tmp_path / 'config.json'}: {field} is not known here and was not used",)
        )


@pytest.mark.parametrize("keys", [keys for a in ARCHITECTURES for keys in (a.hf_keys, a.gguf_keys)])
def test_a_key_stands_in_one_table(keys: Keys) -> None:
    names = [*keys.read, *keys.neutral, *keys.noted, *(n for group in keys.inert.values() for n in group)]
    assert len(names) == len(set(names))


def test_real_configurations_give_no_notes(tmp_path: Path) -> None:
    """The fields of Qwen2.5-Coder-0.5B-Instruct's config.json, and what Transformers 5 adds when it saves it."""
    published = {
        "attention_dropout": 0.0, "bos_token_id": 3, "eos_token_id": 4, "initializer_range": 0.02,
        "max_window_layers": 24, "sliding_window": 32768, "torch_dtype": "bfloat16", "transformers_version": "4.44.0",
        "use_cache": True, "use_mrope": False, "use_sliding_window": False,
    }  # fmt: skip
    saved = {
        "_name_or_path": "", "chunk_size_feed_forward": 0, "dtype": "bfloat16", "id2label": {"0": "LABEL_0"},
        "is_encoder_decoder": False, "label2id": {"LABEL_0": 0}, "layer_types": ["full_attention"] * 2,
        "output_attentions": False, "output_hidden_states": False, "pad_token_id": None, "problem_type": None,
        "return_dict": True, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}, "rope_theta": ...,
        "sliding_window": None,
    }  # fmt: skip
    for more in (published, published | saved):
        m = use(config_with(tmp_path, **more))
        assert m.notes == ()
        near(m, GOLDEN["as it is"]["logits"])


@pytest.mark.oracle
def test_every_field_of_transformers_is_known() -> None:
    """What save_pretrained writes, what Qwen2Config takes, and what it takes out for GenerationConfig."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")
    written = transformers.Qwen2Config(rope_parameters={"rope_type": "default", "rope_theta": 1e6}).to_dict()
    generation = transformers.GenerationConfig._get_default_generation_params()
    assert (written.keys() | generation.keys()) - QWEN2.hf_keys.known() == set()


def test_every_key_of_gguf_py_is_known_or_refused_or_noted() -> None:
    """All that gguf-py can write behind an architecture's name, with a value that is not neutral: looked at."""
    from gguf import Keys as Theirs

    texts = [v for group in vars(Theirs).values() if isinstance(group, type) for v in vars(group).values()]
    names = {t.removeprefix("{arch}.") for t in texts if isinstance(t, str) and t.startswith("{arch}.")}
    assert len(names) > 100
    silent = set()
    for name in names - GGUF.read - {n for group in GGUF.inert.values() for n in group}:
        try:
            if not GGUF.look({name: 7.25}):
                silent.add(name)
        except BadInput as error:
            assert name in str(error)
    assert silent == set()


def test_dual_chunks_end_the_context(tmp_path: Path) -> None:
    def context(**changes: Any) -> int:
        asked = {"chunk_size": 40, "local_size": 8} | changes
        return use(config_with(tmp_path, dual_chunk_attention_config=asked)).config.context

    assert context() == 32
    assert context(original_max_position_embeddings=16) == 16
    assert context(original_max_position_embeddings=640, chunk_size=800) == 64
    assert context(sparse_attention_config={"0": {}}, sparse_attention_threshold=20) == 20
    c = use(config_with(tmp_path, dual_chunk_attention_config={"chunk_size": 40, "local_size": 8})).config
    with pytest.raises(BadInput, match=r"33 tokens, more than the context of 32 .*dual_chunk_attention_config"):
        check_prompt([1] * 33, c)
    with pytest.raises(BadInput, match="dual_chunk_attention_config stands beside RoPE scaling of type yarn"):
        yarn = {"rope_type": "yarn", "factor": 4.0}
        use(config_with(tmp_path, dual_chunk_attention_config={"chunk_size": 40, "local_size": 8}, rope_scaling=yarn))
    for wrong in ({"local_size": 40}, {"chunk_size": "40"}, {"local_size": None}):
        with pytest.raises(BadInput, match="dual_chunk_attention_config"):
            context(**wrong)


@pytest.mark.parametrize("field", ["rope_theta", "rms_norm_eps"])
@pytest.mark.parametrize("value", [1e-300, 1e-45, 1e39, 10**400, True, "1", [1.0], {}, 0, -1.0])
def test_floats_that_float32_does_not_hold(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(BadInput, match=f"{field} is .*must be a positive number that float32 holds"):
        use(config_with(tmp_path, **{field: value}))


def test_angles_that_overflow(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="angles of the last position overflow"):
        use(config_with(tmp_path, rope_theta=1.2e-38))


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"quantization_config": {"quant_method": "hqq", "bits": 4}}, "'hqq'"),
        ({"quantization_config": {"quant_method": "quark", "fmt": "e4m3"}}, "'quark'"),
        ({"compression_config": {"quant_method": "sparseml"}}, "'sparseml'"),
        ({"quantization": {"bits": 4}}, "None"),
        ({"quantization_config": {"quant_method": ["gptq"]}}, r"\['gptq'\]"),
    ],
)
def test_folders_quantised_in_unknown_ways_are_called_by_method(
    tmp_path: Path, asked: dict[str, Any], word: str
) -> None:
    """Before their tensors, of dtypes that no Qwen2 has, are looked at."""
    folder = config_with(tmp_path, **asked)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(BadInput, match=f"quantised \\({word}\\).*give the model as it was before"):
        use(folder)
