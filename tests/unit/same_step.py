"""Three optimizer steps on recorded paths in as many processes as the launcher starts: same_step.py
MODEL OUTPUT_DIR.

PACKING and CHECKPOINTING are keys of the recipe. With STOP there is a checkpoint after each step,
the run ends after that one, and begins behind the last one that is there. A path depends on its
problem and place in the group only, so the batch is the same however it is dealt. The launcher may
be accelerate's, with DeepSpeed.
"""

import os
import sys
from pathlib import Path

from trainers import RecordedPaths, make_trainer
from transformers import TrainerCallback

from rea_rl.run.checkpoints import know_cpu_by_index, last_checkpoint


class PathsByProblem(RecordedPaths):
    def path(self, row, batch, i):
        return super().path(row, batch, 4 * int(row["problem_id"].removeprefix("p")) + i % 4)


class StopAt(TrainerCallback):
    """Ends a run after a step, as if it had been interrupted behind its checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        from deepspeed import ops

        # gloo will do, and needs no minute of compiling
        ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model, output_dir = map(Path, sys.argv[1:])
    engine = PathsByProblem(
        correct=(True, True, False, True, True), lengths=(40, 12, 30, 9, 25, 7, 33)
    )
    stop = int(os.environ.get("STOP", 0))
    paths = 8 // int(os.environ["WORLD_SIZE"])  # of this process
    # TRL sets this for ZeRO-3; said here, since make_trainer wants the recipe unchanged.
    checkpointing = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    }
    trainer = make_trainer(
        model, output_dir, engine, per_device_train_batch_size=paths // 2,
        gradient_accumulation_steps=2,
        rows_per_forward=3, max_rollout_lag=1, max_steps=3,
        packing=os.environ.get("PACKING", "none"), tokens_per_forward=60, save_steps=1,
        save_total_limit=1,
        save_strategy="steps" if stop else "no",
        **(checkpointing if os.environ.get("CHECKPOINTING") else {}),
    )  # fmt: skip
    if stop:
        trainer.add_callback(StopAt(stop))
    know_cpu_by_index()  # as the entry points do
    trainer.train(resume_from_checkpoint=last_checkpoint(output_dir))
    trainer.save_model()
    trainer.save_state()
