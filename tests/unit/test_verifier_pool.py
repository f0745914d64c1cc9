"""The pool keeps order, counts, limits, and cleans up; `is_equivalent` enforces its bounds from any
caller.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from generation.math_verify import VerifierPool, is_equivalent, original
from generation.math_verify.pool import _serve

PAIRS = Path(__file__).parents[1] / "data" / "verifier" / "pairs.json"
SLOW = r"\prod_{k=1}^{10^8}(x+k)"  # an hour


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(num_workers=2, timeout=2.0) as pool:
        assert pool.verify(["1"], [r"\boxed{1}"]) == [True]
        yield pool


def boxed(*answers: str) -> list[str]:
    return [rf"Thinking.</think>It is \boxed{{{answer}}}." for answer in answers]


def test_order_answers_and_counts(pool: VerifierPool) -> None:
    before = dict(pool.stats)
    texts = [*boxed("0.5", "3", r"\frac12"), "no answer", r"cut off \boxed{0.5"]
    assert pool.verify([r"\frac{1}{2}"] * 5, texts) == [True, False, True, False, False]
    assert pool.verify([r"\frac{1}{2}"], boxed("0.5")) == [True]
    assert pool.stats["pairs"] - before["pairs"] == 6
    assert pool.stats["cache_hits"] - before["cache_hits"] == 2  # one more answer was None
    assert pool.verify([["7", "8"]], boxed("8")) == [True]
    with pytest.raises(ValueError, match="zip"):
        pool.verify(["1"], boxed("1", "2"))


def test_the_pool_knows_what_the_prompt_did(pool: VerifierPool) -> None:
    texts = [r"So \boxed{12}. Wait", r"So \boxed{12}.</think>\boxed{12}"]
    assert pool.verify(["12"] * 2, texts) == [True, True]
    assert pool.verify(["12"] * 2, texts, thinking="open") == [False, True]
    assert asyncio.run(pool.averify("12", texts[0], thinking="open")) is False
    assert asyncio.run(pool.averify("12", texts[0], thinking="closed")) is True
    with pytest.raises(ValueError, match="thinking"):
        pool.verify(["12"], texts[:1], thinking="maybe")


def test_a_long_text_does_not_hold_up_the_event_loop(pool: VerifierPool) -> None:
    async def longest_pause() -> float:
        judged = asyncio.gather(
            *(pool.averify("1", r"So it is \boxed{12. " * 50_000) for _ in range(4))
        )
        longest = 0.0
        while not judged.done():
            start = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - start)
        assert await judged == [False] * 4
        return longest

    assert asyncio.run(longest_pause()) < 2


def test_async_batch_with_a_bomb(pool: VerifierPool, caplog: pytest.LogCaptureFixture) -> None:
    timeouts = pool.stats["timeouts"]

    async def batch() -> list[bool]:
        golds = [str(i) for i in range(128)]
        answers = [SLOW if i == 5 else str(i + i % 2) for i in range(128)]
        return await asyncio.gather(
            *(pool.averify(g, t) for g, t in zip(golds, boxed(*answers), strict=True))
        )

    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        verdicts = asyncio.run(batch())
    assert time.monotonic() - start < pool.timeout + 1.5
    assert verdicts == [i % 2 == 0 for i in range(128)]
    assert pool.stats["timeouts"] == timeouts + 1
    assert r"\\prod" in caplog.text
    assert pool.verify(["4"], boxed("4.0")) == [True]


def test_warm_batch_of_128(pool: VerifierPool) -> None:
    golds = [
        gold
        for i in range(16)
        for gold in 8 * [rf"\frac{{{i + 1}}}{{{2 * i + 3}}}" if i % 4 == 0 else str(37 * i)]
    ]
    answers = [gold if i % 3 else f"-{gold}" for i, gold in enumerate(golds)]
    pool.verify(["1", "2"], boxed("1.00", "2.00"))  # both workers are up again
    start = time.monotonic()
    verdicts = pool.verify(golds, boxed(*answers))
    assert time.monotonic() - start < 1.0
    assert verdicts == [answer == gold for gold, answer in zip(golds, answers, strict=True)]


def serve_greedily(pipe: Connection, memory_mb: int) -> None:
    """A worker to which one answer costs a gigabyte."""
    original.equivalent = lambda gold, answer: gold == answer or len(bytes(1 << 30)) < len(answer)
    _serve(pipe, memory_mb)


def test_memory_limit(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("generation.math_verify.pool._serve", serve_greedily)
    with (
        VerifierPool(num_workers=1, timeout=60, memory_mb=512) as pool,
        caplog.at_level(logging.WARNING),
    ):
        assert pool.verify(["(2,3)", "1"], boxed("30000000", "1")) == [False, True]
        assert (pool.stats["crashes"], pool.stats["timeouts"]) == (1, 0)
    assert "30000000" in caplog.text


def test_close_leaves_no_process_and_no_open_verdict() -> None:
    before = set(psutil.Process().children())
    pool = VerifierPool(num_workers=2, timeout=60)
    assert pool.verify(["1"], boxed("1")) == [True]
    assert len(set(psutil.Process().children()) - before) >= 2
    open_verdicts = [pool.submit(gold, SLOW) for gold in "xyz"]
    pool.close()
    assert [verdict.result(timeout=1) for verdict in open_verdicts] == [False] * 3
    assert [
        child
        for child in set(psutil.Process().children()) - before
        if "spawn_main" in " ".join(child.cmdline())
    ] == []
    for gold in ("1", "1", "2"):  # the first one was judged before
        with pytest.raises(RuntimeError, match="not active"):
            pool.submit(gold, "1")
    pool.close()


def own_workers(others: set[psutil.Process]) -> list[psutil.Process]:
    return [child for child in set(psutil.Process().children()) - others if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # also of a zombie
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_that_die_idle_are_replaced_and_no_pair_suffers(number: signal.Signals) -> None:
    others = set(psutil.Process().children())
    with VerifierPool(num_workers=2, timeout=60) as pool:
        for turn in range(3):
            assert pool.submit(f"{turn}", f"{turn}.0").result(60) is True
            before = own_workers(others)
            assert len(before) == 2
            for worker in before:
                worker.send_signal(number)
            verdicts = [
                pool.submit(f"{i}", f"{turn}7") for i in [5, 6, f"{turn}7", f"{turn}7"]
            ]  # while they die
            assert [verdict.result(60) for verdict in verdicts] == [False, False, True, True]
            assert not set(own_workers(others)) & set(before)
        assert pool.stats["crashes"] == pool.stats["timeouts"] == 0


def test_a_worker_that_hangs_idle_is_replaced() -> None:
    others = set(psutil.Process().children())
    with VerifierPool(num_workers=1, timeout=1.0) as pool:
        assert pool.submit("1", "1").result(60) is True
        (hung,) = own_workers(others)
        hung.suspend()
        assert pool.submit("2", "2").result(60) is True
        assert hung not in own_workers(others)


def test_a_pool_without_workers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "generation.math_verify.pool._serve", os.getpid
    )  # takes no argument: it ends at once
    with VerifierPool(num_workers=1) as pool:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="No verifier worker came up in 5 tries"):
                pool.submit("1", "1").result(60)


def test_nobody_can_cancel_a_verdict_that_others_wait_for() -> None:
    async def one_of_two(pool: VerifierPool) -> bool:
        tasks = [asyncio.create_task(pool.averify("3", r"\boxed{3}")) for _ in range(2)]
        await asyncio.sleep(0.2)
        tasks[0].cancel()
        return await tasks[1]

    with VerifierPool(num_workers=1) as pool:
        assert asyncio.run(one_of_two(pool)) is True


@pytest.mark.parametrize("gold", [None, 18, 1.5, True, {"answer": "18"}, b"18", [18], ["18", None]])
def test_a_gold_that_is_no_text_is_refused(pool: VerifierPool, gold: object) -> None:
    for judge in (is_equivalent, pool.submit):
        with pytest.raises(ValueError, match="gold=.* is neither a text nor a list of texts"):
            judge(gold, "18")


def test_an_answer_that_is_no_text_is_refused(pool: VerifierPool) -> None:
    with pytest.raises(ValueError, match="answer=18 is neither a text nor None"):
        pool.submit("18", 18)
    with pytest.raises(ValueError, match="text=None is no text"):
        pool.verify(["18"], [None])
    assert pool.submit("18", None).result() is False
    assert pool.submit("1" * 3000, "1" * 3000).result() is False


FROM_OTHER_PROCESSES = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from generation.math_verify import VerifierPool, is_equivalent

def judge(pair):
    return is_equivalent(*pair)

def refused(_):
    try:
        pool.submit("1", "1")
    except RuntimeError as error:
        return "parent of a fork" in str(error)

PAIRS = [("0.5", "1/2"), ("1", "2"), ("[2,3)", "2 <= x < 3"), ("3", "4")]
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    verdicts = []
    if sys.argv[1] == "fork":
        verdicts.append(is_equivalent("1", "1.0"))
        pool = VerifierPool(1)
        with context.Pool(1) as processes:
            print(processes.map(refused, [0]))
    with context.Pool(1) as processes:  # whose workers are daemonic
        verdicts += processes.map(judge, PAIRS)
    with ProcessPoolExecutor(1, mp_context=context) as processes:
        verdicts += processes.map(judge, PAIRS[:2])
    print(verdicts)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_is_equivalent_from_other_processes(tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(FROM_OTHER_PROCESSES)
    before = set(psutil.process_iter())
    run = subprocess.run(
        [sys.executable, script, method], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    verdicts = [True] * (method == "fork") + [True, False, True, False, True, False]
    assert run.stdout.splitlines() == ["[True]"] * (method == "fork") + [str(verdicts)], run.stderr
    wait_until(
        lambda: (
            not [
                p
                for p in set(psutil.process_iter()) - before
                if is_worker(p) and in_folder(p, tmp_path)
            ]
        )
    )


def in_folder(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


@pytest.mark.parametrize(
    "settings", [{"mode": "lenient"}, {"num_workers": 0}, {"timeout": 0}, {"memory_mb": 10}]
)
def test_settings_are_checked(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        VerifierPool(**settings)


def test_is_equivalent_on_adversarial_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        row
        for row in json.loads(PAIRS.read_text(encoding="utf-8"))
        if row["category"] == "adversarial"
    ]
    for row in rows:
        start = time.monotonic()
        assert is_equivalent(row["gold"], row["pred"]) is row["label"], row["pred"][:80]
        assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []


def test_is_equivalent_has_modes_golds_and_a_limit() -> None:
    assert is_equivalent("18", "18.0") and not is_equivalent("18", "1800")
    assert is_equivalent("18", "1800", mode="original")
    assert is_equivalent(["1", "2"], "2")
    start = time.monotonic()
    assert not is_equivalent("2", SLOW, timeout=1.0)
    assert time.monotonic() - start < 1.5


def test_is_equivalent_from_a_script_without_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('started')\nfrom generation.math_verify import "
        "is_equivalent\nprint(is_equivalent('1', '1.0'))\n"
    )
    run = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": "src"},
    )
    assert run.stdout.split() == ["started", "True"], run.stderr


def test_import_is_cheap() -> None:
    code = (
        "import sys, generation.math_verify; print(sorted({'sympy', 'math_verify', 'torch'} & "
        "set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": "src"},
    )
    assert run.stdout.strip() == "[]", run.stderr


def test_a_parent_with_much_memory_does_not_count_against_its_workers() -> None:
    program = """
ballast = b"x" * (400 << 20)
from generation.math_verify import VerifierPool
with VerifierPool(num_workers=1, timeout=60, memory_mb=256) as pool:
    print(pool.verify(["1"], [r"\\\\boxed{1}"]), pool.stats["crashes"])
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert finished.stdout.split("\n")[0] == "[True] 0", finished.stderr


def serve_or_die(pipe: Connection, memory_mb: int) -> None:
    """A worker that looks into a file for what to do with its next pair."""

    def judge(gold: str, answer: str) -> bool:
        script = Path(os.environ["VERIFIER_TEST_SCRIPT"])
        step, *rest = script.read_text(encoding="utf-8").split()
        script.write_text(" ".join(rest), encoding="utf-8")
        return gold == answer if step == "judge" else os.kill(os.getpid(), signal.SIGKILL)

    original.equivalent = judge
    _serve(pipe, memory_mb)


def test_one_failure_is_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may die for what the machine does; a pair that fails twice is not judged again."""
    script = tmp_path / "steps.txt"
    script.write_text("die judge die die judge", encoding="utf-8")
    monkeypatch.setenv("VERIFIER_TEST_SCRIPT", str(script))
    monkeypatch.setattr("generation.math_verify.pool._serve", serve_or_die)
    with VerifierPool(1) as pool:
        assert [pool.submit("7", "7").result(60) for _ in range(3)] == [False, True, True]
        assert [pool.submit("8", "8").result(60) for _ in range(3)] == [False, False, False]
        assert pool.stats == {"pairs": 6, "cache_hits": 2, "timeouts": 0, "crashes": 3}
    assert script.read_text(encoding="utf-8") == "judge"
