"""engine dump-hf: every stage of a Hugging Face Transformers run, captured where the model computes it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from ..engine.files import open_checkpoint
from ..engine.models import ARCHITECTURES
from ..engine.models.decoder import OPTIONAL, WHOLE
from ..engine.models.heads import NONE
from ..engine.models.vision import VISIONS
from ..engine.weights import Layer
from ..errors import BadInput
from ..trace.stages import Module, Stage, of_pieces
from .foreign import Emit, Forward, add_dump_arguments, job, write_dump
from .terminal import on_stderr

DTYPES = ("float32", "float16", "bfloat16", "float64")
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flex_attention")
NOTES = (
    "a product and its bias are taken apart, a product and then a sum; Transformers fuses them, which rounds once less",
    "values of 16 bits are widened to float32, exactly; float64 is rounded to float32",
)
WIDE = (
    "norms, soft-max, cosine and sine, which Transformers computes in float32 in every dtype, were patched to float64",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs a model in Transformers and writes its stages, as engine trace does. Products and their biases are\n"
        "taken apart for that, and attention is eager; with --hooks-only, or another --attention, the model computes\n"
        "as its users have it, and stages that it fuses are absent (qwenref.hooks does the same for any torch model).\n"
        "So it does with --batch: several prompts side by side, into one file, for engine verify --row N. A model of\n"
        "quantised weights (GPTQ, AWQ, bitsandbytes ...) is run by its own library, and only in these two ways."
    )
    parser.epilog = (
        "needs torch and transformers: pip install 'qwenref[oracle]'\n"
        "examples:\n"
        "  engine dump-hf model.gguf hf-trace -p 'def f(n):' --decode-steps 2\n"
        "  engine dump-hf model-hf/ as-it-is --dtype bfloat16 --hooks-only\n"
        "  engine dump-hf model-hf/ batch.safetensors --batch prompts.txt"
    )
    add_dump_arguments(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="what it computes in (default: float32)")
    parser.add_argument(
        "--hooks-only", action="store_true", help="change nothing: what the model's own modules show, no more"
    )
    parser.add_argument(
        "--attention",
        choices=ATTENTIONS,
        metavar="NAME",
        help=f"Transformers' implementation: {', '.join(ATTENTIONS)} (default: eager; sdpa with --hooks-only)",
    )
    parser.add_argument(
        "--batch",
        metavar="FILE",
        help="a prompt in each line, run side by side, padded on the left; DIR is then the name of a file",
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="torch's name of a device (default: cpu)")


def fused(stages: Mapping[str, Stage]) -> dict[str, str]:
    """Those of a model's stages that no module shows."""
    why = "inside of one of Transformers' modules, which --hooks-only leaves as they are"
    return {name: why for name, s in stages.items() if not s.hf}


def main(args: argparse.Namespace) -> int:
    if not sys.stderr.isatty():  # Transformers shows bars of its own
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise BadInput(f"dump-hf needs {error.name}; get it with: pip install 'qwenref[oracle]'") from None
    as_it_is = args.hooks_only or args.batch is not None or args.attention not in (None, "eager")
    attention = args.attention or ("sdpa" if as_it_is else "eager")
    if args.batch is not None:
        from .dump_hf_batch import dump

        def loaded(path: Path, stages: Mapping[str, Stage]) -> Any:
            return checked(load(path, args.dtype, args.device, attention, as_it_is), stages, path)

        lacking = dump(args, loaded, fused)
        on_stderr(f"absent, since Transformers fuses them: {', '.join(lacking)}")
        return 0
    j = job(args, fused if as_it_is else lambda stages: {})
    model = checked(load(j.checkpoint.path, args.dtype, args.device, attention, as_it_is), j.stages, j.checkpoint.path)
    changed = [NOTES[0], *(WIDE if args.dtype == "float64" else ())]
    facts = {
        "engine": "transformers",
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "backend": f"{args.device}, {attention} attention{', nothing patched' * as_it_is}",
        "precision": args.dtype,
        "notes": [*([] if as_it_is else changed), NOTES[1]],
    }
    write_dump(j, running(model, observed if as_it_is else capture), facts)
    if as_it_is:
        on_stderr(f"absent, since Transformers fuses them: {', '.join(j.absent)}")
    return 0


@contextmanager
def running(model: Any, looking: Callable[[Any, Emit], AbstractContextManager[None]]) -> Iterator[Forward]:
    """A forward pass of the model, with its key/value cache from call to call; of one without logits, the final norm's
    last row. looking: hands out the stages."""
    import torch
    import transformers

    past: Any = transformers.DynamicCache()  # of no configuration: of layers with a window, too, it keeps all

    def forward(tokens: Sequence[int], emit: Emit) -> NDArray[np.floating[Any]]:
        with looking(model, emit):
            ids = torch.tensor([tokens], device=model.model.device)
            how = {"past_key_values": past, "use_cache": True}
            if hasattr(model, "lm_head"):
                last = model(ids, logits_to_keep=1, **how).logits
            else:
                last = model.model(ids, **how).last_hidden_state
        row: NDArray[np.floating[Any]] = last[0, -1].float().cpu().numpy()
        return row

    yield forward


def load(
    path: Path, dtype: str = "float32", device: str = "cpu", attention: str = "eager", as_it_is: bool = False
) -> Any:
    """Transformers' model from a GGUF file or a Hugging Face folder, with the head that its file has; one without is
    the `model` of a module that has nothing else. attention: Transformers' name of it.

    as_it_is: nothing will be patched, so that quantised weights, which compute in modules of their library, are right.

    The inverse frequencies stay float32 in every dtype, as Transformers has them. Raises BadInput for an architecture
    that is not one of ours, and for a device or an attention that this torch does not have.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    # Absolute: Transformers looks for a bare name in the working directory first.
    where = {"gguf_file": str(path.absolute())} if path.is_file() else {}
    folder = path.parent if where else path
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {device}: {str(error).splitlines()[0]}") from None
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **where)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: Transformers cannot open it: {str(error).splitlines()[0]}") from None
    sees = config.model_type in [v.model_type for v in VISIONS]
    if not sees and config.model_type not in (known := [a.model_type for a in ARCHITECTURES]):
        raise BadInput(f"{path} is of type {config.model_type}; only {', '.join(known)} can be dumped")
    quantised = getattr(config, "quantization_config", None) is not None and not where
    if quantised and not as_it_is:
        raise BadInput(f"{path} has quantised weights, whose products can not be taken apart; give --hooks-only")
    # A GGUF is dequantised in float32 and must not be rounded before it is widened.
    first = torch.float32 if where else getattr(torch, dtype)
    kind = open_checkpoint(path).config.head.kind
    name = "ModelForImageTextToText" if sees else f"{'' if kind == NONE else 'Model'}{kind}"
    auto: Any = getattr(transformers, f"Auto{name}", None)
    if auto is None:
        raise BadInput(
            f"{path}: Transformers has no class of its own that ends in {kind}; engine trace shows its stages"
        )
    how: dict[str, Any] = {"attn_implementation": attention, "local_files_only": True, "trust_remote_code": False}
    if quantised:
        how["device_map"] = {"": device}  # its library puts the weights where they are to be
    try:
        model, info = auto.from_pretrained(folder, dtype=first, output_loading_info=True, **how, **where)
    except (ImportError, ValueError) as error:
        raise BadInput(f"{path}: Transformers cannot load it: {str(error).splitlines()[0]}") from None
    if lost := [str(key) for key in info["missing_keys"] if not str(key).startswith("model.visual.")]:
        name = min(lost)
        raise BadInput(
            f"{path}: Transformers finds no {name} in it and takes random numbers; engine convert writes the names "
            "that it knows"
        )
    model = model.eval() if quantised else cast_weights(model, dtype).eval().to(device)
    if sees:
        return reading(model)
    if kind == NONE:
        whole: Any = torch.nn.Module()
        whole.model, whole.config = model, model.config
        return whole.eval()
    return model


def reading(model: Any) -> Any:
    """A model that sees, by the names of its text part: called, it is called itself."""
    import torch

    class Reading(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lm_head, self.config = model.model.language_model, model.lm_head, model.config.text_config

        def forward(self, ids: Any, **how: Any) -> Any:
            return model(input_ids=ids, **how)

    return Reading().eval()


def cast_weights(model: Any, dtype: str) -> Any:
    """The same model with its weights in another dtype; buffers, such as the inverse frequencies, stay as they are."""
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


@contextmanager
def observed(model: Any, emit: Emit) -> Iterator[None]:
    """While it lasts, each forward pass of the model hands the stages that its modules show to `emit`, batch 1. Nothing
    is patched. Values of 16 bits come as float32."""
    import torch

    c = model.config
    heads = {"N": c.num_attention_heads, "H": getattr(c, "head_dim", 0) or c.hidden_size // c.num_attention_heads}

    def taker(layer: int | None, stage: Stage, count: int) -> Callable[[int, Any], None]:
        parts: dict[int, Any] = {}

        def take(part: int, x: Any) -> None:
            parts[part] = x.detach()[0] if stage.positions == "all" else x.detach()[0, -1]
            if len(parts) == count:
                whole = torch.cat([parts[i] for i in range(count)], -1)
                parts.clear()
                x = (whole if whole.dtype == torch.float64 else whole.float()).cpu().numpy().copy()
                shape = tuple(heads.get(letter, -1) for letter in stage.letters)
                emit(layer, stage.name, x.reshape(shape) if stage.kind == "mix" else x)

        return take

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for stage in (s for s in stages_of(model).values() if s.hf):
            for layer in {"layer": range(c.num_hidden_layers), "first": (0,), "whole": (None,)}[stage.scope]:
                take = taker(layer, stage, len(stage.hf))
                for part, boundary in enumerate(stage.hf):
                    stack.callback(_hooked(model.get_submodule(boundary.name(layer)), boundary, partial(take, part)))
        yield


def stages_of(model: Any) -> Mapping[str, Stage]:
    """The stages that a model of Transformers has, by the parameters of its first layer."""
    here = {name.replace(".base_layer", "") for name, _ in model.model.layers[0].named_parameters()}  # PEFT's wrapping
    stacked = {field: t[0].hf.removeprefix("model.layers.{}.") for field, t in OPTIONAL.items()}
    fields = set(Layer.__dataclass_fields__) - {field for field, name in stacked.items() if name not in here}
    return of_pieces(frozenset(fields | set(WHOLE) - ({"lm_head"} if not hasattr(model, "lm_head") else set())))


def checked(model: Any, stages: Mapping[str, Stage], path: Path) -> Any:
    """The model. Raises BadInput if it has not these stages: of a GGUF file Transformers takes no optional biases."""
    if lost := stages.keys() - stages_of(model).keys():
        raise BadInput(
            f"{path}: Transformers leaves out of it what {', '.join(n for n in stages if n in lost)} "
            f"{'is' if len(lost) == 1 else 'are'} made of; engine convert makes a folder, which it reads whole"
        )
    return model


def _hooked(module: Any, boundary: Module, take: Callable[[Any], None]) -> Callable[[], None]:
    """Has `take` given what passes a module's boundary, until what it returns is called."""
    if boundary.side == "input":
        hook = module.register_forward_pre_hook(lambda _module, inputs: take(inputs[0]))
    else:
        hook = module.register_forward_hook(
            lambda _module, _inputs, output: take(output[0] if isinstance(output, tuple) else output)
        )
    remove: Callable[[], None] = hook.remove
    return remove


@contextmanager
def capture(model: Any, emit: Emit) -> Iterator[None]:
    """While it lasts, each forward pass of the model hands every stage (trace/stages.py, batch 1) to `emit`.

    Values come as float32, or as float64 from a float64 model. What has a bias is computed as a product and then a sum,
    so that both exist; Transformers itself fuses them, which rounds once less. All else is the model's own
    arithmetic, but in float64, where its fixed float32 steps (norms, soft-max, cosine and sine of the float32 angles)
    are done in float64.
    """
    import torch
    from torch.nn import functional
    from transformers.modeling_rope_utils import dynamic_rope_update

    hf, wide = sys.modules[type(model.model).__module__], model.model.dtype == torch.float64
    stages, causal = stages_of(model), getattr(model.config, "is_causal", True)

    def out(layer: int | None, stage: str, x: Any) -> None:
        x = x.detach()[0]  # the batch's only row
        emit(layer, stage, (x if wide else x.float()).cpu().numpy().copy())

    def linear_then_bias(i: int, names: tuple[str, ...], count: int) -> Callable[..., None]:
        """A hook of the modules that make these stages side by side, so many."""
        parts: list[tuple[Any, Any]] = []

        def project(module: Any, inputs: Any, fused: Any) -> Any:
            # By the module's own forward: PEFT may have put another around it.
            inner = getattr(module, "base_layer", module)
            bias, inner.bias = inner.bias, None
            try:
                product = module.forward(*inputs)
            finally:
                inner.bias = bias
            parts.append((product, product if bias is None else product + bias))
            result = parts[-1][1]
            if len(parts) == count:
                for n, name in enumerate(names):
                    out(i, name, torch.cat([part[n] for part in parts], -1))
                parts.clear()
            return result

        return project

    def attention(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **_: Any) -> Any:
        """hf.eager_attention_forward, step for step; q [1, N, T, H], k and v [1, K, S, H]."""
        i, groups, (T, S) = module.layer_idx, module.num_key_value_groups, (q.shape[2], k.shape[2])
        out(i, "q_post_rope", q.transpose(1, 2))
        out(i, "k_post_rope", k[:, :, S - T :].transpose(1, 2))
        scores = torch.matmul(q, hf.repeat_kv(k, groups).transpose(2, 3)) * scaling
        out(i, "attn_scores", scores.tril(S - T) if causal else scores)
        masked = scores if mask is None else scores + mask
        probs = functional.softmax(masked, dim=-1, dtype=torch.float64 if wide else torch.float32).to(q.dtype)
        out(i, "attn_softmax", probs)
        mix = torch.matmul(probs, hf.repeat_kv(v, groups)).transpose(1, 2).contiguous()
        out(i, "attention", mix)
        return mix, probs

    def norm64(module: Any, x: Any) -> Any:
        return module.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon))

    @dynamic_rope_update  # as on the method that it stands for: frequencies may depend on the length
    def rotary64(module: Any, x: Any, position_ids: Any) -> Any:
        angles = (position_ids[..., None].float() * module.inv_freq.float()).double()
        cos, sin = angles.cos() * module.attention_scaling, angles.sin() * module.attention_scaling
        both = getattr(module, "recomposition_frequencies", lambda x: torch.cat((x, x), dim=-1))  # of M-RoPE's three
        return both(cos), both(sin)

    def take(layer: int | None, stage: Stage, x: Any) -> None:
        out(layer, stage.name, x if stage.positions == "all" else x[:, -1])

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(patch.object(hf, "eager_attention_forward", attention))
        if wide:
            stack.enter_context(patch.object(type(model.model.norm), "forward", norm64))
            stack.enter_context(patch.object(type(model.model.rotary_emb), "forward", rotary64))

        for i in range(len(model.model.layers)):
            for stage in stages.values():
                if stage.kind == "bias" or len(stage.hf) > 1:
                    names = (*(stage.inputs if stage.kind == "bias" else ()), stage.name)
                    project = linear_then_bias(i, names, len(stage.hf))
                    for m in stage.hf:
                        stack.callback(model.get_submodule(m.name(i)).register_forward_hook(project).remove)
        for stage in stages.values():
            if len(stage.hf) == 1 and stage.kind not in ("mix", "bias"):  # attention has its own function
                layers = {"layer": range(len(model.model.layers)), "first": (0,), "whole": (None,)}[stage.scope]
                for at in layers:
                    module = model.get_submodule(stage.hf[0].name(at))
                    stack.callback(_hooked(module, stage.hf[0], partial(take, at, stage)))
        yield
