"""Makes tests/golden/quantised.safetensors: weights as quantising libraries save and decode them, and whole models.

    python -m qwenref.tools.dev.golden_quantised tests/golden/quantised.safetensors

Needs torch, transformers, safetensors, gptqmodel, autoawq, compressed-tensors, bitsandbytes and mlx[cpu]. A case is a
module m of random weights, in the tensors that the library makes of it, and `=`, what the library decodes of these. A
model is a random Qwen2 of two layers, each Linear (and with MLX the embedding) a case of its own, and `logits`, what
Transformers computes in float64 with the decoded weights for the ids of `tokens`, as bytes. AutoAWQ has no decoder of
its gemv layout but a CUDA kernel; what it decodes is worked out here from the same codes, scales and zero points.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..dump_hf import capture, cast_weights

Parts = dict[str, Any]
LIBRARIES = (
    "torch", "transformers", "gptqmodel", "autoawq", "compressed-tensors", "bitsandbytes", "mlx", "mlx-cpu",
)  # fmt: skip


class Case(NamedTuple):
    """config: the field of config.json and what it holds. make: weight -> parts, and the decoded weight."""

    config: dict[str, Any]
    make: Callable[[Any], tuple[Parts, Any]]
    shape: tuple[int, int] = (32, 64)
    model: bool = False


def affine(w: Any, bits: int, group: int, dtype: Any, symmetric: bool = False) -> tuple[Any, Any]:
    """Scales and zero points [O, G] of the usual rule: the codes reach from the smallest value to the largest."""
    import torch

    groups = w.reshape(len(w), -1, group)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scale = ((high - low) / (2**bits - 1)).to(dtype)
    zero = torch.full_like(low, 2 ** (bits - 1)) if symmetric else torch.round(-low / scale.float())
    return scale, zero.clamp(0, 2**bits - 1)


def gptq(
    bits: int, group: int = 32, act: bool = False, sym: bool = False, v2: bool = False, bf16: bool = False
) -> Case:
    def make(w: Any) -> tuple[Parts, Any]:
        import torch
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear
        from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

        O, I = w.shape
        size = I if group == -1 else group
        g_idx = torch.arange(I, dtype=torch.int32) // size
        if act:
            g_idx = g_idx[torch.randperm(I, generator=torch.Generator().manual_seed(5))].contiguous()
        dtype = torch.bfloat16 if bf16 else torch.float16
        scale, zero = affine(w[:, torch.argsort(g_idx, stable=True)], bits, size, dtype, sym)
        if not v2:
            zero = zero.clamp(min=1)  # version 1 can not hold 0
        made = TorchLinear(
            bits=bits, group_size=group, sym=sym, desc_act=act, in_features=I, out_features=O, dtype=dtype
        )
        linear = torch.nn.Linear(I, O, bias=False)
        linear.weight.data = w.clone()
        made.pack_original(linear, scale.float(), zero, g_idx)
        made.scales = scale.T.contiguous()
        made.eval().post_init()
        decoded = made.dequantize_weight().T.contiguous()
        if not v2:
            convert_gptq_v2_to_v1_format_module(made, made)
        parts = {name: getattr(made, name) for name in ("qweight", "qzeros", "scales")}
        return parts | {"g_idx": g_idx}, decoded

    says = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act, "sym": sym}
    return Case(
        {"quantization_config": says | {"checkpoint_format": "gptq_v2" if v2 else "gptq"}},
        make,
        model=act and bits == 4,
    )


def autoawq(module: str) -> ModuleType:
    """A module of AutoAWQ's, whose package imports data sets and old Transformers."""
    from importlib import import_module

    if "awq" not in sys.modules:
        found = find_spec("awq")
        assert found is not None and found.submodule_search_locations is not None
        for name in ("awq", "awq.modules", "awq.modules.linear", "awq.utils"):
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [f"{found.submodule_search_locations[0]}/{'/'.join(name.split('.')[1:])}"]
    return import_module(f"awq.{module}")


def awq(layout: str, group: int, model: bool = False, shape: tuple[int, int] = (32, 64)) -> Case:
    def make(w: Any) -> tuple[Parts, Any]:
        import torch

        O, I = w.shape
        linear = torch.nn.Linear(I, O, bias=False)
        linear.weight.data = w.half()
        scale, zero = affine(w, 4, group, torch.float16)
        if layout == "gemm":
            m = autoawq("modules.linear.gemm").WQLinear_GEMM.from_linear(
                linear, 4, group, False, scale.T.contiguous(), zero.T.contiguous()
            )
            unpacked = autoawq("utils.packing_utils").dequantize_gemm
            decoded = unpacked(m.qweight, m.qzeros, m.scales, 4, group).T.contiguous()
        else:
            m = autoawq("modules.linear.gemv").WQLinear_GEMV.from_linear(linear, 4, group, False, scale, zero)
            # As from_linear rounds: column by column, in half precision.
            each, offset = scale.repeat_interleave(group, 1), (zero * scale).repeat_interleave(group, 1)
            code = torch.round((linear.weight.data + offset) / each).int()
            decoded = (code - zero.int().repeat_interleave(group, 1)) * each
        return {name: getattr(m, name) for name in ("qweight", "qzeros", "scales")}, decoded

    says = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": layout}
    return Case({"quantization_config": says | {"modules_to_not_convert": None}}, make, shape, model)


def fp8(
    block: tuple[int, int] | None, shape: tuple[int, int], model: bool = False, dtype: str = "float8_e4m3fn"
) -> Case:
    """Transformers' finegrained_fp8; for a whole tensor the scale is one number."""

    def make(w: Any) -> tuple[Parts, Any]:
        import torch
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize

        float8, (O, I), (rows, columns) = getattr(torch, dtype), w.shape, block or w.shape
        size = w.reshape(O // rows, rows, I // columns, columns).abs().amax((1, 3))
        scale = (size / torch.finfo(float8).max).float()
        q = (w / scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)).to(float8)
        decoded = Fp8Dequantize(None)._dequantize_one(q, scale)
        return {"weight": q, "weight_scale_inv": scale if block else scale.reshape(())}, decoded

    says = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block and list(block)}
    return Case({"quantization_config": says}, make, shape, model)


def compressed(format: str, shape: tuple[int, int] = (32, 64), model: bool = False, **weights: Any) -> Case:
    def make(w: Any) -> tuple[Parts, Any]:
        import torch
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        args = QuantizationArgs(**weights)
        dtype, (O, I) = torch.bfloat16, w.shape
        if args.strategy == "block":
            rows, columns = args.block_structure
            padded = torch.nn.functional.pad(w, (0, -I % columns, 0, -O % rows))
            size = padded.reshape(-(-O // rows), rows, -(-I // columns), columns).abs().amax((1, 3))
        else:
            size = (
                {"tensor": w.reshape(1, -1), "channel": w, "group": w.reshape(O, -1, args.group_size or I)}[
                    args.strategy
                ]
                .abs()
                .amax(-1)
            )
            size = size.reshape(O, 1) if args.strategy == "channel" else size
        state = {"weight": w.to(dtype)}
        if args.type == "float":
            state["weight_scale"] = (size / 448).to(dtype)
        elif args.symmetric:
            state["weight_scale"] = (size * 2 / (2**args.num_bits - 1)).to(dtype)
        else:
            scale, zero = affine(w, args.num_bits, args.group_size or I, dtype)
            state |= {"weight_scale": scale, "weight_zero_point": (zero - 2 ** (args.num_bits - 1)).to(torch.int8)}
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        compressor = BaseCompressor.get_value_from_registry(format)
        parts = compressor.compress(state, scheme)
        return parts, compressor.decompress(parts, scheme)["weight"]

    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    says = {"quant_method": "compressed-tensors", "format": format, "config_groups": groups, "ignore": ["lm_head"]}
    return Case({"quantization_config": says | {"quantization_status": "compressed"}}, make, shape, model)


def bnb4(kind: str, dtype: str, nested: bool, shape: tuple[int, int] = (32, 64), model: bool = False) -> Case:
    def make(w: Any) -> tuple[Parts, Any]:
        import torch
        from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        q, state = quantize_4bit(w.to(getattr(torch, dtype)), blocksize=64, quant_type=kind, compress_statistics=nested)
        parts = {"weight": q} | {f"weight.{name}": x for name, x in state.as_dict(packed=True).items()}
        if (
            w.shape[1] % 64
        ):  # there the CPU kernel of 0.50.2 gives other values than its own plain PyTorch, and wrong ones
            flat = (q.reshape(-1), state.absmax, state.code, 64, w.shape, state.dtype)
            return parts, _dequantize_4bit_compute(*flat)
        return parts, dequantize_4bit(q, state)

    says = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return Case({"quantization_config": says | {"bnb_4bit_use_double_quant": nested}}, make, shape, model)


def bnb8() -> Case:
    def make(w: Any) -> tuple[Parts, Any]:
        import torch
        from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

        q, scb, _ = int8_vectorwise_quant(w.half())
        decoded = int8_vectorwise_dequant(q, scb)
        return {"weight": q, "SCB": scb, "weight_format": torch.tensor(0, dtype=torch.uint8)}, decoded

    return Case({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, make)


def mlx(bits: int, group: int, dtype: str, model: bool = False) -> Case:
    def make(w: Any) -> tuple[Parts, Any]:
        import mlx.core as mx

        mx.set_default_device(mx.cpu)
        made = mx.quantize(mx.array(w.numpy()).astype(getattr(mx, dtype)), group_size=group, bits=bits)
        decoded = mx.dequantize(*made, group_size=group, bits=bits)
        return dict(zip(("weight", "scales", "biases"), map(torch_of, made), strict=True)), torch_of(decoded)

    says = {"group_size": group, "bits": bits}
    return Case({"quantization": says, "quantization_config": says}, make, model=model)


def torch_of(x: Any) -> Any:
    """MLX's array as PyTorch's, of the same type."""
    import mlx.core as mx
    import torch

    if x.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(x.view(mx.uint16)).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(x))


INT4: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
CASES = {
    **{f"gptq-{bits}": gptq(bits) for bits in (2, 3, 4, 8)},
    "gptq-4-v2": gptq(4, v2=True),
    "gptq-3-v2": gptq(3, v2=True),
    "gptq-8-v2-bf16": gptq(8, v2=True, bf16=True),
    "gptq-4-sym": gptq(4, sym=True),
    "gptq-4-channel": gptq(4, group=-1, sym=True),
    "gptq-4-act": gptq(4, act=True),
    "gptq-3-act": gptq(3, act=True),
    "awq-gemm": awq("gemm", 32, model=True),
    "awq-gemv": awq("gemv", 64, shape=(16, 192)),
    "fp8-block": fp8((32, 32), (64, 96), model=True),
    "fp8-128": fp8((128, 128), (128, 256)),
    "fp8-tensor": fp8(None, (32, 64)),
    "fp8-e5m2": fp8((32, 32), (32, 64), dtype="float8_e5m2"),
    "ct-fp8-tensor": compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
    "ct-fp8-channel": compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    "ct-fp8-block": compressed(
        "float-quantized", (40, 160), num_bits=8, type="float", strategy="block", block_structure=[32, 128]
    ),
    "ct-int4": compressed("pack-quantized", **INT4),
    "ct-int4-asym": compressed("pack-quantized", (36, 64), True, symmetric=False, **INT4),
    "ct-int4-channel": compressed("pack-quantized", num_bits=4, type="int", strategy="channel"),
    "ct-int3": compressed("pack-quantized", symmetric=False, **INT4 | {"num_bits": 3}),
    "ct-int8-packed": compressed("pack-quantized", num_bits=8, type="int", strategy="channel"),
    "ct-int8": compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
    "ct-int8-asym": compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
    "bnb-nf4": bnb4("nf4", "bfloat16", nested=False),
    "bnb-nf4-nested": bnb4("nf4", "bfloat16", nested=True, model=True),
    "bnb-fp4": bnb4("fp4", "float16", nested=False),
    "bnb-nf4-f32-ragged": bnb4("nf4", "float32", nested=False, shape=(32, 96)),
    "bnb-int8": bnb8(),
    **{f"mlx-{bits}": mlx(bits, 64, "bfloat16", model=bits == 4) for bits in (2, 3, 4, 5, 6, 8)},
    "mlx-4-f16": mlx(4, 32, "float16"),
    "mlx-8-f32": mlx(8, 32, "float32"),
}

TOKENS = list(range(3, 51, 4))
SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 64, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
}  # fmt: skip


def model_of(case: Case, tied: bool) -> tuple[Parts, dict[str, Any]]:
    """A whole model's tensors with `logits` and `tokens`, and its config.json."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = Qwen2Config(**SIZES, rope_parameters=rope, tie_word_embeddings=tied, attn_implementation="eager")
    model = Qwen2ForCausalLM(config).eval()
    tensors: Parts = {}
    with torch.no_grad():
        for name, x in model.state_dict().items():
            if x.ndim == 1:
                x.copy_(torch.randn_like(x) * 0.2 + ("norm" in name))
                tensors[name] = x.clone()
            elif "proj" in name or ("embed" in name and "quantization" in case.config):
                x.copy_(torch.randn_like(x) / x.shape[1] ** 0.5)
                parts, decoded = case.make(x.clone())
                x.copy_(decoded)
                tensors |= {f"{name.removesuffix('.weight')}.{part}": p for part, p in parts.items()}
            elif not (tied and "lm_head" in name):
                x.copy_((torch.randn_like(x)).bfloat16())
                tensors[name] = x.bfloat16()
        with capture(cast_weights(model, "float64"), lambda *stage: None):
            tensors["logits"] = model(torch.tensor([TOKENS])).logits[0].contiguous().view(torch.uint8)
    tensors["tokens"] = torch.tensor(TOKENS)
    said = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rope_theta": 1e6}
    return tensors, said | SIZES | {"tie_word_embeddings": tied} | case.config


def write(path: str | Path, names: Iterable[str], seed: int, models: bool) -> None:
    """Those cases, of random weights, as one file."""
    import torch
    from safetensors.torch import save_file

    tensors: Parts = {}
    configs: dict[str, Any] = {}
    for name in names:
        case = CASES[name]
        weight = torch.randn(case.shape, generator=torch.Generator().manual_seed(seed)) * 0.05
        parts, decoded = case.make(weight)
        tensors |= {f"{name}/m.{part}": x for part, x in parts.items()} | {f"{name}/=": decoded}
        configs[name] = case.config
        if case.model and models:
            whole, said = model_of(case, tied=name.startswith("mlx"))
            tensors |= {f"model {name}/{part}": x for part, x in whole.items()}
            configs[f"model {name}"] = said
    installed = {name: version(name) for name in LIBRARIES if any(distributions(name=name))}
    about = {"made": f"python -m qwenref.tools.dev.golden_quantised: {installed}", "configs": json.dumps(configs)}
    save_file({name: x.contiguous() for name, x in tensors.items()}, path, about)


if __name__ == "__main__":
    write(sys.argv[1], CASES, seed=3, models=True)
