"""libllama by ctypes: the few calls that a forward pass takes, of llama-cpp-python's library or any other.

Between versions the fields of llama.h's two structures of settings move. Where they are is read off what the library's
own defaults look like, and what was set is asked for again once a context is made.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput

NAMES = ("libllama.so", "libllama.dylib", "llama.dll")
ROOM = 1024  # bytes, more than any version's settings: a library writes, and reads, what it knows of them
MINUS_ONE = b"\xff\xff\xff\xff"

Evaluation = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)  # ggml-backend.h: ggml_backend_sched_eval_callback
Log = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


class Settings(ctypes.Structure):
    """llama_model_params or llama_context_params, whatever their fields."""

    _fields_ = [("raw", ctypes.c_uint8 * ROOM), ("_aligned", ctypes.c_int64)]

    def put(self, at: int, value: Any) -> None:
        """value: of a ctypes type."""
        ctypes.memmove(ctypes.addressof(self) + at, ctypes.byref(value), ctypes.sizeof(value))


class Batch(ctypes.Structure):
    """llama_batch, as llama.h has had it since 2024."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


class Tensor(ctypes.Structure):
    """ggml_tensor as ggml.h has it, up to its name; where the library has that is checked at every node."""

    _fields_ = [
        ("type", c_int32),
        ("buffer", c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", c_size_t * 4),
        ("op", c_int32),
        ("op_params", c_int32 * 16),
        ("flags", c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", ctypes.c_char * 64),
    ]


@dataclass(frozen=True, slots=True)
class ModelFields:
    """Offsets in llama_model_params."""

    n_gpu_layers: int
    use_extra_bufts: int


@dataclass(frozen=True, slots=True)
class ContextFields:
    """Offsets in llama_context_params. flash_attn_type: None in versions that have a bool in another place."""

    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    n_threads_batch: int
    flash_attn_type: int | None
    cb_eval: int
    type_k: int
    type_v: int


def model_fields(raw: bytes) -> ModelFields | None:
    """raw: llama_model_default_params(), with whatever lies behind them. Its pointers are null, then come the layers on
    a device and how they are split (1: by layers); behind four more null pointers stand at most eight booleans, the
    last `true` of which is that of the extra buffers. None for another layout."""
    at = next((at for at in (8, 16) if not any(raw[:at]) and raw[at + 4 : at + 8] == b"\1\0\0\0"), None)
    if at is None:
        return None
    flags = next((p + 32 for p in range((at + 15) & ~7, ROOM - 40, 8) if not any(raw[p : p + 32])), ROOM)
    extra = raw.rfind(1, flags, flags + 8)
    return None if extra < 0 else ModelFields(at, extra)


def context_fields(raw: bytes) -> ContextFields | None:
    """raw: llama_context_default_params(), with whatever lies behind them. The types of RoPE scaling, pooling,
    attention and flash attention are -1 side by side, behind the threads and the type of context (0); the callback and
    its data are null before two types F16 (1). None for another layout."""
    types = next((at for at in range(12, ROOM - 16, 4) if raw[at : at + 12] == 3 * MINUS_ONE), None)
    if types is None:
        return None
    last = types - 4 * (raw[types - 4 : types] == bytes(4))
    threads = raw[last - 8 : last - 4], raw[last - 4 : last]
    kv = next(
        (at for at in range((types + 23) & ~7, ROOM - 24, 8) if raw[at : at + 24] == bytes(16) + 2 * b"\1\0\0\0"), None
    )
    if kv is None or threads[0] != threads[1] or not any(threads[0]):
        return None
    flash = types + 12 if raw[types + 12 : types + 16] == MINUS_ONE else None
    return ContextFields(0, 4, 8, last - 8, last - 4, flash, kv, kv + 16, kv + 20)


def library(path: Path | None) -> Path:
    """The shared library that was named, or llama-cpp-python's. Raises BadInput."""
    if path is not None:
        found = path if path.is_file() else inside(path)
        if found is None:
            raise BadInput(f"{path} is no libllama; name the file, or the folder that holds {' or '.join(NAMES)}")
        return found
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise BadInput(
            "dump-llamacpp needs llama_cpp; get it with: pip install llama-cpp-python, or name another llama.cpp's "
            "library with --libllama"
        )
    folder = Path(spec.origin).parent / "lib"
    found = inside(folder)
    if found is None:
        raise BadInput(f"{folder} holds none of {', '.join(NAMES)}; name it with --libllama")
    return found


def inside(folder: Path) -> Path | None:
    """The libllama in a folder; some builders put a version into its name."""
    names = (folder / name for name in NAMES)
    return next((p for p in (*names, *sorted(folder.glob("libllama.*.so"))) if p.is_file()), None)


class LibLlama:
    """The calls, by their names in llama.h and ggml.h, and where the fields of its settings are."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput for what is no libllama that this knows."""
        self.path = path
        try:
            self.dll = ctypes.CDLL(str(path.absolute()))
            self._declare()
        except (OSError, AttributeError) as error:
            raise BadInput(f"{path} is no libllama that dump-llamacpp can use: {error!s:.200}") from None
        model = model_fields(bytes(self.llama_model_default_params().raw))
        context = context_fields(bytes(self.llama_context_default_params().raw))
        if model is None or context is None:
            raise BadInput(f"{path}: its settings are laid out otherwise than in the versions of llama.cpp known here")
        self.model, self.context = model, context

    def begin(self) -> None:
        """Before anything else. Backends that were built as libraries of their own lie beside libllama."""
        self.llama_backend_init()
        if not self.ggml_backend_reg_count():
            self.ggml_backend_load_all_from_path(str(self.path.absolute().parent).encode())

    def _declare(self) -> None:
        def call(name: str, result: Any, *takes: Any) -> Callable[..., Any]:
            function: Any = getattr(self.dll, name)
            function.restype, function.argtypes = result, list(takes)
            return function

        self.llama_backend_init = call("llama_backend_init", None)
        self.llama_log_set = call("llama_log_set", None, Log, c_void_p)
        self.llama_print_system_info = call("llama_print_system_info", c_char_p)
        self.llama_model_default_params = call("llama_model_default_params", Settings)
        self.llama_model_load_from_file = call("llama_model_load_from_file", c_void_p, c_char_p, Settings)
        self.llama_model_free = call("llama_model_free", None, c_void_p)
        self.llama_context_default_params = call("llama_context_default_params", Settings)
        self.llama_init_from_model = call("llama_init_from_model", c_void_p, c_void_p, Settings)
        self.llama_free = call("llama_free", None, c_void_p)
        self.llama_n_ctx = call("llama_n_ctx", c_uint32, c_void_p)
        self.llama_n_batch = call("llama_n_batch", c_uint32, c_void_p)
        self.llama_n_ubatch = call("llama_n_ubatch", c_uint32, c_void_p)
        self.llama_batch_init = call("llama_batch_init", Batch, c_int32, c_int32, c_int32)
        self.llama_batch_free = call("llama_batch_free", None, Batch)
        self.llama_decode = call("llama_decode", c_int32, c_void_p, Batch)
        self.llama_get_logits_ith = call("llama_get_logits_ith", POINTER(c_float), c_void_p, c_int32)
        self.ggml_backend_reg_count = call("ggml_backend_reg_count", c_size_t)
        self.ggml_backend_load_all_from_path = call("ggml_backend_load_all_from_path", None, c_char_p)
        self.ggml_op_desc = call("ggml_op_desc", c_char_p, c_void_p)
        self.ggml_get_name = call("ggml_get_name", c_void_p, c_void_p)
        self.ggml_nbytes = call("ggml_nbytes", c_size_t, c_void_p)
        self.ggml_backend_tensor_get = call("ggml_backend_tensor_get", None, c_void_p, c_void_p, c_size_t, c_size_t)
