"""Log-probs of next tokens: from hidden states, without logits for more than one chunk of tokens at
a time, and of padded rows, a few of similar length at a time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from accelerate.utils import is_peft_model
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator
    from trl import GRPOTrainer

    from rea_rl.configs import REARLConfig

logger = logging.getLogger(__name__)

CHUNK_TOKENS = 1024
Output = tuple[Tensor, Tensor | None, Tensor | None]


class _ChunkedLogProbs(torch.autograd.Function):
    """Log-probs and entropies of `hidden @ weight.T / temperature`.

    The gradient of a token's log-prob with respect to its hidden state does not depend on the loss,
    except for one factor. It is computed while the chunk's logits are there, and kept in their
    place: (N, H) instead of (N, V). For a frozen head nothing is projected a second time in the
    backward pass; a trained one needs the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        trained, weight = weight, weight.to(hidden.dtype)
        logps, entropies = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(2))
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            log_probs = _chunk_log_probs(hidden[part], weight, temperature)
            target = targets[part].unsqueeze(1)
            logps[part] = log_probs.gather(1, target).squeeze(1)
            probs = log_probs.exp()
            entropies[part] = -torch.einsum("nv,nv->n", probs, log_probs)
            if slopes is not None:
                # Minus the gradient of the logits; 1 is subtracted in float32, where little may be
                # left of it.
                slope = probs.scatter_add_(
                    1, target, target.new_full(target.shape, -1, dtype=torch.float32)
                )
                torch.mm(slope.to(weight.dtype), weight, out=slopes[part]).div_(-temperature)
        ctx.temperature = temperature
        ctx.save_for_backward(
            slopes, *((hidden, trained, targets) if ctx.needs_input_grad[1] else ())
        )
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor, _: Any) -> tuple[Tensor, Tensor | None, None, None]:
        slopes, *others = ctx.saved_tensors
        of_head = _head_gradient(*others, grad_logps, ctx.temperature) if others else None
        return slopes * grad_logps.unsqueeze(1).to(slopes.dtype), of_head, None, None


def _chunk_log_probs(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """(n, V) in float32, of hidden states (n, H)."""
    logits = (hidden @ weight.T).float()
    return (logits if temperature == 1.0 else logits.div_(temperature)).log_softmax(dim=-1)


def _head_gradient(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    targets: Tensor,  # (N,)
    grad_logps: Tensor,  # (N,)
    temperature: float,
) -> Tensor:
    """(V, H) in the type of the weight: products of a chunk in the type of the hidden states, their
    sum in the weight's."""
    head, gradient = weight.to(hidden.dtype), torch.zeros_like(weight)
    for start in range(0, len(hidden), CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        target = targets[part].unsqueeze(1)
        slope = _chunk_log_probs(hidden[part], head, temperature).exp_().neg_()
        slope.scatter_add_(1, target, torch.ones_like(target, dtype=slope.dtype))
        slope.mul_(grad_logps[part].unsqueeze(1) / temperature)
        gradient += slope.to(hidden.dtype).T @ hidden[part]
    return gradient


def chunked_logps(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    targets: Tensor,  # (N,)
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy (without gradient) of each distribution, both (N,) in
    float32.

    Logits are products in the type of the weight; of a trained one, whose own type is the
    optimizer's, in that of autocast.
    """
    device, dtype = hidden.device.type, weight.dtype
    if weight.requires_grad and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _ChunkedLogProbs.apply(hidden.to(dtype), weight, targets, temperature)


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
