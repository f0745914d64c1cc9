"""Log-probs of padded rows, a few of similar length at a time, and what goes with every row."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from accelerate.utils import is_peft_model
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator
    from trl import GRPOTrainer

    from rea_rl.configs import REARLConfig

logger = logging.getLogger(__name__)

Output = tuple[Tensor, Tensor | None, Tensor | None]


def takes_one_pass(args: REARLConfig) -> bool:
    """Whether all padded rows of a micro-batch must be trained in one forward pass; if the
    recipe has fewer, a warning.

    Reentrant checkpointing, which TRL sets for ZeRO-3, adds to a gradient once for each forward
    pass of a backward pass; ZeRO-3 and DDP take one addition.
    """
    kwargs = args.gradient_checkpointing_kwargs
    # torch's default
    one_pass = (
        bool(args.gradient_checkpointing and kwargs) and kwargs.get("use_reentrant") is not False
    )
    if one_pass and args.rows_per_forward:
        logger.warning(
            "rows_per_forward: %d is not possible with reentrant gradient checkpointing, as ZeRO-3 "
            "has it: all rows of a micro-batch are trained in one pass; lower "
            "per_device_train_batch_size if memory is short",
            args.rows_per_forward,
        )
    return one_pass


def leave_load_balancing(trainer: GRPOTrainer) -> None:
    """Leave out the loss that balances the load of experts, unless the recipe has a coefficient:
    LoRA freezes the routers.

    TRL takes the coefficient from the model's config, where most models with experts have one.
    """
    if (
        not trainer.aux_loss_enabled
        or trainer.args.router_aux_loss_coef is not None
        or not is_peft_model(trainer.model)
    ):
        return
    config = trainer.model.config.get_text_config()
    config.output_router_logits, trainer.aux_loss_enabled = False, False
    config.router_aux_loss_coef = trainer.router_aux_loss_coef = 0.0
    logger.info("router_aux_loss_coef: 0, since an adapter leaves the routers as they are")


def sampling_metrics(
    accelerator: Accelerator, difference: Tensor, mask: Tensor, clip_max: float | None
) -> dict[str, float]:
    """Metrics `sampling/*` of all ranks; 0 if there is no such token.

    Args:
        accelerator: gathers them.
        difference: (B, C) log-probs of the trainer less those of the server; NaN for forced tokens.
        mask: (B, C) of this rank's trained tokens.
        clip_max: ratio from which the correction is truncated; None without one.
    """
    sampled = difference[mask & ~difference.isnan()]
    ratio = sampled.exp()
    truncated = ratio > (math.inf if clip_max is None else clip_max)
    largest = ratio.max() if len(ratio) else ratio.new_zeros(())
    num_sampled = torch.tensor(len(sampled), device=ratio.device)
    counts = [count.to(ratio.dtype) for count in (truncated.sum(), mask.sum(), num_sampled)]
    sums = torch.stack([sampled.abs().sum(), ratio.sum(), *counts, largest])
    of_ranks = accelerator.gather(sums).view(-1, len(sums))
    total_difference, total_ratio, num_truncated, num_trained, num_sampled, _ = of_ranks.sum(
        dim=0
    ).tolist()
    return {
        "sampling/logp_difference": total_difference / max(num_sampled, 1),
        "sampling/ratio": total_ratio / max(num_sampled, 1),
        "sampling/truncated": num_truncated / max(num_trained, 1),
        "sampling/ratio_max": float(of_ranks[:, -1].max()),
    }


def padded_logps(
    forward: Callable[..., Output],
    input_ids: Tensor,  # (B, P + C), prompts padded on the left, completions on the right
    attention_mask: Tensor,  # (B, P + C)
    num_kept: int,  # C
    rows_per_forward: int,
) -> Output:
    """Log-probs (B, C) and entropies (B, C) of `forward(input_ids, attention_mask, C)`, rows of
    similar length together, and the mean load-balancing loss () of its passes, if they have one."""
    order = attention_mask.sum(dim=1).argsort()
    outputs = [
        _trimmed(forward, input_ids[rows], attention_mask[rows], num_kept)
        for rows in order.split(rows_per_forward)
    ]
    back = order.argsort()
    *columns, losses = zip(*outputs, strict=True)
    logps, entropies = (None if parts[0] is None else torch.cat(parts)[back] for parts in columns)
    return logps, entropies, None if losses[0] is None else torch.stack(losses).mean()


def _trimmed(
    forward: Callable[..., Output],
    input_ids: Tensor,
    attention_mask: Tensor,
    num_kept: int,
) -> Output:
    """A pass without columns that are padding in all rows; outputs are padded to (B, C) again."""
    columns = attention_mask.any(dim=0).nonzero().flatten()
    # One column of completions stays if no row has a trained token: TRL takes the last 0 columns
    # for all of them.
    cut_off = min(input_ids.size(1) - 1 - int(columns[-1]), num_kept - 1)
    first, end = int(columns[0]), input_ids.size(1) - cut_off
    logps, entropies, balance = forward(
        input_ids[:, first:end], attention_mask[:, first:end], num_kept - cut_off
    )
    if entropies is not None:
        entropies = F.pad(entropies, (0, cut_off))
    return F.pad(logps, (0, cut_off)), entropies, balance
