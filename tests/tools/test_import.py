"""engine import: arrays of other tools become a dump that holds the same values, or one line says why not."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from qwenref.errors import BadInput
from qwenref.tools.main import main
from qwenref.trace.axes import arranged
from qwenref.trace.sources import npz, open_dump
from qwenref.trace.sources.names import rule
from qwenref.trace.verify.verify import verify

from ..tiny import collect, tiny_weights, write_gguf
from .test_cli import engine, refused

IDS = [3, 200, 17, 9, 4]
W = tiny_weights()


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m.gguf", W)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Every stage of one pass of the reference in f32, as .npy under the stages' names."""
    folder = tmp_path / "arrays"
    (stages,) = collect(W, "reference", "f32", IDS)
    for (name, layer), values in stages.items():
        path = folder / (f"{name}.npy" if layer is None else f"layer-{layer}/{name}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    return folder


def imported(source: Path, target: Path, model: Path, *flags: str) -> str:
    done = engine("import", str(source), str(target), "-m", str(model), *flags)
    assert done.returncode == 0, done.stderr
    return done.stderr.decode()


def test_arrays_keep_every_bit_and_are_explained(arrays: Path, gguf: Path, tmp_path: Path) -> None:
    imported(arrays, tmp_path / "d", gguf, "--tokens", ",".join(map(str, IDS)))
    dump = open_dump(tmp_path / "d", W.config.sizes)
    assert len(dump.entries) == 2 * 17 + 1 + 2 and dump.run["tokens"] == IDS and dump.run["absent"] == {}
    for e in dump.entries:
        path = arrays / (f"{e.stage.name}.npy" if e.layer is None else f"layer-{e.layer}/{e.stage.name}.npy")
        assert e.values().tobytes() == np.load(path).astype(np.float32).tobytes()
    assert verify(dump, W).status == 0


def test_a_map_with_parts_axes_and_scale(arrays: Path, gguf: Path, tmp_path: Path) -> None:
    """As another engine might: Q, K and V apart, scores unscaled and by position, a batch axis, names of its own."""
    c, source = W.config, tmp_path / "own"
    source.mkdir()
    qkv = np.load(arrays / "layer-1/qkv_bias.npy")
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    for name, part in zip("qkv", np.split(qkv, [N * H, (N + K) * H], axis=1), strict=True):
        np.save(source / f"b1_{name}.npy", part.reshape(1, len(IDS), -1, H))
    scores = np.load(arrays / "layer-1/attn_scores.npy")
    np.save(source / "b1_kq.npy", (scores * np.sqrt(H)).transpose(1, 0, 2)[None])
    np.save(source / "b1_secret.npy", np.ones(3, np.float32))
    names = {f"b{{layer}}_{p[0]}": p for p in ("q_proj", "k_proj", "v_proj")}
    names |= {"b{layer}_kq": {"stage": "attn_scores", "axes": "T N S", "scale": 1 / np.sqrt(H)}}
    (tmp_path / "map.json").write_text(json.dumps(names))
    said = imported(source, tmp_path / "d", gguf, "--map", str(tmp_path / "map.json"))
    assert "1 arrays" in said and "b1_secret" in said
    dump = open_dump(tmp_path / "d", W.config.sizes)
    got = {e.stage.name: e.values().reshape(e.shape) for e in dump.entries}
    assert got.keys() == {"qkv_bias", "attn_scores"} and "attn_norm" in dump.run["absent"]
    np.testing.assert_array_equal(got["qkv_bias"], qkv)
    np.testing.assert_allclose(got["attn_scores"], scores, rtol=3 * 2**-24)  # scaled twice, rounded each time


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("layer-0/attn_norm", np.ones((5, 63), np.float32), "does not fit attn_norm"),
        ("layer-9/attn_norm", np.ones((5, 64), np.float32), "layers 0 to 1"),
        ("layer-0/attn_norm", np.ones((5, 64), np.int32), "values of I32"),
        ("layer-0/attn_norm", np.array([{}], dtype=object), "values of object"),
        ("secret", np.ones(3, np.float32), "--map"),
        ("lm_head", np.ones(0, np.float32), "holds no value"),
        ("layer-0/attn_norm", np.float32(1), "shape () does not fit attn_norm (T D=64)"),
        ("layer-0/attn_norm", np.ones((2, 5, 64), np.float32), "a batch of 2 prompts; say which is meant with --row"),
        ("layer-0/attn_norm", np.ones((64, 64), np.float32), "shape (64, 64) may be T D or D T; say which with axes"),
        ("layer-0/attention", np.ones((4, 4, 16), np.float32), "may be T N H or N T H"),
        ("layer-0/attn_scores", np.ones((4, 4, 4), np.float32), "may be N T S or T N S or T S N"),
        ("lm_head", np.ones((259, 259), np.float32), "may be T V or V T"),
        ("layer-0/attn_norm", np.ones((5, 64), ">f4").view([("a", ">f4")]), "floats of 16, 32 or 64 bits"),
        ("layer-0/attn_norm", np.ones((5, 64), np.longdouble), "floats of 16, 32 or 64 bits"),
    ],
)
def test_what_does_not_fit_is_named(name: str, values: np.ndarray, says: str, gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "arrays" / f"{name}.npy"
    path.parent.mkdir(parents=True)
    np.save(path, values, allow_pickle=True)
    assert says in refused("import", str(tmp_path / "arrays"), str(tmp_path / "d"), "-m", str(gguf))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "object"),
        ('{"x": "no_such"}', "no_such"),
        ('{"x": {"stage": "attn_norm", "axes": "T X"}}', "axes"),
        ('{"x": {"stage": "attn_norm", "scale": "2"}}', "scale"),
        ('{"x": {"stage": "attn_norm", "scale": 0}}', "scale"),
        ('{"x": {"stage": "attn_norm", "scale": 1' + 400 * "0" + "}}", "scale"),
        ('{"x": {"stage": "attn_norm", "scale": 1e999}}', "1e999 is larger than any float64"),
        ('{"x": {"stage": "q_proj", "axes": "T K H"}}', "axes"),
        ('{"x": 3}', "stage"),
        ('{"x": {"stage": ["attn_norm"]}}', "stage"),
    ],
)
def test_a_wrong_map_is_named(text: str, says: str, arrays: Path, gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(text)
    flags = ("-m", str(gguf), "--map", str(tmp_path / "map.json"))
    assert says in refused("import", str(arrays), str(tmp_path / "d"), *flags)


Layout = tuple[str, Callable[[np.ndarray], np.ndarray]]
LAYOUTS: list[Layout] = [
    ("attn_norm", lambda x: x[None, None]),
    ("attn_norm", lambda x: x.T),
    ("attn_norm", np.asfortranarray),
    ("attn_norm", lambda x: x[:, None]),
    ("attn_norm", lambda x: x.reshape(-1)),
    ("qkv_bias", lambda x: x.T[None]),
    ("q_post_rope", lambda x: x.transpose(1, 0, 2)),
    ("k_post_rope", lambda x: x.transpose(1, 0, 2)[None]),
    ("attention", lambda x: x.reshape(len(x), -1)),
    ("attention", lambda x: x.reshape(len(x), -1).T),
    ("attention", lambda x: x.transpose(1, 2, 0)),
    ("attn_softmax", lambda x: x.transpose(1, 0, 2)),
    ("attn_scores", lambda x: x.transpose(1, 2, 0)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(LAYOUTS)])
def test_axes_are_told_by_the_sizes(layout: Layout, arrays: Path, gguf: Path, tmp_path: Path) -> None:
    """Laid out anew by NumPy and imported: the stage's own order again, bit for bit. T=5 D=64 N=4 K=2 H=16."""
    name, laid_out = layout
    path = arrays / f"layer-1/{name}.npy"
    right = np.load(path)
    np.save(path, laid_out(right))
    assert main(["import", str(arrays), str(tmp_path / "d"), "-m", str(gguf)]) == 0
    e = open_dump(tmp_path / "d").get(name, 1)
    assert e is not None and e.values().tobytes() == right.tobytes()


def test_another_order_is_said(arrays: Path, gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(arrays / "layer-1/attn_norm.npy", np.load(arrays / "layer-1/attn_norm.npy").T)
    assert main(["import", str(arrays), str(tmp_path / "d"), "-m", str(gguf)]) == 0
    assert capsys.readouterr().err == 'read by their axes: "layer-1/attn_norm (D T)"\n'


@pytest.mark.parametrize(("shape", "positions"), [((259,), 0), ((1, 259), 0), ((1, 5, 259), 4), ((259, 5), 4)])
def test_the_logits_of_the_last_position(shape: tuple[int, ...], positions: int, gguf: Path, tmp_path: Path) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    last = values[:, -1] if shape == (259, 5) else values.reshape(-1, 259)[-1]
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays/lm_head.npy", values)
    assert main(["import", str(tmp_path / "arrays"), str(tmp_path / "d"), "-m", str(gguf)]) == 0
    e = open_dump(tmp_path / "d").get("lm_head")
    assert e is not None and e.positions == (positions,)
    np.testing.assert_array_equal(e.values(), last)


def test_axes_of_a_map_decide(gguf: Path, tmp_path: Path) -> None:
    """Four positions and four heads: the sizes leave the choice, the map has made it."""
    values = np.arange(4 * 4 * 16, dtype=np.float32).reshape(4, 4, 16)
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays/att.0.npy", values)
    for axes, right in (("T N H", values), ("N T H", values.swapaxes(0, 1)), ("H T N", None)):
        (tmp_path / "map.json").write_text(json.dumps({"att.{layer}": {"stage": "attention", "axes": axes}}))
        flags = ["-m", str(gguf), "--map", str(tmp_path / "map.json")]
        assert main(["import", str(tmp_path / "arrays"), str(tmp_path / "d"), *flags]) == (2 if right is None else 0)
        if right is not None:
            e = open_dump(tmp_path / "d").get("attention", 0)
            assert e is not None
            np.testing.assert_array_equal(e.values(), right)


@given(st.permutations("TNH"), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_no_order_is_guessed(order: list[str], T: int, N: int, H: int, told: bool) -> None:
    """Whatever the sizes: the stage's own values, or a refusal."""
    sizes = {"T": T, "N": N, "H": H}
    right = np.arange(T * N * H, dtype=np.float32).reshape(T, N, H)
    given_ = right.transpose(["TNH".index(letter) for letter in order])
    try:
        found, _ = arranged(given_, ("T", "N", "H"), sizes, tuple(order) if told else None)
    except BadInput as error:
        assert not told and ("may be" in str(error) or "does not fit" in str(error))
        return
    if told or [n for n in order if n != "T"] == ["N", "H"]:
        np.testing.assert_array_equal(found, right)
    else:  # channels before heads, which no engine has: it passes only where an order that is one has these sizes
        shapes = [[n for n in shape if n > 1] for shape in ((T, N, H), (N, T, H), (N, H, T))]
        assert [n for n in given_.shape if n > 1] in shapes


@pytest.mark.parametrize(
    ("pattern", "name", "layer"),
    [
        ("blk{layer}_x", "blk12_x", "12"),
        ("*.{layer}.x", "model.layers.3.x", "3"),
        ("layer-{layer}/blk{layer}", "layer-7/blk7", "7"),
        ("layer-{layer}/blk{layer}", "layer-7/blk8", None),
        ("a**b*c", "a1b2b3c", ""),
        ("{stage}", "attn_norm", None),
        ("*" * 50 + "x", "a" * 5000, None),
        ("*a" * 40 + "x", "a" * 5000, None),
    ],
)
def test_patterns(pattern: str, name: str, layer: str | None) -> None:
    """Groups named twice, many stars: no error, no time."""
    m = rule(pattern, "attn_norm").name.fullmatch(name)
    assert (m is None) == (layer is None)
    assert m is None or m.groupdict().get("layer", "") == layer


def bytes_of(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


GOOD_NPY = bytes_of(np.ones((5, 64), np.float32))


def npy_of(header: str, version: bytes = b"\1\0") -> bytes:
    size = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + size + header.encode("latin-1") + bytes(4 * 320)


def described(shape: str = "(5, 64)", descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x93NUMPY", GOOD_NPY[:9], GOOD_NPY[:60], GOOD_NPY[:-1], GOOD_NPY + b"x", b"PK\3\4" + bytes(100),
        npy_of("", b"\1\0"), npy_of(described(), b"\3\0"), npy_of(described(), b"\x09\0"), npy_of("(" * 9000),
        npy_of("[" * 100 + "]" * 100), npy_of("{" * 60000, b"\2\0"), npy_of(described(shape="(-5, -64)")),
        npy_of(described(shape="(5, 64.0)")), npy_of(described(shape="(True, 320)")), npy_of(described(shape="5, 64")),
        npy_of(described(shape=f"({'1, ' * 40}320)")), npy_of(described(shape=f"({10**30},)")),
        npy_of(described(shape="(4611686018427387904, 4)")), npy_of(described(descr="'|O'")),
        npy_of(described(descr="[('a', '<f4')]")), npy_of(described(descr="('<f4', (2,))")),
        npy_of(described(descr="'<f16'")), npy_of(described(descr="'M8[s]'")), npy_of(described(descr="'nonsense'")),
        npy_of(described(descr="{'names': 1}")), npy_of(described(order="3")),
        npy_of("{'descr': '<f4'}"), npy_of("{'descr': '<f4', 'x': 1}"), npy_of("__import__('os').abort()"),
        npy_of("'\\d'"), npy_of("\0\0\0"), npy_of("{1L: 2L}"), npy_of("é" * 10),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_headers_that_nobody_vouches_for(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(BadInput) as error:
        npz.read(tmp_path / "x.npy")
    assert str(error.value).startswith(f"{tmp_path}/x.npy: ") and len(str(error.value)) < len(str(tmp_path)) + 250


@given(st.data())
def test_mutated_files_are_arrays_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw = bytearray(GOOD_NPY)
    for at in data.draw(st.lists(st.integers(0, 127), min_size=1, max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    path.write_bytes(bytes(raw))
    with suppress(BadInput):
        assert npz.read(path).arrays[0].kind


def test_safetensors_of_several_tensors_or_of_none(gguf: Path, tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    two = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    for tensors, says in ((two, '"model.norm_outputs/a", '), ({}, "no array")):
        save_file(tensors, source / "model.norm_outputs.safetensors")
        assert says in refused("import", str(source), str(tmp_path / "d"), "-m", str(gguf))


def test_two_files_of_one_stage_and_disagreeing_lengths(arrays: Path, gguf: Path, tmp_path: Path) -> None:
    where = (str(arrays), str(tmp_path / "d"), "-m", str(gguf))
    np.save(arrays / "attn_norm.0.npy", np.ones((5, 64), np.float32))
    assert "is also in" in refused("import", *where)
    (arrays / "attn_norm.0.npy").unlink()
    np.save(arrays / "layer-1/ffn_norm.npy", np.ones((4, 64), np.float32))
    assert "does not fit ffn_norm" in refused("import", *where)


def test_text_of_llama_cpp_says_what_would_do(gguf: Path, tmp_path: Path) -> None:
    text = tmp_path / "callback.txt"
    text.write_text(
        "ggml_debug:   inp_embd = (f32)  GET_ROWS(token_embd.weight{64, 259, 1, 1}) = {64, 5, 1, 1}\n [ 0.01, ...]"
    )
    assert "dump-llamacpp" in refused("import", str(text), str(tmp_path / "d"), "-m", str(gguf))


DEBUGGER = """
import sys, torch
from pathlib import Path
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.model_debugging_utils import model_addition_debugger_context as debugger
torch.manual_seed(0)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=259, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)).eval()
model.save_pretrained(sys.argv[1])
for name, flag in (("printed", True), ("saved", False)):
    with debugger(model, debug_path=f"{sys.argv[1]}/{name}", do_prune_layers=False, use_repr=flag):
        model.forward(input_ids=torch.tensor([[3, 200, 17, 9, 4]]))
"""


@pytest.mark.oracle
def test_what_the_debugger_of_transformers_saves(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs transformers (make oracle)")
    subprocess.run([sys.executable, "-c", DEBUGGER, str(tmp_path / "hf")], check=True, capture_output=True)
    model = tmp_path / "hf"
    imported(model / "saved", tmp_path / "d", model)
    from qwenref.tools.load import open_weights

    c, w = open_weights(str(model))
    dump = open_dump(tmp_path / "d", c.config.sizes)
    assert dump.run["tokens"] == IDS
    names = {e.stage.name for e in dump.entries}
    assert names >= {"embedding", "qkv_bias", "attention", "ffn_swigl", "post_ffn_residual", "final_norm", "lm_head"}
    assert names.isdisjoint({"attn_scores", "attn_softmax", "q_post_rope", "k_post_rope", "qkv_matmul"})
    assert sorted({e.layer for e in dump.entries if e.stage.name == "post_ffn_residual"}) == [0, 1, 2]
    assert verify(dump, w).status == 0
    assert "use_repr=False" in refused("import", str(model / "printed"), str(tmp_path / "e"), "-m", str(model))
