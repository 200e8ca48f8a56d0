"""Runs llama.cpp's convert_hf_to_gguf.py as it is, but for one answer, on several folders in one process.

    python converter.py LLAMA_CPP JOBS.json      (a list of [pre-tokenizer, arguments])

It knows a pre-tokenizer by the ids of a text under the whole vocabulary of the original, so it is told which one this
small vocabulary has; convert_hf_to_gguf_update.py would add a line that says the same.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


def main() -> None:
    folder, jobs = sys.argv[1:]
    sys.path[:0] = [folder, f"{folder}/gguf-py"]
    import convert_hf_to_gguf
    from conversion.base import TextModel

    logging.disable(logging.WARNING)
    for pre, arguments in json.loads(Path(jobs).read_text()):
        TextModel.get_vocab_base_pre = lambda _self, _tokenizer, pre=pre: pre
        sys.argv = ["convert_hf_to_gguf.py", *arguments]
        convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
