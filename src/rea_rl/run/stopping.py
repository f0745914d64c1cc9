"""SIGTERM during a training, as a cluster sends it before it takes a machine away, or Ctrl-C: a
checkpoint, and a clear end.

    while responses are made    they are given up; the checkpoint has the last finished step
    while a step is taken   the step is finished first

All ranks stop at one point, also if only one of them got the signal. What starts or is saved
around the training ends at once, as before. A second Ctrl-C ends it at once, too.
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

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class StopAtSigterm(TrainerCallback):
    """Context manager around a training; raises Interrupted at its end, in place of the error that
    ended it, if there was a signal. The handler calls `give_up`, which ends what is waited for."""

    def __init__(self, trainer: Trainer, give_up: Callable[[], None]):
        self._trainer, self._give_up = trainer, give_up
        self._asked = 0  # number of the signal
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopAtSigterm:
        # behind transformers' own, whose plans for the end of a step it changes
        self._trainer.add_callback(self)
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            # a script's background ignores Ctrl-C, and an earlier training both at its end
            if number == signal.SIGTERM or before != signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._trainer.remove_callback(self)
        # A second signal, as a launcher and its process group send it, must not hurt the
        # checkpoint.
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._asked else before)
        if self._asked and not isinstance(error, KeyboardInterrupt):
            raise Interrupted(
                f"{NAMES[self._asked]}; give the same command to continue from the last checkpoint",
                self._asked,
            ) from error

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop, and evaluate nothing, if any rank was asked to."""
        accelerator = self._trainer.accelerator
        if accelerator.num_processes > 1:
            asked = torch.tensor([float(self._asked)], device=accelerator.device)
            self._asked = int(accelerator.gather(asked).max())
        if self._asked:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def _note(self, number: int, _: Any) -> None:
        if not self._asked:
            self._asked = number
            logger.warning(
                "%s: the run stops behind this step, or the last one if its responses are still "
                "being made",
                NAMES[number],
            )
            self._give_up()
        elif number == self._asked == signal.SIGINT:
            raise KeyboardInterrupt
