"""Fixtures with real vLLM servers. They are started once for all tests that only talk to them.

A test that stops or kills a server starts its own, on a `free_port`. Adapters that a test loads
need names of their own.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from fast_python import FastPython
from rea_rl.rollout.server_answers import check_server
from rea_rl.vllm_server import ServerConfig, resolve_device, server_command, server_environment

ROOT = Path(__file__).parents[1]
POLICY = ROOT / "model" / "Miniature-LRM"
# untrained: it writes labels of the right form, without sense
REFLECTION = ROOT / "model" / "Miniature-Instruct"
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def ignored(*_: object) -> None:
    """A handler, as opposed to SIG_IGN, is not inherited by programs that tests start."""


def pytest_configure() -> None:
    """Signals that `nohup` or a shell's background ignores end programs of tests all the same."""
    for number in SIGNALS:
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


@pytest.fixture(scope="module", autouse=True)
def handlers_as_before() -> Iterator[None]:
    """What a program sets for itself is not for the tests after it."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


@dataclass
class Served:
    """A vLLM that answers."""

    config: ServerConfig

    @property
    def base_url(self) -> str:
        return self.config.base_url


Serve = Callable[..., AbstractContextManager[list[Served]]]


@pytest.fixture(scope="session")
def serve_all(fast_python: str) -> Serve:
    """Context manager that starts vLLM side by side, by commands that `VLLMServer` would give, and
    waits until all answer."""

    @contextmanager
    def start(*configs: ServerConfig) -> Iterator[list[Served]]:
        started = [launch(config, fast_python) for config in configs]
        try:
            for config in configs:
                check_server(config.base_url, config.model, timeout=240)
            yield [Served(config) for config in configs]
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(60)

    return start


def launch(config: ServerConfig, python: str) -> subprocess.Popen:
    """Start vLLM; its output goes to a file of `log_dir`."""
    device = resolve_device(config.device)
    _, *command = server_command(config, device)
    environment = {**os.environ, **server_environment(config, device)}
    with Path(config.log_dir, f"{config.port}.log").open("w") as log:
        return subprocess.Popen(
            [python, *command], env=environment, stdout=log, stderr=subprocess.STDOUT
        )


@pytest.fixture(scope="session")
def servers(
    free_port: Callable[[], int], serve_all: Serve, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Served]]:
    """Policy and reflection server with the miniature's models."""
    shared = {"log_dir": str(tmp_path_factory.mktemp("vllm")), "gpu_memory_utilization": 0.1}
    policy = ServerConfig(str(POLICY), free_port(), "policy", **shared)
    reflection = ServerConfig(str(REFLECTION), free_port(), "reflection", **shared)
    with serve_all(policy, reflection) as started:
        yield started


@pytest.fixture(scope="session")
def policy_server(servers: list[Served]) -> Served:
    """Serves model/Miniature-LRM; LoRA adapters may be loaded."""
    return servers[0]


@pytest.fixture(scope="session")
def reflection_server(servers: list[Served]) -> Served:
    """Serves model/Miniature-Instruct."""
    return servers[1]
