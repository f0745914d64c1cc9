"""Rollouts that overlap training: while the trainer works on batch t, the chain already makes batch
t + 1.

    step t:   publish policy t | start batch t + lag | wait for batch t
              | rewards, loss, update -> policy t + 1

Batches are numbered by the optimizer step that trains them. Which rows a batch has follows from its
number alone, so none is lost or taken twice: not at the end of an epoch, not by an evaluation, and
not by a resumed run, which draws again what was under way. The rows that were looked up ahead must
be those that the dataloader deals in the end.

Threads only wait for the chain. The ranks' common work (the weight sync) stays on the main
thread, in one order.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trl.trainer.utils import RepeatSampler

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import GRPOTrainer

    from rea_core.row_files import Row
    from rea_rl.rollout.engine import RolloutEngine
    from rea_rl.rollout.record import Batch, Metrics, Rollout


class EpochSampler(RepeatSampler):
    """TRL's sampler with an order of each epoch's own, which a resumed run continues."""

    def __init__(self, epoch: Callable[[], int], **kwargs: Any):
        super().__init__(**kwargs)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # TRL's generator continues from where it stands, so an epoch's order would depend on how
        # often it was asked. A resumed run, and the look ahead, must get the same order again.
        if self.shuffle:
            self.generator.manual_seed(self.seed + self.epoch())
        return super().__iter__()


def epoch_sampler(
    trainer: GRPOTrainer, epoch: Callable[[], int], dataset: Dataset | None = None
) -> EpochSampler:
    """Order of the rows of a trainer's (or another) dataset: a prompt's G rows together."""
    args = trainer.args
    return EpochSampler(
        epoch,
        data_source=trainer.train_dataset if dataset is None else dataset,
        mini_repeat_count=args.num_generations,
        batch_size=args.generation_batch_size // args.num_generations,
        repeat_count=args.steps_per_generation,
        shuffle=trainer.shuffle_dataset,
        seed=args.seed,
    )


def upcoming_rows(trainer: GRPOTrainer) -> Callable[[int], list[Row]]:
    """Rows that the dataloader will deal to this rank, by optimizer step, counted from 0 over all
    epochs.

    The sampler has the indices of a step one after the other, once per micro-step, and the first
    time rank after rank.
    """
    args, ranks = trainer.args, trainer.accelerator.num_processes
    per_rank = args.generation_batch_size // ranks
    step_size = args.steps_per_generation * args.generation_batch_size
    first = trainer.accelerator.process_index * per_rank

    @lru_cache(maxsize=2)  # batches ahead may already be of the next epoch
    def order(epoch: int) -> list[int]:
        return list(epoch_sampler(trainer, lambda: epoch))

    def rows_of(step: int) -> list[Row]:
        # Every epoch has as many whole steps; rows beyond them are not dealt.
        epoch, place = divmod(step, len(order(0)) // step_size)
        # The first micro-step has every row once, rank after rank; the others repeat them.
        start = place * step_size + first
        return [trainer.train_dataset[i] for i in order(epoch)[start : start + per_rank]]

    return rows_of


@dataclass(frozen=True)
class _Flight:
    rows: list[Row]
    policy_version: str
    policy_step: int  # at which the policy was published
    result: Future[tuple[list[Rollout], float]]  # responses and the seconds that they took


class Lookahead:
    """Batches under way, by optimizer step.

    `upcoming` gives the rows of a step; `lag` are the steps that a batch may be started ahead.
    """

    def __init__(self, engine: RolloutEngine, upcoming: Callable[[int], list[Row]], lag: int):
        self._engine, self._upcoming, self._lag = engine, upcoming, lag
        # One thread a batch: this step and those ahead. A thread only waits for its event loop.
        self._executor = ThreadPoolExecutor(lag + 1, thread_name_prefix="lookahead")
        self._flights: dict[int, _Flight] = {}

    @property
    def versions(self) -> set[str]:
        """Policies that batches under way are sampled from; the same on all ranks."""
        return {flight.policy_version for flight in self._flights.values()}

    def start(self, rows: list[Row], batch: Batch, max_steps: int) -> None:
        """Start the batch of this step, unless it is under way, and those up to `lag` steps ahead,
        also from its policy. No batch is made for a step after `max_steps`, the run's last."""
        # Not under way: this is the first batch, or the run went back to a checkpoint. What is
        # under way then belongs to steps that will come again, with another policy.
        if batch.step not in self._flights:
            self._flights = {batch.step: self._launch(rows, batch, batch.step)}
        for step in range(batch.step + 1, min(batch.step + self._lag + 1, max_steps)):
            if step not in self._flights:
                # The newest policy makes the batch ahead; its lag is the steps until it is trained.
                ahead = dataclasses.replace(batch, step=step)
                self._flights[step] = self._launch(self._upcoming(step), ahead, batch.step)

    def take(self, step: int, rows: list[Row]) -> tuple[list[Rollout], Metrics]:
        """Responses of a step, and metrics: its seconds, those waited for it, its lag, and
        responses of later steps that are made meanwhile. Raises what its chain raised."""
        # Taken out first: `rollout/carried` counts the others.
        flight = self._flights.pop(step)
        assert flight.rows == rows, (
            f"step {step} was looked up with other rows than the dataloader deals"
        )
        start = time.perf_counter()
        rollouts, seconds = flight.result.result()
        return rollouts, {
            "timing/rollout": seconds,
            "timing/rollout_wait": time.perf_counter() - start,
            "rollout/lag": float(step - flight.policy_step),
            "rollout/carried": float(sum(len(f.rows) for f in self._flights.values())),
        }

    def wait(self) -> None:
        """Wait until no batch is under way; errors are kept for `take`."""
        wait([flight.result for flight in self._flights.values()])

    def _launch(self, rows: list[Row], batch: Batch, policy_step: int) -> _Flight:
        return _Flight(
            rows, batch.policy_version, policy_step, self._executor.submit(self._run, rows, batch)
        )

    def _run(self, rows: list[Row], batch: Batch) -> tuple[list[Rollout], float]:
        start = time.perf_counter()
        return self._engine.run(rows, batch), time.perf_counter() - start
