"""Prints one JSON line: a digest of every stage of a small model on the CPU backend of this process, per precision, and
what engine doctor's self-test finds. `--precision NAME` leaves out the others and the self-test, for an
emulated machine. `--products FORMAT` is of products with one format alone.

test_cpu_paths.py runs it under other instruction sets and thread counts; by hand, it says what this machine computes.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from tiny import collect, tiny_tensor, tiny_weights

from qwenref.engine import selftest
from qwenref.engine.kernels.cpu import Cpu
from qwenref.engine.kernels.cpu.matmul.linear import stack
from qwenref.quant.tensor import format_of

FORMATS = {"q": "Q4_K", "k": "Q5_0", "v": "Q6_K", "attn_out": "Q8_0", "ffn_gate": "Q4_K", "ffn_up": "Q5_0"}
FORMATS |= {"ffn_down": "Q8_0", "lm_head": "Q6_K", "embed": "F32"}
PASSES = ([3, 141, 59, 26, 53], [58], list(range(97, 138)))


def products(name: str) -> dict[str, str]:
    """Of one token, few and many, whose bits are to be the same; of rows and groups that are no whole number of two."""
    rng, digests = np.random.default_rng(4), {}
    columns = 29 * format_of(name).block if format_of(name).block < 256 else 5 * 256
    w = tiny_tensor("w", name, (70, columns), std=0.02, mean=0.0, rng=rng)
    x_TI = rng.standard_normal((41, columns)).astype(np.float32)
    x_TI[5, :300], x_TI[6] = 0, x_TI[6] * np.float32(1e-20)
    for precision in Cpu.PRECISIONS:
        packed = stack([w], precision)
        at_once = [np.concatenate([Cpu().linear(x_TI[t : t + n], packed) for t in range(0, 41, n)]) for n in (1, 3, 41)]
        (digests[precision],) = {sha256(y.tobytes()).hexdigest() for y in at_once}
    return digests


def main() -> None:
    if sys.argv[1:2] == ["--products"]:
        print(json.dumps(products(sys.argv[2])))
        return
    w = tiny_weights(hidden=256, heads=7, kv_heads=1, head_dim=64, mlp=160, vocab=259, formats=FORMATS)
    digests = {}
    chosen = sys.argv[2:] if sys.argv[1:2] == ["--precision"] else Cpu.PRECISIONS
    for precision in chosen:
        h = sha256()
        for stages in collect(w, "cpu", precision, *PASSES):
            for (stage, layer), value in sorted(stages.items(), key=str):
                h.update(f"{stage} {layer} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        digests[precision] = h.hexdigest()
    from qwenref.engine.kernels.cpu.machine.paths import PATH

    tested = dict(selftest.found(lambda done, total: None)) if chosen is Cpu.PRECISIONS else {}
    print(json.dumps({"path": PATH, "digests": digests, "self-test": tested}))


if __name__ == "__main__":
    main()
