"""Public stories of quantised and home-made engines, each planted in a stranger's engine (home_made.py), dumped as an
.npz and handed to `engine verify`; and right engines with an arithmetic of their own.

    python -P -m qwenref.tests.cases_quantised docs/cases_quantised.md

writes the table. The stories were collected before the judge's hypotheses were read. Those that no thread tells are
marked "own": mistakes that were met where no issue was written.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import qwenref

from . import home_made
from .home_made import A, Engine, decode, f32, in_blocks, q8_0, to_half, write_model

NAMED, DESCRIBED, MISSED = "named", "described", "missed"
LIKE_THE_05B = {"attn_q": "Q5_0", "attn_k": "Q5_0", "attn_v": "Q8_0", "attn_output": "Q5_0", "ffn_gate": "Q5_0",
                "ffn_up": "Q5_0", "ffn_down": "Q6_K", "token_embd": "Q8_0", "output": "Q6_K"}  # fmt: skip
MODELS: dict[str, tuple[dict[str, str], dict[str, int]]] = {
    "0.5B": (LIKE_THE_05B, {}),
    "K": ({"attn_q": "Q4_K", "attn_k": "Q5_K", "attn_v": "Q6_K", "attn_output": "Q4_K", "ffn_gate": "Q2_K",
           "ffn_up": "Q3_K", "ffn_down": "Q5_K", "token_embd": "Q4_K", "output": "Q6_K"}, {}),
    "32": ({"attn_q": "Q4_0", "attn_k": "Q4_1", "attn_v": "Q4_1", "attn_output": "Q4_0", "ffn_gate": "MXFP4",
            "ffn_up": "MXFP4", "ffn_down": "Q4_1", "token_embd": "Q8_0", "output": "Q6_K"}, {}),
    "320": (LIKE_THE_05B | {"ffn_down": "Q5_0", "output": "Q8_0"}, {"D": 320, "N": 5, "K": 1, "F": 576}),
    "384": (LIKE_THE_05B | {"output": "Q8_0"}, {"D": 384, "N": 6}),
}  # fmt: skip
PROMPT = [11, 302, 7, 399, 250, 33, 170, 95, 280]
MANY = [(53 * i * i + 7 * i + 9) % 400 for i in range(40)]
Plan = Callable[[Engine], Any]


def prompt(e: Engine) -> None:
    e.run(PROMPT[:7])


def steps(e: Engine) -> None:
    token = e.run(PROMPT)
    for _ in range(2):
        token = e.run([token])


def chunks(e: Engine) -> None:
    e.run(MANY[:16])
    e.run(MANY[16:32])
    e.run([e.run(MANY[32:])])


def late(e: Engine) -> None:
    e.run(PROMPT[:7], np.arange(300, 307))


@dataclass(frozen=True)
class Case:
    """thread: where it was told. story: what was wrong, or, of an engine that is right, what is its own. said: what
    names it in what verify prints; described: what describes it truly. right: whether nothing is to be found."""

    number: int
    thread: str
    story: str
    engine: type[Engine]
    model: str
    plan: Plan
    said: tuple[str, ...]
    described: tuple[str, ...] = ()
    right: bool = False


CASES: list[Case] = []


def case(
    thread: str,
    story: str,
    *words: str,
    model: str = "0.5B",
    plan: Plan = prompt,
    said: tuple[str, ...] = (),
    **more: Any,
) -> Callable[[type], type]:
    def enter(engine: type) -> type:
        CASES.append(Case(len(CASES) + 1, thread, story, engine, model, plan, words or said, **more))
        return engine

    return enter


# -- decoders ---------------------------------------------------------------------------------------------------------


class Decoder(Engine):
    """One whose decoder of a format is another."""

    fmt = ""

    def wrong(self, blocks: A) -> A:
        raise NotImplementedError

    def decoded(self, fmt: str, shape: tuple[int, ...], blocks: A) -> A:
        return self.wrong(blocks) if fmt == self.fmt else decode(fmt, blocks)


@case("paiml/aprender#2127", "Q5_K: codes read one after the other, not 32 apart",
      "Q5_K decoder is wrong: codes are read in order", model="K")  # fmt: skip
class Sequential(Decoder):
    fmt = "Q5_K"

    def wrong(self, b: A) -> A:
        i = np.arange(256)
        codes = b[:, 48:][:, i // 2] >> (i % 2 * 4).astype(np.uint8) & 15
        return decode("Q5_K", b, codes=codes | (b[:, 16:48][:, i // 8] >> (i % 8).astype(np.uint8) & 1) << 4)


@case("paiml/aprender#1621", "Q5_0: low and high nibble alternate, and so do the high bits",
      "Q5_0 decoder is wrong: the two nibbles of a byte are taken for neighbours", plan=steps)  # fmt: skip
class Alternating(Decoder):
    fmt, eight = "Q5_0", True

    def wrong(self, b: A) -> A:
        right = decode("Q5_0", b)
        return np.stack([right[:, :16], right[:, 16:]], 2).reshape(-1, 32)


@case("paiml/aprender#199", "Q6_K: ql + 4 qh, not ql + 16 qh",
      "Q6_K decoder is wrong: the upper bits of codes count a quarter", model="K")  # fmt: skip
class QuarterHigh(Decoder):
    fmt = "Q6_K"

    def wrong(self, b: A) -> A:
        return decode("Q6_K", b, weight=4)


@case("paiml/aprender#1924", "Q2_K: 16 groups of four bytes each: scales meet other codes",
      "Q2_K decoder is wrong: codes are read in order", model="K")  # fmt: skip
class Lanes(Decoder):
    fmt = "Q2_K"

    def wrong(self, b: A) -> A:
        i = np.arange(256)
        return decode("Q2_K", b, codes=b[:, 16:80][:, i // 4] >> (i % 4 * 2).astype(np.uint8) & 3)


@case("paiml/aprender#2115", "Q3_K: scales of six bits unpacked as four, less 8",
      "Q3_K decoder is wrong: the lower four bits of scales are taken for whole scales", model="K")  # fmt: skip
class FourBitScales(Decoder):
    fmt, eight = "Q3_K", True

    def wrong(self, b: A) -> A:
        return decode("Q3_K", b, scales=lambda low: low - 8)


@case("ml-explore/mlx#3664", "Q4_1 by the header of Q4_0: two bytes of the minimum are read as codes",
      "Q4_1 decoder is wrong: codes are read 2 bytes too early", model="32")  # fmt: skip
class Header(Decoder):
    fmt = "Q4_1"

    def wrong(self, b: A) -> A:
        return decode("Q4_1", b, codes=np.concatenate([b[:, 2:18] & 15, b[:, 2:18] >> 4], 1))


@case("kekzl/imp#567", "MXFP4: pairs of codes where ggml has halves, in gate and up",
      "MXFP4 decoder is wrong: the two nibbles of a byte are taken for neighbours", model="32")  # fmt: skip
class Pairs(Decoder):
    fmt = "MXFP4"

    def wrong(self, b: A) -> A:
        return decode("MXFP4", b, codes=np.stack([b[:, 1:] & 15, b[:, 1:] >> 4], 2).reshape(-1, 32))


@case("ROCm/hip-ep#178", "Q4_0: codes sign-extended, not less 8",
      "Q4_0 decoder is wrong: codes are taken for two's complement", model="32")  # fmt: skip
class TwosComplement(Decoder):
    fmt = "Q4_0"

    def wrong(self, b: A) -> A:
        codes = np.concatenate([b[:, 2:] & 15, b[:, 2:] >> 4], 1)
        return decode("Q4_0", b, zero=np.where(codes > 7, 16, 0))


@case("ROCm/hip-ep#588", "a row's stride without its last block: each row begins earlier",
      "Q4_0 decoder is wrong: rows lie 126 bytes apart for it, not 144", model="32")  # fmt: skip
class ShortStride(Engine):
    def decoded(self, fmt: str, shape: tuple[int, ...], blocks: A) -> A:
        if fmt == "Q4_0":
            width = blocks.size // shape[0]
            whole = np.concatenate([blocks.reshape(-1), np.zeros(width, np.uint8)])
            blocks = np.stack([whole[r * (width - 18) :][:width] for r in range(shape[0])]).reshape(blocks.shape)
        return decode(fmt, blocks)


@case("ggml-org/whisper.cpp#3964", "SYCL: the look-up reads a table that was rearranged for the products",
      "Q8_0 decoder is wrong: the matrix was rearranged, all codes before all scales")  # fmt: skip
class RearrangedTable(Engine):
    def decoded(self, fmt: str, shape: tuple[int, ...], blocks: A) -> A:
        if shape[0] == 403 and fmt == "Q8_0":
            blocks = np.concatenate([blocks[:, 2:].reshape(-1), blocks[:, :2].reshape(-1)]).reshape(blocks.shape)
        return decode(fmt, blocks)


@case("ggml-org/llama.cpp#26845", "SYCL: right in the first pass, then a rearranged matrix is read as a plain one",
      "decode step 1", "Q4_K decoder is wrong: the matrix was rearranged", model="K", plan=steps)  # fmt: skip
class RearrangedLater(Engine):
    def weight(self, name: str) -> A:
        if self.tensors[name][0] == "Q4_K" and name.startswith("blk.1") and self.phase:
            b = self.tensors[name][2]
            moved = np.concatenate([b[:, at:to].reshape(-1) for at, to in ((16, 144), (4, 16), (0, 4))])
            with np.errstate(all="ignore"):
                return decode("Q4_K", moved.reshape(b.shape)).reshape(self.tensors[name][1])
        return super().weight(name)


@case("own", "Q4_K: scales and minima of groups 4 to 7 without their upper bits", model="K",
      said=("Q4_K decoder is wrong: the upper two bits of the scales and minima",))  # fmt: skip
class CutScales(Decoder):
    fmt = "Q4_K"

    def wrong(self, b: A) -> A:
        def scales(s: A) -> tuple[A, A]:
            right, least = home_made.six_bits(s)
            right[:, 4:] &= 15
            least[:, 4:] &= 15
            return right, least

        return decode("Q4_K", b, scales=scales)


# -- products ---------------------------------------------------------------------------------------------------------


@case("guoqingbao/xinfer#467", "prompts only: the product sums 1 of 16 of its inputs",
      "the sum leaves out the last 240 of 256 inputs", model="32", plan=steps)  # fmt: skip
class SixteenthOfInputs(Engine):
    def product(self, x: A, w: A, fmt: str) -> A:
        if fmt == "MXFP4" and len(x) > 1:
            x = np.where(np.arange(x.shape[1]) < x.shape[1] // 16, x, f32(0))
        return super().product(x, w, fmt)


@case("ikawrakow/ik_llama.cpp#951", "what is left of a row after whole 128s is not summed (and #213)",
      "the sum leaves out the last 64 of 320 inputs", model="320", plan=steps)  # fmt: skip
class LostTail(Engine):
    eight = True

    def operand(self, x: A, fmt: str) -> A:
        y = super().operand(x, fmt)
        return np.where(np.arange(y.shape[1]) < y.shape[1] // 128 * 128, y, f32(0)) if fmt == "Q5_0" else y


@case("ggml-org/llama.cpp#10561", "i8mm: the odd last row of each thread's share is not computed",
      "every value is 0, in columns 415, 447, 479, 511 alone")  # fmt: skip
class OddRows(Engine):
    def product(self, x: A, w: A, fmt: str) -> A:
        y = super().product(x, w, fmt)
        if fmt == "Q8_0":
            y[:, len(w) // 4 - 1 :: len(w) // 4] = 0
        return y


@case("ikawrakow/ik_llama.cpp#911", "a vocabulary that is no multiple of 16 rows: the last logits are not computed",
      "tokens 400 to 402 are 0")  # fmt: skip
class LostLogits(Engine):
    def product(self, x: A, w: A, fmt: str) -> A:
        y = super().product(x, w, fmt)
        y[:, len(w) // 16 * 16 :] = 0
        return y


@case("huggingface/transformers#47331", "row z of a batch meets scales of the weights z rows further on",
      model="32", plan=steps, described=("it is wrong in positions 1 to 8 alone",))  # fmt: skip
class ShiftedScales(Engine):
    def product(self, x: A, w: A, fmt: str) -> A:
        y = super().product(x, w, fmt)
        if fmt == "Q4_0" and self.layer == 1:
            _, shape, blocks = self.tensors[f"blk.1.{self.name}.weight"]
            b = blocks.reshape(shape[0], -1, 18)
            for z in range(1, len(x)):
                c = b.copy()
                c[:, :, :2] = np.roll(b[:, :, :2], -z, 0)
                y[z] = x[z] @ decode("Q4_0", c.reshape(-1, 18)).reshape(shape).T
        return y


@case("microsoft/onnxruntime#28551", "a product of another block size writes zeros", "every value is 0", model="K")
class ZeroProduct(Engine):
    def product(self, x: A, w: A, fmt: str) -> A:
        return super().product(x, w, fmt) * f32(fmt != "Q3_K")


@case("paiml/aprender#1466", "the MLP's matrices are read with their sizes exchanged", "the weights are transposed")
class ExchangedSizes(Engine):
    def product(self, x: A, w: A, fmt: str) -> A:
        return super().product(x, w.reshape(w.shape[::-1]).T if self.name == "ffn_down" else w, fmt)


@case("openvinotoolkit/openvino#25342", "uint8 times int8: pairs of products saturate in 16 bits",
      described=("Every product with weights in Q8_0 is wrong", "and nothing else is"))  # fmt: skip
class Saturating(Engine):
    def product(self, x: A, w: A, fmt: str) -> A:
        if fmt != "Q8_0":
            return super().product(x, w, fmt)
        sx, sw = np.abs(x).max(1, keepdims=True) / 127, np.abs(w).max(1, keepdims=True) / 127
        ux, iw = np.clip(np.rint(x / sx) + 128, 0, 255), np.rint(w / sw)
        pairs = ux[:, None, 0::2] * iw[None, :, 0::2] + ux[:, None, 1::2] * iw[None, :, 1::2]
        return ((np.clip(pairs, -32768, 32767).sum(2) - 128 * iw.sum(1)) * sx * sw.T).astype(f32)


@case("own", "activations are cut to 8 bits: `as i8` where a rounding was meant",
      "activations are cut to 8 bits, towards zero", plan=steps)  # fmt: skip
class CutActivations(Engine):
    eight = True

    def operand(self, x: A, fmt: str) -> A:
        if fmt.endswith("_K"):
            b = in_blocks(x, 256)
            i = f32(-127) / b[np.arange(len(b)), np.abs(b).argmax(1)][:, None]
            return (np.trunc(i * b) / i).astype(f32).reshape(x.shape)
        b = in_blocks(x, 32)
        d = (np.abs(b).max(1, keepdims=True) / f32(127)).astype(f32)
        return (np.trunc(b * (f32(1) / d)) * to_half(d)).astype(f32).reshape(x.shape)


@case("own", "all of a prompt by the first position's scales", "by the scale of the first position", model="32")
class FirstScale(Engine):
    eight = True

    def operand(self, x: A, fmt: str) -> A:
        if fmt.endswith("_K"):
            return super().operand(x, fmt)
        b = x.reshape(len(x), -1, 32)
        d = (np.abs(b[:1]).max(2, keepdims=True) / f32(127)).astype(f32)
        return (np.clip(np.rint(b * (f32(1) / d)), -127, 127) * to_half(d)).astype(f32).reshape(x.shape)


# -- norms, residuals, MLP --------------------------------------------------------------------------------------------


@case("ggml-org/llama.cpp#17250", "OpenCL: the sum of squares ends before a row that is no power of two",
      "sum of squares leaves out the last 128 of 384", model="384", plan=steps)  # fmt: skip
class LostSquares(Engine):
    def mean_square(self, x: A) -> A:
        return (x * x)[:, :256].sum(1, keepdims=True) / f32(x.shape[1])


@case("vllm-project/vllm-xpu-kernels#386", "a sum over threads whose number is halved: an odd one's part is lost",
      "384 threads that are halved, where an odd one is lost", model="384")  # fmt: skip
class LostLanes(Engine):
    def mean_square(self, x: A) -> A:
        y, n = x * x, x.shape[1]
        while n > 1:
            n //= 2
            y[:, :n] += y[:, n : 2 * n]
        return y[:, :1] / f32(x.shape[1])


@case("huggingface/candle#565", "eps is a constant, 1e-5, not the file's", "the norm's eps is 1e-05, not 1e-06")
class ConstantEps(Engine):
    def mean_square(self, x: A) -> A:
        return super().mean_square(x) + f32(9e-6)


@case("ikawrakow/ik_llama.cpp#916", "sum and norm in one kernel, whose result lies over its input: old columns",
      "what is scaled is the layer's input, in columns 192 to 255 alone")  # fmt: skip
class AliasedNorm(Engine):
    def second_norm(self, x: A, before: A, added: A, gain: A) -> A:
        y = self.norm(x, gain)
        if self.layer == 1:
            y[:, 192:] = (before * (f32(1) / np.sqrt(self.mean_square(x) + self.eps)) * gain)[:, 192:]
        return y


@case("intel/llm-scaler#399", "later work-groups take a residual that was updated already: h + (h + r)",
      described=("wrong in 256 of 512 channels (256, 257, 258, ...) alone",))  # fmt: skip
class UpdatedResidual(Engine):
    def mlp(self, x: A, residual: A, added: A) -> tuple[A, A]:
        parts = super().mlp(x, residual, added)
        if self.layer == 1:
            again = self.norm(added + residual, self.vector("ffn_norm.weight"))
            for part, late_part in zip(parts, super().mlp(again, residual, added), strict=True):
                part[:, 256:] = late_part[:, 256:]
        return parts


@case("warpfront/hipfire#575", "no barrier: a row's sum of squares is read after it was overwritten",
      "Values that are NaN or infinite first appear in attn_norm of layer 1")  # fmt: skip
class NoBarrier(Engine):
    def mean_square(self, x: A) -> A:
        y = super().mean_square(x)
        if self.layer == 1 and self.name == "ffn_down" and len(y) > 2:
            y[2] = np.nan
        return y


@case("own", "rows that make no logits are dropped: the last row's residual is the first's",
      "the residual is another position's: position 8 gets that of position 0", plan=steps)  # fmt: skip
class FirstResidual(Engine):
    eight = True

    def add(self, x: A, y: A) -> A:
        both = x + y
        if self.layer == 1 and len(x) > 1:
            both[-1] = x[0] + y[-1]
        return both


@case("Nijikadesu/breakdown-minimind#3", "silu(gate up), not silu(gate) up", "silu(gate up)")
class SiluOfProduct(Engine):
    def gated(self, gate: A, up: A) -> A:
        return super().gated(gate * up, np.ones_like(up))


@case("ml-explore/mlx-lm#767", "silu(up) gate", "gate and up are swapped: silu(up) times gate")
class SiluOfUp(Engine):
    def gated(self, gate: A, up: A) -> A:
        return super().gated(up, gate)


# -- RoPE -------------------------------------------------------------------------------------------------------------


@case("ggml-org/llama.cpp#15629", "CANN: the first layer makes the table, the others use the step's before",
      "RoPE's positions are off by -1", plan=steps)  # fmt: skip
class StaleTable(Engine):
    def table(self, pos: A) -> tuple[A, A]:
        return super().table(pos - 1 if self.layer and self.phase > 1 else pos)


@case("nntile/nntile#360", "in steps, cosines and sines are copied from the wrong offset: zeros",
      "every value is 0", plan=steps)  # fmt: skip
class ZeroTable(Engine):
    def table(self, pos: A) -> tuple[A, A]:
        c, s = super().table(pos)
        return (c * 0, s * 0) if self.phase else (c, s)


@case("vllm-project/vllm-ascend#5260", "positions in bfloat16, which rounds those past 256",
      "position 301 by 300, position 303 by 304, position 305 by 304", plan=late)  # fmt: skip
class ShortPositions(Engine):
    def table(self, pos: A) -> tuple[A, A]:
        bits = pos.astype(f32).view(np.uint32)
        return super().table(((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(f32))


@case("gittensor-ai-lab/sparkinfer#517", "in steps, half of each query is never written: an old buffer's",
      "channels 32 to 63 hold what layer 1, position 0 of the prompt has there", plan=steps)  # fmt: skip
class HalfWritten(Engine):
    def queries(self, q: A) -> A:
        if not self.phase:
            self.buffer = q.copy()
            return q
        return np.concatenate([q[..., :32], self.buffer[: len(q), :, 32:]], -1)


# -- attention --------------------------------------------------------------------------------------------------------


@case("flashinfer-ai/flashinfer#5090", "the last block of keys is filled up with zeros, which are seen",
      "keys of zeros, of a cache that is filled up, are seen too", plan=steps)  # fmt: skip
class FilledUp(Engine):
    def soft_max(self, s: A) -> A:
        return super().soft_max(np.pad(s, ((0, 0), (0, 0), (0, -s.shape[2] % 32))))[..., : s.shape[2]]


@case("triton-lang/triton#621", "the head size is a constant of the kernel: scores of half of the channels",
      "the scores are of the first 32 of 64 channels")  # fmt: skip
class HalfHead(Engine):
    def scores(self, q: A, k: A) -> A:
        return np.einsum("tnh,snh->nts", q[..., :32], k[..., :32]) * f32(self.H**-0.5)


@case("microsoft/onnxruntime#23906", "WebGPU: the soft-max is dispatched for too few rows",
      "the soft-max is not normalised: exp(x - max), in positions 4 to 6 alone")  # fmt: skip
class FewRows(Engine):
    def soft_max(self, s: A) -> A:
        p = super().soft_max(s)
        p[:, 4:] = np.exp(s - s.max(-1, keepdims=True))[:, 4:]
        return p


@case("kekzl/imp#656", "queries and keys are converted to FP8 as they are",
      "queries and keys are rounded to e4m3, without a scale")  # fmt: skip
class RawFP8(Engine):
    def heads(self, q: A, k: A, v: A) -> tuple[A, A, A]:
        def e4m3(x: A) -> A:
            step = np.exp2(np.maximum(np.floor(np.log2(np.maximum(np.abs(x), 1e-30))), -6) - 3)
            return np.clip(np.rint(x / step) * step, -448, 448).astype(f32)

        return e4m3(q), e4m3(k), v


@case("ggml-org/llama.cpp#25823", "a cache of few bits holds turned values, and a path does not turn the result back",
      "the values were turned (Hadamard, 64 channels)", plan=steps)  # fmt: skip
class NotTurnedBack(Engine):
    eight = True

    def heads(self, q: A, k: A, v: A) -> tuple[A, A, A]:
        m = np.ones((1, 1))
        while len(m) < self.H:
            m = np.block([[m, m], [m, -m]])
        turned = [(x @ (m / np.sqrt(self.H))).astype(f32) for x in (q, k, v)]
        return q8_0(turned[0]), turned[1], turned[2]

    def stored(self, x: A) -> A:
        return q8_0(x)


@case("own", "a ring of 10 places: the newest keys stand where the oldest were, and are masked by place",
      "other positions' rows stand in the cache: those of 10 stand at 0", plan=steps)  # fmt: skip
class Ring(Engine):
    def kept(self, x: A) -> A:
        newest = [max(u for u in range(len(x)) if u % 10 == t % 10) for t in range(len(x))]
        return x[newest]


# -- engines that are right -------------------------------------------------------------------------------------------


def right(story: str, *said: str, **more: Any) -> Callable[[type], type]:
    return case("healthy", story, *said, right=True, **more)


@right("float32 throughout", "float32", plan=steps)
class Float32(Engine):
    pass


@right("8-bit activations as ggml's, 16-bit cache, K-quants", "activations in 8 bits, as ggml", model="K", plan=steps)
class Ggml(Engine):
    eight = True


@right("chunks of 16, 16 and 8 positions, and a step", "float32", model="K", plan=chunks)
class Chunks(Engine):
    pass


@right("a port that knows Q8_0 and not Q8_1", "for which Q8_0 stands", model="32", plan=steps)
class Sumless(Engine):
    eight = True


@right("rows that are no whole number of 128", "activations", model="320", plan=steps)
class OddWidth(Engine):
    eight = True


@right("a cache in q8_0 that is read into float32", "keys and values held in int8", model="K", plan=steps)
class Q8Cache(Engine):
    def stored(self, x: A) -> A:
        return q8_0(x)


@right("a cache in float16 that is read into float32", "keys and values held in float16", plan=steps)
class HalfCache(Engine):
    def stored(self, x: A) -> A:
        return to_half(x)


@right("a cache in bfloat16 that is read into float32", "keys and values held in bfloat16", plan=steps)
class BfloatCache(Engine):
    def stored(self, x: A) -> A:
        bits = np.ascontiguousarray(x, f32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(f32)


@right("activations in float16, the rest float32", "activations in float16")
class HalfActivations(Engine):
    def operand(self, x: A, fmt: str) -> A:
        return to_half(x)


@right("activations and matrices in float16, biases and norms not (a GPU's)", "matrices in float16", plan=steps)
class HalfProducts(Engine):
    def product(self, x: A, w: A, fmt: str) -> A:
        return super().product(to_half(x), to_half(w), fmt)


@right("cosines and sines from a table of float16", "RoPE's cosines and sines in float16", plan=steps)
class HalfTable(Engine):
    def table(self, pos: A) -> tuple[A, A]:
        c, s = super().table(pos)
        return to_half(c), to_half(s)


@right("int8 activations, a float32 scale for each 32 (MatMulNBits, accuracy level 4)", "a scale for each 32 columns",
       plan=steps)  # fmt: skip
class Int8Blocks(Engine):
    def operand(self, x: A, fmt: str) -> A:
        b = in_blocks(x, 32)
        d = (np.abs(b).max(1, keepdims=True) / f32(127)).astype(f32)
        return (np.rint(b / d) * d).astype(f32).reshape(x.shape)


@right("sums in blocks of 64, one after the other", "float32", plan=steps)
class Blocked(Engine):
    def product(self, x: A, w: A, fmt: str) -> A:
        y = np.zeros((len(x), len(w)), f32)
        for at in range(0, x.shape[1], 64):
            y += x[:, at : at + 64] @ w[:, at : at + 64].T
        return y


@right("a prompt that begins at position 300", "float32", plan=late)
class Late(Engine):
    pass


# -- what is said -----------------------------------------------------------------------------------------------------


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@cache
def model(name: str) -> Path:
    path = Path(folder().name) / f"{name}.gguf"
    formats, sizes = MODELS[name]
    write_model(path, formats, list(MODELS).index(name), **sizes)
    return path


def outcome(c: Case) -> tuple[str, str]:
    """How well verify serves a case, and what it prints of it."""
    e = c.engine(model(c.model))
    with np.errstate(all="ignore"):
        c.plan(e)
    path = Path(folder().name) / f"{c.number}.npz"
    np.savez(path, **e.dump)
    report = qwenref.verify(path, model(c.model))
    path.unlink()
    if c.right:
        words = next((line for line in report.lines() if line.startswith("The engine computes with")), "")
        said = f"{report.sentence} {words}"
        return MISSED if report.status else NAMED if all(w in said for w in c.said) else DESCRIBED, said
    said = report.sentence
    if report.status != 1:
        return MISSED, said
    named = bool(c.said) and all(w in said for w in c.said)
    return NAMED if named else DESCRIBED if c.described and all(w in said for w in c.described) else MISSED, said


# What is said of engines that are right.
RIGHT = {NAMED: "explained", DESCRIBED: "explained, in other words than were looked for", MISSED: "accused"}


def page(rows: list[tuple[Case, str, str]]) -> str:
    """docs/cases_quantised.md."""
    wrong = [how for c, how, _ in rows if not c.right]
    lines = [
        "# Cases of quantised and home-made engines, and what verify says of them", "",
        "Public mistakes of ggml's forks and backends, of engines in Rust and C++ and for WebGPU, collected before the",
        "judge's hypotheses were read. Each is planted in an engine that shares nothing with this package",
        "(tests/home_made.py: its own GGUF reader and decoders), which dumps an `.npz` without most of attention's and",
        'the MLP\'s stages. "own": met where no thread tells it. Written by',
        "`python -P -m qwenref.tests.cases_quantised docs/cases_quantised.md`.", "",
        f"Of {len(wrong)}: named {wrong.count(NAMED)}, described {wrong.count(DESCRIBED)}, missed "
        f"{wrong.count(MISSED)}. Of {len(rows) - len(wrong)} engines that are right: accused "
        f"{sum(how == MISSED for c, how, _ in rows if c.right)}.", "",
        "| # | case | what is wrong | | what verify says first |", "|---|---|---|---|---|",
    ]  # fmt: skip
    healthy = False
    for c, how, words in rows:
        if c.right and not healthy:
            healthy = True
            lines += ["", "| # | an engine that is right | | what verify says |", "|---|---|---|---|"]
        said = words.replace("|", "/")
        if c.right:
            lines.append(f"| {c.number} | {c.story} | {RIGHT[how]} | {said} |")
        else:
            lines.append(f"| {c.number} | {c.thread} | {c.story} | {how} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    only = set(map(int, sys.argv[2:]))
    rows = []
    for c in CASES:
        if not only or c.number in only:
            rows.append((c, *outcome(c)))
            print(c.number, *rows[-1][1:], sep="\t", flush=True)
    if not only:
        Path(sys.argv[1]).write_text(page(rows))


if __name__ == "__main__":
    main()
