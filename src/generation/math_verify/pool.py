"""Verification in worker processes that are killed when a pair exceeds its time or memory."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from typing import Any, Literal

from generation.math_verify.extract import MAX_LENGTH, Thinking, extract_answer
from rea_core.interruption import out_of_reach

logger = logging.getLogger(__name__)

Mode = Literal["strict", "original"]
MODES = ("strict", "original")
MAX_CACHED = 1 << 16  # pairs; answers are short, so at most a few ten MB
MIN_MEMORY_MB = 256  # what a worker needs to load the comparison
KILL_MARGIN = 0.2  # seconds that the end of a worker with much memory may take
START_LIMIT = 60.0  # seconds in which a worker has to be up
MAX_STARTS = 5  # tries in a row before a pair's worker counts as broken
_LOCK = threading.RLock()  # on the main module and the default pools


@contextmanager
def _plain_parent() -> Iterator[None]:
    """Let this process start a child that does not import its main module, whatever this process
    is.

    A worker needs nothing of the main module, it may hold torch (which is over the memory limit),
    and a script without a `__main__` guard would start itself again in every worker. The workers of
    `multiprocessing.Pool` are daemonic, which may have no children lest these outlive them; ours
    end when their pipe does.
    """
    main, config = sys.modules["__main__"].__dict__, multiprocessing.current_process()._config
    saved = [
        (space, name, space.pop(name, None))
        for space, name in ((main, "__file__"), (main, "__spec__"), (config, "daemon"))
    ]
    main["__spec__"] = None
    try:
        yield
    finally:
        for space, name, value in saved:
            space[name] = value


def _serve(pipe: Connection, memory_mb: int) -> None:
    """Judge what comes through the pipe until it ends, within a limit on the address space.

    A message without a verdict says that the worker begins with a pair. SIGTERM ends it even inside
    C code, and so does a pair that takes too much memory.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20,) * 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from generation.math_verify.original import equivalent, equivalent_original

    with suppress(EOFError, ConnectionError, MemoryError):
        while True:
            golds, answer, _, mode = pipe.recv()
            pipe.send(None)
            compare = equivalent if mode == "strict" else equivalent_original
            pipe.send(any(compare(gold, answer) for gold in golds))


class Worker:
    """A process with a pipe of its own, so that its death touches no other.

    Whenever it died, a new one is started.

    Args:
        start: begins a process that serves the given end of a pipe; it answers each message
            first with None, and then with the verdict.
        leads_group: the process leads a group, which is killed with it.
    """

    def __init__(
        self, start: Callable[[Connection], SpawnProcess], leads_group: bool = False
    ) -> None:
        self._begin, self._leads_group = start, leads_group
        self._lock, self._closed = threading.Lock(), False
        self._process: SpawnProcess | None = None
        self._start()

    def judge(self, pair: tuple, limit: float) -> Any:
        """Verdict on a pair, or on another message. Raises TimeoutError after `limit` seconds,
        EOFError or OSError if the worker dies of it.

        Raises RuntimeError if no worker begins with it.
        """
        for _ in range(MAX_STARTS):
            begun = False
            try:
                self._pipe.send(pair)
                begun = self._up = self._receive(limit if self._up else START_LIMIT) is None
                return self._receive(limit)
            except (EOFError, OSError) as error:
                self._start()
                if begun:
                    raise
                logger.warning("A verifier worker died or hung while it was idle: %r", error)
        raise RuntimeError(
            f"No verifier worker came up in {MAX_STARTS} tries; standard error says why."
        )

    def _start(self) -> None:
        with self._lock, _LOCK, _plain_parent():
            if self._process is not None:
                self._kill()
                self._pipe.close()
            if self._closed:
                raise RuntimeError("closed")
            self._pipe, end = multiprocessing.Pipe()
            with out_of_reach():
                self._process = self._begin(end)
            end.close()
            self._up = False

    def _kill(self) -> None:
        assert self._process is not None
        if self._leads_group:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()

    def _receive(self, limit: float) -> Any:
        if self._pipe.poll(limit):
            return self._pipe.recv()
        raise TimeoutError(f"{limit:.1f} s")

    def close(self) -> None:
        """End the process, from another thread than the one that uses it, for good."""
        with self._lock:
            self._closed = True
            self._kill()


def start_process(target: Callable[..., None], *args: Any) -> SpawnProcess:
    """A started process, which ends with this one; called by a worker, which lets it be of any
    parent."""
    process = SpawnProcess(target=target, args=args, daemon=True)
    process.start()
    return process


class VerifierPool:
    """Processes that compare answers and outlive batches.

    Each pair has `timeout` seconds and its worker `memory_mb` of address space. A worker that
    exceeds either is killed from outside and replaced; its pair counts as not equal, is counted in
    `stats`, and its text is logged. A worker that dies idle is replaced too, and no pair suffers.
    Verdicts are cached by gold and answer; a failed one when the pair has failed twice.

    Args:
        num_workers: Processes.
        timeout: Seconds for one pair.
        memory_mb: Limit of one process in MiB.
        mode: `"strict"`, or `"original"` for the leniencies of the published numbers.
        markers: Phrases that introduce an answer where there is no box, see `extract_answer`.

    Attributes:
        stats: `pairs` judged, and of them `cache_hits`, `timeouts` and `crashes` (memory, any other
            death or error).

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
        self.timeout, self.memory_mb, self.mode, self.markers = (
            timeout,
            memory_mb,
            mode,
            tuple(markers),
        )
        self.stats = {"pairs": 0, "cache_hits": 0, "timeouts": 0, "crashes": 0}
        self._verdicts: dict[tuple, Future[bool]] = {}
        self._failed: set[tuple] = set()  # pairs that failed once
        self._lock = threading.Lock()
        self._owner: int | None = os.getpid()  # None once it is closed
        self._workers = [
            Worker(lambda end: start_process(_serve, end, memory_mb)) for _ in range(num_workers)
        ]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(num_workers)
        for worker in self._workers:
            self._idle.put(worker)
        self._at_exit = Finalize(None, self.close, exitpriority=1)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(
        self, golds: Sequence[str | list[str]], texts: Sequence[str], thinking: Thinking = "unknown"
    ) -> list[bool]:
        """Judge whole completions against their golds, in order; a completion without an answer is
        not equal.

        `thinking` says what their prompt did, see `extract_answer`.
        """
        futures = [
            self.submit(gold, extract_answer(text, self.markers, thinking))
            for gold, text in zip(golds, texts, strict=True)
        ]
        return [future.result() for future in futures]

    async def averify(
        self, gold: str | list[str], text: str, thinking: Thinking = "unknown"
    ) -> bool:
        """Judge one whole completion, extraction included, without blocking the event loop."""
        answer = await asyncio.to_thread(extract_answer, text, self.markers, thinking)
        future = self.submit(gold, answer)
        # Others may wait for the same verdict.
        return await asyncio.shield(asyncio.wrap_future(future))

    def submit(
        self, gold: str | list[str], answer: str | None, timeout: float | None = None
    ) -> Future[bool]:
        """Future verdict on an extracted answer; several golds mean that any of them is right.

        Raises ValueError where gold or answer is no text, RuntimeError on a pool that is closed.
        """
        golds = (gold,) if isinstance(gold, str) else gold
        if not isinstance(golds, list | tuple) or not all(isinstance(text, str) for text in golds):
            raise ValueError(f"gold={gold!r} is neither a text nor a list of texts.")
        if not isinstance(answer, str | None):
            raise ValueError(f"answer={answer!r} is neither a text nor None.")
        key = (tuple(golds), answer, self.timeout if timeout is None else timeout, self.mode)
        if self._owner != os.getpid():  # before the lock, which nobody would release after a fork
            raise RuntimeError(
                "Verifier pool is not active: it was closed, or belongs to the parent of a fork."
            )
        with self._lock:
            self.stats["pairs"] += 1
            if key in self._verdicts:
                self.stats["cache_hits"] += 1
                return self._verdicts[key]
            if len(self._verdicts) >= MAX_CACHED:
                self._verdicts.pop(next(iter(self._verdicts)))
            verdict = self._verdicts[key] = self._threads.submit(self._judge, key)
        return verdict

    def close(self) -> None:
        """Stop the workers; pairs that are still open count as not equal."""
        with self._lock:
            self._owner = None
        self._at_exit.cancel()
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()

    def _judge(self, key: tuple) -> bool:
        """Verdict of an idle worker, or the count of a failure; without any worker that is the
        caller's error.
        """
        golds, answer, timeout, _ = key
        if answer is None or len(answer) > MAX_LENGTH:
            return False
        worker = self._idle.get()
        try:
            return worker.judge(key, max(timeout - KILL_MARGIN, timeout / 2))
        except (EOFError, OSError, RuntimeError) as error:
            if self._owner is None:
                return False
            kind = "timeouts" if isinstance(error, TimeoutError) else "crashes"
            with self._lock:
                self.stats[kind] += 1
                if (
                    key not in self._failed
                ):  # it may have been the machine; a second failure is kept
                    self._failed.add(key)
                    self._verdicts.pop(key, None)
            logger.warning(
                "Verifier %s (%r): gold %.200r, answer %.500r", kind, error, golds, answer
            )
            if isinstance(error, RuntimeError):
                raise
            return False
        finally:
            self._idle.put(worker)


@cache
def _default_pool(mode: Mode, process: int) -> VerifierPool:
    """The pool of a process: a forked one has its parent's pipes but not its threads."""
    return VerifierPool(num_workers=2, mode=mode)  # one works while a killed one is replaced


def is_equivalent(
    gold: str | list[str], prediction: str, timeout: float = 5.0, mode: Mode = "strict"
) -> bool:
    r"""Whether a prediction has the same value as the gold, or as any of several golds.

    Form is not policed: an unsimplified value, a percentage for its hundredth, an omitted unit, a
    reordered solution set are the same. A rounded value of an exact gold, another unit, bracket or
    base, a missing or extra root are not. An empty gold or an unclosed box equals nothing.
    Decided in a worker process of this module, within `timeout` seconds and 1 GiB; callable from
    anywhere.

    Args:
        gold: Gold answer or answers, LaTeX or plain.
        prediction: An extracted answer; if it holds a `\boxed{}`, the content of the last complete
            one counts.
        timeout: Seconds after which the pair counts as not equal.
        mode: `"strict"`, or `"original"` for the leniencies of the published numbers.

    Example:
        >>> is_equivalent("[2,3)", "2 \\le x < 3"), is_equivalent("[2,3)", "(2,3]")
        (True, False)
    """
    with _LOCK:
        pool = _default_pool(mode, os.getpid())
    return pool.submit(gold, prediction, timeout).result()


os.register_at_fork(
    before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
)
