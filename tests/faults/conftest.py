"""Fixtures of the fault tests.

`pair` starts both servers as `scripts/common.sh` does, by `python -m rea_rl.vllm_server`. A test kills vLLM itself, never
the program that supervises it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest
from faults_support import POLICY, REFLECTION, Run, Server, write_recipe


@pytest.fixture(scope="session")
def pair(free_port, tmp_path_factory) -> Iterator[tuple[Server, Server]]:
    """Policy and reflection server, which are started again when they are killed."""
    folder = tmp_path_factory.mktemp("supervised")
    policy = Server("policy", POLICY, free_port(), folder, "--max_lora_rank", "8", "--max_restarts", "20")
    reflection = Server("reflection", REFLECTION, free_port(), folder, "--max_restarts", "20")
    try:
        policy.wait_ready()
        reflection.wait_ready()
        yield policy, reflection
    finally:
        policy.stop()
        reflection.stop()


@pytest.fixture
def run(pair, tmp_path) -> Iterator[Run]:
    """A run on the pair that has not begun; what is left of it is killed in the end."""
    run = Run(write_recipe(tmp_path / "recipe.yaml", *pair), tmp_path / "run")
    yield run
    for process in run.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait(30)


TIMES = pytest.StashKey[list[str]]()


@pytest.fixture
def took(request) -> Callable[[str, float], None]:
    """Function that notes a time for the summary."""

    def note(what: str, seconds: float) -> None:
        request.config.stash.setdefault(TIMES, []).append(f"{request.node.name}: {what} {seconds:.1f} s")

    return note


def pytest_terminal_summary(terminalreporter, config) -> None:
    if times := config.stash.get(TIMES, []):
        terminalreporter.section("seconds to recover")
        for line in times:
            terminalreporter.write_line(line)
