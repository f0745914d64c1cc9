"""One process at a time writes a file, a folder or a log, or listens on a port.

The first owner holds a lock, and the second one is told who that is. A lock ends with its process,
however that ends, so nothing is left to clean up after a crash. `filelock` cares for network file
systems, and for file systems without locks.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rea_core.checks import check_output, check_output_folder

_held: dict[str, Ownership] = {}  # of this process, by lock file


class Ownership:
    """A lock that this process holds until `release`, or until its end."""

    def __init__(self, file: Path, lock: FileLock):
        self._file, self._lock, self._pid = file, lock, os.getpid()
        self._inside = 0  # `with` blocks; the outermost one releases it

    def release(self) -> None:
        """Let others have it. Nothing is left of the lock."""
        if self._pid == os.getpid() and _held.pop(str(self._file), None) is not None:
            self._file.unlink(missing_ok=True)  # first: nobody may take it in between
            self._lock.release(force=True)

    def __enter__(self) -> Ownership:
        self._inside += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._inside -= 1
        if not self._inside:
            self.release()


@atexit.register
def release_all() -> None:
    """Let others have all that this process holds."""
    for owned in list(_held.values()):
        owned.release()


def own(file: Path, what: str, remedy: str) -> Ownership:
    """Hold a lock; the same again for a process that holds it.

    Args:
        file: lock file; its folder is made.
        what: name of what is owned, for the message.
        remedy: what the second one can do.

    Raises ValueError naming the process that holds it.
    """
    file = file.absolute()
    if known := _held.get(str(file)):
        return known
    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ValueError(f"{what} is in use by {_holder(file)}; {remedy}") from None
    except OSError as error:
        raise ValueError(f"{what}: {file} cannot be locked ({error.strerror}); {remedy}") from error
    _sign(file)
    _held[str(file)] = owned = Ownership(file, lock)
    return owned


def own_file(path: str | Path, remedy: str = "wait for it, or name another file") -> Ownership:
    """Own a file while it is written. Raises ValueError naming the process that writes it."""
    return own(_lock_of(path), str(path), remedy)


def own_output(path: Path, key: str, inputs: Iterable[str | Path | None] = ()) -> None:
    """Check a file that a command writes, see `check_output`, and own it until the command ends."""
    check_output(path, key, inputs)
    # entered, so that a writer that ends does not release it
    own_file(path, f"wait for it, or give another {key}").__enter__()


def own_output_folder(folder: str | Path, key: str) -> None:
    """Check a folder that a command writes to, see `check_output_folder`, and own it until the
    command ends."""
    check_output_folder(folder, key)
    own_folder(folder, key)


def own_folder(folder: str | Path, key: str) -> Ownership:
    """Own a folder of outputs, also before it is there. `key` is the argument that names it. Raises
    ValueError naming the process that owns it."""
    return own(_lock_of(folder), f"{key} {folder}", f"wait for it, or give another {key}")


def check_folder_free(folder: str | Path, key: str) -> None:
    """Raise ValueError for a folder that another process owns; nothing is made."""
    if _lock_of(folder).exists() and str(_lock_of(folder)) not in _held:
        own_folder(folder, key).release()


def own_port(port: int) -> Ownership:
    """Own a port of this machine before anything listens. Raises ValueError naming its owner."""
    folder = Path(tempfile.gettempdir()) / f"rea-rl-{os.getuid()}"
    return own(
        folder / f"{socket.gethostname()}-{port}.lock",
        f"port {port}",
        "wait, or choose another (--port; SERVER_PORT of a launcher)",
    )


def _lock_of(path: str | Path) -> Path:
    # of the file itself, whatever link leads there
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.lock")


def _sign(file: Path) -> None:
    """Write who holds a lock, except into a marker of `filelock`, which says so itself."""
    with file.open("r+", encoding="utf-8") as text:
        if text.read(1) in ("", "{"):
            text.seek(0)
            text.truncate()
            # the program, without options, which may hold a key
            command = " ".join(" ".join(sys.orig_argv[:3]).split())[:120]
            now = time.strftime("%H:%M:%S")
            json.dump(
                {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": now,
                    "command": command,
                },
                text,
            )


def _holder(file: Path) -> str:
    text = ""
    with suppress(OSError, UnicodeDecodeError):  # it has just been released
        text = file.read_text(encoding="utf-8")
    with suppress(json.JSONDecodeError, KeyError, TypeError):
        holder = json.loads(text)
        place = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
        return f"process {holder['pid']}{place} since {holder['since']} ({holder['command']})"
    number = re.match(r"\d+", text)
    return f"process {number[0]}" if number else "another process"
