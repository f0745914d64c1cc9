"""The trainer killed, or out of disk, in the middle of a file; killed anywhere in a step. Each
time it is resumed."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from faults_support import alive, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.slow]

BROKEN = str(Path(__file__).with_name("broken_trainer.py"))
KINDS = ("rollouts", "adapter", "weights", "optimizer", "state")
CHECKPOINT_KINDS = ("weights", "optimizer", "state")
FAULTS = [f"{how}-{kind}" for how in ("kill", "full") for kind in KINDS]
SEED = 0


def test_no_half_written_file_is_mistaken_for_a_whole_one(run):
    """One run, broken in each of its processes at the second file of a kind: each of them gets
    one step further."""
    steps = len(FAULTS) + 1
    for done, fault in enumerate(FAULTS):
        how, kind = fault.split("-")
        process = run.start("--max_steps", str(steps), program=(BROKEN, fault))
        code = run.finish(process)
        assert code == (-signal.SIGKILL if how == "kill" else 1), f"{fault}: {run.log}"
        if done:
            assert f"continuing from {run.output}/checkpoint-{done}\n" in run.log, fault
        broken = run.output / f"checkpoint-{done + 2}"
        assert broken.exists() is (kind in CHECKPOINT_KINDS), fault  # the one before is whole
        if how == "full":
            last = run.log.splitlines()[-1]
            assert last.startswith("error: ") and "no room" in last and "same command" in last, (
                run.log
            )
            assert not list((run.output / "rollouts").glob(".*")), fault
    assert run.finish(run.start("--max_steps", str(steps))) == 0, run.log
    assert f"checkpoint-{len(FAULTS) + 1} was interrupted while it was written" in run.log
    run.check_complete(steps)


def has_begun(run, checkpoint):
    return list(run.output.glob(f"{checkpoint}/trainer_state.json"))


def test_trainer_killed_three_times_at_random_points(run, took):
    steps, random_time = 5, random.Random(SEED)
    for kill in range(3):
        process = run.start("--max_steps", str(steps))
        first = f"checkpoint-{kill + 1}"
        wait_for(lambda: has_begun(run, first) or process.poll() is not None)  # noqa: B023
        time.sleep(random_time.uniform(0.0, 4.0))
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL, run.log
        wait_for(lambda: not alive(children), 30)  # noqa: B023 - verifier workers do not outlive it
    begin = time.monotonic()
    assert run.finish(run.start("--max_steps", str(steps))) == 0, run.log
    took("after the fault", time.monotonic() - begin)
    assert "continuing from" in run.log
    run.check_complete(steps)
