"""Servers that die or hang under a run. Real vLLM on the CPU, the real trainer, signals from
outside."""

from __future__ import annotations

import re
import signal
import time

import pytest
from faults_support import POLICY, Run, Server, wait_for

pytestmark = pytest.mark.faults
STEPS = 3


def strike(run: Run, server: Server, number: int, step: int = 1) -> float:
    """Send a signal while a server computes requests of a step; when that was."""
    wait_for(
        lambda: (
            (run.output / "rollouts" / f"step-{step - 1}.jsonl").exists()
            or run.processes[-1].poll() is not None
        )
    )
    wait_for(server.running)
    server.signal(number)
    return time.monotonic()


def check_recovered(run: Run, key: str, steps: int = STEPS) -> float:
    """The log names the server, why and how long; the metric counts it. Seconds that it was
    away."""
    run.check_complete(steps)
    assert re.search(
        rf"{key} \(http\S+\): a request failed \(.+\) and it is away \(.+\); waiting, at most",
        run.log,
    )
    (seconds,) = re.findall(rf"{key} \(http\S+\): is back after (\S+) s", run.log)
    entry = run.steps()[-1]
    assert entry["servers/outages"] == 1 and entry["servers/failed_requests"] >= 1
    assert entry["servers/downtime_seconds"] == pytest.approx(float(seconds), abs=0.1)
    return float(seconds)


def check_policy_server_killed(run: Run, policy: Server, steps: int) -> float:
    starts = policy.log.count("ready after")
    process = run.start("--max_steps", str(steps))
    strike(run, policy, signal.SIGKILL)
    assert run.finish(process) == 0, run.log
    seconds = check_recovered(run, "policy_server", steps)
    assert policy.log.count("ready after") == starts + 1 and "ended with exit code -9" in policy.log
    # It came back empty. The version of the step was loaded again, and every path of the step comes
    # from it.
    (version,) = re.findall(r"did not serve (\S+); loaded it again", run.log)
    assert {row["policy_version"] for row in run.records(1)} == {version}
    assert run.steps()[-1]["servers/reloaded_adapters"] == 1
    return seconds


def test_policy_server_killed_during_sampling_of_plain_grpo(make_run, policy, fast_python, took):
    """The quick one: one server, two steps."""
    policy.wait_ready()
    run = make_run(policy, None)
    run.python = fast_python
    took("away", check_policy_server_killed(run, policy, steps=2))


@pytest.mark.slow
def test_policy_server_killed_during_sampling(run, policy, took):
    took("away", check_policy_server_killed(run, policy, STEPS))


@pytest.mark.slow
def test_reflection_server_killed_during_labelling(run, pair, took):
    _, reflection = pair
    process = run.start()
    strike(run, reflection, signal.SIGKILL)
    assert run.finish(process) == 0, run.log
    away = check_recovered(run, "reflection_server")
    took("away", away)
    assert "ended with exit code -9" in reflection.log
    assert run.steps()[-1]["servers/reloaded_adapters"] == 0
    # Read to the end in the second try; of up to three paragraphs the cut is certain without.
    labelled = [
        row for row in run.records(1) if row["kind"] == "revision" and row["num_paragraphs"] > 3
    ]
    assert labelled and all(row["num_label_tokens"] > 0 for row in labelled)
    # and not before the server died
    assert max(row["seconds"]["label"] for row in labelled) > away / 2


@pytest.mark.slow
@pytest.mark.parametrize("role", [0, 1], ids=["policy", "reflection"])
def test_hung_server_is_waited_for(run, pair, role, took):
    server = pair[role]
    process = run.start("--request_timeout", "15")
    strike(run, server, signal.SIGSTOP)
    time.sleep(26)  # the request gives up after 15, the first look at its health after 5 more
    server.signal(signal.SIGCONT)
    assert run.finish(process) == 0, run.log
    took("away", check_recovered(run, ("policy_server", "reflection_server")[role]))
    assert "APITimeoutError" in run.log


@pytest.mark.slow
def test_server_that_stays_dead_ends_the_run_with_a_checkpoint(
    make_run, pair, tmp_path, free_port, took
):
    _, reflection = pair
    port = free_port()

    def serve() -> Server:
        flags = ("--max_lora_rank", "8", "--max_restarts", "0")
        server = Server("policy", POLICY, port, tmp_path, *flags)
        server.wait_ready()
        return server

    policy = serve()
    run = make_run(policy, reflection, save_steps=100, server_deadline=5.0)
    process = run.start()
    struck = strike(run, policy, signal.SIGKILL, step=2)
    assert policy.process.wait(60) == 1  # its supervisor gave up
    assert run.finish(process) == 1
    took("after the fault", time.monotonic() - struck)
    *_, last = run.log.splitlines()
    assert (
        last.startswith("error: policy_server (")
        and "server_deadline" in last
        and "start it again" in last
    )
    assert "Traceback" not in run.log
    # steps 0 and 1 were trained
    assert [path.name for path in run.output.glob("checkpoint-*")] == ["checkpoint-2"]
    assert sorted(path.name for path in (run.output / "rollouts").iterdir()) == [
        "step-0.jsonl",
        "step-1.jsonl",
    ]

    policy = serve()
    assert run.finish(run.start()) == 0, run.log
    assert f"continuing from {run.output}/checkpoint-2" in run.log
    run.check_complete(STEPS)
    policy.stop()
