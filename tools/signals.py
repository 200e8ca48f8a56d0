"""How a command ends that does not come to its end: told to (SIGINT, SIGTERM, SIGHUP), or because a file was cut
while it was mapped (SIGBUS).

Told to: an exception in the main thread, so that all is cleaned up on the way out as after any error. Python raises it
only between two of its own steps, and the main thread may be deep in machine code, its own or a library's. So a thread
stands by: it tells the CPU backend to take up no more work, and if the main thread does not react within REACT_S, or
has not ended within CLEAN_UP_S, removes what is in the making and ends the process. Either way the process dies of the
signal, as shells want to see it: `$?` is 130, 143 or 129, and a loop around the command ends with it.

Cut: the load that found no memory cannot be finished, so nothing may go on, and no number is made of it. The system
calls a handler in the thread that faulted. It is Python, which other signals forbid: they come at any instruction, in
the allocator say, but this one only at a load from a mapped file, where any function might be called. It says which
file it was, removes what is in the making, and ends the process with status 2, without a return to the load.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

REACT_S = 0.15
CLEAN_UP_S = 2.0
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class Interrupted(KeyboardInterrupt):
    """This process was told to end, by the signal of that number."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


class Ending:
    """Of this process. Made once, by its main thread, before there is anything to clean up."""

    made: Ending | None = None

    def __init__(self) -> None:
        Ending.made, self.number = self, 0
        # What the caller has us ignore (nohup, a shell's background job) stays ignored.
        self.heeded = [n for n in ENDING if signal.getsignal(n) not in (signal.SIG_IGN, None)]
        self.told, tell = os.pipe()
        if sys.platform != "win32":
            os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        for n in self.heeded:
            signal.signal(n, self._raise)
        sys.unraisablehook = self._unraisable
        atexit.register(self._die)  # the first that is registered is called last
        Thread(target=self._stand_by, daemon=True).start()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self.number:  # a second one must not disturb what the first has begun
            self.number = number
            raise Interrupted(number)

    def _unraisable(self, what: Any) -> None:
        """An exception that came up inside a destructor is lost: so the main thread has not reacted."""
        if isinstance(what.exc_value, Interrupted):
            self.number = 0
        else:
            sys.__unraisablehook__(what)

    def _stand_by(self) -> None:
        while (number := os.read(self.told, 1)[0]) not in self.heeded:
            pass
        try:
            if stop := imported("engine.kernels.cpu.machine.team", "stop"):
                stop()
            time.sleep(REACT_S)
            if self.number:
                time.sleep(CLEAN_UP_S)
            clean_up()
        finally:
            die_of(number)

    def _die(self) -> None:
        if self.number:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            clean_up()
            die_of(self.number)


@contextmanager
def interrupts_are_answered() -> Iterator[None]:
    """In here Ctrl-C ends nothing by itself: it is a KeyboardInterrupt in the main thread, each time."""
    ending = Ending.made
    heeded = ending is not None and signal.SIGINT in ending.heeded
    if ending is not None and heeded:
        ending.heeded.remove(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if ending is not None and heeded:
            ending.heeded.append(signal.SIGINT)


def imported(module: str, name: str) -> Any:
    """A function of this package, None if the command has not needed it so far."""
    return getattr(sys.modules.get(f"{__package__.rpartition('.')[0]}.{module}"), name, None)


def clean_up() -> None:
    """Removes what this process has in the making. Its children end with it by themselves."""
    if discard_all := imported("beside", "discard_all"):
        discard_all()
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, SHOW_CURSOR)


def die_of(number: int) -> None:
    """By the signal's own action, from any thread; the first process of a container survives that, and exits."""
    if sys.platform != "win32":
        ctypes.CDLL(None).signal(number, None)  # SIG_DFL; Python's own can be called by the main thread alone
        os.kill(os.getpid(), number)
    os._exit(128 + number)


# ---- a file that was cut


class _Info(ctypes.Structure):
    """siginfo_t of a fault, as Linux has it."""

    _fields_ = [
        ("number", ctypes.c_int),
        ("error", ctypes.c_int),
        ("code", ctypes.c_int),
        ("address", ctypes.c_void_p),
    ]


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_Info), ctypes.c_void_p)


class _Action(ctypes.Structure):
    """struct sigaction of glibc and musl."""

    _fields_ = [
        ("handler", _Handler),
        ("mask", ctypes.c_ulong * (128 // ctypes.sizeof(ctypes.c_ulong))),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


SA_SIGINFO = 4


_kept: list[_Action] = []  # what the system calls must stay where it is


def end_at_a_cut_file(say: Callable[[str], None]) -> None:
    """Has `say` called with a line that names the file when one turns out to be cut, then ends with status 2.

    Linux alone says which address a fault was at, and which file is mapped there; elsewhere the process dies of it, as
    it always did.
    """
    if sys.platform != "linux":
        return

    def cut(number: int, info: Any, context: int | None) -> None:
        try:
            if found := mapped_at(info.contents.address or 0):
                say(what_happened(*found))
                clean_up()
            else:  # not a file's memory: nothing that we could explain
                die_of(number)
        finally:
            os._exit(2)

    action = _Action(handler=_Handler(cut), flags=SA_SIGINFO)
    ctypes.CDLL(None).sigaction(signal.SIGBUS, ctypes.byref(action), None)
    _kept.append(action)


def mapped_at(address: int) -> tuple[str, int] | None:
    """The file that is mapped at an address, and the place in it."""
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            begin, _, end = line.split(b" ", 1)[0].partition(b"-")
            if int(begin, 16) <= address < int(end, 16):
                _, _, offset, _, inode, *name = line.rstrip(b"\n").split(maxsplit=5)
                place = int(offset, 16) + address - int(begin, 16)
                return (os.fsdecode(name[0]), place) if int(inode) and name else None
    return None


def what_happened(file: str, place: int) -> str:
    with suppress(OSError):
        size = Path(file).stat().st_size
        if size <= place:
            return f"{file}: was cut to {size:,} bytes while it was being read; nothing of the result is kept"
    return f"{file}: could not be read any more at byte {place:,}; nothing of the result is kept"
