"""Fixtures with real vLLM servers. They are started once for all tests that only talk to them.

A test that stops or kills a server starts its own, on a `free_port`. Adapters that a test loads
need names of their own.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from fast_python import FastPython
from rea_rl.vllm_server import ServerConfig, VLLMServer

ROOT = Path(__file__).parents[1]
POLICY = ROOT / "model" / "Miniature-LRM"
# untrained: it writes labels of the right form, without sense
REFLECTION = ROOT / "model" / "Miniature-Instruct"


def ignored(*_: object) -> None:
    """A handler, as opposed to SIG_IGN, is not inherited by programs that tests start."""


def pytest_configure() -> None:
    """Signals that `nohup` or a shell's background ignores end programs of tests all the same."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, ignored)
    # Before torch is loaded: threads that spin would take a core from servers and other ranks.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # An example may take longer than 200 ms if other processes have the cores.
    hypothesis.settings.register_profile("shared machine", deadline=None)
    hypothesis.settings.load_profile("shared machine")


def pytest_unconfigure() -> None:
    """What `frozen` keeps may be freed again, so that no library reports a leak."""
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Each training collects garbage, which took a second when it read all of torch, TRL and
    vLLM."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def fast_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Path of a Python with the heavy libraries loaded: for what a command does, not its start."""
    with FastPython(tmp_path_factory.mktemp("fast_python")) as python:
        yield str(python.path)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Function that returns a port on which nothing listens."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def servers(
    free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VLLMServer, VLLMServer]]:
    """Policy and reflection server with the miniature's models, started side by side."""
    logs = str(tmp_path_factory.mktemp("vllm"))
    policy = VLLMServer(
        ServerConfig(str(POLICY), free_port(), "policy", log_dir=logs, gpu_memory_utilization=0.1)
    )
    reflection = VLLMServer(
        ServerConfig(
            str(REFLECTION), free_port(), "reflection", log_dir=logs, gpu_memory_utilization=0.1
        )
    )
    try:
        for server in (policy, reflection):
            server.start()
        for server in (policy, reflection):
            server.wait_ready()
        yield policy, reflection
    finally:
        policy.stop()
        reflection.stop()


@pytest.fixture(scope="session")
def policy_server(servers: tuple[VLLMServer, VLLMServer]) -> VLLMServer:
    """Serves model/Miniature-LRM; LoRA adapters may be loaded."""
    return servers[0]


@pytest.fixture(scope="session")
def reflection_server(servers: tuple[VLLMServer, VLLMServer]) -> VLLMServer:
    """Serves model/Miniature-Instruct."""
    return servers[1]
