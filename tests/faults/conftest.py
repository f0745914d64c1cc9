"""Fixtures of the fault tests.

`pair` starts both servers as `scripts/common.sh` does, by `python -m rea_rl.vllm_server`. A test
kills vLLM itself, never the program that supervises it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest
from faults_support import POLICY, REFLECTION, Run, Server, write_recipe


@pytest.fixture(scope="session")
def policy(free_port, tmp_path_factory) -> Iterator[Server]:
    """Policy server, which is started again when it is killed."""
    folder = tmp_path_factory.mktemp("policy")
    server = Server(
        "policy", POLICY, free_port(), folder, "--max_lora_rank", "8", "--max_restarts", "20"
    )
    yield server
    server.stop()


@pytest.fixture(scope="session")
def reflection(free_port, tmp_path_factory) -> Iterator[Server]:
    """Reflection server, likewise."""
    server = Server(
        "reflection",
        REFLECTION,
        free_port(),
        tmp_path_factory.mktemp("refl"),
        "--max_restarts",
        "20",
    )
    yield server
    server.stop()


@pytest.fixture
def pair(policy, reflection) -> tuple[Server, Server]:
    """Both servers, ready; they start next to all others of the session."""
    for server in (policy, reflection):
        server.wait_ready()
    return policy, reflection


@pytest.fixture
def make_run(tmp_path) -> Iterator[Callable[..., Run]]:
    """Function that makes a run that has not begun; what is left of its processes is killed in
    the end."""
    runs = []

    def make(policy: Server, reflection: Server | None, **changes) -> Run:
        recipe = write_recipe(tmp_path / "recipe.yaml", policy, reflection, **changes)
        runs.append(Run(recipe, tmp_path / "run", 2 if reflection else 1))
        return runs[-1]

    yield make
    for process in (process for run in runs for process in run.processes):
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait(30)


@pytest.fixture
def run(make_run, pair) -> Run:
    """A run on the pair."""
    return make_run(*pair)


TIMES = pytest.StashKey[list[str]]()


@pytest.fixture
def took(request) -> Callable[[str, float], None]:
    """Function that notes a time for the summary."""

    def note(what: str, seconds: float) -> None:
        request.config.stash.setdefault(TIMES, []).append(
            f"{request.node.name}: {what} {seconds:.1f} s"
        )

    return note


def pytest_terminal_summary(terminalreporter, config) -> None:
    if times := config.stash.get(TIMES, []):
        terminalreporter.section("seconds to recover")
        for line in times:
            terminalreporter.write_line(line)
