"""Kernels of the CPU backend compiled here for another machine: LLVM and Numba do that for any processor.

python -m qwenref.tools.dev.elsewhere --describe          this machine as JSON
python -m qwenref.tools.dev.elsewhere assembly NAME KERNEL ...   assembly as JSON, for one of PROCESSORS
python -m qwenref.tools.dev.elsewhere keep JSON FORMAT/PRECISION ...   into the cache that a process on that machine
                                                          reads, with those that every model needs

What a process compiles for is settled when the backend is imported, so each is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import Any

from ...child import own_process
from ...engine.kernels import numba_settings


@dataclass(frozen=True, slots=True)
class Processor:
    """name, features: what LLVM finds out on such a machine. told: what Numba is told instead (NUMBA_CPU_FEATURES),
    None where nothing.
    """

    triple: str
    name: str
    features: dict[str, bool]
    told: str | None = None


LINUX, MACOS = "aarch64-unknown-linux-gnu", "arm64-apple-macosx11.0.0"
N1 = {name: True for name in ("aes", "crc", "fp-armv8", "lse", "neon", "sha2")}  # llvmlite 0.50 there: no dotprod
PROCESSORS = {
    "neoverse-n1": Processor(LINUX, "neoverse-n1", N1, "+aes,+crc,+dotprod,+fp-armv8,+lse,+neon,+sha2"),
    "apple-m1": Processor(MACOS, "apple-m1", {}, "+dotprod,+neon"),
    "znver3": Processor("x86_64-unknown-linux-gnu", "znver3", {}, "+avx2,+fma,+f16c"),
}


def become(processor: Processor) -> None:
    """From here on this process compiles for that one. Before the backend is imported."""
    assert "numba" not in sys.modules
    numba_settings.install()
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    own: Any = llvm
    own.get_process_triple = lambda: processor.triple
    own.get_host_cpu_name = lambda: processor.name
    own.get_host_cpu_features = lambda: llvm.FeatureMap(processor.features)
    target = llvm.Target.from_triple(processor.triple)
    own.Target.from_default_triple = classmethod(lambda cls: target)
    if processor.told is not None:
        os.environ["NUMBA_CPU_FEATURES"] = processor.told


def _load_nothing() -> None:
    """Machine code is left where it was made: another system's names what this one has not."""
    from numba.core import codegen

    library, machine = vars(codegen)["JITCodeLibrary"], vars(codegen)["JITCPUCodegen"]
    library._finalize_specific = lambda self: None
    library.get_pointer_to_function = lambda self, name: 0
    library._get_compiled_object = lambda self: b""  # what would be kept; `assembly` throws it away
    machine.set_env = lambda self, name, env: None


def here() -> Processor:
    """This machine, as become() takes it for another one to compile for it."""
    import llvmlite.binding as llvm

    from ...engine.kernels.cpu.machine.paths import config

    features = {name: there for name, there in llvm.get_host_cpu_features().items()}
    return Processor(llvm.get_process_triple(), llvm.get_host_cpu_name(), features, config.CPU_FEATURES)


def kernels(names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Kernels by name: attention/scores, rows/rms_norm, the three of a packed format's precision, as Q4_K/int8, or one
    of them, as Q4_K/int8 many.
    """
    from ...engine.kernels.cpu import attention, rows
    from ...engine.kernels.cpu.matmul.packed import form_named

    for name in names:
        place, _, last = name.rpartition("/")
        precision, _, which = last.partition(" ")
        if place in ("attention", "rows"):
            yield name, getattr({"attention": attention, "rows": rows}[place], last)
        else:
            for tokens, kernel in zip(
                ("one", "few", "many"), getattr(form_named(place), precision) or (), strict=False
            ):
                if which in ("", tokens):
                    yield f"{place}/{precision} {tokens}", kernel


def assembly(processor: str, names: Sequence[str]) -> dict[str, str]:
    """Kernels, by the names of `kernels`, in a processor's machine code: made in a process of its own."""
    with TemporaryDirectory() as empty:  # of a kernel that was kept Numba shows no assembly
        environment = os.environ | {"XDG_CACHE_HOME": empty, "NUMBA_CACHE_DIR": ""}
        words = own_process(__name__, "assembly", processor, *names)
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True, env=environment)
    made: dict[str, str] = json.loads(done.stdout)
    return made


def main(arguments: list[str]) -> None:
    match arguments:
        case ["--describe"]:
            print(json.dumps(asdict(here())))
        case ["assembly", name, *wanted]:
            become(PROCESSORS[name])
            _load_nothing()
            print(json.dumps({n: k._compiled._library.get_asm_str() for n, k in kernels(wanted)}))
        case ["keep", description, *products]:
            become(Processor(**json.loads(description)))
            from ...engine.kernels.cpu import ahead

            ahead.compile_kernels([], [], lambda done, total: None, helpers=0)
            for name in products:
                form, _, precision = name.rpartition("/")
                ahead.compile_kernels([form], [precision], lambda done, total: None, helpers=0)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
