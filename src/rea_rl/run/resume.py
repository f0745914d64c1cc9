"""Whether a command may continue the run in its output_dir, and from where: decided before the
model loads.

The first rank decides for all. A command that does not agree with the run's record is refused, and
so is a checkpoint with which optimizer or schedule would begin again. A complete run is left as it
is.
"""

from __future__ import annotations

import logging
import socket
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rea_core.json_text import read_json
from rea_rl.run.checkpoints import is_whole, whole_checkpoints
from rea_rl.run.run_record import (
    RECORD,
    REPLICAS,
    Record,
    check_same,
    length,
    make_record,
    read_record,
    record_of,
)

logger = logging.getLogger(__name__)

UNSAVED = ("use_adaptive_entropy", "sync_ref_model")  # their state is in no checkpoint
STATE, RESULTS = "trainer_state.json", "train_results.json"


class RunComplete(Exception):
    """Nothing is left to do; names the run."""


@dataclass(frozen=True)
class Plan:
    """How a run begins."""

    record: Record  # what it is made with
    checkpoint: str | None  # folder that it continues from


def plan_run(
    program: str, parts: Sequence[Any], rows: Iterable[Mapping[str, Any]], **measured: Any
) -> Plan:
    """Compare a command with the run in its output_dir. Called on all ranks; the first one looks
    and decides.

    `rows` are rendered or encoded, `measured` the values that a recipe names a file for. Raises
    ValueError if the run may not be continued so, or if the ranks do not share output_dir;
    RunComplete if nothing is left to do.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    args = next(part for part in parts if hasattr(part, "output_dir"))
    answer: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            answer = [_decide(make_record(program, parts, rows, measured), args)]
        except (ValueError, RunComplete) as error:
            answer = [error]
    answer = broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    if args.world_size > 1:
        _check_shared(args.output_dir)
    return answer[0]


def _decide(record: Record, args: Any) -> Plan:
    """Plan of a command. Raises ValueError or RunComplete; writes nothing."""
    output_dir = Path(args.output_dir)
    if args.resume_from_checkpoint:
        return Plan(
            record, _checkpoint_by_hand(Path(args.resume_from_checkpoint), record, output_dir)
        )
    checkpoints, step = whole_checkpoints(output_dir), finished_step(output_dir)
    if not checkpoints and step is None:
        return Plan(record, None)
    before = record_of(checkpoints[0]) if checkpoints else read_record(output_dir)
    if before is None:
        by_hand = (
            f", or --resume_from_checkpoint {checkpoints[0]} if nothing has changed"
            if checkpoints
            else ""
        )
        raise ValueError(f"{_without_record(output_dir)}; give another output_dir{by_hand}")
    check_same(before, record, output_dir)
    _check_left(step, before, record, output_dir)
    if not checkpoints:
        raise ValueError(
            f"{output_dir} holds a complete run without a checkpoint to continue; give another "
            "output_dir"
        )
    return Plan(record, _newest_usable(checkpoints, record))


def _checkpoint_by_hand(checkpoint: Path, record: Record, output_dir: Path) -> str:
    """The checkpoint, compared like one that is found; with a warning if it has no record."""
    if (before := record_of(checkpoint)) is None:
        logger.warning(
            "%s; it is continued with the settings of this command", _without_record(checkpoint)
        )
    else:
        check_same(before, record, checkpoint)
    step = finished_step(output_dir)
    if (step is not None or whole_checkpoints(output_dir)) and (
        own := read_record(output_dir)
    ) is not None:
        check_same(own, record, output_dir)
        if checkpoint_step(checkpoint) == step:
            _check_left(step, own, record, output_dir)
    return _newest_usable([checkpoint], record)


def _check_left(step: int | None, before: Record, record: Record, output_dir: Path) -> None:
    """Raise RunComplete if a run has ended, and the command asks for no longer one."""
    if step is not None and length(before) == length(record):
        raise RunComplete(
            f"the run in {output_dir} is complete: its {step} steps are trained, and nothing is "
            "left to do"
        )


def _without_record(place: Path) -> str:
    return (
        f"{place} has no {RECORD}: an older version wrote it, and what it was made with cannot be "
        "compared"
    )


def finished_step(output_dir: Path) -> int | None:
    """Optimizer steps of a complete run, whose metrics are written last. None for others."""
    if not (output_dir / RESULTS).is_file() or not _has_weights(output_dir):
        return None
    return checkpoint_step(output_dir) if is_whole(output_dir) else None


def checkpoint_step(folder: Path) -> int:
    """Optimizer steps that were done when a folder's state was written."""
    return read_json(folder / STATE)["global_step"]


def _newest_usable(checkpoints: Sequence[Path], record: Record) -> str:
    """The first checkpoint that has all parts. Raises ValueError if there is none."""
    reasons = []
    for checkpoint in checkpoints:
        if not (missing := missing_parts(checkpoint, record_of(checkpoint) or record)):
            for reason in reasons:
                logger.warning("%s; it is passed over", reason)
            return str(checkpoint)
        reasons.append(f"{checkpoint} has no whole {', no whole '.join(missing)}")
    raise ValueError(
        f"{reasons[0]}, so that it cannot be continued: optimizer or schedule would begin again "
        "(save_only_model leaves their states out); give another output_dir, or delete the "
        "checkpoints to train from the start"
    )


def missing_parts(checkpoint: Path, record: Record) -> list[str]:
    """Files that are missing in a checkpoint, or cut off, of those that a run with this record
    wrote; its last file is there."""
    files = ["scheduler.pt"]
    if record["launch"] == REPLICAS[0] or record["ranks"] == 1:
        files.append("rng_state.pth")
    else:
        files += [f"rng_state_{rank}.pth" for rank in range(record["ranks"])]
    missing = []
    if record["launch"] in REPLICAS:
        files.insert(0, "optimizer.pt")
        missing += [] if _has_weights(checkpoint) else ["weights"]
        settings = record["settings"]
        if settings.get("mixed_precision") == "fp16" and not settings.get("use_cpu"):
            files.append("scaler.pt")
    elif record["launch"].startswith("zero"):
        shards = [*checkpoint.glob("global_step*/*optim_states.pt")]
        shards = [path for path in shards if zipfile.is_zipfile(path)]
        if len(shards) != record["ranks"]:
            missing.append(f"global_step*/*optim_states.pt of {record['ranks']} ranks")
    missing += [f"state of {key}" for key in UNSAVED if record["settings"].get(key)]
    return missing + [name for name in files if not zipfile.is_zipfile(checkpoint / name)]


def _has_weights(folder: Path) -> bool:
    """Whether there are weights, each file to its end."""
    from safetensors import SafetensorError, safe_open

    names = {path.name for path in folder.glob("*.safetensors")}
    is_adapter = any(name.startswith("adapter_") for name in names)
    if is_adapter and not (folder / "adapter_config.json").is_file():
        return False
    for index in folder.glob("*.safetensors.index.json"):
        names |= {*read_json(index)["weight_map"].values()}
    try:
        for name in names:
            with safe_open(folder / name, "np"):
                pass
    except (OSError, SafetensorError):
        return False
    return bool(names)


def _check_shared(output_dir: str | Path) -> None:
    """Raise ValueError, on all ranks, unless all see a file of the first one in output_dir."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object

    state = PartialState()
    (name,) = broadcast_object_list([f".shared-{uuid.uuid4().hex}"])
    probe = Path(output_dir, name)
    if state.is_main_process:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
    state.wait_for_everyone()
    seen_by = gather_object(
        [(probe.is_file(), f"rank {state.process_index} on {socket.gethostname()}")]
    )
    if state.is_main_process:
        probe.unlink()
    if blind := [rank for sees, rank in seen_by if not sees]:
        raise ValueError(
            f"output_dir is {output_dir}, but {' and '.join(blind)} cannot see what rank 0 writes "
            "there; give a folder that all ranks share"
        )
