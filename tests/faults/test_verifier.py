"""Workers of the verifier killed, hung and out of memory, and a bomb in every position of a batch."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil
import pytest
from faults_support import wait_for

from generation.math_verify import VerifierPool

pytestmark = pytest.mark.faults

SLOW = r"\prod_{k=1}^{10^6}(x+k)"  # minutes
GREEDY = r"x^{30000000}-x<3"  # against an interval: more memory than a worker may have
SIZE = 6


def boxed(answer: str) -> str:
    return rf"</think>\boxed{{{answer}}}"


@pytest.fixture
def pool():
    with VerifierPool(num_workers=2, timeout=1.5, memory_mb=400) as pool:
        assert pool.verify(["1"], [boxed("1")]) == [True]
        yield pool


def workers() -> list[psutil.Process]:
    """Of the pool: its processes and not multiprocessing's resource tracker."""
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def judge_batch(pool: VerifierPool, tag: int, bomb: str | None = None, position: int = -1) -> list[bool]:
    """Verdicts on answers that are right in even places; `tag` keeps them out of the cache."""
    golds = [str(1000 * tag + i) for i in range(SIZE)]
    answers = [str(int(gold) + i % 2) for i, gold in enumerate(golds)]
    if bomb is not None:
        golds[position], answers[position] = ("[1,2)", bomb) if bomb == GREEDY else (f"{tag}", bomb)
    return pool.verify(golds, [boxed(answer) for answer in answers])


@pytest.mark.parametrize("bomb, kind", [(SLOW, "timeouts"), (GREEDY, "crashes")], ids=["time", "memory"])
def test_a_bomb_in_every_position(pool, bomb, kind, caplog):
    positions = range(SIZE) if bomb == SLOW else range(1)  # one gold, so that the others come from the cache
    for position in positions:
        start = time.monotonic()
        verdicts = judge_batch(pool, position + 1, bomb, position)
        assert verdicts == [i % 2 == 0 and i != position for i in range(SIZE)], position
        assert time.monotonic() - start < 10
    assert pool.stats[kind] == len(positions) and sum(pool.stats[k] for k in ("timeouts", "crashes")) == len(positions)
    assert caplog.text.count(f"Verifier {kind}") == len(positions)


@pytest.mark.parametrize("number, kind", [(signal.SIGKILL, "crashes"), (signal.SIGSTOP, "timeouts")])
def test_a_worker_that_is_killed_or_hangs_at_work(pool, number, kind, caplog):
    verdict = pool.submit("7", SLOW)
    (busy,) = wait_for(lambda: [p for p in workers() if p.cpu_percent(0.1) > 30][:1] or None, 10)
    os.kill(busy.pid, number)
    assert verdict.result(10) is False
    assert pool.stats[kind] == 1 and f"Verifier {kind}" in caplog.text
    assert judge_batch(pool, 50) == [i % 2 == 0 for i in range(SIZE)]
    wait_for(lambda: not busy.is_running() or busy.status() == psutil.STATUS_ZOMBIE, 10)


def test_workers_killed_while_idle_and_in_the_middle_of_batches(pool):
    """Whatever a worker was doing, verdicts come, and all but those of killed workers are right."""
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.7):
            if alive := workers():
                os.kill(alive[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    wrong = 0
    try:
        for tag in range(60, 90):
            verdicts = judge_batch(pool, tag)
            wrong += sum(verdict != (i % 2 == 0) for i, verdict in enumerate(verdicts))
            assert not any(verdicts[1::2])  # nothing wrong ever counts as right
    finally:
        stop.set()
        killer.join()
    assert wrong <= pool.stats["crashes"]
    assert judge_batch(pool, 99) == [i % 2 == 0 for i in range(SIZE)]
