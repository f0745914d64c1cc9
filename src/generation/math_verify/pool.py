"""Verification in worker processes that are killed when a pair exceeds its time or memory."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Literal

from pebble import ProcessPool

from generation.math_verify.extract import Thinking, extract_answer

logger = logging.getLogger(__name__)

Mode = Literal["strict", "original"]
MODES = ("strict", "original")
MAX_CACHED = 1 << 16  # pairs; answers are short, so at most a few ten MB
MAX_TASKS = 20_000  # pairs after which a worker is renewed: the parser's tables grow with every new text
MIN_MEMORY_MB = 256  # what a worker needs to load sympy
MEMORY_SHARE = 0.75  # resident share of the address space at which a worker counts as exhausted
KILL_MARGIN = 0.2  # seconds by which pebble, which looks ten times a second, may be late


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep a new process from importing the caller's main module, as `spawn` does.

    A worker needs nothing of it, it may hold torch (which is over the memory limit), and a script without a `__main__`
    guard would start itself again in every worker.
    """
    main = sys.modules["__main__"]
    saved = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(saved)


class _WorkerProcess(SpawnProcess):
    def start(self) -> None:
        with _START_LOCK, _hidden_main():
            super().start()


class _WorkerContext(SpawnContext):
    Process = _WorkerProcess


_START_LOCK = threading.Lock()


def _start_worker(memory_mb: int) -> None:
    """Limit the worker's address space, let SIGTERM end it even inside C code, and load the comparison."""
    size = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _comparison("original")


@cache
def _comparison(mode: Mode) -> Callable[[str, str], bool]:
    from generation.math_verify.compare import equivalent
    from generation.math_verify.original import equivalent_original

    return equivalent if mode == "strict" else equivalent_original


def _judge(golds: tuple[str, ...], prediction: str, mode: Mode, memory_mb: int) -> bool:
    """Compare in a worker, which ends at once if the pair took too much memory.

    At the limit allocations fail, libraries swallow that, and their state and verdict mean nothing any more.
    """
    try:
        verdict = any(_comparison(mode)(gold, prediction) for gold in golds)
        exhausted = _peak_memory_mb() > MEMORY_SHARE * memory_mb
    except MemoryError:
        exhausted = True
    if exhausted:
        os.kill(os.getpid(), signal.SIGKILL)
    return verdict


def _peak_memory_mb() -> float:
    """Most resident memory of this process so far. `getrusage` would count its parent's, which a spawned child inherits."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


class VerifierPool:
    """Processes that compare answers and outlive batches.

    Each pair has `timeout` seconds and its worker `memory_mb` of address space. A worker that exceeds either is
    killed from outside and replaced; its pair counts as not equal, is counted in `stats`, and its text is logged.
    Verdicts are cached by gold and answer; a failed one when the pair has failed twice.

    Args:
        num_workers: Processes.
        timeout: Seconds for one pair.
        memory_mb: Limit of one process in MiB.
        mode: `"strict"`, or `"original"` for the leniencies of the published numbers.
        markers: Phrases that introduce an answer where there is no box, see `extract_answer`.

    Attributes:
        stats: `pairs` judged, and of them `cache_hits`, `timeouts` and `crashes` (memory, any other death or error).

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        num_workers: int = 2,
        timeout: float = 5.0,
        memory_mb: int = 1024,
        mode: Mode = "strict",
        markers: Sequence[str] = (),
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is unknown; use one of {', '.join(MODES)}.")
        if num_workers < 1 or timeout <= 0 or memory_mb < MIN_MEMORY_MB:
            raise ValueError(
                f"num_workers={num_workers}, timeout={timeout}, memory_mb={memory_mb}: "
                f"give at least 1 worker, more than 0 seconds, at least {MIN_MEMORY_MB} MiB."
            )
        self.timeout, self.memory_mb, self.mode, self.markers = timeout, memory_mb, mode, tuple(markers)
        self.stats = {"pairs": 0, "cache_hits": 0, "timeouts": 0, "crashes": 0}
        self._verdicts: dict[tuple, Future[bool]] = {}
        self._failed: set[tuple] = set()  # pairs that failed once
        self._lock = threading.Lock()
        self._pool = ProcessPool(
            num_workers, MAX_TASKS, initializer=_start_worker, initargs=(memory_mb,), context=_WorkerContext()
        )
        self._pool.schedule(os.getpid)  # starts the workers now rather than at the first pair

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(
        self, golds: Sequence[str | list[str]], texts: Sequence[str], thinking: Thinking = "unknown"
    ) -> list[bool]:
        """Judge whole completions against their golds, in order; a completion without an answer is not equal.

        `thinking` says what their prompt did, see `extract_answer`.
        """
        futures = [
            self.submit(gold, extract_answer(text, self.markers, thinking))
            for gold, text in zip(golds, texts, strict=True)
        ]
        return [future.result() for future in futures]

    async def averify(self, gold: str | list[str], text: str, thinking: Thinking = "unknown") -> bool:
        """Judge one whole completion, extraction included, without blocking the event loop."""
        answer = await asyncio.to_thread(extract_answer, text, self.markers, thinking)
        future = self.submit(gold, answer)
        return await asyncio.shield(asyncio.wrap_future(future))  # others may wait for the same verdict

    def submit(self, gold: str | list[str], answer: str | None, timeout: float | None = None) -> Future[bool]:
        """Future verdict on an extracted answer; several golds mean that any of them is right."""
        golds = (gold,) if isinstance(gold, str) else tuple(gold)
        timeout = self.timeout if timeout is None else timeout
        key = (golds, answer, timeout)
        with self._lock:
            self.stats["pairs"] += 1
            if key in self._verdicts:
                self.stats["cache_hits"] += 1
                return self._verdicts[key]
            if len(self._verdicts) >= MAX_CACHED:
                self._verdicts.pop(next(iter(self._verdicts)))
            verdict = self._verdicts[key] = Future()
        if answer is None:
            verdict.set_result(False)
        else:
            limit = max(timeout - KILL_MARGIN, timeout / 2)
            task = self._pool.schedule(_judge, (golds, answer, self.mode, self.memory_mb), timeout=limit)
            task.add_done_callback(partial(self._settle, verdict, key))
        return verdict

    def close(self) -> None:
        """Stop the workers; pairs that are still open count as not equal."""
        self._pool.stop()
        self._pool.join()
        for verdict in self._verdicts.values():
            if not verdict.done():
                verdict.set_result(False)

    def _settle(self, verdict: Future[bool], key: tuple, task: Future[bool]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            golds, answer, _ = key
            kind = "timeouts" if isinstance(error, TimeoutError) else "crashes"
            with self._lock:
                self.stats[kind] += 1
                if key not in self._failed:  # it may have been the machine; a second failure is kept
                    self._failed.add(key)
                    self._verdicts.pop(key, None)
            logger.warning("Verifier %s (%r): gold %.200r, answer %.500r", kind, error, golds, answer)
        verdict.set_result(not task.cancelled() and error is None and task.result())


_default: dict[Mode, VerifierPool] = {}
_default_lock = threading.Lock()


def is_equivalent(gold: str | list[str], prediction: str, timeout: float = 5.0, mode: Mode = "strict") -> bool:
    r"""Whether a prediction has the same value as the gold, or as any of several golds.

    Form is not policed: an unsimplified value, a percentage for its hundredth, an omitted unit, a reordered solution
    set are the same. A rounded value of an exact gold, another unit, bracket or base, a missing or extra root are
    not, nor is anything beside an empty gold or an unclosed box. Decided in a worker process of this module, within
    `timeout` seconds and 1 GiB; callable from anywhere.

    Args:
        gold: Gold answer or answers, LaTeX or plain.
        prediction: An extracted answer; if it holds a `\boxed{}`, the content of the last complete one counts.
        timeout: Seconds after which the pair counts as not equal.
        mode: `"strict"`, or `"original"` for the leniencies of the published numbers.

    Example:
        >>> is_equivalent("[2,3)", "2 \\le x < 3"), is_equivalent("[2,3)", "(2,3]"), is_equivalent("18", "1800")
        (True, False, False)
    """
    with _default_lock:
        if mode not in _default:
            _default[mode] = VerifierPool(num_workers=2, mode=mode)  # one works while a killed one is replaced
    return _default[mode].submit(gold, prediction, timeout).result()


@atexit.register
def _close_default() -> None:
    for pool in _default.values():
        pool.close()


os.register_at_fork(after_in_child=_default.clear)  # a forked child has the pool's pipes but not its threads
