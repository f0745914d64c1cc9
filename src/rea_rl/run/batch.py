"""Rows of an optimizer step: the recipe says how many, and each rank's part follows from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from rea_core.options import PositiveInt, option


@dataclass(kw_only=True)
class BatchKeys:
    """Keys of all training programs for the rows of a step, in place of TRL's default of 1."""

    gradient_accumulation_steps: int | None = option(
        None,
        "Micro-batches of a rank in a step; default: as many as prompts_per_step or rows_per_step "
        "needs, or 1 without these.",
    )


@dataclass(kw_only=True)
class RowKeys(BatchKeys):
    """The same for supervised programs."""

    rows_per_step: PositiveInt | None = option(
        None,
        "Rows of an optimizer step over all ranks; a rank takes at most "
        "per_device_train_batch_size of its part at a time.",
    )

    def share_rows(self) -> None:
        """Set this rank's batch keys. Raises ValueError as `share_out` does."""
        share_out(self, "rows_per_step")


def share_out(config: Any, key: str, group: int = 1) -> None:
    """Set the batch keys of a rank so that a step has exactly the rows that the recipe asks for.

    The field `key` has the groups of a step, or None: then the batch keys stay as they are. Raises
    ValueError as `share_rows` does.
    """
    size, given = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if (groups := getattr(config, key)) is None:
        config.gradient_accumulation_steps = given or 1
        return
    ranks = int(os.environ.get("WORLD_SIZE", "1"))  # as accelerate and torchrun tell each of them
    shared = share_rows(key, groups, group, ranks, size, given)
    config.per_device_train_batch_size, config.gradient_accumulation_steps = shared


def share_rows(
    key: str, groups: int, group: int, ranks: int, most: int, given: int | None
) -> tuple[int, int]:
    """Rows that a rank takes at a time, and how often in a step.

    Args:
        key: recipe key of the groups, for errors.
        groups: of a step, which `ranks` share.
        group: rows that stay on one rank together: the responses of a prompt, or 1.
        most: rows at a time, at most.
        given: micro-batches that the recipe asks for; None: as many as are needed.

    Raises ValueError if ranks, micro-batches or a given accumulation do not make these rows.
    """
    if groups % ranks:
        raise ValueError(
            f"{key} is {groups}, which {ranks} ranks cannot share evenly; train on a number of "
            f"ranks that divides {groups}, or change {key}"
        )
    part = groups // ranks * group
    size = _micro_batch(most, part, group)
    made = f"{key} is {groups}, so that each of {ranks} ranks has {part} rows a step"
    if part % size:
        raise ValueError(
            f"{made}, which per_device_train_batch_size ({size}) does not divide; give a divisor, "
            f"or a multiple of {group}, the responses of a prompt"
        )
    if given is not None and size * given != part:
        raise ValueError(
            f"{made}, but per_device_train_batch_size x gradient_accumulation_steps is {size} x "
            f"{given} = {size * given}; leave gradient_accumulation_steps out, or change {key}"
        )
    return size, part // size


def _micro_batch(most: int, part: int, group: int) -> int:
    """Rows that a rank takes at a time: the most allowed. Whole groups may be fewer, so that they
    divide its part."""
    size = min(most, part)
    if size % group:
        return size
    return max(fewer for fewer in range(group, size + 1, group) if part % fewer == 0)
