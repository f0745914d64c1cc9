"""`rea_rl.grpo` with one fault in it: broken_trainer.py FAULT [OPTIONS of rea_rl.grpo].

    kill-rollouts     SIGKILL when half of a rollout file is written
    kill-adapter      SIGKILL when half of an adapter's weights is written
    kill-weights      SIGKILL when half of a checkpoint's weights is written
    kill-optimizer    SIGKILL when half of a checkpoint's optimizer state is written
    kill-state        SIGKILL when half of a checkpoint's trainer_state.json, its last file, is
                      written
    full-rollouts, full-adapter, full-weights, full-optimizer, full-state
                      no room for more than half of it

It hits the second file of its kind that the process writes. A full disk is a limit on the size of
files, which ends a write in the same place as a disk without room, with "File too large" in place
of "No space left on device".
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rea_rl import grpo

Writer = Callable[..., Any]
Find = Callable[..., Path | None]


def halve(write: Writer, find: Find, kills: bool) -> Writer:
    """`write`, broken at the second call for which `find` returns a path; the first tells its
    size."""
    calls = iter(range(10**6))

    def broken(*args: Any, **kwargs: Any) -> Any:
        path = find(*args)
        written = write(*args, **kwargs)
        if path is None or next(calls) != 1:
            return written
        half = path.stat().st_size // 2
        if kills:
            os.truncate(path, half)
            os.kill(os.getpid(), signal.SIGKILL)
        path.unlink()
        return limited(half, lambda: write(*args, **kwargs))

    return broken


def limited(size: int, write: Callable[[], Any]) -> Any:
    """Write while no file may be larger; our own log may, afterwards."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        return write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def plant(what: str, kills: bool) -> None:
    """Break the writer of one kind of file."""
    import torch
    from peft import PeftModel
    from transformers import TrainerState

    def weights(_: Any, folder: Any) -> Path | None:
        inside = {"adapter": "adapters", "weights": "checkpoint-"}[what]
        return Path(folder, "adapter_model.safetensors") if inside in str(folder) else None

    def optimizer(_: Any, path: Any) -> Path | None:
        return Path(path) if str(path).endswith("optimizer.pt") else None

    if what == "rollouts":
        Path.write_text = halve(
            Path.write_text, lambda path, _: path if "rollouts" in path.parts else None, kills
        )
    elif what in ("adapter", "weights"):
        PeftModel.save_pretrained = halve(PeftModel.save_pretrained, weights, kills)
    elif what == "optimizer":
        torch.save = halve(torch.save, optimizer, kills)
    else:
        assert what == "state", what
        checkpoint = lambda _, path: Path(path) if "checkpoint-" in str(path) else None  # noqa: E731
        TrainerState.save_to_json = halve(TrainerState.save_to_json, checkpoint, kills)


if __name__ == "__main__":
    how, kind = sys.argv[1].split("-")
    plant(kind, how == "kill")
    grpo.main(sys.argv[2:])
