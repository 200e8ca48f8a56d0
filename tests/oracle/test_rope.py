"""RoPE's scaling and attention windows against Transformers as it is installed: random parameters, texts past 32,768
positions, and the judge on its dumps, healthy and with mistakes planted in its modules."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (make oracle)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")

from qwenref.engine import rope  # noqa: E402
from qwenref.engine.config import from_hf  # noqa: E402
from qwenref.engine.forward import forward  # noqa: E402
from qwenref.engine.generate import prefill  # noqa: E402
from qwenref.engine.kernels import backend  # noqa: E402
from qwenref.engine.load import open_weights  # noqa: E402
from qwenref.engine.tap import SILENT  # noqa: E402
from qwenref.tools.dev.golden_config import CONFIG, write_folder  # noqa: E402
from qwenref.tools.dev.golden_rope import ORIGINAL, exact_powers  # noqa: E402
from qwenref.tools.dump_hf import capture, cast_weights, load  # noqa: E402
from qwenref.trace.dump import Dump, Entry, ordered  # noqa: E402
from qwenref.trace.stages import by_name  # noqa: E402
from qwenref.trace.verify.finding import EXACT, REPRODUCED, Finding  # noqa: E402
from qwenref.trace.verify.verify import verify  # noqa: E402

pytestmark = pytest.mark.oracle


def drawn(kind: str, rng: np.random.Generator, H: int) -> dict[str, Any]:
    """Parameters that somebody might have."""
    original, factor = int(rng.choice([64, 2048, 4096, 8192, 32768])), float(np.exp(rng.uniform(0, 4)))
    lists = {name: np.exp(rng.uniform(0, 3, H // 2)).tolist() for name in ("short_factor", "long_factor")}
    slow = float(rng.uniform(0.5, 4))
    fields: dict[str, dict[str, Any]] = {
        "linear": {"factor": factor},
        "dynamic": {"factor": factor},
        "yarn": {
            "factor": factor, ORIGINAL: original, "beta_slow": slow, "beta_fast": slow * float(rng.uniform(1, 40)),
            "truncate": bool(rng.integers(2)),
        },
        "llama3": {"factor": factor, ORIGINAL: original, "low_freq_factor": slow, "high_freq_factor": slow * 3},
        "longrope": {ORIGINAL: original, **lists},
    }  # fmt: skip
    return {"rope_type": kind} | fields[kind]


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3", "longrope"])
def test_any_parameters_give_transformers_bits(kind: str) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rng = np.random.default_rng(len(kind))
    for _ in range(60):
        H, theta = int(rng.choice([16, 64, 80, 96, 128, 256])), float(np.float32(np.exp(rng.uniform(6, 17))))
        said = CONFIG | {"head_dim": H, "rope_theta": theta, "max_position_embeddings": 131072}
        said |= {"rope_scaling": drawn(kind, rng, H)}
        c = from_hf(said, own_head=True)[0]
        config = transformers.Qwen2Config(**{k: v for k, v in said.items() if k != "architectures"})
        for beyond in (False, True):
            length = c.rope_scaling.original_max_position_embeddings + beyond if kind == "longrope" else None
            with exact_powers() as off:
                table, magnitude = ROPE_INIT_FUNCTIONS[kind](config, None, seq_len=length)
            mine = rope.frequencies(theta, H, c.rope_scaling, beyond)
            np.testing.assert_array_equal(mine.view(np.int32), table.numpy().view(np.int32), err_msg=str(said))
            assert c.rope_scaling.attention_factor == magnitude
            assert max(off) <= 1  # by so much is torch's own power off


LONG = {
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, ORIGINAL: 8192}},
    "windows": {
        "max_position_embeddings": 65536, "use_sliding_window": True, "sliding_window": 1000, "max_window_layers": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_past_32768_positions(name: str, tmp_path: Path) -> None:
    """In chunks here, in one piece there; logits of the last position, and of two steps behind it, in float64."""
    small = {"num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
    ids = [int(i) for i in np.random.default_rng(5).integers(0, 64, 33000)]
    torch.manual_seed(0)
    with exact_powers():
        said = CONFIG | small | LONG[name]
        config = transformers.Qwen2Config(**{k: v for k, v in said.items() if k != "architectures"})
        transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
        auto: Any = transformers.AutoModelForCausalLM
        model = auto.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="sdpa").eval()
    cast_weights(model, "float64")
    cache, want = transformers.DynamicCache(), []
    with capture(model, lambda layer, stage, x: None):  # in float64 all through
        for part in (ids[:-2], ids[-2:-1], ids[-1:]):
            out = model(torch.tensor([part]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            want.append(out.logits[0, -1].numpy())
    w, k = open_weights(tmp_path).weights, backend("reference")
    prepared, mine = k.prepare(w, "f64"), k.new_cache(w.config, len(ids), "f64")
    found = [prefill(ids[:-2], prepared, mine, k)]
    found += [forward(np.array([i], np.int32), prepared, mine, k, SILENT) for i in ids[-2:]]
    # Each of two layers adds up to so many numbers twice: the soft-max's exponentials, and the values by them.
    bound = 2 * 2 * len(ids) * 2.0**-53
    for one, two in zip(found, want, strict=True):
        assert np.abs(one - two).max() <= bound * np.abs(two).max()


# -- the judge --------------------------------------------------------------------------------------------------------

TOKENS = [int(i) for i in np.random.default_rng(1).integers(0, 64, 29)]
YARN = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 16}}


def folder_of(path: Path, **changes: Any) -> Path:
    write_folder(path, CONFIG | changes)
    return path


def dumped(model: Any, *passes: Sequence[int]) -> Dump:
    entries: list[Entry] = []
    cache, start = transformers.DynamicCache(), 0
    for phase, ids in enumerate(passes):
        at = tuple(range(start, start + len(ids)))

        def emit(layer: int | None, name: str, x: Any, phase: int = phase, at: tuple[int, ...] = at) -> None:
            stage = by_name(name)
            rows = at if "T" in stage.letters else at[-1:]
            entries.append(Entry(Path(name), stage, layer, phase, x.shape, rows, array=x.astype(np.float32)))

        with capture(model, emit):
            model(torch.tensor([list(ids)]), past_key_values=cache, use_cache=True)
        start += len(ids)
    told = {"tokens": [i for ids in passes for i in ids]}
    return Dump(Path("dump"), told, None, ordered(entries))


def unexplained(dump: Dump, folder: Path) -> list[Finding]:
    found = verify(dump, open_weights(folder).weights)
    return [f for f in found.findings if f.verdict not in (EXACT, REPRODUCED)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(
    "changes",
    [
        YARN,
        {"rope_scaling": {"type": "linear", "factor": 3.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          ORIGINAL: 16}},
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ],
    ids=["yarn", "linear", "llama3", "windows"],
)  # fmt: skip
def test_a_healthy_transformers(dtype: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **changes)
    assert unexplained(dumped(load(folder, dtype), TOKENS, [5], [9]), folder) == []


def plainly(rotary: Any) -> None:
    rotary.inv_freq.copy_(1 / 5000 ** (torch.arange(0, 8, 2) / 8))


def interpolated(rotary: Any) -> None:
    rotary.inv_freq.copy_(1 / 5000 ** (torch.arange(0, 8, 2) / 8) / 4)


def without_magnitude(rotary: Any) -> None:
    rotary.attention_scaling = 1.0


def magnitude_twice(rotary: Any) -> None:
    rotary.attention_scaling **= 2


def magnitude_alone(rotary: Any) -> None:
    plainly(rotary)


def nothing_of_it(rotary: Any) -> None:
    plainly(rotary)
    without_magnitude(rotary)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (nothing_of_it, "rope-scaling-missing"),
        (magnitude_alone, "rope-scaling-missing"),
        (without_magnitude, "rope-magnitude"),
        (magnitude_twice, "rope-magnitude"),
        (lambda rotary: (interpolated(rotary), without_magnitude(rotary)), "rope-scaling-other"),
    ],
    ids=["nothing of it", "magnitude alone", "without magnitude", "magnitude twice", "linear for yarn"],
)
def test_planted_in_a_yarn_model(mistake: Callable[[Any], Any], named: str, dtype: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **YARN)
    model = load(folder, dtype)
    mistake(model.model.rotary_emb)
    found = unexplained(dumped(model, TOKENS), folder)
    assert {(f.layer, f.stage) for f in found} == {(i, s) for i in (0, 1) for s in ("q_post_rope", "k_post_rope")}
    for f in found:
        assert named in {h.name for h in f.hypotheses}, json.dumps([h.sentence for h in f.hypotheses])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scaling_and_windows_that_the_configuration_has_not(dtype: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "scaled").mkdir()
    plain = folder_of(tmp_path / "plain")
    scaled = folder_of(tmp_path / "scaled", rope_scaling={"rope_type": "yarn", "factor": 4.0})
    found = unexplained(dumped(load(scaled, dtype), TOKENS), plain)
    assert {f.stage for f in found} == {"q_post_rope", "k_post_rope"}
    assert all("rope-scaling-of-none" in {h.name for h in f.hypotheses} for f in found)
    (tmp_path / "window").mkdir()
    window = folder_of(tmp_path / "window", use_sliding_window=True, sliding_window=6, max_window_layers=0)
    found = unexplained(dumped(load(plain, dtype), TOKENS), window)
    assert {f.stage for f in found} == {"attn_softmax"}
    assert all("window" in {h.name for h in f.hypotheses} for f in found)
