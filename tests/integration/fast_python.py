"""A Python that starts in a tenth of a second: commands fork from a process that has the heavy
libraries loaded.

    # python.path stands in for bin/python of a virtual environment
    with FastPython(folder, environment) as python:
        subprocess.run(["bash", "script.sh"], env=...)

The stand-in passes arguments, folder, variables and open files on, waits, and passes signals on.
What the process of the libraries does with arguments is a function of the test's: it may change or
answer them.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
asked = json.dumps({{"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}).encode()
socket.send_fds(connection, [len(asked).to_bytes(8, "big")], [0, 1, 2])
connection.sendall(asked)
pid = int.from_bytes(connection.recv(8), "big")
for number in (signal.SIGTERM, signal.SIGINT):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, _: os.kill(pid, number))
sys.exit(int.from_bytes(connection.recv(8), "big"))
"""
PRELOADED = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "openai",
    "matplotlib.pyplot",
    "scipy.stats",
    "accelerate",
)


class FastPython:
    """Context manager.

    Args:
        folder: a `bin` folder is made in it, with `python` and `accelerate`.
        answer: file with a function `answer(argv) -> list[str] | int`: the arguments to run, or a
            status to end with.
    """

    def __init__(self, folder: Path, answer: Path):
        self.path = folder / "bin" / "python"
        self._address, self._answer = str(folder / "socket"), answer

    def __enter__(self) -> FastPython:
        self.path.parent.mkdir(parents=True)
        self._write("python", CLIENT.format(python=sys.executable, address=self._address))
        self._write(
            "accelerate",
            f'#!/bin/sh\nexec {self.path} -m accelerate.commands.accelerate_cli "$@"\n',
        )
        command = [sys.executable, __file__, self._address, str(self._answer), str(self.path)]
        self._process = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while (
            not os.path.exists(self._address)
            and self._process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _write(self, name: str, text: str) -> None:
        file = self.path.with_name(name)
        file.write_text(text)
        file.chmod(0o755)


def serve(address: str, answer: Path, executable: str) -> None:
    """Fork for each command; single-threaded, as is what it forks."""
    for name in PRELOADED:
        __import__(name)
    change = runpy.run_path(str(answer))["answer"]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            attend(connection, change, executable)
        connection.close()


def attend(connection: socket.socket, change: Any, executable: str) -> None:
    """Run one command in a child, and tell its status."""
    size, files, *_ = socket.recv_fds(connection, 8, 3)
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += connection.recv(1 << 16)
    pid = os.fork()
    if pid == 0:
        connection.close()
        run(json.loads(asked), files, change, executable)
    for file in files:
        os.close(file)
    with contextlib.suppress(OSError):
        connection.sendall(pid.to_bytes(8, "big"))
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        connection.sendall((code if code >= 0 else 128 - code).to_bytes(8, "big"))
    os._exit(0)


def run(asked: dict[str, Any], files: list[int], change: Any, executable: str) -> None:
    """Be the command: never returns."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.executable = executable
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    try:
        code = change([arg for arg in asked["argv"] if arg != "-u"])
        if not isinstance(code, int):
            execute(code)
            code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def execute(argv: list[str]) -> None:
    kind, *rest = argv
    if kind == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind in ("-", "-c"):
        sys.argv = [kind, *rest[kind == "-c" :]]
        exec(sys.stdin.read() if kind == "-" else rest[0], {"__name__": "__main__"})
    else:
        sys.argv = argv
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
