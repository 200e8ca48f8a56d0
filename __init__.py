"""qwenref: an independent Qwen2 inference engine that shows and judges every stage of its forward pass.

    import qwenref
    model = qwenref.load("qwen2.5-coder-0.5b-instruct-q4_k_m")
    print(model.generate("What is 2+2?", chat=True))

docs/python.md has the rest.
"""

__version__ = "0.2.0"

# What is here, by the module that has it; imported when it is first asked for: the command line waits for nothing.
_FROM = {
    "BadInput": "errors",
    "Chat": "engine.text.chat",
    "Diff": "trace.diff",
    "Dump": "trace.dump",
    "Generation": "engine.text.generation",
    "Model": "model",
    "Report": "trace.verify.report.report",
    "diff": "trace.diff",
    "hooks": "hooks",
    "load": "model",
    "open_dump": "trace.sources",
    "verify": "judging",
}
TYPE_CHECKING = False  # typing's own takes its import
if TYPE_CHECKING:
    from .engine.text.chat import Chat as Chat
    from .engine.text.generation import Generation as Generation
    from .errors import BadInput as BadInput
    from .hooks import hooks as hooks
    from .judging import verify as verify
    from .model import Model as Model
    from .model import load as load
    from .trace.diff import Diff as Diff
    from .trace.diff import diff as diff
    from .trace.dump import Dump as Dump
    from .trace.sources import open_dump as open_dump
    from .trace.verify.report.report import Report as Report


def __getattr__(name: str) -> object:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = found = getattr(import_module(f".{_FROM[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return [*_FROM, "__version__"]
