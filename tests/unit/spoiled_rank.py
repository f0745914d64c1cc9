"""A loss of the second of two ranks that is no number in some steps: spoiled_rank.py MODEL
OUTPUT_DIR, by test_ranks.py."""

import json
import logging
import os
import sys
from pathlib import Path

from same_step import PathsByProblem
from trainers import adapter, make_trainer
from transformers import TrainerCallback

from rea_rl.run import training as entry
from rea_rl.run.endings import NonFiniteError

SPOILED = {1: "nan", 3: "inf", 5: "nan", 6: "nan", 7: "nan"}  # steps from 0


def whole_adapter(trainer):
    """The adapter, of which ZeRO-3 leaves each rank a part."""
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") != "3":
        return adapter(trainer)
    import deepspeed

    with deepspeed.zero.GatheredParameters(
        [p for p in trainer.model.parameters() if p.requires_grad]
    ):
        return adapter(trainer)


class Changes(TrainerCallback):
    """Whether each step changed the adapter, and the rate of the next one."""

    def __init__(self, trainer):
        self.trainer, self.changed, self.rates, self.before = trainer, [], [], None

    def weights(self):
        return {name: weight.tolist() for name, weight in whole_adapter(self.trainer).items()}

    def on_step_begin(self, *args, **kwargs):
        self.before = self.before or self.weights()

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
        after = self.weights()
        self.changed.append(after != self.before)
        self.rates.append(lr_scheduler.get_last_lr()[0])
        self.before = after


class Lines(logging.Handler):
    lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def spoil_second_rank(trainer):
    original = trainer._compute_loss

    def compute_loss(model, inputs):
        loss = original(model, inputs)
        kind = SPOILED.get(trainer.state.global_step)
        if kind and os.environ["RANK"] == "1":
            loss = loss * float("nan") if kind == "nan" else loss + float("inf")
        return loss

    trainer._compute_loss = compute_loss


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        from deepspeed import ops

        ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model, output_dir = map(Path, sys.argv[1:])
    rank = os.environ["RANK"]
    logging.getLogger("rea_rl.run.numerics").addHandler(Lines())
    trainer = make_trainer(
        model, output_dir,
        PathsByProblem(correct=(True, True, False, True, True), lengths=(40, 12, 30, 9, 25, 7, 33)),
        max_steps=8, lr_scheduler_type="linear", save_strategy="steps", save_steps=100,
        learning_rate=1e-2,
        per_device_train_batch_size=2, gradient_accumulation_steps=2,
    )  # fmt: skip
    spoil_second_rank(trainer)
    changes = Changes(trainer)
    trainer.add_callback(changes)
    report = {"error": ""}
    try:
        entry.train(trainer)
    except NonFiniteError as error:
        report["error"] = str(error)
    report |= {"changed": changes.changed, "rates": changes.rates, "warnings": Lines.lines}
    report["finite"] = all(
        bool(weight.isfinite().all()) for weight in whole_adapter(trainer).values()
    )
    Path(output_dir.parent, f"rank-{rank}.json").write_text(json.dumps(report))
