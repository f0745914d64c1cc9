"""Ctrl-C: a program ends with one line and status 130, whatever it does just then."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any

STATUS = 128 + signal.SIGINT
# A progress bar may be on the last line.
LINE = "\nerror: interrupted by Ctrl-C; what was finished is kept\n"
PROGRAMS = ("generation", "rea_rl", "miniature")


def interruptible(main: Callable[..., Any]) -> Callable[..., Any]:
    """Frame of a program's `main` that Ctrl-C ends as above; of several ranks the first speaks."""

    @functools.wraps(main)
    def framed(*args: Any, **keywords: Any) -> Any:
        try:
            return main(*args, **keywords)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left but to clean up
            _say()
            sys.exit(STATUS)

    return framed


@contextmanager
def out_of_reach() -> Iterator[None]:
    """Processes that are started here do not get Ctrl-C: their parent ends them. If it comes
    meanwhile, this process has it afterwards."""
    resource_tracker.ensure_running()  # its start would let Ctrl-C through again
    came, handler = [], signal.getsignal(signal.SIGINT)
    # Another thread may take a signal that this one blocks; the handler still runs in the main one.
    is_held = callable(handler) and threading.current_thread() is threading.main_thread()
    if is_held:
        signal.signal(signal.SIGINT, lambda *_: came.append(True))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if is_held:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def watch_imports() -> None:
    """Let Ctrl-C end a program likewise while its modules are still imported."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if issubclass(kind, KeyboardInterrupt) and spec and spec.name.startswith(PROGRAMS):
            _say()
            os._exit(STATUS)
        before(kind, error, trace)

    sys.excepthook = hook


def _say() -> None:
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(LINE)
        sys.stderr.flush()
