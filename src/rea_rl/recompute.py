"""Gradient checkpointing of as few layers as a GPU's memory asks for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

logger = logging.getLogger(__name__)

# Share of the memory that may be planned with; the rest is for fragments and for what differs between batches.
USABLE = 0.9


class Recompute:
    """Which decoder layers compute their activations again in the backward pass.

    The last layers keep theirs: they are freed before the first ones are computed again.

    Args:
        model: without wrappers.
        mode: `all`, `none`, or `auto`: all in the first pass, which is measured, and as few as possible after it.
        tokens_per_forward: the most tokens of a pass; None if the first pass is as large as any.
    """

    def __init__(self, model: PreTrainedModel, mode: str, tokens_per_forward: int | None):
        self.layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        self.tokens_per_forward = tokens_per_forward
        self._measuring = mode == "auto" and model.device.type == "cuda"
        model.gradient_checkpointing_enable({"use_reentrant": False})
        self.set_recomputed(0 if mode == "none" else len(self.layers))

    def set_recomputed(self, count: int) -> None:
        """Let the first `count` layers compute again, the others keep."""
        self.num_recomputed = count
        for i, layer in enumerate(self.layers):
            layer.gradient_checkpointing = i < count

    @contextmanager
    def measured(self, num_tokens: int) -> Iterator[None]:
        """Around forward and backward pass over `num_tokens` tokens; measures the first one only."""
        self.set_recomputed(self.num_recomputed)  # TRL sets all layers alike around its reference pass
        if not self._measuring:
            yield
            return
        self._measuring = False
        self.set_recomputed(len(self.layers) - 1)
        torch.cuda.reset_peak_memory_stats()
        resting = torch.cuda.memory_allocated()
        with _kept_bytes(self.layers[-1]) as kept:
            yield
        growth = max((self.tokens_per_forward or 0) / num_tokens, 1.0)
        needed = resting + (torch.cuda.max_memory_allocated() - resting) * growth
        total = torch.cuda.get_device_properties(None).total_memory
        more = int(max(USABLE * total - needed, 0) / (kept[0] * growth))
        self.set_recomputed(max(len(self.layers) - 1 - more, 0))
        logger.info(
            "a layer keeps %.2f GiB for %d tokens: %d of %d layers are computed again in the backward pass",
            kept[0] / 2**30, num_tokens, self.num_recomputed, len(self.layers),
        )  # fmt: skip


@contextmanager
def _kept_bytes(layer: nn.Module) -> Iterator[list[int]]:
    """List that gets the bytes which `layer` allocates in its forward pass and keeps."""
    marks: list[int] = []

    def mark(*_: object) -> None:
        marks.append(torch.cuda.memory_allocated())

    kept: list[int] = []
    handles = [layer.register_forward_pre_hook(mark), layer.register_forward_hook(mark)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
    kept.append(marks[1] - marks[0])
