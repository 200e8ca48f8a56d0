"""GGUF files that gguf-py's writer makes, each type that gguf-py can quantise.

python by_gguf_py.py FOLDER
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from ground import TEMPLATE, weights
from llama import base, expect, hugging_face

MAKER = f"gguf-py {version('gguf')}"
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4", "TQ1_0", "TQ2_0")


def tensors(width: int, mlp: int, rows: int, layers: int, head: int, tied: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of a model of two query heads on one, by ggml's names."""
    block = {
        "attn_norm.weight": (width,), "attn_q.weight": (2 * head, width), "attn_q.bias": (2 * head,),
        "attn_k.weight": (head, width), "attn_k.bias": (head,), "attn_v.weight": (head, width), "attn_v.bias": (head,),
        "attn_output.weight": (width, 2 * head), "ffn_norm.weight": (width,), "ffn_gate.weight": (mlp, width),
        "ffn_up.weight": (mlp, width), "ffn_down.weight": (width, mlp),
    }  # fmt: skip
    shapes = {f"blk.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    ends = {"token_embd.weight": (rows, width), "output_norm.weight": (width,)}
    return ends | ({} if tied else {"output.weight": (rows, width)}) | shapes


def write(
    root: Path, name: str, type_: str = "F16", *, width: int = 64, mlp: int = 96, rows: int = 352, layers: int = 2,
    head: int = 32, tied: bool = False, kind: str = "coarse", alignment: int | None = None, more: Any = None,
    order: Any = list, **writer: Any,
) -> Path:  # fmt: skip
    """A file of that name; matrices in type_, norms and biases F32; more(writer) adds what is special."""
    path = root / f"{name}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    w = gguf.GGUFWriter(path, "qwen2", **writer)
    if alignment:
        w.add_custom_alignment(alignment)
    w.add_name(name)
    w.add_context_length(256)
    w.add_embedding_length(width)
    w.add_block_count(layers)
    w.add_feed_forward_length(mlp)
    w.add_head_count(2)
    w.add_head_count_kv(1)
    w.add_rope_freq_base(1000000.0)
    w.add_layer_norm_rms_eps(1e-6)
    tokens, types, merges = base(root)
    pads = range(len(tokens), rows)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens + [f"[PAD{i}]" for i in pads])
    w.add_token_types(types + [5] * len(pads))
    w.add_token_merges(merges)
    w.add_eos_token_id(329)
    w.add_pad_token_id(330)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)
    if more:
        more(w)
    for tensor, shape in order(list(tensors(width, mlp, rows, layers, head, tied).items())):
        x = weights(hugging_face(tensor), shape, kind)
        as_ = Type[type_ if len(shape) > 1 else "F32"]
        if as_ in (Type.F32, Type.F16):
            w.add_tensor(tensor, x.astype(np.float32 if as_ == Type.F32 else np.float16))
        else:
            w.add_tensor(tensor, gguf.quants.quantize(x, as_), raw_dtype=as_)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def main() -> None:
    root = Path(sys.argv[1])

    def made(name: str, what: str, type_: str = "F16", path: str | None = None, **more: Any) -> None:
        write(root, (path or name).removesuffix(".gguf").split("-00001-of")[0], type_, **more)
        expect(root, name, MAKER, what, path)

    for type_ in TYPES:
        wide = {"width": 256, "mlp": 256, "layers": 1, "head": 128} if type_.startswith("TQ") else {}
        made(f"gguf-{type_.lower()}", f"every matrix {type_}", type_, kind="sparse", **wide)
    made("gguf-tied", "no output.weight", tied=True)
    made("gguf-alignment-64", "general.alignment 64", alignment=64)
    made("gguf-alignment-256", "general.alignment 256", alignment=256)
    made("gguf-reversed", "tensors in the reverse order", order=lambda items: items[::-1])
    made("gguf-many-pads", "512 rows for 334 tokens", rows=512)
    made("gguf-no-pads", "as many rows as tokens", rows=334)
    made("gguf-split", "six parts, at most five tensors each", path="gguf-split/m-00001-of-00006.gguf",
         split_max_tensors=5)  # fmt: skip
    made("gguf-split-no-first", "a first part without tensors", path="gguf-split-no-first/m-00001-of-00004.gguf",
         split_max_tensors=9, small_first_shard=True)  # fmt: skip

    def merged(w: Any) -> None:
        """What `llama-gguf-split --merge` leaves."""
        w.add_uint16("split.no", 0)
        w.add_uint16("split.count", 0)
        w.add_int32("split.tensors.count", 0)

    made("gguf-merged", "split.count 0, as gguf-split --merge leaves it", more=merged)

    def general(w: Any) -> None:
        w.add_author("someone")
        w.add_languages(["en", "de"])
        w.add_tags(["a", "b"])
        w.add_license("apache-2.0")
        w.add_quantized_by("someone")
        w.add_base_model_count(1)
        w.add_base_model_name(0, "base")
        w.add_sampling_temp(0.7)
        w.add_sampling_top_p(0.8)
        w.add_file_type(1)
        w.add_quantization_version(2)
        w.add_float64("own.key", 0.5)
        w.add_array("own.array", [1, 2, 3])
        w.add_array("own.nested", ["x", "y"])

    made("gguf-general", "many general.* keys, sampling keys and keys of one's own", more=general)

    def neutral(w: Any) -> None:
        w.add_causal_attention(True)
        w.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        w.add_rope_scaling_factor(1.0)
        w.add_vocab_size(352)
        w.add_rope_dimension_count(32)
        w.add_expert_count(0)
        w.add_sliding_window(0)

    made("gguf-neutral-keys", "keys that say what holds without them", more=neutral)

    def bos(w: Any) -> None:
        w.add_bos_token_id(330)

    made("gguf-bos-unused", "a BOS id that add_bos_token says is not put first", more=bos)

    def ends(w: Any) -> None:
        w.add_eot_token_id(330)
        w.add_eom_token_id(331)

    made("gguf-eot-eom", "ends of turn and of message beside EOS", more=ends)
    write(root, "gguf-big-endian", "F32", kind="coarse", layers=1, endianess=gguf.GGUFEndian.BIG)
    expect(root, "gguf-big-endian", MAKER, "big-endian", refused=["big-endian", "convert"])


if __name__ == "__main__":
    main()
