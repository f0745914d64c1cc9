"""A model's packed and plain forward passes compared at the start of a run, on a fork of a few
dozen tokens.

A config does not tell how a decoder takes packed rows: its layers may not hand on the tree, its
attention may have a term of its own, it may draw random numbers under any name. So the pass is
tried.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from rea_rl.packing.prefix_tree import (
    PackedPaths,
    TokenPath,
    fold,
    packed_logps,
    without_adapter,
)
from rea_rl.trl_trainer import GRPOTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TEXT = (
    "The sum of 17 and 25 is 42. Wait, let me check that again: 17 plus 20 is 37, and 5 more makes "
    "42 in all."
)
NUM_PROMPT, NUM_SHARED, LENGTHS = 8, 20, (44, 36, 28)  # tokens
# Mean difference of log-probs between two kernels, and between two runs of one kernel, on top of
# the measured noise.
KERNELS = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
RUNS = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-4}


def packing_differs(trainer: GRPOTrainer) -> str | None:
    """Why the model of a trainer, which has a packed forward pass, must not be packed; None if
    the passes agree.

    The same on all ranks.
    """
    found = _try(trainer)
    return next((reason for reason in gather_object([found]) if reason is not None), None)


def make_fork(tokenizer: PreTrainedTokenizerBase) -> list[TokenPath]:
    """Responses that share a prompt, and two of them more."""
    text = itertools.cycle(tokenizer.encode(TEXT, add_special_tokens=False))
    ids = np.array([next(text) for _ in range(sum(LENGTHS))])
    first, second, third = np.split(ids, np.cumsum(LENGTHS)[:-1])
    second[:NUM_SHARED], third[:NUM_PROMPT] = first[:NUM_SHARED], first[:NUM_PROMPT]
    return [TokenPath(path, NUM_PROMPT) for path in (first, second, third)]


def _try(trainer: GRPOTrainer) -> str | None:
    model, device = trainer.model, trainer.accelerator.device
    model.to(device)  # with DeepSpeed it is not there yet
    paths = make_fork(trainer.processing_class)
    was_training = model.training
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return _compare(trainer, paths, fold(paths).to(device))
    except Exception as error:  # any error of a model's own code
        logger.debug("packed forward pass", exc_info=error)
        return (
            f"its packed forward pass fails ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]})"
        )
    finally:
        model.train(was_training)


def _compare(trainer: GRPOTrainer, paths: list[TokenPath], packed: PackedPaths) -> str | None:
    model, dtype = trainer.model, _computing_dtype(trainer)
    # Another length changes the order of a kernel's sums: this shows the noise of rounding alone.
    halves = [
        TokenPath(path.ids[: (path.num_prompt + len(path.ids)) // 2], path.num_prompt)
        for path in paths
    ]
    with torch.no_grad():
        model.train()
        random = _difference(_plain(trainer, paths), _plain(trainer, paths))
        model.eval()
        plain, again = _plain(trainer, paths), _plain(trainer, paths)
        shorter = _plain(trainer, halves)
        flat = _packed(trainer, packed)
    if random > 4 * _difference(plain, again) + RUNS[dtype]:
        return (
            "it draws random numbers in training (dropout, or noise in its routing), but a shared "
            "prefix must see one model"
        )
    lengths = [len(row) for row in plain]
    difference = _difference(plain, list(flat.split(lengths)))
    noise = _difference(
        [row[: len(half)] for row, half in zip(plain, shorter, strict=True)], shorter
    )
    # (not `>`: NaN differs, too)
    if not difference <= 5 * noise + KERNELS[dtype]:
        return (
            f"its log-probs are others when packed: on average by {difference:.2g} for a fork of "
            f"{sum(lengths)} tokens"
        )
    _try_backward(trainer, packed)
    return None


def _plain(trainer: GRPOTrainer, paths: list[TokenPath]) -> list[Tensor]:
    """Log-probs of the completion of each response, alone in its forward pass; TRL's own code."""
    rows = []
    for path in paths:
        ids = torch.from_numpy(path.ids).unsqueeze(0).to(trainer.accelerator.device)  # (1, L)
        row = trainer.model, ids, torch.ones_like(ids), len(path.ids) - path.num_prompt
        rows.append(GRPOTrainer._get_per_token_logps_and_entropies(trainer, *row)[0][0])
    return rows


def _packed(trainer: GRPOTrainer, packed: PackedPaths) -> Tensor:
    with trainer.accelerator.autocast():
        return packed_logps(trainer.model, packed)[0][packed.token_index]


def _try_backward(trainer: GRPOTrainer, packed: PackedPaths) -> None:
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    torch.autograd.grad(_packed(trainer, packed).sum(), trained, allow_unused=True)


def _difference(first: list[Tensor], second: list[Tensor]) -> float:
    difference = torch.cat(first).float() - torch.cat(second).float()
    return float(difference.abs().mean())


def _computing_dtype(trainer: GRPOTrainer) -> torch.dtype:
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.accelerator.mixed_precision)
    return mixed or without_adapter(trainer.model).dtype
