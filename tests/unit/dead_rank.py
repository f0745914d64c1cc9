"""A server that stays away for the second of two ranks only: dead_rank.py MODEL OUTPUT_DIR, run by test_exact_resume.py."""

import os
import sys
from pathlib import Path

from same_step import PathsByProblem
from test_trainer_units import make_trainer

from rea_rl import entry


class DeadForOne(PathsByProblem):
    def run(self, rows, batch):
        if batch.step == 2 and os.environ["RANK"] == "1":
            raise ConnectionError("policy_server does not answer")
        return super().run(rows, batch)


if __name__ == "__main__":
    model, output_dir = map(Path, sys.argv[1:])
    trainer = make_trainer(model, output_dir, DeadForOne(), max_steps=4, max_rollout_lag=1)
    try:
        trainer.train()
    except ConnectionError as error:
        entry.save_last_step(trainer)
        sys.exit(f"rank {os.environ['RANK']}: {error}")
