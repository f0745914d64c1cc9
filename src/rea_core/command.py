"""The frame of a command."""

from __future__ import annotations

import argparse
import codecs
import functools
import io
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rea_core.checks import PLACES, user_name, user_path
from rea_core.interruption import interruptible
from rea_core.ownership import release_all

# characters of tables and logs, as an old terminal can write them
PLAIN = {"±": "+-", "—": "-", "→": "->"}

Main = Callable[[list[str] | None], None]


def setup_logging(level: int = logging.INFO) -> None:
    """Log to stderr with time and module; ranks other than the first only warn.

    Entry points call it before they import torch, so the wait policy of its threads is set here
    too: threads that spin while they wait lose most of their speed as soon as anything else runs on
    the cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _write_to_any_terminal()
    if os.environ.get("RANK", "0") != "0":
        level = logging.WARNING
    logging.basicConfig(
        level=level, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", force=True
    )
    if spec := getattr(sys.modules["__main__"], "__spec__", None):  # of `python -m`
        logging.getLogger("__main__").name = spec.name
    for chatty in ("httpx", "httpx2", "openai"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _write_to_any_terminal() -> None:
    """Let output have a plain form of a character that the terminal's encoding lacks."""
    codecs.register_error("plain", _plain_form)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain_form(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError), "only output is plain"
    begin = error.object[error.start]
    return (
        (PLAIN[begin], error.start + 1) if begin in PLAIN else codecs.backslashreplace_errors(error)
    )


def command(*errors: type[Exception]) -> Callable[[Main], Callable[..., None]]:
    """Frame of a program's `main`: it logs to stderr, and an error that a user can mend ends it
    with exit code 1 and one line; Ctrl-C with 130.

    Args:
        errors: these errors, next to ValueError and OSError.
    """
    mendable: tuple[type[Exception], ...] = (ValueError, OSError, *errors)

    def frame(main: Main) -> Callable[..., None]:
        @functools.wraps(main)
        @interruptible
        def framed(argv: list[str] | None = None) -> None:
            setup_logging()
            try:
                main(argv)
            except mendable as error:
                sys.exit(f"error: {in_words(error)}")
            finally:
                release_all()

        return framed

    return frame


def in_words(error: Exception) -> str:
    """An error in one line; one of the system names the file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}; correct the name, or give another place"
    return " ".join(str(error).splitlines())


@dataclass(frozen=True)
class Needed:
    """In place of a flag's default: the type of one that must be given."""

    type: type


def add_flags(parser: argparse._ActionsContainer, **flags: tuple[Any, str]) -> None:
    """Add flags by name: their default (False: a switch), or their type without one, and help."""
    for name, (value, words) in flags.items():
        if value is False:
            parser.add_argument(f"--{name}", action="store_true", help=words)
            continue
        kind, settings = type(value), {"default": value}
        if isinstance(value, Needed):
            kind, settings = value.type, {"required": True}
        elif isinstance(value, type):
            kind, settings = value, {}
        reader: Callable[[str], Any] = kind
        if issubclass(kind, Path):
            reader = user_path
        elif kind is str and PLACES.search(name):
            reader = user_name
        parser.add_argument(f"--{name}", type=reader, help=words, **settings)
