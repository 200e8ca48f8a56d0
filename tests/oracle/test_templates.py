"""Which of several chat templates Transformers takes."""

from __future__ import annotations

from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")

from ..engine.text.test_vocabularies import with_templates  # noqa: E402

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("where", ["tokenizer_config.json", "additional_chat_templates"])
def test_tools_have_a_template_of_their_own(tmp_path: Path, where: str) -> None:
    t = transformers.AutoTokenizer.from_pretrained(with_templates(tmp_path, where), model_type="qwen2")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert (t.get_chat_template(tools=None), t.get_chat_template(tools=tools)) == ("d", "t")
