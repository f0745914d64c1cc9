"""Training step of GRPO with packed paths: forward passes of a bounded number of tokens, instead of
padded rows.

Everything above log-probs is TRL's: they are put back into padded (B, C) tensors, so loss, KL,
clipping and metrics are computed by the same code with and without packing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch.nn import Module

from rea_rl.packing.fork_check import packing_differs
from rea_rl.packing.fused_lora import fuse_layers
from rea_rl.packing.prefix_tree import (
    TokenPath,
    add_packed_forward,
    fold,
    num_unique,
    order_by_ids,
    packed_logps,
    plan,
    unsupported,
    without_adapter,
)
from rea_rl.packing.recompute import Recompute

if TYPE_CHECKING:
    from accelerate import Accelerator
    from trl import GRPOTrainer

    from rea_rl.configs import REARLConfig


logger = logging.getLogger(__name__)

Inputs = dict[str, Any]


def why_not_packed(trainer: GRPOTrainer) -> str | None:
    """Why the rows of a trainer cannot be packed; None if they can: its model, and that of its KL
    term, then have a packed forward pass."""
    # Fused layers use their weights in the backward pass, and a shard is only a part of one.
    zero = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if trainer.is_fsdp_enabled or (zero is not None and zero.zero_stage == 3):
        return "its weights are sharded"
    if trainer.aux_loss_enabled:  # of full fine-tuning; with an adapter it is left out
        return "its routers have a loss of their own (router_aux_loss_coef: 0 leaves it out)"
    model = without_adapter(trainer.accelerator.unwrap_model(trainer.model))
    if reason := unsupported(model):
        return reason
    take_away = add_packed_forward(model)
    if reason := packing_differs(trainer):
        take_away()
    elif trainer.ref_model is not None:  # of full fine-tuning with a KL term
        add_packed_forward(trainer.accelerator.unwrap_model(trainer.ref_model))
    return reason


class PackedStep:
    """Log-probs, and loss with gradients, of rows whose responses share prefixes.

    The model, without its adapter, has a packed forward pass, see `why_not_packed`.
    """

    def __init__(self, model: Module, accelerator: Accelerator, args: REARLConfig):
        self.model = model
        self.accelerator = accelerator
        self.args = args
        self.budget = args.tokens_per_forward
        logger.info("packing: %d layers are fused", fuse_layers(self.model))

    @cached_property
    def recompute(self) -> Recompute:
        """Made in the first step: the trainer has placed the model and set its checkpointing."""
        mode = self.args.recompute if self.args.gradient_checkpointing else "none"
        # a response that is longer than the budget has a pass of its own
        most = max(self.budget, self.args.max_completion_length)
        return Recompute(self.model, mode, most)

    def logps(
        self,
        model: Module,
        input_ids: Tensor,  # (B, P + C)
        attention_mask: Tensor,  # (B, P + C)
        logits_to_keep: int,  # C
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies, both (B, C), 0 in the padding; a reference model has no
        entropies."""
        paths = token_paths(input_ids, attention_mask, logits_to_keep)
        mask = attention_mask[:, -logits_to_keep:].bool()  # (B, C)
        columns = [torch.zeros(mask.shape, device=mask.device) for _ in range(2)]
        training = torch.is_grad_enabled()  # then these are the rows of one pass already
        for rows in [range(len(paths))] if training else plan(paths, self.budget):
            packed = fold([paths[i] for i in rows]).to(input_ids.device)
            with self.accelerator.autocast():
                found = packed_logps(model, packed)
            # `masked_scatter` fills row by row, and `rows` ascend: the order of `token_index`.
            places = torch.zeros_like(mask)
            places[list(rows)] = mask[list(rows)]
            columns = [
                column if new is None else column.masked_scatter(places, new[packed.token_index])
                for column, new in zip(columns, found, strict=True)
            ]
        logps, entropies = columns
        return logps, entropies

    def loss(
        self,
        model: Module,
        inputs: Inputs,
        compute_loss: Callable[[Module, Inputs], Tensor],
        metrics: dict[str, list[float]],
    ) -> Tensor:
        """Loss () of a micro-batch. The backward pass of all its forward passes but the last has
        been done.

        All ranks do the same number of passes; if a rank has fewer, the first ones train
        nothing.

        Args:
            model: as it is trained, with its adapter.
            inputs: padded rows, tensors (B, ...).
            compute_loss: loss of the rows of one pass; adds an entry to `metrics` each time.
            metrics: entries of the passes are merged into one.
        """
        packs = self._packs(inputs)
        before = {key: len(values) for key, values in metrics.items()}
        total = torch.zeros((), device=self.accelerator.device)
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        # as in transformers' training step: the loss is normalized already
        settings = {"scale_wrt_gas": False} if deepspeed else {}
        for pack in packs[:-1]:
            with self._without_sync(model):
                loss = compute_loss(model, pack)
                self.accelerator.backward(loss, **settings)
            total += loss.detach()
        loss = compute_loss(model, packs[-1])
        if len(packs) > 1:
            counts = torch.stack([pack["completion_mask"].sum() for pack in packs])
            merge_metrics(metrics, before, self.accelerator.reduce(counts).tolist())
        # The value is that of the micro-batch; the gradient is that of the last pass.
        return loss + total

    def _packs(self, inputs: Inputs) -> list[Inputs]:
        """Rows of each forward pass of this rank; also makes ready for the backward passes."""
        paths = _paths_of(inputs)
        rows = plan(paths, self.budget)
        self.recompute.begin_step(
            lambda: max(num_unique([paths[i] for i in some]) for some in rows)
        )
        return [pad_rows(inputs, some, total) for some, total in self._same_on_all_ranks(rows)]

    def _same_on_all_ranks(self, packs: list[list[int]]) -> list[tuple[list[int], int]]:
        """Passes of this rank, empty ones first, with the most rows that any rank has in each."""
        # Ranks meet in each pass: in the gathered metrics, and in the last one for the gradients. A
        # rank without a pass would keep the others waiting; so it has empty ones, before its own.
        device = self.accelerator.device
        number = torch.tensor([len(packs)], device=device)
        most = int(self.accelerator.gather(number).max())
        packs = [[]] * (most - len(packs)) + packs
        # (ranks, n)
        num_rows = self.accelerator.gather(
            torch.tensor([[len(rows) for rows in packs]], device=device)
        )
        return list(zip(packs, num_rows.amax(dim=0).tolist(), strict=True))

    @contextmanager
    def _without_sync(self, model: Module) -> Iterator[None]:
        """Accumulate gradients on this rank, as in a micro-step before the last."""
        # DeepSpeed looks at the flag, DDP at the context.
        state = self.accelerator.gradient_state
        synchronizes = state.sync_gradients
        state._set_sync_gradients(False)
        with self.accelerator.no_sync(model):
            yield
        state._set_sync_gradients(synchronizes)


def token_paths(input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int) -> list[TokenPath]:
    """Rows (B, P + C) without their padding."""
    ids, mask = input_ids.cpu().numpy(), attention_mask.cpu().numpy().astype(bool)
    num_prompt = mask[:, :-logits_to_keep].sum(axis=1)
    return [
        TokenPath(row[kept], int(prompt))
        for row, kept, prompt in zip(ids, mask, num_prompt, strict=True)
    ]


def _paths_of(inputs: Inputs) -> list[TokenPath]:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    return token_paths(ids, mask, inputs["completion_ids"].size(1))


def select_rows(inputs: Inputs, rows: list[int]) -> Inputs:
    """Some rows of a micro-batch; what has no rows stays."""
    return {
        key: value[rows] if isinstance(value, Tensor) and value.ndim > 0 else value
        for key, value in inputs.items()
    }


def pad_rows(inputs: Inputs, rows: list[int], total: int) -> Inputs:
    """Some rows of a micro-batch, and as many that train nothing (a prompt without completion) as
    make `total`.

    TRL gathers a value for each row, so ranks must have the same number of them.
    """
    # A row of the pass is repeated, or for an empty pass the first one of the micro-batch.
    filled = select_rows(inputs, rows + [*rows, 0][:1] * (total - len(rows)))
    filled["completion_mask"][len(rows) :] = 0
    return filled


def merge_metrics(
    metrics: dict[str, list[float]], before: dict[str, int], num_tokens: list[int]
) -> None:
    """Make one entry of those that each forward pass has logged, as one pass over the micro-batch
    would have.

    Args:
        metrics: lists that grew by one entry a pass.
        before: their lengths before.
        num_tokens: trained tokens of each pass on all ranks; passes without any do not count.
    """
    used = [i for i, count in enumerate(num_tokens) if count]
    for key, values in metrics.items():
        new = values[before.get(key, 0) :]
        if len(new) != len(num_tokens):
            continue
        extreme = {"min": min, "max": max}.get(key.rsplit("_")[-1])
        entries = [new[i] for i in used]
        mean = sum(new[i] * num_tokens[i] for i in used)
        mean /= max(sum(num_tokens), 1)
        values[before.get(key, 0) :] = [extreme(entries) if extreme and entries else mean]


def relatives_together(batches: list[Inputs]) -> list[Inputs]:
    """The micro-batches of a step, their rows in the order of ids: relatives share a pass."""
    if len(batches) == 1:
        return batches
    is_rows = {
        key: isinstance(value, Tensor) and value.ndim > 0 for key, value in batches[0].items()
    }
    batch = {
        key: torch.cat([each[key] for each in batches]) if is_rows[key] else value
        for key, value in batches[0].items()
    }
    order = order_by_ids(_paths_of(batch))
    size = len(order) // len(batches)
    starts = range(0, len(order), size)
    return [select_rows(batch, order[start : start + size]) for start in starts]
