"""A Python that starts in a tenth of a second: commands fork from a process that has the heavy
libraries loaded.

    with FastPython(folder) as python:
        subprocess.run([python.path, "-m", "rea_rl.grpo", ...])

`path` stands in for `bin/python` of a virtual environment, its folder for the virtual environment.

The stand-in passes arguments, folder, variables and open files on, waits, passes signals on, and
ends as the command ended. When it is killed, so is the command. With a variable FAST_PYTHON_ANSWER,
the file of that name has a function `answer(argv)`, which returns the arguments to run, or a status
to end with. Modules of this project are not loaded beforehand.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import itertools
import json
import multiprocessing.spawn
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
files = [int(name) for name in os.listdir("/proc/self/fd")]
files = [file for file in files if os.path.exists("/proc/self/fd/%d" % file)]  # not the folder
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
asked = {{"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "files": files}}
asked = json.dumps(asked).encode()
socket.send_fds(connection, [len(asked).to_bytes(8, "big")], files)
connection.sendall(asked)
for file in files[3:]:
    os.close(file)  # a pipe ends with the command
pid = int.from_bytes(connection.recv(8), "big")
for number in (signal.SIGTERM, signal.SIGINT):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, _: os.kill(pid, number))
code = int.from_bytes(connection.recv(8), "big", signed=True)
if code < 0:
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
PRELOADED = (
    *(
        "torch",
        "torch.distributed.launcher.api",
        "transformers",
        "peft",
        "datasets",
        "accelerate.commands.config",
    ),
    *("openai", "matplotlib.pyplot", "scipy.stats"),
    *("trl.trainer.grpo_trainer", "trl.trainer.sft_trainer", "trl.trainer.dpo_trainer"),
    *("vllm.entrypoints.openai.api_server", "vllm.v1.worker.cpu_worker", "vllm.v1.engine.core"),
)
# Some are read when a library is loaded.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "DS_ACCELERATOR": "cpu",
}


class FastPython:
    """Context manager; a folder `bin` is made in `folder`, with `python`."""

    def __init__(self, folder: Path):
        self.path = folder / "bin" / "python"
        self._address = str(folder / "socket")

    def __enter__(self) -> FastPython:
        self.path.parent.mkdir(parents=True)
        self._write("python", CLIENT.format(python=sys.executable, address=self._address))
        command = [sys.executable, __file__, self._address, str(self.path)]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        while not os.path.exists(self._address):
            assert self._process.poll() is None, "it ended"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait()

    def _write(self, name: str, text: str) -> None:
        file = self.path.with_name(name)
        file.write_text(text)
        file.chmod(0o755)


def serve(address: str, executable: str) -> None:
    """Fork for each command; single-threaded, as is what it forks. Ends with its parent, which
    holds the other end of stdin."""
    for name in PRELOADED:
        __import__(name)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(64)
    os.rename(address + ".new", address)
    running = 0
    while 0 not in select.select([listener, 0], [], [])[0]:
        connection, _ = listener.accept()
        while running and os.waitpid(-1, os.WNOHANG)[0]:
            running -= 1
        running += 1
        if os.fork() == 0:
            listener.close()
            attend(connection, executable)
        connection.close()


def attend(connection: socket.socket, executable: str) -> NoReturn:
    """Run one command in a child, and tell its status."""
    size, files, *_ = socket.recv_fds(connection, 8, 250)
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += connection.recv(1 << 16)
    pid = os.fork()
    if pid == 0:
        connection.close()
        run(json.loads(asked), files, executable)
    for file in files:
        os.close(file)
    with contextlib.suppress(OSError):
        connection.sendall(pid.to_bytes(8, "big"))
        ended = os.pidfd_open(pid)
        ready, *_ = select.select([ended, connection], [], [])
        if ended not in ready:
            os.kill(pid, signal.SIGKILL)  # the stand-in was killed
        _, status = os.waitpid(pid, 0)
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
    os._exit(0)


def take_over(files: list[int], numbers: list[int]) -> None:
    """Give received files the numbers that they had in the stand-in."""
    free = max([*files, *numbers]) + 1
    moved = [os.dup2(file, free + i) for i, file in enumerate(files)]
    for file in files:
        os.close(file)
    for file, number in zip(moved, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def run(asked: dict[str, Any], files: list[int], executable: str) -> NoReturn:
    """Be the command."""
    take_over(files, asked["files"])
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.executable = executable
    # The old ones took the server's files for what can be wound back.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    try:
        code = answer(list(itertools.dropwhile(("-u", "-B", "-s").__contains__, asked["argv"])))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # closed, by the command itself
            stream.flush()
    os._exit(code)


def answer(argv: list[str]) -> int:
    """Status of a command."""
    if changes := os.environ.get("FAST_PYTHON_ANSWER"):
        argv = runpy.run_path(changes)["answer"](argv)
        if isinstance(argv, int):
            return argv
    if argv[:2] == ["-m", "generation.generate"]:
        # of engines; what the verifier starts has to be small
        multiprocessing.spawn.set_executable(sys.executable)
    execute(argv)
    return 0


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
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
