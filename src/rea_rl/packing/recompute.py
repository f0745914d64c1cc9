"""Gradient checkpointing of as few layers as a GPU's memory asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

logger = logging.getLogger(__name__)

# Share of the memory that may be planned with; the rest is for fragments and for what differs
# between batches.
USABLE = 0.9


class Recompute:
    """Which decoder layers compute their activations again in the backward pass.

    The last layers keep theirs: they are freed before the first ones are computed again. `auto`
    recomputes all but one layer in the first step, measures what that one keeps and what the step
    needs, and recomputes as few as possible from the second step on.

    Args:
        model: without wrappers.
        mode: `all`, `none` or `auto`; without a GPU, `auto` is `all`.
        tokens_per_forward: the most tokens of a forward pass; None if the first step has as many as
            any.
    """

    def __init__(self, model: PreTrainedModel, mode: str, tokens_per_forward: int | None):
        self.layers = [
            module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
        ]
        self.tokens_per_forward = tokens_per_forward or 0
        self.num_recomputed = 0 if mode == "none" else len(self.layers)
        self._unmeasured = mode == "auto" and model.device.type == "cuda"
        self._first_step: _FirstStep | None = None
        model.gradient_checkpointing_enable({"use_reentrant": False})
        self.apply()

    def apply(self) -> None:
        """Let the first `num_recomputed` layers compute again, the others keep."""
        for i, layer in enumerate(self.layers):
            layer.gradient_checkpointing = i < self.num_recomputed

    def begin_step(self, num_tokens: Callable[[], int]) -> None:
        """To be called before each step; `num_tokens` counts those of its largest forward pass,
        where they matter."""
        if self._first_step is not None:
            self._use(self._first_step)
            self._first_step = None
        elif self._unmeasured:
            self._unmeasured = False
            self.num_recomputed = len(self.layers) - 1
            self._first_step = _FirstStep(self.layers[-1], num_tokens())
        self.apply()  # TRL sets all layers alike around its reference pass

    def _use(self, first: _FirstStep) -> None:
        layer_bytes, step_bytes = first.finish()
        # The first step may have had few tokens; activations grow with them.
        growth = max(self.tokens_per_forward / first.num_tokens, 1.0)
        free, _ = torch.cuda.mem_get_info()  # servers may hold a part of this GPU
        spare = (
            USABLE * (free + torch.cuda.memory_reserved())
            - first.resting_bytes
            - step_bytes * growth
        )
        self.num_recomputed = max(
            self.num_recomputed - int(max(spare, 0) / (layer_bytes * growth)), 0
        )
        logger.info(
            "a layer keeps %.2f GiB for %d tokens: %d of %d layers are computed again in the "
            "backward pass",
            layer_bytes / 2**30, first.num_tokens, self.num_recomputed, len(self.layers),
        )  # fmt: skip


class _FirstStep:
    """Memory of the first step: before it, kept by a layer that keeps all, and at its peak."""

    def __init__(self, layer: nn.Module, num_tokens: int):
        self.num_tokens = num_tokens
        self._marks: list[int] = []  # before and after the layer, in turn
        self._hooks = [
            layer.register_forward_pre_hook(self._mark),
            layer.register_forward_hook(self._mark),
        ]
        torch.cuda.reset_peak_memory_stats()
        self.resting_bytes = torch.cuda.memory_allocated()

    def _mark(self, *_: object) -> None:
        self._marks.append(torch.cuda.memory_allocated())

    def finish(self) -> tuple[int, int]:
        """Bytes that the layer kept at most, and that the step had at most above those before."""
        for hook in self._hooks:
            hook.remove()
        kept = max(
            after - before
            for before, after in zip(self._marks[::2], self._marks[1::2], strict=True)
        )
        return kept, torch.cuda.max_memory_allocated() - self.resting_bytes
