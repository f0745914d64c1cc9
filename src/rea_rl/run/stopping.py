"""SIGTERM during a training, as a cluster sends it before it takes a machine away: a checkpoint,
and a clear end.

    while responses are made    they are given up; the checkpoint has the last finished step
    while a step is taken   the step is finished first

All ranks stop at one point, also if only one of them got the signal. What starts or is saved
around the training ends at once, as before.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from rea_rl.run.endings import Interrupted

if TYPE_CHECKING:
    from transformers import Trainer


logger = logging.getLogger(__name__)


class StopAtSigterm(TrainerCallback):
    """Context manager around a training; raises Interrupted at its end, in place of the error that
    ended it, if there was a signal.

    Args:
        trainer: whose training it is.
        give_up: called by the signal's handler; ends what the training waits for.
    """

    def __init__(self, trainer: Trainer, give_up: Callable[[], None]):
        self._trainer, self._give_up = trainer, give_up
        self._is_asked = False
        self._before: Any = None

    def __enter__(self) -> StopAtSigterm:
        # behind transformers' own, whose plans for the end of a step it changes
        self._trainer.add_callback(self)
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._trainer.remove_callback(self)
        # A second signal, as a launcher and its process group send it, must not hurt the
        # checkpoint.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if self._is_asked else self._before)
        if self._is_asked and not isinstance(error, KeyboardInterrupt):
            raise Interrupted(
                "SIGTERM; give the same command to continue from the last checkpoint"
            ) from error

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop, and evaluate nothing, if any rank was asked to."""
        accelerator = self._trainer.accelerator
        if accelerator.num_processes > 1:
            asked = torch.tensor([float(self._is_asked)], device=accelerator.device)
            self._is_asked = bool(accelerator.gather(asked).any())
        if self._is_asked:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def _note(self, *_: Any) -> None:
        if not self._is_asked:
            self._is_asked = True
            logger.warning(
                "SIGTERM: the run stops behind this step, or the last one if its responses are "
                "still being made"
            )
            self._give_up()
