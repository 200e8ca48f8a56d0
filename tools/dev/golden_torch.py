"""Makes tests/golden/torch.pt and torch_tensor.pt: files as torch.save writes them, of values that a test can count up.

    python -m qwenref.tools.dev.golden_torch tests/golden

Every tensor holds 0, 1, 2 ... in the order of its own axes.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path


def make(folder: Path) -> None:
    import torch

    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    whole = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    two = torch.zeros(4, 6)
    two[1:3, ::2] = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6).reshape(2, 3))
        model.bias.copy_(torch.arange(2))
    torch.save(
        {
            "kinds": {
                k: (torch.arange(2) if k == "bool" else torch.arange(6).reshape(2, 3)).to(getattr(torch, k))
                for k in kinds
            },
            "turned": torch.arange(6.0).reshape(3, 2).T.contiguous().T,
            "part": two[1:3, ::2],
            "shared": [whole, whole.reshape(-1)],
            "tuple": (whole.to(torch.bfloat16), None, [whole.half()]),
            "parameter": torch.nn.Parameter(torch.arange(5.0)),
            "expanded": torch.zeros(1, 1).expand(2, 1),
            "state": OrderedDict(model.state_dict()),
            "module": model.state_dict(),
            "ids": [0, 1, 2, 3],
            "size": whole.shape,
            "text": "not a tensor",
            "empty": torch.empty(0, 4),
            "layers": {0: torch.arange(2.0)},
        },
        folder / "torch.pt",
    )
    torch.save(torch.arange(4.0), folder / "torch_tensor.pt")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
