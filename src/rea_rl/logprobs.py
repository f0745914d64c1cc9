"""Log-probs of next tokens: from hidden states, without logits for more than one chunk of tokens at a time, and of
padded rows, a few of similar length at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from rea_rl.configs import REARLConfig

logger = logging.getLogger(__name__)

CHUNK_TOKENS = 1024


class _ChunkedLogProbs(torch.autograd.Function):
    """Log-probs and entropies of `hidden @ weight.T / temperature`.

    The gradient of a token's log-prob with respect to its hidden state does not depend on the loss, except for one
    factor. It is computed while the chunk's logits are there, and kept in their place: (N, H) instead of (N, V), and
    nothing is projected a second time in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logps, entropies = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(2))
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            logits = (hidden[part] @ weight.T).float()  # (n, V)
            log_probs = (logits if temperature == 1.0 else logits.div_(temperature)).log_softmax(dim=-1)
            target = targets[part].unsqueeze(1)
            logps[part] = log_probs.gather(1, target).squeeze(1)
            probs = log_probs.exp()
            entropies[part] = -torch.einsum("nv,nv->n", probs, log_probs)
            if slopes is not None:
                # Minus the gradient of the logits; 1 is subtracted in float32, where little may be left of it.
                slope = probs.scatter_add_(1, target, target.new_full(target.shape, -1, dtype=torch.float32))
                torch.mm(slope.to(weight.dtype), weight, out=slopes[part]).div_(-temperature)
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, grad_logps: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * grad_logps.unsqueeze(1).to(slopes.dtype), None, None, None


def chunked_logps(
    hidden: torch.Tensor,  # (N, H)
    weight: torch.Tensor,  # (V, H), frozen
    targets: torch.Tensor,  # (N,)
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of each target and entropy (without gradient) of each distribution, both (N,) in float32."""
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedLogProbs.apply(hidden.to(weight.dtype), weight, targets, temperature)


def takes_one_pass(args: REARLConfig) -> bool:
    """Whether all padded rows of a micro-batch must be trained in one forward pass; where the recipe has fewer, a warning.

    Reentrant checkpointing, which TRL sets for ZeRO-3, adds to a gradient once for each forward pass of a backward pass;
    ZeRO-3 and DDP take one addition.
    """
    kwargs = args.gradient_checkpointing_kwargs
    one_pass = bool(args.gradient_checkpointing and kwargs) and kwargs.get("use_reentrant") is not False  # torch's default
    if one_pass and args.rows_per_forward:
        logger.warning(
            "rows_per_forward: %d is not possible with reentrant gradient checkpointing, as ZeRO-3 has it: all rows of a "
            "micro-batch are trained in one pass; lower per_device_train_batch_size where memory is short",
            args.rows_per_forward,
        )
    return one_pass


def padded_logps(
    forward: Callable[..., tuple[torch.Tensor, torch.Tensor | None, Any]],
    input_ids: torch.Tensor,  # (B, P + C), prompts padded on the left, completions on the right
    attention_mask: torch.Tensor,  # (B, P + C)
    num_kept: int,  # C
    rows_per_forward: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs (B, C) and entropies (B, C) of `forward(input_ids, attention_mask, C)`, rows of similar length together."""
    order = attention_mask.sum(dim=1).argsort()
    outputs = [
        _trimmed(forward, input_ids[rows], attention_mask[rows], num_kept) for rows in order.split(rows_per_forward)
    ]
    back = order.argsort()
    logps, entropies = (None if parts[0] is None else torch.cat(parts)[back] for parts in zip(*outputs, strict=True))
    return logps, entropies


def _trimmed(
    forward: Callable[..., tuple[torch.Tensor, torch.Tensor | None, Any]],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    num_kept: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One forward pass without the columns that are padding in all rows; outputs are padded back to (B, C)."""
    columns = attention_mask.any(dim=0).nonzero().flatten()
    # One column of completions stays where no row has a trained token: TRL takes the last 0 columns for all of them.
    cut_off = min(input_ids.size(1) - 1 - int(columns[-1]), num_kept - 1)
    first, end = int(columns[0]), input_ids.size(1) - cut_off
    logps, entropies, _ = forward(input_ids[:, first:end], attention_mask[:, first:end], num_kept - cut_off)
    return F.pad(logps, (0, cut_off)), None if entropies is None else F.pad(entropies, (0, cut_off))
