"""Checkpoints of a run: the whole ones, and how they are loaded."""

from __future__ import annotations

import functools
import json
import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Newest whole `checkpoint-<step>` folder of a run, or None."""
    return next(map(str, whole_checkpoints(output_dir)), None)


def whole_checkpoints(output_dir: str | Path) -> list[Path]:
    """Whole `checkpoint-<step>` folders, newest first; warns of newer ones that are not whole."""
    folders = {
        int(name[1]): path
        for path in Path(output_dir).glob("checkpoint-*")
        if (name := re.fullmatch(r"checkpoint-([0-9]+)", path.name)) and path.is_dir()
    }
    whole: list[Path] = []
    for _, folder in sorted(folders.items(), reverse=True):
        if is_whole(folder):
            whole.append(folder)
        elif not whole:
            logger.warning("%s was interrupted while it was written; it is passed over", folder)
    return whole


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end.

    `trainer_state.json` is the last file that the first rank writes: after the weights and the
    optimizer's state, which several ranks write in step, and before older checkpoints are removed.
    Cut off, it is no JSON.
    """
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(state, dict) and isinstance(state.get("global_step"), int)


@functools.cache  # torch keeps a list that it sorts, and cannot compare two functions
def know_cpu_by_index() -> None:
    """Let torch.load put tensors on `cpu:0`, as accelerate calls the CPU of several processes."""
    import torch

    torch.serialization.register_package(
        100,
        lambda _: None,
        lambda storage, location: storage if location.startswith("cpu:") else None,
    )
