"""engine run on a terminal and without a prompt: a conversation."""

from __future__ import annotations

import argparse
from contextlib import suppress

from ..engine.files import Checkpoint
from ..engine.generate import check_prompt, drafts_for, generate, new_tokens
from ..engine.load import Loaded, Opened, blaming, check_generates
from ..engine.sample import Sampling
from ..engine.session import Session
from ..engine.text.chat import Chat, Message, prompt_ids
from ..engine.text.generation import Generation
from ..engine.text.tokenizer import Tokenizer
from ..errors import BadInput
from .load import load_as_asked, open_tokenizer, open_weights, rope_asked
from .prompt import CHAT_FLAGS
from .signals import interrupts_are_answered
from .terminal import for_stdout, on_stderr

HINT = "Ctrl-C ends an answer, Ctrl-D the conversation; /new begins another one"


def converse(args: argparse.Namespace) -> int:
    """Asks and answers until the end of stdin. Raises BadInput for a model without a chat template."""
    for name, flag in CHAT_FLAGS.items():
        if name != "system" and getattr(args, name) is not None:
            raise BadInput(f"{flag} belongs to a prompt; give one with -p TEXT")
    if args.json:
        raise BadInput("--json is the answer to one prompt; give it with -p TEXT")
    opened = open_weights(args.model, rope_asked(args), args.lora)
    check_generates(opened.checkpoint)
    tokenizer, template = open_tokenizer(opened.checkpoint)
    if template is None:
        raise BadInput(f"{opened.checkpoint.path} has no chat template to talk by; give a prompt with -p TEXT")
    talk = Talk(args, load_as_asked(args, opened), tokenizer, template)
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  input() then has a history, and keys to edit with
    on_stderr(HINT)
    with interrupts_are_answered():
        while True:
            try:
                line = input("> ")
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print()
                continue
            if line.strip() == "/new":
                talk.begin()
            elif line.strip():
                talk.answer(line)


class Talk:
    """What was said so far, and the model that answers."""

    def __init__(self, args: argparse.Namespace, model: Loaded, tokenizer: Tokenizer, template: str) -> None:
        self.args, self.model, self.tokenizer, self.template = args, model, tokenizer, template
        self.session = Session()
        self.begin()

    @property
    def checkpoint(self) -> Checkpoint:
        return self.model.checkpoint

    def begin(self) -> None:
        """Nothing was said."""
        system = self.args.system
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    def answer(self, line: str) -> None:
        """Prints the answer as it comes. Ctrl-C ends it there; what does not fit is taken back, and said."""
        messages: list[Message] = [*self.messages, {"role": "user", "content": line}]
        made = None
        try:
            made = self._generation(messages)
            for piece in made:
                print(for_stdout(piece), end="", flush=True)
        except KeyboardInterrupt:
            pass
        except BadInput as error:
            on_stderr(str(error))
        if made is None or not made.ids:
            print()
            return
        print(for_stdout(made.end()))
        self.messages = [*messages, {"role": "assistant", "content": made.text}]

    def _generation(self, messages: list[Message]) -> Generation:
        args, m, c = self.args, self.model, self.checkpoint.config
        sampling = Sampling(args.temp, args.top_k, args.top_p, args.seed)
        drafts = drafts_for(m.kernels, args.backend, sampling, args.draft)
        ids = prompt_ids(self.tokenizer, self.template, Chat(messages))
        new = new_tokens(len(ids), c, args.max_tokens)
        check_prompt(ids, c, new)
        ends = self.tokenizer.eos_ids
        tokens = generate(
            ids, m.weights, m.kernels, args.precision, new, ends, sampling, drafts=drafts, session=self.session
        )
        blamed = blaming(tokens, Opened(m.checkpoint, m.bound))
        return Generation(ids, blamed, self.tokenizer, ended=m.checkpoint.check_unchanged)
