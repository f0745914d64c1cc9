"""Work on the rows of a file by many processes, with the results in order and few of them in
memory at once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from typing import Any, TypeVar

from tqdm import tqdm

from rea_core.interruption import out_of_reach
from rea_core.row_files import AnyRows, Rows

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

BATCH_BYTES = 1 << 18  # of rows that a process works on at once
ROWS_IN_MEMORY = 64  # the same, if they are in memory
BYTES_PER_PROCESS = 1 << 22  # starting a process takes as long as the work on so many bytes
# imported once for all processes
PRELOADED = ["generation.counting", "generation.path_cutting", "generation.generate"]
_state: Any = None  # of a process of a pool


class Shared:
    """A value for all processes, such as a tokenizer: it is pickled once, which is faster than
    loading it in each."""

    def __init__(self, value: Any, data: bytes | None = None):
        self.value, self._data = value, data

    def __call__(self) -> Any:
        return self.value

    def __reduce__(self) -> tuple[Any, ...]:
        self._data = self._data or pickle.dumps(self.value)
        return _unpickle, (self._data,)


def _unpickle(data: bytes) -> Shared:
    return Shared(pickle.loads(data), data)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_rows(
    work: Callable[[Any, Rows], list[Result]],
    rows: AnyRows,
    setup: Callable[[], Any],
    num_workers: int | None = None,
    progress: str | None = None,
) -> Iterator[Result]:
    """Results of all rows in order.

    Args:
        work: makes a result a row from what `setup` returned and some rows; a function of a module
            that is imported.
        rows: of a file, or few in memory.
        setup: called once in each process; it can be sent there. Small files are done in this
            process.
        num_workers: processes; default: one a core.
        progress: what to call a progress bar; None for no bar.
    """
    if isinstance(rows, Rows):
        batches = rows.batches(BATCH_BYTES)
    else:
        batches = (rows[i : i + ROWS_IN_MEMORY] for i in range(0, len(rows), ROWS_IN_MEMORY))
    with tqdm(
        total=len(rows), desc=progress, unit="row", mininterval=1.0, disable=progress is None
    ) as bar:
        for results in ordered_map(work, batches, setup, processes_for(rows, num_workers)):
            bar.update(len(results))
            yield from results


def processes_for(rows: AnyRows, num_workers: int | None) -> int:
    """Processes that pay for work on these rows, at most `num_workers`; 1 means this process."""
    if not isinstance(rows, Rows):
        return 1
    return max(1, min(num_workers or num_cores(), rows.num_bytes // BYTES_PER_PROCESS))


def ordered_map(
    work: Callable[[Any, Any], Result],
    items: Iterable[Any],
    setup: Callable[[], Any],
    num_processes: int,
) -> Iterator[Result]:
    """`work(setup(), item)` of every item, in order; items are taken as they are needed.

    Raises what `work` raises, and ValueError if a process was ended from outside.
    """
    if num_processes == 1:
        state = setup()
        yield from (work(state, item) for item in items)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    try:
        with out_of_reach():
            ensure_running()
        pool = ProcessPoolExecutor(num_processes, context, _begin, (setup,))
    except OSError as error:  # semaphores are files of /dev/shm
        raise ValueError(
            f"num_workers is {num_processes}, but processes cannot share semaphores in /dev/shm "
            f"({error.strerror}); make it writable, or give --num_workers 1"
        ) from error
    waiting: deque[Any] = deque()
    try:
        for item in items:
            with out_of_reach():  # a process that is half started would not be waited for
                waiting.append(pool.submit(_run, work, item))
            if len(waiting) >= 2 * num_processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        # the pool may have missed one that was just starting
        for process in multiprocessing.active_children():
            if isinstance(process, ForkServerProcess):
                process.kill()
        raise ValueError(
            f"one of {num_processes} processes was ended from outside, most likely for memory; "
            "give fewer with num_workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(setup: Callable[[], Any]) -> None:
    """First thing that a process of a pool does."""
    global _state
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process a core already
    _state = setup()


def _run(work: Callable[[Any, Any], Result], item: Any) -> Result:
    return work(_state, item)


def end_with_parent() -> None:
    """End this process when its parent does, however that ends: nobody would wait for it."""
    multiprocessing.parent_process().join()
    os._exit(1)
