"""Two thousand paths in one run while a server is killed for every hundred of them; memory of
the trainer."""

from __future__ import annotations

import json
import signal
import time

import psutil
import pytest
from faults_support import wait_for

pytestmark = [pytest.mark.faults, pytest.mark.slow]
STEPS, PATHS = 20, 100


def test_two_thousand_paths_with_a_fault_every_hundred(make_run, pair, took):
    """Policy and reflection server are killed in turn, once in every step."""
    run = make_run(*pair, prompts_per_step=PATHS // 4, max_steps=STEPS, save_steps=10)
    process, begin = run.start(), time.monotonic()
    memory = []
    for step in range(STEPS):
        done = run.output / "rollouts" / f"step-{step - 1}.jsonl"
        wait_for(
            lambda done=done, step=step: step == 0 or done.exists() or process.poll() is not None,
            300.0,
        )
        server = pair[step % 2]
        wait_for(lambda server=server: server.running() or process.poll() is not None, 300.0)
        assert process.poll() is None, run.log
        memory.append(psutil.Process(process.pid).memory_info().rss)
        server.signal(signal.SIGKILL)
    assert run.finish(process, 600.0) == 0, run.log
    took("2,000 paths", time.monotonic() - begin)

    assert [entry["step"] for entry in run.steps()] == list(range(1, STEPS + 1))
    last = run.steps()[-1]
    assert last["servers/outages"] == STEPS and last["servers/failed_requests"] >= STEPS
    took("away", last["servers/downtime_seconds"])
    files = {
        path.name: path.read_text().splitlines() for path in (run.output / "rollouts").iterdir()
    }
    assert set(files) == {f"step-{step}.jsonl" for step in range(STEPS)}
    seen = []
    for step in range(STEPS):
        rows = [json.loads(line) for line in files[f"step-{step}.jsonl"]]
        assert [row["kind"] for row in rows[::2]] == ["original"] * PATHS and len(rows) == 2 * PATHS
        assert {row["policy_version"].split("-")[1] for row in rows} == {str(step)}
        problems = [row["problem_id"] for row in rows[::2]]
        assert [problems.count(problem) for problem in set(problems)] == [4] * (PATHS // 4)
        seen += set(problems)
    assert len(seen) == len(set(seen)) == STEPS * PATHS // 4  # nothing lost, nothing doubled
    assert memory[-1] < 1.1 * max(memory[2:5]), [round(value / 2**20) for value in memory]
