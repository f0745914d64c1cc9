"""Functions of users that say which responses are right, in worker processes with a time limit."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import resource
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, NamedTuple

from generation.math_verify.pool import KILL_MARGIN, Worker, start_process
from generation.verifiers.names import check_name, load_function, recorded_name
from rea_core.row_files import Row

if TYPE_CHECKING:
    from generation.math_verify.extract import Thinking

logger = logging.getLogger(__name__)

MAX_BATCH = 16  # responses of a call
UNORDERED = (Mapping, Set)  # their places are not those of the responses
MEMORY_MB = 8192  # of a worker, which may hold a library with large tables


class Asked(NamedTuple):
    """A response, what its prompt did to the thinking, and the markers of that, if not R1's."""

    text: str
    thinking: Thinking = "unknown"
    markers: Mapping[str, str] | None = None

    @property
    def as_response(self) -> Row:
        """The same, as files hold it."""
        return {"text": self.text, "prompt_thinking": self.thinking, "markers": self.markers}


class VerifierError(Exception):
    """The function raised, or returned something else than verdicts."""


def facts_of(row: Mapping[str, Any]) -> str:
    """Columns of a problem as JSON, for its verifier; responses are none of them."""
    return json.dumps({k: v for k, v in row.items() if k != "responses"}, default=str)


def serve_function(pipe: Connection, name: str, memory_mb: int) -> None:
    """Judge batches that come through the pipe until it ends; leads a process group of its own.

    A reply is a list of verdicts, or a text with the error of the function.
    """
    os.setsid()
    leader = os.getpid()
    os.dup2(2, 1)  # what the function prints must not get into a command's output
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20,) * 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    function, fault = None, ""
    try:
        function = load_function(name)
    except BaseException as error:  # a module is run here, and raises what it likes
        fault = f"it cannot be loaded: {type(error).__name__}: {_text_of(error)}"
    _end_unless(leader)
    with suppress(EOFError, ConnectionError):
        while True:
            texts, rows, extra = pipe.recv()
            pipe.send(None)
            reply = fault or _call(function, texts, [{**json.loads(r), **extra} for r in rows])
            _end_unless(leader)
            pipe.send(reply)


def _end_unless(leader: int) -> None:
    """End a child that the function has forked, when it returns: it must not answer too."""
    if os.getpid() != leader:
        os._exit(0)


def _end_with(parent: int) -> None:
    """End this process and its children once its parent is gone, even if a function hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def _call(function: Any, asked: Sequence[Asked], rows: list[Row]) -> list[bool] | str:
    """Verdicts of a function, or a text with its error."""
    for row, (_, thinking, markers) in zip(rows, asked, strict=True):
        row["prompt_thinking"] = thinking
        if markers:
            row["markers"] = markers
    try:
        given = function([each.text for each in asked], rows)
        if isinstance(given, UNORDERED):
            return (
                f"it gave a {type(given).__name__}; give a list, with a verdict for each response"
            )
        verdicts = list(given)
        wrong = [v for v in verdicts if v not in (True, False)]
    except BaseException as error:  # KeyboardInterrupt too: here it can only be the function's own
        return f"{type(error).__name__}: {_text_of(error)}"
    if len(verdicts) != len(asked):
        return f"it gave {len(verdicts)} verdicts for {len(asked)} responses; give one for each"
    if wrong:
        return f"it gave {repr(wrong[0])[:60]}; each verdict must be True or False"
    return [bool(verdict) for verdict in verdicts]


def _text_of(error: BaseException) -> str:
    """Message of an error; a class of the user's may fail to give one."""
    try:
        return str(error)
    except Exception as fault:
        return f"its message cannot be shown: {type(fault).__name__}"


class FunctionPool:
    """Processes that call a verifier's function on batches of whatever responses are waiting.

    A call has `timeout` seconds for each of its responses. If it takes longer, raises, or its
    worker dies, its responses are judged again one by one. One that fails alone is wrong, is
    counted in `stats`, and its text is logged.

    Args:
        name: of a verifier other than `math`.
        num_workers: Processes.
        timeout: Seconds for one response.
        memory_mb: Limit of one process in MiB.
        markers: Phrases that introduce an answer, which rows get as `answer_markers`.

    Attributes:
        stats: `pairs` of response and row that were judged, and of them `timeouts`, `crashes`
            (memory, any other death) and `errors` (the function raised, or gave no verdict).

    Raises:
        ValueError: The name is no verifier's, or a setting is out of range.
    """

    def __init__(
        self,
        name: str,
        num_workers: int = 2,
        timeout: float = 5.0,
        memory_mb: int = MEMORY_MB,
        markers: Sequence[str] = (),
    ) -> None:
        check_name(name)
        if num_workers < 1 or timeout <= 0:
            raise ValueError(
                f"num_workers={num_workers}, timeout={timeout}: give at least 1 worker and more "
                "than 0 seconds."
            )
        self.name, self.timeout = name, timeout
        self.stats = {"pairs": 0, "timeouts": 0, "crashes": 0, "errors": 0}
        self._extra = {"answer_markers": [*markers], "verifier_timeout": timeout}
        self._waiting: deque[tuple[str, Asked, Future[bool]]] = deque()
        self._lock, self._closed = threading.Lock(), False
        self._workers = [
            Worker(lambda end: start_process(serve_function, end, name, memory_mb), True)
            for _ in range(num_workers)
        ]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(num_workers)
        for worker in self._workers:
            self._idle.put(worker)
        self._at_exit = Finalize(None, self.close, exitpriority=1)

    def __enter__(self) -> FunctionPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, facts: str, response: Asked) -> Future[bool]:
        """Future verdict on a response to the problem with these facts, see `facts_of`. Raises
        RuntimeError on a pool that is closed."""
        if self._closed:
            raise RuntimeError("Verifier pool is not active: it was closed.")
        verdict: Future[bool] = Future()
        with self._lock:
            self.stats["pairs"] += 1
            self._waiting.append((facts, response, verdict))
        self._threads.submit(self._work)
        return verdict

    async def averify(
        self,
        facts: str,
        text: str,
        thinking: Thinking = "unknown",
        markers: Mapping[str, str] | None = None,
    ) -> bool:
        """Judge one response without blocking the event loop."""
        return await asyncio.wrap_future(self.submit(facts, Asked(text, thinking, markers)))

    def try_out(self, facts: str) -> None:
        """Let the function judge two empty responses. Raises ValueError if it cannot."""
        worker = self._idle.get()
        try:
            self._ask(worker, [(facts, Asked(""))] * 2)
        except VerifierError as error:
            raise ValueError(f"verifier {self.name}: {error}") from None
        except (EOFError, OSError, RuntimeError) as error:
            raise ValueError(
                f"verifier {self.name} failed on empty responses: {error!r}; standard error says "
                "more"
            ) from None
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Stop the workers; responses that are still open count as wrong."""
        self._closed = True
        self._at_exit.cancel()
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()

    def _work(self) -> None:
        """Judge a share of what is waiting, which others may have taken already."""
        worker = self._idle.get()
        try:
            with self._lock:
                share = -(-len(self._waiting) // len(self._workers))
                batch = [self._waiting.popleft() for _ in range(min(share, MAX_BATCH))]
            if batch:
                self._settle(worker, batch)
        finally:
            self._idle.put(worker)

    def _settle(self, worker: Worker, batch: list[tuple[str, Asked, Future[bool]]]) -> None:
        try:
            verdicts = self._ask(worker, [(facts, asked) for facts, asked, _ in batch])
        except (VerifierError, EOFError, OSError, RuntimeError) as error:
            if len(batch) == 1 or self._closed:
                for facts, asked, verdict in batch:
                    self._give_up(facts, asked, verdict, error)
                return
            for each in batch:
                self._settle(worker, [each])
            return
        for (*_, verdict), is_right in zip(batch, verdicts, strict=True):
            verdict.set_result(is_right)

    def _ask(self, worker: Worker, batch: list[tuple[str, Asked]]) -> list[bool]:
        facts, asked = map(list, zip(*batch, strict=True))
        limit = self.timeout * len(batch)
        reply = worker.judge((asked, facts, self._extra), max(limit - KILL_MARGIN, limit / 2))
        if isinstance(reply, str):
            raise VerifierError(reply)
        return reply

    def _give_up(self, facts: str, asked: Asked, verdict: Future[bool], error: Exception) -> None:
        """Count and log a response that could not be judged; without any worker that is the
        caller's error."""
        if isinstance(error, RuntimeError) and not self._closed:
            verdict.set_exception(error)
            return
        verdict.set_result(False)
        if self._closed:
            return
        kind = "timeouts" if isinstance(error, TimeoutError) else "crashes"
        kind = "errors" if isinstance(error, VerifierError) else kind
        with self._lock:
            self.stats[kind] += 1
        logger.warning(
            "Verifier %s, %s (%s): problem %.200s, response %.500r",
            *(recorded_name(self.name), kind, str(error) or repr(error), facts, asked.text),
        )
