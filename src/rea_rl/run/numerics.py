"""Steps with a NaN or infinite loss or gradient: skipped, counted, and the end of a run that has
several in a row.

One mixin for the trainers of `rea_rl.grpo`, `rea_rl.sft` and `rea_rl.dpo`, also with accumulation,
DDP and DeepSpeed's ZeRO. A skipped step counts as a step: the next one has the next rows and the
next learning rate. Weights and the optimizer's state stay as they were before it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from rea_rl.run.counts import counts_of
from rea_rl.run.endings import NonFiniteError

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 3
SHOWN_ROWS = 32  # of a step, in the log
SKIPPED = "non_finite_steps"
ROW = "row"  # column of encoded rows: their number in the data file, from 0


class FiniteSteps:
    """Mixin, before a trainer of TRL: no step with a NaN or infinite loss or gradient reaches the
    weights.

    Raises NonFiniteError in the third such step in a row, on all ranks. With float16, gradients
    that are too large for the loss scale do not count: the scaler lowers the scale and skips the
    step itself.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # On GPUs, masked bfloat16 rows got NaN gradients from it; torch's other kernels did not.
        torch.backends.cuda.enable_cudnn_sdp(self.args.cudnn_attention)
        self._in_a_row = 0
        self._losses: list[tuple[Tensor, list[str]]] = []  # of each micro-batch, and its rows

    def row_names(self) -> list[str]:
        """Names of the micro-batch's rows, for the log."""
        raise NotImplementedError

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return self.note_loss(super().compute_loss(*args, **kwargs))

    def note_loss(self, loss: Any) -> Any:
        """Remember the loss of a micro-batch before its backward pass; returns it."""
        if torch.is_grad_enabled():
            self._losses.append((loss.detach(), self.row_names()))
        return loss

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        self._losses.clear()
        if self.is_deepspeed_enabled:
            watch_zero(
                self.model_wrapped.optimizer,
                lambda: self._on_any_rank(not self._losses_are_finite()),
            )
        return prepared

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Tensor | float | None:
        """Norm of the gradient; None if the step is skipped. Called before the optimizer."""
        norm = super()._get_grad_norm(*args, **kwargs)
        if self.is_deepspeed_enabled:  # whose optimizer has stepped, or not, with the backward pass
            skipped = self.model_wrapped.optimizer.overflow
        else:
            skipped = self._on_any_rank(not (math.isfinite(norm) and self._losses_are_finite()))
        losses, self._losses = self._losses, []
        if not skipped:
            self._in_a_row = 0
            return norm
        of_ranks = gather_object([(float(loss.mean()), rows) for loss, rows in losses])
        bad = [(loss, rows) for loss, rows in of_ranks if not math.isfinite(loss)]
        if bad or self._loss_scale() <= 1.0:
            self._skip(bad or of_ranks)
        return None

    def _skip(self, losses: list[tuple[float, list[str]]]) -> None:
        counts = counts_of(self.state)
        counts[SKIPPED] = counts.get(SKIPPED, 0.0) + 1
        self._in_a_row += 1
        what = (
            f"step {self.state.global_step} has a non-finite loss or gradient, {_describe(losses)}"
        )
        if self.is_world_process_zero():
            logger.warning("%s; it is skipped, number %d in a row", what, self._in_a_row)
        if self._in_a_row >= MOST_IN_A_ROW:
            raise NonFiniteError(
                f"{MOST_IN_A_ROW} steps in a row had a loss or gradient that is non-finite, and "
                "the weights are those from before; lower learning_rate, look at the rows in the "
                f"log, and leave cudnn_attention off; the last: {what}"
            )
        if self.is_deepspeed_enabled:
            # so that the schedule counts the step, as without DeepSpeed
            self.model_wrapped.optimizer.overflow = False
        elif self.accelerator.scaler is None:
            for parameter in self.model.parameters():
                parameter.grad = None  # optimizers pass over such parameters: no decay, no moments

    def check_weights(self) -> None:
        """Raise NonFiniteError, on all ranks, if a trained weight is NaN: a step's gradient
        was one, but not what the optimizer made of it."""
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        if self._on_any_rank(not all(weight.isfinite().all() for weight in trained)):
            raise NonFiniteError(
                f"trained weights are non-finite at step {self.state.global_step}, and are not "
                "saved; lower learning_rate, and begin again or from an earlier checkpoint"
            )

    def _losses_are_finite(self) -> bool:
        return not self._losses or bool(
            torch.stack([loss.isfinite().all() for loss, _ in self._losses]).all()
        )

    def _on_any_rank(self, found: bool) -> bool:
        flag = torch.tensor([float(found)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item())

    def _loss_scale(self) -> float:
        if self.is_deepspeed_enabled:
            return float(self.model_wrapped.optimizer.loss_scale)
        return self.accelerator.scaler.get_scale() if self.accelerator.scaler is not None else 1.0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs[SKIPPED] = counts_of(self.state).get(SKIPPED, 0.0)
        super().log(logs, *args, **kwargs)


def _describe(losses: list[tuple[float, list[str]]]) -> str:
    """Losses of micro-batches, and the names of their rows."""
    values = dict.fromkeys(f"{loss:.4g}" for loss, _ in losses)
    rows = list(dict.fromkeys(name for _, names in losses for name in names))
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    return f"loss {', '.join(values)}, rows {', '.join(rows[:SHOWN_ROWS])}{more}"


def watch_zero(optimizer: Any, loss_is_bad: Callable[[], bool]) -> None:
    """Let a ZeRO optimizer of DeepSpeed skip a step whose gradient, or whose loss on any rank, is
    no number.

    Its own check looks at the gradient of float16 always, and of others by stage and setting.
    """

    def check_overflow(*args: Any, **kwargs: Any) -> None:
        in_gradient = optimizer.has_overflow(*args, **kwargs)  # a sum over ranks, as is the other
        optimizer.overflow = loss_is_bad() or in_gradient

    def check_and_clean_up(update_scale: bool = True) -> bool:
        check_overflow()
        return (
            optimizer._loss_scale_update_and_overflow_cleanup()
            if update_scale
            else optimizer.overflow
        )

    if hasattr(optimizer, "_overflow_check_and_loss_scale_update"):  # stage 3
        optimizer._overflow_check_and_loss_scale_update = check_and_clean_up
    else:
        optimizer.check_grad_overflow, optimizer.check_overflow = True, check_overflow


class NumberedRows(FiniteSteps):
    """`FiniteSteps` for trainers whose rows have the column `ROW`, which no model sees."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        collate = self.data_collator

        def collate_numbered(examples: list[dict[str, Any]]) -> dict[str, Any]:
            return {**collate(examples), ROW: torch.tensor([example[ROW] for example in examples])}

        self.data_collator = collate_numbered
        self._rows: list[str] = []

    def row_names(self) -> list[str]:
        return self._rows

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if ROW not in self._signature_columns:
            self._signature_columns.append(ROW)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self._rows = [str(row) for row in inputs.pop(ROW).tolist()]
        return super()._prepare_inputs(inputs)
