"""Prints one JSON line: a digest of every stage of a small model on the CPU backend of this process, per precision, and
what engine doctor's self-test finds. `--precision NAME` leaves out the others and the self-test, for an
emulated machine.

test_cpu_paths.py runs it under other instruction sets and thread counts; by hand, it says what this machine computes.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from tiny import collect, tiny_weights

from qwenref.engine import selftest
from qwenref.engine.kernels.cpu import Cpu

FORMATS = {"q": "Q4_K", "k": "Q5_0", "v": "Q6_K", "attn_out": "Q8_0", "ffn_gate": "Q4_K", "ffn_up": "Q5_0"}
FORMATS |= {"ffn_down": "Q8_0", "lm_head": "Q6_K", "embed": "F32"}
PASSES = ([3, 141, 59, 26, 53], [58], list(range(97, 138)))


def main() -> None:
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
