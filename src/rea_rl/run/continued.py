"""Additions of all three trainers to transformers' own, so that a run that is started again goes
on as it began."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from rea_core.rows import write_atomically
from rea_rl.publish import publish_run
from rea_rl.run.card import model_card
from rea_rl.run.run_record import write_record

if TYPE_CHECKING:
    from rea_rl.run.resume import Plan


class Continued:
    """Goes before a trainer's class. `plan`, what the run is made with, is in its checkpoints."""

    plan: Plan | None = None

    def _init_training_state(self, max_steps: int, *args: Any) -> tuple[int, int]:
        """State of a run; when it logs, evaluates and saves is what this command says, not the
        checkpoint."""
        done = super()._init_training_state(max_steps, *args)
        self.state.compute_steps(self.args, max_steps)
        return done

    def _run_epoch(self, **kwargs: Any) -> None:
        """No epoch if a finished run is resumed: transformers checks `max_steps` only after one."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)
        else:
            self.control.should_training_stop = True

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """The record comes first: the file that says that a checkpoint is whole must be last."""
        self.check_weights()
        if self.plan is not None and self.args.should_save:
            write_record(
                Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"), self.plan.record
            )
        super()._save_checkpoint(model, trial)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Written once, when the run ends, by `publish_at_the_end`."""

    def push_to_hub(self, *_: Any, **__: Any) -> None:
        """The same: a run is published with all of its results."""

    def _push_from_checkpoint(self, *_: Any) -> None:
        """The same."""

    def publish_at_the_end(self) -> None:
        """Write the card of a complete run, and publish it if the recipe says so."""
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        card = model_card(folder, (self.hub_model_id or folder.name).rpartition("/")[2], {})
        write_atomically(folder / "README.md", card.splitlines())
        if self.args.push_to_hub:
            publish_run(self.args, self.hub_model_id)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Rows by length in an order of each epoch's own, on any number of ranks; transformers'
        follows the random state."""
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        rows = sampler.batch_size * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochsByLength(
            lambda: seed + int(self.state.epoch or 0), rows, lengths=sampler.lengths
        )


class EpochsByLength(LengthGroupedSampler):
    """Rows of similar length together; `seed` is asked for again at the start of each epoch."""

    def __init__(self, seed: Callable[[], int], batch_size: int, lengths: list[int]):
        super().__init__(batch_size, lengths=lengths)
        self._seed = seed

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed())
        return super().__iter__()
