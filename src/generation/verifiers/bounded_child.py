"""Run a program of a model inside limits: the file of a bounded process, never imported.

Only the standard library is imported, by path and in isolated mode. The job is `job.json` in the
working directory, which is read and removed before the program begins.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

NEW_USER, NEW_NET, NEW_PID, NEW_IPC = 0x10000000, 0x40000000, 0x20000000, 0x08000000
DIE_WITH_PARENT, NO_NEW_PRIVILEGES = 1, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's system calls
WRITES = sum(1 << bit for bit in (1, *range(4, 13)))  # write, remove and make files of all kinds


def limit(job: dict) -> bool:
    """Set the limits of this process and its children; whether the network is cut off."""
    for kind, value in (
        (resource.RLIMIT_CPU, job["seconds"]),
        (resource.RLIMIT_AS, job["memory_mb"] << 20),
        (resource.RLIMIT_FSIZE, job["file_mb"] << 20),
        (resource.RLIMIT_NOFILE, job["files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(DIE_WITH_PARENT, signal.SIGKILL)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    cut_off = libc.unshare(NEW_USER | NEW_NET | NEW_PID | NEW_IPC) == 0
    write_only_here(libc)
    return cut_off


def write_only_here(libc: ctypes.CDLL) -> None:
    """Let files change below the working directory only, if the kernel knows Landlock."""
    handled = ctypes.c_uint64(WRITES)
    ruleset = libc.syscall(CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return
    for place in (".", "/dev/null"):
        opened = os.open(place, os.O_PATH)
        allowed = WRITES if place == "." else 1 << 1
        rule = allowed.to_bytes(8, "little") + opened.to_bytes(4, "little")
        libc.syscall(ADD_RULE, ruleset, 1, rule, 0)
        os.close(opened)
    libc.syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def wait_for(child: int) -> int:
    """Exit code of a child, also of one that a signal ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF


def main() -> None:
    """Exit code 0 if the program ended well, and its tests too."""
    with open("job.json", encoding="utf-8") as file:
        job = json.load(file)
    os.unlink("job.json")
    if limit(job) and (child := os.fork()):  # the first process of its own space takes all with it
        os._exit(wait_for(child))
    sys.argv, sys.path[0:0] = ["program.py"], ["."]
    space = {"__name__": job["name"]}
    exec(compile(job["program"], "program.py", "exec"), space)
    for test in job["tests"]:
        exec(compile(test, "tests.py", "exec"), space)
    sys.__stdout__.flush()  # the program may have put another in its place
    os.write(1, job["end"].encode())


main()
