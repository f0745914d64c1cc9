"""A program of a model in a process with limits: time, memory, files, and no network where the
system allows that."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

CHILD = Path(__file__).with_name("bounded_child.py")
LIMITS = {"memory_mb": 1024, "file_mb": 4, "files": 64}
MAX_OUTPUT = 1 << 20  # characters that are read


def run_bounded(
    program: str, *, tests: Sequence[str] = (), stdin: str = "", seconds: float = 5.0
) -> str | None:
    """What a Python program prints; None if it, or a test, fails or exceeds a limit.

    Args:
        program: its source. Without tests it runs as a script.
        tests: sources that run after it, one after the other, among its names.
        stdin: its input.
        seconds: of wall-clock time for all, the start of Python among it; its CPU time is as much.

    The process has a folder of its own, an empty environment, a memory of 1 GiB, files of 4 MiB and
    64 of them. When it ends, or its time does, its whole process group is killed. Where the
    kernel allows, it writes nowhere else, has no network, and its children die with it.
    """
    end = secrets.token_hex(16) if tests else ""  # a program that leaves early has not passed them
    job = {"program": program, "tests": [*tests], "end": end, "seconds": int(seconds) + 1}
    job |= LIMITS | {"name": "solution" if tests else "__main__"}
    with tempfile.TemporaryDirectory(prefix="bounded-") as folder, tempfile.TemporaryFile() as out:
        Path(folder, "job.json").write_text(json.dumps(job))
        if not _run(folder, stdin, out, seconds):
            return None
        out.seek(0)
        text = out.read(MAX_OUTPUT).decode(errors="replace")
    return text.removesuffix(end) if text.endswith(end) else None


def _run(folder: str, stdin: str, out: object, seconds: float) -> bool:
    """Whether the process ended well in time; afterwards its group is gone."""
    with tempfile.TemporaryFile() as given:
        given.write(stdin.encode())
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(CHILD)],
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
            | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
            stdin=given,
            stdout=out,  # type: ignore[arg-type]
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@cache
def warn_of_network() -> None:
    """Log, once a process, that programs of a model can reach the network, if they can."""
    probe = "import socket; print(len(socket.if_nameindex()))"
    if (run_bounded(probe) or "").strip() != "1":
        logger.warning(
            "This system does not let a process give up its network: programs of the model can "
            "reach it. Run in a container without one, or allow user namespaces"
        )
