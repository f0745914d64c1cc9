"""Workers of the verifier killed, hung and out of memory; a bomb in every place of a batch."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection

import psutil
import pytest
from faults_support import wait_for

from generation.math_verify import VerifierPool, original
from generation.math_verify.pool import _serve

pytestmark = pytest.mark.faults

SLOW = r"\prod_{k=1}^{10^8}(x+k)"  # an hour
GREEDY = "30000000"  # more memory than a worker may have
BOMBS = {"timeouts": (SLOW, 1.5), "crashes": (GREEDY, 30.0)}  # answer, seconds that a pair may take
SIZE = 6
OTHERS: set[int] = set()


def serve_greedily(pipe: Connection, memory_mb: int) -> None:
    """A worker to which one answer costs a gigabyte."""
    compare = original.equivalent
    original.equivalent = lambda gold, answer: (
        len(bytes(1 << 30)) < 0 if answer == GREEDY else compare(gold, answer)
    )
    _serve(pipe, memory_mb)


def boxed(answer: str) -> str:
    return rf"</think>\boxed{{{answer}}}"


@pytest.fixture
def pool(request, monkeypatch):
    monkeypatch.setattr("generation.math_verify.pool._serve", serve_greedily)
    timeout = getattr(request, "param", 1.5)
    OTHERS.clear()
    OTHERS.update(
        p.pid for p in workers()
    )  # of the pool that `is_equivalent` keeps, where other tests used it
    with VerifierPool(num_workers=2, timeout=timeout, memory_mb=512) as pool:
        assert pool.verify(["1"], [boxed("1")]) == [True]
        yield pool


def workers() -> list[psutil.Process]:
    """Living ones of the pool: its processes and not multiprocessing's resource tracker."""
    children = [p for p in psutil.Process().children() if p.pid not in OTHERS]
    # a dead child that nobody waited for has no command line
    alive = [p for p in children if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in alive if "spawn_main" in " ".join(p.cmdline())]


def judge_batch(
    pool: VerifierPool, tag: int, bomb: tuple[str, str] | None = None, position: int = -1
) -> list[bool]:
    """Verdicts on answers that are right in even places; `tag` keeps them out of the cache."""
    pairs = [(str(1000 * tag + i), str(1000 * tag + i + i % 2)) for i in range(SIZE)]
    if bomb is not None:
        pairs[position] = bomb
    return pool.verify([gold for gold, _ in pairs], [boxed(answer) for _, answer in pairs])


@pytest.mark.parametrize(
    "pool, kind",
    [
        pytest.param(BOMBS["timeouts"][1], "timeouts", id="time"),
        pytest.param(BOMBS["crashes"][1], "crashes", id="memory"),
    ],
    indirect=["pool"],
)
def test_a_bomb_in_every_position(pool, kind, caplog):
    answer, _ = BOMBS[kind]
    for position in range(SIZE):
        verdicts = judge_batch(pool, position + 1, (str(position), answer), position)
        assert verdicts == [i % 2 == 0 and i != position for i in range(SIZE)], position
    assert pool.stats == {"pairs": 1 + SIZE**2, "cache_hits": 0, "timeouts": 0, "crashes": 0} | {
        kind: SIZE
    }
    assert caplog.text.count(f"Verifier {kind}") == SIZE


@pytest.mark.parametrize(
    "pool", [6.0], indirect=True
)  # time enough to find the worker, on a busy machine too
@pytest.mark.parametrize(
    "number, kind", [(signal.SIGKILL, "crashes"), (signal.SIGSTOP, "timeouts")]
)
def test_a_worker_that_is_killed_or_hangs_at_work(pool, number, kind, caplog):
    # Both workers have started, which keeps them busy too, and those of the test before are gone.
    wait_for(lambda: [p.cpu_percent(0.2) < 5 for p in workers()] == [True, True], 30)
    verdict = pool.submit("7", SLOW)
    (busy,) = wait_for(lambda: [p for p in workers() if p.cpu_percent(0.1) > 10][:1] or None, 10)
    os.kill(busy.pid, number)
    assert verdict.result(20) is False
    assert pool.stats[kind] == 1 and f"Verifier {kind}" in caplog.text
    assert judge_batch(pool, 50) == [i % 2 == 0 for i in range(SIZE)]
    wait_for(lambda: not busy.is_running() or busy.status() == psutil.STATUS_ZOMBIE, 10)


def test_workers_killed_while_idle_and_in_the_middle_of_batches(pool):
    """Whatever a worker was doing, verdicts come, and all but those of killed workers are right."""
    stop, kills = threading.Event(), []

    def kill() -> None:
        while not stop.wait(random.uniform(1, 2)):
            with suppress(psutil.NoSuchProcess, IndexError):  # one may have just been replaced
                worker = random.choice(workers())
                worker.kill()
                kills.append(worker.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    wrong, tags = 0, count(60)
    try:
        while len(kills) < 6:
            time.sleep(random.uniform(0, 0.1))  # now and then a worker is idle
            verdicts = judge_batch(pool, next(tags))
            wrong += sum(verdict != (i % 2 == 0) for i, verdict in enumerate(verdicts))
            assert not any(verdicts[1::2])  # nothing wrong ever counts as right
    finally:
        stop.set()
        killer.join()
    assert wrong <= pool.stats["crashes"]
    assert judge_batch(pool, next(tags)) == [i % 2 == 0 for i in range(SIZE)]
