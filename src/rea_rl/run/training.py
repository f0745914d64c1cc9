"""Common parts of the training entry points `grpo.py`, `sft.py` and `dpo.py`: recipe, model, and
the course of a run.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rea_core.checks import check_output_folder
from rea_core.command import in_words
from rea_core.ownership import check_folder_free, own_folder
from rea_rl.rewards import RewardError
from rea_rl.run.endings import Interrupted, RunEnded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer
    from transformers.trainer_utils import TrainOutput
    from trl import ModelConfig

    from rea_rl.run.resume import Plan


logger = logging.getLogger(__name__)

EXTRAS = ("tensorboard", "trackio", "wandb")  # of setup.py
NO_ROOM = re.compile(
    r"No space left|File too large|quota exceeded|PytorchStreamWriter failed|unexpected pos \d"
)


def parse(program: str, argv: list[str] | None = None) -> tuple[Any, ...]:
    """Recipe (`--config FILE`) and overriding flags as the dataclasses of a program.

    Raises ValueError for a key that none has, a value of another type or out of its range, a
    reporter that is not installed, and for places of the run that are no folders.
    """
    from rea_core.recipe import RecipeParser
    from rea_rl.configs import PARTS, check_ranges
    from rea_rl.run.trl_keys import check_hub

    parts = RecipeParser(PARTS[program]).parse_args_and_config(argv)
    for part in parts:
        check_ranges(part)
        check_reporters(getattr(part, "report_to", []))
        if hasattr(part, "push_to_hub"):
            check_hub(part)
        if checkpoint := getattr(part, "resume_from_checkpoint", None):
            check_checkpoint(checkpoint)
        if (folder := getattr(part, "output_dir", None)) is not None:
            if not folder.strip():
                raise ValueError("output_dir is empty; name a folder")
            check_output_folder(folder, "output_dir")
    return parts


def check_evaluation(args: Any, eval_dataset_name: str | None) -> None:
    """Raise ValueError if evaluations are asked for, and nothing is there to evaluate on."""
    if eval_dataset_name is not None:
        return
    for key, off in (("eval_strategy", "'no'"), ("eval_on_start", "false")):
        value = getattr(args, key)
        if value and value != "no":
            raise ValueError(
                f"{key} is '{getattr(value, 'value', value)}', but eval_dataset_name is missing; "
                f"name held-out problems or rows, or set {key}: {off}"
            )


def own_output_dir(args: Any, is_check: bool = False) -> None:
    """Own output_dir until this process ends; the first rank does so for all.

    Raises ValueError naming another process that has it. `is_check`: it need not be ours, but free.
    """
    if os.environ.get("RANK", "0") == "0":
        (check_folder_free if is_check else own_folder)(args.output_dir, "output_dir")


def check_reporters(names: list[str]) -> None:
    """Raise ValueError for a program of `report_to` that is unknown, or cannot be used here."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from rea_core.model_files import cause

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"report_to is {name!r}; it must be none, or of "
                f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}"
            )
        try:
            INTEGRATION_TO_CALLBACK[name]()  # imports its package, and starts nothing
        except (ImportError, RuntimeError, ValueError) as error:
            extra = f"pip install -e '.[{name}]'" if name in EXTRAS else "do that"
            raise ValueError(
                f"report_to is {name}, which cannot be used ({cause(error)}); {extra}, or set "
                "report_to: none"
            ) from error


def check_checkpoint(folder: str) -> None:
    """Raise ValueError if a run cannot continue from a folder."""
    if not (Path(folder) / "trainer_state.json").is_file():
        raise ValueError(
            f"resume_from_checkpoint is {folder}, which is no checkpoint-<step> folder of a run; "
            "leave it out to continue from the last one in output_dir"
        )


def check_buildable(model_args: ModelConfig, trust_remote_code: bool) -> None:
    """Raise ValueError for a model that could not be loaded, before any server or data."""
    from rea_core import model_files

    settings = {"revision": model_args.model_revision, "trust_remote_code": trust_remote_code}
    attention = model_args.attn_implementation
    model_files.check_buildable(
        model_args.model_name_or_path, "model_name_or_path", attention, **settings
    )


def check_master_weights(args: Any, model_args: ModelConfig) -> None:
    """Raise ValueError for a whole model that is trained in 16 bits: the optimizer's small steps
    are lost in the rounding of such weights. DeepSpeed keeps float32 copies."""
    from transformers import AutoConfig

    if model_args.use_peft or (args.deepspeed_plugin is not None and (args.bf16 or args.fp16)):
        return
    dtype = model_args.dtype
    if dtype == "auto":
        name, revision = model_args.model_name_or_path, model_args.model_revision
        settings = {"revision": revision, "trust_remote_code": args.trust_remote_code}
        stored = AutoConfig.from_pretrained(name, **settings).dtype
        dtype = f"auto, which is {str(stored).removeprefix('torch.')} here"
    if "16" in str(dtype):
        raise ValueError(
            f"use_peft is false, so that all weights are trained, but dtype is {dtype}: small "
            "steps are lost in the rounding of such weights; set dtype: float32 (with bf16: true "
            "the model still computes in bfloat16), launch with zero2.yaml, which keeps float32 "
            "copies, or set use_peft: true"
        )


def load_model(
    model_args: ModelConfig, trust_remote_code: bool, torch_threads: int | None
) -> PreTrainedModel:
    """Model of a recipe; also sets the CPU threads. Raises ValueError with the cause."""
    import torch

    from rea_core.model_files import read_model

    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    return read_model(
        model_args.model_name_or_path,
        "model_name_or_path",
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        trust_remote_code=trust_remote_code,
    )


def train(trainer: Trainer, give_up: Callable[[], None] = lambda: None) -> None:
    """Train as planned, from a checkpoint or from the start; evaluate, save weights, metrics and
    state.

    A trainer without a plan continues the last checkpoint of its output_dir. SIGTERM and Ctrl-C
    call `give_up`, which ends what the training waits for.

    Raises RunEnded, behind a checkpoint of the last finished step, after several steps that are no
    numbers, if a monitor ends the run, and after SIGTERM or Ctrl-C.
    """
    from rea_rl.run.checkpoints import know_cpu_by_index, last_checkpoint
    from rea_rl.run.resume import checkpoint_step
    from rea_rl.run.start import start_block
    from rea_rl.run.stopping import StopAtSigterm

    know_cpu_by_index()
    args, plan = trainer.args, trainer.plan
    checkpoint = (
        plan.checkpoint if plan else args.resume_from_checkpoint or last_checkpoint(args.output_dir)
    )
    # read now: save_total_limit may remove it
    done = checkpoint_step(Path(checkpoint)) if checkpoint else 0
    if checkpoint:
        logger.info("continuing from %s", checkpoint)
    if trainer.is_world_process_zero():
        _prepare(Path(args.output_dir), plan)
        logger.info("%s", start_block(trainer, checkpoint))
    try:
        with StopAtSigterm(trainer, give_up):
            result = trainer.train(resume_from_checkpoint=checkpoint)
    except RunEnded:
        save_last_step(trainer)
        raise
    trainer.check_weights()
    trainer.save_model()
    if trainer.eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    trainer.save_state()
    # last: its file says that the run is complete
    trainer.save_metrics("train", _of_trained_steps(result, done))
    trainer.publish_at_the_end()
    logger.info("weights and metrics are in %s", args.output_dir)


def _prepare(output_dir: Path, plan: Plan | None) -> None:
    """Record what the run is made with, and remove what would say that it is complete, or that a
    write was cut off."""
    from rea_rl.run.resume import RESULTS
    from rea_rl.run.run_record import write_record

    if plan:
        write_record(output_dir, plan.record)
    for left_over in [output_dir / RESULTS, *Path(output_dir, "rollouts").glob(".*")]:
        left_over.unlink(missing_ok=True)


def _of_trained_steps(result: TrainOutput, done: int) -> dict[str, float]:
    """Metrics of a training, over the steps since those that were `done`: transformers divides
    by all steps."""
    trained = result.global_step - done
    if trained < 1:  # the run had ended before its weights were saved
        return {
            key: value for key, value in result.metrics.items() if key in ("epoch", "total_flos")
        }
    return result.metrics | {"train_loss": result.training_loss * result.global_step / trained}


def save_last_step(trainer: Trainer) -> None:
    """Write a checkpoint of the last finished step, unless there is one, or no such step."""
    from rea_rl.run.checkpoints import is_whole

    step = trainer.state.global_step
    folder = Path(trainer.args.output_dir, f"checkpoint-{step}")
    if step == 0:
        logger.warning("no step was finished: there is nothing to continue from")
        return
    if not is_whole(folder):
        trainer._save_checkpoint(trainer.model, trial=None)
    logger.warning("the run can continue from %s", folder)


def is_disk_full(error: Exception) -> bool:
    """Whether there was no room for a file: torch and safetensors raise errors of no number."""
    number = getattr(error, "errno", None)
    return (
        number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        or NO_ROOM.search(str(error)) is not None
    )


def run(program: str, build: Callable[..., Trainer], argv: list[str] | None) -> None:
    """Command of an entry point without servers: exit code 1 with one line for a mistake in the
    recipe or the data."""
    from rea_core.command import setup_logging
    from rea_rl.run.resume import RunComplete

    setup_logging()
    try:
        parts = parse(program, argv)
        own_output_dir(next(part for part in parts if hasattr(part, "output_dir")))
        trainer = build(*parts)
    # TRL raises both for keys that do not go together
    except (ValueError, NotImplementedError, OSError) as error:
        leave(error)
    except RunComplete as complete:
        logger.info("%s", complete)
        return
    try:
        train(trainer)
    except Exception as error:
        end(trainer, error)


def end(trainer: Trainer, error: Exception) -> NoReturn:
    """End a training with exit code 1 and one line for what may end one, 143 after SIGTERM, 130
    after Ctrl-C. Raises everything else.

    A line of its own comes first: a progress bar may be on the last one.
    """
    from safetensors import SafetensorError

    is_first = trainer.is_world_process_zero()
    if isinstance(error, Interrupted):
        if is_first:
            sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(128 + error.args[1])
    if isinstance(error, (OSError, RuntimeError, SafetensorError)) and is_disk_full(error):
        sys.exit(
            f"\nerror: there is no room to write into {trainer.args.output_dir} "
            f"({' '.join(str(error).split())[:200]}); "
            "free some, and give the same command to continue from the last checkpoint"
        )
    if isinstance(error, RewardError):  # only the rank of the response meets it
        sys.exit(f"\nerror: {error}")
    # a server stays away or refuses; NaN steps; a monitor: all ranks meet these
    if isinstance(error, (ConnectionError, RunEnded)):
        sys.exit(f"\nerror: {error}" if is_first else 1)
    raise error


def leave(error: Exception) -> NoReturn:
    """End with exit code 1; the first rank says why, in one line."""
    sys.exit(f"error: {in_words(error)}" if os.environ.get("RANK", "0") == "0" else 1)
