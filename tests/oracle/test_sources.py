"""What PyTorch saves of Transformers by plain hooks, read without torch: a padded batch and two steps, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (make oracle)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")

from qwenref.tools.load import open_weights  # noqa: E402
from qwenref.trace.dump import Dump  # noqa: E402
from qwenref.trace.sources import Asked, open_dump  # noqa: E402
from qwenref.trace.verify.verify import verify  # noqa: E402

pytestmark = pytest.mark.oracle

PROMPTS = [[3, 100, 17, 9, 4], [50, 51], [8, 7, 6]]


def dumped(folder: Path, target: Path, dtype: Any, attention: str) -> Path:
    """Hooks on every module, its first input and its output; a file for each pass of three prompts padded left."""
    model = transformers.Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
    held: dict[str, Any] = {}

    def hook(name: str) -> Any:
        def keep(module: Any, args: Any, out: Any) -> None:
            held[name] = out if isinstance(out, torch.Tensor | tuple) else None
            if args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
                held[f"{name}.input"] = args[0]

        return keep

    for name, module in model.named_modules():
        module.register_forward_hook(hook(name))
    target.mkdir()
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    cache = None
    with torch.no_grad():
        for phase in range(3):
            held.clear()
            told = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            out = model(input_ids=ids, attention_mask=mask, position_ids=told, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            torch.save({**held, "input_ids": ids, "attention_mask": mask}, target / f"pass-{phase}.pt")
            ids = out.logits[:, -1].argmax(1, keepdim=True)
            mask = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], 1)
    return target


def row(path: Path, n: int, c: Any) -> Dump:
    return open_dump(path, c.sizes, layers=c.num_hidden_layers, asked=Asked(row=n))


@pytest.mark.parametrize(("dtype", "attention"), [("float32", "sdpa"), ("float32", "eager")])
def test_each_row_of_a_padded_batch_is_explained(dtype: str, attention: str, folder: Path, tmp_path: Path) -> None:
    w = open_weights(str(folder)).weights
    path = dumped(folder, tmp_path / "d", getattr(torch, dtype), attention)
    for n, prompt in enumerate(PROMPTS):
        dump = row(path, n, w.config)
        assert dump.run["tokens"] == prompt and len(dump.run["generated"]) == 2
        assert len({e.stage.name for e in dump.entries}) == 15 and {e.phase for e in dump.entries} == {0, 1, 2}
        found = verify(dump, w)
        assert found.status == 0
        assert sum(f.explained for f in found.findings) >= 0.9 * len(found.findings)
